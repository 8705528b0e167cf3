//! What the rest of the daemon knows of a device model's process: it can be talked to, watched and ended.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{DomId, HostError, ImageFile};
use crate::state::journal::Resource;

/// The number of the monitor's listening socket in the process. 0 reads nothing, 1 and 2 are its log.
pub const MONITOR: usize = 3;

/// The number of the first descriptor of [`NewDeviceModel::descriptors`] in the process.
pub const FIRST_DESCRIPTOR: usize = MONITOR + 1;

/// How long a killed process may take to end. It only takes this long when it is stuck in the kernel.
pub const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A device model to be started.
#[derive(Debug)]
pub struct NewDeviceModel<'a> {
    /// Its domain.
    pub domid: DomId,
    /// Its VM's id, which names the log.
    pub vm: &'a str,
    /// The command line, without the program.
    pub arguments: &'a [String],
    /// What it gets beside the monitor, numbered from [`FIRST_DESCRIPTOR`].
    pub descriptors: Vec<OwnedFd>,
    /// What it reads while it starts, beside firmware.
    pub files: Vec<StartFile>,
}

/// A file that a device model reads while it starts: it finds a copy, until it is sealed.
#[derive(Debug)]
pub struct StartFile {
    /// Where it finds it.
    pub path: &'static Path,
    /// The original.
    pub file: ImageFile,
}

/// A pseudo-terminal. Whoever has `master` serves it; it goes on while somebody has `slave` open.
#[derive(Debug)]
pub struct Terminal {
    /// The server's side.
    pub master: OwnedFd,
    /// The other side, held open so that the server does not see it end between two readers.
    pub slave: OwnedFd,
    /// Where readers find it.
    pub path: PathBuf,
}

/// Writes a resource down; the resource is not taken when that fails.
pub type Note<'a> = dyn FnMut(Resource) -> Result<(), HostError> + Send + 'a;

/// A device model's process. Dropping this leaves it running.
pub trait DeviceModel: Send + Sync {
    /// Readable once the process has ended.
    fn ended(&self) -> BorrowedFd<'_>;

    /// A connection to its monitor. It serves one at a time: the one before must be closed.
    ///
    /// # Errors
    /// The kernel's.
    fn connect(&self) -> io::Result<UnixStream>;

    /// Takes away what it needed for its start only, and checks that it has no more than it should. To be called once it
    /// is ready, and before its guest runs.
    ///
    /// # Errors
    /// [`HostError::Unusable`] with what it still has.
    fn seal(&self) -> Result<(), HostError>;

    /// Ends the process; one that has ended is no error.
    ///
    /// # Errors
    /// [`HostError::Unusable`] when it does not end.
    fn kill(&self) -> Result<(), HostError>;

    /// For people: how it ended, as far as that is known, and the last it printed.
    fn last_words(&self) -> String;
}
