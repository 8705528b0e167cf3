//! What runs, brought in line with its records.

use std::time::{Duration, Instant};

use xenstore::layout;
use xenstore::vmdata::VmData;

use super::VmExecutor;
use super::memory::Wanted;
use crate::api::{Dict, Error, Vm};
use crate::device::{self, store_domid, vif};
use crate::edge::DomId;
use crate::ops::change::{Aspect, Change, Record};
use crate::ops::plan::Device;

/// How often a guest's memory is looked at while its balloon moves: nothing tells of that.
const BALLOON_LOOK: Duration = Duration::from_millis(50);

/// How near to its target a guest's memory has to be, in KiB: drivers keep a few pages for themselves.
const BALLOON_TOLERANCE_KIB: u64 = 2048;

/// KiB of a page.
const PAGE_KIB: u64 = 4;

impl VmExecutor<'_> {
    /// Does for the running VM what a change of its records says. What does not run, or is not plugged, will be as its
    /// record says when it is.
    pub(super) fn apply(&self, change: &Change) -> Result<(), Error> {
        let Some(domain) = self.core.domain_of(self.vm())? else { return Ok(()) };
        match (&change.now, &change.before) {
            (Record::Vif(interface), _) => self.apply_interface(interface, domain.domid),
            (Record::Vm(now, Aspect::Vcpus), _) => {
                let wanted = Wanted::of(now)?;
                self.plug_vcpus(wanted.vcpus)?;
                let nodes =
                    layout::set_online_vcpus(store_domid(domain.domid), wanted.vcpu_max, wanted.vcpus);
                Ok(self.core.edges.store()?.commit(&nodes)?)
            }
            (Record::Vm(now, Aspect::Xsdata), Record::Vm(before, _)) => {
                let nodes = vm_data(&now.xsdata).replace(&vm_data(&before.xsdata), store_domid(domain.domid));
                self.core.edges.store()?.commit(&nodes)?;
                // What was seen is out of date, and the client that asked knows.
                self.core.runtimes.with(self.vm(), |r| r.guest_data = None);
                Ok(())
            }
            (Record::Vm(now, Aspect::Memory), _) => self.apply_memory(now, domain.domid),
            _ => Ok(()),
        }
    }

    fn apply_interface(&self, interface: &crate::api::Vif, domid: DomId) -> Result<(), Error> {
        let named = Device::Vif(interface.id.device.clone());
        if !device::is_plugged(self.core, self.vm(), &named)? {
            return Ok(());
        }
        vif::apply(self.core, domid, interface)
    }

    /// As much as there is room for, and waits until the guest has it.
    fn apply_memory(&self, vm: &Vm, domid: DomId) -> Result<(), Error> {
        let wanted = Wanted::of(vm)?;
        let target_kib = {
            let hypervisor = self.core.edges.hypervisor()?;
            let target_kib = wanted.new_target_kib(self.has_kib(domid)?, &hypervisor.host()?)?;
            hypervisor.set_memory_target(domid, target_kib + wanted.shim_kib)?;
            target_kib
        };
        let range = (wanted.dynamic_min_kib, wanted.dynamic_max_kib);
        let nodes = layout::set_memory(store_domid(domid), target_kib, range);
        self.core.edges.store()?.commit(&nodes)?;
        self.await_memory(domid, target_kib + wanted.shim_kib)
    }

    fn await_memory(&self, domid: DomId, target_kib: u64) -> Result<(), Error> {
        let deadline = Instant::now() + self.core.patience.balloon;
        loop {
            let has_kib = self.has_kib(domid)?;
            if has_kib.abs_diff(target_kib) <= BALLOON_TOLERANCE_KIB {
                return Ok(());
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(Error::internal(format!(
                    "VM {}: the guest has {has_kib} KiB and not {target_kib} KiB after {} s: its balloon driver does not follow",
                    self.vm(),
                    self.core.patience.balloon.as_secs()
                )));
            }
            self.core.waiting(Some(self.task), self.slot).pause(deadline.min(now + BALLOON_LOOK))?;
        }
    }

    fn has_kib(&self, domid: DomId) -> Result<u64, Error> {
        let domain = self.core.edges.hypervisor()?.domain(domid)?.filter(|domain| !domain.dying);
        domain.map(|domain| domain.tot_pages * PAGE_KIB).ok_or(Error::DomainNotBuilt)
    }
}

fn vm_data(xsdata: &Dict<String>) -> VmData {
    VmData::new(xsdata.iter().map(|(key, value)| (key, value.as_bytes())))
}
