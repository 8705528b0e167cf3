//! Who may read and write a node.
//!
//! On the wire a node's permissions are a list: the first entry names the owner and what everybody else may do,
//! each further entry gives one domain an access of its own. The owner and dom0 may always do everything.
//!
//! The named constructors are the vocabulary of the layouts: `d` is the guest (frontend), `b` the domain that
//! runs the backend.
//!
//! | name | list | meaning |
//! |---|---|---|
//! | [`Perms::no`] | `n0` | dom0 only |
//! | [`Perms::ro`] | `n0 rD` | dom0 owns, the guest reads |
//! | [`Perms::rw`] | `nD` | the guest owns |
//! | [`Perms::fe`] | `nD rB` | the guest owns, the backend reads |
//! | [`Perms::fero`] | `nB rD` | frontend node that the guest may not change |
//! | [`Perms::be`] | `nB rD` | the backend owns, the guest reads |

use std::fmt;
use std::num::TryFromIntError;
use std::str::FromStr;

/// A domain's number as Xen counts it (`domid_t`, 16 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomId(pub u16);

impl DomId {
    /// The control domain.
    pub const DOM0: Self = Self(0);
}

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl From<u16> for DomId {
    fn from(id: u16) -> Self {
        Self(id)
    }
}

impl TryFrom<u32> for DomId {
    type Error = TryFromIntError;

    fn try_from(id: u32) -> Result<Self, TryFromIntError> {
        u16::try_from(id).map(Self)
    }
}

/// What a domain may do with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// `n`
    None,
    /// `r`
    Read,
    /// `w`
    Write,
    /// `b`
    Both,
}

impl Access {
    const fn letter(self) -> char {
        match self {
            Self::None => 'n',
            Self::Read => 'r',
            Self::Write => 'w',
            Self::Both => 'b',
        }
    }

    /// Whether reading is among it.
    pub const fn may_read(self) -> bool {
        matches!(self, Self::Read | Self::Both)
    }

    /// Whether writing is among it.
    pub const fn may_write(self) -> bool {
        matches!(self, Self::Write | Self::Both)
    }
}

/// The permissions of one node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Perms {
    /// Who owns the node: may do everything, and takes it along when it dies.
    pub owner: DomId,
    /// What a domain may do that is not in `acl`.
    pub others: Access,
    /// Exceptions, one domain each.
    pub acl: Vec<(DomId, Access)>,
}

/// A permission list that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PermsError {
    /// No owner.
    #[error("a permission list must name an owner")]
    Empty,
    /// An entry that is not a letter of `nrwb` and a domain number.
    #[error("permission entry {number} is not one of n, r, w, b followed by a domain number")]
    BadEntry {
        /// Which one, counted from zero.
        number: usize,
    },
}

impl Perms {
    /// Owned by `owner`, closed to others.
    pub const fn owned_by(owner: DomId) -> Self {
        Self { owner, others: Access::None, acl: Vec::new() }
    }

    /// The same with `domain` allowed `access`.
    #[must_use]
    pub fn with(mut self, domain: DomId, access: Access) -> Self {
        self.acl.push((domain, access));
        self
    }

    /// dom0 only.
    pub const fn no() -> Self {
        Self::owned_by(DomId::DOM0)
    }

    /// dom0 owns, guest `d` reads.
    pub fn ro(d: DomId) -> Self {
        Self::no().with(d, Access::Read)
    }

    /// Guest `d` owns.
    pub const fn rw(d: DomId) -> Self {
        Self::owned_by(d)
    }

    /// Guest `d` owns, backend `b` reads.
    pub fn fe(d: DomId, b: DomId) -> Self {
        Self::owned_by(d).with(b, Access::Read)
    }

    /// Frontend node that guest `d` reads and cannot change, owned by backend `b`.
    pub fn fero(d: DomId, b: DomId) -> Self {
        Self::owned_by(b).with(d, Access::Read)
    }

    /// Backend `b` owns, guest `d` reads.
    pub fn be(d: DomId, b: DomId) -> Self {
        Self::owned_by(b).with(d, Access::Read)
    }

    /// What `domain` may do. dom0 may always do everything.
    pub fn access_of(&self, domain: DomId) -> Access {
        if domain == DomId::DOM0 || domain == self.owner {
            return Access::Both;
        }
        self.acl.iter().find(|(d, _)| *d == domain).map_or(self.others, |(_, access)| *access)
    }

    /// The wire form: entries, each ended by a NUL.
    pub fn to_wire(&self) -> Vec<u8> {
        self.entries()
            .flat_map(|(domain, access)| format!("{}{domain}\0", access.letter()).into_bytes())
            .collect()
    }

