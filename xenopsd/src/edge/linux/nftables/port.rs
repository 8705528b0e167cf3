//! Netlink's numbers of our sockets (`nl_pid`), by which news of what we did ourselves is told from others'.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};

use nix::errno::Errno;
use nix::sys::socket::{NetlinkAddr, bind};

/// What they begin with. No process has such a number (`PID_MAX_LIMIT` is 2^22), and those that the kernel makes up are
/// negative.
const OURS: u32 = 0x6e66;

/// How many are tried: as many as exchanges could go on at once, and more.
const TRIES: usize = 1024;

/// Gives a socket such a number, which no other has.
///
/// # Errors
/// The kernel's errno; `EADDRINUSE` when all are taken.
pub(super) fn take(socket: &OwnedFd) -> Result<(), Errno> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    for _ in 0..TRIES {
        let port = OURS << 16 | u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
        match bind(socket.as_raw_fd(), &NetlinkAddr::new(port, 0)) {
            Err(Errno::EADDRINUSE) => {}
            taken => return taken,
        }
    }
    Err(Errno::EADDRINUSE)
}

/// Whether a number is one of ours.
pub(super) const fn is_ours(port: u32) -> bool {
    port >> 16 == OURS
}
