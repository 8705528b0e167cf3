//! A disk server: QEMU without a machine, in the one jail, with one image as a descriptor, whose blocks it serves to the
//! kernel over a socket.
//!
//! ```text
//!   this daemon                                    QEMU (own user, empty root, no network)
//!     noted ─► listen, connect, remove the path
//!     jail: process noted ──────────────────────►  0 nothing   1, 2 a bounded log   3 monitor
//!     image, as a descriptor ───────────────────►  opened, not yet read
//!     its root is taken away, its jail looked at
//!     format ───────────────────────────────────►  the image's header is read: from here on it may be taken over
//!     the listening socket ─────────────────────►  serves one connection, the one that is there
//!     NBD: how large? ──────────────────────────►
//!     number noted ─► the kernel has the connection ─► /dev/nbdN;  the monitor is closed
//! ```
//!
//! Nobody can connect to it later: the socket has no path any more. It ends on a signal, by which it writes back what it
//! holds. What it needs of the host is the program that emulates for HVM guests.

mod image;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use ffi::jail::{self, Child, Entry, Feature, Jail, Limits};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::blockdev::DevNumber;
use super::device_model::{
    NULL, Settings, THREADS, filter, into_group, lacking, open_null, private_directory, seal, without,
};
use super::nbd::negotiate::{self, Export, READ_ONLY};
use super::nbd::{self, NbdDevice};
use super::{process, release};
use crate::api::value::Value;
use crate::dm::qmp::{Qmp, QmpError};
use crate::edge::{
    Access, AttachedDisk, DISK_SERVER, DiskId, HostError, ImageFormat, NoteServer, ServerWanted,
};
use crate::state::journal::DiskServerId;
use image::Image;

/// How long it may take to start, and each thing it is told to do: it takes some milliseconds.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How long it may take to write back what it holds when it is to end, which is the tables of a qcow2 image. Then it is killed.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Bytes that it can print in its life; more is not kept.
const LOG: u64 = 16 * 1024;

/// Bytes of the log that are repeated in an error.
const LAST_WORDS: usize = 1024;

/// Descriptors: some twenty of its own, and the image twice.
const OPEN_FILES: u64 = 64;

/// Threads of a domain's user, whose disks it all serves: QEMU has up to 64 for one, and a guest some dozens of disks.
const USER_THREADS: u64 = THREADS * 64;

/// Private writable memory in bytes: the stacks of its threads, and caches of an image's tables.
const DATA: u64 = 1 << 30;

/// Memory in bytes where control groups can limit it, page cache included: 25 MB, and the tables of a large qcow2 image.
const MEMORY: u64 = 256 << 20;

/// What an image may take beside the disk that it shows: its tables, which are below one in sixty-four of it, and a header.
const TABLES_SHARE: u64 = 64;
const HEADER: u64 = 64 << 20;

/// Names of the parts of it in its own words.
const FILE_NODE: &str = "file";
const DISK_NODE: &str = "disk";
const LISTENER: &str = "nbd";

fn refused(what: impl std::fmt::Display) -> HostError {
    HostError::Unusable { class: "disk", text: what.to_string() }
}

/// Checks, taking nothing, that an image can be served; which disk it is.
///
/// # Errors
/// [`HostError`].
pub fn check(
    settings: &Settings,
    path: &Path,
    access: Access,
    format: ImageFormat,
) -> Result<DiskId, HostError> {
    let image = Image::open(path, access, format)?;
    jail::check_uid_base(settings.uid_base).map_err(refused)?;
    lacking(settings)?;
    nbd::check().map_err(refused)?;
    let program = &settings.program;
    match fs::metadata(program) {
        Ok(found) if super::script::is_program(&found) => Ok(image.id),
        Ok(_) => Err(refused(format!("{} is not a program", program.display()))),
        Err(error) => Err(refused(format!(
            "{}: {error}; {format} disks need QEMU for Xen (Debian's package qemu-system-xen)",
            program.display()
        ))),
    }
}

