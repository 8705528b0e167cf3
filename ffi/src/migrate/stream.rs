//! The descriptor a save writes to or a restore reads from, which another thread can take away.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A private copy of a descriptor, sharing its position with the original.
#[derive(Debug)]
pub struct Stream(Arc<Inner>);

/// Ends the call that uses a [`Stream`]; the stream itself may be gone by then.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fd: OwnedFd,
    stopped: AtomicBool,
}

impl Stream {
    /// Duplicates `fd`.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(fd: BorrowedFd<'_>) -> io::Result<Self> {
        let inner = Inner { fd: fd.try_clone_to_owned()?, stopped: AtomicBool::new(false) };
        Ok(Self(Arc::new(inner)))
    }

    /// For another thread.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.0))
    }

    /// As [`Stopper::stop`].
    ///
    /// # Errors
    /// As there.
    pub fn stop(&self) -> io::Result<()> {
        self.0.stop()
    }

    /// Whether it was stopped.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    /// For libxenguest.
    pub(super) fn raw(&self) -> RawFd {
        self.0.fd.as_raw_fd()
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.fd.as_fd()
    }
}

impl Stopper {
    /// Lets every later read and write of the stream fail. One that is under way ends as it would have: on a pipe or socket
    /// whose other end does nothing, that end must be closed as well.
    ///
    /// # Errors
    /// When there is no descriptor left to replace it with; the stream is as it was then.
    pub fn stop(&self) -> io::Result<()> {
        self.0.stop()
    }
}

impl Inner {
    fn stop(&self) -> io::Result<()> {
        // A path-only descriptor: neither read nor write works on it (EBADF).
        let dead = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open("/")?;
        // Before the replacement: whoever meets the dead descriptor must find the reason.
        self.stopped.store(true, Ordering::SeqCst);
        // SAFETY: both descriptors are open and stay so: `fd` is owned by this struct, and the call replaces what it
        // stands for in one step, so its number is never free for somebody else.
        let replaced = unsafe { libc::dup3(dead.as_raw_fd(), self.fd.as_raw_fd(), libc::O_CLOEXEC) };
        if replaced < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
