//! What plans are made of: single effects with what takes each back, what it weighs and when it may be cancelled, in groups.

use std::time::Duration;

use super::END;
use crate::api::Disk;
use crate::edge::Access;
use crate::ops::change::Change;
use crate::ops::hook::{Hook, HookReason};

/// How a guest is asked to go down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShutdownRequest {
    /// `control/shutdown` = `poweroff`.
    Poweroff,
    /// `control/shutdown` = `reboot`.
    Reboot,
}

/// A device of the VM, named by the second part of its id.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Device {
    /// A disk.
    Vbd(String),
    /// A network interface.
    Vif(String),
}

/// How a device is taken away from a running guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplugging {
    /// The guest is asked, and may refuse.
    Clean,
    /// The guest is not asked.
    Forced,
}

/// What a text console shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Screen {
    /// Nothing yet; nothing is kept.
    Fresh,
    /// What it showed when the VM was suspended.
    Kept,
}

/// What a device model begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beginning {
    /// A machine that was just switched on.
    Fresh,
    /// Nothing, until it is told what the machine was like when the VM was suspended.
    Kept,
}

/// One effect.
#[derive(Debug, Clone, PartialEq)]
pub enum Atom {
    /// Everything that can be found wrong without taking anything.
    CheckStart,
    /// The administrator's scripts for an event.
    Hook(Hook, HookReason),
    /// Nothing, for a while.
    Delay(Duration),
    /// An empty domain and its xenstore skeleton.
    CreateDomain,
    /// The kernel on the guest's own disk, for the build.
    FindKernel,
    /// The kernel of the next round of the guest's installation, likewise.
    LoadInstaller,
    /// The record as it is once that round has its domain. Before the domain is marked as complete: a daemon killed in
    /// between leaves a VM that does not start again by itself, and not one that is installed over what is there.
    KeepRound,
    /// Takes that back.
    ForgetRound,
    /// A domain that was complete without memory is noted as incomplete, until [`Atom::Settle`].
    BeginBuild,
    /// Memory, kernel, rings; the store told of them.
    BuildDomain,
    /// A frame buffer, a keyboard and a pointer offered to the guest; they are served once it has taken them up.
    OfferFrameBuffer,
    /// Ends what serves them; there may be none.
    StopFrameBuffer,
    /// The terminal server of its text console.
    StartTerminal(Screen),
    /// That ended.
    StopTerminal(Screen),
    /// A disk of a storage layer made reachable in dom0, for whoever uses it. It is given back with its device.
    AttachStorage(Device),
    /// The server of a disk whose image dom0's kernel does not read, for whoever uses it. It ends with its device.
    ServeDisk(String),
    /// The same as [`Atom::AttachStorage`] for the image of a suspend, to be written or read.
    AttachImage(Disk, Access),
    /// That is given back; there may be none.
    DetachImage,
    /// A device of a running guest is noted as incomplete: a restarted daemon takes such a one away.
    BeginPlug(Device),
    /// A device set up in dom0, offered to the guest and taken up by its backend.
    Plug(Device),
    /// It is complete.
    EndPlug(Device),
    /// A device taken away from a running guest, with all that dom0 holds of it.
    Unplug(Device, Unplugging),
    /// The size of a plugged disk looked at again, and the guest told.
    RefreshDisk(String),
    /// The medium of its record put into a drive that a device model emulates.
    InsertMedium(String),
    /// That is taken out.
    EjectMedium(String, Unplugging),
    /// A record is stored.
    Keep(Change),
    /// What runs is brought in line with its record.
    Apply(Change),
    /// A QEMU that emulates for the domain, set up and waiting.
    StartDeviceModel(Beginning),
    /// The device model of a suspended guest stopped, and its state taken for the image. Before the memory, of which it may
    /// change some until then.
    SaveDeviceModel,
    /// That state given to the device model of the domain that was restored, whose memory it needs.
    LoadDeviceModel,
    /// Ends it; there may be none.
    StopDeviceModel,
    /// Marks the domain as complete: until then a restarted daemon takes it for half built and removes it.
    Settle,
    /// Lets the vcpus run.
    Unpause,
    /// Stops them.
    Pause,
    /// As [`Atom::Pause`], ignoring failure, and noting that the domain is about to go.
    PauseBestEffort,
    /// Asks the guest, and waits for it to have stopped.
    RequestShutdown(ShutdownRequest, Duration),
    /// The place for a suspend image, empty, with a note that the domain is being suspended: a restarted daemon lets such
    /// a one run on.
    OpenImage(Disk),
    /// Asks the guest to suspend, and waits for it to have stopped.
    RequestSuspend,
    /// Its memory and processors into the image.
    SaveDomain,
    /// The image is flushed and made valid.
    SealImage,
    /// The VM is suspended from now on: what is left of the domain goes, and nothing before this is undone.
    KeepImage,
    /// Lets a suspended domain run on, or takes back the request to suspend.
    ResumeDomain,
    /// The image of a suspend that did not come to its end.
    DiscardImage(Disk),
    /// Everything that can be found wrong with a resume without taking anything.
    CheckResume(Disk),
    /// Memory and processors from the image; rings; the store told of them.
    RestoreDomain(Disk),
    /// The VM is no longer suspended: its domain is complete, and nothing before this is undone.
    ForgetImage,
    /// Tells every backend to let go.
    CloseDevices,
    /// The domain itself.
    DestroyDomain,
    /// Waits for the backends, gives the host's resources back, removes the xenstore trees.
    ReleaseDevices,
}

