//! The states that a frontend and its backend show each other, and other words read from the store.

use std::fmt;

/// A device's state as one of its ends shows it (`xen/include/public/io/xenbus.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XenbusState {
    /// Nothing said, or nonsense.
    Unknown = 0,
    /// Nodes are written, no driver yet.
    Initialising = 1,
    /// The backend waits for hotplug or for the frontend.
    InitWait = 2,
    /// The frontend has published its rings.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// Asked to end, or ending.
    Closing = 5,
    /// Ended.
    Closed = 6,
    /// The backend changes its mind about the device (PCI).
    Reconfiguring = 7,
    /// And has done so.
    Reconfigured = 8,
}

impl XenbusState {
    const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Initialising,
        Self::InitWait,
        Self::Initialised,
        Self::Connected,
        Self::Closing,
        Self::Closed,
        Self::Reconfiguring,
        Self::Reconfigured,
    ];

    /// Reads a `state` node. Bytes that are no state are [`XenbusState::Unknown`], as for the kernel's drivers.
    pub fn from_value(bytes: &[u8]) -> Self {
        match bytes {
            [digit @ b'0'..=b'8'] => Self::ALL[usize::from(digit - b'0')],
            _ => Self::Unknown,
        }
    }

    /// What is written to a `state` node.
    pub fn to_value(self) -> Vec<u8> {
        self.to_string().into_bytes()
    }
}

/// The number.
impl fmt::Display for XenbusState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&(*self as u8), f)
    }
}

/// Longest text that [`printable`] makes, in bytes of the original.
const MAX_PRINTABLE: usize = 256;

/// Makes bytes from the store fit for a log line or an error: UTF-8 without control characters, cut to 256 bytes.
pub fn printable(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(MAX_PRINTABLE)];
    let text = String::from_utf8_lossy(cut);
    text.trim_end_matches('\0').chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn states_round_trip_and_nonsense_is_unknown() {
        for state in XenbusState::ALL {
            assert_eq!(XenbusState::from_value(&state.to_value()), state);
        }
        for bad in [&b""[..], b"9", b"44", b"4\n", b"4\0", b"-1", b"\xff"] {
            assert_eq!(XenbusState::from_value(bad), XenbusState::Unknown);
        }
    }

    proptest! {
        #[test]
        fn printable_text_is_tame(bytes: Vec<u8>) {
            let text = printable(&bytes);
            prop_assert!(text.chars().all(|c| !c.is_control()));
            prop_assert!(text.chars().count() <= MAX_PRINTABLE);
        }
    }
}
