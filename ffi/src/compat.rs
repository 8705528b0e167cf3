//! What differs between the Xen releases this crate builds against (4.17 to 4.20). Nothing else may test the
//! release.
//!
//! Most differences need nothing here: `xc_domain_getinfolist` is used because `xc_domain_getinfo` is gone from 4.18,
//! fields are assigned by name to a zeroed `xen_domctl_createdomain` because 4.19 added one, and `xc_version` is used
//! because `xc_xenver_*` came with 4.20.

use std::ffi::{c_int, c_uint};

use crate::sys;

/// Devices emulated for an HVM guest: all but virtual PCI.
#[cfg(not(xen_4_19))]
pub(crate) const HVM_EMULATION: u32 = sys::XEN_X86_EMU_ALL & !sys::XEN_X86_EMU_VPCI;

/// Devices emulated for an HVM guest: all but virtual PCI and, from 4.19 on, interrupts over event channels, which
/// that release turned off for new guests.
#[cfg(xen_4_19)]
pub(crate) const HVM_EMULATION: u32 =
    sys::XEN_X86_EMU_ALL & !(sys::XEN_X86_EMU_VPCI | sys::XEN_X86_EMU_USE_PIRQ);

/// `xc_cpuid_apply_policy` with libxl's defaults for what is not an argument here. Returns `-errno`.
///
/// The last argument (MSR settings) came with 4.17.2 under the same symbol version. Passing it to 4.17.0 or 4.17.1 is
/// harmless (x86-64 passes it on the caller's stack, unread), leaving it out with a newer library is not: so it is
/// always passed, and building against headers older than 4.17.2 fails to compile rather than at run time.
///
/// # Safety
/// `xch` is an open handle that reaches Xen.
pub(crate) unsafe fn cpuid_apply_policy(
    xch: *mut sys::xc_interface,
    domid: u32,
    restore: bool,
    featureset: Option<&[u32]>,
    [pae, itsc, nested_virt]: [bool; 3],
) -> c_int {
    let (words, count) = featureset.map_or((std::ptr::null(), 0), |f| (f.as_ptr(), f.len()));
    let Ok(count) = c_uint::try_from(count) else { return -libc::E2BIG };
    // SAFETY: the feature words outlive the call, `count` is their number, and null lists mean "no settings".
    unsafe {
        sys::xc_cpuid_apply_policy(
            xch,
            domid,
            restore,
            words,
            count,
            pae,
            itsc,
            nested_virt,
            std::ptr::null(),
            std::ptr::null(),
        )
    }
}
