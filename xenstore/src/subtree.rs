//! Whole subtrees that a guest can write, read within bounds.
//!
//! ```text
//!   areas ──list──► children ──value, and list again while there is depth──► … ──► nodes, until the quota is used up
//! ```
//!
//! A guest can make its tree as large as the daemon's quota lets it, and change it while it is read. Neither is an error
//! here: what does not fit is left out, and so is what goes away meanwhile.

use crate::error::Error;
use crate::operations::Operations;
use crate::path::Path;
use crate::wire::{Errno, Request};
use std::collections::BTreeMap;

/// A part of a domain's tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Below the domain's home.
    pub at: &'static str,
    /// Levels that are read below its children; 0 for the children alone.
    pub depth: u32,
    /// Nodes that are left out with all below them, named from the home.
    pub except: &'static [&'static str],
}

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Nodes.
    pub nodes: usize,
    /// Bytes of names and values together.
    pub bytes: usize,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Values by path from the home. Bytes of any kind.
    pub nodes: BTreeMap<Path, Vec<u8>>,
    /// Whether there was more than the quota allows.
    pub cut: bool,
}

/// Reads what is below some areas of `home`, the first area first, one round trip for each level.
///
/// # Errors
/// [`Error::Transport`] only.
pub fn read(
    store: &mut (impl Operations + ?Sized),
    home: &Path,
    areas: &[Area],
    quota: Quota,
) -> Result<Found, Error> {
    let mut reader = Reader { store, home, left: quota, found: Found::default() };
    let mut level = reader.roots(areas)?;
    while !level.is_empty() {
        level = reader.descend(&level)?;
    }
    Ok(reader.found)
}

/// A node to look at, and how many levels below it.
struct Node {
    path: Path,
    depth: u32,
    except: &'static [&'static str],
}

struct Reader<'a, S: Operations + ?Sized> {
    store: &'a mut S,
    home: &'a Path,
    left: Quota,
    found: Found,
}

