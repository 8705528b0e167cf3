//! How much memory and how many vcpus a VM gets, and what that costs the host.
//!
//! ```text
//!   host's free memory >= target + overhead of the kind + paging pool, in whole superpages
//!   dynamic_min <= target <= dynamic_max <= static_max
//! ```
//!
//! The figures are libxl's, so that a host shared with it is judged alike.

use crate::api::{BuilderInfo, Error, Int, Vm};
use crate::edge::{GuestKind, Physinfo, Platform, Resources};

/// Most vcpus of a VM: what an HVM domain's table can hold (`HVM_MAX_VCPUS`). PV could have more, but above 32 it has
/// no security support (Xen's SUPPORT.md).
pub(super) const MAX_VCPUS: Int = 128;

/// Least memory a domain is built with, in KiB. Nothing boots in less.
const MIN_MEMORY_KIB: u64 = 4 * 1024;

/// Most memory of a VM, in KiB: 16 TiB, what grant table version 1 can address.
const MAX_MEMORY_KIB: u64 = 16 << 30;

/// What a PV domain costs the host beside its own memory, in KiB: libxl's figure for the hypervisor's structures.
const PV_OVERHEAD_KIB: u64 = 1024;

/// As [`PV_OVERHEAD_KIB`], for a domain in a hardware container.
const CONTAINER_OVERHEAD_KIB: u64 = 2048;

/// KiB of a page.
const PAGE_KIB: u64 = 4;

/// Pages of the paging pool for each vcpu (libxl's formula; for PV it is only reckoned with, in the free memory).
const PAGING_PAGES_PER_VCPU: u64 = 256;

/// Pages of the paging pool for each MiB of a guest in a hardware container with hardware-assisted paging.
const PAGING_PAGES_PER_MIB: u64 = 1;

/// What the PV shim takes, in MiB: a fixed part and one for every so many MiB of the guest (xapi's figures).
const SHIM_MIB: u64 = 23;
const SHIM_SHARE: u64 = 90;

/// Free memory is wanted in units of this, in KiB: the size of a superpage.
const MEMORY_UNIT_KIB: u64 = 2048;

/// A VM's memory and vcpus, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) kind: GuestKind,
    pub(super) static_max_kib: u64,
    pub(super) dynamic_max_kib: u64,
    pub(super) dynamic_min_kib: u64,
    /// What the PV shim takes beside the guest's; 0 without one.
    pub(super) shim_kib: u64,
    /// What its video card has of its memory; HVM only.
    pub(super) video_kib: u64,
    pub(super) vcpu_max: u32,
    pub(super) vcpus: u32,
    /// How much larger its paging pool is than it need be, in thousandths; at least 1000.
    pub(super) paging_factor: u64,
}

/// Largest shadow multiplier: a pool of a tenth of the guest's memory, and more than any guest needs.
pub const MAX_MULTIPLIER: f64 = 100.0;

/// The paging pool of a guest in a hardware container with `vcpu_max` vcpus and `memory_mib` MiB that asks for no larger one,
/// in KiB.
pub fn usual_paging_kib(vcpu_max: u32, memory_mib: u64) -> u64 {
    PAGE_KIB * paging_pages(vcpu_max, PAGING_PAGES_PER_MIB * memory_mib)
}

fn paging_pages(vcpu_max: u32, for_memory: u64) -> u64 {
    PAGING_PAGES_PER_VCPU * u64::from(vcpu_max) + for_memory
}

