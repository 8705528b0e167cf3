//! The hypervisor edge.

use std::sync::Arc;

use super::faults::Injected;
use super::hardware::Hardware;
use super::memory;
use super::world::Signal;
use super::{Shared, store_domid};
use crate::edge::{
    Built, CpuMap, DomId, DomainImage, DomainInfo, FeatureSet, GuestKind, Hypervisor, HypervisorError, Image,
    NewDomain, Physinfo, Resources, Ring, ShutdownReason, Stream, XenVersion,
};

/// KiB of a page.
const PAGE_KIB: u64 = 4;

/// What the hard limit allows above the target, in KiB, as on real Xen (`LIBXL_MAXMEM_CONSTANT`).
const SLACK_KIB: u64 = 1024;

/// Event channel ports of the two rings: the first that a new domain has.
const STORE_PORT: u32 = 1;
const CONSOLE_PORT: u32 = 2;

/// A handle on the simulated hypervisor.
pub(super) struct SimHypervisor {
    shared: Arc<Shared>,
}

impl SimHypervisor {
    pub(super) fn open(shared: &Arc<Shared>) -> Result<Self, HypervisorError> {
        shared.faults.check("hypervisor.open")?;
        Ok(Self { shared: Arc::clone(shared) })
    }

    fn call<R>(
        &self,
        site: &str,
        run: impl FnOnce(&mut Hardware) -> Result<R, HypervisorError>,
    ) -> Result<R, HypervisorError> {
        self.shared.faults.check(site)?;
        self.shared.change(run)
    }
}

impl From<Injected> for HypervisorError {
    fn from(injected: Injected) -> Self {
        Self::Call(injected.to_string())
    }
}

/// What libxenguest could load: ELF, gzip, or a bzImage (`HdrS` at 0x202, Linux' boot protocol).
fn is_kernel(image: &Image) -> bool {
    let bytes = image.bytes();
    bytes.starts_with(b"\x7fELF")
        || bytes.starts_with(b"\x1f\x8b")
        || bytes.get(0x202..0x206) == Some(b"HdrS")
}

/// Gives a new domain its memory.
fn fill(
    hardware: &mut Hardware,
    domid: DomId,
    pages: u64,
    resources: &Resources,
) -> Result<Built, HypervisorError> {
    let (store, console) = hardware.build(domid, pages, SLACK_KIB / PAGE_KIB)?;
    hardware.keep_for_shim(domid, resources.shim_kib / PAGE_KIB);
    if resources.paging_kib > 0 {
        hardware.set_paging_kib(domid, resources.paging_kib)?;
    }
    Ok(Built {
        store: Ring { port: STORE_PORT, gfn: store },
        console: Ring { port: CONSOLE_PORT, gfn: console },
    })
}

impl Hypervisor for SimHypervisor {
    fn version(&self) -> Result<XenVersion, HypervisorError> {
        self.call("hypervisor.version", |_| Ok(Hardware::version()))
    }

    fn host(&self) -> Result<Physinfo, HypervisorError> {
        self.call("hypervisor.host", |hardware| Ok(hardware.physinfo()))
    }

    fn domains(&self) -> Result<Vec<DomainInfo>, HypervisorError> {
        self.call("hypervisor.domains", |hardware| Ok(hardware.infos()))
    }

    fn domain(&self, domid: DomId) -> Result<Option<DomainInfo>, HypervisorError> {
        self.call("hypervisor.domain", |hardware| Ok(hardware.info(domid)))
    }

    fn create(&self, new: &NewDomain) -> Result<DomId, HypervisorError> {
        self.call("hypervisor.create", |hardware| hardware.create(new))
    }

    fn equip(&self, domid: DomId, kind: GuestKind, resources: &Resources) -> Result<(), HypervisorError> {
        let limit = (resources.target_kib + resources.shim_kib + SLACK_KIB) / PAGE_KIB;
        self.call("hypervisor.equip", |hardware| {
            hardware.must_be(domid, kind)?;
            hardware.limit(domid, limit)
        })
    }

    fn build(
        &self,
        domid: DomId,
        resources: &Resources,
        image: &DomainImage<'_>,
    ) -> Result<Built, HypervisorError> {
        let loaded = match image {
            DomainImage::Pv(loaded) | DomainImage::Pvh(loaded) | DomainImage::PvInPvh(_, loaded) => {
                loaded.kernel
            }
            DomainImage::Hvm(hvm) => hvm.loader,
        };
        if !is_kernel(loaded) {
            return Err(HypervisorError::Image(
                "the kernel is no ELF file, no bzImage and not gzipped".to_owned(),
            ));
        }
        let pages = (resources.target_kib + resources.shim_kib) / PAGE_KIB;
        self.call("hypervisor.build", |hardware| {
            hardware.must_be(domid, image.kind())?;
            fill(hardware, domid, pages, resources)
        })
    }

