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
use std::ptr::NonNull;

pub use create::{CreateDomain, GrantVersion, GuestKind, Iommu};
pub use domain::{CpuidPolicy, HvmParam, Pod, Trigger, TscMode};
pub use host::{CpuTopology, FeatureSet, Physinfo, TopologyCounts, XenVersion, linked_version};
pub use info::{DomainInfo, ShutdownReason, VcpuInfo};
pub use sched::{CpuMap, SchedParams, Scheduler, VcpuAffinity};

use crate::domid::DomId;
use crate::error::{Error, Result, clear_errno, last_errno};
use crate::log::Logger;
use crate::process::Owner;
use crate::sys;

/// An open libxenctrl handle. Closed on drop.
///
/// It may move to another thread but not be used by two at once: the library keeps its last error and its hypercall
/// buffers per handle. It does not survive a fork: see [`Error::Forked`].
#[derive(Debug)]
pub struct Xenctrl {
    raw: NonNull<sys::xc_interface>,
    owner: Owner,
    dummy: bool,
    /// Dropped after `raw` is closed: closing may log.
    log: Logger,
    not_sync: PhantomData<Cell<()>>,
}

// SAFETY: nothing in the handle is tied to the thread that opened it; libxenctrl forbids only simultaneous use, which
// `!Sync` and the calls' `&self` rule out.
unsafe impl Send for Xenctrl {}

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
        let log = Logger::new();
        clear_errno();
        // SAFETY: both loggers outlive the handle (field order of this struct and `Drop`); the flags are known ones.
        // Without a domain-builder logger of ours the library would write to a file of its own choice.
        let raw = unsafe { sys::xc_interface_open(log.as_ptr(), log.as_ptr(), flags) };
        let errno = last_errno();
        let Some(raw) = NonNull::new(raw) else {
            return Err(Error::NoXen { what: "/dev/xen/privcmd", errno, detail: log.take_errors() });
        };
        Ok(Self {
            raw,
            owner: Owner::this_process("libxenctrl"),
            dummy: flags & sys::XC_OPENFLAG_DUMMY != 0,
            log,
            not_sync: PhantomData,
        })
    }

    /// The handle for libxenguest's calls, after checking that this process may use it.
    pub(crate) fn raw(&self) -> Result<*mut sys::xc_interface> {
        self.owner.check()?;
        Ok(self.raw.as_ptr())
    }

    /// Refuses a handle that was opened by [`Xenctrl::open_dummy`]: libxenctrl would follow a null pointer.
    pub(crate) fn require_xen(&self) -> Result<()> {
        if self.dummy {
            return Err(Error::NoXen { what: "a dummy handle", errno: 0, detail: None });
        }
        Ok(())
    }

    pub(crate) fn log(&self) -> &Logger {
        &self.log
    }

    /// Runs one hypercall-making library function and turns a negative result into an [`Error`].
    ///
    /// libxenctrl's functions return -1 and set `errno`, but some return `-errno`.
    pub(crate) fn run(
        &self,
        call: &'static str,
        domid: Option<DomId>,
        function: impl FnOnce(*mut sys::xc_interface) -> c_int,
    ) -> Result<c_int> {
        let raw = self.raw()?;
        self.require_xen()?;
        self.log.clear();
        clear_errno();
        let result = function(raw);
        let errno = last_errno();
        if result >= 0 {
            return Ok(result);
        }
        let errno = if result == -1 { errno } else { -result };
        Err(Error::Call { call, domid: domid.map(u32::from), errno, detail: self.log.take_errors() })
    }

    #[cfg(test)]
    pub(crate) fn pretend_forked(&mut self) {
        self.owner.pretend_forked();
    }
}

impl Drop for Xenctrl {
    fn drop(&mut self) {
        if self.owner.is_here() {
            // SAFETY: `raw` came from xc_interface_open, is closed once, and the logger is still alive.
            unsafe { sys::xc_interface_close(self.raw.as_ptr()) };
        }
    }
}

/// What can be passed to a library by value: proof for [`scalar_call!`] that no pointer is involved.
pub(crate) trait Scalar: Copy {}
macro_rules! scalars { ($($t:ty),*) => { $(impl Scalar for $t {})* } }
scalars!(u8, u16, u32, u64, i32, i64, bool);

/// The identity, for values without pointers only.
pub(crate) const fn scalar<T: Scalar>(value: T) -> T {
    value
}

/// `scalar_call!(xc, Some(domid), xc_domain_pause(arguments...))`: a libxenctrl function whose arguments after the
/// handle are all plain numbers.
macro_rules! scalar_call {
    ($xc:expr, $domid:expr, $function:ident($($argument:expr),* $(,)?)) => {
        $xc.run(stringify!($function), $domid, |raw| {
            // SAFETY: `raw` is the open handle, and `scalar` lets through no pointers, so the function has nothing
            // else to reach.
            unsafe { crate::sys::$function(raw, $(crate::xenctrl::scalar($argument)),*) }
        })
    };
}
pub(crate) use scalar_call;

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
        let by_errno = xc.run("xc_x", domid, |raw| {
            // SAFETY: an open handle without a privcmd descriptor: this function only changes the handle.
            unsafe { sys::xc_clear_last_error(raw) };
            // SAFETY: this thread's errno.
            unsafe { *libc::__errno_location() = libc::EBUSY };
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