/// Starts a server and shows its disk as a block device.
///
/// # Errors
/// [`HostError`]. What was taken is noted, for [`release`].
pub fn start(
    settings: &Settings,
    wanted: &ServerWanted<'_>,
    note: &mut NoteServer<'_>,
) -> Result<(), HostError> {
    nbd::check().map_err(refused)?;
    let image = Image::open(wanted.path, wanted.access, wanted.format)?;
    let name = format!("disk-{}-{}", wanted.domid, wanted.vdev);
    let mut server = DiskServerId {
        vdev: wanted.vdev.into(),
        disk: image.id.to_string(),
        writable: wanted.access == Access::ReadWrite,
        format: wanted.format.to_string(),
        socket: settings.run.join(&name).display().to_string(),
        group: format!("domain-{}-{name}", wanted.domid),
        process: None,
        number: None,
    };
    note(&server)?;
    let (connection, export) = serve(settings, wanted, &image, &mut server, note)?;
    let writable = export.flags & READ_ONLY == 0;
    if writable != (wanted.access == Access::ReadWrite) {
        return Err(refused(format!("{}: the disk server has it with other rights", wanted.path.display())));
    }
    let block_size = wanted.block_size.bytes();
    if !export.size.is_multiple_of(block_size.into()) {
        let path = wanted.path.display();
        return Err(refused(format!(
            "disk {path} cannot have blocks of {block_size} bytes: it shows {} bytes",
            export.size
        )));
    }
    let identifier = server.identifier().ok_or_else(|| refused("a disk server without a process"))?;
    let mut reserve = |number: u32| {
        server.number = Some(number.into());
        note(&server).map_err(io::Error::other)
    };
    let device = nbd::connect(connection.as_fd(), export, block_size, &identifier, &mut reserve);
    let device = device.map_err(refused)?;
    tracing::info!(
        vm = wanted.vm, domid = %wanted.domid, path = %wanted.path.display(), format = %wanted.format,
        "{} is served as {}", identifier, device.path.display()
    );
    Ok(())
}

/// Starts the process and lets it serve; the connection that the kernel is to have.
///
/// # Errors
/// As [`start`].
fn serve(
    settings: &Settings,
    wanted: &ServerWanted<'_>,
    image: &Image,
    server: &mut DiskServerId,
    note: &mut NoteServer<'_>,
) -> Result<(UnixStream, Export), HostError> {
    let failed = |error: &dyn std::fmt::Display| refused(format!("disk {}: {error}", wanted.path.display()));
    let (connection, listener) = connected(settings, Path::new(&server.socket)).map_err(|e| failed(&e))?;
    let log = bounded_log().map_err(|e| failed(&e))?;
    let (ours, its) = UnixStream::pair().map_err(|e| failed(&e))?;
    let child = spawn(settings, wanted, image, server, note, (&log, its))?;
    let uid = jail::disk_uid_of(settings.uid_base, wanted.domid).map_err(refused)?;
    let sealed = |child: &Child| {
        if !settings.unjailed.contains(&Feature::Mount) || Feature::Mount.supported() {
            child.empty_root().map_err(refused)?;
        }
        seal::status(child.pid(), uid, Feature::Seccomp.supported())
    };
    let told = || -> Result<Export, Told> {
        let mut qmp = Qmp::start(ours, START_LIMIT)?;
        let [file, disk] = nodes(wanted, image);
        qmp.execute_with(
            "add-fd",
            Some(dict([("fdset-id", Value::Int(0))])),
            Some(image.file.as_fd()),
            START_LIMIT,
        )?;
        qmp.execute("blockdev-add", Some(file), START_LIMIT)?;
        sealed(&child)?;
        qmp.execute("blockdev-add", Some(disk), START_LIMIT)?;
        let name = dict([("fdname", Value::string(LISTENER))]);
        qmp.execute_with("getfd", Some(name), Some(listener.as_fd()), START_LIMIT)?;
        qmp.execute("nbd-server-start", Some(where_it_serves()), START_LIMIT)?;
        qmp.execute("block-export-add", Some(what_it_serves(wanted)), START_LIMIT)?;
        let mut timed = Timed { stream: &connection, deadline: Instant::now() + START_LIMIT };
        Ok(negotiate::negotiate(&mut timed)?)
    };
    let export = told().map_err(|error| match error {
        Told::Host(error) => error,
        other => failed(&format!("{other}{}", last_words(&log))),
    })?;
    Ok((connection, export))
}