    fn hears(&self, domid: DomId) -> Result<bool, HypervisorError> {
        self.shared.faults.check("hypervisor.hears")?;
        Ok(self.shared.script_word(domid, "drivers").as_deref() != Some("none"))
    }

    fn suspend(&self, domid: DomId) -> Result<(), HypervisorError> {
        self.shared.faults.check("hypervisor.suspend")?;
        self.shared.shut_down(domid, ShutdownReason::Suspend);
        Ok(())
    }

    fn save(&self, domid: DomId, stream: &Stream) -> Result<(), HypervisorError> {
        let saved = self.call("hypervisor.save", |hardware| hardware.suspended(domid))?;
        memory::save(&saved, stream, self.shared.copying)
    }

    fn restore(
        &self,
        domid: DomId,
        kind: GuestKind,
        resources: &Resources,
        stream: &Stream,
    ) -> Result<Built, HypervisorError> {
        self.call("hypervisor.restore", |_| Ok(()))?;
        let saved = memory::restore(stream, self.shared.copying)?;
        // The stream of a guest in a container does not say whether it has a device model.
        let alike = (saved.kind == GuestKind::Pv) == (kind == GuestKind::Pv);
        if !alike || saved.vcpus > resources.max_vcpus {
            return Err(HypervisorError::Call(format!(
                "restore: a {:?} domain with {} vcpus does not fit",
                saved.kind, saved.vcpus
            )));
        }
        let limit = (resources.target_kib + resources.shim_kib + SLACK_KIB) / PAGE_KIB;
        if saved.pages > limit {
            return Err(HypervisorError::Memory(format!("restore: {} pages, limit {limit}", saved.pages)));
        }
        self.shared.change(|hardware| fill(hardware, domid, saved.pages, resources))
    }

    fn resume(&self, domid: DomId) -> Result<(), HypervisorError> {
        if self.call("hypervisor.resume", |hardware| hardware.resume(domid))? {
            self.shared.signal(Signal::Runs(domid));
        }
        Ok(())
    }

    fn set_memory_target(&self, domid: DomId, target_kib: u64) -> Result<(), HypervisorError> {
        let pages = (target_kib + SLACK_KIB) / PAGE_KIB;
        self.call("hypervisor.set_memory_target", |hardware| hardware.limit(domid, pages))
    }

    fn set_scheduler(&self, domid: DomId, weight: u16, cap: u16) -> Result<(), HypervisorError> {
        self.call("hypervisor.set_scheduler", |hardware| hardware.set_scheduler(domid, weight, cap))
    }

    fn set_affinity(&self, domid: DomId, vcpu: u32, cpus: &CpuMap) -> Result<(), HypervisorError> {
        self.call("hypervisor.set_affinity", |hardware| hardware.set_affinity(domid, vcpu, cpus))
    }

    fn paging_kib(&self, domid: DomId) -> Result<u64, HypervisorError> {
        self.call("hypervisor.paging_kib", |hardware| hardware.paging_kib(domid))
    }

    fn set_paging_kib(&self, domid: DomId, kib: u64) -> Result<(), HypervisorError> {
        self.call("hypervisor.set_paging_kib", |hardware| hardware.set_paging_kib(domid, kib))
    }

    fn pause(&self, domid: DomId) -> Result<(), HypervisorError> {
        self.call("hypervisor.pause", |hardware| hardware.pause(domid))
    }

    fn unpause(&self, domid: DomId) -> Result<(), HypervisorError> {
        if self.call("hypervisor.unpause", |hardware| hardware.unpause(domid))? {
            self.shared.signal(Signal::Runs(domid));
        }
        Ok(())
    }

    fn destroy(&self, domid: DomId) -> Result<(), HypervisorError> {
        if self.call("hypervisor.destroy", |hardware| Ok(hardware.destroy(domid)))? {
            self.shared.store.lock().domain_died(store_domid(domid));
            self.shared.signal(Signal::Died(domid));
        }
        Ok(())
    }

    fn console_ring(&self) -> Result<Vec<u8>, HypervisorError> {
        self.call("hypervisor.console_ring", |_| Ok(b"(XEN) simulated\n".to_vec()))
    }

    fn features(&self, _of: FeatureSet) -> Result<Vec<u32>, HypervisorError> {
        self.call("hypervisor.features", |_| Ok(Vec::new()))
    }

    fn send_debug_keys(&self, _keys: &str) -> Result<(), HypervisorError> {
        self.call("hypervisor.send_debug_keys", |_| Ok(()))
    }
}
