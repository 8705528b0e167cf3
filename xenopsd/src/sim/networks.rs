//! Networks of the simulated dom0: which bridges there are, and how interfaces were set up last.

use std::collections::{BTreeSet, HashMap};

use super::Present;
use crate::edge::{NetworkNews, NetworkTell, VifSettings};

/// All of it.
pub(super) struct Networks {
    pub(super) bridges: Bridges,
    /// What interfaces were set to; those whose bridge is gone, or whose rules are, are not what they were set to.
    pub(super) interfaces: HashMap<String, VifSettings>,
    /// Who follows what happens.
    pub(super) tell: Option<NetworkTell>,
}

/// Bridges that there are: those of the options, less those that were removed since.
pub(super) struct Bridges {
    present: Present,
    removed: BTreeSet<String>,
}

impl Bridges {
    pub(super) fn has(&self, name: &str) -> bool {
        self.present.has(name) && !self.removed.contains(name)
    }
}

impl Networks {
    pub(super) fn new(present: Present) -> Self {
        let bridges = Bridges { present, removed: BTreeSet::new() };
        Self { bridges, interfaces: HashMap::new(), tell: None }
    }

    pub(super) fn remove(&mut self, bridge: &str) {
        self.bridges.removed.insert(bridge.to_owned());
        self.interfaces.retain(|_, settings| settings.bridge != bridge);
    }

    pub(super) fn make(&mut self, bridge: &str) {
        self.bridges.removed.remove(bridge);
        if let Present::Only(names) = &mut self.bridges.present {
            names.insert(bridge.to_owned());
        }
        self.tell(NetworkNews::Bridge(bridge.to_owned()));
    }

    pub(super) fn remove_rules(&mut self) {
        for settings in self.interfaces.values_mut() {
            settings.locked = None;
        }
        self.tell(NetworkNews::RulesChanged);
    }

    fn tell(&self, news: NetworkNews) {
        if let Some(tell) = &self.tell {
            tell(news);
        }
    }
}
