//! The end of a domain, in whatever state it is: half built, running, crashed, or destroyed by somebody else.
//!
//! Devices are told to close first, and the domain is destroyed while they do so: the backends' work and the freeing
//! of the guest's memory go on side by side. Every step goes on past failures of the one before, so that nothing is
//! left that could be taken away.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;
use xenstore::layout::{DeviceAddress, DeviceKind, XenbusState, devices_of, remove_domain};
use xenstore::{Batch, Operations, Path, Transaction};

use super::VmExecutor;
use crate::api::Error;
use crate::device::{closing, store_domid, vif};
use crate::edge::DomId;
use crate::ops::plan::Unplugging;
use crate::ops::wait::{Ended, Looks};

/// When a destroyed domain is looked at that is still listed. xenstored reports a domain's end once, when it begins
/// to die; nothing tells when the last of its memory is let go. Xen does, by an interrupt (VIRQ_DOM_EXC) that one
/// program of dom0 can bind, and xenstored has.
const ZOMBIE_LOOKS: Looks = Looks::new(Duration::from_millis(5), Duration::from_secs(1));

/// What the marker says of a domain whose end has begun.
const DESTROYING: &str = "destroying";

/// What the steps of a domain's end know of it from those before them.
#[derive(Debug, Default)]
pub(super) struct Ending {
    /// That it ends is noted in its nodes, all of which go with it.
    noted: bool,
    /// The devices that were told to close.
    devices: Option<Vec<DeviceAddress>>,
}

