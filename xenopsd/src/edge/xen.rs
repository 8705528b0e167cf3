//! The hypervisor through libxenctrl and libxenguest.

use ffi::builder::{self, BuildError, Module, PvImage, PvhAcpi, PvhImage};
use ffi::evtchn::Port;
use ffi::foreignmemory::ForeignMemory;
use ffi::migrate::{self, MigrateError, RingEnds, SaveCallbacks};
use ffi::shared::{Access, PAGE_SIZE};
use ffi::xenctrl::{
    CpuidPolicy, CreateDomain, GrantVersion, HvmParam, SchedParams, Scheduler, VcpuAffinity, Xenctrl,
};

use super::acpi::Tables;
use super::build::GRANT_FRAMES;
use super::{
    Built, CpuMap, DomId, DomainImage, DomainInfo, FeatureSet, GrantFrames, GuestKind, HvmImage, Hypervisor,
    HypervisorError, Image, KernelImage, NewDomain, Physinfo, Platform, Resources, Ring, ShimImage,
    ShutdownReason, Stream, XenVersion,
};

/// What libxl leaves above the target in the hard limit, in KiB: a guest's balloon is allowed this much slack
/// (`LIBXL_MAXMEM_CONSTANT`).
const MAXMEM_SLACK_KIB: u64 = 1024;

/// KiB of a page.
const PAGE_KIB: u64 = 4;

/// Asks the hypervisor for its default number of grant table frames.
const HYPERVISORS_DEFAULT: i32 = -1;

/// Slack of the memory map limit a PV guest is told, in KiB, as libxl's default for PV.
const MEMMAP_SLACK_KIB: u64 = 0;

/// Where a feature set has a bit: its word, and its place in that (`xen/include/public/arch-x86/cpufeatureset.h`).
type Feature = (usize, u32);
const PAE: Feature = (0, 6);
const VMX: Feature = (1, 5);
const NX: Feature = (2, 20);
const SVM: Feature = (3, 2);

/// Pages of 4 KiB in a MiB.
const PAGES_PER_MIB: u64 = 256;

/// How much memory the running hypervisor has free, in MiB.
///
/// # Errors
/// When there is none, or not of the release of the libraries at hand.
pub fn free_memory_mib() -> Result<u64, HypervisorError> {
    let info = XenHypervisor::open()?.host()?;
    // What is being scrubbed is free in a moment.
    Ok(info.free_pages.saturating_add(info.scrub_pages) / PAGES_PER_MIB)
}

