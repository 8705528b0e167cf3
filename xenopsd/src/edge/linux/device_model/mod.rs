//! QEMU as a process: started in a jail, watched and ended through a descriptor of it, found again by the next daemon.
//!
//! ```text
//!   note(control group, socket) ─► listen on the monitor's socket ─► jail: note(process) ─► the program
//!      ─► it opens Xen's devices, restricts itself ─► seal: no root, no unrestricted file of Xen's, checked ─► guest
//! ```
//!
//! Nothing of the host has a path in there but the program's libraries and firmware, read-only, the nodes of Xen's
//! drivers, and copies of a kernel and ramdisk if its guest is started with them; and those only until it is sealed. What it prints goes to a file of at most [`LOG_LIMIT`] bytes, after which
//! its writes fail.

pub(super) mod filter;
pub(super) mod seal;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ffi::jail::{self, Cgroup, CgroupLimits, Child, Entry, Feature, Jail, Limits};
use ffi::pid::PidFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::process;
use super::script::is_program;
use crate::edge::{
    DeviceModel, DomId, HostError, KILL_LIMIT, NewDeviceModel, Note, ScreenListener, StartFile,
};
use crate::state::journal::{ProcessId, Resource};

/// What the journal calls the process.
pub const ROLE: &str = "qemu";

/// Most bytes of a log, as libxl's limit for a restricted QEMU (XSA-180: a guest can make it print).
pub const LOG_LIMIT: u64 = 256 * 1024;

/// Most bytes of the log's end that are repeated when it ends unexpectedly.
const LAST_WORDS: u64 = 1024;

/// Descriptors: a few dozen of its own, and one for each viewer, of which it takes 32.
const OPEN_FILES: u64 = 256;

/// Threads: QEMU's pool has up to 64 for disks, and a few more.
pub(super) const THREADS: u64 = 128;

/// Private writable memory in bytes: 128 threads with 8 MiB of stack each, of which little is ever touched, and as much
/// again.
const DATA: u64 = 2 << 30;

/// Memory in bytes, page cache included, where control groups can limit it. It is 40 MB without viewers; the guest's own
/// is not counted.
const MEMORY: u64 = 512 << 20;

/// Keyboard layouts and the firmware of emulated cards, read while it starts. They are named on its command line: it would
/// look for them beside its own program, whose place it cannot find in its jail.
const DATA_DIRECTORIES: [&str; 3] = ["/usr/share/qemu", "/usr/share/seabios", "/usr/lib/ipxe/qemu"];

/// As libxl sets it: bytes that QEMU keeps of a console nobody reads.
const CONSOLE_LIMIT: (&str, &str) = ("XEN_QEMU_CONSOLE_LIMIT", "1048576");

/// Major and minor number of `/dev/null`, which libxentoolcore puts in the place of what it takes away.
pub(super) const NULL: (u32, u32) = (1, 3);

/// How device models run here.
#[derive(Debug, Clone)]
pub struct Settings {
    /// QEMU, built for Xen.
    pub program: PathBuf,
    /// The user of domain N's processes is this and N.
    pub uid_base: u32,
    /// Protections that may be missing where the kernel has none.
    pub unjailed: Vec<Feature>,
    /// Where the monitors' sockets are; nobody but root gets in.
    pub run: PathBuf,
    /// Where the logs are.
    pub logs: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            program: "/usr/libexec/xen-qemu-system-i386".into(),
            uid_base: 0x2000_0000,
            unjailed: Vec::new(),
            run: "/run/xenopsd".into(),
            logs: "/var/log/xen".into(),
        }
    }
}

fn refused(what: impl std::fmt::Display) -> HostError {
    HostError::Unusable { class: "device model", text: what.to_string() }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    let path = path.display().to_string();
    move |error| refused(format!("cannot {doing} {path}: {error}"))
}

/// The protections this kernel has not and the administrator does without.
///
/// # Errors
/// [`HostError::Unusable`] for the first that the administrator does not do without.
pub(super) fn lacking(settings: &Settings) -> Result<Vec<Feature>, HostError> {
    let lacking: Vec<_> = Feature::ALL.into_iter().filter(|feature| !feature.supported()).collect();
    accept(&lacking, &settings.unjailed)?;
    Ok(lacking)
}

