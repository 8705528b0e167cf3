//! What the journal writes down.

use std::fmt;

use crate::api::{Dict, Int};
use crate::edge::FileId;
use crate::state::Lasting;

record! {
    /// Which process it is. The number alone may be another's by now; with the time of its start it is not.
    pub struct ProcessId as "Process" derive(Eq) {
        /// Its number.
        pid: Int,
        /// When it was started, in clock ticks since the host's start (field 22 of `/proc/<pid>/stat`).
        started: i64,
        /// Whose it is, once it has given up being root's.
        uid: i64,
        /// What it is for: `qemu`, `vncterm`, …
        role: String,
    }
}

impl ProcessId {
    /// Its number as the kernel has it.
    ///
    /// # Errors
    /// When a record holds what is no process's.
    pub fn number(&self) -> Result<u32, crate::api::Error> {
        u32::try_from(self.pid)
            .map_err(|_| crate::api::Error::internal(format!("{} is no process's number", self.pid)))
    }
}

record! {
    /// Which loop device, and what is behind it.
    pub struct LoopId as "Loop" derive(Eq) {
        /// N of `/dev/loopN`.
        number: i64,
        /// `st_dev` of the file.
        device: i64,
        /// Its inode number.
        inode: i64,
        /// The number of the VM's disk that it is for, as the guest knows it.
        vdev: i64,
    }
}

impl LoopId {
    /// The loop device `number`, which shows `file`, for the disk `vdev`.
    pub fn new(number: u32, file: FileId, vdev: u32) -> Self {
        Self {
            number: number.into(),
            device: file.device.cast_signed(),
            inode: file.inode.cast_signed(),
            vdev: vdev.into(),
        }
    }

    /// Its number, and the file it must show to be the one that is meant.
    pub fn meant(&self) -> (u32, FileId) {
        let file = FileId { device: self.device.cast_unsigned(), inode: self.inode.cast_unsigned() };
        // No device has the last number.
        (u32::try_from(self.number).unwrap_or(u32::MAX), file)
    }
}

record! {
    /// A disk of a storage layer, and where it is.
    pub struct StorageId as "Storage" derive(Eq) {
        /// The storage repository.
        sr: String,
        /// The disk in it.
        vdi: String,
        /// The number of the VM's disk that it is for, as the guest knows it; -1 for a suspend image.
        vdev: i64,
        /// Whether it is written.
        writable: bool,
        /// Where it is in dom0; empty until it is attached.
        path: String = String::new(),
        /// What its backend's directory is to have.
        extra: Dict<String> = Dict::new(),
    }
}

record! {
    /// A disk that a process of ours serves: the process, and what belongs to it.
    pub struct DiskServerId as "DiskServer" derive(Eq) {
        /// The number of the VM's disk that it is for, as the guest knows it.
        vdev: i64 = 0,
        /// Which disk it serves ([`DiskId`](crate::edge::DiskId)'s text).
        disk: String = String::new(),
        /// Whether it is written.
        writable: bool = false,
        /// What its image is.
        format: String = String::new(),
        /// Where it listens for the moment until it is connected.
        socket: String = String::new(),
        /// The control group it is in, by its name below the daemon's.
        group: String = String::new(),
        /// Its process, from the moment there is one.
        process: Option<ProcessId> = None,
        /// N of the `/dev/nbdN` that shows it, from before it does.
        number: Option<i64> = None,
    }
}

impl StorageId {
    /// Whether it is attached.
    pub fn is_ready(&self) -> bool {
        !self.path.is_empty()
    }
}

variant! {
    /// A resource of the host that somebody has to give back.
    pub enum Resource as "Resource" derive(Eq) {
        /// The VM's domain, from before it is created until its last node is removed. Which one it is, the hypervisor
        /// knows by the VM's uuid.
        Domain as "Domain",
        /// A loop device.
        Loop as "Loop" (LoopId),
        /// A disk of a storage layer.
        Storage as "Storage" (StorageId),
        /// A disk that a process serves.
        DiskServer as "DiskServer" (DiskServerId),
        /// A process.
        Process as "Process" (ProcessId),
        /// A network device that was made for the VM and does not go with its domain: a tap.
        NetworkDevice as "NetworkDevice" (String),
        /// Rules for what a network interface may send.
        Rules as "Rules" (String),
        /// A port of an Open vSwitch, by the name of its interface: it stays in the switch's database when the interface is
        /// gone.
        SwitchPort as "SwitchPort" (String),
        /// A Unix socket in the file system.
        Socket as "Socket" (String),
        /// A control group, by its name below the daemon's, with every process in it.
        ControlGroup as "ControlGroup" (String),
        /// A directory with everything in it: an empty root for a process.
        Directory as "Directory" (String),
    }
}

impl Resource {
    /// A directory is still there after the host's next boot, unless it is on a tmpfs, and so may be what a storage layer
    /// keeps elsewhere; the others are not.
    pub(super) fn lasting(&self) -> Lasting {
        match self {
            Self::Directory(_) | Self::Socket(_) | Self::Storage(_) | Self::SwitchPort(_) => Lasting::Host,
            Self::Domain
            | Self::Loop(_)
            | Self::DiskServer(_)
            | Self::Process(_)
            | Self::NetworkDevice(_)
            | Self::Rules(_)
            | Self::ControlGroup(_) => Lasting::Process,
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain => f.write_str("domain"),
            Self::Loop(device) => write!(f, "/dev/loop{}", device.number),
            Self::Storage(disk) => write!(f, "disk {}/{}", disk.sr, disk.vdi),
            Self::DiskServer(server) => write!(f, "server of {} disk {}", server.format, server.disk),
            Self::Process(process) => write!(f, "{} process {}", process.role, process.pid),
            Self::NetworkDevice(name) => write!(f, "network device {name}"),
            Self::Rules(name) => write!(f, "rules of interface {name}"),
            Self::SwitchPort(name) => write!(f, "port {name} of an Open vSwitch"),
            Self::Socket(path) => write!(f, "socket {path}"),
            Self::ControlGroup(name) => write!(f, "control group {name}"),
            Self::Directory(path) => write!(f, "directory {path}"),
        }
    }
}
