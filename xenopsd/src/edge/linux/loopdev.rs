//! Loop devices: a raw file shown as a block device, for blkback.
//!
//! ```text
//!          reserve(N)            LOOP_CONFIGURE
//!  free N ───────────► recorded ───────────────► attached ──detach(N, file)──► free, or cleared on last close
//!     ▲                            │ EBUSY: somebody else took N
//!     └────────────────────────────┘
//! ```
//!
//! A device keeps its file until it is detached, also across a crash of the daemon: `LO_FLAGS_AUTOCLEAR` is not set
//! by default, because the kernel would free the device between the daemon closing it and blkback opening it. The
//! caller therefore writes the number down before it is used (`reserve`), and detaching compares the file behind the
//! number first: a number that has been recycled for somebody else's file is left alone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use ffi::linux::loopdev as sys;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::blockdev::{Access, DevNumber, FileDisk, FileId, SECTOR_SIZE};

/// Major number of loop devices (Linux `include/uapi/linux/major.h`).
pub const MAJOR: u64 = 7;

const LOOP_CONTROL: &str = "/dev/loop-control";
const SYS_BLOCK: &str = "/sys/block";

/// How often a number that was free a moment ago may turn out to be taken. Each failure means that another attacher
/// succeeded, so this is far more than the attaches that can run at the same time.
const ATTACH_ATTEMPTS: u32 = 64;

/// How often the kernel may answer "pages still dirty" to settings of a device nobody has used yet.
const STATUS_ATTEMPTS: u32 = 16;

/// Logical block size the guest sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BlockSize {
    /// 512 bytes: what every guest can boot from.
    #[default]
    B512,
    /// 4096 bytes: for images made from 4Kn disks.
    B4096,
}

impl BlockSize {
    /// The size in bytes.
    pub fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }
}

/// How to attach. Whether the device is read-only follows from how the file was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttachOptions<'a> {
    /// Bypass dom0's page cache when the file system can; a log line says when it cannot.
    pub direct_io: bool,
    /// Logical block size.
    pub block_size: BlockSize,
    /// Free the device when its last opener closes it. Only for callers that keep it open themselves.
    pub autoclear: bool,
    /// What `losetup -l` shows; the file's path when absent. Cut to 63 bytes.
    pub name: Option<&'a str>,
}

/// An attached device. Dropping this value detaches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    /// N of `/dev/loopN`.
    pub number: u32,
    /// `/dev/loopN`.
    pub path: PathBuf,
    /// Its device number, for the backend.
    pub dev: DevNumber,
    /// The attached file; needed to detach.
    pub backing: FileId,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether direct I/O is really in use.
    pub direct_io: bool,
}

/// What the kernel says about an attached device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopStatus {
    /// N of `/dev/loopN`.
    pub number: u32,
    /// The attached file.
    pub backing: FileId,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the device frees itself on last close.
    pub autoclear: bool,
    /// Whether direct I/O is in use.
    pub direct_io: bool,
    /// The name for people; may be cut, may be anything.
    pub name: String,
}

/// How a detach ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detached {
    /// The device is free.
    Done,
    /// Somebody (blkback, a mount, udev) has it open; the kernel frees it when they close it.
    WhenClosed,
    /// Nothing was attached.
    AlreadyFree,
}