/// Refuses what `unjailed` does not name of what is lacking.
fn accept(lacking: &[Feature], unjailed: &[Feature]) -> Result<(), HostError> {
    // Where there are no control groups at all there is nothing to be in.
    match lacking.iter().find(|f| **f != Feature::Cgroup && !unjailed.contains(f)) {
        None => Ok(()),
        Some(feature) => Err(refused(format!(
            "this kernel has no {feature} isolation, without which QEMU is not run; \
            `allow-unjailed = {feature}` in the settings file accepts that"
        ))),
    }
}

/// A jail that does without what is lacking, which the log says of the VM.
pub(super) fn without(jail: Jail, lacking: Vec<Feature>, vm: &str, domid: DomId, who: &str) -> Jail {
    lacking.into_iter().fold(jail, |jail, feature| {
        tracing::warn!(vm, %domid, "{who} runs without {feature} isolation");
        jail.without(feature)
    })
}

/// See [`crate::edge::Host::check_device_model`].
///
/// # Errors
/// As there.
pub fn check(settings: &Settings) -> Result<(), HostError> {
    jail::check_uid_base(settings.uid_base).map_err(refused)?;
    lacking(settings)?;
    let program = &settings.program;
    match fs::metadata(program) {
        Ok(metadata) if is_program(&metadata) => Ok(()),
        Ok(_) => Err(refused(format!("{} is not a program", program.display()))),
        Err(error) => Err(refused(format!(
            "{}: {error}; HVM guests need QEMU for Xen (Debian's package qemu-system-xen)",
            program.display()
        ))),
    }
}

/// See [`crate::edge::Host::start_device_model`].
///
/// # Errors
/// As there.
pub fn start(
    settings: &Settings,
    new: NewDeviceModel<'_>,
    note: &mut Note<'_>,
) -> Result<Arc<dyn DeviceModel>, HostError> {
    let domid = new.domid;
    let uid = jail::uid_of(settings.uid_base, domid).map_err(refused)?;
    let lacking = lacking(settings)?;
    let mut jail = without(Jail::new(uid, uid).map_err(refused)?, lacking, new.vm, domid, "the device model");
    if Feature::Cgroup.supported() {
        let name = group_name(domid);
        note(Resource::ControlGroup(name.clone()))?;
        jail = into_group(jail, settings, new.vm, &name, MEMORY)?;
    }
    let monitor = monitor_path(settings, domid);
    let listener = listen(settings, &monitor, note)?;
    let log = log_path(settings, new.vm);
    let (input, output) = (open_null()?, open_log(&log)?);
    let second = output.try_clone().map_err(failed("duplicate", &log))?;
    for descriptor in [input.into(), output.into(), second.into(), OwnedFd::from(listener)] {
        jail = jail.descriptor(descriptor);
    }
    for descriptor in new.descriptors {
        jail = jail.descriptor(descriptor);
    }
    let mut jail = furnish(jail, domid)?;
    for StartFile { path, file } in new.files {
        let length = u64::try_from(file.length()).map_err(refused)?;
        jail = jail.content(path.to_owned(), file.into_file().into(), length);
    }
    let mut arguments = vec!["qemu".to_owned()];
    arguments.extend(data_directories().flat_map(|directory| ["-L".to_owned(), directory.to_owned()]));
    arguments.extend_from_slice(new.arguments);
    let mut started = Err(io::ErrorKind::NotFound.into());
    let permit = |pid| {
        started = process::describe(pid, uid, ROLE);
        let process = started.as_ref().map_err(|error| io::Error::other(error.to_string()))?;
        note(Resource::Process(process.clone())).map_err(io::Error::other)
    };
    let child = jail.spawn_when(&settings.program, &arguments, permit).map_err(refused)?;
    tracing::info!(vm = new.vm, %domid, pid = child.pid(), uid, log = %log.display(), "device model started");
    let isolated = !settings.unjailed.contains(&Feature::Mount) || Feature::Mount.supported();
    let pid = child.pid();
    Ok(Arc::new(Process { held: Held::Child(child), pid, uid, domid, monitor, log, isolated }))
}

