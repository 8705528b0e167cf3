//! Errors as the protocol names them.

use std::fmt;

/// Longest name kept of an error this crate does not know; the known ones have at most 9 letters.
const MAX_UNKNOWN: usize = 32;

macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)*) => {
        /// Why a daemon refused a request, from the name it sent.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Errno {
            $($(#[$doc])* $name,)*
            /// A name that is not in the protocol's table, cut and made printable.
            Other(Box<str>),
        }

        impl Errno {
            /// Reads the payload of an ERROR reply.
            pub fn from_wire(payload: &[u8]) -> Self {
                let name = payload.split(|&b| b == 0).next().unwrap_or_default();
                $(if name == $text.as_bytes() { return Self::$name; })*
                let name = &name[..name.len().min(MAX_UNKNOWN)];
                Self::Other(name.escape_ascii().to_string().into())
            }

            /// The protocol's name.
            pub fn name(&self) -> &str {
                match self { $(Self::$name => $text,)* Self::Other(name) => name }
            }
        }
    };
}

errnos! {
    /// Malformed request.
    Inval = "EINVAL",
    /// No permission for this node.
    Acces = "EACCES",
    /// Already there (a watch registered twice, for instance).
    Exist = "EEXIST",
    /// Is a directory.
    IsDir = "EISDIR",
    /// No such node, transaction or domain.
    NoEnt = "ENOENT",
    /// The daemon ran out of memory.
    NoMem = "ENOMEM",
    /// A quota of the caller's domain is used up.
    NoSpc = "ENOSPC",
    /// The daemon's own failure.
    Io = "EIO",
    /// Has children.
    NotEmpty = "ENOTEMPTY",
    /// The daemon does not know this request.
    NoSys = "ENOSYS",
    /// Read-only.
    RoFs = "EROFS",
    /// Busy.
    Busy = "EBUSY",
    /// The transaction met a conflict: do it again from the start.
    Again = "EAGAIN",
    /// The domain is connected already.
    IsConn = "EISCONN",
    /// The reply would not fit a message: ask for the directory in parts.
    TooBig = "E2BIG",
    /// Not permitted to this caller.
    Perm = "EPERM",
    /// A quota, in oxenstored's words.
    Quota = "EQUOTA",
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_unknown_ones_are_tamed() {
        assert_eq!(Errno::from_wire(b"EAGAIN\0"), Errno::Again);
        assert_eq!(Errno::from_wire(b"E2BIG"), Errno::TooBig);
        assert_eq!(Errno::TooBig.name(), "E2BIG");
        assert_eq!(Errno::from_wire(b"\x1b[31m\0").name(), "\\x1b[31m");
        assert_eq!(Errno::from_wire(&[b'A'; 5000]).name().len(), MAX_UNKNOWN);
        assert_eq!(Errno::from_wire(b"").name(), "");
    }
}