impl<S: Operations + ?Sized> Reader<'_, S> {
    /// The children of the areas.
    fn roots(&mut self, areas: &[Area]) -> Result<Vec<Node>, Error> {
        let tx_id = self.store.tx_id();
        let roots: Vec<_> = areas.iter().map(|area| self.home.at(area.at)).collect();
        let requests: Vec<_> = roots.iter().map(|root| (tx_id, Request::Directory(root.clone()))).collect();
        let answers = self.store.exchange(&requests)?;
        let mut nodes = Vec::new();
        for (area, answer) in areas.iter().zip(answers) {
            let parent = Node { path: Path::known(area.at), depth: area.depth + 1, except: area.except };
            let names = self.names(&parent, answer)?;
            self.take(&parent, names, &mut nodes);
        }
        Ok(nodes)
    }

    /// Reads a level, and finds the next.
    fn descend(&mut self, level: &[Node]) -> Result<Vec<Node>, Error> {
        let tx_id = self.store.tx_id();
        let mut requests = Vec::with_capacity(2 * level.len());
        for node in level {
            let path = self.home.at(&node.path);
            requests.push((tx_id, Request::Read(path.clone())));
            if node.depth > 0 {
                requests.push((tx_id, Request::Directory(path)));
            }
        }
        let mut answers = self.store.exchange(&requests)?.into_iter();
        let mut next = Vec::new();
        for node in level {
            let value = answers.next();
            let listed = if node.depth > 0 { answers.next() } else { None };
            // One that is gone has no children either.
            let Some(Ok(value)) = value else { continue };
            if !self.keep(node, value.0) {
                continue;
            }
            if let Some(listed) = listed {
                let names = self.names(node, listed)?;
                self.take(node, names, &mut next);
            }
        }
        Ok(next)
    }

    /// A directory's names, sorted; none when it cannot be listed. One too large for a message is listed in parts.
    fn names(&mut self, node: &Node, answer: crate::transport::Answer) -> Result<Vec<String>, Error> {
        let mut names = match answer {
            Ok(reply) => reply.strings().filter_map(|name| String::from_utf8(name.to_vec()).ok()).collect(),
            Err(Errno::TooBig) => match self.store.directory(&self.home.at(&node.path)) {
                Ok(names) => names.unwrap_or_default(),
                Err(Error::Transport(lost)) => return Err(lost.into()),
                // It changes all the time.
                Err(_) => {
                    self.found.cut = true;
                    Vec::new()
                }
            },
            Err(_) => Vec::new(),
        };
        names.sort_unstable();
        Ok(names)
    }

    /// Children to look at, as far as there is room for them.
    fn take(&mut self, parent: &Node, names: Vec<String>, level: &mut Vec<Node>) {
        for name in names {
            // Names that the guest makes too long for a path are left out.
            let Ok(path) = parent.path.join(&name) else { continue };
            if parent.except.contains(&path.as_str()) {
                continue;
            }
            if level.len() >= self.left.nodes {
                self.found.cut = true;
                return;
            }
            level.push(Node { path, depth: parent.depth - 1, except: parent.except });
        }
    }

    /// Whether there was room for it.
    fn keep(&mut self, node: &Node, value: Vec<u8>) -> bool {
        let size = node.path.as_str().len() + value.len();
        let room = self.left.nodes.checked_sub(1).zip(self.left.bytes.checked_sub(size));
        let Some((nodes, bytes)) = room else {
            self.found.cut = true;
            return false;
        };
        self.left = Quota { nodes, bytes };
        self.found.nodes.insert(node.path.clone(), value);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::perms::DomId;
    use crate::store::SharedStore;
    use proptest::prelude::*;

    const HOME: &str = "/local/domain/3";
    const ROOMY: Quota = Quota { nodes: 1000, bytes: 1 << 20 };

    fn store(nodes: &[(&str, &str)]) -> crate::Client {
        let mut store = SharedStore::new().client(DomId::DOM0);
        for (path, value) in nodes {
            store.write(&Path::known(HOME).at(path), *value).unwrap();
        }
        store
    }

    fn found(nodes: &[(&str, &str)], areas: &[Area], quota: Quota) -> (Vec<String>, bool) {
        let found = read(&mut store(nodes), &Path::known(HOME), areas, quota).unwrap();
        (found.nodes.keys().map(ToString::to_string).collect(), found.cut)
    }

    fn area(at: &'static str, depth: u32) -> Area {
        Area { at, depth, except: &[] }
    }

    #[test]
    fn an_area_is_read_as_deep_as_it_says() {
        let nodes = [("data/a", "1"), ("data/a/b", "2"), ("data/a/b/c", "3"), ("other", "4")];
        for (depth, paths) in
            [(0, &["data/a"][..]), (1, &["data/a", "data/a/b"]), (2, &["data/a", "data/a/b", "data/a/b/c"])]
        {
            assert_eq!(
                found(&nodes, &[area("data", depth)], ROOMY),
                (paths.iter().map(|p| (*p).to_owned()).collect(), false)
            );
        }
        assert_eq!(found(&nodes, &[area("nothing", 9)], ROOMY), (vec![], false));
    }

    #[test]
    fn exceptions_go_with_what_is_below_them() {
        let attr = Area { at: "attr", depth: 3, except: &["attr/os/hotfixes"] };
        let nodes = [("attr/os/name", "1"), ("attr/os/hotfixes", "2"), ("attr/os/hotfixes/1", "3")];
        assert_eq!(found(&nodes, &[attr], ROOMY).0, ["attr/os", "attr/os/name"]);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_said() {
        let nodes = [("a/1", "xx"), ("a/2", "xx"), ("b/1", "xx"), ("b/1/c", "xx")];
        let areas = [area("a", 4), area("b", 4)];
        for (quota, kept) in [
            (Quota { nodes: 3, ..ROOMY }, &["a/1", "a/2", "b/1"][..]),
            (Quota { nodes: 1, ..ROOMY }, &["a/1"]),
            (Quota { nodes: 0, ..ROOMY }, &[]),
            (Quota { bytes: 10, ..ROOMY }, &["a/1", "a/2"]),
            (Quota { bytes: 4, ..ROOMY }, &[]),
        ] {
            assert_eq!(
                found(&nodes, &areas, quota),
                (kept.iter().map(|p| (*p).to_owned()).collect(), true),
                "{quota:?}"
            );
        }
        assert!(!found(&nodes, &areas, Quota { nodes: 4, bytes: 22 }).1, "just as much as there is");
    }

    #[test]
    fn a_directory_larger_than_a_message_is_read() {
        let names: Vec<_> = (0..600).map(|n| format!("data/a-rather-long-name-{n:04}")).collect();
        let nodes: Vec<_> = names.iter().map(|name| (name.as_str(), "")).collect();
        assert_eq!(found(&nodes, &[area("data", 0)], ROOMY), (names, false));
    }

    proptest! {
        #[test]
        fn no_tree_exceeds_the_quota(
            nodes in proptest::collection::vec(("(a|b|data)(/[a-c]{1,2}){1,4}", "[a-z]{0,9}"), 0..40),
            most in 0..30_usize, bytes in 0..300_usize, depth in 0..4_u32,
        ) {
            let nodes: Vec<_> = nodes.iter().map(|(path, value)| (path.as_str(), value.as_str())).collect();
            let areas = [area("data", depth), area("a", depth)];
            let found = read(&mut store(&nodes), &Path::known(HOME), &areas, Quota { nodes: most, bytes }).unwrap();
            prop_assert!(found.nodes.len() <= most);
            prop_assert!(found.nodes.iter().map(|(path, value)| path.as_str().len() + value.len()).sum::<usize>() <= bytes);
            let all = read(&mut store(&nodes), &Path::known(HOME), &areas, ROOMY).unwrap();
            prop_assert!(found.nodes.iter().all(|(path, value)| all.nodes.get(path) == Some(value)));
            prop_assert_eq!(found.cut, found.nodes != all.nodes);
        }
    }
}