/// See [`crate::edge::Host::listen_for_viewers`]: a socket beside the monitor's.
///
/// # Errors
/// As there.
pub fn listen_for_viewers(
    settings: &Settings,
    domid: DomId,
    note: &mut Note<'_>,
) -> Result<ScreenListener, HostError> {
    let path = settings.run.join(format!("vnc-{domid}"));
    let listener = listen(settings, &path, note)?;
    ScreenListener::on_file(listener, path.clone()).map_err(failed("listen on", &path))
}

/// See [`crate::edge::Host::adopt_device_model`].
///
/// # Errors
/// As there.
pub fn adopt(
    settings: &Settings,
    domid: DomId,
    vm: &str,
    process: &ProcessId,
) -> Result<Option<Arc<dyn DeviceModel>>, HostError> {
    let held = process::hold(process).map_err(|e| refused(format!("device model of domain {domid}: {e}")))?;
    let uid = jail::uid_of(settings.uid_base, domid).map_err(refused)?;
    let found = held.zip(u32::try_from(process.pid).ok()).map(|(held, pid)| {
        let (monitor, log) = (monitor_path(settings, domid), log_path(settings, vm));
        let held = Held::Other(held);
        Arc::new(Process { held, pid, uid, domid, monitor, log, isolated: true }) as Arc<dyn DeviceModel>
    });
    Ok(found)
}

/// The name of the control group of a domain's processes.
pub fn group_name(domid: DomId) -> String {
    format!("domain-{domid}")
}

/// Puts the QEMU of a VM into a control group of its own, which is noted.
pub(super) fn into_group(
    jail: Jail,
    settings: &Settings,
    vm: &str,
    name: &str,
    memory: u64,
) -> Result<Jail, HostError> {
    match Cgroup::create(name, &CgroupLimits { memory: Some(memory), processes: Some(THREADS) }) {
        Ok((group, lacking)) => {
            if !lacking.is_empty() {
                tracing::warn!(vm, "control group {name}: no limits of {}", lacking.join(", "));
            }
            Ok(jail.cgroup(group))
        }
        Err(error) if settings.unjailed.contains(&Feature::Cgroup) => {
            tracing::warn!(vm, %error, "QEMU runs without the control group {name}");
            Ok(jail)
        }
        Err(error) => Err(refused(format!(
            "control group {name}: {error}; `allow-unjailed = cgroup` in the settings file does without"
        ))),
    }
}

fn monitor_path(settings: &Settings, domid: DomId) -> PathBuf {
    settings.run.join(format!("qmp-{domid}"))
}

/// By the VM's id, which has no slashes; its name may have.
fn log_path(settings: &Settings, vm: &str) -> PathBuf {
    settings.logs.join(format!("qemu-dm-{vm}.log"))
}

fn listen(settings: &Settings, path: &Path, note: &mut Note<'_>) -> Result<UnixListener, HostError> {
    private_directory(&settings.run)?;
    note(Resource::Socket(path.display().to_string()))?;
    match fs::symlink_metadata(path) {
        // Of an earlier domain of that number, whose daemon was killed.
        Ok(left) if left.file_type().is_socket() => fs::remove_file(path).map_err(failed("remove", path))?,
        _ => {}
    }
    UnixListener::bind(path).map_err(failed("listen on", path))
}

/// Sockets in it are as private as it is.
pub(super) fn private_directory(path: &Path) -> Result<(), HostError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("make", path))?;
    let metadata = fs::symlink_metadata(path).map_err(failed("look at", path))?;
    let own = metadata.is_dir() && metadata.uid() == nix::unistd::geteuid().as_raw();
    let others = metadata.mode() & 0o077;
    if own && others == 0 {
        return Ok(());
    }
    Err(refused(format!("{} must be a directory of root's that nobody else can enter", path.display())))
}

pub(super) fn open_null() -> Result<File, HostError> {
    let path = Path::new("/dev/null");
    File::open(path).map_err(failed("open", path))
}

/// A fresh log; the one before is kept, one of them.
fn open_log(path: &Path) -> Result<File, HostError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(failed("make", directory))?;
    }
    match fs::rename(path, path.with_extension("log.1")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed("rename", path)(error)),
        _ => {}
    }
    let options = File::options().append(true).create_new(true).mode(0o600).clone();
    options.open(path).map_err(failed("make", path))
}

