//! The order in which a new tree takes the fewest requests.
//!
//! xenstored gives a new node, and those on the way to it, the permissions that its parent has at that moment. So a node
//! that is to have its parent's needs no request for them, a directory of that kind none at all when something is in it, and
//! several of a kind in a directory of another need one together: the directory is theirs while they are made.
//!
//! ```text
//!   mkdir D                    D: what may be in it            mkdir D
//!   perms D (n0 r7)                                            perms D (n7)
//!   mkdir D/attr                                               mkdir D/attr
//!   perms D/attr (n7)                                 ──►      mkdir D/data
//!   mkdir D/data                                               perms D (n0 r7)
//!   perms D/data (n7)                                          write D/cpu/0 = ""
//!   mkdir D/cpu
//!   perms D/cpu (n0 r7)
//!   write D/cpu/0 = ""
//! ```
//!
//! Outside of a transaction others would see a directory with permissions that it has only for a moment.

use crate::batch::Batch;
use crate::path::Path;
use crate::perms::Perms;

/// Of how many nodes with other permissions a directory takes these for a moment: one that has to get its own by a request in
/// any case takes one request more for that.
const WORTHWHILE: usize = 2;

/// The same of one that has its own from its parent: it may have to be made first, and to get its own back.
const WORTHWHILE_TWICE: usize = 4;

/// A node that is to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Where; the tree's root, or below it.
    pub(crate) path: Path,
    /// Its value; none for a directory.
    pub(crate) value: Option<Vec<u8>>,
    /// Its permissions; none for its parent's.
    pub(crate) perms: Option<Perms>,
    /// It is a value that makes its directory, before the directory has permissions of its own: it has those of what the
    /// directory is in.
    pub(crate) first: bool,
}

/// Appends what makes `items`, in one transaction, where there was nothing below `root`. The permissions of what `root` is in
/// are `above`, if they are known.
pub(super) fn arrange(root: &Path, items: Vec<Item>, above: Option<&Perms>, batch: &mut Batch) {
    let mut tree = Planned::new(root.clone());
    for item in items {
        tree.place(item);
    }
    tree.inherit(above);
    tree.make(above, batch);
}

/// A node with all below it.
struct Planned {
    path: Path,
    /// It is not only on the way to others.
    wanted: bool,
    value: Option<Vec<u8>>,
    /// None where they are those of something that was there before.
    perms: Option<Perms>,
    /// Its directory is made by it.
    first: bool,
    children: Vec<Self>,
}

impl Planned {
    const fn new(path: Path) -> Self {
        Self { path, wanted: false, value: None, perms: None, first: false, children: Vec::new() }
    }

    /// What is not below this is left out: only names that are too long come to that.
    fn place(&mut self, item: Item) {
        let Some(rest) = item.path.below(&self.path) else { return };
        let Some(name) = rest.split('/').next().filter(|name| !name.is_empty()) else {
            self.wanted = true;
            self.value = item.value.or(self.value.take());
            self.perms = item.perms.or(self.perms.take());
            self.first |= item.first;
            return;
        };
        let known = self.children.iter().position(|child| child.path.name() == name);
        let at = known.unwrap_or_else(|| {
            self.children.push(Self::new(self.path.at(name)));
            self.children.len() - 1
        });
        self.children[at].place(item);
    }

    fn inherit(&mut self, above: Option<&Perms>) {
        self.perms = self.perms.take().or_else(|| above.cloned());
        for child in &mut self.children {
            child.inherit(if child.first { above } else { self.perms.as_ref() });
        }
    }

    /// Within a directory that has the permissions `above` now.
    fn make(&self, above: Option<&Perms>, batch: &mut Batch) {
        let mut made = self.value.is_some();
        if let Some(value) = &self.value {
            batch.write(self.path.clone(), value.clone());
        }
        for child in self.children.iter().filter(|child| child.first) {
            child.make(above, batch);
            made = true;
        }
        let mut now = above;
        for turn in self.turns(above) {
            let these = self.others().filter(|child| self.turn(child, above) == turn);
            for child in these {
                if now != turn {
                    self.become_like(turn, &mut made, batch);
                    now = turn;
                }
                child.make(turn, batch);
                made = true;
            }
        }
        if now != self.perms.as_ref() {
            self.become_like(self.perms.as_ref(), &mut made, batch);
        }
        if !made && self.wanted {
            batch.mkdir(self.path.clone());
        }
    }

