//! Creating a domain: one hypercall whose flags depend on the kind of guest.

use super::Xenctrl;
use crate::compat;
use crate::domid::DomId;
use crate::error::{Error, Result};
use crate::sys;

/// The kind of guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GuestKind {
    /// Paravirtualised: no hardware virtualisation.
    Pv,
    /// A PV-style guest in a hardware container, without emulated devices.
    Pvh,
    /// A whole emulated machine.
    Hvm,
}

/// Whether devices can be passed through to the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Iommu {
    /// No.
    #[default]
    Off,
    /// Yes; the IOMMU shares the domain's page tables if it can.
    Shared,
    /// Yes, with page tables of its own.
    Separate,
}

/// Newest grant table layout the domain may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GrantVersion {
    /// Version 1: frames up to 16 TiB. Every guest knows it.
    #[default]
    V1,
    /// Version 2.
    V2,
}

/// What a domain is created with; everything here is fixed for its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreateDomain {
    /// A certain id, or `None` for the next free one.
    pub domid: Option<DomId>,
    /// The kind of guest.
    pub kind: GuestKind,
    /// The UUID, in text order.
    pub uuid: [u8; 16],
    /// Size of the vCPU table, at least 1; HVM and PVH take at most 128.
    pub max_vcpus: u32,
    /// Hardware-assisted paging (HVM and PVH only). Without it the guest runs on shadow page tables.
    pub hap: bool,
    /// Out-of-sync shadow page tables: faster, unless the guest is odd (HVM and PVH only).
    pub oos_shadow: bool,
    /// Nested virtualisation (needs `hap`).
    pub nested_virt: bool,
    /// Device passthrough.
    pub iommu: Iommu,
    /// Virtual performance counters.
    pub vpmu: bool,
    /// Reads of unknown MSRs give 0 instead of a fault, as Xen 4.14 and older did.
    pub msr_relaxed: bool,
    /// Highest event channel port; `u32::MAX` for no limit. xl uses 1023.
    pub max_evtchn_port: u32,
    /// Most grant table frames, or -1 for the hypervisor's default.
    pub max_grant_frames: i32,
    /// Most frames for tracking mapped grants, or -1 for the hypervisor's default.
    pub max_maptrack_frames: i32,
    /// Newest grant table version.
    pub grant_version: GrantVersion,
    /// XSM security label; 0 without XSM.
    pub ssidref: u32,
    /// CPU pool, which must exist.
    pub cpupool: u32,
}

impl CreateDomain {
    /// Ports as xl gives by default.
    pub const DEFAULT_MAX_EVTCHN_PORT: u32 = 1023;

    /// A domain with the defaults of xl: next free id, no passthrough, the hypervisor's grant limits, HAP for what can
    /// use it.
    pub const fn new(kind: GuestKind, uuid: [u8; 16], max_vcpus: u32) -> Self {
        Self {
            domid: None,
            kind,
            uuid,
            max_vcpus,
            hap: !matches!(kind, GuestKind::Pv),
            oos_shadow: true,
            nested_virt: false,
            iommu: Iommu::Off,
            vpmu: false,
            msr_relaxed: false,
            max_evtchn_port: Self::DEFAULT_MAX_EVTCHN_PORT,
            max_grant_frames: -1,
            max_maptrack_frames: -1,
            grant_version: GrantVersion::V1,
            ssidref: 0,
            cpupool: 0,
        }
    }

    /// `XEN_DOMCTL_CDF_*` flags. Those of the hardware container are left out for PV, whose creation they would make
    /// fail.
    pub fn flags(&self) -> u32 {
        let contained = self.kind != GuestKind::Pv;
        [
            (contained, sys::XEN_DOMCTL_CDF_hvm),
            (contained && self.hap, sys::XEN_DOMCTL_CDF_hap),
            (contained && !self.oos_shadow, sys::XEN_DOMCTL_CDF_oos_off),
            (contained && self.nested_virt, sys::XEN_DOMCTL_CDF_nested_virt),
            (self.iommu != Iommu::Off, sys::XEN_DOMCTL_CDF_iommu),
            (self.vpmu, sys::XEN_DOMCTL_CDF_vpmu),
        ]
        .into_iter()
        .fold(0, |flags, (set, bit)| if set { flags | bit } else { flags })
    }

