//! One socket option of netlink that decides how much an error says.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Asks the kernel to put its own sentence into refusals (`NETLINK_EXT_ACK`, Linux 4.12 and later).
///
/// # Errors
///
/// The kernel's errno: `ENOPROTOOPT` when it does not know the option.
pub fn enable_extended_ack(socket: BorrowedFd<'_>) -> io::Result<()> {
    let on: libc::c_int = 1;
    // One int is passed, as netlink(7) says; its size always fits socklen_t.
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4);
    // SAFETY: the option value is a live int of exactly `length` bytes, which the kernel only reads; the descriptor
    // is open for the life of the borrow.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_EXT_ACK,
            std::ptr::from_ref(&on).cast(),
            length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
