//! What runs, brought in line with its records.

use std::time::{Duration, Instant};

use xenstore::vmdata::VmData;
use xenstore::{Batch, Operations, Step, layout};

use super::VmExecutor;
use super::memory::{self, Wanted};
use crate::api::{BuilderInfo, Dict, Error, Vm};
use crate::device::{self, store_domid, vif};
use crate::edge::{DomId, DomainInfo, HypervisorError};
use crate::ops::change::{Aspect, Change, Record};
use crate::ops::plan::Device;
use crate::ops::wait::{Ended, Looks};

/// When a guest's memory is looked at while its balloon moves. The hypervisor raises no event for the number of a domain's
/// pages, and a balloon driver tells nobody where it is; that the domain has ended is told, and heard at once.
const BALLOON_LOOKS: Looks = Looks::new(Duration::from_millis(10), Duration::from_secs(1));

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
            (Record::Vm(now, Aspect::Vcpus), _) => self.apply_vcpus(now, domain.domid),
            (Record::Vm(now, Aspect::Memory), _) => self.apply_memory(now, domain.domid),
            (Record::Vm(now, Aspect::Paging), _) => self.apply_paging(now, domain.domid),
            (Record::Vm(now, Aspect::Xsdata), Record::Vm(before, _)) => {
                self.apply_xsdata(now, &vm_data(&before.xsdata), domain.domid)
            }
            _ => Ok(()),
        }
    }

    /// Brings a running VM in line with its record where an earlier daemon was killed in between.
    pub(crate) fn finish_changes(&self) -> Result<(), Error> {
        let domid = self.domid()?;
        for (what, finished) in [
            (Aspect::Vcpus, self.finish_vcpus(domid)),
            (Aspect::Memory, self.finish_memory(domid)),
            (Aspect::Paging, self.finish_paging(domid)),
            (Aspect::Xsdata, self.finish_xsdata(domid)),
        ] {
            match finished {
                Ok(true) => tracing::warn!(
                    vm = self.vm(),
                    "an earlier daemon left a change of {what} half made; it is made"
                ),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(vm = self.vm(), %error, "{what} of the running VM is not as its record says");
                }
            }
        }
        Ok(())
    }

    fn finish_vcpus(&self, domid: DomId) -> Result<bool, Error> {
        let wanted = Wanted::of(&self.records.vm)?;
        let nodes = layout::set_online_vcpus(store_domid(domid), wanted.vcpu_max, wanted.vcpus);
        if self.holds(&nodes)? {
            return Ok(false);
        }
        self.apply_vcpus(&self.records.vm, domid).map(|()| true)
    }

    /// The guest is not waited for.
    fn finish_memory(&self, domid: DomId) -> Result<bool, Error> {
        let wanted = Wanted::of(&self.records.vm)?;
        let range = (wanted.dynamic_min_kib, wanted.dynamic_max_kib);
        if self.holds(&layout::set_memory_range(store_domid(domid), range))? {
            return Ok(false);
        }
        self.set_memory(&wanted, domid).map(|_| true)
    }

    fn finish_paging(&self, domid: DomId) -> Result<bool, Error> {
        if !matches!(self.records.vm.ty, BuilderInfo::Hvm(_)) {
            return Ok(false);
        }
        let wanted = Wanted::of(&self.records.vm)?;
        if self.core.edges.hypervisor()?.paging_kib(domid)? == wanted.paging_kib() {
            return Ok(false);
        }
        self.apply_paging(&self.records.vm, domid).map(|()| true)
    }

    /// What the guest has written over it meanwhile is its own affair: the toolstack's copy is looked at.
    fn finish_xsdata(&self, domid: DomId) -> Result<bool, Error> {
        let written = VmData::written(&mut *self.core.edges.store()?, store_domid(domid))?;
        let Some(written) = written.filter(|w| !w.writes_as(&vm_data(&self.records.vm.xsdata))) else {
            return Ok(false);
        };
        self.apply_xsdata(&self.records.vm, &written, domid).map(|()| true)
    }

    /// Whether the store has all these nodes as they are to be.
    fn holds(&self, nodes: &Batch) -> Result<bool, Error> {
        let write = |step: &Step| match step {
            Step::Write { path, value } => Some((path.clone(), value.clone())),
            _ => None,
        };
        let (paths, values): (Vec<_>, Vec<_>) = nodes.steps().iter().filter_map(write).unzip();
        let found = self.core.edges.store()?.read_all(&paths)?;
        Ok(found.iter().zip(&values).all(|(found, value)| found.as_ref() == Some(value)))
    }

    fn apply_vcpus(&self, vm: &Vm, domid: DomId) -> Result<(), Error> {
        let wanted = Wanted::of(vm)?;
        self.plug_vcpus(wanted.vcpus)?;
        let nodes = layout::set_online_vcpus(store_domid(domid), wanted.vcpu_max, wanted.vcpus);
        Ok(self.core.edges.store()?.commit(&nodes)?)
    }

    fn apply_xsdata(&self, vm: &Vm, before: &VmData, domid: DomId) -> Result<(), Error> {
        let nodes = vm_data(&vm.xsdata).replace(before, store_domid(domid));
        self.core.edges.store()?.commit(&nodes)?;
        // What was seen is out of date, and the client that asked knows.
        self.core.runtimes.with(self.vm(), |r| r.guest_data = None);
        Ok(())
    }

    /// As much as the record says, if the host has it.
    fn apply_paging(&self, vm: &Vm, domid: DomId) -> Result<(), Error> {
        let wanted_kib = Wanted::of(vm)?.paging_kib();
        let hypervisor = self.core.edges.hypervisor()?;
        let more_kib = wanted_kib.saturating_sub(hypervisor.paging_kib(domid)?);
        memory::check_more(more_kib, &hypervisor.host()?)?;
        hypervisor.set_paging_kib(domid, wanted_kib).map_err(|error| match error {
            HypervisorError::Memory(text) => {
                tracing::warn!(vm = self.vm(), "{text}");
                Error::NotEnoughMemory(memory::bytes(more_kib))
            }
            other => other.into(),
        })
    }

    fn apply_interface(&self, interface: &crate::api::Vif, domid: DomId) -> Result<(), Error> {
        let named = Device::Vif(interface.id.device.clone());
        if !device::is_plugged(self.core, self.vm(), &named)? {
            return Ok(());
        }
        vif::apply(self.core, domid, interface, self.core.waiting(Some(self.task), self.slot))
    }

    /// As much as there is room for, and waits until the guest has it.
    fn apply_memory(&self, vm: &Vm, domid: DomId) -> Result<(), Error> {
        let wanted = Wanted::of(vm)?;
        let target_kib = self.set_memory(&wanted, domid)?;
        self.await_memory(domid, target_kib + wanted.shim_kib)
    }

    /// Tells hypervisor and guest; the target.
    fn set_memory(&self, wanted: &Wanted, domid: DomId) -> Result<u64, Error> {
        let target_kib = {
            let hypervisor = self.core.edges.hypervisor()?;
            let target_kib = wanted.new_target_kib(self.has_kib(domid)?, &hypervisor.host()?)?;
            hypervisor.set_memory_target(domid, target_kib + wanted.shim_kib)?;
            target_kib
        };
        let range = (wanted.dynamic_min_kib, wanted.dynamic_max_kib);
        let nodes = layout::set_memory(store_domid(domid), target_kib, range);
        self.core.edges.store()?.commit(&nodes)?;
        Ok(target_kib)
    }

    fn await_memory(&self, domid: DomId, target_kib: u64) -> Result<(), Error> {
        let patience = self.core.patience.balloon;
        let released = xenstore::Path::new("@releaseDomain").map_err(xenstore::Error::from)?;
        let mut has_kib = 0;
        let reached = || {
            let domain = self.living(domid)?;
            has_kib = domain.tot_pages * PAGE_KIB;
            let there = has_kib.abs_diff(target_kib) <= BALLOON_TOLERANCE_KIB;
            if !there && domain.shutdown.is_some() {
                return Err(Error::internal(format!(
                    "VM {}: the guest stopped with {has_kib} KiB, on its way to {target_kib} KiB",
                    self.vm()
                )));
            }
            Ok(there.then_some(()))
        };
        let waiting = self.core.waiting(Some(self.task), self.slot);
        match waiting.until_looking(&[released], Instant::now() + patience, BALLOON_LOOKS, reached) {
            Ok(()) => Ok(()),
            Err(Ended::Failed(error)) => Err(error),
            Err(Ended::TimedOut) => Err(Error::internal(format!(
                "VM {}: the guest has {has_kib} KiB and not {target_kib} KiB after {} s: its balloon driver does not follow",
                self.vm(),
                patience.as_secs()
            ))),
        }
    }

    fn has_kib(&self, domid: DomId) -> Result<u64, Error> {
        self.living(domid).map(|domain| domain.tot_pages * PAGE_KIB)
    }

    fn living(&self, domid: DomId) -> Result<DomainInfo, Error> {
        let domain = self.core.edges.hypervisor()?.domain(domid)?.filter(|domain| !domain.dying);
        domain.ok_or(Error::DomainNotBuilt)
    }
}

fn vm_data(xsdata: &Dict<String>) -> VmData {
    VmData::new(xsdata.iter().map(|(key, value)| (key, value.as_bytes())))
}
