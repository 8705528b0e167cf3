//! `vm-data`: what a VM's owner has for the guest, and the guest for its owner.
//!
//! The management layer hands over a list of keys and values. Only keys below `vm-data/` are written; all others,
//! and malformed ones, are ignored, so that nobody can reach another node this way. The guest owns the directory
//! and everything in it: it reads `vm-data/foo` under its home, and may change and add.

use crate::batch::Batch;
use crate::error::Error;
use crate::layout::{Item, domain_path, libxl_path};
use crate::operations::Operations;
use crate::path::{Path, PathError};
use crate::perms::{DomId, Perms};
use crate::subtree::{self, Area, Quota};
use std::collections::BTreeMap;

/// Most keys that are written. They count against the guest's own quota (`quota-maxentity`, 1000 nodes), which must
/// have room for its frontends and its agent.
pub const MAX_KEYS: usize = 256;
/// Longest value in bytes: what the guest itself could write (`quota-maxsize`).
pub const MAX_VALUE: usize = 2048;
/// Longest key in bytes, `vm-data/` included: what the guest itself can name (`quota-path-max`).
pub const MAX_KEY: usize = 1024;
/// Deepest node of [`AREA`], in levels below the children of `vm-data`.
const MAX_READ_DEPTH: u32 = 31;

const DIRECTORY: &str = "vm-data";

/// What the toolstack's copy of a value begins with: nodes without it are only on the way to others.
const COPIED: &[u8] = b"=";

/// All that [`VmData`] writes, with the nodes on the way.
const COPY_QUOTA: Quota = Quota { nodes: MAX_KEYS * 32, bytes: MAX_KEYS * (MAX_KEY + MAX_VALUE + 1) };

/// Why a key is not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Ignored {
    /// It is not below `vm-data/`.
    #[error("not below vm-data/")]
    Elsewhere,
    /// It cannot be a xenstore path.
    #[error(transparent)]
    BadPath(#[from] PathError),
    /// Longer than [`MAX_KEY`].
    #[error("the key has {0} bytes and {MAX_KEY} are allowed")]
    LongKey(usize),
    /// Longer than [`MAX_VALUE`].
    #[error("the value has {0} bytes and {MAX_VALUE} are allowed")]
    LongValue(usize),
    /// There are [`MAX_KEYS`] before it.
    #[error("there are more than {MAX_KEYS} keys")]
    TooMany,
}

/// Checked keys and values.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmData {
    /// By relative path, `vm-data/` included.
    nodes: BTreeMap<Path, Vec<u8>>,
    ignored: Vec<(String, Ignored)>,
}

impl VmData {
    /// Picks the keys that may be written. Of a key that comes twice the last value counts.
    pub fn new<K: Into<String>, V: Into<Vec<u8>>>(xsdata: impl IntoIterator<Item = (K, V)>) -> Self {
        let mut data = Self::default();
        for (key, value) in xsdata {
            let (key, value) = (key.into(), value.into());
            match check(&key, &value) {
                Ok(path) if data.nodes.len() < MAX_KEYS || data.nodes.contains_key(&path) => {
                    data.nodes.insert(path, value);
                }
                Ok(_) => data.ignored.push((key, Ignored::TooMany)),
                Err(why) => data.ignored.push((key, why)),
            }
        }
        data
    }

    /// The keys that are not written, with the reason.
    pub fn ignored(&self) -> &[(String, Ignored)] {
        &self.ignored
    }

    /// The nodes to be written, named relative to the domain's home.
    pub fn nodes(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.nodes.iter().map(|(path, value)| (path, &value[..]))
    }

    /// Creates the directory, the guest's own, with these nodes. They inherit its owner.
    fn create(&self, domid: DomId) -> Batch {
        let mut batch = Batch::new();
        for Item { path, value, perms, .. } in self.guests(domid).chain(self.copies(domid)) {
            match value {
                Some(value) => batch.write(path.clone(), value),
                None => batch.mkdir(path.clone()),
            };
            if let Some(perms) = perms {
                batch.set_perms(path, perms);
            }
        }
        batch
    }

    /// The directory, the guest's own, and these nodes, which inherit its owner.
    pub(crate) fn guests(&self, domid: DomId) -> impl Iterator<Item = Item> {
        let home = domain_path(domid);
        let directory =
            Item { path: home.at(DIRECTORY), value: None, perms: Some(Perms::rw(domid)), first: false };
        let node = move |(path, value): (&Path, &Vec<u8>)| Item {
            path: home.at(path),
            value: Some(value.clone()),
            perms: None,
            first: false,
        };
        std::iter::once(directory).chain(self.nodes.iter().map(node))
    }

    /// The toolstack's copy of them.
    pub(crate) fn copies(&self, domid: DomId) -> impl Iterator<Item = Item> {
        let home = libxl_path(domid);
        self.nodes.iter().map(move |(path, value)| Item {
            path: home.at(path),
            value: Some([COPIED, value].concat()),
            perms: None,
            first: false,
        })
    }

    /// What the toolstack last wrote to a domain, from its own copy; none when it made none. The guest may have written
    /// over it since.
    ///
    /// # Errors
    /// [`Error::Transport`].
    pub fn written(store: &mut (impl Operations + ?Sized), domid: DomId) -> Result<Option<Self>, Error> {
        let home = libxl_path(domid);
        if !store.exists(&home.at(DIRECTORY))? {
            return Ok(None);
        }
        let copy = subtree::read(store, &home, &[AREA], COPY_QUOTA)?;
        let leaves = copy.nodes.into_iter().filter_map(|(path, value)| {
            let value = value.strip_prefix(COPIED)?.to_vec();
            Some((path, value))
        });
        Ok(Some(Self { nodes: leaves.collect(), ignored: Vec::new() }))
    }

