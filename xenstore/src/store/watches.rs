//! Who wants to know of which changes, and what has not been fetched yet.

use super::limits::MAX_EVENTS;
use super::tree::{Change, Tree, Who};
use crate::path::Path;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// Names a connection to the store for as long as it lasts; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub(super) u64);

/// One news for one connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WatchEvent {
    /// As the owner of the watch names it: relative when it registered a relative path.
    pub path: Path,
    /// As registered.
    pub token: Arc<[u8]>,
}

/// A registered watch.
#[derive(Debug)]
pub(super) struct Watch {
    connection: ConnectionId,
    /// Absolute, or special.
    path: Path,
    /// What is cut from the paths of its events: the home of a domain that registered a relative path.
    home: Option<Path>,
    token: Arc<[u8]>,
}

impl Watch {
    /// The event for a change at `path`.
    fn event(&self, path: &Path) -> WatchEvent {
        let relative = self.home.as_ref().and_then(|home| path.below(home)).and_then(|p| Path::new(p).ok());
        WatchEvent { path: relative.unwrap_or_else(|| path.clone()), token: Arc::clone(&self.token) }
    }
}

/// Events that wait for their connection, each once.
#[derive(Default)]
pub(super) struct Pending {
    queue: VecDeque<WatchEvent>,
    waiting: HashSet<WatchEvent>,
    wake: Option<Box<dyn Fn() + Send>>,
}

impl Pending {
    pub(super) fn wake_with(&mut self, wake: Box<dyn Fn() + Send>) {
        if !self.queue.is_empty() {
            wake();
        }
        self.wake = Some(wake);
    }

    pub(super) fn wake(&self) {
        if let Some(wake) = &self.wake {
            wake();
        }
    }

    /// Above the bound the event is for the watched path, of which there are only so many.
    fn push(&mut self, watch: &Watch, path: &Path) {
        let path = if self.queue.len() < MAX_EVENTS { path } else { &watch.path };
        let event = watch.event(path);
        if !self.waiting.insert(event.clone()) {
            return;
        }
        let first = self.queue.is_empty();
        self.queue.push_back(event);
        if first {
            self.wake();
        }
    }

    pub(super) fn pop(&mut self) -> Option<WatchEvent> {
        let event = self.queue.pop_front()?;
        self.waiting.remove(&event);
        Some(event)
    }

    pub(super) fn clear(&mut self) {
        self.queue.clear();
        self.waiting.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }
}

/// One connection's watches.
#[derive(Default)]
struct Own {
    count: usize,
    paths: HashMap<Arc<str>, usize>,
}

/// All watches, by path.
#[derive(Default)]
pub(super) struct Watches {
    by_path: BTreeMap<Arc<str>, Vec<Watch>>,
    /// The paths of each connection's watches, and how many it has on each.
    of: HashMap<ConnectionId, Own>,
    pub(super) pending: HashMap<ConnectionId, Pending>,
}

impl Watches {
    pub(super) fn count(&self, connection: ConnectionId) -> usize {
        self.of.get(&connection).map_or(0, |own| own.count)
    }

    /// Registers a watch and queues its first event; false when there is one with this path and token.
    pub(super) fn add(
        &mut self,
        connection: ConnectionId,
        path: &Path,
        home: Option<Path>,
        token: &[u8],
    ) -> bool {
        let key: Arc<str> = Arc::from(path.as_str());
        let here = self.by_path.entry(Arc::clone(&key)).or_default();
        if here.iter().any(|w| w.connection == connection && *w.token == *token) {
            return false;
        }
        let watch = Watch { connection, path: path.clone(), home, token: token.into() };
        if let Some(pending) = self.pending.get_mut(&connection) {
            pending.push(&watch, path);
        }
        here.push(watch);
        let own = self.of.entry(connection).or_default();
        own.count += 1;
        *own.paths.entry(key).or_default() += 1;
        true
    }