impl VmExecutor<'_> {
    /// Notes that the domain's end has begun, so that a daemon that is started now goes on with it rather than leave a
    /// guest that stands still, and stops its vcpus.
    pub(super) fn pause_for_good(&self) -> Result<(), Error> {
        let Some(domain) = self.core.domain_of(self.vm())? else { return Ok(()) };
        self.core.edges.store()?.write(&Self::pending_marker(domain.domid)?, DESTROYING)?;
        self.ending().noted = true;
        Ok(self.core.edges.hypervisor()?.pause(domain.domid)?)
    }

    /// Tells every backend to let go.
    pub(super) fn close_devices(&self) -> Result<(), Error> {
        let Some(domid) = self.own_domid()? else { return Ok(()) };
        let mut store = self.core.edges.store()?;
        let devices = devices_of(&mut *store, store_domid(domid))?;
        let (backends, noted) = (with_backends(&devices), self.ends());
        if !backends.is_empty() || !noted {
            let marker = Self::pending_marker(domid)?;
            store.transaction(|t| {
                if !noted {
                    // Nothing answered, or the domain was gone.
                    t.write(&marker, DESTROYING)?;
                }
                close(t, &backends)
            })?;
        }
        *self.ending() = Ending { noted: true, devices: Some(devices) };
        Ok(())
    }

    /// Whether the domain's nodes are to go, so that none of them needs to be removed by itself.
    pub(super) fn ends(&self) -> bool {
        self.ending().noted
    }

    fn ending(&self) -> MutexGuard<'_, Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The domain itself; found by UUID, so that a recycled number is never destroyed.
    pub(super) fn destroy_domain(&self) -> Result<(), Error> {
        let uuid = self.uuid()?;
        let hypervisor = self.core.edges.hypervisor()?;
        for domain in hypervisor.domains()?.iter().filter(|d| d.uuid == *uuid.as_bytes() && !d.dying) {
            hypervisor.destroy(domain.domid)?;
        }
        Ok(())
    }

    /// Waits for the backends, gives the host's resources back and removes the trees.
    pub(super) fn release_devices(&self) -> Result<(), Error> {
        let told = std::mem::take(&mut *self.ending()).devices;
        if let Some(domid) = self.own_domid()? {
            let devices = told.map_or_else(|| self.devices(domid), Ok);
            let waited = devices.clone().and_then(|devices| self.wait_for_backends(domid, &devices));
            self.core
                .runtimes
                .with(self.vm(), |r| (r.kept.clear(), r.followed_disks.clear(), r.served.clear()));
            self.core.disks.release_domain(domid);
            // A list that could not be had may be there by now.
            let removed = devices
                .or_else(|_| self.devices(domid))
                .and_then(|devices| self.remove_trees(domid, &devices));
            let gone = self.wait_until_gone(domid);
            if removed.is_ok() {
                // Otherwise the number is all that leads to what is left.
                self.core.runtimes.with(self.vm(), |r| r.domid = None);
            }
            waited.and(removed).and(gone)?;
        }
        self.slot.without(|| self.core.give_back(self.vm()))
    }

    fn devices(&self, domid: DomId) -> Result<Vec<DeviceAddress>, Error> {
        Ok(devices_of(&mut *self.core.edges.store()?, store_domid(domid))?)
    }

    fn wait_for_backends(&self, domid: DomId, devices: &[DeviceAddress]) -> Result<(), Error> {
        let devices = with_backends(devices);
        let states: Vec<Path> = devices.iter().map(DeviceAddress::backend_state).collect();
        let deadline = Instant::now() + self.core.patience.hotplug;
        let closed = || {
            let mut store = self.core.edges.store()?;
            let values = store.read_all(&states)?;
            let all = |fine: &[XenbusState]| {
                values.iter().flatten().all(|value| fine.contains(&XenbusState::from_value(value)))
            };
            if all(&[XenbusState::Closed]) {
                return Ok(Some(()));
            }
            if !all(&[XenbusState::Closing, XenbusState::Closed]) {
                // It could not be told before, or has written its next state over the request.
                store.transaction(|t| close(t, &devices))?;
            }
            Ok(None)
        };
        // Not cancellable: what is half closed must be closed.
        self.core.waiting(None, self.slot).until(&states, deadline, closed).map_err(|ended| match ended {
            Ended::TimedOut => Error::internal(format!(
                "VM {}: a backend of domain {domid} did not close within {} s; see dom0's kernel log",
                self.vm(),
                self.core.patience.hotplug.as_secs()
            )),
            Ended::Failed(error) => error,
        })
    }

    fn remove_trees(&self, domid: DomId, devices: &[DeviceAddress]) -> Result<(), Error> {
        for interface in devices.iter().filter(|device| device.kind == DeviceKind::Vif) {
            vif::end(self.core, domid, *interface, self.core.waiting(None, self.slot))?;
        }
        let mut store = self.core.edges.store()?;
        store.commit(&remove_domain(store_domid(domid), Some(self.uuid()?), devices))?;
        let interfaces =
            devices.iter().filter(|device| device.kind == DeviceKind::Vif).map(|device| device.id);
        vif::forget_interfaces(self.core, self.vm(), domid, interfaces)
    }

    /// A domain stays listed, dying, while somebody in dom0 holds its pages; what is tied to it must not be used again
    /// before.
    fn wait_until_gone(&self, domid: DomId) -> Result<(), Error> {
        let uuid = self.uuid()?;
        let released = Path::new("@releaseDomain").map_err(xenstore::Error::from)?;
        let deadline = Instant::now() + self.core.patience.zombie;
        let gone = || {
            let left = self.core.edges.hypervisor()?.domain(domid)?;
            match left.filter(|d| d.uuid == *uuid.as_bytes()) {
                None => Ok(Some(())),
                Some(left) if left.dying => Ok(None),
                // Its destruction has failed before; waiting does not help.
                Some(_) => {
                    Err(Error::internal(format!("domain {domid} of VM {} is not destroyed", self.vm())))
                }
            }
        };
        let waiting = self.core.waiting(None, self.slot);
        match waiting.until_looking(&[released], deadline, ZOMBIE_LOOKS, gone) {
            Ok(()) => Ok(()),
            Err(Ended::Failed(error)) => Err(error),
            Err(Ended::TimedOut) => Err(Error::internal(format!(
                "domain {domid} of VM {} is destroyed but still held by somebody in dom0 (`xl list` shows it dying)",
                self.vm()
            ))),
        }
    }

    /// The number of our domain, also after its end; none when there is nothing of ours under it.
    pub(super) fn own_domid(&self) -> Result<Option<DomId>, Error> {
        let uuid = self.uuid()?;
        let hypervisor = self.core.edges.hypervisor()?;
        let Some(domid) = self.core.runtimes.with(self.vm(), |r| r.domid) else {
            let listed = hypervisor.domains()?.into_iter().find(|d| d.uuid == *uuid.as_bytes());
            let found = match listed {
                Some(domain) => Some(domain.domid),
                None => self.core.left_behind(self.vm())?,
            };
            self.core.runtimes.with(self.vm(), |r| r.domid = found);
            return Ok(found);
        };
        match hypervisor.domain(domid)? {
            Some(other) if other.uuid != *uuid.as_bytes() => {
                tracing::warn!(vm = self.vm(), %domid, "the VM's former domid belongs to another domain by now");
                self.core.runtimes.with(self.vm(), |r| r.domid = None);
                Ok(None)
            }
            _ => Ok(Some(domid)),
        }
    }

    pub(super) fn uuid(&self) -> Result<Uuid, Error> {
        Uuid::try_parse(self.vm())
            .map_err(|_| Error::internal(format!("VM id {:?} is not a UUID", self.vm())))
    }
}

