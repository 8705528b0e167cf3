//! Handles that can only touch one domain, for processes that are assumed to be taken over by a guest.
//!
//! | handle | how it is restricted | what is left |
//! |---|---|---|
//! | [`Evtchn`](crate::evtchn::Evtchn) | `IOCTL_EVTCHN_RESTRICT_DOMID` | binding to that domain's ports; ports bound before |
//! | [`ForeignMemory`](crate::foreignmemory::ForeignMemory) | `IOCTL_PRIVCMD_RESTRICT` | mapping that domain's memory |
//! | [`DeviceModel`](crate::devicemodel::DeviceModel) | `IOCTL_PRIVCMD_RESTRICT` | device-model operations on that domain |
//! | [`Xenctrl`](crate::Xenctrl), [`Gnttab`](crate::gnttab::Gnttab), xenstore | only by [`restrict_process`] | nothing: the descriptor becomes `/dev/null` |
//!
//! The kernel enforces it, for ever and for whoever gets the descriptor; the type [`Restricted`] just leaves out the
//! calls that would fail. A restriction cannot be lifted or changed: a second one fails.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::domid::DomId;
use crate::error::{Error, Result, clear_errno, last_errno};
use crate::sys;

/// Handles the kernel can restrict one by one: see [`Restricted::new`].
pub trait Restrict: Sealed {}

/// What keeps [`Restrict`] to this crate's handles.
pub(crate) use sealed::Sealed;

mod sealed {
    /// Restricts an open descriptor.
    pub trait Sealed {
        fn restrict_to(&self, domid: super::DomId) -> super::Result<()>;
    }
}

/// A handle that can only touch one domain.
#[derive(Debug)]
pub struct Restricted<T> {
    handle: T,
    domid: DomId,
}

impl<T: Restrict> Restricted<T> {
    /// Restricts a handle. It is closed when that fails.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOTTY` or `EOPNOTSUPP` on a kernel without the call (Linux before 4.14).
    pub fn new(handle: T, domid: DomId) -> Result<Self> {
        handle.restrict_to(domid)?;
        Ok(Self { handle, domid })
    }
}

impl<T> Restricted<T> {
    /// The domain.
    pub const fn domid(&self) -> DomId {
        self.domid
    }

    pub(crate) const fn inner(&self) -> &T {
        &self.handle
    }
}

/// Restricts every library handle this process has open (`xentoolcore_restrict_all`), whichever values hold them.
///
/// For a child process just before it drops its privileges. Afterwards event channel, foreign memory and device model
/// handles work for `domid` only, and hypercall, grant table and xenstore handles fail on every use. Handles opened
/// later are not restricted: lose the right to open the devices before reading anything a guest wrote.
///
/// # Errors
/// [`Error::Call`] for the first handle that could not be restricted. Those before it are: the process should exit.
pub fn restrict_process(domid: DomId) -> Result<()> {
    clear_errno();
    // SAFETY: takes no pointer; the libraries guard their list of handles by a lock.
    let result = unsafe { sys::xentoolcore_restrict_all(domid.get()) };
    let errno = last_errno();
    if result == 0 { Ok(()) } else { Err(Error::plain("xentoolcore_restrict_all", Some(domid), errno)) }
}

/// What an open file of Xen's drivers can be restricted as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// `/dev/xen/privcmd`.
    Privcmd,
    /// `/dev/xen/evtchn`.
    Evtchn,
}

/// Restricts an open file of one of Xen's drivers, whoever else has it too, to one domain. One that is restricted to it
/// already is left so.
///
/// # Errors
/// The kernel's; `EINVAL` when a privcmd file is restricted to another domain, `EACCES` when an evtchn file is, `ENOTTY`
/// when it is another kind of file.
pub fn restrict_descriptor(fd: BorrowedFd<'_>, driver: Driver, domid: DomId) -> io::Result<()> {
    /// `IOCTL_PRIVCMD_RESTRICT` and `IOCTL_EVTCHN_RESTRICT_DOMID` of `<xen/sys/privcmd.h>`, `<xen/sys/evtchn.h>`.
    const PRIVCMD: libc::Ioctl = 0x0002_5006;
    const EVTCHN: libc::Ioctl = 0x0002_4506;
    let mut wanted = domid.get();
    let request = if driver == Driver::Privcmd { PRIVCMD } else { EVTCHN };
    // SAFETY: both read one `domid_t`, 16 bits, and write nothing.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut wanted) };
    if result >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        again if driver == Driver::Evtchn && again.raw_os_error() == Some(libc::EACCES) => {
            evtchn_is_of(fd, domid)
        }
        refused => Err(refused),
    }
}

/// Whether a restricted file of `/dev/xen/evtchn` is restricted to this domain, which the kernel does not say: it lets
/// pass a request about that domain only. The one made here is for a port that no domain has, and fails in Xen.
fn evtchn_is_of(fd: BorrowedFd<'_>, domid: DomId) -> io::Result<()> {
    /// `IOCTL_EVTCHN_BIND_INTERDOMAIN` of `<xen/sys/evtchn.h>`; two numbers of 32 bits, the domain and its port.
    const BIND_INTERDOMAIN: libc::Ioctl = 0x0008_4501;
    let mut request = [u32::from(domid), u32::MAX];
    // SAFETY: it reads the two numbers and writes nothing.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), BIND_INTERDOMAIN, request.as_mut_ptr()) };
    match io::Error::last_os_error() {
        other if result < 0 && other.raw_os_error() == Some(libc::EACCES) => Err(other),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fake(Option<i32>);

    impl Restrict for Fake {}

    impl Sealed for Fake {
        fn restrict_to(&self, domid: DomId) -> Result<()> {
            self.0.map_or(Ok(()), |errno| Err(Error::plain("restrict", Some(domid), errno)))
        }
    }

    #[test]
    fn what_is_none_of_xens_files_cannot_be_restricted() {
        use std::os::fd::AsFd;
        let null = std::fs::File::open("/dev/null").unwrap();
        for driver in [Driver::Privcmd, Driver::Evtchn] {
            let refused = restrict_descriptor(null.as_fd(), driver, DomId::DOM0).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::ENOTTY));
        }
    }

    #[test]
    fn only_a_restricted_handle_is_called_so() {
        let domid = DomId::new(3).unwrap();
        assert_eq!(Restricted::new(Fake(None), domid).unwrap().domid(), domid);
        let refused = Restricted::new(Fake(Some(libc::EACCES)), domid);
        assert!(refused.is_err_and(|e| e.is_errno(libc::EACCES)));
    }
}