impl Wanted {
    /// Checks what the VM's record asks for.
    pub(super) fn of(vm: &Vm) -> Result<Self, Error> {
        let kib = |bytes: i64| u64::try_from(bytes).unwrap_or(0) / 1024;
        let static_max_kib = kib(vm.memory_static_max);
        let shimmed = matches!(vm.ty, BuilderInfo::PvInPvh(_));
        let video_kib = match &vm.ty {
            BuilderInfo::Hvm(hvm) => u64::try_from(hvm.video_mib).unwrap_or(u64::MAX).saturating_mul(1024),
            _ => 0,
        };
        let wanted = Self {
            kind: super::guest_kind(vm),
            static_max_kib,
            dynamic_max_kib: kib(vm.memory_dynamic_max),
            dynamic_min_kib: kib(vm.memory_dynamic_min),
            shim_kib: if shimmed { (SHIM_MIB + static_max_kib / 1024 / SHIM_SHARE) * 1024 } else { 0 },
            video_kib,
            vcpu_max: u32::try_from(vm.vcpu_max).unwrap_or(0),
            vcpus: u32::try_from(vm.vcpus).unwrap_or(0),
            paging_factor: paging_factor(vm)?,
        };
        if !(1..=MAX_VCPUS).contains(&vm.vcpu_max) {
            return Err(Error::InvalidVcpus(MAX_VCPUS));
        }
        if !(1..=vm.vcpu_max).contains(&vm.vcpus) {
            return Err(Error::InvalidVcpus(vm.vcpu_max));
        }
        let ordered = MIN_MEMORY_KIB <= wanted.dynamic_min_kib
            && wanted.dynamic_min_kib <= wanted.dynamic_max_kib
            && wanted.dynamic_max_kib <= wanted.static_max_kib
            && wanted.static_max_kib <= MAX_MEMORY_KIB;
        if !ordered {
            return Err(Error::internal(format!(
                "VM {}: memory must satisfy {MIN_MEMORY_KIB} KiB <= dynamic_min ({}) <= dynamic_max ({}) <= static_max ({}) <= {MAX_MEMORY_KIB} KiB",
                vm.id, wanted.dynamic_min_kib, wanted.dynamic_max_kib, wanted.static_max_kib
            )));
        }
        if wanted.dynamic_min_kib < MIN_MEMORY_KIB.saturating_add(video_kib) {
            return Err(Error::internal(format!(
                "VM {}: {} KiB of memory hold no guest beside the {video_kib} KiB of its video card",
                vm.id, wanted.dynamic_min_kib
            )));
        }
        Ok(wanted)
    }

    /// What the domain is given when it has `target_kib`.
    pub(super) fn resources(&self, target_kib: u64, platform: Platform) -> Resources {
        Resources {
            max_vcpus: self.vcpu_max,
            online_vcpus: self.vcpus,
            target_kib,
            shim_kib: self.shim_kib,
            video_kib: self.video_kib,
            static_max_kib: self.static_max_kib,
            platform,
            paging_kib: if self.kind == GuestKind::Pv { 0 } else { self.paging_kib() },
        }
    }

    /// What having `target_kib` takes from the host's free memory.
    pub(super) fn needed_kib(&self, target_kib: u64) -> u64 {
        (target_kib + self.overhead_kib()).next_multiple_of(MEMORY_UNIT_KIB)
    }

    /// As much as the host has free, within the VM's dynamic range.
    pub(super) fn target_kib(&self, host: &Physinfo) -> Result<u64, Error> {
        let room_kib = free_kib(host).saturating_sub(self.overhead_kib() + MEMORY_UNIT_KIB);
        if room_kib < self.dynamic_min_kib {
            return Err(Error::NotEnoughMemory(bytes(self.needed_kib(self.dynamic_min_kib))));
        }
        // Whole MiB: what libxenguest builds with.
        Ok(self.dynamic_max_kib.min(room_kib).max(self.dynamic_min_kib) / 1024 * 1024)
    }

    /// As much as the host has free beside what the running domain has, within the VM's dynamic range.
    ///
    /// # Errors
    /// `Not_enough_memory`, with what would have to be free.
    pub(super) fn new_target_kib(&self, has_kib: u64, host: &Physinfo) -> Result<u64, Error> {
        let most = has_kib + free_kib(host).saturating_sub(MEMORY_UNIT_KIB);
        if most < self.dynamic_min_kib {
            return Err(Error::NotEnoughMemory(bytes(self.dynamic_min_kib - has_kib + MEMORY_UNIT_KIB)));
        }
        Ok(self.dynamic_max_kib.min(most).max(self.dynamic_min_kib) / 1024 * 1024)
    }