    /// Children that do not make it.
    fn others(&self) -> impl Iterator<Item = &Self> {
        self.children.iter().filter(|child| !child.first)
    }

    fn become_like(&self, perms: Option<&Perms>, made: &mut bool, batch: &mut Batch) {
        if !std::mem::replace(made, true) {
            batch.mkdir(self.path.clone());
        }
        if let Some(perms) = perms {
            batch.set_perms(self.path.clone(), perms.clone());
        }
    }

    /// The permissions that it has in turn: those that it is made with, those of some of its children, and its own.
    fn turns<'a>(&'a self, above: Option<&'a Perms>) -> Vec<Option<&'a Perms>> {
        let own = self.perms.as_ref();
        let mut turns = vec![above];
        for turn in self.others().map(|child| self.turn(child, above)) {
            if !turns.contains(&turn) && turn != own {
                turns.push(turn);
            }
        }
        turns.retain(|turn| *turn != own);
        turns.push(own);
        turns
    }

    /// Which permissions it has when a child is made.
    fn turn<'a>(&'a self, child: &'a Self, above: Option<&Perms>) -> Option<&'a Perms> {
        let (own, theirs) = (self.perms.as_ref(), child.perms.as_ref());
        // One with children that are as this is has them made before it gets its own.
        let likes_own = |child: &Self| child.children.iter().any(|below| below.perms == self.perms);
        if own.is_none() || likes_own(child) {
            return own;
        }
        let alike = |other: &&Self| other.perms == child.perms && !likes_own(other);
        let worthwhile = if above == own { WORTHWHILE_TWICE } else { WORTHWHILE };
        let many = self.others().filter(alike).count() >= worthwhile;
        if many || above == theirs { theirs } else { own }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perms::DomId;
    use crate::store::SharedStore;
    use crate::{Client, Operations};
    use proptest::prelude::*;

    const ROOT: &str = "/r";

    fn items(nodes: &[(&str, Option<&str>, Option<&str>)]) -> Vec<Item> {
        let item = |(path, value, perms): &(&str, Option<&str>, Option<&str>)| Item {
            path: if path.is_empty() { Path::known(ROOT) } else { Path::known(ROOT).at(path) },
            value: value.map(|v| v.as_bytes().to_vec()),
            perms: perms.map(|p| p.parse().unwrap()),
            first: false,
        };
        nodes.iter().map(item).collect()
    }

    fn arranged(items: Vec<Item>, above: Option<&str>) -> Batch {
        let mut batch = Batch::new();
        let above = above.map(|perms| perms.parse().unwrap());
        arrange(&Path::known(ROOT), items, above.as_ref(), &mut batch);
        batch
    }

    /// As they come, each with its permissions.
    fn plainly(items: &[Item]) -> Batch {
        let mut batch = Batch::new();
        for item in items {
            match &item.value {
                Some(value) => batch.write(item.path.clone(), value.clone()),
                None => batch.mkdir(item.path.clone()),
            };
            if let Some(perms) = &item.perms {
                batch.set_perms(item.path.clone(), perms.clone());
            }
        }
        batch
    }

    /// All nodes with their values and permissions.
    fn tree(batch: &Batch) -> Vec<(String, Vec<u8>, String)> {
        fn below(store: &mut Client, path: &Path, found: &mut Vec<(String, Vec<u8>, String)>) {
            let value = store.read(path).unwrap().unwrap();
            let perms = store.get_perms(path).unwrap().unwrap();
            found.push((path.to_string(), value, perms.to_string()));
            let mut names = store.directory(path).unwrap().unwrap();
            names.sort();
            for name in names {
                below(store, &path.at(name), found);
            }
        }
        let mut store = SharedStore::new().client(DomId::DOM0);
        store.commit(batch).unwrap();
        let mut found = Vec::new();
        below(&mut store, &Path::root(), &mut found);
        found
    }

    #[test]
    fn alike_ones_share_a_request_and_directories_come_with_what_is_in_them() {
        let nodes = items(&[
            ("", None, Some("n0,r7")),
            ("name", Some("x"), None),
            ("cpu", None, Some("n0,r7")),
            ("cpu/0", Some(""), None),
            ("empty", None, None),
            ("attr", None, Some("n7")),
            ("data", None, Some("n7")),
            ("control", None, Some("n7")),
            ("control/shutdown", Some(""), Some("n7")),
            ("control/feature", Some("1"), Some("n0,r7")),
            ("deep/own", None, Some("n7")),
        ]);
        let expected = "\
mkdir /r
perms /r (n7)
mkdir /r/attr
mkdir /r/data
perms /r (n0 r7)
write /r/name = \"x\"
write /r/cpu/0 = \"\"
mkdir /r/empty
write /r/control/feature = \"1\"
perms /r/control (n7)
write /r/control/shutdown = \"\"
mkdir /r/deep/own
perms /r/deep/own (n7)
";
        assert_eq!(arranged(nodes.clone(), None).to_string(), expected);
        assert_eq!(tree(&arranged(nodes.clone(), None)), tree(&plainly(&nodes)));
    }

    #[test]
    fn what_the_root_is_in_counts_when_it_is_known() {
        let nodes = items(&[("", None, Some("n0,r7")), ("a", Some("1"), None)]);
        assert_eq!(arranged(nodes.clone(), Some("n0,r7")).to_string(), "write /r/a = \"1\"\n");
        let other = "mkdir /r\nperms /r (n0 r7)\nwrite /r/a = \"1\"\n";
        assert_eq!(arranged(nodes.clone(), Some("n0")).to_string(), other);
        assert_eq!(arranged(nodes, None).to_string(), other);
    }

    #[test]
    fn a_value_may_make_its_directory_and_has_the_permissions_of_what_that_is_in() {
        let mut nodes = items(&[
            ("", None, Some("n7")),
            ("a", Some("1"), None),
            ("maker", Some("2"), None),
            ("b", Some("3"), Some("n0,r7")),
        ]);
        nodes[2].first = true;
        let expected = "\
write /r/maker = \"2\"
perms /r (n7)
write /r/a = \"1\"
write /r/b = \"3\"
perms /r/b (n0 r7)
";
        for above in [None, Some("n0")] {
            assert_eq!(arranged(nodes.clone(), above).to_string(), expected);
        }
        let made = tree(&arranged(nodes, None)).into_iter().find(|(path, ..)| path == "/r/maker");
        assert_eq!(made.map(|(_, _, perms)| perms).as_deref(), Some("n0"));
    }

    #[test]
    fn what_was_there_before_is_left_as_it_is() {
        let nodes = items(&[("a", None, Some("n7")), ("b", None, Some("n7")), ("c/d", Some("1"), None)]);
        assert_eq!(arranged(nodes.clone(), None), plainly(&nodes));
    }

    prop_compose! {
        /// Each node once.
        fn any_items()(
            nodes in prop::collection::btree_map(
                "[a-c](/[a-c]){0,3}",
                (prop::option::of("[xy]"), prop::option::weighted(0.6, prop::sample::select(vec!["n0", "n7", "n0,r7"]))),
                0..30,
            ),
            root in prop::sample::select(vec!["n0", "n7", "n0,r7"]),
        ) -> Vec<Item> {
            let mut all = vec![("", None, Some(root))];
            all.extend(nodes.iter().map(|(path, (value, perms))| (path.as_str(), value.as_deref(), *perms)));
            items(&all)
        }
    }

    proptest! {
        #[test]
        fn the_tree_is_the_same_and_never_takes_more(nodes in any_items(), above: bool) {
            // A store's root is dom0's.
            let arranged = arranged(nodes.clone(), above.then_some("n0"));
            let plain = plainly(&nodes);
            prop_assert_eq!(tree(&arranged), tree(&plain));
            prop_assert!(arranged.steps().len() <= plain.steps().len());
        }
    }
}