/// Those that are there.
fn data_directories() -> impl Iterator<Item = &'static str> {
    DATA_DIRECTORIES.into_iter().filter(|directory| Path::new(directory).is_dir())
}

fn furnish(jail: Jail, domid: DomId) -> Result<Jail, HostError> {
    let limits = Limits {
        open_files: Some(OPEN_FILES),
        processes: Some(THREADS),
        file_size: Some(LOG_LIMIT),
        data: Some(DATA),
        ..Limits::default()
    };
    let mut jail = jail.system_libraries().limits(limits).filter(filter::filter().map_err(refused)?);
    // The libraries' directory is there already, with all that is in it.
    for directory in data_directories().filter(|directory| !directory.starts_with("/usr/lib/")) {
        jail = jail.entry(Entry::ReadOnly { source: directory.into(), path: directory.into() });
    }
    jail = jail.entry(Entry::Node { path: "/dev/null".into(), device: NULL });
    for device in seal::XEN_DEVICES {
        let path = device.path();
        match seal::number(&path) {
            Ok(number) => jail = jail.entry(Entry::Node { path, device: number }),
            Err(_) if !device.needed => {}
            Err(error) => return Err(failed("look at", &path)(error)),
        }
    }
    let (name, value) = CONSOLE_LIMIT;
    let jail = jail.variable(name, value).and_then(|j| j.variable("XEN_DOMAIN_ID", domid.to_string()));
    jail.map_err(refused)
}

enum Held {
    /// Of this daemon's; it has to be waited for.
    Child(Child),
    /// Of an earlier one's.
    Other(PidFd),
}

impl Held {
    fn pidfd(&self) -> &PidFd {
        match self {
            Self::Child(child) => child.process(),
            Self::Other(pidfd) => pidfd,
        }
    }
}

/// A device model that was started.
struct Process {
    held: Held,
    pid: u32,
    uid: u32,
    domid: DomId,
    monitor: PathBuf,
    log: PathBuf,
    /// It has a mount namespace, so that its root can be taken away.
    isolated: bool,
}

impl Process {
    fn wait(&self) -> io::Result<()> {
        let limit = PollTimeout::try_from(KILL_LIMIT).map_err(io::Error::other)?;
        let mut ended = [PollFd::new(self.ended(), PollFlags::POLLIN)];
        loop {
            match poll(&mut ended, limit) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// How it ended, when that can be known. It is no zombie after this.
    fn reap(&self) -> Option<String> {
        let Held::Child(child) = &self.held else { return None };
        child.try_wait().ok().flatten().map(|status| status.to_string())
    }
}

impl DeviceModel for Process {
    fn ended(&self) -> BorrowedFd<'_> {
        self.held.pidfd().as_fd()
    }

    fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.monitor)
    }

    fn seal(&self) -> Result<(), HostError> {
        if let (Held::Child(child), true) = (&self.held, self.isolated) {
            child.empty_root().map_err(refused)?;
        }
        seal::descriptors(self.held.pidfd(), self.pid, self.domid, &self.log)?;
        seal::status(self.pid, self.uid, Feature::Seccomp.supported())
    }

    fn kill(&self) -> Result<(), HostError> {
        let unkillable =
            |error: io::Error| refused(format!("device model of domain {}: {error}", self.domid));
        match self.held.pidfd().send_signal(libc::SIGKILL) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => return Err(unkillable(error)),
            _ => {}
        }
        self.wait().map_err(unkillable)?;
        self.reap();
        Ok(())
    }

    fn last_words(&self) -> String {
        let how = self.reap().unwrap_or_else(|| "it ended".to_owned());
        match tail(&self.log) {
            Ok(text) if text.is_empty() => format!("{how}; it printed nothing"),
            Ok(text) => format!("{how}; the last it printed: {text}"),
            Err(error) => format!("{how}; its log {} cannot be read: {error}", self.log.display()),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.reap();
    }
}

/// The end of the log on one line, without control characters: a guest may have written it.
fn tail(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LAST_WORDS)))?;
    let mut bytes = Vec::new();
    file.take(LAST_WORDS).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.trim().replace('\n', " | ");
    Ok(line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect())
}

#[cfg(test)]
mod tests;
