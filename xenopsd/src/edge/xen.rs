//! The hypervisor through libxenctrl and libxenguest.

use ffi::builder::{self, BuildError, PvImage};
use ffi::evtchn::Port;
use ffi::migrate::{self, MigrateError, RingEnds, SaveCallbacks};
use ffi::xenctrl::{
    CpuidPolicy, CreateDomain, GrantVersion, HvmParam, SchedParams, Scheduler, TscMode, Xenctrl,
};

use super::{
    Built, DomId, DomainImage, DomainInfo, FeatureSet, GuestKind, Hypervisor, HypervisorError, Image,
    KernelImage, NewDomain, Physinfo, Resources, Ring, Stream, XenVersion,
};

/// What libxl leaves above the target in the hard limit, in KiB: a guest's balloon is allowed this much slack
/// (`LIBXL_MAXMEM_CONSTANT`).
const MAXMEM_SLACK_KIB: u64 = 1024;

/// Slack of the memory map limit a PV guest is told, in KiB, as libxl's default for PV.
const MEMMAP_SLACK_KIB: u64 = 0;

/// Missed timer ticks are not made up for (`HVMPTM_no_delay_for_missed_ticks`): libxl's default, which every guest with
/// a clock of its own wants.
const TIMER_MODE: u64 = 1;

/// A handle on the running hypervisor.
pub(super) struct XenHypervisor {
    xc: Xenctrl,
}

impl XenHypervisor {
    pub(super) fn open() -> Result<Self, HypervisorError> {
        let xc = Xenctrl::open()?;
        xc.check_version()?;
        Ok(Self { xc })
    }

    /// What a domain gets whether it is built or restored, in libxl's order. Returns its ports for the two rings.
    fn equip(
        &self,
        domid: DomId,
        kind: GuestKind,
        resources: &Resources,
    ) -> Result<RingPorts, HypervisorError> {
        let xc = &self.xc;
        xc.set_max_vcpus(domid, resources.max_vcpus)?;
        xc.set_max_mem_kib(domid, resources.target_kib + MAXMEM_SLACK_KIB)?;
        let store = xc.alloc_unbound_port(domid, DomId::DOM0)?;
        let console = xc.alloc_unbound_port(domid, DomId::DOM0)?;
        match kind {
            GuestKind::Pv => xc.set_memmap_limit_kib(domid, resources.static_max_kib + MEMMAP_SLACK_KIB)?,
            GuestKind::Pvh | GuestKind::Hvm => xc.hvm_param_set(domid, HvmParam::TIMER_MODE, TIMER_MODE)?,
        }
        xc.set_tsc_info(domid, TscMode::Default)?;
        if kind != GuestKind::Pv {
            xc.set_paging_mempool_bytes(domid, resources.paging_kib * 1024)?;
        }
        Ok(RingPorts { store, console })
    }

    fn build_pv(
        &self,
        domid: DomId,
        resources: &Resources,
        image: &KernelImage<'_>,
        ports: RingPorts,
    ) -> Result<builder::Built, BuildError> {
        let image = PvImage {
            kernel: image.kernel.bytes(),
            ramdisk: image.ramdisk.map(Image::bytes),
            cmdline: image.cmdline,
            features: None,
            memory_mib: resources.target_kib / 1024,
            max_vcpus: resources.max_vcpus,
            console_evtchn: ports.console,
            console_domid: DomId::DOM0,
            store_evtchn: ports.store,
            store_domid: DomId::DOM0,
            claim: true,
        };
        builder::build_pv(&self.xc, domid, &image)
    }
}

/// The guest was suspended before the save began.
struct Suspended;

impl SaveCallbacks for Suspended {
    fn suspend(&mut self) -> bool {
        true
    }
}

/// A domain's unbound ports.
#[derive(Clone, Copy)]
struct RingPorts {
    store: Port,
    console: Port,
}

impl RingPorts {
    fn with(self, built: builder::Built) -> Built {
        Built {
            store: Ring { port: self.store.get(), gfn: built.store_mfn },
            console: Ring { port: self.console.get(), gfn: built.console_mfn },
        }
    }
}

impl Hypervisor for XenHypervisor {
    fn version(&self) -> Result<XenVersion, HypervisorError> {
        Ok(self.xc.version()?)
    }

    fn host(&self) -> Result<Physinfo, HypervisorError> {
        Ok(self.xc.physinfo()?)
    }

