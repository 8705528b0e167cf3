//! The three shapes of ioctl the kernel has: without argument, with a number, with a pointer to a structure.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Calls `request` with the number `arg` as its argument (0 for requests that take none).
///
/// Sound only for requests that do not treat the argument as an address; the callers in this module pass constants
/// from `<linux/loop.h>` for which this holds.
pub(super) fn with_value(fd: BorrowedFd<'_>, request: libc::Ioctl, arg: libc::c_ulong) -> io::Result<u32> {
    // SAFETY: the descriptor is open for the life of the borrow and, by this function's contract, the request
    // takes its argument by value, so the kernel neither reads nor writes memory of this process.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, arg) };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Calls `request` with the address of `value`.
///
/// # Safety
///
/// `request` must read and write at most `size_of::<T>()` bytes at its argument, and every bit pattern the kernel
/// may write there must be a valid `T`.
pub(super) unsafe fn with_struct<T>(
    fd: BorrowedFd<'_>,
    request: libc::Ioctl,
    value: &mut T,
) -> io::Result<()> {
    // SAFETY: `value` is a live, exclusive, aligned `T`; the caller guarantees that the kernel stays inside it and
    // leaves a valid value behind. The descriptor is open for the life of the borrow.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(value)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