    /// Whether it writes the same nodes.
    pub fn writes_as(&self, other: &Self) -> bool {
        self.nodes == other.nodes
    }

    /// Replaces `old` by these nodes in a domain that runs. What the guest added itself stays.
    pub fn replace(&self, old: &Self, domid: DomId) -> Batch {
        let home = domain_path(domid);
        let mut batch = Batch::new();
        for path in old.nodes.keys().filter(|path| !self.nodes.contains_key(*path)) {
            // It may be the parent of one that stays, or of what the guest put below it.
            batch.write(home.at(path), "").prune(home.at(path));
        }
        batch.rm(libxl_path(domid).at(DIRECTORY)).mkdir(libxl_path(domid).at(DIRECTORY));
        batch.append(self.create(domid));
        batch
    }
}

fn check(key: &str, value: &[u8]) -> Result<Path, Ignored> {
    if key.strip_prefix(DIRECTORY).and_then(|rest| rest.strip_prefix('/')).is_none() {
        return Err(Ignored::Elsewhere);
    }
    if key.len() > MAX_KEY {
        return Err(Ignored::LongKey(key.len()));
    }
    if value.len() > MAX_VALUE {
        return Err(Ignored::LongValue(value.len()));
    }
    Ok(Path::new(key)?)
}

/// What is below `vm-data` of a domain now, for [`subtree::read`](crate::subtree::read): what the toolstack wrote and what
/// the guest did.
pub const AREA: Area = Area { at: DIRECTORY, depth: MAX_READ_DEPTH, except: &[] };

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn keys(data: &VmData) -> Vec<&str> {
        data.nodes().map(|(path, _)| path.as_str()).collect()
    }

    #[test]
    fn only_what_is_below_vm_data_is_written() {
        let data = VmData::new([
            ("vm-data/foo", "1"),
            ("vm-data/a/b", "2"),
            ("vm-data", "x"),
            ("vm-data/", "x"),
            ("vm-data//foo", "x"),
            ("vm-data/../name", "x"),
            ("vm-data/a/", "x"),
            ("vm-database", "x"),
            ("/vm-data/foo", "x"),
            ("/local/domain/0/name", "x"),
            ("name", "x"),
            ("FIST/x", "x"),
            ("vm-data/a b", "x"),
            ("vm-data/a\0b", "x"),
            ("", "x"),
        ]);
        assert_eq!(keys(&data), ["vm-data/a/b", "vm-data/foo"]);
        assert_eq!(data.ignored().len(), 13);
        assert_eq!(data.ignored()[0], ("vm-data".to_owned(), Ignored::Elsewhere));
    }

    #[test]
    fn the_guest_owns_the_directory() {
        let expected = "\
mkdir /local/domain/7/vm-data
perms /local/domain/7/vm-data (n7)
write /local/domain/7/vm-data/foo = \"bar\"
write /libxl/7/vm-data/foo = \"=bar\"
";
        assert_eq!(VmData::new([("vm-data/foo", "bar")]).create(DomId(7)).to_string(), expected);
    }

    #[test]
    fn a_replaced_key_is_emptied_and_goes_if_nothing_is_below_it() {
        let old = VmData::new([("vm-data/a", "1"), ("vm-data/b", "2")]);
        let batch = VmData::new([("vm-data/a/c", "3")]).replace(&old, DomId(1)).to_string();
        assert!(batch.starts_with(
            "write /local/domain/1/vm-data/a = \"\"\nprune /local/domain/1/vm-data/a\n\
             write /local/domain/1/vm-data/b = \"\"\nprune /local/domain/1/vm-data/b\n"
        ));
    }

    #[test]
    fn number_and_sizes_are_bounded() {
        let many = (0..=MAX_KEYS).map(|i| (format!("vm-data/{i:04}"), "v"));
        let data = VmData::new(many);
        assert_eq!(data.nodes().count(), MAX_KEYS);
        assert_eq!(data.ignored(), [("vm-data/0256".to_owned(), Ignored::TooMany)]);
        let long = VmData::new([
            ("vm-data/v".to_owned(), "x".repeat(2049)),
            (format!("vm-data/{}", "k".repeat(1017)), String::new()),
        ]);
        assert_eq!(
            long.ignored().iter().map(|(_, why)| why).collect::<Vec<_>>(),
            [&Ignored::LongValue(2049), &Ignored::LongKey(1025)]
        );
    }

    proptest! {
        #[test]
        fn no_key_escapes(key in "[a-z/.@\0-]{0,20}|vm-data/[a-z/.@-]{0,10}", value: Vec<u8>) {
            let data = VmData::new([(key, value)]);
            let directory = Path::known("/local/domain/7/vm-data");
            for step in data.create(DomId(7)).steps() {
                let text = step.to_string();
                let copy = Path::known("/libxl/7/vm-data");
                let place = text.split(' ').nth(1).unwrap();
                prop_assert!([&directory, &copy].iter().any(|d| place.starts_with(d.as_str())), "{text}");
                if let crate::Step::Write { path, .. } = step {
                    let below = [&directory, &copy].into_iter().find_map(|d| path.below(d));
                    prop_assert!(below.is_some_and(|rest| !rest.is_empty()));
                }
            }
        }
    }
}
