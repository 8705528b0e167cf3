//! The xenstore wire protocol as bytes, without any I/O.
//!
//! ```text
//!  0      4       8      12     16                16+len
//!  | kind | req_id | tx_id | len | payload ...    |      all integers little-endian
//! ```
//!
//! A reply repeats the request's `kind`, `req_id` and `tx_id`, or has kind ERROR and the name of an errno as its
//! payload. Watch events come unasked, with both ids zero. Numbers and limits are those of Xen's
//! `xen/include/public/io/xs_wire.h` and `docs/misc/xenstore.txt`.

mod decode;
mod errno;
mod request;

pub use decode::{DecodeError, Decoder, Frame, MAX_REPLY, Payload};
pub use errno::Errno;
pub use request::{EncodeError, ParseError, Request};

use std::fmt;

/// Bytes of a header.
pub const HEADER_LEN: usize = 16;
/// Most payload bytes of a request (`XENSTORE_PAYLOAD_MAX`); a daemon drops the connection that sends more.
pub const MAX_PAYLOAD: usize = 4096;

/// A transaction's number, as the daemon gave it to this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub u32);

impl TxId {
    /// Outside any transaction.
    pub const NONE: Self = Self(0);
}

impl fmt::Display for TxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $number:literal,)*) => {
        /// What a message is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "the names are the protocol's own")]
        #[repr(u32)]
        pub enum Kind { $($(#[$doc])* $name = $number,)* }

        impl Kind {
            /// The kind with this number on the wire, if it is a known one.
            pub const fn from_wire(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)* _ => None }
            }
        }
    };
}

// 20 was RESTRICT, gone from the protocol; a daemon answers it ENOSYS.
kinds! {
    Control = 0,
    Directory = 1,
    Read = 2,
    GetPerms = 3,
    Watch = 4,
    Unwatch = 5,
    TransactionStart = 6,
    TransactionEnd = 7,
    Introduce = 8,
    Release = 9,
    GetDomainPath = 10,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    SetPerms = 14,
    WatchEvent = 15,
    Error = 16,
    IsDomainIntroduced = 17,
    Resume = 18,
    SetTarget = 19,
    ResetWatches = 21,
    DirectoryPart = 22,
}

impl Kind {
    /// The number on the wire.
    pub const fn to_wire(self) -> u32 {
        self as u32
    }
}

/// The fixed part of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the message is.
    pub kind: Kind,
    /// Chosen by the client, repeated in the reply.
    pub req_id: u32,
    /// The transaction.
    pub tx_id: TxId,
}

impl Header {
    /// Appends the message with this header and `payload` to `out`.
    ///
    /// # Panics
    /// When the payload is longer than the length field can say; requests are bounded by [`MAX_PAYLOAD`] and
    /// replies by [`MAX_REPLY`] long before.
    pub fn append_message(&self, payload: &[u8], out: &mut Vec<u8>) {
        let len = u32::try_from(payload.len()).expect("payloads are bounded far below 4 GiB");
        out.reserve(HEADER_LEN + payload.len());
        for word in [self.kind.to_wire(), self.req_id, self.tx_id.0, len] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(payload);
    }
}

/// The body of a successful reply.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply(pub Vec<u8>);

impl Reply {
    /// The reply as a list of strings, each of which a NUL ends (the last one may lack it).
    pub fn strings(&self) -> impl Iterator<Item = &[u8]> {
        strings(&self.0)
    }

    /// The body up to its first NUL as a decimal number.
    pub fn number(&self) -> Option<u32> {
        let digits = self.strings().next()?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        std::str::from_utf8(digits).ok()?.parse().ok()
    }
}

/// The NUL-ended strings in `bytes`, the last of which may lack its NUL.
pub(crate) fn strings(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let bytes = bytes.strip_suffix(b"\0").map_or(Some(bytes).filter(|b| !b.is_empty()), Some);
    bytes.into_iter().flat_map(|b| b.split(|&b| b == 0))
}

/// The two strings of a watch event, path and token; `None` when there are not two.
pub fn watch_event(payload: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = strings(payload);
    Some((parts.next()?, parts.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_lists() {
        let list = |bytes: &[u8]| strings(bytes).map(<[u8]>::to_vec).collect::<Vec<_>>();
        assert_eq!(list(b""), Vec::<Vec<u8>>::new());
        assert_eq!(list(b"\0"), vec![b"".to_vec()]);
        assert_eq!(list(b"a\0bc\0"), vec![b"a".to_vec(), b"bc".to_vec()]);
        assert_eq!(list(b"a\0bc"), vec![b"a".to_vec(), b"bc".to_vec()]);
        assert_eq!(watch_event(b"/a\0t\0"), Some((&b"/a"[..], &b"t"[..])));
        assert_eq!(watch_event(b"/a"), None);
    }

    #[test]
    fn numbers_are_plain_decimals() {
        assert_eq!(Reply(b"12\0".to_vec()).number(), Some(12));
        for bad in [&b""[..], b"\0", b"+1\0", b"1x\0", b"99999999999\0"] {
            assert_eq!(Reply(bad.to_vec()).number(), None);
        }
    }
}
