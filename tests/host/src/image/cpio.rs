//! A writer for initramfs archives: the "newc" cpio format that `Documentation/driver-api/early-userspace/buffer-format`
//! of Linux describes. Written here because it needs no root for device nodes and no cpio program.

use std::io::{self, Write};

/// An archive being written.
pub(super) struct Cpio<W> {
    out: W,
    inode: u32,
}

/// File type bits of `st_mode`.
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

impl<W: Write> Cpio<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub(super) fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    pub(super) fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | (mode & 0o777), (0, 0), content)
    }

    pub(super) fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, SYMLINK | 0o777, (0, 0), target.as_bytes())
    }

    pub(super) fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, CHARACTER | 0o600, (major, minor), &[])
    }

    /// Writes the trailer.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        self.inode += 1;
        // magic, then: inode, mode, uid, gid, links, mtime, size, device of the file, device it is, name size, check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        write!(self.out, "070701")?;
        for field in fields {
            write!(self.out, "{field:08X}")?;
        }
        write!(self.out, "{name}\0")?;
        // Header (110 bytes) and name together, and the content, are padded to a multiple of four.
        self.pad(110 + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    fn pad(&mut self, written: usize) -> io::Result<()> {
        let zeros = [0; 3];
        self.out.write_all(zeros.get(..written.wrapping_neg() % 4).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_ended() {
        let mut cpio = Cpio::new(Vec::new());
        cpio.directory("dev").expect("writes");
        cpio.character_device("dev/console", 5, 1).expect("writes");
        cpio.file("init", 0o755, b"#!/x\n").expect("writes");
        cpio.symlink("bin", "usr/bin").expect("writes");
        let archive = cpio.finish().expect("writes");
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        let headers: Vec<_> = text.match_indices("070701").map(|(at, _)| at).collect();
        assert_eq!(headers.len(), 5);
        assert!(headers.iter().all(|at| at % 4 == 0), "{headers:?}");
        assert!(text.contains("TRAILER!!!"));
    }
}
