//! Loop devices: the ioctls of `<linux/loop.h>` on `/dev/loop-control` and `/dev/loopN`.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::ioctl;

// Request numbers of `<linux/loop.h>`; the same on every architecture.
const LOOP_SET_FD: libc::Ioctl = 0x4c00;
const LOOP_CLR_FD: libc::Ioctl = 0x4c01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4c04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4c05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4c07;
const LOOP_SET_DIRECT_IO: libc::Ioctl = 0x4c08;
const LOOP_SET_BLOCK_SIZE: libc::Ioctl = 0x4c09;
const LOOP_CONFIGURE: libc::Ioctl = 0x4c0a;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4c82;

/// The device refuses writes.
pub const LO_FLAGS_READ_ONLY: u32 = 1;
/// The kernel detaches the file when the last opener closes the device.
pub const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// I/O to the backing file bypasses the page cache.
pub const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Bytes of a name in [`LoopInfo64`], terminating zero included.
pub const LO_NAME_SIZE: usize = 64;

/// `struct loop_info64`: what a loop device is attached to, and how.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LoopInfo64 {
    /// Device number of the file system that holds the backing file, as `st_dev`. Read only.
    pub device: u64,
    /// Inode of the backing file. Read only.
    pub inode: u64,
    /// Device number of the backing file when it is itself a block device. Read only.
    pub rdevice: u64,
    /// First byte of the backing file to show.
    pub offset: u64,
    /// Bytes to show; 0 is all.
    pub size_limit: u64,
    /// Number of the loop device. Read only.
    pub number: u32,
    /// Obsolete, zero.
    pub encrypt_type: u32,
    /// Obsolete, zero.
    pub encrypt_key_size: u32,
    /// `LO_FLAGS_*`.
    pub flags: u32,
    /// A name for people (`losetup -l`), zero-terminated.
    pub file_name: [u8; LO_NAME_SIZE],
    /// Obsolete, zero.
    pub crypt_name: [u8; LO_NAME_SIZE],
    /// Obsolete, zero.
    pub encrypt_key: [u8; 32],
    /// Obsolete, zero.
    pub init: [u64; 2],
}

impl Default for LoopInfo64 {
    fn default() -> Self {
        Self {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: 0,
            file_name: [0; LO_NAME_SIZE],
            crypt_name: [0; LO_NAME_SIZE],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

// The kernel copies exactly these many bytes; no padding anywhere.
const _: () = assert!(size_of::<LoopInfo64>() == 232);
const _: () = assert!(size_of::<LoopConfig>() == 304);

/// Number of a loop device that is free now; the kernel creates one when all are taken. `control` is
/// `/dev/loop-control`. Somebody else may take the number before the caller does.
///
/// # Errors
///
/// The kernel's errno.
pub fn get_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    ioctl::with_value(control, LOOP_CTL_GET_FREE, 0)
}

/// Attaches `backing` with all settings in one step (Linux 5.8 and later).
///
/// # Errors
///
/// The kernel's errno: `EBUSY` when the device is taken, `ENOTTY` or `EINVAL` when the kernel does not know the
/// call, `EINVAL` for a block size it refuses.
pub fn configure(
    device: BorrowedFd<'_>,
    backing: BorrowedFd<'_>,
    block_size: u32,
    info: &LoopInfo64,
) -> io::Result<()> {
    let fd = u32::try_from(backing.as_raw_fd()).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    let mut config = LoopConfig { fd, block_size, info: *info, reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads one `struct loop_config`, whose layout `LoopConfig` has (asserted above), and
    // writes nothing.
    unsafe { ioctl::with_struct(device, LOOP_CONFIGURE, &mut config) }
}

/// Attaches `backing` with default settings (any Linux).
///
/// # Errors
///
/// The kernel's errno: `EBUSY` when the device is taken.
pub fn set_fd(device: BorrowedFd<'_>, backing: BorrowedFd<'_>) -> io::Result<()> {
    let fd = libc::c_ulong::try_from(backing.as_raw_fd())
        .map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    ioctl::with_value(device, LOOP_SET_FD, fd).map(drop)
}

/// Changes name, offset, size limit and the settable flags of an attached device.
///
/// # Errors
///
/// The kernel's errno: `EAGAIN` when pages of the device are still dirty, `ENXIO` when nothing is attached.
pub fn set_status(device: BorrowedFd<'_>, info: &LoopInfo64) -> io::Result<()> {
    let mut info = *info;
    // SAFETY: LOOP_SET_STATUS64 reads one `struct loop_info64`, whose layout `LoopInfo64` has (asserted above), and
    // writes nothing.
    unsafe { ioctl::with_struct(device, LOOP_SET_STATUS64, &mut info) }
}

/// What is attached.
///
/// # Errors
///
/// The kernel's errno: `ENXIO` when nothing is attached, `ENOTTY` when this is not a loop device.
pub fn get_status(device: BorrowedFd<'_>) -> io::Result<LoopInfo64> {
    let mut info = LoopInfo64::default();
    // SAFETY: LOOP_GET_STATUS64 writes one `struct loop_info64` of integers, for which every bit pattern is valid.
    unsafe { ioctl::with_struct(device, LOOP_GET_STATUS64, &mut info)? };
    Ok(info)
}

/// Detaches the file: at once when the caller is the only opener, else when the last one closes the device.
///
/// # Errors
///
/// The kernel's errno: `ENXIO` when nothing is attached.
pub fn clear_fd(device: BorrowedFd<'_>) -> io::Result<()> {
    ioctl::with_value(device, LOOP_CLR_FD, 0).map(drop)
}

/// Takes over the size of the backing file as it is now; whoever has the device open sees it.
///
/// # Errors
///
/// The kernel's errno: `ENXIO` when nothing is attached.
pub fn set_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    ioctl::with_value(device, LOOP_SET_CAPACITY, 0).map(drop)
}

/// Turns direct I/O on or off.
///
/// # Errors
///
/// The kernel's errno: `EINVAL` when the backing file system cannot do it.
pub fn set_direct_io(device: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    ioctl::with_value(device, LOOP_SET_DIRECT_IO, libc::c_ulong::from(on)).map(drop)
}

/// Sets the logical block size in bytes.
///
/// # Errors
///
/// The kernel's errno: `EINVAL` for a size it refuses, `EAGAIN` when pages are still dirty.
pub fn set_block_size(device: BorrowedFd<'_>, bytes: u32) -> io::Result<()> {
    ioctl::with_value(device, LOOP_SET_BLOCK_SIZE, libc::c_ulong::from(bytes)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn other_files_are_refused_by_the_kernel() {
        let file = std::fs::File::open("/dev/null").expect("/dev/null");
        for result in [
            get_free(file.as_fd()).map(drop),
            get_status(file.as_fd()).map(drop),
            set_fd(file.as_fd(), file.as_fd()),
            configure(file.as_fd(), file.as_fd(), 512, &LoopInfo64::default()),
            set_status(file.as_fd(), &LoopInfo64::default()),
            clear_fd(file.as_fd()),
            set_capacity(file.as_fd()),
            set_direct_io(file.as_fd(), true),
            set_block_size(file.as_fd(), 512),
        ] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        }
    }
}
