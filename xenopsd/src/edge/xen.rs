//! The hypervisor through libxenctrl and libxenguest.

use ffi::builder::{self, BuildError, PvImage};
use ffi::xenctrl::{
    CpuidPolicy, CreateDomain, GrantVersion, GuestKind, SchedParams, Scheduler, TscMode, Xenctrl,
};

use super::{
    Built, DomId, DomainInfo, FeatureSet, Hypervisor, HypervisorError, NewDomain, Physinfo, PvBuild, Ring,
    XenVersion,
};

/// What libxl leaves above the target in the hard limit, in KiB: a guest's balloon is allowed this much slack
/// (`LIBXL_MAXMEM_CONSTANT`).
const MAXMEM_SLACK_KIB: u64 = 1024;

/// Slack of the memory map limit a PV guest is told, in KiB, as libxl's default for PV.
const MEMMAP_SLACK_KIB: u64 = 0;

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

    fn create_pv(&self, new: &NewDomain) -> Result<DomId, HypervisorError> {
        let grant_version = if self.xc.physinfo()?.gnttab_v2 { GrantVersion::V2 } else { GrantVersion::V1 };
        Ok(self.xc.create_domain(&CreateDomain {
            max_grant_frames: i32::try_from(new.max_grant_frames).unwrap_or(-1),
            grant_version,
            ssidref: new.ssidref,
            ..CreateDomain::new(GuestKind::Pv, new.uuid, new.max_vcpus)
        })?)
    }

    fn build_pv(&self, domid: DomId, build: &PvBuild<'_>) -> Result<Built, HypervisorError> {
        let xc = &self.xc;
        xc.set_max_vcpus(domid, build.max_vcpus)?;
        xc.set_max_mem_kib(domid, build.target_kib + MAXMEM_SLACK_KIB)?;
        let store_port = xc.alloc_unbound_port(domid, DomId::DOM0)?;
        let console_port = xc.alloc_unbound_port(domid, DomId::DOM0)?;
        xc.set_memmap_limit_kib(domid, build.static_max_kib + MEMMAP_SLACK_KIB)?;
        xc.set_tsc_info(domid, TscMode::Default)?;
        xc.apply_cpuid_policy(domid, &CpuidPolicy::default())?;
        let built = builder::build_pv(
            xc,
            domid,
            &PvImage {
                kernel: build.kernel.bytes(),
                ramdisk: build.ramdisk.map(super::Image::bytes),
                cmdline: build.cmdline,
                features: None,
                memory_mib: build.target_kib / 1024,
                max_vcpus: build.max_vcpus,
                console_evtchn: console_port,
                console_domid: DomId::DOM0,
                store_evtchn: store_port,
                store_domid: DomId::DOM0,
                claim: true,
            },
        )?;
        Ok(Built {
            store: Ring { port: store_port.get(), gfn: built.store_mfn },
            console: Ring { port: console_port.get(), gfn: built.console_mfn },
        })
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

impl From<BuildError> for HypervisorError {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::OutOfMemory { .. } => Self::Memory(error.to_string()),
            BuildError::Hypercall(call) => call.into(),
            other => Self::Image(other.to_string()),
        }
    }
}
