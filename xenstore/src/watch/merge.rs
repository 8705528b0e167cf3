//! Merging of events between two visits of the owner.

use super::{Event, WatchToken};
use crate::path::Path;
use crate::wire::Errno;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Most paths that are listed for one watch at a time; with more, the owner is only told that something changed
/// below the watched path. A guest that touches this many nodes at once would otherwise make its owner look at
/// each.
pub const MAX_PATHS_PER_WATCH: usize = 256;

/// Events in order of first appearance, each once.
#[derive(Debug, Default)]
pub(super) struct Merge {
    events: Vec<Event>,
    news: HashMap<WatchToken, News>,
}

/// What happened for one watch.
#[derive(Debug)]
enum News {
    At(HashSet<Path>),
    /// Over the limit; `told` once the owner knows.
    Everywhere {
        told: bool,
    },
}

impl Merge {
    pub(super) fn changed(&mut self, token: WatchToken, path: Path) {
        let news = self.news.entry(token).or_insert_with(|| News::At(HashSet::new()));
        let News::At(paths) = news else { return };
        if paths.contains(&path) {
            return;
        }
        if paths.len() == MAX_PATHS_PER_WATCH {
            *news = News::Everywhere { told: false };
            return;
        }
        paths.insert(path.clone());
        self.events.push(Event::Changed { token, path });
    }

    pub(super) fn refused(&mut self, token: WatchToken, path: Path, errno: Errno) {
        self.events.push(Event::Refused { token, path, errno });
    }

    /// Hands out all events. A watch over its limit has one, for the path in `watches`, in place of its first.
    pub(super) fn deliver(mut self, watches: &BTreeMap<WatchToken, Path>, deliver: &mut impl FnMut(Event)) {
        for event in self.events {
            if let Event::Changed { token, .. } = &event
                && let Some(News::Everywhere { told }) = self.news.get_mut(token)
            {
                if let (false, Some(path)) = (std::mem::replace(told, true), watches.get(token)) {
                    deliver(Event::Changed { token: *token, path: path.clone() });
                }
            } else {
                deliver(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: WatchToken = WatchToken(1);
    const TWO: WatchToken = WatchToken(2);

    fn delivered(merge: Merge) -> Vec<Event> {
        let watches = BTreeMap::from([(ONE, Path::known("/n")), (TWO, Path::known("/q"))]);
        let mut events = Vec::new();
        merge.deliver(&watches, &mut |e| events.push(e));
        events
    }

    fn changed(token: WatchToken, path: &str) -> Event {
        Event::Changed { token, path: Path::known(path) }
    }

    #[test]
    fn repeated_events_are_one_in_first_order() {
        let mut merge = Merge::default();
        for _ in 0..1000 {
            merge.changed(TWO, Path::known("/b"));
            merge.changed(ONE, Path::known("/a"));
            merge.changed(ONE, Path::known("/b"));
        }
        assert_eq!(delivered(merge), [changed(TWO, "/b"), changed(ONE, "/a"), changed(ONE, "/b")]);
    }

    #[test]
    fn too_many_paths_become_one_event_for_the_whole_and_leave_other_watches_alone() {
        let mut merge = Merge::default();
        merge.changed(ONE, Path::known("/n/first"));
        merge.changed(TWO, Path::known("/q/x"));
        for i in 0..=MAX_PATHS_PER_WATCH * 3 {
            merge.changed(ONE, Path::known(format!("/n/{i}")));
        }
        assert_eq!(delivered(merge), [changed(ONE, "/n"), changed(TWO, "/q/x")]);
    }

    #[test]
    fn as_many_paths_as_allowed_are_listed() {
        let mut merge = Merge::default();
        for i in 0..MAX_PATHS_PER_WATCH {
            merge.changed(ONE, Path::known(format!("/n/{i}")));
        }
        assert_eq!(delivered(merge).len(), MAX_PATHS_PER_WATCH);
    }
}
