//! Xenstore paths that are known to be well formed.
//!
//! A path is checked once, when it is made; everything after that (the encoder, the layouts) relies on it. The
//! rules are those of Xen's `docs/misc/xenstore.txt`: ASCII letters, digits and `-/_@`, no empty segment, no
//! trailing slash, at most [`MAX_ABSOLUTE`] or [`MAX_RELATIVE`] bytes.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest absolute path in bytes, without a NUL (`XENSTORE_ABS_PATH_MAX` in `xen/include/public/io/xs_wire.h`).
pub const MAX_ABSOLUTE: usize = 3072;
/// Longest relative path in bytes, without a NUL (`XENSTORE_REL_PATH_MAX` in `xen/include/public/io/xs_wire.h`).
pub const MAX_RELATIVE: usize = 2048;

/// A checked xenstore path: absolute (`/vm`), relative to the caller's own domain (`device/vbd`), or a special
/// watch (`@releaseDomain`). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Arc<str>);

/// Why some bytes are not a xenstore path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// Nothing at all.
    #[error("a xenstore path must not be empty")]
    Empty,
    /// Over the protocol's limit.
    #[error("xenstore path of {len} bytes is too long: at most {max} bytes are allowed")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A byte outside the alphabet, a NUL for instance.
    #[error("byte {byte:#04x} at offset {offset} is not allowed in a xenstore path")]
    BadByte {
        /// Where it stands.
        offset: usize,
        /// What it is.
        byte: u8,
    },
    /// `//`, or a slash at the end.
    #[error("xenstore path has an empty segment at offset {offset}")]
    EmptySegment {
        /// Where the segment would begin.
        offset: usize,
    },
    /// A relative path was needed (to join) and an absolute one was given.
    #[error("a path relative to its parent was needed, not an absolute one")]
    NotRelative,
}

impl Path {
    /// The root, `/`.
    pub fn root() -> Self {
        Self(Arc::from("/"))
    }

    /// Checks `text`.
    ///
    /// # Errors
    /// [`PathError`] when it breaks one of the rules of the module.
    pub fn new(text: &str) -> Result<Self, PathError> {
        check(text.as_bytes())?;
        Ok(Self(Arc::from(text)))
    }

    /// Checks bytes that came from elsewhere, such as a watch event.
    ///
    /// # Errors
    /// [`PathError`] when they break one of the rules of the module.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PathError> {
        check(bytes)?;
        // The alphabet is ASCII, so this conversion finds nothing that `check` let through.
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self(Arc::from(text))),
            Err(e) => Err(PathError::BadByte { offset: e.valid_up_to(), byte: bytes[e.valid_up_to()] }),
        }
    }

    /// For paths made of this crate's constants, checked paths, numbers and UUIDs, which cannot be malformed.
    pub(crate) fn known(text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        debug_assert_eq!(check(text.as_bytes()), Ok(()), "{text:?}");
        Self(Arc::from(text))
    }

    /// This path with `relative` (one or more segments) below it.
    ///
    /// # Errors
    /// [`PathError`] when `relative` is absolute or malformed, or when the whole gets too long.
    pub fn join(&self, relative: &str) -> Result<Self, PathError> {
        if relative.starts_with('/') {
            return Err(PathError::NotRelative);
        }
        Self::new(&self.joined(relative))
    }

    /// [`Path::join`] for segments that are known to be well formed and short.
    pub(crate) fn at(&self, relative: impl AsRef<str>) -> Self {
        Self::known(self.joined(relative.as_ref()))
    }

    fn joined(&self, relative: &str) -> String {
        if self.is_root() { format!("/{relative}") } else { format!("{}/{relative}", self.0) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `/`.
    pub fn is_root(&self) -> bool {
        &*self.0 == "/"
    }

    /// Whether it starts at the root, rather than at the caller's domain.
    pub fn is_absolute(&self) -> bool {
        self.0.starts_with('/')
    }

    /// The path without its last segment; `None` for the root and for a single relative segment.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        match self.0.rfind('/') {
            None => None,
            Some(0) => Some(Self::root()),
            Some(cut) => Some(Self(Arc::from(&self.0[..cut]))),
        }
    }

    /// The last segment; empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// The segments in order; none for the root.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|s| !s.is_empty())
    }

    /// What follows `base` and its slash: `Some("")` for the path itself, `None` when it is not below `base`.
    pub fn below<'a>(&'a self, base: &Self) -> Option<&'a str> {
        if base.is_root() {
            return self.0.strip_prefix('/');
        }
        let rest = self.0.strip_prefix(&*base.0)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_prefix('/') }
    }
}