    /// Ends a watch; false when there is none such. What it still has to tell stays told.
    pub(super) fn remove(&mut self, connection: ConnectionId, path: &Path, token: &[u8]) -> bool {
        let Some(here) = self.by_path.get_mut(path.as_str()) else { return false };
        let Some(at) = here.iter().position(|w| w.connection == connection && *w.token == *token) else {
            return false;
        };
        here.swap_remove(at);
        if here.is_empty() {
            self.by_path.remove(path.as_str());
        }
        if let Some(own) = self.of.get_mut(&connection) {
            own.count -= 1;
            if let Some(here) = own.paths.get_mut(path.as_str()) {
                *here -= 1;
                if *here == 0 {
                    own.paths.remove(path.as_str());
                }
            }
        }
        true
    }

    /// Ends all watches of a connection, and forgets their events.
    pub(super) fn reset(&mut self, connection: ConnectionId) {
        for path in self.of.remove(&connection).unwrap_or_default().paths.into_keys() {
            let Some(here) = self.by_path.get_mut(&path) else { continue };
            here.retain(|w| w.connection != connection);
            if here.is_empty() {
                self.by_path.remove(&path);
            }
        }
        if let Some(pending) = self.pending.get_mut(&connection) {
            pending.clear();
        }
    }

    /// Tells whoever watches a special path, such as `@releaseDomain`, and may know.
    pub(super) fn fire_special(&mut self, path: &Path, may_know: impl Fn(ConnectionId) -> bool) {
        for watch in self.by_path.get(path.as_str()).into_iter().flatten() {
            if let Some(pending) =
                self.pending.get_mut(&watch.connection).filter(|_| may_know(watch.connection))
            {
                pending.push(watch, path);
            }
        }
    }

    /// Tells whoever watches the changed path or one above it, or one of the removed nodes below it, and could read it
    /// before the change or can after it.
    pub(super) fn fire(&mut self, change: &Change, tree: &Tree, who: impl Fn(ConnectionId) -> Option<Who>) {
        let may_know = |watch: &Watch, path: &Path, before| {
            who(watch.connection).is_some_and(|who| may_read(tree, who, path, before))
        };
        let path = change.path.as_str();
        for cut in prefixes(path) {
            for watch in self.by_path.get(cut).into_iter().flatten() {
                if may_know(watch, &change.path, change.before.as_ref())
                    && let Some(pending) = self.pending.get_mut(&watch.connection)
                {
                    pending.push(watch, &change.path);
                }
            }
        }
        let Some(removed) = &change.removed else { return };
        // Every path below begins with the changed one and a slash; '0' is what follows '/' in ASCII.
        let (first, last) = (format!("{path}/"), format!("{path}0"));
        let range = (Bound::Included(&*first), Bound::Excluded(&*last));
        for watch in self.by_path.range::<str, _>(range).flat_map(|(_, here)| here) {
            let below = watch.path.below(&change.path).unwrap_or_default();
            let Some(node) = removed.at(below.split('/')) else { continue };
            if may_know(watch, &watch.path, Some(node.guard()))
                && let Some(pending) = self.pending.get_mut(&watch.connection)
            {
                pending.push(watch, &watch.path);
            }
        }
    }
}

/// The path itself and all above it.
fn prefixes(path: &str) -> impl Iterator<Item = &str> {
    let cuts = path.char_indices().filter(|(at, c)| *c == '/' && *at > 0).map(|(at, _)| &path[..at]);
    let whole = Some(path).filter(|p| *p != "/");
    std::iter::once("/").chain(cuts).chain(whole)
}

/// Whether `who` could read the node before, or can read it now, or its parent.
fn may_read(tree: &Tree, who: Who, path: &Path, before: Option<&super::tree::Guard>) -> bool {
    if who.is_privileged() || before.is_some_and(|guard| tree.may_read(who, guard)) {
        return true;
    }
    let now = |path: &Path| tree.node(path).is_some_and(|node| tree.may_read(who, node.guard()));
    now(path) || path.parent().is_some_and(|parent| now(&parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_paths() {
        assert_eq!(prefixes("/").collect::<Vec<_>>(), ["/"]);
        assert_eq!(prefixes("/a/b").collect::<Vec<_>>(), ["/", "/a", "/a/b"]);
    }
}
