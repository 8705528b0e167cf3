//! What a device model's state goes through, from it and to it: memory of the daemon's with a descriptor for the other side.
//!
//! The other side is not believed: its descriptor is of one direction, what it has written is read up to a limit, and what it
//! reads cannot be changed any more. It is nobody's to execute, so that a device model that was taken over gets no program
//! of its own by it.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Most bytes of a device model's state, as xapi's. It is some ten thousand, a hundred more for a disk in the middle of
/// a transfer; the guest's memory and its video card's are not in it.
pub const MAX_STATE: u64 = 1 << 20;

/// Who may open it.
const MODE: u32 = 0o600;

/// A device model's state on its way.
#[derive(Debug)]
pub struct StateFile(File);

impl StateFile {
    /// An empty one, to be written by a device model.
    ///
    /// # Errors
    /// The kernel's.
    pub fn empty() -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create("device model's state", flags)?);
        file.set_permissions(Permissions::from_mode(MODE))?;
        Ok(Self(file))
    }

    /// One with `state` in it, to be read by a device model.
    ///
    /// # Errors
    /// The kernel's.
    pub fn holding(state: &[u8]) -> io::Result<Self> {
        let mut this = Self::empty()?;
        this.0.write_all(state)?;
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
        fcntl(&this.0, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL))?;
        Ok(this)
    }

    /// For the side that writes.
    ///
    /// # Errors
    /// The kernel's.
    pub fn writer(&self) -> io::Result<OwnedFd> {
        self.reopened(OpenOptions::new().write(true))
    }

    /// For the side that reads, from the beginning.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reader(&self) -> io::Result<OwnedFd> {
        self.reopened(OpenOptions::new().read(true))
    }

    /// What was written.
    ///
    /// # Errors
    /// Also when it is nothing, or more than [`MAX_STATE`].
    pub fn content(&self) -> io::Result<Vec<u8>> {
        let mut file = &self.0;
        file.seek(SeekFrom::Start(0))?;
        let mut bytes = Vec::new();
        let length = file.take(MAX_STATE + 1).read_to_end(&mut bytes)? as u64;
        match length {
            0 => Err(io::Error::other("nothing was written")),
            1..=MAX_STATE => Ok(bytes),
            _ => Err(io::Error::other(format!("more than {MAX_STATE} bytes were written"))),
        }
    }

    /// A descriptor of its own position and direction.
    fn reopened(&self, options: &OpenOptions) -> io::Result<OwnedFd> {
        options.open(format!("/proc/self/fd/{}", self.0.as_raw_fd())).map(OwnedFd::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_up_to_a_limit() {
        let file = StateFile::empty().unwrap();
        assert!(file.content().unwrap_err().to_string().contains("nothing"));
        let mut writer = File::from(file.writer().unwrap());
        writer.write_all(b"some").unwrap();
        assert_eq!(file.content().unwrap(), b"some");
        writer.set_len(MAX_STATE).unwrap();
        assert_eq!(file.content().unwrap().len() as u64, MAX_STATE);
        writer.set_len(MAX_STATE + 1).unwrap();
        assert!(file.content().is_err());
        assert!(writer.read(&mut [0]).is_err(), "its descriptor is for writing only");
    }

    #[test]
    fn what_is_held_cannot_be_changed() {
        let file = StateFile::holding(b"state").unwrap();
        let mut text = String::new();
        File::from(file.reader().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "state");
        assert!((&file.0).write_all(b"other").is_err());
        assert_eq!(file.0.metadata().unwrap().permissions().mode() & 0o777, MODE);
    }
}
