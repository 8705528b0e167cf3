//! Pseudo-terminals of consoles, opened by the name found in the store.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, major};

/// Block of major numbers of pseudo-terminal slaves (`Documentation/admin-guide/devices.txt` of Linux).
const PTS_MAJORS: std::ops::RangeInclusive<u64> = 136..=143;

/// Most digits of a pseudo-terminal's number: the kernel's limit is 2^20.
const MAX_DIGITS: usize = 9;

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub enum PtyError {
    /// The name is not that of a pseudo-terminal, or what it names is none.
    #[error("{0:?} is no pseudo-terminal")]
    NotATerminal(String),
    /// The kernel refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The terminal.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Opens `/dev/pts/N`, not blocking and not as a controlling terminal. The name is only trusted to be that of a
/// terminal: it is never any other file.
///
/// # Errors
/// [`PtyError`].
pub fn open_slave(path: &str) -> Result<OwnedFd, PtyError> {
    let refused = || PtyError::NotATerminal(path.chars().take(80).collect());
    let number = path.strip_prefix("/dev/pts/").filter(|number| (1..=MAX_DIGITS).contains(&number.len()));
    if !number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(refused());
    }
    let failed = |source| PtyError::Io { path: path.into(), source };
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let terminal = open(path, flags, Mode::empty()).map_err(|errno: Errno| failed(errno.into()))?;
    let metadata = terminal.try_clone().and_then(|copy| File::from(copy).metadata()).map_err(failed)?;
    if metadata.file_type().is_char_device() && PTS_MAJORS.contains(&major(metadata.rdev())) {
        return Ok(terminal);
    }
    Err(refused())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pseudo_terminals_are_opened() {
        for name in
            ["", "/dev/null", "/dev/pts/", "/dev/pts/../null", "/dev/pts/x", "/dev/pts/1234567890", "pts/1"]
        {
            assert!(matches!(open_slave(name), Err(PtyError::NotATerminal(_))), "{name}");
        }
        let gone = open_slave("/dev/pts/999999999").unwrap_err();
        assert!(gone.to_string().starts_with("/dev/pts/999999999: "), "{gone}");
        let pair = nix::pty::openpty(None, None).unwrap();
        let name = nix::unistd::ttyname(&pair.slave).unwrap();
        open_slave(name.to_str().unwrap()).unwrap();
    }
}
