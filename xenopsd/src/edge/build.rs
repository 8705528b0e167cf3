//! What a domain is made from and what comes of it.

pub use ffi::xenctrl::TscMode;

use super::{GuestKind, Image};

/// Grant table frames that the hypervisor gives by itself (`gnttab_max_frames`).
pub(super) const GRANT_FRAMES: u32 = 64;

/// What a new domain is, as far as the hypervisor fixes it at creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDomain {
    /// How it is virtualised.
    pub kind: GuestKind,
    /// The VM's UUID, kept by the hypervisor as the domain's handle.
    pub uuid: [u8; 16],
    /// Size of the vcpu table.
    pub max_vcpus: u32,
    /// Hardware-assisted paging, rather than shadow page tables. Not for PV.
    pub hap: bool,
    /// It may run a hypervisor itself. Needs `hap`.
    pub nested_virt: bool,
    /// It has performance counters.
    pub vpmu: bool,
    /// Unknown model-specific registers read as 0 instead of faulting.
    pub msr_relaxed: bool,
    /// Grant table frames the guest may grow to.
    pub max_grant_frames: GrantFrames,
    /// Security label; 0 lets the hypervisor choose.
    pub ssidref: u32,
}

/// A number of grant table frames, and what becomes of one that the hypervisor refuses: Xen up to 4.17 refuses more than
/// its own `gnttab_max_frames`, which is 64 unless dom0's administrator has raised it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GrantFrames {
    /// Somebody asked for it: refused is refused.
    Wish(u32),
    /// Enough for every queue of every device at its largest, which guests rarely use: refused, it becomes the
    /// hypervisor's default.
    Estimate(u32),
}

impl GrantFrames {
    /// The number.
    pub const fn get(self) -> u32 {
        match self {
            Self::Wish(frames) | Self::Estimate(frames) => frames,
        }
    }
}

impl NewDomain {
    /// One with nothing special.
    pub const fn new(kind: GuestKind, uuid: [u8; 16], max_vcpus: u32) -> Self {
        Self {
            kind,
            uuid,
            max_vcpus,
            hap: !matches!(kind, GuestKind::Pv),
            nested_virt: false,
            vpmu: false,
            msr_relaxed: false,
            max_grant_frames: GrantFrames::Estimate(GRANT_FRAMES),
            ssidref: 0,
        }
    }
}

/// What a domain is given before its memory is filled, by a build or by a restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resources {
    /// As at creation.
    pub max_vcpus: u32,
    /// Vcpus that are there when it starts, at least 1.
    pub online_vcpus: u32,
    /// Memory it has now, in KiB, that of its video card included.
    pub target_kib: u64,
    /// Memory that the PV shim keeps for itself, beside that; 0 when there is none.
    pub shim_kib: u64,
    /// Memory of its video card, which the device model takes, in KiB. HVM only.
    pub video_kib: u64,
    /// What the guest may balloon up to, in KiB.
    pub static_max_kib: u64,
    /// Memory for the page tables the hypervisor keeps for it, in KiB; 0 for PV, which has none.
    pub paging_kib: u64,
    /// Processors and clocks.
    pub platform: Platform,
}

/// What the guest's processors and clocks are like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// CPU features to level to, in words; empty for what the hypervisor gives by itself.
    pub featureset: Vec<u32>,
    /// Pages can be marked as not executable.
    pub nx: bool,
    /// Physical address extension, without which there is no 64-bit mode. HVM only.
    pub pae: bool,
    /// As at creation.
    pub nested_virt: bool,
    /// What tells a guest that goes on from an image whether it is the only one: the two halves as they are in its memory.
    /// HVM only.
    pub generation_id: Option<[u64; 2]>,
    /// The time stamp counter.
    pub tsc: TscMode,
    /// What happens to timer ticks that a vcpu has missed (`HVMPTM_*`). Not for PV.
    pub timer_mode: u8,
    /// A local APIC. HVM only.
    pub apic: bool,
    /// A high-precision event timer. HVM only.
    pub hpet: bool,
    /// Enlightenments for Windows (`HVMPV_*`); 0 none. HVM only.
    pub viridian: u64,
    /// Seconds that the guest's clock is ahead of UTC. HVM only.
    pub time_offset: i32,
}

/// `HVMPTM_no_delay_for_missed_ticks`: libxl's default, which every guest with a clock of its own wants.
pub const NO_DELAY_FOR_MISSED_TICKS: u8 = 1;

impl Default for Platform {
    fn default() -> Self {
        Self {
            featureset: Vec::new(),
            nx: true,
            pae: true,
            nested_virt: false,
            generation_id: None,
            tsc: TscMode::Default,
            timer_mode: NO_DELAY_FOR_MISSED_TICKS,
            apic: true,
            hpet: true,
            viridian: 0,
            time_offset: 0,
        }
    }
}

/// A kernel with what belongs to it.
#[derive(Debug, Clone, Copy)]
pub struct KernelImage<'a> {
    /// ELF or bzImage.
    pub kernel: &'a Image,
    /// Initial ramdisk.
    pub ramdisk: Option<&'a Image>,
    /// Kernel command line.
    pub cmdline: &'a str,
}

/// Xen's own PV shim: a hypervisor that is a PVH guest and runs one PV guest.
#[derive(Debug, Clone, Copy)]
pub struct ShimImage<'a> {
    /// The shim.
    pub shim: &'a Image,
    /// Its command line.
    pub cmdline: &'a str,
}

/// An emulated PC: Xen's loader starts the firmware, which finds the guest's own boot loader.
#[derive(Debug, Clone, Copy)]
pub struct HvmImage<'a> {
    /// hvmloader.
    pub loader: &'a Image,
    /// SeaBIOS or OVMF.
    pub firmware: &'a Image,
    /// Room for PCI devices below 4 GiB, in bytes, whole MiB.
    pub hole_size: u64,
}

/// What a domain is built from. The variant is the kind it was created as.
#[derive(Debug, Clone, Copy)]
pub enum DomainImage<'a> {
    /// Entered at the kernel's PV entry point.
    Pv(KernelImage<'a>),
    /// Entered at the kernel's PVH entry point.
    Pvh(KernelImage<'a>),
    /// A PV kernel started by the shim, in a PVH domain.
    PvInPvh(ShimImage<'a>, KernelImage<'a>),
    /// hvmloader and a firmware.
    Hvm(HvmImage<'a>),
}

impl DomainImage<'_> {
    /// The kind of domain it makes.
    pub const fn kind(&self) -> GuestKind {
        match self {
            Self::Pv(_) => GuestKind::Pv,
            Self::Pvh(_) | Self::PvInPvh(..) => GuestKind::Pvh,
            Self::Hvm(_) => GuestKind::Hvm,
        }
    }
}

/// One of the two rings a domain is born with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ring {
    /// The guest's event channel port.
    pub port: u32,
    /// The shared page: a machine frame for PV, a guest frame for others.
    pub gfn: u64,
}

/// What a build leaves for the store to announce.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// The xenstore ring.
    pub store: Ring,
    /// The console ring.
    pub console: Ring,
}
