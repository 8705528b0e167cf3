//! Virtual block devices.

use super::device_number::DeviceNumber;
use super::errors::Error;
use super::ids::{DeviceId, TaskId, VmId};
use super::value::{Dict, Int};

variant! {
    /// Where a disk's content comes from.
    pub enum Disk as "disk" derive(Eq, Hash) {
        /// A path in dom0: a block device or a file.
        Local as "Local" (String),
        /// A disk of the storage service, `SR/VDI`.
        Vdi as "VDI" (String),
    }
}

variant! {
    /// Whether the guest may write.
    pub enum VbdMode as "Vbd.mode" derive(Copy, Eq) {
        /// It may not.
        ReadOnly as "ReadOnly",
        /// It may.
        ReadWrite as "ReadWrite",
    }
}

variant! {
    /// What kind of drive the guest sees.
    pub enum VbdType as "Vbd.ty" derive(Copy, Eq) {
        /// A CD-ROM drive, whose medium may change.
        Cdrom as "CDROM",
        /// A disk.
        Disk as "Disk",
        /// A floppy drive.
        Floppy as "Floppy",
    }
}

variant! {
    /// Priority within an I/O scheduling class.
    pub enum QosClass as "Vbd.qos_class" derive(Copy, Eq) {
        /// 0.
        Highest as "Highest",
        /// 2.
        High as "High",
        /// 4.
        Normal as "Normal",
        /// 6.
        Low as "Low",
        /// 7.
        Lowest as "Lowest",
        /// Any of 0 to 7.
        Other as "Other" (Int),
    }
}

variant! {
    /// I/O scheduling class.
    pub enum QosScheduler as "Vbd.qos_scheduler" derive(Copy, Eq) {
        /// Served first.
        RealTime as "RealTime" (QosClass),
        /// Served when nobody else wants the disk.
        Idle as "Idle",
        /// Served in turn.
        BestEffort as "BestEffort" (QosClass),
    }
}

variant! {
    /// Quality of service of a VBD.
    pub enum Qos as "Vbd.qos" derive(Copy, Eq) {
        /// I/O priority of the backend's threads.
        Ionice as "Ionice" (QosScheduler),
    }
}

record! {
    /// A virtual block device of a VM.
    pub struct Vbd as "Vbd.t" derive(Eq) {
        /// Which device of which VM.
        id: DeviceId = DeviceId::default(),
        /// Where the guest sees it; the first free one when absent.
        position: Option<DeviceNumber> = None,
        /// Whether the guest may write.
        mode: VbdMode = VbdMode::ReadWrite,
        /// Its content; an empty drive when absent.
        backend: Option<Disk> = None,
        /// What kind of drive the guest sees.
        ty: VbdType = VbdType::Disk,
        /// Whether it can be unplugged from a running VM.
        unpluggable: bool = true,
        /// Keys added to the backend's directory in xenstore.
        extra_backend_keys: Dict<String> = Dict::new(),
        /// Keys added to the toolstack's private directory in xenstore.
        extra_private_keys: Dict<String> = Dict::new(),
        /// Quality of service.
        qos: Option<Qos> = None,
        /// Whether writes survive a reboot.
        persistent: bool = true,
        /// Whether its storage can be attached before the VM is paused for the last leg of a migration.
        can_attach_early: bool = false,
    }
}

record! {
    /// What is observed of a VBD.
    pub struct VbdState as "Vbd.state" derive(Eq) {
        /// Whether it will be plugged whenever the VM runs.
        active: bool,
        /// Whether the running VM has it.
        plugged: bool,
        /// Quality of service in force.
        qos_target: Option<Qos>,
        /// Its content now.
        backend_present: Option<Disk>,
    }
}

methods! {
    debug_info as "debug_info", errors Error;

    /// Adds a VBD to a VM, or replaces it. Returns its id.
    "VBD.add" VbdAdd -> DeviceId {
        /// The VBD.
        vbd: Vbd,
    }

    /// Plugs a VBD into a running VM.
    "VBD.plug" VbdPlug -> TaskId {
        /// The VBD.
        id: DeviceId,
    }

    /// Unplugs a VBD from a running VM.
    "VBD.unplug" VbdUnplug -> TaskId {
        /// The VBD.
        id: DeviceId,
        /// Do not ask the guest.
        force: bool,
    }

    /// Takes the medium out of a drive.
    "VBD.eject" VbdEject -> TaskId {
        /// The VBD.
        id: DeviceId,
    }

    /// Puts a medium into an empty drive.
    "VBD.insert" VbdInsert -> TaskId {
        /// The VBD.
        id: DeviceId,
        /// The medium.
        disk: Disk,
    }

    /// Looks again how large the disk of a plugged VBD is, and tells its guest. Not in xapi's contract.
    "VBD.refresh" VbdRefresh -> TaskId {
        /// The VBD.
        id: DeviceId,
    }

    /// A VBD's configuration and state.
    "VBD.stat" VbdStat -> (Vbd, VbdState) {
        /// The VBD.
        id: DeviceId,
    }

    /// The VBDs of a VM.
    "VBD.list" VbdList -> Vec<(Vbd, VbdState)> {
        /// The VM.
        id: VmId,
    }

    /// Forgets a VBD that is not plugged.
    "VBD.remove" VbdRemove -> () {
        /// The VBD.
        id: DeviceId,
    }
}
