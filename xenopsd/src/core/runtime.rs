//! What is known of a VM only while this process runs. Nothing here is needed to recover: a restarted daemon finds
//! domains and devices by looking.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use vncterm::fb::wanted::Wanted;
use xenstore::layout::DeviceAddress;

use crate::api::Int;
use crate::device::served::Served;
use crate::dm::model::Model;
use crate::domain::frame_buffer::Looks;
use crate::domain::guest_data::GuestData;
use crate::edge::{DomId, Followed, Following, ScreenAddress, ScreenSocket, TerminalPorts, TerminalSockets};
use crate::ops::starts::Starts;

/// One VM's.
#[derive(Debug, Default)]
pub struct Runtime {
    /// When it last started, for measuring.
    pub started: Option<Instant>,
    /// A reboot is between its two halves: clients are told `Running`, so that they do not see it halted.
    pub rebooting: bool,
    /// Its domain, to clean up after one that somebody else destroyed.
    pub domid: Option<DomId>,
    /// Loop devices kept open for its disks, by device.
    pub kept: Vec<(DeviceAddress, OwnedFd)>,
    /// Disks whose backends' states are followed, to give their threads a priority.
    pub followed_disks: Vec<(DeviceAddress, Following)>,
    /// The servers of its disks that have one, by the disks' numbers.
    pub served: HashMap<u32, Served>,
    /// The terminal server of its text console.
    pub terminal: Terminal,
    /// Its frame buffer.
    pub frame_buffer: FrameBuffer,
    /// Devices that an earlier daemon left half plugged or half unplugged have been looked for, or there can be none
    /// because this one has made the domain.
    pub looked_at: bool,
    /// Its device model, followed.
    pub model: Option<Arc<Model>>,
    /// Its device model has ended by itself, and nothing was done about that yet.
    pub model_ended: bool,
    /// Where the screen that it serves is to be reached.
    pub screen: Option<ScreenAddress>,
    /// Somebody else has changed what its interfaces are in, and nothing was done about that yet.
    pub networks_changed: bool,
    /// The domain in which a device was seen connected when it was to be unplugged: its guest has drivers.
    pub connected_in: Option<DomId>,
    /// What its guest was seen to tell of itself, and in which domain.
    pub guest_data: Option<(DomId, Arc<GuestData>)>,
}

/// The frame buffer of a VM.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    /// The states of its devices are followed.
    pub watches: Option<Following>,
    /// When they are to be looked at.
    pub looks: Looks,
    /// What serves it.
    pub server: Option<FrameServer>,
    /// Its socket, for the next one; none of one that an earlier daemon started.
    pub socket: Option<ScreenSocket>,
    /// When one was started of late.
    pub starts: Starts,
}

impl FrameBuffer {
    /// What is served.
    pub fn serves(&self) -> Option<Wanted> {
        self.server.as_ref().map(|server| server.serves)
    }
}

/// A process that serves a frame buffer.
#[derive(Debug)]
pub struct FrameServer {
    /// Its number.
    pub pid: Int,
    /// Where it listens.
    pub port: u16,
    /// Which of the guest's pages and ports it serves.
    pub serves: Wanted,
    /// While it is here, its end is told.
    pub followed: Followed,
}

/// The terminal server of a VM.
#[derive(Debug, Default)]
pub struct Terminal {
    /// It runs.
    pub server: Option<TerminalServer>,
    /// Its sockets, for the next one; none of one that an earlier daemon started.
    pub sockets: Option<TerminalSockets>,
    /// When it was started again of late, because it had ended.
    pub restarts: Starts,
}

/// One that runs.
#[derive(Debug)]
pub struct TerminalServer {
    /// Its process's number.
    pub pid: Int,
    /// Where it listens.
    pub ports: TerminalPorts,
    /// While it is here, its end is told.
    pub followed: Followed,
}

/// All VMs'.
#[derive(Default)]
pub struct Runtimes {
    table: Mutex<HashMap<String, Runtime>>,
}

impl Runtimes {
    /// Looks at, or changes, one VM's.
    pub fn with<R>(&self, vm: &str, apply: impl FnOnce(&mut Runtime) -> R) -> R {
        apply(self.lock().entry(vm.to_owned()).or_default())
    }

    /// The domains of all VMs that have one.
    pub fn domids(&self) -> Vec<DomId> {
        self.lock().values().filter_map(|runtime| runtime.domid).collect()
    }

    /// Forgets a VM.
    pub fn forget(&self, vm: &str) {
        self.lock().remove(vm);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Runtime>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