/// Why it does not serve.
#[derive(Debug, thiserror::Error)]
enum Told {
    #[error(transparent)]
    Monitor(#[from] QmpError),
    #[error(transparent)]
    Protocol(#[from] negotiate::NegotiateError),
    #[error(transparent)]
    Host(#[from] HostError),
}

/// A socket that nobody but we are connected to, and that nobody can connect to any more.
fn connected(settings: &Settings, path: &Path) -> io::Result<(UnixStream, UnixListener)> {
    private_directory(&settings.run).map_err(io::Error::other)?;
    // Of an earlier domain of that number, whose daemon was killed.
    release::remove_socket(path)?;
    let listener = UnixListener::bind(path)?;
    let connection = UnixStream::connect(path);
    fs::remove_file(path)?;
    Ok((connection?, listener))
}

fn spawn(
    settings: &Settings,
    wanted: &ServerWanted<'_>,
    image: &Image,
    server: &mut DiskServerId,
    note: &mut NoteServer<'_>,
    (log, monitor): (&File, UnixStream),
) -> Result<Child, HostError> {
    let uid = jail::disk_uid_of(settings.uid_base, wanted.domid).map_err(refused)?;
    let limits = Limits {
        open_files: Some(OPEN_FILES),
        processes: Some(USER_THREADS),
        file_size: Some(largest(image)),
        data: Some(DATA),
        ..Limits::default()
    };
    let filter = filter::filter().map_err(refused)?;
    let mut jail = Jail::new(uid, uid).map_err(refused)?.system_libraries().limits(limits).filter(filter);
    jail = jail.entry(Entry::Node { path: "/dev/null".into(), device: NULL });
    jail = without(jail, lacking(settings)?, wanted.vm, wanted.domid, "a disk server");
    if Feature::Cgroup.supported() {
        jail = into_group(jail, settings, wanted.vm, &server.group, MEMORY)?;
    }
    let copy = || log.try_clone().map(OwnedFd::from).map_err(refused);
    for descriptor in [open_null()?.into(), copy()?, copy()?, OwnedFd::from(monitor)] {
        jail = jail.descriptor(descriptor);
    }
    let permit = |pid| {
        server.process = Some(process::describe(pid, uid, DISK_SERVER)?);
        note(server).map_err(io::Error::other)
    };
    jail.spawn_when(&settings.program, &ARGUMENTS, permit).map_err(refused)
}

/// No machine, and nothing else that was not asked for. Nothing is run, so the accelerator is one that needs nothing of Xen's.
const ARGUMENTS: [&str; 14] = [
    DISK_SERVER,
    "-machine",
    "none",
    "-accel",
    "qtest",
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-S",
    "-chardev",
    "socket,id=monitor,fd=3",
    "-mon",
    "chardev=monitor,mode=control",
];

/// What a disk of that size can take in its image, or what it takes already.
fn largest(image: &Image) -> u64 {
    let tables = (image.size / TABLES_SHARE).saturating_add(HEADER);
    image.size.max(image.length).saturating_add(tables)
}

fn dict<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Dict(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

/// The file that was passed, and the disk in it. That a qcow2 image is based on nothing is said, whatever its header says.
fn nodes(wanted: &ServerWanted<'_>, image: &Image) -> [Value; 2] {
    let read_only = || ("read-only", Value::Bool(wanted.access == Access::ReadOnly));
    let discard = || ("discard", Value::string("unmap"));
    let file = dict([
        ("driver", Value::string(image.driver)),
        ("node-name", Value::string(FILE_NODE)),
        ("filename", Value::string("/dev/fdset/0")),
        ("cache", dict([("direct", Value::Bool(image.direct)), ("no-flush", Value::Bool(false))])),
        read_only(),
        discard(),
    ]);
    let mut disk = vec![
        ("driver".into(), Value::string(wanted.format.driver())),
        ("node-name".into(), Value::string(DISK_NODE)),
        ("file".into(), Value::string(FILE_NODE)),
    ];
    disk.extend([read_only(), discard()].map(|(key, value)| (key.into(), value)));
    if wanted.format == ImageFormat::Qcow2 {
        disk.push(("backing".into(), Value::Null));
    }
    [file, Value::Dict(disk)]
}

fn where_it_serves() -> Value {
    let address = dict([("type", Value::string("fd")), ("data", dict([("str", Value::string(LISTENER))]))]);
    dict([("addr", address), ("max-connections", Value::Int(1))])
}

fn what_it_serves(wanted: &ServerWanted<'_>) -> Value {
    dict([
        ("type", Value::string("nbd")),
        ("id", Value::string(DISK_NODE)),
        ("node-name", Value::string(DISK_NODE)),
        ("name", Value::string("")),
        ("writable", Value::Bool(wanted.access == Access::ReadWrite)),
    ])
}

/// A connection of which all that is read is to have come by a time.
struct Timed<'a> {
    stream: &'a UnixStream,
    deadline: Instant,
}

impl Read for Timed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(into)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// A file in memory that does not grow: what is written beyond its end fails.
fn bounded_log() -> io::Result<File> {
    let log =
        File::from(memfd_create("disk-server-log", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    log.set_len(LOG)?;
    let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&log, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(log)
}

/// What it has printed, for an error, on one line.
fn last_words(log: &File) -> String {
    let mut bytes = vec![0; usize::try_from(LOG).unwrap_or(LAST_WORDS)];
    let read = log.read_at(&mut bytes, 0).unwrap_or(0);
    bytes.truncate(read);
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[end.saturating_sub(LAST_WORDS)..end]);
    let line = text.trim().replace('\n', " | ");
    if line.is_empty() {
        return String::new();
    }
    let line: String = line.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    format!("; it printed: {line}")
}

/// The block device of a server that runs; none when it does not.
///
/// # Errors
/// [`HostError`].
pub fn find(server: &DiskServerId) -> Result<Option<AttachedDisk>, HostError> {
    let (Some(meant), Some(identifier)) = (&server.process, server.identifier()) else { return Ok(None) };
    if process::hold(meant).map_err(refused)?.is_none() {
        return Ok(None);
    }
    let Some(number) = server.number.and_then(|number| u32::try_from(number).ok()) else { return Ok(None) };
    let Some(device) = nbd::find(number, &identifier).map_err(refused)? else { return Ok(None) };
    let id = server.disk.parse().map_err(refused)?;
    let file =
        open(&device, server.writable).map_err(|e| refused(format!("{}: {e}", device.path.display())))?;
    let (major, minor) = (device.dev.major, device.dev.minor);
    Ok(Some(AttachedDisk { id, device: (major, minor), node: device.path, keep: Some(file.into()) }))
}

/// Opens its node, if that is what it should be.
fn open(device: &NbdDevice, writable: bool) -> io::Result<File> {
    let file = File::options().read(true).write(writable).custom_flags(libc::O_NOCTTY).open(&device.path)?;
    if DevNumber::from_raw(file.metadata()?.rdev()) == device.dev {
        return Ok(file);
    }
    Err(io::Error::other(format!("it is not device {}", device.dev)))
}

/// Takes its device away, ends it, and removes what belongs to it; whether there was anything. Nobody uses the disk any more.
///
/// # Errors
/// The first refusal; the rest is done all the same.
pub fn release(server: &DiskServerId) -> Result<bool, HostError> {
    let number = server.number.and_then(|number| u32::try_from(number).ok());
    let disconnected = match (number, server.identifier()) {
        (Some(number), Some(identifier)) => nbd::disconnect(number, &identifier).map_err(refused),
        _ => Ok(false),
    };
    let ended = server.process.as_ref().map_or(Ok(false), |meant| {
        process::stop(meant, END_LIMIT).map_err(|e| refused(format!("process {}: {e}", meant.pid)))
    });
    // A name that is not there must not mean all groups, or no path.
    let named = |name: &str, end: &dyn Fn(&str) -> io::Result<bool>| {
        if name.is_empty() { Ok(false) } else { end(name).map_err(|e| refused(format!("{name}: {e}"))) }
    };
    let group = named(&server.group, &release::end_group);
    let socket = named(&server.socket, &|path| release::remove_socket(Path::new(path)));
    Ok(disconnected? | ended? | group? | socket?)
}