    /// `XEN_X86_EMU_*` flags: the hypervisor accepts only these sets.
    pub const fn emulation_flags(&self) -> u32 {
        match self.kind {
            GuestKind::Pv => 0,
            GuestKind::Pvh => sys::XEN_X86_EMU_LAPIC,
            GuestKind::Hvm => compat::HVM_EMULATION,
        }
    }

    /// What the hypervisor would refuse with a bare EINVAL.
    fn validate(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::invalid("xc_domain_create", what));
        if self.max_vcpus == 0 {
            return refuse("a domain needs at least one vCPU");
        }
        if self.kind != GuestKind::Pv && self.max_vcpus > sys::HVM_MAX_VCPUS {
            return refuse("an HVM or PVH domain can have at most 128 vCPUs");
        }
        if self.nested_virt && !(self.hap && self.kind != GuestKind::Pv) {
            return refuse("nested virtualisation needs an HVM or PVH domain with hardware-assisted paging");
        }
        if self.max_grant_frames < -1 || self.max_maptrack_frames < -1 {
            return refuse("a frame limit is a number of frames or -1");
        }
        Ok(())
    }

    fn to_raw(&self) -> sys::xen_domctl_createdomain {
        // SAFETY: a struct of integers and byte arrays, for which zero is a value (and the default of what only
        // newer releases have).
        let mut raw: sys::xen_domctl_createdomain = unsafe { std::mem::zeroed() };
        raw.ssidref = self.ssidref;
        raw.handle = self.uuid;
        raw.flags = self.flags();
        raw.iommu_opts = if self.iommu == Iommu::Separate { sys::XEN_DOMCTL_IOMMU_no_sharept } else { 0 };
        raw.max_vcpus = self.max_vcpus;
        raw.max_evtchn_port = self.max_evtchn_port;
        raw.max_grant_frames = self.max_grant_frames;
        raw.max_maptrack_frames = self.max_maptrack_frames;
        raw.grant_opts = match self.grant_version {
            GrantVersion::V1 => 1,
            GrantVersion::V2 => 2,
        } & sys::XEN_DOMCTL_GRANT_version_mask;
        raw.cpupool_id = self.cpupool;
        raw.arch.emulation_flags = self.emulation_flags();
        raw.arch.misc_flags = if self.msr_relaxed { sys::XEN_X86_MSR_RELAXED } else { 0 };
        raw
    }
}

