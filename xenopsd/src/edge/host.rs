//! Linux as the rest of the daemon sees it: disks, network interfaces, images, scripts and processes.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::Receiver;

use super::{
    Access, Attached, BlockSize, BridgeKind, DeviceModel, DomId, FileId, Firmware, FoundKernel, ImageFile,
    ImageFormat, KernelSearch, KernelSearchError, NetworkTell, NewDeviceModel, Note, NoteServer,
    ScreenListener, ScreenPlace, ServerWanted, StateFile, StorageCall, StorageError, SuspendFile, Tell,
    Terminal, VifScripts, VifSettings,
};
use crate::api::Error;
use crate::state::journal::{DiskServerId, ProcessId, Resource};
use vncterm::fb::wanted::Wanted;

/// Which disk it is, whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DiskId {
    /// A block device.
    Block {
        /// Which driver.
        major: u64,
        /// Which of its devices.
        minor: u64,
    },
    /// A file.
    File {
        /// `st_dev` of its file system.
        device: u64,
        /// Its inode number.
        inode: u64,
    },
}

/// Priority of input and output, as Linux counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoPriority {
    /// 1 real time, 2 best effort, 3 idle.
    pub class: u16,
    /// 0, the first, to 7.
    pub level: u16,
}

/// Writes down that the loop device of that number is about to show the file. Called again, it replaces what it wrote: the
/// number before turned out to be somebody else's.
pub type Reserve<'a> = dyn FnMut(u32, FileId) -> std::io::Result<()> + 'a;

/// A disk to be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskWanted<'a> {
    /// A block device or a raw file.
    pub path: &'a Path,
    /// What it is for.
    pub access: Access,
    /// Its logical blocks: of a file, what they are to be, 512 bytes unless said; of a device, what they must be.
    pub block_size: Option<BlockSize>,
}

/// A disk as a block device in dom0, ready for a backend.
#[derive(Debug)]
pub struct AttachedDisk {
    /// What it is: the file, if it is one, and not the loop device before it.
    pub id: DiskId,
    /// Major and minor number.
    pub device: (u64, u64),
    /// Its node below `/dev`.
    pub node: PathBuf,
    /// Held while the disk is attached: it keeps a loop device alive until the backend has it, after which the kernel
    /// clears it with the last user, and a block device from changing under the backend's feet.
    pub keep: Option<OwnedFd>,
}

/// Why Linux refused: what, on which object, and what to do is in the text.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Something named by the client is not there.
    #[error("{text}")]
    Missing {
        /// `disk`, `network`, `kernel`, …
        class: &'static str,
        /// The path or name.
        id: String,
        /// For people.
        text: String,
    },
    /// It is there and cannot be used.
    #[error("{text}")]
    Unusable {
        /// As above.
        class: &'static str,
        /// For people.
        text: String,
    },
}

impl HostError {
    /// What is to be given back after a kill of the daemon could not be written down.
    pub fn not_noted(error: &Error) -> Self {
        Self::Unusable { class: "journal", text: error.to_string() }
    }
}

/// A script to be run.
#[derive(Debug)]
pub struct ScriptRun<'a> {
    /// Its path.
    pub script: &'a Path,
    /// After its name.
    pub arguments: &'a [String],
    /// What it reads; one that is to read something has limits, and an environment of its own.
    pub input: Option<&'a [u8]>,
    /// Beside the daemon's own environment.
    pub environment: &'a [(String, String)],
    /// How long it may take.
    pub limit: Duration,
    /// Disconnected when it is no longer wanted.
    pub cancelled: &'a Receiver<Infallible>,
}

/// How a script ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptEnd {
    /// Its exit code; 128 and the signal's number when it was killed by one, as a shell has it.
    pub code: i32,
    /// The beginning of what it printed.
    pub stdout: String,
    /// The same of its complaints, if it was given input; another's go where the daemon's go.
    pub stderr: String,
}

/// A script did not end by itself.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// It was not wanted any more, and is killed.
    #[error("it was cancelled")]
    Cancelled,
    /// It took too long, and is killed.
    #[error("it did not end within {} s and was killed", .0.as_secs())]
    TimedOut(Duration),
    /// It could not be run.
    #[error("it could not be run: {0}")]
    Unusable(String),
}

