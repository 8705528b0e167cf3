//! Kernels and ramdisks as memory: mapped under a lease that keeps others from changing the file meanwhile, or, where
//! the file system has no leases or somebody is writing to it, copied. Either way the memory goes back when the build
//! ends. Builds that go on at once from one file share its mapping: to map it is a good part of a small guest's start, as
//! a dom0 that is a PV guest itself asks the hypervisor for every page. That is why kernels are hardly touched through
//! it: see `ffi::builder`.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use ffi::builder;
use ffi::linux::mapped::MappedFile;
pub use ffi::linux::mapped::Pages;
use memmap2::MmapMut;

/// Largest kernel file. Debian's unpacked debug-free kernel is 62 MB; nothing sensible is above this.
pub const MAX_KERNEL: u64 = builder::MAX_KERNEL as u64;

/// Largest ramdisk file: installers' are up to a few hundred MB.
pub const MAX_RAMDISK: u64 = builder::MAX_RAMDISK as u64;

/// Why a kernel or ramdisk file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// There is no such file.
    #[error("{what} {}: no such file", path.display())]
    Missing {
        /// `kernel` or `ramdisk`.
        what: &'static str,
        /// As given.
        path: PathBuf,
    },
    /// It is there and cannot be used.
    #[error("{what} {}: {why}", path.display())]
    Unusable {
        /// `kernel` or `ramdisk`.
        what: &'static str,
        /// As given.
        path: PathBuf,
        /// For people.
        why: String,
    },
}

/// An open, checked, not yet read image.
#[derive(Debug)]
pub struct ImageFile {
    what: &'static str,
    path: PathBuf,
    file: File,
    length: usize,
    /// Which file it is; none when it is in memory and sealed, so that nobody can change it any more.
    id: Option<FileId>,
}

/// Device and inode.
type FileId = (u64, u64);

/// Files that builds have mapped now: one table for the process, as leases are the process's. An entry whose last build
/// is over is removed when the next file is mapped.
static MAPPED: Mutex<Vec<(FileId, Weak<MappedFile>)>> = Mutex::new(Vec::new());

/// The bytes of a kernel or ramdisk.
#[derive(Debug)]
pub enum Image {
    /// The file itself.
    Mapped(Arc<MappedFile>),
    /// A copy of it.
    Copied(MmapMut),
}

impl Image {
    /// Opens `path` and checks kind and size without reading it.
    ///
    /// # Errors
    /// [`ImageError`]: missing, not a regular file, empty, or above `limit` bytes.
    pub fn open(what: &'static str, path: &Path, limit: u64) -> Result<ImageFile, ImageError> {
        let unusable = |why: String| ImageError::Unusable { what, path: path.to_owned(), why };
        if !path.is_absolute() {
            return Err(unusable(
                "not an absolute path; the daemon's directory is not its clients'".to_owned(),
            ));
        }
        // A FIFO must not block the open for ever.
        let opened = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path);
        let file = opened.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => ImageError::Missing { what, path: path.to_owned() },
            _ => unusable(error.to_string()),
        })?;
        let meta = file.metadata().map_err(|error| unusable(error.to_string()))?;
        if !meta.is_file() {
            return Err(unusable("not a regular file".to_owned()));
        }
        if meta.len() == 0 {
            return Err(unusable("the file is empty".to_owned()));
        }
        if meta.len() > limit {
            return Err(unusable(format!("{} bytes is above the limit of {limit}", meta.len())));
        }
        let length = usize::try_from(meta.len()).map_err(|_| unusable("too large".to_owned()))?;
        Ok(ImageFile { what, path: path.to_owned(), file, length, id: Some((meta.dev(), meta.ino())) })
    }

    /// A file in memory that is sealed against every change; `path` says for people where it comes from.
    ///
    /// # Errors
    /// [`ImageError::Unusable`] when it is empty.
    pub fn sealed(what: &'static str, path: PathBuf, file: File) -> Result<ImageFile, ImageError> {
        let length = file.metadata().map(|meta| usize::try_from(meta.len()).unwrap_or(usize::MAX));
        match length {
            Ok(0) => Err(ImageError::Unusable { what, path, why: "the file is empty".to_owned() }),
            Ok(length) => Ok(ImageFile { what, path, file, length, id: None }),
            Err(error) => Err(ImageError::Unusable { what, path, why: error.to_string() }),
        }
    }

    /// The whole image.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Copied(copy) => copy,
        }
    }

    /// The same as what a domain starts with.
    pub fn as_kernel(&self) -> builder::Kernel<'_> {
        match self {
            Self::Mapped(map) => builder::Kernel::File(map),
            Self::Copied(copy) => builder::Kernel::Bytes(copy),
        }
    }
}

impl ImageFile {
    /// Its length in bytes.
    pub const fn length(&self) -> usize {
        self.length
    }

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// The kernel's; [`std::io::ErrorKind::UnexpectedEof`] when it ends before.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// The open file, for who makes a copy of its own.
    pub fn into_file(self) -> File {
        self.file
    }

    /// That it cannot be used.
    pub fn unusable(&self, why: String) -> ImageError {
        ImageError::Unusable { what: self.what, path: self.path.clone(), why }
    }

