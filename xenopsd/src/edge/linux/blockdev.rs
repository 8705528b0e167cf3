//! Opening what a virtual disk is kept on: a block device or a raw file.
//!
//! ```text
//!  path ──O_PATH──► what is it? ─┬─ block device ─► reopen ─► read-only? size? ─► Disk::Block
//!                                ├─ regular file ─► reopen ─► size?            ─► Disk::File
//!                                └─ anything else: refused without ever being opened for I/O
//! ```
//!
//! The first open takes only a reference (`O_PATH`), so that a FIFO cannot block the daemon and a tape or a watchdog
//! is not set off by being looked at; the second goes through that reference, so both see the same object.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, major, minor};

use super::loopdev::BlockSize;
use crate::edge::DiskId;

/// Bytes of a disk sector as the block protocols count them.
pub const SECTOR_SIZE: u64 = 512;

/// Write permission of anybody: a file without any is meant to be read only.
const WRITE_BITS: u32 = 0o222;

/// What the guest may do with a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads only: opened read-only from the first open on, so that nothing downstream can write.
    ReadOnly,
    /// Reads and writes.
    ReadWrite,
}

/// What to do when the last component of a path is a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// Follow it: for paths an administrator wrote (`/dev/vg/lv` and `/dev/disk/by-id/*` are links).
    Follow,
    /// Refuse it: for paths in directories others can write to.
    Refuse,
}

/// A device number as the kernel prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DevNumber {
    /// Which driver.
    pub major: u64,
    /// Which of its devices.
    pub minor: u64,
}

impl DevNumber {
    /// From the kernel's `dev_t` (`st_dev`, `st_rdev`).
    pub fn from_raw(raw: u64) -> Self {
        Self { major: major(raw), minor: minor(raw) }
    }

    /// Form of blkback's `physical-device` node: both numbers in lower-case hexadecimal.
    pub fn to_physical_device(self) -> String {
        format!("{:x}:{:x}", self.major, self.minor)
    }
}

impl fmt::Display for DevNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// Which file it is, whatever it is called: the pair that `stat` and a loop device both report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// `st_dev` of the file system.
    pub device: u64,
    /// Inode number on it.
    pub inode: u64,
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} on device {}", self.inode, DevNumber::from_raw(self.device))
    }
}

/// An open block device.
#[derive(Debug)]
pub struct BlockDisk {
    /// Keeps the device open; dropping it does not disturb a backend that has opened it by number.
    pub file: File,
    /// Where it was found.
    pub path: PathBuf,
    /// Its own device number, for the backend.
    pub rdev: DevNumber,
    /// Size in bytes, more than 0.
    pub size: u64,
    /// How it was opened.
    pub access: Access,
}

/// An open regular file, to be shown through a loop device.
#[derive(Debug)]
pub struct FileDisk {
    /// The open file.
    pub file: File,
    /// Where it was found.
    pub path: PathBuf,
    /// Its identity.
    pub id: FileId,
    /// Size in bytes, more than 0.
    pub size: u64,
    /// How it was opened.
    pub access: Access,
}

/// What a virtual disk is kept on.
#[derive(Debug)]
pub enum Disk {
    /// A block device: usable by blkback as it is.
    Block(BlockDisk),
    /// A regular file: needs a loop device.
    File(FileDisk),
}

impl Disk {
    /// Which it is.
    pub fn id(&self) -> DiskId {
        match self {
            Self::Block(disk) => DiskId::Block { major: disk.rdev.major, minor: disk.rdev.minor },
            Self::File(disk) => disk.id.into(),
        }
    }
}