/// Tells backends that are there to close. Whatever their guest answers no longer matters.
fn close(t: &mut Transaction<'_>, devices: &[DeviceAddress]) -> Result<(), xenstore::Error> {
    let states: Vec<Path> = devices.iter().map(DeviceAddress::backend_state).collect();
    let mut batch = Batch::new();
    for (device, state) in devices.iter().zip(t.read_all(&states)?) {
        let state = state.map(|value| XenbusState::from_value(&value));
        batch.append(closing(*device, state, Unplugging::Forced));
    }
    t.apply(&batch)
}

/// Those of the devices with a backend that has a state. Console 0 has none: xenconsoled lets go with the domain.
fn with_backends(devices: &[DeviceAddress]) -> Vec<DeviceAddress> {
    devices.iter().filter(|d| d.kind != DeviceKind::Console).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::DomId;
    use xenstore::store::SharedStore;

    /// A guest that goes down closes its devices itself, and the last answer of a backend's driver is not overwritten: it
    /// would not be given again.
    #[test]
    fn a_backend_that_closes_meanwhile_stays_closed() {
        let store = SharedStore::new();
        let [mut toolstack, mut driver] = [(); 2].map(|()| store.client(DomId::DOM0));
        let device =
            DeviceAddress { kind: DeviceKind::Vbd, domid: DomId(5), id: 51712, backend_domid: DomId::DOM0 };
        let state = device.backend_state();
        driver.write(&state, XenbusState::Closing.to_value()).unwrap();
        let mut times = 0;
        let told = toolstack.transaction(|t| -> Result<(), xenstore::Error> {
            close(t, &[device])?;
            times += 1;
            if times == 1 {
                driver.write(&state, XenbusState::Closed.to_value())?;
            }
            Ok(())
        });
        told.unwrap();
        assert_eq!(times, 2, "the driver's answer was not noticed");
        assert_eq!(toolstack.read(&state).unwrap(), Some(XenbusState::Closed.to_value()));
    }

    #[test]
    fn a_backend_without_a_driver_is_closed_at_once_and_one_that_is_not_there_not_made() {
        let mut store = SharedStore::new().client(DomId::DOM0);
        let device =
            |id| DeviceAddress { kind: DeviceKind::Vif, domid: DomId(5), id, backend_domid: DomId::DOM0 };
        let [untaken, absent] = [0, 1].map(device);
        store.write(&untaken.backend_state(), XenbusState::Initialising.to_value()).unwrap();
        store.transaction(|t| close(t, &[untaken, absent])).unwrap();
        let closed = store.read(&untaken.backend_state()).unwrap();
        assert_eq!(closed, Some(XenbusState::Closed.to_value()));
        assert_eq!(store.directory(&absent.backend()).unwrap(), None);
    }
}