/// A process that was started and waits, without having read a byte of a guest's, for its word: it may only go on once
/// the journal knows of it. Dropped without the word, it is ended.
pub struct Prepared {
    /// Which it is.
    pub process: ProcessId,
    /// Its word.
    pub go: Box<dyn FnOnce() -> Result<(), HostError> + Send>,
}

/// A process, or networks, followed until this is dropped.
pub struct Followed(pub Box<dyn Send + Sync>);

impl std::fmt::Debug for Followed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Followed")
    }
}

/// Where a terminal server listens, on 127.0.0.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalPorts {
    /// For VNC; none of one that serves no screen.
    pub vnc: Option<u16>,
    /// For the raw text.
    pub text: u16,
}

/// Listening sockets for a terminal server. They are kept while it runs: the next one of the same guest gets them, and
/// nobody else the ports.
#[derive(Debug)]
pub struct TerminalSockets {
    /// Their ports.
    pub ports: TerminalPorts,
    /// The sockets, in that order.
    pub sockets: Vec<std::os::fd::OwnedFd>,
}

/// A listening socket for the server of a frame buffer, kept as [`TerminalSockets`] are.
#[derive(Debug)]
pub struct ScreenSocket {
    /// Its port on 127.0.0.1.
    pub port: u16,
    /// The socket; none in the simulator.
    pub socket: Option<std::os::fd::OwnedFd>,
}

/// The server of a frame buffer to be started.
#[derive(Debug)]
pub struct FrameBufferWanted<'a> {
    /// Of which domain.
    pub domid: DomId,
    /// Which of its pages and ports.
    pub serves: &'a Wanted,
    /// Where it listens.
    pub socket: &'a ScreenSocket,
}

/// A terminal server to be started.
#[derive(Debug)]
pub struct TerminalWanted<'a> {
    /// Of which VM: its id, which names the file of its log.
    pub vm: &'a str,
    /// Of which domain.
    pub domid: DomId,
    /// The pseudo-terminal of its console.
    pub tty: &'a str,
    /// What viewers show in their title.
    pub title: &'a str,
    /// Where its screen is saved when it is [stopped](Host::stop_process).
    pub screen: &'a Path,
    /// Whether it begins with the screen that was saved there, if one was.
    pub restore: bool,
    /// Where it listens.
    pub sockets: &'a TerminalSockets,
}

/// The Linux side.
pub trait Host: Send + Sync {
    /// Checks, taking nothing, that a disk can be attached; which it is.
    ///
    /// # Errors
    /// [`HostError`].
    fn check_disk(&self, path: &Path, access: Access) -> Result<DiskId, HostError>;

    /// Makes a disk a block device: itself, or through a loop device, which is reserved first.
    ///
    /// # Errors
    /// [`HostError`], also when it cannot be reserved. Nothing is attached then that the last reservation does not name.
    fn attach_disk(
        &self,
        wanted: &DiskWanted<'_>,
        reserve: &mut Reserve<'_>,
    ) -> Result<AttachedDisk, HostError>;

    /// Checks, taking nothing, that an image can be served; which disk it is.
    ///
    /// # Errors
    /// [`HostError`].
    fn check_image(&self, path: &Path, access: Access, format: ImageFormat) -> Result<DiskId, HostError>;

    /// Starts the server of a disk image, in a jail of its own, and shows what it serves as a block device, writing down with
    /// `note` what is taken before it is.
    ///
    /// # Errors
    /// [`HostError`]. What a failed start has taken is still noted, for [`Host::release`].
    fn serve_disk(&self, wanted: &ServerWanted<'_>, note: &mut NoteServer<'_>) -> Result<(), HostError>;

    /// The block device of a disk server that runs, opened as its image is; none when it does not run.
    ///
    /// # Errors
    /// [`HostError`].
    fn open_served(&self, server: &DiskServerId) -> Result<Option<AttachedDisk>, HostError>;