/// Why a loop device could not be attached, examined or detached.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    /// No loop driver.
    #[error("no loop devices on this host ({LOOP_CONTROL}: {source}): load the driver with `modprobe loop`")]
    NoDriver {
        /// The kernel's answer.
        source: io::Error,
    },
    /// Others were always faster.
    #[error(
        "no free loop device for {path:?} after {ATTACH_ATTEMPTS} attempts: other programs take every one first"
    )]
    Contended {
        /// The file to attach.
        path: PathBuf,
    },
    /// The caller could not write the number down.
    #[error("loop device {number} was not used because it could not be recorded: {source}")]
    NotRecorded {
        /// The number that was going to be used.
        number: u32,
        /// The caller's error.
        source: io::Error,
    },
    /// The number now shows another file.
    #[error("/dev/loop{number} is left alone: it is attached to {found}, not to {expected}")]
    Foreign {
        /// N of `/dev/loopN`.
        number: u32,
        /// The file the caller attached.
        expected: FileId,
        /// The file that is attached.
        found: FileId,
    },
    /// `/dev/loopN` is not the device of that number.
    #[error("/dev/loop{number} is not loop device {number}: remove that file, it will be made again")]
    WrongNode {
        /// N of `/dev/loopN`.
        number: u32,
    },
    /// Any other refusal of the kernel.
    #[error("cannot {action} /dev/loop{number}: {source}")]
    Io {
        /// N of `/dev/loopN`.
        number: u32,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Attaches `disk` to a free loop device.
///
/// Returns the device and its open node; with `autoclear` the device lasts as long as that node, or another opener.
///
/// `reserve` is called with each number before it is tried, the last call wins; it is where the caller records that
/// `/dev/loopN` may be about to hold this file. When attaching fails, the last record stands for nothing.
///
/// # Errors
///
/// [`LoopError`]; nothing is attached then.
pub fn attach(
    disk: &FileDisk,
    options: &AttachOptions<'_>,
    reserve: &mut dyn FnMut(u32) -> io::Result<()>,
) -> Result<(LoopDevice, File), LoopError> {
    if !disk.size.is_multiple_of(SECTOR_SIZE) {
        tracing::warn!(
            path = %disk.path.display(),
            size = disk.size,
            "the size of the disk image is not a multiple of {SECTOR_SIZE}: the guest will not see its last bytes"
        );
    }
    let wanted_direct_io = options.direct_io;
    let options = &AttachOptions { direct_io: wanted_direct_io && direct_io_works(&disk.file), ..*options };
    let control = open(LOOP_CONTROL, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|errno| LoopError::NoDriver { source: errno.into() })?;
    for _ in 0..ATTACH_ATTEMPTS {
        let number = sys::get_free(control.as_fd()).map_err(|source| LoopError::NoDriver { source })?;
        reserve(number).map_err(|source| LoopError::NotRecorded { number, source })?;
        let (node, dev) = match open_node(number, disk.access) {
            // Removed again between the two calls (LOOP_CTL_REMOVE).
            Err(LoopError::Io { source, .. }) if gone(&source) => continue,
            other => other?,
        };
        match bind(&node, disk, options) {
            Ok(()) => return finish(number, dev, &node, disk, wanted_direct_io).map(|device| (device, node)),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            Err(source) => return Err(LoopError::Io { number, action: "attach a file to", source }),
        }
    }
    Err(LoopError::Contended { path: disk.path.clone() })
}

/// Detaches loop device `number` if it still shows the file `expected`.
///
/// No other process can exchange the file between the check and the act: the device is held open here, and the
/// kernel does not free a device that is open.
///
/// # Errors
///
/// [`LoopError::Foreign`] when the number belongs to another file by now (nothing is done); else the kernel's errno.
pub fn detach(number: u32, expected: FileId) -> Result<Detached, LoopError> {
    let (node, _) = match open_node(number, Access::ReadOnly) {
        Err(LoopError::Io { source, .. }) if gone(&source) => return Ok(Detached::AlreadyFree),
        other => other?,
    };
    let Some(attached) = status_of(&node, number)? else { return Ok(Detached::AlreadyFree) };
    if attached.backing != expected {
        return Err(LoopError::Foreign { number, expected, found: attached.backing });
    }
    match sys::clear_fd(node.as_fd()) {
        Ok(()) => {}
        Err(error) if gone(&error) => return Ok(Detached::AlreadyFree),
        Err(source) => return Err(LoopError::Io { number, action: "detach", source }),
    }
    drop(node);
    match status(number)? {
        Some(still) if still.backing == expected => Ok(Detached::WhenClosed),
        _ => Ok(Detached::Done),
    }
}

/// Takes over the size of the file, which may have grown or shrunk.
///
/// # Errors
///
/// The kernel's errno: `ENXIO` when nothing is attached.
pub fn refresh(number: u32) -> Result<(), LoopError> {
    let (node, _) = open_node(number, Access::ReadOnly)?;
    sys::set_capacity(node.as_fd()).map_err(|source| LoopError::Io {
        number,
        action: "take over the size of",
        source,
    })
}

/// What loop device `number` is attached to; `None` when it is free or does not exist.
///
/// # Errors
///
/// The kernel's errno.
pub fn status(number: u32) -> Result<Option<LoopStatus>, LoopError> {
    if !attribute(number, "loop").exists() {
        return Ok(None);
    }
    match open_node(number, Access::ReadOnly) {
        Ok((node, _)) => status_of(&node, number),
        Err(LoopError::Io { source, .. }) if gone(&source) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All attached loop devices, in the order of their numbers.
///
/// Each is opened for a moment; one that somebody detaches in that moment is freed right after it.
///
/// # Errors
///
/// The kernel's errno.
pub fn list() -> Result<Vec<LoopStatus>, LoopError> {
    let entries = match std::fs::read_dir(SYS_BLOCK) {
        Ok(entries) => entries,
        Err(source) => return Err(LoopError::NoDriver { source }),
    };
    let mut numbers: Vec<u32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("loop")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers.into_iter().filter_map(|number| status(number).transpose()).collect()
}

/// Whether the file system really does direct I/O on this file.
///
/// The loop driver only asks whether it claims to. overlayfs claims it for files on any layer, and where the layer
/// cannot (tmpfs), every request of the guest would fail.
pub(super) fn direct_io_works(file: &File) -> bool {
    const PAGE: usize = 4096;
    let reopened = || -> io::Result<()> {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
        // Anonymous memory is page aligned, which is what direct I/O wants.
        let mut page = memmap2::MmapMut::map_anon(PAGE)?;
        direct.read_at(&mut page, 0).map(drop)
    };
    match reopened() {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, "no direct I/O");
            false
        }
    }
}

fn bind(node: &File, disk: &FileDisk, options: &AttachOptions<'_>) -> io::Result<()> {
    let info = info_for(disk, options);
    match sys::configure(node.as_fd(), disk.file.as_fd(), options.block_size.bytes(), &info) {
        // Kernels before 5.8 do not know LOOP_CONFIGURE and say one of these.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            bind_in_steps(node, disk, options, &info)
        }
        result => result,
    }
}

