//! Domain ids: which numbers name a domain, and which are the hypervisor's own.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::sys;

/// The id of a domain that exists or can exist: 0 to 0x7FEF.
///
/// Ids from 0x7FF0 (`DOMID_FIRST_RESERVED`) on mean something else to the hypervisor ("myself", "I/O memory", "any
/// invalid domain"): passing one on by mistake would make a call act on the toolstack's own domain, so they cannot be
/// held by this type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(u16);

impl DomId {
    /// The first domain: the toolstack's own, normally.
    pub const DOM0: Self = Self(0);
    /// The largest number that can name a domain.
    #[expect(clippy::cast_possible_truncation, reason = "0x7FEF; checked by a test")]
    pub const MAX: Self = Self((sys::FFI_DOMID_FIRST_RESERVED - 1) as u16);

    /// A domain id, or `None` when the number is reserved.
    pub const fn new(id: u16) -> Option<Self> {
        if id <= Self::MAX.0 { Some(Self(id)) } else { None }
    }

    /// The number.
    pub const fn get(self) -> u16 {
        self.0
    }

    /// The number in the width most of libxenctrl uses.
    pub(crate) const fn raw(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<DomId> for u16 {
    fn from(id: DomId) -> Self {
        id.0
    }
}

impl From<DomId> for u32 {
    fn from(id: DomId) -> Self {
        id.raw()
    }
}

/// The same, from whatever width the number came in.
macro_rules! try_from_integer {
    ($($wide:ty),*) => {$(
        impl TryFrom<$wide> for DomId {
            type Error = Error;

            fn try_from(id: $wide) -> Result<Self, Error> {
                u16::try_from(id).ok().and_then(Self::new).ok_or_else(|| Error::InvalidArgument {
                    call: "domain id",
                    what: format!("{id} does not name a domain (0 to {} do)", Self::MAX),
                })
            }
        }
    )*};
}
try_from_integer!(u16, u32, u64, i32, i64);

impl FromStr for DomId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let id: u32 = text.parse().map_err(|_| Error::InvalidArgument {
            call: "domain id",
            what: format!("{text:?} is not a number"),
        })?;
        id.try_into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_ids_are_refused() {
        assert_eq!(u32::from(DomId::MAX), sys::FFI_DOMID_FIRST_RESERVED - 1);
        assert_eq!(DomId::try_from(0u32).unwrap(), DomId::DOM0);
        assert_eq!(DomId::try_from(0x7FEFu32).unwrap(), DomId::MAX);
        for reserved in [0x7FF0u32, 0x7FF4, 0x7FFF, 0xFFFF, 0x1_0000, u32::MAX] {
            assert!(DomId::try_from(reserved).is_err(), "{reserved:#x}");
        }
        assert!(DomId::try_from(-1i32).is_err());
    }

    #[test]
    fn text_goes_both_ways() {
        assert_eq!("17".parse::<DomId>().unwrap().to_string(), "17");
        for bad in ["", "-1", "32752", "7x", " 7"] {
            assert!(bad.parse::<DomId>().is_err(), "{bad:?}");
        }
    }
}