impl Disk {
    /// Checks that it has blocks of that size, or can be given them.
    ///
    /// # Errors
    ///
    /// [`OpenDiskError::BlockSize`].
    pub fn must_have_blocks(&self, wanted: Option<BlockSize>) -> Result<(), OpenDiskError> {
        let Some(wanted) = wanted.map(BlockSize::bytes) else { return Ok(()) };
        let (path, why) = match self {
            Self::Block(disk) => match ffi::linux::block::block_size(disk.file.as_fd()) {
                Ok(found) if found == wanted => return Ok(()),
                Ok(found) => (&disk.path, format!("it is a device with blocks of {found} bytes")),
                Err(error) => return Err(io_error(&disk.path, "ask for the block size of", error)),
            },
            Self::File(disk) if disk.size.is_multiple_of(wanted.into()) => return Ok(()),
            Self::File(disk) => (&disk.path, format!("its size is {} bytes", disk.size)),
        };
        Err(OpenDiskError::BlockSize { path: path.clone(), wanted, why })
    }
}

/// The size in bytes of the block device with this number.
///
/// # Errors
///
/// The kernel's: there is none.
pub fn size_of(device: DevNumber) -> io::Result<u64> {
    let path = format!("/sys/dev/block/{device}/size");
    let text = std::fs::read_to_string(&path)
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))?;
    let sectors: u64 = text.trim().parse().map_err(|_| io::Error::other(format!("{path}: not a number")))?;
    Ok(sectors.saturating_mul(SECTOR_SIZE))
}

impl From<FileId> for DiskId {
    fn from(file: FileId) -> Self {
        Self::File { device: file.device, inode: file.inode }
    }
}

/// Why a path cannot serve as a disk.
#[derive(Debug, thiserror::Error)]
pub enum OpenDiskError {
    /// Nothing is there.
    #[error("disk {path:?} does not exist: check the path in the VM's configuration")]
    Missing {
        /// The path as given.
        path: PathBuf,
    },
    /// A directory.
    #[error("disk {path:?} is a directory: name the disk image or block device inside it")]
    Directory {
        /// The path as given.
        path: PathBuf,
    },
    /// A symbolic link where none is accepted.
    #[error("disk {path:?} is a symbolic link: give the path it points to")]
    Symlink {
        /// The path as given.
        path: PathBuf,
    },
    /// A FIFO, socket or character device.
    #[error("disk {path:?} is a {found}: a disk must be a regular file or a block device")]
    NotADisk {
        /// The path as given.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// The daemon may not open it.
    #[error(
        "no permission to open disk {path:?}: check its owner and mode, and those of the directories above it"
    )]
    Permission {
        /// The path as given.
        path: PathBuf,
    },
    /// Read-write was asked of something that can only be read.
    #[error(
        "disk {path:?} can only be read (read-only device, file system or file mode): attach it with mode r, or make it writable"
    )]
    ReadOnlyMedia {
        /// The path as given.
        path: PathBuf,
    },
    /// A drive without a disc.
    #[error("drive {path:?} has no medium: insert one, or configure the drive as empty")]
    NoMedium {
        /// The path as given.
        path: PathBuf,
    },
    /// A size of less than one sector.
    #[error(
        "disk {path:?} holds {size} bytes, less than one sector of {SECTOR_SIZE}: make it larger, for example with `truncate -s 10G`"
    )]
    Empty {
        /// The path as given.
        path: PathBuf,
        /// Bytes found.
        size: u64,
    },
    /// It cannot have blocks of the size that is asked for.
    #[error("disk {path:?} cannot have blocks of {wanted} bytes: {why}")]
    BlockSize {
        /// The path as given.
        path: PathBuf,
        /// As asked for.
        wanted: u32,
        /// What it has.
        why: String,
    },
    /// Any other refusal of the kernel.
    #[error("cannot {action} disk {path:?}: {source}")]
    Io {
        /// The path as given.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Opens what `path` names for use as a disk.
///
/// # Errors
///
/// [`OpenDiskError`] says what is there instead of a disk, or why it cannot be used as asked.
pub fn open_disk(path: &Path, access: Access, links: Links) -> Result<Disk, OpenDiskError> {
    let reference = open_reference(path, links)?;
    let metadata =
        File::from(reference.try_clone().map_err(|e| io_error(path, "duplicate the descriptor of", e))?)
            .metadata()
            .map_err(|e| io_error(path, "examine", e))?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        return Err(OpenDiskError::Directory { path: path.to_owned() });
    }
    if kind.is_symlink() {
        return Err(OpenDiskError::Symlink { path: path.to_owned() });
    }
    if !kind.is_file() && !kind.is_block_device() {
        let found = if kind.is_fifo() {
            "FIFO"
        } else if kind.is_socket() {
            "socket"
        } else {
            "character device"
        };
        return Err(OpenDiskError::NotADisk { path: path.to_owned(), found });
    }
    let file = reopen(&reference, path, access)?;
    if kind.is_file() {
        regular_file(file, path, access, &metadata)
    } else {
        block_device(file, path, access, &metadata)
    }
}

