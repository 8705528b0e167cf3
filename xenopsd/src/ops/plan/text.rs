//! Steps as their people read them, in logs, tasks and explanations.

use super::{Atom, Device, ShutdownRequest, Unplugging};
use crate::ops::hook::HookReason;
use std::fmt;

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vbd(name) => write!(f, "disk {name}"),
            Self::Vif(name) => write!(f, "interface {name}"),
        }
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CheckStart => write!(f, "check"),
            Self::CreateDomain => write!(f, "create domain"),
            Self::FindKernel => write!(f, "find kernel"),
            Self::LoadInstaller => write!(f, "load installer"),
            Self::KeepRound => write!(f, "store the round of the installation"),
            Self::ForgetRound => write!(f, "store the record as before the round"),
            Self::BeginBuild => write!(f, "begin build"),
            Self::BuildDomain => write!(f, "build domain"),
            Self::Hook(hook, HookReason::None) => write!(f, "hook {hook}"),
            Self::Hook(hook, reason) => write!(f, "hook {hook} ({reason})"),
            Self::Delay(time) => write!(f, "wait {} s", time.as_secs_f64()),
            Self::OfferFrameBuffer => write!(f, "offer frame buffer"),
            Self::StopFrameBuffer => write!(f, "stop frame buffer"),
            Self::StartTerminal(_) => write!(f, "start terminal"),
            Self::StopTerminal(_) => write!(f, "stop terminal"),
            Self::AttachStorage(device) => write!(f, "attach storage of {device}"),
            Self::ServeDisk(name) => write!(f, "serve the image of disk {name}"),
            Self::AttachImage(..) => write!(f, "attach storage of the image"),
            Self::DetachImage => write!(f, "detach storage of the image"),
            Self::BeginPlug(device) => write!(f, "begin plug of {device}"),
            Self::Plug(device) => write!(f, "plug {device}"),
            Self::EndPlug(device) => write!(f, "end plug of {device}"),
            Self::Unplug(device, Unplugging::Clean) => write!(f, "unplug {device}"),
            Self::Unplug(device, Unplugging::Forced) => write!(f, "unplug {device} by force"),
            Self::RefreshDisk(name) => write!(f, "look at the size of disk {name}"),
            Self::InsertMedium(drive) => write!(f, "insert into emulated drive {drive}"),
            Self::EjectMedium(drive, _) => write!(f, "eject from emulated drive {drive}"),
            Self::Keep(change) => write!(f, "store {change}"),
            Self::Apply(change) => write!(f, "apply {change}"),
            Self::StartDeviceModel(_) => write!(f, "start device model"),
            Self::SaveDeviceModel => write!(f, "save device model"),
            Self::LoadDeviceModel => write!(f, "load device model"),
            Self::StopDeviceModel => write!(f, "stop device model"),
            Self::Settle => write!(f, "settle"),
            Self::Unpause => write!(f, "unpause"),
            Self::Pause | Self::PauseBestEffort => write!(f, "pause"),
            Self::RequestShutdown(ShutdownRequest::Poweroff, _) => write!(f, "ask for poweroff"),
            Self::RequestShutdown(ShutdownRequest::Reboot, _) => write!(f, "ask for reboot"),
            Self::OpenImage(_) => write!(f, "open image"),
            Self::RequestSuspend => write!(f, "ask for suspend"),
            Self::SaveDomain => write!(f, "save domain"),
            Self::SealImage => write!(f, "seal image"),
            Self::KeepImage => write!(f, "keep image"),
            Self::ResumeDomain => write!(f, "resume domain"),
            Self::DiscardImage(_) => write!(f, "discard image"),
            Self::CheckResume(_) => write!(f, "check image"),
            Self::RestoreDomain(_) => write!(f, "restore domain"),
            Self::ForgetImage => write!(f, "forget image"),
            Self::CloseDevices => write!(f, "close devices"),
            Self::DestroyDomain => write!(f, "destroy domain"),
            Self::ReleaseDevices => write!(f, "release devices"),
        }
    }
}
