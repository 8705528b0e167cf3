//! Ethernet addresses: text form and the checks that a network interface's address must pass.

use std::fmt;
use std::str::FromStr;

/// An Ethernet (MAC-48) address, in transmission order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// What Xen toolstacks give the host's side of every interface: the highest address there is, so that a bridge,
    /// which takes the lowest address of its ports, keeps that of its physical port.
    pub const BACKEND: Self = Self([0xfe, 0xff, 0xff, 0xff, 0xff, 0xff]);

    /// Whether this is a group address (broadcast included), which no interface may have as its own.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// Whether all bytes are zero, which Linux refuses as an interface's address.
    pub fn is_zero(self) -> bool {
        self.0 == [0; 6]
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first @ .., last] = self.0;
        first.iter().try_for_each(|byte| write!(f, "{byte:02x}:"))?;
        write!(f, "{last:02x}")
    }
}

/// Why a text is no MAC address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a MAC address: write six two-digit hexadecimal bytes, like 00:16:3e:12:34:56")]
pub struct MacParseError {
    /// The refused text.
    pub text: String,
}

impl FromStr for MacAddr {
    type Err = MacParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || MacParseError { text: text.to_owned() };
        let separator = if text.contains('-') { '-' } else { ':' };
        let mut bytes = [0u8; 6];
        let mut parts = text.split(separator);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(refuse)?;
            if !(1..=2).contains(&part.len()) || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(refuse());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| refuse())?;
        }
        if parts.next().is_some() { Err(refuse()) } else { Ok(Self(bytes)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn accepts_the_usual_spellings() {
        for text in ["00:16:3e:0a:0b:0c", "00-16-3E-0A-0B-0C", "0:16:3e:a:b:c"] {
            assert_eq!(text.parse(), Ok(MacAddr([0, 0x16, 0x3e, 0x0a, 0x0b, 0x0c])), "{text}");
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            "00:16:3e:0a:0b",
            "00:16:3e:0a:0b:0c:0d",
            "00:16:3e:0a:0b:+c",
            "00:16:3e:0a:0b:0cc",
            "::::::",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn group_and_zero_addresses_are_told_apart() {
        assert!(MacAddr([0xff; 6]).is_multicast());
        assert!(!MacAddr::BACKEND.is_multicast());
        assert!(MacAddr([0; 6]).is_zero());
    }

    proptest! {
        #[test]
        fn text_round_trips(bytes: [u8; 6]) {
            prop_assert_eq!(MacAddr(bytes).to_string().parse(), Ok(MacAddr(bytes)));
        }

        #[test]
        fn never_panics(text in ".*") {
            let _ = text.parse::<MacAddr>();
        }
    }
}
