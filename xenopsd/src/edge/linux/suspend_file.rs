//! The file or block device a suspended VM is kept in.
//!
//! ```text
//!   create: path ──► what is it? ─┬─ nothing there ─► made, 0600
//!                                 ├─ regular file, empty or a suspend image ─► locked, emptied, 0600
//!                                 ├─ block device nobody uses ─► claimed, large enough?
//!                                 └─ anything else: refused
//!   discard: only a file that nobody completed and nobody has open
//! ```
//!
//! An image holds all of a guest's memory, keys and passwords included: it is for root's eyes only.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::statvfs::fstatvfs;

/// First bytes of a whole image.
pub const SIGNATURE: &[u8; SIGNATURE_BYTES] = b"XenSavedDomv2-\n";

/// Length of the signature.
pub const SIGNATURE_BYTES: usize = 15;

/// Who may read an image.
const MODE: u32 = 0o600;

/// Why a suspend image's place cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SuspendFileError {
    /// The daemon's directory is not its clients'.
    #[error("suspend image {} is not an absolute path", .0.display())]
    Relative(PathBuf),
    /// There is no such file.
    #[error("suspend image {} does not exist", .0.display())]
    Missing(PathBuf),
    /// There is no directory to make it in.
    #[error("suspend image {}: its directory does not exist; make it first", .0.display())]
    NoDirectory(PathBuf),
    /// It is a directory, a terminal, …
    #[error("suspend image {}: neither a regular file nor a block device", .0.display())]
    WrongType(PathBuf),
    /// It holds something else, which would be lost.
    #[error(
        "suspend image {}: the file exists and is no suspend image; remove it, or name another",
        .0.display()
    )]
    Occupied(PathBuf),
    /// Another suspend or resume, a mount or a guest has it.
    #[error("suspend image {}: in use by somebody else", .0.display())]
    InUse(PathBuf),
    /// Too little room.
    #[error(
        "suspend image {}: {needed} bytes are needed and {room} are there; free some space, or name a larger device",
        path.display()
    )]
    TooSmall {
        /// The path.
        path: PathBuf,
        /// Bytes the image may take.
        needed: u64,
        /// Bytes there are.
        room: u64,
    },
    /// The kernel refused.
    #[error("suspend image {}: cannot {action}: {source}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

type Result<T> = std::result::Result<T, SuspendFileError>;

/// An open image, ours alone while it is open.
#[derive(Debug)]
pub struct SuspendFile {
    file: Flock<File>,
    path: PathBuf,
}

impl SuspendFile {
    /// Opens `path` for a new image of up to `needed` bytes. A file that holds something else is not overwritten.
    ///
    /// # Errors
    /// [`SuspendFileError`].
    pub fn create(path: &Path, needed: u64) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let file = match kind(path)? {
            None => {
                options.create_new(true).mode(MODE);
                open(path, &options)?
            }
            // Exclusively: fails while it is mounted or a guest's disk.
            Some(Kind::Block) => {
                open(path, options.custom_flags((OFlag::O_EXCL | OFlag::O_NONBLOCK).bits()))?
            }
            // Without waiting, should a FIFO have come in its place meanwhile.
            Some(Kind::Regular) => open(path, options.custom_flags(OFlag::O_NONBLOCK.bits()))?,
        };
        let this = Self::lock(file, path)?;
        this.prepare(needed)?;
        Ok(this)
    }

    /// Opens an image for reading.
    ///
    /// # Errors
    /// [`SuspendFileError`].
    pub fn open(path: &Path) -> Result<Self> {
        kind(path)?.ok_or_else(|| SuspendFileError::Missing(path.to_owned()))?;
        Self::lock(open(path, OpenOptions::new().read(true))?, path)
    }

    /// Removes the file of an image that was not completed: it is empty, or begins with zeroes where a whole one has its
    /// signature. A whole image, anything else, and one that somebody has open, is left alone; so is a device, on which
    /// an image without its signature is as good as none.
    ///
    /// # Errors
    /// [`SuspendFileError`].
    pub fn discard(path: &Path) -> Result<()> {
        match kind(path) {
            Ok(Some(Kind::Regular)) => {}
            Ok(_) | Err(SuspendFileError::Relative(_) | SuspendFileError::WrongType(_)) => return Ok(()),
            Err(other) => return Err(other),
        }
        let mut start = [0; SIGNATURE_BYTES];
        let file = open(path, OpenOptions::new().read(true))?;
        let Ok(locked) = Self::lock(file, path) else { return Ok(()) };
        let read = locked.file().read(&mut start).map_err(io_error(path, "read it"))?;
        if start[..read].iter().all(|byte| *byte == 0) {
            fs::remove_file(path).map_err(io_error(path, "remove it"))?;
        }
        Ok(())
    }

    /// The open file, at its current position.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn lock(file: File, path: &Path) -> Result<Self> {
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock);
        let file = lock.map_err(|_| SuspendFileError::InUse(path.to_owned()))?;
        Ok(Self { file, path: path.to_owned() })
    }

    fn prepare(&self, needed: u64) -> Result<()> {
        let (file, path) = (&*self.file, &*self.path);
        let failed = |action| io_error(path, action);
        let metadata = file.metadata().map_err(failed("look at it"))?;
        let room = if metadata.file_type().is_block_device() {
            ffi::linux::block::size_bytes(file.as_fd()).map_err(failed("ask for its size"))?
        } else {
            let mut start = [0; SIGNATURE_BYTES];
            let read = (&mut { file }).read(&mut start).map_err(failed("read it"))?;
            if start[..read].iter().any(|byte| *byte != 0) && &start != SIGNATURE {
                return Err(SuspendFileError::Occupied(path.to_owned()));
            }
            file.set_permissions(Permissions::from_mode(MODE)).map_err(failed("change its mode"))?;
            file.set_len(0).map_err(failed("empty it"))?;
            (&mut { file }).seek(SeekFrom::Start(0)).map_err(failed("empty it"))?;
            let space = fstatvfs(file).map_err(|e| failed("ask for free space")(e.into()))?;
            space.blocks_available().saturating_mul(space.fragment_size())
        };
        if room < needed {
            let path = path.to_owned();
            if !metadata.file_type().is_block_device() {
                // Made or emptied by us a moment ago.
                let _ = fs::remove_file(&path);
            }
            return Err(SuspendFileError::TooSmall { path, needed, room });
        }
        Ok(())
    }
}