fn open_reference(path: &Path, links: Links) -> Result<OwnedFd, OpenDiskError> {
    let mut flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    if links == Links::Refuse {
        flags |= OFlag::O_NOFOLLOW;
    }
    open(path, flags, Mode::empty()).map_err(|errno| classify(path, Access::ReadOnly, errno))
}

fn reopen(reference: &OwnedFd, path: &Path, access: Access) -> Result<File, OpenDiskError> {
    let mode = match access {
        Access::ReadOnly => OFlag::O_RDONLY,
        Access::ReadWrite => OFlag::O_RDWR,
    };
    let link = format!("/proc/self/fd/{}", reference.as_raw_fd());
    open(link.as_str(), mode | OFlag::O_CLOEXEC | OFlag::O_NOCTTY, Mode::empty())
        .map(File::from)
        .map_err(|errno| classify(path, access, errno))
}

fn regular_file(
    file: File,
    path: &Path,
    access: Access,
    metadata: &std::fs::Metadata,
) -> Result<Disk, OpenDiskError> {
    // Root may open it for writing all the same.
    if access == Access::ReadWrite && metadata.mode() & WRITE_BITS == 0 {
        return Err(OpenDiskError::ReadOnlyMedia { path: path.to_owned() });
    }
    let size = metadata.len();
    check_size(path, size)?;
    let id = FileId { device: metadata.dev(), inode: metadata.ino() };
    Ok(Disk::File(FileDisk { file, path: path.to_owned(), id, size, access }))
}

fn block_device(
    file: File,
    path: &Path,
    access: Access,
    metadata: &std::fs::Metadata,
) -> Result<Disk, OpenDiskError> {
    let read_only = ffi::linux::block::is_read_only(file.as_fd())
        .map_err(|e| io_error(path, "ask for the mode of", e))?;
    if read_only && access == Access::ReadWrite {
        return Err(OpenDiskError::ReadOnlyMedia { path: path.to_owned() });
    }
    let size =
        ffi::linux::block::size_bytes(file.as_fd()).map_err(|e| io_error(path, "ask for the size of", e))?;
    check_size(path, size)?;
    let rdev = DevNumber::from_raw(metadata.rdev());
    Ok(Disk::Block(BlockDisk { file, path: path.to_owned(), rdev, size, access }))
}

fn check_size(path: &Path, size: u64) -> Result<(), OpenDiskError> {
    if size < SECTOR_SIZE { Err(OpenDiskError::Empty { path: path.to_owned(), size }) } else { Ok(()) }
}

fn classify(path: &Path, access: Access, errno: Errno) -> OpenDiskError {
    let path = path.to_owned();
    match errno {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ENXIO | Errno::ENODEV => OpenDiskError::Missing { path },
        Errno::EROFS => OpenDiskError::ReadOnlyMedia { path },
        // A block device that is read-only refuses writers with EACCES; root is refused nothing else on one.
        Errno::EACCES if access == Access::ReadWrite && nix::unistd::geteuid().is_root() => {
            OpenDiskError::ReadOnlyMedia { path }
        }
        Errno::EACCES | Errno::EPERM => OpenDiskError::Permission { path },
        Errno::ENOMEDIUM => OpenDiskError::NoMedium { path },
        Errno::ELOOP => OpenDiskError::Symlink { path },
        other => OpenDiskError::Io { path, action: "open", source: other.into() },
    }
}

