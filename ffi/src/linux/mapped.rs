//! A file seen as memory, safe from being shortened while it is.
//!
//! ```text
//!   read lease taken ─► mapped ─► dropped: unmapped, lease given back
//!        │ file is open for writing: refused, the caller copies it instead
//!        └ somebody opens it for writing, or truncates it: the kernel makes them wait (`/proc/sys/fs/lease-break-time`,
//!          45 s) and sends this process SIGIO
//! ```
//!
//! Touching a page of a mapping beyond the end of its file is SIGBUS, which would end the daemon. The lease keeps
//! others from changing the file's end meanwhile, as long as the mapping does not outlast the break time.

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;

use memmap2::{Mmap, MmapMut, MmapOptions};

/// When the pages of a mapping get their entries in the page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// All at once, for who reads all of them: cheaper than a fault for every few.
    Now,
    /// As they are touched, for who reads few of them.
    WhenTouched,
}

/// A whole file, read-only.
#[derive(Debug)]
pub struct MappedFile {
    map: Mmap,
    file: File,
}

impl MappedFile {
    /// Maps `file`. SIGIO must be blocked or ignored in this process: it is the notice that somebody
    /// waits for the lease, and its default action ends the process.
    ///
    /// # Errors
    /// `EAGAIN` when the file is open for writing, `EINVAL` when its file system has no leases, or what mmap says.
    pub fn new(file: File, pages: Pages) -> io::Result<Self> {
        lease(&file, libc::F_RDLCK)?;
        let mut options = MmapOptions::new();
        if pages == Pages::Now {
            options.populate();
        }
        // SAFETY: the lease keeps others from truncating the file or writing to it while it is mapped; the mapping is
        // private and read-only, and ends before the lease does, as `map` is dropped by this type's `drop` first.
        let mapped = unsafe { options.map(&file) };
        match mapped {
            Ok(map) => Ok(Self { map, file }),
            Err(error) => {
                // The lease ends with the descriptor in any case.
                let _ = lease(&file, libc::F_UNLCK);
                Err(error)
            }
        }
    }

    /// Maps a file in memory (memfd_create(2)) that is sealed against writing and shrinking: nobody can change it, so no
    /// lease is needed.
    ///
    /// # Errors
    /// `EPERM` when it is not sealed so, `EINVAL` when it is no such file, or what mmap says.
    pub fn sealed(file: File) -> io::Result<Self> {
        const NEEDED: i32 = libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK;
        // SAFETY: takes no argument and touches no memory of ours.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 {
            return Err(io::Error::last_os_error());
        }
        if seals & NEEDED != NEEDED {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        // SAFETY: the seals cannot be taken off: nobody writes to the file or shortens it any more.
        let map = unsafe { MmapOptions::new().map(&file)? };
        Ok(Self { map, file })
    }
}

impl MappedFile {
    /// Whether the lease holds still and nobody waits for it to end: only then may the mapping be given to one more
    /// user. Never so for a sealed file, which has none.
    pub fn is_leased(&self) -> bool {
        // SAFETY: takes no argument and touches no memory of ours. While the lease is being broken this is what it is to
        // become (fcntl(2)).
        unsafe { libc::fcntl(self.file.as_raw_fd(), libc::F_GETLEASE) == libc::F_RDLCK }
    }
}

impl MappedFile {
    /// A second mapping of the same file, whose bytes can be changed: nobody else sees the changes.
    ///
    /// # Errors
    /// What mmap says.
    pub fn private_copy(&self) -> io::Result<PrivateCopy<'_>> {
        // SAFETY: the lease or the seals of `self`, which is borrowed for as long, keep the file as it is; the mapping is
        // private, so that what is written to it does not reach the file.
        let map = unsafe { MmapOptions::new().map_copy(&self.file)? };
        Ok(PrivateCopy { map, of: PhantomData })
    }
}

/// A file's bytes with changes of one's own. Only pages that are changed take memory.
#[derive(Debug)]
pub struct PrivateCopy<'a> {
    map: MmapMut,
    of: PhantomData<&'a MappedFile>,
}

impl Deref for PrivateCopy<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl DerefMut for PrivateCopy<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

impl Deref for MappedFile {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map
    }
}

impl AsRef<File> for MappedFile {
    fn as_ref(&self) -> &File {
        &self.file
    }
}

fn lease(file: &File, kind: i32) -> io::Result<()> {
    // SAFETY: F_SETLEASE takes an int and touches no memory of ours.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn file(contents: &[u8]) -> (std::path::PathBuf, File) {
        let path = std::env::temp_dir().join(format!("mapped-{}-{:p}", std::process::id(), contents));
        File::create(&path).unwrap().write_all(contents).unwrap();
        (path.clone(), File::open(path).unwrap())
    }

    #[test]
    fn the_file_is_seen() {
        let (path, file) = file(b"kernel");
        assert_eq!(&*MappedFile::new(file, Pages::Now).unwrap(), b"kernel");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn changes_of_a_private_copy_stay_in_it() {
        let (path, file) = file(b"kernel");
        let mapped = MappedFile::new(file, Pages::WhenTouched).unwrap();
        let mut copy = mapped.private_copy().unwrap();
        copy[0] = b'K';
        assert_eq!((&*copy, &*mapped), (&b"Kernel"[..], &b"kernel"[..]));
        assert_eq!(std::fs::read(&path).unwrap(), b"kernel");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_open_for_writing_is_refused() {
        let (path, file) = file(b"being written");
        let _writer = File::options().write(true).open(&path).unwrap();
        assert_eq!(MappedFile::new(file, Pages::Now).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_file_in_memory_is_mapped_once_it_is_sealed() {
        use std::os::fd::FromRawFd;
        // SAFETY: a constant name; the descriptor is nobody else's.
        let mut memory = unsafe {
            let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
            File::from_raw_fd(libc::memfd_create(c"test".as_ptr(), flags))
        };
        memory.write_all(b"kernel").unwrap();
        let refused = |file: &File| MappedFile::sealed(file.try_clone().unwrap()).unwrap_err().raw_os_error();
        assert_eq!(refused(&memory), Some(libc::EPERM));
        // SAFETY: a number.
        let seal = |seals: i32| unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_ADD_SEALS, seals) };
        assert_eq!(seal(libc::F_SEAL_SHRINK), 0);
        assert_eq!(refused(&memory), Some(libc::EPERM));
        assert_eq!(seal(libc::F_SEAL_WRITE), 0);
        assert_eq!(&*MappedFile::sealed(memory.try_clone().unwrap()).unwrap(), b"kernel");
        assert_eq!(refused(&File::open("/dev/null").unwrap()), Some(libc::EINVAL));
    }

    #[test]
    fn a_writer_is_kept_out_while_it_is_mapped() {
        use std::os::unix::fs::OpenOptionsExt;
        crate::sig::ignore_sigio().unwrap();
        let (path, file) = file(b"leased");
        let mapped = MappedFile::new(file, Pages::Now).unwrap();
        let writer = || File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&path);
        assert_eq!(writer().unwrap_err().raw_os_error(), Some(libc::EWOULDBLOCK));
        drop(mapped);
        writer().unwrap();
        std::fs::remove_file(path).unwrap();
    }
}
