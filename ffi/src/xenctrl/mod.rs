//! libxenctrl: hypercalls about the host and about domains.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | the handle: open, close, who may use it, how a call's outcome becomes an [`Error`] |
//! | `host.rs` | version, physical resources, CPU features, the hypervisor's console |
//! | `info.rs` | what is known of domains and their vCPUs |
//! | `create.rs` | creating a domain: the type-dependent flags as a pure function |
//! | `domain.rs` | life cycle, memory limits, HVM parameters, CPU policy, event channels |
//! | `sched.rs` | affinity and scheduler parameters |

mod create;
mod domain;
mod host;
mod info;
mod sched;

use std::cell::Cell;
use std::ffi::c_int;
use std::marker::PhantomData;

pub use create::{CreateDomain, GrantVersion, GuestKind, Iommu};
pub use domain::{CpuidPolicy, HvmParam, Pod, Trigger, TscMode};
pub use host::{CpuTopology, FeatureSet, Physinfo, TopologyCounts, XenVersion, linked_version};
pub use info::{DomainInfo, ShutdownReason, VcpuInfo};
pub use sched::{CpuMap, SchedParams, Scheduler, VcpuAffinity};

use crate::domid::DomId;
use crate::error::{Error, Result};
use crate::handle::Handle;
use crate::log::Logger;
use crate::sys;

/// An open libxenctrl handle. Closed on drop.
///
/// It may move to another thread but not be used by two at once: the library keeps its last error and its hypercall
/// buffers per handle. It does not survive a fork: see [`Error::Forked`].
#[derive(Debug)]
pub struct Xenctrl {
    handle: Handle<sys::xc_interface>,
    dummy: bool,
    not_sync: PhantomData<Cell<()>>,
}

impl Xenctrl {
    /// Opens `/dev/xen/privcmd` and, when present, `/dev/xen/hypercall`.
    ///
    /// # Errors
    /// [`Error::NoXen`] when there is no hypervisor or no permission.
    pub fn open() -> Result<Self> {
        Self::open_with(0)
    }

    /// A handle that reaches no hypervisor: every hypercall on it fails with [`Error::NoXen`], but what libxenguest does
    /// in memory (parsing a kernel) works.
    ///
    /// # Errors
    /// When memory is short.
    pub fn open_dummy() -> Result<Self> {
        Self::open_with(sys::XC_OPENFLAG_DUMMY)
    }

    fn open_with(flags: u32) -> Result<Self> {
        // SAFETY: the library's own pair of functions, the first called with the logger it is given and known flags.
        let handle = unsafe {
            Handle::open(
                "libxenctrl",
                "/dev/xen/privcmd",
                // Without a domain-builder logger of ours the library would write to a file of its own choice.
                |logger| sys::xc_interface_open(logger, logger, flags),
                sys::xc_interface_close,
            )?
        };
        Ok(Self { handle, dummy: flags & sys::XC_OPENFLAG_DUMMY != 0, not_sync: PhantomData })
    }

    /// The handle for libxenguest's calls, after checking that this process may use it.
    pub(crate) fn raw(&self) -> Result<*mut sys::xc_interface> {
        self.handle.raw()
    }

    /// Refuses a handle that was opened by [`Xenctrl::open_dummy`]: libxenctrl would follow a null pointer.
    pub(crate) fn require_xen(&self) -> Result<()> {
        if self.dummy {
            return Err(Error::NoXen { what: "a dummy handle", errno: 0, detail: None });
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> &Logger {
        self.handle.log()
    }

    /// Runs one library function that makes a hypercall.
    pub(crate) fn run(
        &self,
        call: &'static str,
        domid: Option<DomId>,
        function: impl FnOnce(*mut sys::xc_interface) -> c_int,
    ) -> Result<c_int> {
        self.handle.raw()?;
        self.require_xen()?;
        self.handle.run(call, domid, function)
    }

    #[cfg(test)]
    pub(crate) fn pretend_forked(&mut self) {
        self.handle.pretend_forked();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dummy_handle_refuses_hypercalls() {
        let xc = Xenctrl::open_dummy().unwrap();
        assert!(matches!(xc.pause(DomId::DOM0), Err(Error::NoXen { .. })));
        assert!(matches!(xc.physinfo(), Err(Error::NoXen { .. })));
    }

    #[test]
    fn a_handle_of_another_process_is_refused_and_not_closed() {
        let mut xc = Xenctrl::open_dummy().unwrap();
        xc.pretend_forked();
        let error = xc.pause(DomId::DOM0).unwrap_err();
        assert!(matches!(error, Error::Forked { handle: "libxenctrl", .. }), "{error}");
    }

    #[test]
    fn negative_results_become_errors_with_errno_and_text() {
        let mut xc = Xenctrl::open_dummy().unwrap();
        xc.dummy = false;
        let domid = DomId::new(7);
        let minus_errno = xc.run("xc_x", domid, |_| -libc::ESRCH).unwrap_err();
        assert!(minus_errno.is_errno(libc::ESRCH));
        let by_errno = xc.run("xc_x", domid, |_| {
            crate::error::set_errno(libc::EBUSY);
            -1
        });
        assert_eq!(
            by_errno.unwrap_err().to_string(),
            "xc_x failed for domain 7: Device or resource busy (16)"
        );
        assert_eq!(xc.run("xc_x", domid, |_| 3), Ok(3));
        xc.dummy = true;
    }

    /// Runs where Xen is not; under Xen (the nested host) opening works.
    #[test]
    fn opening_without_xen_says_what_to_check() {
        if std::path::Path::new("/dev/xen/privcmd").exists() {
            return;
        }
        let error = Xenctrl::open().unwrap_err();
        assert!(matches!(&error, Error::NoXen { errno, .. } if *errno == libc::ENOENT), "{error:?}");
        assert!(error.to_string().contains("modprobe"), "{error}");
    }
}