    fn domains(&self) -> Result<Vec<DomainInfo>, HypervisorError> {
        Ok(self.xc.domains()?)
    }

    fn domain(&self, domid: DomId) -> Result<Option<DomainInfo>, HypervisorError> {
        Ok(self.xc.domain_info(domid)?)
    }

    fn create(&self, new: &NewDomain) -> Result<DomId, HypervisorError> {
        let grant_version = if self.xc.physinfo()?.gnttab_v2 { GrantVersion::V2 } else { GrantVersion::V1 };
        Ok(self.xc.create_domain(&CreateDomain {
            max_grant_frames: i32::try_from(new.max_grant_frames).unwrap_or(-1),
            grant_version,
            ssidref: new.ssidref,
            ..CreateDomain::new(new.kind, new.uuid, new.max_vcpus)
        })?)
    }

    fn build(
        &self,
        domid: DomId,
        resources: &Resources,
        image: &DomainImage<'_>,
    ) -> Result<Built, HypervisorError> {
        let ports = self.equip(domid, image.kind(), resources)?;
        self.xc.apply_cpuid_policy(domid, &CpuidPolicy::default())?;
        let built = match image {
            DomainImage::Pv(image) => self.build_pv(domid, resources, image, ports)?,
        };
        Ok(ports.with(built))
    }

    fn save(&self, domid: DomId, stream: &Stream) -> Result<(), HypervisorError> {
        Ok(migrate::save(&self.xc, domid, stream, false, &mut Suspended)?)
    }

    fn restore(
        &self,
        domid: DomId,
        kind: GuestKind,
        resources: &Resources,
        stream: &Stream,
    ) -> Result<Built, HypervisorError> {
        let ports = self.equip(domid, kind, resources)?;
        let ends = RingEnds {
            store_evtchn: ports.store,
            store_domid: DomId::DOM0,
            console_evtchn: ports.console,
            console_domid: DomId::DOM0,
        };
        Ok(ports.with(migrate::restore(&self.xc, domid, stream, &ends)?))
    }

    fn resume(&self, domid: DomId) -> Result<(), HypervisorError> {
        Ok(self.xc.resume(domid, true)?)
    }

    fn set_scheduler(&self, domid: DomId, weight: u16, cap: u16) -> Result<(), HypervisorError> {
        let params = SchedParams { weight, cap };
        match self.xc.scheduler()? {
            Scheduler::Credit => Ok(self.xc.sched_credit_set(domid, params)?),
            Scheduler::Credit2 => Ok(self.xc.sched_credit2_set(domid, params)?),
            other => {
                tracing::warn!(%domid, scheduler = ?other, "this scheduler has no weight or cap: left as it is");
                Ok(())
            }
        }
    }

    fn pause(&self, domid: DomId) -> Result<(), HypervisorError> {
        Ok(self.xc.pause(domid)?)
    }

    fn unpause(&self, domid: DomId) -> Result<(), HypervisorError> {
        Ok(self.xc.unpause(domid)?)
    }

    fn destroy(&self, domid: DomId) -> Result<(), HypervisorError> {
        match self.xc.destroy(domid) {
            Err(error) if error.is_errno(nix::libc::ESRCH) => Ok(()),
            other => Ok(other?),
        }
    }

    fn console_ring(&self) -> Result<Vec<u8>, HypervisorError> {
        Ok(self.xc.console_ring(false)?)
    }

    fn features(&self, of: FeatureSet) -> Result<Vec<u32>, HypervisorError> {
        Ok(self.xc.get_cpu_featureset(of)?)
    }

    fn send_debug_keys(&self, keys: &str) -> Result<(), HypervisorError> {
        Ok(self.xc.send_debug_keys(keys)?)
    }
}

impl From<ffi::error::Error> for HypervisorError {
    fn from(error: ffi::error::Error) -> Self {
        if error.is_errno(nix::libc::ENOMEM) {
            return Self::Memory(error.to_string());
        }
        Self::Call(error.to_string())
    }
}

impl From<MigrateError> for HypervisorError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Stopped { .. } => Self::Stopped,
            MigrateError::Call(call) => call.into(),
            other => Self::Call(other.to_string()),
        }
    }
}

impl From<BuildError> for HypervisorError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::OutOfMemory { .. } => Self::Memory(error.to_string()),
            BuildError::Hypercall(call) => call.into(),
            other => Self::Image(other.to_string()),
        }
    }
}