    /// Its bytes, of which few or all are going to be looked at.
    ///
    /// # Errors
    /// [`ImageError::Unusable`] when it cannot be read, or its size has changed.
    pub fn read(self, pages: Pages) -> Result<Image, ImageError> {
        match self.map(pages) {
            Ok(map) if map.len() == self.length => Ok(Image::Mapped(map)),
            Ok(_) => Err(self.changed()),
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "copied instead of mapped");
                self.copy()
            }
        }
    }

    /// One mapping at a time: who comes while a file is being mapped waits for it and shares it.
    fn map(&self, pages: Pages) -> std::io::Result<Arc<MappedFile>> {
        let Some(id) = self.id else { return Ok(Arc::new(MappedFile::sealed(self.file.try_clone()?)?)) };
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        mapped.retain(|(_, map)| map.strong_count() > 0);
        let known = mapped.iter().filter(|(of, _)| *of == id).find_map(|(_, map)| map.upgrade());
        // Somebody who waits to write to it is not kept waiting by one build after the other.
        if let Some(map) = known.filter(|map| map.is_leased()) {
            return Ok(map);
        }
        let map = Arc::new(MappedFile::new(self.file.try_clone()?, pages)?);
        mapped.push((id, Arc::downgrade(&map)));
        Ok(map)
    }

    fn changed(self) -> ImageError {
        ImageError::Unusable {
            what: self.what,
            path: self.path,
            why: "its size has changed just now".to_owned(),
        }
    }

    fn copy(mut self) -> Result<Image, ImageError> {
        let (what, path) = (self.what, self.path);
        let unusable =
            |error: std::io::Error| ImageError::Unusable { what, path: path.clone(), why: error.to_string() };
        let mut bytes = MmapMut::map_anon(self.length).map_err(unusable)?;
        self.file.read_exact(&mut bytes).map_err(unusable)?;
        Ok(Image::Copied(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(path: &Path, limit: u64) -> String {
        Image::open("kernel", path, limit).unwrap_err().to_string()
    }

    #[test]
    fn bad_files_are_named_with_their_fault() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k");
        assert!(matches!(Image::open("kernel", &file, 10), Err(ImageError::Missing { .. })));
        assert!(refusal(dir.path(), 10).contains("not a regular file"));
        std::fs::write(&file, "").unwrap();
        assert!(refusal(&file, 10).contains("is empty"));
        std::fs::write(&file, "12345678901").unwrap();
        assert!(refusal(&file, 10).contains("above the limit of 10"));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert!(refusal(&fifo, 10).contains("not a regular file"));
    }

    #[test]
    fn a_file_that_shrinks_before_it_is_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k");
        std::fs::write(&file, "kernel").unwrap();
        let open = || Image::open("kernel", &file, 10).unwrap();
        let (mapped, copied) = (open(), open());
        std::fs::write(&file, "ker").unwrap();
        assert!(mapped.read(Pages::Now).is_err());
        assert!(copied.copy().is_err());
    }

    #[test]
    fn a_sealed_file_in_memory_is_mapped() {
        use nix::fcntl::{FcntlArg, SealFlag, fcntl};
        use nix::sys::memfd::{MFdFlags, memfd_create};
        let memory = || File::from(memfd_create("k", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        let empty = Image::sealed("kernel", "k".into(), memory()).unwrap_err();
        assert!(empty.to_string().contains("is empty"));
        let mut file = memory();
        std::io::Write::write_all(&mut file, b"kernel").unwrap();
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK)).unwrap();
        let image = Image::sealed("kernel", "k".into(), file).unwrap().read(Pages::Now).unwrap();
        assert!(matches!(&image, Image::Mapped(_)) && image.bytes() == b"kernel", "{image:?}");
    }

    /// Writes a file in a process of its own: one that this process had open for writing could be open for a moment yet in a
    /// child that another test starts.
    fn write(file: &Path, text: &str) {
        let script = ["-c", "printf %s \"$1\" >\"$0\""];
        let written = std::process::Command::new("sh").args(script).arg(file).arg(text).status().unwrap();
        assert!(written.success());
    }

    #[test]
    fn builds_at_once_share_a_mapping_until_somebody_wants_to_write() {
        ffi::sig::ignore_sigio().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k");
        write(&file, "kernel");
        let read = || Image::open("kernel", &file, 10).unwrap().read(Pages::Now).unwrap();
        let mapping = |image: &Image| match image {
            Image::Mapped(map) => Arc::as_ptr(map),
            Image::Copied(_) => panic!("copied"),
        };
        let (one, two) = (read(), read());
        assert_eq!(mapping(&one), mapping(&two));
        let writer = File::options().write(true).custom_flags(nix::libc::O_NONBLOCK).open(&file);
        assert_eq!(writer.unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        assert!(matches!(read(), Image::Copied(_)));
        drop((one, two));
        write(&file, "linux");
        let newer = read();
        mapping(&newer);
        assert_eq!(newer.bytes(), b"linux");
    }

    #[test]
    fn a_file_somebody_writes_to_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("k");
        write(&file, "kernel");
        let open = || Image::open("kernel", &file, 10).unwrap().read(Pages::Now).unwrap();
        assert!(matches!(open(), Image::Mapped(_)));
        let _writer = File::options().append(true).open(&file).unwrap();
        let copied = open();
        assert!(matches!(copied, Image::Copied(_)));
        assert_eq!(copied.bytes(), b"kernel");
    }
}
