//! What a new daemon makes of the machine it finds.
//!
//! ```text
//!   domain of a stored VM ─┬─ complete and running ──► picked up; half (un)plugged devices are finished
//!                          ├─ being suspended ───────► runs on, or is removed when its image is kept
//!                          ├─ stopped ───────────────► what its `on_*` settings say
//!                          └─ half built, half gone ─► removed
//!   nodes or journal entries of a stored VM without domain ──► removed, given back
//!   domain of no stored VM ──► not ours: left alone
//! ```
//!
//! One look at all domains says which VMs there is something to do for; that is done on their queues, while clients are
//! served already. Every object is announced once, so that a client that starts with `UPDATES.get` misses none.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use xenstore::layout::{domain_path, libxl_path, vm_path};
use xenstore::{Operations, Path};

use super::{Core, PENDING, SUSPENDING, Seen, vm_of};
use crate::api::Error;
use crate::device::{sharing, storage, store_domid};
use crate::edge::{DomId, DomainInfo};
use crate::state::journal::Resource;

impl Core {
    /// Looks at the machine for the first time.
    ///
    /// # Errors
    /// When the hypervisor, xenstored or the state directory does not answer.
    pub(super) fn recover(self: &Arc<Self>) -> Result<(), Error> {
        let domains = self.edges.hypervisor()?.domains()?;
        self.seen(domains.iter().map(Seen::of).collect());
        let ids = self.records.vm_ids()?;
        let stored: HashSet<&str> = ids.iter().map(String::as_str).collect();
        let mut here = HashSet::new();
        let mut to_check = BTreeSet::new();
        for domain in &domains {
            let vm = vm_of(domain);
            if stored.contains(vm.as_str()) {
                if !domain.dying {
                    self.runtimes.with(&vm, |r| r.domid = Some(domain.domid));
                }
                to_check.insert(vm.clone());
            }
            here.insert(vm);
        }
        // Before clients come: a disk of theirs must not be given to another VM.
        sharing::adopt(self, &self.runtimes.domids())?;
        let with_domains = to_check.len();
        for vm in self.journal.vms() {
            if stored.contains(vm.as_str()) || !here.contains(&vm) {
                to_check.insert(vm);
            } else {
                tracing::warn!(%vm, "resources were taken for a VM that is not stored and has a domain: left alone");
            }
        }
        let vms = Path::new("/vm").map_err(xenstore::Error::from)?;
        for vm in self.edges.store()?.directory(&vms)?.unwrap_or_default() {
            if stored.contains(vm.as_str()) && !here.contains(&vm) && self.left_behind(&vm)?.is_some() {
                to_check.insert(vm);
            }
        }
        self.remove_stale_interfaces(&domains);
        self.follow_guests(&domains);
        let (left, journal) = (to_check.len() - with_domains, self.journal.counts().0);
        tracing::info!(vms = ids.len(), with_domains, left, journal, "records read; domains looked for");
        for id in &ids {
            self.announce(id);
        }
        for vm in to_check {
            self.check_soon(&vm, "recovery");
        }
        Ok(())
    }

    /// Network devices end with their domains; the files that say whose they are do not.
    fn remove_stale_interfaces(&self, domains: &[DomainInfo]) {
        let names = self.records.interfaces().unwrap_or_else(|error| {
            tracing::error!(%error, "the records of interfaces cannot be listed");
            Vec::new()
        });
        let live: HashSet<DomId> = domains.iter().map(|domain| domain.domid).collect();
        for name in names {
            let domid = name.trim_start_matches(|c: char| c.is_ascii_alphabetic()).split('.').next();
            let of_a_domain = domid.and_then(|d| d.parse().ok()).is_some_and(|d: DomId| live.contains(&d));
            if !of_a_domain && let Err(error) = self.records.remove_interface(&name) {
                tracing::error!(%error, "the record of an interface that is gone stays");
            }
        }
    }

    /// Gives back what the journal says is taken for a VM that has no domain any more, the newest first. What cannot be
    /// given back stays in the journal.
    ///
    /// # Errors
    /// The first refusal; the others are logged.
    pub fn give_back(&self, vm: &str) -> Result<(), Error> {
        self.give_back_of(vm, |_| true)
    }

    /// The same for some of it.
    ///
    /// # Errors
    /// As [`Core::give_back`].
    pub fn give_back_of(&self, vm: &str, wanted: impl Fn(&Resource) -> bool) -> Result<(), Error> {
        let mut outcome = Ok(());
        let taken = self.journal.of(vm).into_iter().rev();
        for (id, resource) in taken.filter(|(_, resource)| wanted(resource)) {
            let given = match &resource {
                // Whoever calls has seen that it is gone.
                Resource::Domain => Ok(false),
                Resource::Storage(disk) => storage::release(self, vm, disk).map(|()| true),
                other => self.edges.host().release(other).map_err(Error::from),
            };
            if let Ok(true) = given {
                tracing::info!(%vm, "{resource} is given back");
            }
            let struck = given.and_then(|_| self.journal.strike(vm, id));
            if let Err(error) = &struck {
                tracing::error!(%vm, %error, "{resource} is not given back");
            }
            outcome = outcome.and(struck);
        }
        outcome
    }

    /// Whether a domain's creation or destruction was begun and not completed. Asked on its VM's queue, where no operation
    /// is under way, this means that an earlier daemon was killed in between.
    ///
    /// # Errors
    /// When xenstored does not answer.
    pub fn pending(&self, domid: DomId) -> Result<bool, Error> {
        let mut store = self.edges.store()?;
        let private = libxl_path(store_domid(domid));
        let at = |name| private.join(name).map_err(xenstore::Error::from);
        let values = store.read_all(&[at(PENDING)?, at("type")?])?;
        // A domain without a skeleton died with the daemon between the hypercall and the first write.
        Ok(values[0].is_some() || values[1].is_none())
    }

    /// The path of the image that a domain is being suspended to, or was when an earlier daemon was killed or gave up on
    /// the guest.
    ///
    /// # Errors
    /// When xenstored does not answer.
    pub fn suspending(&self, domid: DomId) -> Result<Option<String>, Error> {
        let marker = libxl_path(store_domid(domid)).join(SUSPENDING).map_err(xenstore::Error::from)?;
        Ok(self.edges.store()?.read_str(&marker)?)
    }

    /// The number of a domain of this VM that is gone while its nodes are not: an earlier daemon was killed between
    /// removing the one and the other.
    ///
    /// # Errors
    /// When xenstored or the hypervisor does not answer.
    pub fn left_behind(&self, vm: &str) -> Result<Option<DomId>, Error> {
        let Ok(uuid) = uuid::Uuid::try_parse(vm) else { return Ok(None) };
        let home = vm_path(uuid);
        let domains = home.join("domains").map_err(xenstore::Error::from)?;
        let mut store = self.edges.store()?;
        for name in store.directory(&domains)?.unwrap_or_default() {
            let Ok(domid) = name.parse::<DomId>() else { continue };
            // The number may be another VM's by now.
            let owner = domain_path(store_domid(domid)).join("vm").map_err(xenstore::Error::from)?;
            let ours = store.read(&owner)?.is_some_and(|path| path == home.as_str().as_bytes());
            if ours && self.edges.hypervisor()?.domain(domid)?.is_none() {
                return Ok(Some(domid));
            }
        }
        Ok(None)
    }
}
