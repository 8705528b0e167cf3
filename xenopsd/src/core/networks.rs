//! What somebody else does to dom0's networks: whose interfaces it concerns is set up again.
//!
//! ```text
//!   a bridge that came back, rules that are gone ──► VMs with such interfaces ──► a look at each, on its own queue
//! ```
//!
//! What is as it should be is left alone, so that a look too many costs a guest nothing.

use std::sync::{Arc, Weak};

use super::Core;
use crate::api::{LockingMode, Network, Vif};
use crate::edge::{DomId, Followed, NetworkNews};

/// Follows them until what is returned is dropped; none, with a word in the log, where the kernel cannot tell.
pub(super) fn follow(core: &Arc<Core>) -> Option<Followed> {
    let me = Weak::clone(&core.me);
    let tell = move |news| {
        if let Some(core) = me.upgrade() {
            hear(&core, &news);
        }
    };
    core.edges.host().watch_networks(Box::new(tell)).map_or_else(
        |error| {
            tracing::error!(%error, "interfaces stay as they are when somebody else removes their bridge or rules");
            None
        },
        Some,
    )
}

fn hear(core: &Arc<Core>, news: &NetworkNews) {
    let vms = match core.records.vm_ids() {
        Ok(vms) => vms,
        Err(error) => {
            tracing::error!(%error, ?news, "whose interfaces a change of networks concerns is not known");
            return;
        }
    };
    for vm in vms {
        // A record that cannot be read is told of when its VM is looked at.
        let vifs = core.records.devices::<Vif>(&vm).unwrap_or_default();
        if vifs.iter().any(|vif| concerns(vif, news)) {
            tracing::warn!(%vm, ?news, "somebody else has changed dom0's networks: its interfaces are set up again");
            core.runtimes.with(&vm, |r| r.networks_changed = true);
            core.check_soon(&vm, "network event");
        }
    }
}

fn concerns(vif: &Vif, news: &NetworkNews) -> bool {
    match news {
        NetworkNews::Bridge(name) => matches!(&vif.backend, Network::Local(bridge) if bridge == name),
        NetworkNews::RulesChanged => matches!(vif.locking_mode, LockingMode::Locked(_)),
        NetworkNews::Unknown => true,
    }
}

impl Core {
    /// Sets the VM's plugged interfaces up again if somebody else has changed what they are in.
    pub(super) fn restore_networks(&self, vm: &str, domid: DomId) {
        if !self.runtimes.with(vm, |r| std::mem::take(&mut r.networks_changed)) {
            return;
        }
        for vif in self.records.devices::<Vif>(vm).unwrap_or_default() {
            if let Err(error) = crate::device::vif::restore(self, domid, &vif) {
                tracing::error!(vm, vif = %vif.id, %error, "an interface is not set up again");
            }
        }
    }
}