    /// Looks again how large what a block device shows is; its size in bytes.
    ///
    /// # Errors
    /// [`HostError`].
    fn refresh_disk(&self, major: u64, minor: u64) -> Result<u64, HostError>;

    /// Which disk a block device shows: the file behind it, if it is a loop device.
    ///
    /// # Errors
    /// [`HostError`].
    fn disk_id(&self, major: u64, minor: u64) -> Result<DiskId, HostError>;

    /// Gives the threads that serve a domain's disk `device` a priority; how many there were.
    ///
    /// # Errors
    /// [`HostError`].
    fn prioritise_disk(&self, domid: DomId, device: &str, priority: IoPriority) -> Result<usize, HostError>;

    /// Gives all threads of a process a priority, which those that they start have then, too; how many there were, none if
    /// the process has ended.
    ///
    /// # Errors
    /// [`HostError`].
    fn prioritise_process(&self, process: &ProcessId, priority: IoPriority) -> Result<usize, HostError>;

    /// Finds what a guest would boot from its own disk.
    ///
    /// # Errors
    /// [`KernelSearchError`].
    fn find_kernel(&self, search: &KernelSearch<'_>) -> Result<FoundKernel, KernelSearchError>;

    /// Opens one of the files a guest starts with that is not its owner's.
    ///
    /// # Errors
    /// [`HostError`].
    fn open_firmware(&self, firmware: Firmware) -> Result<ImageFile, HostError>;

    /// Opens the place for a suspend image of up to `needed` bytes, empty.
    ///
    /// # Errors
    /// [`HostError`].
    fn create_image(&self, path: &Path, needed: u64) -> Result<SuspendFile, HostError>;

    /// Opens a suspend image.
    ///
    /// # Errors
    /// [`HostError`].
    fn open_image(&self, path: &Path) -> Result<SuspendFile, HostError>;

    /// Removes what is left of a suspend image that was not completed.
    ///
    /// # Errors
    /// [`HostError`].
    fn discard_image(&self, path: &Path) -> Result<(), HostError>;

    /// Checks that a bridge exists and is one, and of which kind.
    ///
    /// # Errors
    /// [`HostError`].
    fn check_bridge(&self, bridge: &str) -> Result<BridgeKind, HostError>;

    /// Brings a backend interface, new or in use, in line with its settings, writing down with `note` what does not go with
    /// it.
    ///
    /// # Errors
    /// [`HostError`].
    fn connect_vif(
        &self,
        interface: &str,
        settings: &VifSettings,
        note: &mut Note<'_>,
    ) -> Result<(), HostError>;

    /// Tells, until what is returned is dropped, of what somebody else does to bridges and to rules of interfaces.
    ///
    /// # Errors
    /// [`HostError`].
    fn watch_networks(&self, tell: NetworkTell) -> Result<Followed, HostError>;

    /// What may set interfaces up instead of us.
    fn vif_scripts(&self) -> VifScripts;

    /// Checks that a script is there and can be run.
    ///
    /// # Errors
    /// [`HostError`].
    fn check_script(&self, script: &Path) -> Result<(), HostError>;

    /// The administrator's scripts for an event, in the order in which they run.
    ///
    /// # Errors
    /// [`HostError::Unusable`] when they cannot be listed.
    fn hook_scripts(&self, hook: &str) -> Result<Vec<PathBuf>, HostError>;

    /// Runs a script to its end, its children included.
    ///
    /// # Errors
    /// [`ScriptError`].
    fn run_script(&self, run: &ScriptRun<'_>) -> Result<ScriptEnd, ScriptError>;

    /// Checks, taking nothing, that disks of a storage layer can be asked for.
    ///
    /// # Errors
    /// [`StorageError::Refused`] that says which setting is missing, or what is wrong with the program.
    fn check_storage(&self) -> Result<(), StorageError>;

    /// Asks the storage layer's program; what it answered to [`Verb::Attach`](super::Verb::Attach), nothing for others.
    ///
    /// # Errors
    /// [`StorageError`].
    fn call_storage(&self, call: &StorageCall<'_>) -> Result<Option<Attached>, StorageError>;

    /// Checks, taking nothing, that a terminal server can be started.
    ///
    /// # Errors
    /// [`HostError`].
    fn check_terminal(&self) -> Result<(), HostError>;

    /// Listens for a terminal server, for viewers too if it serves a `screen`.
    ///
    /// # Errors
    /// [`HostError::Unusable`].
    fn listen_for_terminal(&self, screen: bool) -> Result<TerminalSockets, HostError>;

    /// Starts the terminal server of a guest's console, in a jail of its own.
    ///
    /// # Errors
    /// [`HostError`]; nothing of it is left.
    fn start_terminal(&self, wanted: &TerminalWanted<'_>) -> Result<Prepared, HostError>;

    /// Listens for viewers of a frame buffer.
    ///
    /// # Errors
    /// [`HostError::Unusable`].
    fn listen_for_frame_buffer(&self) -> Result<ScreenSocket, HostError>;

    /// Starts the server of a guest's frame buffer, in a jail of its own, and has it map what is to be served.
    ///
    /// # Errors
    /// [`HostError`], also when the guest named pages that are not its own; nothing of it is left.
    fn start_frame_buffer(&self, wanted: &FrameBufferWanted<'_>) -> Result<Prepared, HostError>;

    /// Follows the process that is meant, whoever started it, and tells of its end; none when it has ended.
    ///
    /// # Errors
    /// [`HostError::Unusable`].
    fn follow_process(&self, process: &ProcessId, tell: Tell) -> Result<Option<Followed>, HostError>;

    /// Asks the process that is meant to end, and ends it when it does not within `patience`; whether it ended by
    /// itself. One that is not there is not an error.
    ///
    /// # Errors
    /// [`HostError::Unusable`].
    fn stop_process(&self, process: &ProcessId, patience: Duration) -> Result<bool, HostError>;

    /// Makes a network device whose packets go to and come from whoever has the descriptor, and puts it into its bridge,
    /// noting as [`Host::connect_vif`] does. It ends with the last descriptor.
    ///
    /// # Errors
    /// [`HostError`].
    fn make_tap(
        &self,
        interface: &str,
        settings: &VifSettings,
        note: &mut Note<'_>,
    ) -> Result<OwnedFd, HostError>;

    /// Makes a pseudo-terminal, raw.
    ///
    /// # Errors
    /// [`HostError::Unusable`].
    fn open_terminal(&self) -> Result<Terminal, HostError>;

    /// Makes the place for a device model's state: an empty one to be written, or one that holds `state` to be read.
    ///
    /// # Errors
    /// [`HostError::Unusable`].
    fn make_state_file(&self, state: Option<&[u8]>) -> Result<StateFile, HostError>;

    /// Listens for viewers of a domain's screen, writing down with `note` what stays when the daemon is killed.
    ///
    /// # Errors
    /// [`HostError::Unusable`].
    fn listen_for_viewers(
        &self,
        domid: DomId,
        place: ScreenPlace,
        note: &mut Note<'_>,
    ) -> Result<ScreenListener, HostError>;

    /// Checks, taking nothing, that a device model can be started in a jail.
    ///
    /// # Errors
    /// [`HostError`] that names what is missing and which setting accepts that.
    fn check_device_model(&self) -> Result<(), HostError>;

    /// Starts a device model in its jail, writing down with `note` what is taken before it exists. What a failed start has
    /// taken is still noted, for [`Host::release`].
    ///
    /// # Errors
    /// [`HostError`].
    fn start_device_model(
        &self,
        new: NewDeviceModel<'_>,
        note: &mut Note<'_>,
    ) -> Result<Arc<dyn DeviceModel>, HostError>;

    /// Holds a device model that an earlier daemon started; none when it has ended.
    ///
    /// # Errors
    /// [`HostError`].
    fn adopt_device_model(
        &self,
        domid: DomId,
        vm: &str,
        process: &ProcessId,
    ) -> Result<Option<Arc<dyn DeviceModel>>, HostError>;

    /// Gives back a resource that the journal names and that nobody of this run holds; whether there was anything to
    /// give.
    ///
    /// # Errors
    /// [`HostError`].
    fn release(&self, resource: &Resource) -> Result<bool, HostError>;
}