impl Xenctrl {
    /// Creates a domain, paused and without memory or vCPUs, and returns its id.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for contradictory wishes; [`Error::Call`]: `EEXIST` when the id is taken, `ENOMEM`,
    /// `EOPNOTSUPP` for a kind of guest the hypervisor was built without.
    pub fn create_domain(&self, wanted: &CreateDomain) -> Result<DomId> {
        wanted.validate()?;
        let mut raw = wanted.to_raw();
        // 0 is never free, so it asks for the next free id.
        let mut id = wanted.domid.map_or(0, DomId::raw);
        self.run("xc_domain_create", wanted.domid, |xch| {
            // SAFETY: both pointers are to live variables of the call's types, read and written during the call.
            unsafe { sys::xc_domain_create(xch, &raw mut id, &raw mut raw) }
        })?;
        DomId::try_from(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: [u8; 16] = *b"0123456789abcdef";

    /// What a case changes in the defaults.
    type Change = fn(&mut CreateDomain);

    /// The numbers are those of `xen/domctl.h` and `xen/arch-x86/xen.h`, written out.
    #[test]
    fn flags_by_kind() {
        const HVM: u32 = 1;
        const HAP: u32 = 2;
        const OOS_OFF: u32 = 8;
        const IOMMU: u32 = 0x20;
        const NESTED: u32 = 0x40;
        let cases: [(GuestKind, Change, u32); 9] = [
            (GuestKind::Pv, |_| (), 0),
            (GuestKind::Pv, |c| c.hap = true, 0),
            (GuestKind::Pv, |c| c.oos_shadow = false, 0),
            (GuestKind::Pv, |c| c.iommu = Iommu::Shared, IOMMU),
            (GuestKind::Pvh, |_| (), HVM | HAP),
            (GuestKind::Pvh, |c| c.hap = false, HVM),
            (GuestKind::Hvm, |_| (), HVM | HAP),
            (GuestKind::Hvm, |c| c.oos_shadow = false, HVM | HAP | OOS_OFF),
            (
                GuestKind::Hvm,
                |c| (c.nested_virt, c.iommu) = (true, Iommu::Separate),
                HVM | HAP | NESTED | IOMMU,
            ),
        ];
        for (number, (kind, change, flags)) in cases.into_iter().enumerate() {
            let mut wanted = CreateDomain::new(kind, UUID, 1);
            change(&mut wanted);
            assert_eq!(wanted.flags(), flags, "case {number}");
            let emulated = wanted.emulation_flags();
            match kind {
                GuestKind::Pv => assert_eq!(emulated, 0),
                GuestKind::Pvh => assert_eq!(emulated, 1),
                GuestKind::Hvm => assert_eq!(emulated & 0x1FF, 0x1FF),
            }
        }
    }

    #[cfg(not(xen_4_19))]
    #[test]
    fn hvm_emulates_all_but_vpci() {
        assert_eq!(CreateDomain::new(GuestKind::Hvm, UUID, 1).emulation_flags(), 0x3FF);
    }

    #[test]
    fn the_hypercalls_struct_carries_every_wish() {
        let mut wanted = CreateDomain::new(GuestKind::Pvh, UUID, 4);
        wanted.iommu = Iommu::Separate;
        wanted.grant_version = GrantVersion::V2;
        wanted.max_grant_frames = 64;
        wanted.msr_relaxed = true;
        let raw = wanted.to_raw();
        assert_eq!((raw.handle, raw.max_vcpus, raw.max_evtchn_port), (UUID, 4, 1023));
        assert_eq!((raw.iommu_opts, raw.grant_opts), (1, 2));
        assert_eq!((raw.max_grant_frames, raw.max_maptrack_frames), (64, -1));
        assert_eq!((raw.arch.emulation_flags, raw.arch.misc_flags), (1, 1));
        assert_eq!((raw.vmtrace_size, raw.cpupool_id, raw.ssidref), (0, 0, 0));
    }

    #[test]
    fn contradictions_are_refused_before_the_hypercall() {
        let xc = Xenctrl::open_dummy().unwrap();
        let cases: [(GuestKind, u32, Change); 4] = [
            (GuestKind::Pv, 0, |_| ()),
            (GuestKind::Pvh, 129, |_| ()),
            (GuestKind::Pv, 1, |c| c.nested_virt = true),
            (GuestKind::Hvm, 1, |c| c.max_grant_frames = -2),
        ];
        for (kind, vcpus, change) in cases {
            let mut wanted = CreateDomain::new(kind, UUID, vcpus);
            change(&mut wanted);
            let result = xc.create_domain(&wanted);
            assert!(matches!(result, Err(Error::InvalidArgument { .. })), "{kind:?} {vcpus}: {result:?}");
        }
        let wide = CreateDomain::new(GuestKind::Pv, UUID, 512);
        assert!(matches!(xc.create_domain(&wide), Err(Error::NoXen { .. })), "PV is not bound to 128");
    }
}