fn check(bytes: &[u8]) -> Result<(), PathError> {
    let Some(&first) = bytes.first() else { return Err(PathError::Empty) };
    let max = if first == b'/' { MAX_ABSOLUTE } else { MAX_RELATIVE };
    if bytes.len() > max {
        return Err(PathError::TooLong { len: bytes.len(), max });
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'/' | b'_' | b'@');
    if let Some(offset) = bytes.iter().position(|&b| !allowed(b)) {
        return Err(PathError::BadByte { offset, byte: bytes[offset] });
    }
    if bytes.len() > 1 && bytes.ends_with(b"/") {
        return Err(PathError::EmptySegment { offset: bytes.len() });
    }
    match bytes.windows(2).position(|pair| pair == b"//") {
        Some(at) => Err(PathError::EmptySegment { offset: at + 1 }),
        None => Ok(()),
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        Self::new(text)
    }
}

impl AsRef<str> for Path {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_rules_of_the_protocol() {
        for good in ["/", "/a", "/local/domain/0", "device/vbd", "@releaseDomain", "a-b_c@D/9"] {
            assert_eq!(Path::new(good).map(|p| p.to_string()), Ok(good.to_owned()));
        }
        assert_eq!(Path::new(""), Err(PathError::Empty));
        assert_eq!(Path::new("/a/"), Err(PathError::EmptySegment { offset: 3 }));
        assert_eq!(Path::new("//"), Err(PathError::EmptySegment { offset: 2 }));
        assert_eq!(Path::new("/a//b"), Err(PathError::EmptySegment { offset: 3 }));
        assert_eq!(Path::new("a\0b"), Err(PathError::BadByte { offset: 1, byte: 0 }));
        assert_eq!(Path::new("/a/../b"), Err(PathError::BadByte { offset: 3, byte: b'.' }));
        assert_eq!(Path::new("é"), Err(PathError::BadByte { offset: 0, byte: 0xc3 }));
    }

    #[test]
    fn lengths_are_bounded_per_sort() {
        let absolute = format!("/{}", "a".repeat(MAX_ABSOLUTE - 1));
        assert!(Path::new(&absolute).is_ok());
        assert_eq!(Path::new(&(absolute + "a")), Err(PathError::TooLong { len: 3073, max: 3072 }));
        assert!(Path::new(&"a".repeat(MAX_RELATIVE)).is_ok());
        assert_eq!(Path::new(&"a".repeat(2049)), Err(PathError::TooLong { len: 2049, max: 2048 }));
    }

    #[test]
    fn families() {
        let p = Path::known("/vm/1/name");
        assert_eq!(p.name(), "name");
        assert_eq!(p.parent(), Some(Path::known("/vm/1")));
        assert_eq!(Path::known("/vm").parent(), Some(Path::root()));
        assert_eq!(Path::root().parent(), None);
        assert_eq!(Path::known("device").parent(), None);
        assert_eq!(Path::root().join("vm"), Ok(Path::known("/vm")));
        assert_eq!(Path::known("/vm").join("/x"), Err(PathError::NotRelative));
        assert_eq!(p.below(&Path::known("/vm")), Some("1/name"));
        assert_eq!(p.below(&Path::known("/v")), None);
        assert_eq!(p.below(&p), Some(""));
        assert_eq!(p.below(&Path::root()), Some("vm/1/name"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic_and_good_ones_survive(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(path) = Path::from_bytes(&bytes) {
                prop_assert_eq!(path.as_str().as_bytes(), &bytes[..]);
                prop_assert_eq!(Path::new(path.as_str()), Ok(path));
            }
        }

        #[test]
        fn join_then_parent_is_the_identity(base in "(/[a-z0-9]{1,5}){1,4}", name in "[A-Za-z0-9@_-]{1,8}") {
            let base = Path::new(&base).unwrap();
            let joined = base.join(&name).unwrap();
            prop_assert_eq!(joined.name(), &name);
            prop_assert_eq!(joined.below(&base), Some(&name[..]));
            prop_assert_eq!(joined.parent(), Some(base));
        }
    }
}