fn io_error(path: &Path, action: &'static str, source: io::Error) -> OpenDiskError {
    OpenDiskError::Io { path: path.to_owned(), action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn image(dir: &Path, name: &str, size: u64) -> PathBuf {
        let path = dir.join(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    #[test]
    fn a_raw_file_is_recognised_with_its_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), "disk.img", 1 << 20);
        let Disk::File(disk) = open_disk(&path, Access::ReadWrite, Links::Refuse).unwrap() else {
            panic!("a file")
        };
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(disk.id, FileId { device: metadata.dev(), inode: metadata.ino() });
        assert_eq!(disk.size, 1 << 20);
    }

    #[test]
    fn everything_that_is_no_disk_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        nix::unistd::mkfifo(&at("fifo"), Mode::from_bits_truncate(0o600)).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        symlink(image(dir.path(), "real", 4096), at("link")).unwrap();
        symlink(at("gone"), at("dangling")).unwrap();
        image(dir.path(), "empty", 0);
        image(dir.path(), "tiny", 511);
        let open_rw = |path: &Path, links| open_disk(path, Access::ReadWrite, links).unwrap_err();
        assert!(matches!(open_rw(&at("none"), Links::Follow), OpenDiskError::Missing { .. }));
        assert!(matches!(open_rw(&at("dangling"), Links::Follow), OpenDiskError::Missing { .. }));
        assert!(matches!(open_rw(&at("real/below"), Links::Follow), OpenDiskError::Missing { .. }));
        assert!(matches!(open_rw(dir.path(), Links::Follow), OpenDiskError::Directory { .. }));
        assert!(matches!(open_rw(&at("link"), Links::Refuse), OpenDiskError::Symlink { .. }));
        assert!(matches!(open_rw(&at("fifo"), Links::Follow), OpenDiskError::NotADisk { found: "FIFO", .. }));
        assert!(matches!(
            open_rw(&at("socket"), Links::Follow),
            OpenDiskError::NotADisk { found: "socket", .. }
        ));
        assert!(matches!(
            open_rw(Path::new("/dev/null"), Links::Follow),
            OpenDiskError::NotADisk { found: "character device", .. }
        ));
        assert!(matches!(open_rw(&at("empty"), Links::Follow), OpenDiskError::Empty { size: 0, .. }));
        assert!(matches!(open_rw(&at("tiny"), Links::Follow), OpenDiskError::Empty { size: 511, .. }));
        assert!(matches!(open_disk(&at("link"), Access::ReadOnly, Links::Follow), Ok(Disk::File(_))));
        drop(listener);
    }

    #[test]
    fn errors_of_open_become_what_the_administrator_has_to_do() {
        let path = Path::new("/disk");
        assert!(matches!(
            classify(path, Access::ReadWrite, Errno::EROFS),
            OpenDiskError::ReadOnlyMedia { .. }
        ));
        assert!(matches!(classify(path, Access::ReadOnly, Errno::EACCES), OpenDiskError::Permission { .. }));
        assert!(matches!(classify(path, Access::ReadOnly, Errno::ENOMEDIUM), OpenDiskError::NoMedium { .. }));
        assert!(classify(path, Access::ReadOnly, Errno::EIO).to_string().contains("/disk"));
    }

    #[test]
    fn device_numbers_are_written_as_blkback_reads_them() {
        let number = DevNumber::from_raw(nix::sys::stat::makedev(253, 17));
        assert_eq!((number.to_physical_device().as_str(), number.to_string().as_str()), ("fd:11", "253:17"));
    }
}