    /// Reads the wire form; the last NUL may be missing.
    ///
    /// # Errors
    /// [`PermsError`] when there is no entry or one is malformed.
    pub fn from_wire(bytes: &[u8]) -> Result<Self, PermsError> {
        let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
        if bytes.is_empty() {
            return Err(PermsError::Empty);
        }
        Self::from_entries(bytes.split(|&b| b == 0))
    }

    fn entries(&self) -> impl Iterator<Item = (DomId, Access)> {
        std::iter::once((self.owner, self.others)).chain(self.acl.iter().copied())
    }

    fn from_entries<'a>(entries: impl Iterator<Item = &'a [u8]>) -> Result<Self, PermsError> {
        let mut parsed = entries
            .enumerate()
            .map(|(number, entry)| parse_entry(entry).ok_or(PermsError::BadEntry { number }));
        let (owner, others) = parsed.next().ok_or(PermsError::Empty)??;
        Ok(Self { owner, others, acl: parsed.collect::<Result<_, _>>()? })
    }
}

fn parse_entry(entry: &[u8]) -> Option<(DomId, Access)> {
    let (letter, digits) = entry.split_first()?;
    let access = match letter {
        b'n' => Access::None,
        b'r' => Access::Read,
        b'w' => Access::Write,
        b'b' => Access::Both,
        _ => return None,
    };
    // `u16::from_str` would take a leading plus sign.
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some((DomId(std::str::from_utf8(digits).ok()?.parse().ok()?), access))
}

/// `n0 r5`, as in the table of the module.
impl fmt::Display for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (domain, access)) in self.entries().enumerate() {
            let gap = if i == 0 { "" } else { " " };
            write!(f, "{gap}{}{domain}", access.letter())?;
        }
        Ok(())
    }
}

/// Entries parted by spaces or commas, as `xenstore-ls -p` and [`Perms`]' own `Display` print them.
impl FromStr for Perms {
    type Err = PermsError;

    fn from_str(text: &str) -> Result<Self, PermsError> {
        Self::from_entries(text.split([' ', ',']).filter(|s| !s.is_empty()).map(str::as_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_vocabulary() {
        let (d, b) = (DomId(5), DomId(3));
        assert_eq!(Perms::no().to_string(), "n0");
        assert_eq!(Perms::ro(d).to_string(), "n0 r5");
        assert_eq!(Perms::rw(d).to_string(), "n5");
        assert_eq!(Perms::fe(d, b).to_string(), "n5 r3");
        assert_eq!(Perms::fero(d, b).to_string(), "n3 r5");
        assert_eq!(Perms::be(d, b).to_string(), "n3 r5");
        assert_eq!(Perms::ro(d).to_wire(), b"n0\0r5\0");
        assert_eq!(
            "b3,w2".parse(),
            Ok(Perms { owner: b, others: Access::Both, acl: vec![(DomId(2), Access::Write)] })
        );
    }

    #[test]
    fn access_follows_the_protocol() {
        let perms: Perms = "r1 n2 w3".parse().unwrap();
        assert_eq!(perms.access_of(DomId(0)), Access::Both);
        assert_eq!(perms.access_of(DomId(1)), Access::Both);
        assert_eq!(perms.access_of(DomId(2)), Access::None);
        assert_eq!(perms.access_of(DomId(3)), Access::Write);
        assert_eq!(perms.access_of(DomId(4)), Access::Read);
    }

    #[test]
    fn malformed_lists_are_refused() {
        assert_eq!(Perms::from_wire(b""), Err(PermsError::Empty));
        assert_eq!(Perms::from_wire(b"\0"), Err(PermsError::Empty));
        for bad in [&b"x0"[..], b"n", b"n+1", b"n70000", b"n 1", b"n0\0\0r1", b"\xffn0"] {
            assert!(matches!(Perms::from_wire(bad), Err(PermsError::BadEntry { .. })), "{bad:?}");
        }
    }

    fn access() -> impl Strategy<Value = Access> {
        prop_oneof![Just(Access::None), Just(Access::Read), Just(Access::Write), Just(Access::Both)]
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Perms::from_wire(&bytes);
        }

        #[test]
        fn both_forms_round_trip(
            owner: u16, others in access(), acl in proptest::collection::vec((any::<u16>(), access()), 0..6)
        ) {
            let acl = acl.into_iter().map(|(d, a)| (DomId(d), a)).collect();
            let perms = Perms { owner: DomId(owner), others, acl };
            prop_assert_eq!(Perms::from_wire(&perms.to_wire()), Ok(perms.clone()));
            prop_assert_eq!(perms.to_string().parse(), Ok(perms));
        }
    }
}