enum Kind {
    Regular,
    Block,
}

/// What there is; none when nothing is.
fn kind(path: &Path) -> Result<Option<Kind>> {
    if !path.is_absolute() {
        return Err(SuspendFileError::Relative(path.to_owned()));
    }
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(Kind::Regular)),
        Ok(metadata) if metadata.file_type().is_block_device() => Ok(Some(Kind::Block)),
        Ok(_) => Err(SuspendFileError::WrongType(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SuspendFileError::Io { action: "look at it", path: path.to_owned(), source }),
    }
}

fn open(path: &Path, options: &OpenOptions) -> Result<File> {
    options.open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => SuspendFileError::NoDirectory(path.to_owned()),
        io::ErrorKind::ResourceBusy => SuspendFileError::InUse(path.to_owned()),
        _ => SuspendFileError::Io { action: "open it", path: path.to_owned(), source },
    })
}

fn io_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> SuspendFileError + use<> {
    let path = path.to_owned();
    move |source| SuspendFileError::Io { action, path, source }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn create(path: &Path) -> Result<SuspendFile> {
        SuspendFile::create(path, 1024)
    }

    fn begun(path: &Path, bytes: &[u8]) {
        create(path).unwrap().file().write_all(bytes).unwrap();
    }

    #[test]
    fn an_image_is_for_its_owner_only_and_begins_empty() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        begun(&path, b"XenSavedDomv2-\nand memory");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let again = create(&path).unwrap();
        let metadata = again.file().metadata().unwrap();
        assert_eq!((metadata.len(), metadata.mode() & 0o777), (0, 0o600));
    }

    #[test]
    fn only_images_are_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        for (content, overwritten) in
            [(&b"precious"[..], false), (b"", true), (b"XenSavedDomv2-\n...", true), (b"\0\0\0", true)]
        {
            fs::write(&path, content).unwrap();
            match create(&path) {
                Ok(_) => assert!(overwritten, "{content:?}"),
                Err(SuspendFileError::Occupied(_)) => {
                    assert!(!overwritten);
                    assert_eq!(fs::read(&path).unwrap(), content);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_an_image_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let refused = |path: &Path| create(path).unwrap_err();
        assert!(matches!(refused(Path::new("relative")), SuspendFileError::Relative(_)));
        assert!(matches!(refused(dir.path()), SuspendFileError::WrongType(_)));
        assert!(matches!(refused(Path::new("/dev/full")), SuspendFileError::WrongType(_)));
        assert!(matches!(refused(&at("no/such")), SuspendFileError::NoDirectory(_)));
        assert!(matches!(SuspendFile::open(&at("none")), Err(SuspendFileError::Missing(_))));
        let held = create(&at("held")).unwrap();
        assert!(matches!(refused(&at("held")), SuspendFileError::InUse(_)));
        assert!(matches!(SuspendFile::open(&at("held")), Err(SuspendFileError::InUse(_))));
        drop(held);
        create(&at("held")).unwrap();
    }

    #[test]
    fn too_little_room_is_said_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let error = SuspendFile::create(&path, u64::MAX).unwrap_err();
        assert!(matches!(error, SuspendFileError::TooSmall { needed: u64::MAX, .. }), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn only_what_nobody_completed_is_discarded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let discard = || SuspendFile::discard(&path);
        discard().unwrap();
        for (content, left) in [
            (&b""[..], false),
            (&[0; 40], false),
            (&[0; 3], false),
            (b"XenSavedDomv2-\n", true),
            (b"x", true),
        ] {
            fs::write(&path, content).unwrap();
            discard().unwrap();
            assert_eq!(path.exists(), left, "{content:?}");
        }
        fs::remove_file(&path).unwrap();
        let open = create(&path).unwrap();
        discard().unwrap();
        assert!(path.exists(), "somebody has it open");
        drop(open);
        discard().unwrap();
        assert!(!path.exists());
    }
}