    /// Checks that the host has room for the domain with `target_kib`.
    ///
    /// # Errors
    /// `Not_enough_memory`, with what would be needed.
    pub(super) fn check_room(&self, target_kib: u64, host: &Physinfo) -> Result<(), Error> {
        let needed = self.needed_kib(target_kib);
        if needed <= free_kib(host) { Ok(()) } else { Err(Error::NotEnoughMemory(bytes(needed))) }
    }

    fn overhead_kib(&self) -> u64 {
        let own = if self.kind == GuestKind::Pv { PV_OVERHEAD_KIB } else { CONTAINER_OVERHEAD_KIB };
        own + self.shim_kib + self.paging_kib()
    }

    /// Its paging pool, in whole pages.
    pub(super) fn paging_kib(&self) -> u64 {
        let per_mib = if self.kind == GuestKind::Pv { 0 } else { PAGING_PAGES_PER_MIB };
        let pages = paging_pages(self.vcpu_max, per_mib * (self.static_max_kib / 1024));
        PAGE_KIB * (pages * self.paging_factor).div_ceil(1000)
    }
}

/// An HVM guest's shadow multiplier in thousandths; 1000 for others.
fn paging_factor(vm: &Vm) -> Result<u64, Error> {
    let BuilderInfo::Hvm(hvm) = &vm.ty else { return Ok(1000) };
    let multiplier = hvm.shadow_multiplier;
    if !(1.0..=MAX_MULTIPLIER).contains(&multiplier) {
        return Err(Error::internal(format!(
            "VM {}: shadow multiplier {multiplier} is not between 1 and {MAX_MULTIPLIER}",
            vm.id
        )));
    }
    // The standard library's one checked way from floating point to whole thousandths.
    let thousandths = std::time::Duration::from_secs_f64(multiplier).as_millis();
    u64::try_from(thousandths).map_err(|e| Error::internal(e.to_string()))
}

/// Checks that the host has room for `more_kib`.
///
/// # Errors
/// `Not_enough_memory`, with that.
pub(super) fn check_more(more_kib: u64, host: &Physinfo) -> Result<(), Error> {
    if more_kib <= free_kib(host) { Ok(()) } else { Err(Error::NotEnoughMemory(bytes(more_kib))) }
}

/// Whether a VM's memory and vcpus are what a VM can have.
///
/// # Errors
/// `Invalid_vcpus`, or `Internal_error` that says what is wrong.
pub fn check(vm: &Vm) -> Result<(), Error> {
    Wanted::of(vm).map(drop)
}

/// Memory that no domain has and none has claimed.
fn free_kib(host: &Physinfo) -> u64 {
    (host.free_pages + host.scrub_pages).saturating_sub(host.outstanding_pages) * PAGE_KIB
}

