//! Kernels and ramdisks read into memory of our own: no later change of the file, and no truncation, can reach a
//! build in progress, and the memory goes back to the kernel when the build ends.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use memmap2::MmapMut;

/// Largest kernel file. Debian's unpacked debug-free kernel is 62 MB; nothing sensible is above this.
pub const MAX_KERNEL: u64 = 256 * 1024 * 1024;

/// Largest ramdisk file: installers' are up to a few hundred MB.
pub const MAX_RAMDISK: u64 = 1024 * 1024 * 1024;

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
}

/// The bytes of a kernel or ramdisk.
#[derive(Debug)]
pub struct Image {
    bytes: MmapMut,
}

impl Image {
    /// Opens `path` and checks kind and size without reading it.
    ///
    /// # Errors
    /// [`ImageError`]: missing, not a regular file, empty, or above `limit` bytes.
    pub fn open(what: &'static str, path: &Path, limit: u64) -> Result<ImageFile, ImageError> {
        let unusable = |why: String| ImageError::Unusable { what, path: path.to_owned(), why };
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
        Ok(ImageFile { what, path: path.to_owned(), file, length })
    }

    /// The whole image.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl ImageFile {
    /// Reads it.
    ///
    /// # Errors
    /// [`ImageError::Unusable`] when it cannot be read, or has become shorter.
    pub fn read(mut self) -> Result<Image, ImageError> {
        let (what, path) = (self.what, self.path);
        let unusable = |error: std::io::Error| ImageError::Unusable { what, path: path.clone(), why: error.to_string() };
        let mut bytes = MmapMut::map_anon(self.length).map_err(unusable)?;
        self.file.read_exact(&mut bytes).map_err(unusable)?;
        Ok(Image { bytes })
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
        let opened = Image::open("kernel", &file, 10).unwrap();
        assert_eq!(Image::open("kernel", &file, 10).unwrap().read().unwrap().bytes(), b"kernel");
        std::fs::write(&file, "ker").unwrap();
        assert!(opened.read().is_err());
    }
}