/// A plan: atoms in order and in parallel.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// One effect.
    Do(Atom),
    /// One after the other.
    Serial(Vec<Step>),
    /// At the same time; all are awaited, then the first failure counts.
    Parallel(Vec<Step>),
}

impl Atom {
    /// What takes this atom back once it is done, or when it failed half way. Devices need nothing of their own in a
    /// start: undoing the creation releases whatever the domain has.
    pub fn undo(&self) -> Vec<Atom> {
        match self {
            Self::CreateDomain | Self::BeginBuild => END.to_vec(),
            Self::StartTerminal(_) => vec![Self::StopTerminal(Screen::Fresh)],
            Self::BeginPlug(device) => vec![Self::Unplug(device.clone(), Unplugging::Forced)],
            Self::AttachImage(..) => vec![Self::DetachImage],
            Self::OpenImage(disk) => vec![Self::DiscardImage(disk.clone())],
            Self::RequestSuspend => vec![Self::ResumeDomain],
            Self::InsertMedium(drive) => vec![Self::EjectMedium(drive.clone(), Unplugging::Forced)],
            Self::EjectMedium(drive, Unplugging::Clean) => vec![Self::InsertMedium(drive.clone())],
            Self::Keep(change) => change.undo(),
            Self::StartDeviceModel(_) => vec![Self::StopDeviceModel],
            Self::KeepRound => vec![Self::ForgetRound],
            Self::CheckStart
            | Self::AttachStorage(_)
            | Self::ServeDisk(_)
            | Self::DetachImage
            | Self::Hook(..)
            | Self::Delay(_)
            | Self::FindKernel
            | Self::LoadInstaller
            | Self::ForgetRound
            | Self::BuildDomain
            | Self::Plug(_)
            | Self::EndPlug(_)
            | Self::RefreshDisk(_)
            | Self::EjectMedium(_, Unplugging::Forced)
            | Self::Unplug(..)
            | Self::Apply(_)
            | Self::StopDeviceModel
            | Self::SaveDeviceModel
            | Self::LoadDeviceModel
            | Self::Settle
            | Self::Unpause
            | Self::Pause
            | Self::PauseBestEffort
            | Self::RequestShutdown(..)
            | Self::SaveDomain
            | Self::SealImage
            | Self::KeepImage
            | Self::ResumeDomain
            | Self::DiscardImage(_)
            | Self::CheckResume(_)
            | Self::RestoreDomain(_)
            | Self::ForgetImage
            | Self::CloseDevices
            | Self::OfferFrameBuffer
            | Self::StopFrameBuffer
            | Self::StopTerminal(_)
            | Self::DestroyDomain
            | Self::ReleaseDevices => Vec::new(),
        }
    }

    /// Its share of an operation's progress, relative to the others'.
    pub fn weight(&self) -> u32 {
        match self {
            Self::SaveDomain | Self::RestoreDomain(_) => 10,
            // A program of somebody else's.
            Self::AttachStorage(_) | Self::AttachImage(..) | Self::ServeDisk(_) => 2,
            // Some ten megabytes from a server.
            Self::LoadInstaller => 20,
            // Some tenths of a second, as long as the build of a small guest.
            Self::StartDeviceModel(_) => 4,
            _ => 1,
        }
    }

    /// Whether what came before is not undone any more once this is done.
    pub fn commits(&self) -> bool {
        matches!(self, Self::KeepImage | Self::ForgetImage)
    }

    /// Once begun these run to their end: stopping half way would leave more behind than finishing.
    pub fn cancellable(&self) -> bool {
        !matches!(
            self,
            Self::PauseBestEffort
                | Self::StopDeviceModel
                | Self::CloseDevices
                | Self::StopFrameBuffer
                | Self::StopTerminal(_)
                | Self::DestroyDomain
                | Self::ReleaseDevices
        )
    }
}

impl Step {
    /// Whether it is one of the steps of [`destroy`], which are all taken once the first is.
    pub fn ends_domain(&self) -> bool {
        matches!(self, Self::Do(atom) if !atom.cancellable())
    }

    /// How many atoms it holds.
    pub fn atoms(&self) -> usize {
        match self {
            Self::Do(_) => 1,
            Self::Serial(steps) | Self::Parallel(steps) => steps.iter().map(Self::atoms).sum(),
        }
    }

    /// Their weights together, for progress.
    pub fn weight(&self) -> u32 {
        match self {
            Self::Do(atom) => atom.weight(),
            Self::Serial(steps) | Self::Parallel(steps) => steps.iter().map(Self::weight).sum(),
        }
    }
}
