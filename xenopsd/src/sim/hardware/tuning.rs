//! What a domain has of the host beside its memory: shares of the processors, and memory for its page tables.

use std::collections::BTreeMap;

use super::{Hardware, call};
use crate::edge::{CpuMap, DomId, GuestKind, HypervisorError};

/// KiB of a page.
const PAGE_KIB: u64 = 4;

/// One domain's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Weight and cap, once they are set.
    pub scheduler: Option<(u16, u16)>,
    /// The host's processors that each vcpu may run on, once that is set.
    pub affinity: BTreeMap<u32, Vec<u16>>,
    /// Memory for its page tables.
    pub paging_kib: u64,
}

impl Tuning {
    pub(super) fn paging_pages(&self) -> u64 {
        self.paging_kib / PAGE_KIB
    }
}

impl Hardware {
    /// What a domain has; nothing of one that is not there.
    pub fn tuning(&self, domid: DomId) -> Tuning {
        self.domains.get(&domid).map(|domain| domain.tuning.clone()).unwrap_or_default()
    }

    /// As Xen's credit schedulers.
    pub(in crate::sim) fn set_scheduler(
        &mut self,
        domid: DomId,
        weight: u16,
        cap: u16,
    ) -> Result<(), HypervisorError> {
        if weight == 0 {
            return Err(call(&format!("domain {domid}: weight {weight} cannot be set")));
        }
        self.live(domid)?.tuning.scheduler = Some((weight, cap));
        Ok(())
    }

    /// Processors that the host does not have are dropped; one has to be left.
    pub(in crate::sim) fn set_affinity(
        &mut self,
        domid: DomId,
        vcpu: u32,
        cpus: &CpuMap,
    ) -> Result<(), HypervisorError> {
        let here: Vec<u16> = cpus.iter().filter(|cpu| u32::from(*cpu) < self.cpus).collect();
        let domain = self.live(domid)?;
        if here.is_empty() || vcpu >= domain.max_vcpus {
            return Err(call(&format!("vcpu {vcpu} of domain {domid} cannot run on {here:?}")));
        }
        domain.tuning.affinity.insert(vcpu, here);
        Ok(())
    }

    pub(in crate::sim) fn paging_kib(&mut self, domid: DomId) -> Result<u64, HypervisorError> {
        let domain = self.live(domid)?;
        if domain.kind == GuestKind::Pv {
            return Err(call(&format!("domain {domid} is a PV domain, which has no paging pool")));
        }
        Ok(domain.tuning.paging_kib)
    }

    pub(in crate::sim) fn set_paging_kib(&mut self, domid: DomId, kib: u64) -> Result<(), HypervisorError> {
        let (has, free) = (self.paging_kib(domid)?, self.free_pages() * PAGE_KIB);
        if kib.saturating_sub(has) > free {
            return Err(HypervisorError::Memory(format!("{kib} KiB of page tables, {free} KiB are free")));
        }
        self.live(domid)?.tuning.paging_kib = kib;
        Ok(())
    }
}
