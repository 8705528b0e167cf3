//! Which pages and ports of which domain are served: what the daemon read from the guest's nodes, as one word of the
//! command line.

use std::fmt;
use std::str::FromStr;

use super::described::Abi;

/// A device's shared page and event channel, as the guest's nodes have them: any numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// Frame number of the page.
    pub frame: u64,
    /// The guest's port.
    pub port: u32,
}

/// `D:FRAME:PORT:32|64`, followed by `:FRAME:PORT:abs|rel` when there is a keyboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The domain.
    pub domid: u16,
    /// Its frame buffer.
    pub screen: Ring,
    /// How long the guest's words are.
    pub abi: Abi,
    /// Its keyboard and pointer, and whether it wants the pointer's place rather than its moves.
    pub input: Option<(Ring, bool)>,
}

/// It is no such word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected D:FRAME:PORT:32|64[:FRAME:PORT:abs|rel], in decimal")]
pub struct NotWanted;

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domid, screen, abi, input } = self;
        let bits = if *abi == Abi::Bits32 { 32 } else { 64 };
        write!(f, "{domid}:{}:{}:{bits}", screen.frame, screen.port)?;
        input.map_or(Ok(()), |(ring, absolute)| {
            write!(f, ":{}:{}:{}", ring.frame, ring.port, if absolute { "abs" } else { "rel" })
        })
    }
}

impl FromStr for Wanted {
    type Err = NotWanted;

    fn from_str(text: &str) -> Result<Self, NotWanted> {
        let words: Vec<&str> = text.split(':').collect();
        let ring = |words: &[&str]| {
            let ring = Ring { frame: words[0].parse().ok()?, port: words[1].parse().ok()? };
            Some(ring)
        };
        let parsed = || {
            let (first, rest) = words.split_at_checked(4)?;
            let abi = match first[3] {
                "32" => Abi::Bits32,
                "64" => Abi::Bits64,
                _ => return None,
            };
            let input = match rest {
                [] => None,
                [_, _, "abs"] => Some((ring(rest)?, true)),
                [_, _, "rel"] => Some((ring(rest)?, false)),
                _ => return None,
            };
            Some(Self { domid: first[0].parse().ok()?, screen: ring(&first[1..])?, abi, input })
        };
        parsed().ok_or(NotWanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written_and_nothing_else_is() {
        for text in ["7:1234:5:64", "1:0:0:32:18446744073709551615:4294967295:abs", "1:2:3:64:4:5:rel"] {
            assert_eq!(text.parse::<Wanted>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "7:1:2",
            "7:1:2:16",
            "7:1:2:64:3:4",
            "70000:1:2:64",
            "7:-1:2:64",
            "7:1:2:64:3:4:abs:",
            "7:1:x:64",
        ] {
            assert_eq!(bad.parse::<Wanted>(), Err(NotWanted), "{bad}");
        }
    }
}