/// Takes the features that are not wanted out of a set. libxenguest looks at its own switches for them only when it is given
/// no set.
fn hide(words: &mut [u32], features: &[(bool, Feature)]) {
    for (wanted, (word, bit)) in features {
        if let (false, Some(word)) = (wanted, words.get_mut(*word)) {
            *word &= !(1 << bit);
        }
    }
}

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

    /// What a domain gets before its memory, whether it is built or restored: the pages that its page tables take, and its
    /// ends of the two rings. How much memory it may have can have changed since it was equipped.
    fn make_room(
        &self,
        domid: DomId,
        kind: GuestKind,
        resources: &Resources,
    ) -> Result<RingPorts, HypervisorError> {
        self.xc.set_max_mem_kib(domid, limit_kib(resources))?;
        if kind != GuestKind::Pv {
            self.xc.set_paging_mempool_bytes(domid, resources.paging_kib * 1024)?;
        }
        let store = self.xc.alloc_unbound_port(domid, DomId::DOM0)?;
        let console = self.xc.alloc_unbound_port(domid, DomId::DOM0)?;
        Ok(RingPorts { store, console })
    }

    /// Before the domain first runs; a restored one has the policy it was saved with.
    fn set_cpu_policy(
        &self,
        domid: DomId,
        kind: GuestKind,
        platform: &Platform,
    ) -> Result<(), HypervisorError> {
        let mut words = platform.featureset.clone();
        if !words.is_empty() {
            hide(&mut words, &[(platform.nx, NX), (platform.pae, PAE)]);
        } else if !platform.nx {
            let of = if kind == GuestKind::Pv { FeatureSet::Pv } else { FeatureSet::Hvm };
            words = self.xc.get_cpu_featureset(of)?;
            let nested = platform.nested_virt;
            hide(&mut words, &[(false, NX), (platform.pae, PAE), (nested, VMX), (nested, SVM)]);
        }
        Ok(self.xc.apply_cpuid_policy(
            domid,
            &CpuidPolicy {
                featureset: (!words.is_empty()).then_some(&words),
                pae: platform.pae,
                nested_virt: platform.nested_virt,
                ..CpuidPolicy::default()
            },
        )?)
    }

    fn build_pv(
        &self,
        domid: DomId,
        resources: &Resources,
        image: &KernelImage<'_>,
        ports: RingPorts,
    ) -> Result<builder::Built, BuildError> {
        let image = PvImage {
            kernel: image.kernel.as_kernel(),
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

    /// A kernel, or the shim and its guest's kernel.
    fn build_pvh(
        &self,
        domid: DomId,
        resources: &Resources,
        image: &KernelImage<'_>,
        shim: Option<&ShimImage<'_>>,
        ports: RingPorts,
    ) -> Result<builder::Built, BuildError> {
        let vcpus = u8::try_from(resources.max_vcpus).map_err(|_| BuildError::Invalid {
            field: "vcpus",
            what: format!("{} are more than the ACPI tables have room for", resources.max_vcpus),
        })?;
        let tables = Tables::new(vcpus);
        let ramdisk = image.ramdisk.map(|ramdisk| Module { bytes: ramdisk.bytes(), cmdline: None });
        let kernel = shim.map(|_| Module { bytes: image.kernel.bytes(), cmdline: Some(image.cmdline) });
        let modules: Vec<_> = kernel.into_iter().chain(ramdisk).collect();
        let image = PvhImage {
            kernel: shim.map_or(image.kernel, |shim| shim.shim).as_kernel(),
            modules: &modules,
            cmdline: shim.map_or(image.cmdline, |shim| shim.cmdline),
            acpi: PvhAcpi { rsdp: &tables.rsdp, tables: &tables.bytes },
            memory_mib: (resources.target_kib + resources.shim_kib) / 1024,
            max_vcpus: resources.max_vcpus,
            console_evtchn: ports.console,
            console_domid: DomId::DOM0,
            store_evtchn: ports.store,
            store_domid: DomId::DOM0,
            claim: true,
        };
        builder::build_pvh(&self.xc, domid, &image)
    }

    fn build_hvm(
        &self,
        domid: DomId,
        resources: &Resources,
        image: &HvmImage<'_>,
        ports: RingPorts,
    ) -> Result<builder::Built, BuildError> {
        let platform = &resources.platform;
        if platform.viridian != 0 {
            self.xc.hvm_param_set(domid, HvmParam::VIRIDIAN, platform.viridian)?;
        }
        let image = builder::HvmImage {
            loader: image.loader.bytes(),
            firmware: image.firmware.bytes(),
            memory_mib: resources.target_kib.saturating_sub(resources.video_kib) / 1024,
            hole_size: image.hole_size,
            max_vcpus: resources.max_vcpus,
            online_vcpus: resources.online_vcpus,
            apic: platform.apic,
            console_evtchn: ports.console,
            console_domid: DomId::DOM0,
            store_evtchn: ports.store,
            store_domid: DomId::DOM0,
            claim: true,
        };
        builder::build_hvm(&self.xc, domid, &image)
    }
}

/// What hvmloader has room for: two numbers of 64 bits.
const GENERATION_ID_BYTES: usize = 16;

impl XenHypervisor {
    /// Replaces what hvmloader told the guest when it was started. The place is as the guest says, and in its own memory; a
    /// guest whose firmware knows of none has none.
    fn tell_generation_id(&self, domid: DomId, id: [u64; 2]) -> Result<(), HypervisorError> {
        let failed = |what: String| HypervisorError::Call(format!("domain {domid}: generation id: {what}"));
        let address = self.xc.hvm_param_get(domid, HvmParam::VM_GENERATION_ID_ADDR)?;
        if address == 0 {
            return Ok(());
        }
        let page = u64::try_from(PAGE_SIZE).unwrap_or(u64::MAX);
        let offset = usize::try_from(address % page).unwrap_or(usize::MAX);
        let mut bytes = [0; GENERATION_ID_BYTES];
        let (first, second) = bytes.split_at_mut(GENERATION_ID_BYTES / 2);
        first.copy_from_slice(&id[0].to_le_bytes());
        second.copy_from_slice(&id[1].to_le_bytes());
        let mapped = ForeignMemory::open()?.map(domid, &[address / page], Access::ReadWrite)?;
        // Beyond the page's end is an error of the mapping's.
        mapped.memory().write(offset, &bytes).map_err(|error| failed(error.to_string()))
    }
}

/// The guest was suspended before the save began.
struct Suspended;

impl SaveCallbacks for Suspended {
    fn suspend(&mut self) -> bool {
        true
    }
}

/// Most memory that the hypervisor lets it have, in KiB.
fn limit_kib(resources: &Resources) -> u64 {
    resources.target_kib + resources.shim_kib + MAXMEM_SLACK_KIB
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
        let mut wanted = CreateDomain {
            max_grant_frames: i32::try_from(new.max_grant_frames.get()).unwrap_or(HYPERVISORS_DEFAULT),
            grant_version,
            hap: new.hap,
            nested_virt: new.nested_virt,
            vpmu: new.vpmu,
            msr_relaxed: new.msr_relaxed,
            ssidref: new.ssidref,
            ..CreateDomain::new(new.kind, new.uuid, new.max_vcpus)
        };
        match (self.xc.create_domain(&wanted), new.max_grant_frames) {
            (Err(error), GrantFrames::Estimate(frames))
                if frames > GRANT_FRAMES && error.is_errno(nix::libc::EINVAL) =>
            {
                wanted.max_grant_frames = HYPERVISORS_DEFAULT;
                let domid = self.xc.create_domain(&wanted)?;
                tracing::warn!(
                    %domid,
                    "{frames} grant table frames for its devices are more than this hypervisor allows: it has the \
                     default; `gnttab_max_frames` on Xen's command line raises that"
                );
                Ok(domid)
            }
            (made, _) => Ok(made?),
        }
    }

    fn equip(&self, domid: DomId, kind: GuestKind, resources: &Resources) -> Result<(), HypervisorError> {
        let (xc, platform) = (&self.xc, &resources.platform);
        xc.set_max_vcpus(domid, resources.max_vcpus)?;
        xc.set_max_mem_kib(domid, limit_kib(resources))?;
        match kind {
            GuestKind::Pv => xc.set_memmap_limit_kib(domid, resources.static_max_kib + MEMMAP_SLACK_KIB)?,
            GuestKind::Pvh | GuestKind::Hvm => {
                xc.hvm_param_set(domid, HvmParam::TIMER_MODE, platform.timer_mode.into())?;
            }
        }
        if kind == GuestKind::Hvm {
            xc.hvm_param_set(domid, HvmParam::HPET_ENABLED, platform.hpet.into())?;
            xc.hvm_param_set(domid, HvmParam::VPT_ALIGN, 1)?;
        }
        xc.set_tsc_info(domid, platform.tsc)?;
        if platform.time_offset != 0 {
            xc.set_time_offset(domid, platform.time_offset)?;
        }
        Ok(())
    }

    fn build(
        &self,
        domid: DomId,
        resources: &Resources,
        image: &DomainImage<'_>,
    ) -> Result<Built, HypervisorError> {
        let ports = self.make_room(domid, image.kind(), resources)?;
        self.set_cpu_policy(domid, image.kind(), &resources.platform)?;
        let built = match image {
            DomainImage::Pv(image) => self.build_pv(domid, resources, image, ports)?,
            DomainImage::Pvh(image) => self.build_pvh(domid, resources, image, None, ports)?,
            DomainImage::PvInPvh(shim, image) => {
                self.build_pvh(domid, resources, image, Some(shim), ports)?
            }
            DomainImage::Hvm(image) => self.build_hvm(domid, resources, image, ports)?,
        };
        Ok(ports.with(built))
    }

    /// As libxl's test for PV drivers in a container.
    fn hears(&self, domid: DomId) -> Result<bool, HypervisorError> {
        let value = |param| self.xc.hvm_param_get(domid, param);
        Ok(value(HvmParam::CALLBACK_IRQ)? != 0 && value(HvmParam::ACPI_S_STATE)? == 0)
    }

    fn suspend(&self, domid: DomId) -> Result<(), HypervisorError> {
        Ok(self.xc.shutdown(domid, ShutdownReason::Suspend)?)
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
        let ports = self.make_room(domid, kind, resources)?;
        let ends = RingEnds {
            store_evtchn: ports.store,
            store_domid: DomId::DOM0,
            console_evtchn: ports.console,
            console_domid: DomId::DOM0,
        };
        let built = migrate::restore(&self.xc, domid, stream, &ends)?;
        if let (GuestKind::Hvm, Some(id)) = (kind, resources.platform.generation_id) {
            self.tell_generation_id(domid, id)?;
        }
        Ok(ports.with(built))
    }

    fn resume(&self, domid: DomId) -> Result<(), HypervisorError> {
        Ok(self.xc.resume(domid, true)?)
    }

    fn set_memory_target(&self, domid: DomId, target_kib: u64) -> Result<(), HypervisorError> {
        self.xc.set_max_mem_kib(domid, target_kib + MAXMEM_SLACK_KIB)?;
        // Without the slack a guest that is told of the same target would be short of pages (XSA-153).
        if self.xc.domain_info(domid)?.is_some_and(|domain| domain.hvm) {
            self.xc.set_pod_target(domid, (target_kib + MAXMEM_SLACK_KIB) / PAGE_KIB)?;
        }
        Ok(())
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

    fn set_affinity(&self, domid: DomId, vcpu: u32, cpus: &CpuMap) -> Result<(), HypervisorError> {
        let wanted = VcpuAffinity { hard: Some(cpus.clone()), soft: None };
        Ok(self.xc.vcpu_set_affinity(domid, vcpu, &wanted).map(drop)?)
    }

    fn paging_kib(&self, domid: DomId) -> Result<u64, HypervisorError> {
        Ok(self.xc.paging_mempool_bytes(domid)? / 1024)
    }

    fn set_paging_kib(&self, domid: DomId, kib: u64) -> Result<(), HypervisorError> {
        Ok(self.xc.set_paging_mempool_bytes(domid, kib * 1024)?)
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