/// The same with the calls that existed before `LOOP_CONFIGURE`. Between the steps the device is visible with
/// settings not yet applied, which is harmless: nobody knows its number yet.
fn bind_in_steps(
    node: &File,
    disk: &FileDisk,
    options: &AttachOptions<'_>,
    info: &sys::LoopInfo64,
) -> io::Result<()> {
    sys::set_fd(node.as_fd(), disk.file.as_fd())?;
    let settings = || -> io::Result<()> {
        retry_again(|| sys::set_status(node.as_fd(), info))?;
        if options.block_size != BlockSize::B512 {
            retry_again(|| sys::set_block_size(node.as_fd(), options.block_size.bytes()))?;
        }
        Ok(())
    };
    if let Err(error) = settings() {
        // The first error is the one to report; a device left behind is found again by its recorded number.
        let _ = sys::clear_fd(node.as_fd());
        return Err(error);
    }
    if options.direct_io {
        // Refusal shows in the status, where it is reported.
        let _ = sys::set_direct_io(node.as_fd(), true);
    }
    Ok(())
}

fn retry_again(mut call: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let mut result = call();
    for _ in 1..STATUS_ATTEMPTS {
        match &result {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => result = call(),
            _ => break,
        }
    }
    result
}

fn info_for(disk: &FileDisk, options: &AttachOptions<'_>) -> sys::LoopInfo64 {
    let mut info = sys::LoopInfo64::default();
    if disk.access == Access::ReadOnly {
        info.flags |= sys::LO_FLAGS_READ_ONLY;
    }
    if options.autoclear {
        info.flags |= sys::LO_FLAGS_AUTOCLEAR;
    }
    if options.direct_io {
        info.flags |= sys::LO_FLAGS_DIRECT_IO;
    }
    let path = disk.path.to_string_lossy();
    let name = cut(options.name.unwrap_or(&path), sys::LO_NAME_SIZE - 1);
    for (slot, byte) in info.file_name.iter_mut().zip(name.bytes()) {
        *slot = byte;
    }
    info
}

