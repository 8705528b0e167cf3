//! Xen's drivers through descriptors that somebody else opened, for a process that may open nothing itself.
//!
//! ```text
//!   the daemon: /dev/xen/privcmd, /dev/xen/evtchn ── restricted to one domain ──► the jailed process:
//!                                                        Memory::map, Channels::bind; then a filter without either
//! ```
//!
//! Xen's libraries open the devices by name, which a jail does not have; these are the few requests of the kernel's own
//! interface (`<xen/sys/privcmd.h>`, `<xen/sys/evtchn.h>`) that a backend needs. Whether a descriptor is
//! [restricted](crate::restrict::restrict_descriptor) is for who gives it to see to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use crate::domid::DomId;
use crate::evtchn::Port;
use crate::foreignmemory::MAX_PAGES;
use crate::shared::{Access, PAGE_SIZE, SharedPages};

/// `struct privcmd_mmapbatch_v2`.
#[repr(C)]
struct MapBatch {
    count: u32,
    domid: u16,
    address: u64,
    frames: *const u64,
    errors: *mut i32,
}

/// `IOCTL_PRIVCMD_MMAPBATCH_V2`: group `P`, number 4, of the structure above.
const MAP_BATCH: libc::Ioctl = 0x0020_5004;

const _: () = assert!(size_of::<MapBatch>() == 0x20);

/// An open `/dev/xen/privcmd`.
#[derive(Debug)]
pub struct Memory(OwnedFd);

impl Memory {
    /// The descriptor that was given.
    pub const fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// Maps frames of a domain, one after the other: machine frames of a PV domain, guest frames of others. The mapping
    /// outlives the descriptor.
    ///
    /// # Errors
    /// `EINVAL` for no frames or more than [`MAX_PAGES`]; the kernel's, for any frame that is not the domain's: `EPERM`
    /// when the descriptor is restricted to another.
    pub fn map(&self, domid: DomId, frames: &[u64], access: Access) -> io::Result<GuestPages> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        let count = u32::try_from(frames.len()).map_err(|_| invalid())?;
        if frames.is_empty() || frames.len() > MAX_PAGES {
            return Err(invalid());
        }
        let length = frames.len() * PAGE_SIZE;
        // SAFETY: a new mapping wherever there is room.
        let address = unsafe {
            libc::mmap(ptr::null_mut(), length, access.prot(), libc::MAP_SHARED, self.0.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast::<u8>()).ok_or_else(invalid)?;
        // SAFETY: just mapped, page-aligned, and unmapped by the drop of the value only. Until the request below has
        // filled it nobody looks at it.
        let mapped = GuestPages { pages: unsafe { SharedPages::new(address, frames.len(), access) } };
        let mut errors = vec![0_i32; frames.len()];
        let request = MapBatch {
            count,
            domid: domid.get(),
            address: address.addr().get() as u64,
            frames: frames.as_ptr(),
            errors: errors.as_mut_ptr(),
        };
        // SAFETY: the kernel reads `count` frames and writes as many errors, and puts pages into the mapping that was made
        // for them.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), MAP_BATCH, &raw const request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        match errors.iter().find(|error| **error != 0) {
            // A negative error number for the first frame that was refused: no page is behind it.
            Some(error) => Err(io::Error::from_raw_os_error(error.saturating_abs())),
            None => Ok(mapped),
        }
    }
}

/// Mapped frames of a domain. Unmapped on drop.
#[derive(Debug)]
pub struct GuestPages {
    pages: SharedPages,
}

impl GuestPages {
    /// The memory.
    pub const fn memory(&self) -> &SharedPages {
        &self.pages
    }
}

impl Drop for GuestPages {
    fn drop(&mut self) {
        // SAFETY: what was mapped, which nobody can reach after this.
        unsafe { libc::munmap(self.pages.address().as_ptr().cast(), self.pages.size()) };
    }
}

/// `IOCTL_EVTCHN_BIND_INTERDOMAIN` and `IOCTL_EVTCHN_NOTIFY`: group `E`, numbers 1 and 4, of two words and of one.
const BIND_INTERDOMAIN: libc::Ioctl = 0x0008_4501;
/// See there; public for filters of system calls.
pub const NOTIFY: libc::Ioctl = 0x0004_4504;

/// An open `/dev/xen/evtchn`, made non-blocking. Readable when an event is pending.
///
/// A port stays masked from the moment [`Channels::pending`] returns it until [`Channels::unmask`].
#[derive(Debug)]
pub struct Channels(OwnedFd);

impl Channels {
    /// The descriptor that was given.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: a descriptor of our own; the operation takes no pointer.
        let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(Self(fd)) }
    }

    /// Binds a new port of this domain to one that `remote` has left unbound for it.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` when the port is not for this domain, `EACCES` when the descriptor is another domain's.
    pub fn bind(&self, remote: DomId, port: Port) -> io::Result<Port> {
        let mut request = [remote.raw(), port.get()];
        // SAFETY: the kernel reads the two words.
        let bound = unsafe { libc::ioctl(self.0.as_raw_fd(), BIND_INTERDOMAIN, request.as_mut_ptr()) };
        u32::try_from(bound).map(Port::new).map_err(|_| io::Error::last_os_error())
    }

    /// Signals the other end.
    ///
    /// # Errors
    /// The kernel's; `ENOTCONN` when the port is not bound here.
    pub fn notify(&self, port: Port) -> io::Result<()> {
        let mut request = port.get();
        // SAFETY: the kernel reads the word.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), NOTIFY, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The next port with an event; none when there is none now.
    ///
    /// # Errors
    /// The kernel's; `EFBIG` when events were lost, which cannot be with one event a port.
    pub fn pending(&self) -> io::Result<Option<Port>> {
        let mut port = 0_u32;
        // SAFETY: the kernel writes at most the word's four bytes.
        let read = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut port).cast(), size_of::<u32>()) };
        if read == 4 {
            return Ok(Some(Port::new(port)));
        }
        match io::Error::last_os_error() {
            none if matches!(none.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
            error => Err(error),
        }
    }

    /// Lets the port signal again.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unmask(&self, port: Port) -> io::Result<()> {
        let port = port.get();
        // SAFETY: the kernel reads the word's four bytes.
        let written = unsafe { libc::write(self.0.as_raw_fd(), (&raw const port).cast(), size_of::<u32>()) };
        if written == 4 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Channels {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn what_is_none_of_xens_files_maps_and_binds_nothing() {
        let file = || OwnedFd::from(File::options().read(true).write(true).open("/dev/null").unwrap());
        let domid = DomId::new(1).unwrap();
        let memory = Memory::new(file());
        for frames in [&[][..], &[1], &vec![1; MAX_PAGES + 1]] {
            assert!(memory.map(domid, frames, Access::Read).is_err());
        }
        let channels = Channels::new(file()).unwrap();
        assert!(channels.bind(domid, Port::new(1)).is_err());
        assert!(channels.notify(Port::new(1)).is_err());
        assert!(channels.pending().is_err(), "an end of file is no port");
    }
}
