//! Merging of events between two visits of the owner.

use super::{WatchEvent, WatchToken};
use crate::path::Path;
use crate::wire::Errno;
use std::collections::{HashMap, HashSet};

/// Most paths that are listed for one watch at a time; with more, the owner is told to look at the whole. A guest
/// that touches this many nodes at once would otherwise make its owner look at each.
pub const MAX_PATHS_PER_WATCH: usize = 256;

/// Events in order of first appearance, each once.
#[derive(Debug, Default)]
pub(super) struct Merge {
    events: Vec<WatchEvent>,
    paths: HashMap<WatchToken, HashSet<Path>>,
}

impl Merge {
    pub(super) fn changed(&mut self, token: WatchToken, path: Path) {
        let paths = self.paths.entry(token).or_default();
        if paths.len() < MAX_PATHS_PER_WATCH {
            if paths.insert(path.clone()) {
                self.events.push(WatchEvent::Changed { token, path });
            }
        } else if paths.len() == MAX_PATHS_PER_WATCH && paths.insert(path) {
            // The extra entry marks that the watch is over its limit; from here on nothing is added for it.
            self.events.push(WatchEvent::Resync { token: Some(token) });
        }
    }

    pub(super) fn refused(&mut self, token: WatchToken, path: Path, errno: Errno) {
        self.events.push(WatchEvent::Refused { token, path, errno });
    }

    /// Hands out all events. A watch to be looked at as a whole has no single events beside it.
    pub(super) fn deliver(self, deliver: &mut impl FnMut(WatchEvent)) {
        let Self { events, paths } = self;
        let over = |token: &WatchToken| paths.get(token).is_some_and(|p| p.len() > MAX_PATHS_PER_WATCH);
        for event in events {
            match &event {
                WatchEvent::Changed { token, .. } if over(token) => {}
                _ => deliver(event),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(merge: Merge) -> Vec<WatchEvent> {
        let mut events = Vec::new();
        merge.deliver(&mut |e| events.push(e));
        events
    }

    #[test]
    fn repeated_events_are_one_in_first_order() {
        let (a, b) = (Path::known("/a"), Path::known("/b"));
        let (one, two) = (WatchToken(1), WatchToken(2));
        let mut merge = Merge::default();
        for _ in 0..1000 {
            merge.changed(two, b.clone());
            merge.changed(one, a.clone());
            merge.changed(one, b.clone());
        }
        let changed = |token, path: &Path| WatchEvent::Changed { token, path: path.clone() };
        assert_eq!(delivered(merge), [changed(two, &b), changed(one, &a), changed(one, &b)]);
    }

    #[test]
    fn too_many_paths_become_one_resync_of_that_watch_alone() {
        let mut merge = Merge::default();
        let quiet = WatchEvent::Changed { token: WatchToken(2), path: Path::known("/q") };
        merge.changed(WatchToken(2), Path::known("/q"));
        for i in 0..=MAX_PATHS_PER_WATCH * 3 {
            merge.changed(WatchToken(1), Path::known(format!("/n/{i}")));
        }
        assert_eq!(delivered(merge), [quiet, WatchEvent::Resync { token: Some(WatchToken(1)) }]);
    }
}