/// At most `limit` bytes of `text`, ending between two characters.
fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

fn finish(
    number: u32,
    dev: DevNumber,
    node: &File,
    disk: &FileDisk,
    wanted_direct_io: bool,
) -> Result<LoopDevice, LoopError> {
    let status = match status_of(node, number) {
        Ok(Some(status)) if status.backing == disk.id => status,
        result => {
            let _ = sys::clear_fd(node.as_fd());
            let source = match result {
                Err(LoopError::Io { source, .. }) => source,
                _ => io::Error::other("the kernel attached another file than the one given"),
            };
            return Err(LoopError::Io { number, action: "verify", source });
        }
    };
    if wanted_direct_io && !status.direct_io {
        tracing::info!(
            path = %disk.path.display(),
            number,
            "direct I/O is not possible on this file: dom0's page cache is used for it"
        );
    }
    Ok(LoopDevice {
        number,
        path: node_path(number),
        dev,
        backing: disk.id,
        read_only: status.read_only,
        direct_io: status.direct_io,
    })
}

fn status_of(node: &File, number: u32) -> Result<Option<LoopStatus>, LoopError> {
    let info = match sys::get_status(node.as_fd()) {
        Ok(info) => info,
        Err(error) if gone(&error) => return Ok(None),
        Err(source) => return Err(LoopError::Io { number, action: "ask for the status of", source }),
    };
    let name = info.file_name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Some(LoopStatus {
        number,
        backing: FileId { device: info.device, inode: info.inode },
        read_only: info.flags & sys::LO_FLAGS_READ_ONLY != 0,
        autoclear: info.flags & sys::LO_FLAGS_AUTOCLEAR != 0,
        direct_io: info.flags & sys::LO_FLAGS_DIRECT_IO != 0,
        name: String::from_utf8_lossy(name).into_owned(),
    }))
}

/// Opens `/dev/loopN`, making the node when nothing else (udev, devtmpfs) has, and checks that it is that device.
fn open_node(number: u32, access: Access) -> Result<(File, DevNumber), LoopError> {
    let failed = |action| move |errno: Errno| LoopError::Io { number, action, source: errno.into() };
    let path = node_path(number);
    let mode = match access {
        Access::ReadOnly => OFlag::O_RDONLY,
        Access::ReadWrite => OFlag::O_RDWR,
    };
    let flags = mode | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let dev = sysfs_dev(number)?;
    let node = match open(&path, flags, Mode::empty()) {
        Err(Errno::ENOENT) => {
            make_node(number, dev)?;
            open(&path, flags, Mode::empty()).map_err(failed("open"))?
        }
        result => result.map_err(failed("open"))?,
    };
    let node = File::from(node);
    let metadata = node.metadata().map_err(|source| LoopError::Io { number, action: "examine", source })?;
    if !metadata.file_type().is_block_device() || DevNumber::from_raw(metadata.rdev()) != dev {
        return Err(LoopError::WrongNode { number });
    }
    Ok((node, dev))
}

fn make_node(number: u32, dev: DevNumber) -> Result<(), LoopError> {
    let private = Mode::S_IRUSR | Mode::S_IWUSR;
    match mknod(&node_path(number), SFlag::S_IFBLK, private, makedev(dev.major, dev.minor)) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(LoopError::Io { number, action: "make", source: errno.into() }),
    }
}

/// The device number that the kernel gave loop device `number`; not always the number itself (partition minors).
fn sysfs_dev(number: u32) -> Result<DevNumber, LoopError> {
    let failed = |source| LoopError::Io { number, action: "find the device number of", source };
    let text = std::fs::read_to_string(attribute(number, "dev")).map_err(failed)?;
    let parsed = text.trim().split_once(':').and_then(|(major, minor)| {
        Some(DevNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
    });
    parsed.ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidData, format!("sysfs says {text:?}"))))
}

fn node_path(number: u32) -> PathBuf {
    PathBuf::from(format!("/dev/loop{number}"))
}

fn attribute(number: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("{SYS_BLOCK}/loop{number}/{name}"))
}

/// Whether the error says that the device does not exist or has nothing attached.
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENXIO | libc::ENODEV))
}

#[cfg(test)]
mod tests;
