//! Event channels: `/dev/xen/evtchn`, on which ports are bound, signalled and waited for.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::domid::DomId;
use crate::error::{Error, Result, clear_errno, last_errno};
use crate::handle::{Handle, scalar_call};
use crate::restrict::{Restrict, Restricted, Sealed};
use crate::sys;

/// An event channel port of some domain. 0 is never allocated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port(u32);

impl Port {
    /// The port of this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An interrupt source of the hypervisor that a domain can bind to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Virq {
    /// A domain shut down or is gone. Only one domain's program can bind it: xenstored has it.
    DomExc,
    /// The hypervisor wrote to its console ring.
    ConRing,
    /// A CPU went on- or offline.
    PcpuState,
}

impl Virq {
    const fn number(self) -> u32 {
        match self {
            Self::DomExc => sys::VIRQ_DOM_EXC,
            Self::ConRing => sys::VIRQ_CON_RING,
            Self::PcpuState => sys::VIRQ_PCPU_STATE,
        }
    }
}

/// An open event channel device. Its descriptor is non-blocking and readable when an event is pending.
///
/// A port stays masked from the moment [`Evtchn::pending`] returns it until [`Evtchn::unmask`]. All ports are unbound
/// when the handle is dropped.
#[derive(Debug)]
pub struct Evtchn(Handle<sys::xenevtchn_handle>);

impl Evtchn {
    /// Opens `/dev/xen/evtchn`.
    ///
    /// # Errors
    /// [`Error::NoXen`].
    pub fn open() -> Result<Self> {
        // SAFETY: the library's own pair of functions, the first called with the logger it is given and known flags.
        let handle = unsafe {
            Handle::open(
                "libxenevtchn",
                "/dev/xen/evtchn",
                |logger| sys::xenevtchn_open(logger, 0),
                sys::xenevtchn_close,
            )?
        };
        let evtchn = Self(handle);
        evtchn.set_nonblocking()?;
        Ok(evtchn)
    }

    /// So that asking for a pending event never waits: waiting is for whoever polls the descriptor.
    fn set_nonblocking(&self) -> Result<()> {
        let fd = self.as_fd().as_raw_fd();
        clear_errno();
        // SAFETY: a descriptor that is open as long as the handle; the operation takes no pointer.
        let result = unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK) };
        if result == 0 { Ok(()) } else { Err(Error::plain("fcntl(F_SETFL)", None, last_errno())) }
    }

    /// Allocates a port of this domain that `remote` can bind to.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn bind_unbound(&self, remote: DomId) -> Result<Port> {
        port(scalar_call!(self.0, Some(remote), xenevtchn_bind_unbound_port(remote.raw())))
    }

    /// Binds a new port of this domain to a port `remote` has left unbound for it.
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` when the remote port is not for this domain, `ESRCH` when the domain is gone.
    pub fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port> {
        port(scalar_call!(self.0, Some(remote), xenevtchn_bind_interdomain(remote.raw(), remote_port.0)))
    }

    /// Binds a port to an interrupt of the hypervisor.
    ///
    /// # Errors
    /// [`Error::Call`]; `EEXIST` when another program has it.
    pub fn bind_virq(&self, virq: Virq) -> Result<Port> {
        port(scalar_call!(self.0, None, xenevtchn_bind_virq(virq.number())))
    }

    /// Unbinds a port.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOTCONN` when it is not bound here.
    pub fn unbind(&self, port: Port) -> Result<()> {
        scalar_call!(self.0, None, xenevtchn_unbind(port.0)).map(drop)
    }

    /// Signals the other end.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOTCONN` when the port is not bound here.
    pub fn notify(&self, port: Port) -> Result<()> {
        scalar_call!(self.0, None, xenevtchn_notify(port.0)).map(drop)
    }

    /// Lets the port signal again.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn unmask(&self, port: Port) -> Result<()> {
        scalar_call!(self.0, None, xenevtchn_unmask(port.0)).map(drop)
    }

    /// The next port with an event, or `None` when there is none now.
    ///
    /// # Errors
    /// [`Error::Call`]; `EFBIG` when the ring overflowed, which needs a new handle.
    pub fn pending(&self) -> Result<Option<Port>> {
        match port(scalar_call!(self.0, None, xenevtchn_pending())) {
            Ok(port) => Ok(Some(port)),
            Err(error) if error.is_errno(libc::EAGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Ports are below 2^17, so the `int` the library returns is never a large port gone negative.
fn port(result: Result<i32>) -> Result<Port> {
    result.map(|number| Port(number.unsigned_abs()))
}

impl AsFd for Evtchn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the handle is open, so it has a descriptor, which lives as long as the handle.
        unsafe { BorrowedFd::borrow_raw(sys::xenevtchn_fd(self.0.raw_unchecked())) }
    }
}

impl Restrict for Evtchn {}

impl Sealed for Evtchn {
    /// `IOCTL_EVTCHN_RESTRICT_DOMID` on the descriptor.
    fn restrict_to(&self, domid: DomId) -> Result<()> {
        scalar_call!(self.0, Some(domid), xenevtchn_restrict(domid.get())).map(drop)
    }
}

/// What remains after restricting: binding to ports of that domain, and everything on ports already bound.
impl Restricted<Evtchn> {
    /// See [`Evtchn::bind_interdomain`].
    ///
    /// # Errors
    /// As there.
    pub fn bind_interdomain(&self, remote_port: Port) -> Result<Port> {
        self.inner().bind_interdomain(self.domid(), remote_port)
    }

    /// See [`Evtchn::unbind`].
    ///
    /// # Errors
    /// As there.
    pub fn unbind(&self, port: Port) -> Result<()> {
        self.inner().unbind(port)
    }

    /// See [`Evtchn::notify`].
    ///
    /// # Errors
    /// As there.
    pub fn notify(&self, port: Port) -> Result<()> {
        self.inner().notify(port)
    }

    /// See [`Evtchn::unmask`].
    ///
    /// # Errors
    /// As there.
    pub fn unmask(&self, port: Port) -> Result<()> {
        self.inner().unmask(port)
    }

    /// See [`Evtchn::pending`].
    ///
    /// # Errors
    /// As there.
    pub fn pending(&self) -> Result<Option<Port>> {
        self.inner().pending()
    }
}

impl AsFd for Restricted<Evtchn> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_without_xen_names_the_device() {
        if std::path::Path::new("/dev/xen/evtchn").exists() {
            return;
        }
        let error = Evtchn::open().unwrap_err();
        assert!(
            matches!(error, Error::NoXen { what: "/dev/xen/evtchn", errno: libc::ENOENT, .. }),
            "{error:?}"
        );
    }
}