/// For the contract, which counts memory in bytes.
pub(super) fn bytes(kib: u64) -> i64 {
    i64::try_from(kib.saturating_mul(1024)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_vm;

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    fn refused(change: impl Fn(&mut Vm)) -> Error {
        let mut vm = test_vm(ID, "demo");
        change(&mut vm);
        Wanted::of(&vm).unwrap_err()
    }

    #[test]
    fn vcpus_are_bounded_by_the_table_and_the_table_by_the_host() {
        assert_eq!(refused(|vm| vm.vcpus = 0), Error::InvalidVcpus(1));
        assert_eq!(refused(|vm| vm.vcpus = 2), Error::InvalidVcpus(1));
        assert_eq!(refused(|vm| vm.vcpu_max = 0), Error::InvalidVcpus(MAX_VCPUS));
        assert_eq!(refused(|vm| vm.vcpu_max = MAX_VCPUS + 1), Error::InvalidVcpus(MAX_VCPUS));
    }

    #[test]
    fn memory_must_be_ordered_and_positive() {
        for change in [
            |vm: &mut Vm| vm.memory_dynamic_min = 0,
            |vm: &mut Vm| vm.memory_dynamic_min = -1,
            |vm: &mut Vm| vm.memory_dynamic_max = vm.memory_dynamic_min - 1,
            |vm: &mut Vm| vm.memory_static_max = vm.memory_dynamic_max - 1024,
            |vm: &mut Vm| vm.memory_static_max = i64::MAX,
        ] {
            assert!(matches!(refused(change), Error::InternalError(_)));
        }
    }

    #[test]
    fn the_target_is_what_fits_within_the_range() {
        let wanted = Wanted {
            kind: GuestKind::Pv,
            static_max_kib: 1 << 20,
            dynamic_max_kib: 1 << 20,
            dynamic_min_kib: 128 << 10,
            shim_kib: 0,
            video_kib: 0,
            vcpu_max: 1,
            vcpus: 1,
            paging_factor: 1000,
        };
        let host = |free_mib: u64| Physinfo { free_pages: free_mib * 256, ..Physinfo::default() };
        assert_eq!(wanted.target_kib(&host(4096)).unwrap(), 1 << 20);
        assert_eq!(wanted.target_kib(&host(516)).unwrap(), 512 << 10);
        assert!(matches!(wanted.target_kib(&host(128)), Err(Error::NotEnoughMemory(_))));
    }

    /// 512 MiB and two vcpus: libxl's `libxl__get_required_paging_memory` gives 4 * (512 + 512) KiB.
    #[test]
    fn a_hardware_container_has_a_paging_pool() {
        let wanted = |kind| Wanted {
            kind,
            static_max_kib: 512 << 10,
            dynamic_max_kib: 512 << 10,
            dynamic_min_kib: 512 << 10,
            shim_kib: 0,
            video_kib: 0,
            vcpu_max: 2,
            vcpus: 2,
            paging_factor: 1000,
        };
        assert_eq!(wanted(GuestKind::Pv).resources(1024, Platform::default()).paging_kib, 0);
        assert_eq!(wanted(GuestKind::Pvh).resources(1024, Platform::default()).paging_kib, 4096);
        assert_eq!(wanted(GuestKind::Pv).needed_kib(512 << 10), (512 << 10) + 4096);
        assert_eq!(wanted(GuestKind::Pvh).needed_kib(512 << 10), (512 << 10) + 6144);
    }

    #[test]
    fn a_shim_needs_memory_of_its_own() {
        let mut vm = test_vm(ID, "demo");
        let BuilderInfo::Pv(pv) = vm.ty.clone() else { unreachable!() };
        let pvh = Wanted::of(&Vm { ty: BuilderInfo::Pvh(pv.clone()), ..vm.clone() }).unwrap();
        vm.ty = BuilderInfo::PvInPvh(pv);
        let shimmed = Wanted::of(&vm).unwrap();
        // 23 MiB and a ninetieth of 256 MiB.
        assert_eq!((pvh.shim_kib, shimmed.shim_kib), (0, 25 << 10));
        assert_eq!(shimmed.needed_kib(256 << 10), pvh.needed_kib(256 << 10) + (26 << 10));
    }

    #[test]
    fn a_video_card_has_its_memory_from_the_guests() {
        let hvm = |video_mib| Vm {
            ty: BuilderInfo::Hvm(crate::api::HvmInfo { video_mib, ..crate::api::HvmInfo::default() }),
            ..test_vm(ID, "demo")
        };
        let wanted = Wanted::of(&hvm(16)).unwrap();
        assert_eq!(wanted.resources(256 << 10, Platform::default()).video_kib, 16 << 10);
        for bad in [256, 253, -1] {
            assert!(matches!(Wanted::of(&hvm(bad)), Err(Error::InternalError(_))), "{bad}");
        }
    }

    #[test]
    fn a_shadow_multiplier_is_of_an_hvm_guest_s_paging_pool() {
        let hvm = |shadow_multiplier| Vm {
            ty: BuilderInfo::Hvm(crate::api::HvmInfo { shadow_multiplier, ..crate::api::HvmInfo::default() }),
            ..test_vm(ID, "demo")
        };
        let paging = |multiplier| Wanted::of(&hvm(multiplier)).unwrap().paging_kib();
        // One vcpu and 256 MiB.
        assert_eq!([1.0, 1.5, 4.0].map(paging), [2048, 3072, 8192]);
        assert_eq!(paging(1.0001), 2048, "thousandths count");
        for bad in [0.0, 0.99, -1.0, 101.0, f64::NAN, f64::INFINITY] {
            assert!(matches!(Wanted::of(&hvm(bad)), Err(Error::InternalError(_))), "{bad}");
        }
    }
}
