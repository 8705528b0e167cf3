//! Questions to a block device.

use std::io;
use std::os::fd::BorrowedFd;

use super::ioctl;

// `<linux/fs.h>`: _IO(0x12, 94), _IO(0x12, 104) and _IOR(0x12, 114, size_t). The kernel writes an int for the first two
// and, despite the declared type, a 64-bit number of bytes for the third.
const BLKROGET: libc::Ioctl = 0x125e;
const BLKSSZGET: libc::Ioctl = 0x1268;
const BLKGETSIZE64: libc::Ioctl = 0x8008_1272;

/// Whether the block device refuses writes (`blockdev --getro`).
///
/// # Errors
///
/// The kernel's errno; `ENOTTY` when the descriptor is not a block device.
pub fn is_read_only(device: BorrowedFd<'_>) -> io::Result<bool> {
    let mut flag: libc::c_int = 0;
    // SAFETY: BLKROGET writes one int; every int is valid.
    unsafe { ioctl::with_struct(device, BLKROGET, &mut flag)? };
    Ok(flag != 0)
}

/// Size of the block device's logical blocks in bytes (`blockdev --getss`).
///
/// # Errors
///
/// The kernel's errno; `ENOTTY` when the descriptor is not a block device.
pub fn block_size(device: BorrowedFd<'_>) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int; every int is valid.
    unsafe { ioctl::with_struct(device, BLKSSZGET, &mut size)? };
    u32::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Size of the block device in bytes (`blockdev --getsize64`).
///
/// # Errors
///
/// The kernel's errno; `ENOTTY` when the descriptor is not a block device.
pub fn size_bytes(device: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size: u64 = 0;
    // SAFETY: BLKGETSIZE64 writes one u64; every u64 is valid.
    unsafe { ioctl::with_struct(device, BLKGETSIZE64, &mut size)? };
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_regular_file_is_not_a_block_device() {
        let file = std::fs::File::open("/proc/self/exe").expect("own binary");
        assert_eq!(is_read_only(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(block_size(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(size_bytes(file.as_fd()).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
