//! A VM's emulated drives: which of its disks have one, where, and what QEMU is told of them.
//!
//! ```text
//!   hdtype     hard disks                          CD-ROM drives           left to PV drivers
//!   ide        ide.0 to ide.1, units 0 and 1       the same                from the fifth on
//!   ahci       ahci0.0 to ahci0.5                  as with ide             disks from the seventh, CDs from the fifth on
//! ```
//!
//! Firmware and old systems read from IDE word by word, each an exit to the device model; AHCI reads into the guest's
//! memory. A guest with PV drivers asks QEMU to take its emulated disks away (the unplug protocol), which QEMU 7.2 does with
//! those on IDE only: on AHCI they stay beside their PV twins.

use std::fmt;

use super::args::ArgsError;
use crate::api::{BusType, Vbd, VbdMode, VbdType, Vm};

/// Key of the emulated disk controller in a VM's `platformdata`: libxl's word for it.
pub const CONTROLLER_KEY: &str = "hdtype";

/// Most drives of any controller: numbers of drives are below it.
pub const MOST_DRIVES: usize = AHCI_DRIVES;

/// Emulated IDE has two channels of two drives; QEMU's PC has no more.
const IDE_DRIVES: usize = 4;

/// Ports of QEMU's AHCI controller.
const AHCI_DRIVES: usize = 6;

/// An option of QEMU's and its value.
type Pair = (&'static str, String);

/// What emulated hard disks are attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Controller {
    /// The PC's own, which every system has a driver for.
    #[default]
    Ide,
    /// An ICH9's in AHCI mode, beside the PC's own.
    Ahci,
}

impl Controller {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Ide, Self::Ahci];

    /// What this VM is to have.
    ///
    /// # Errors
    /// [`ArgsError::Controller`] for an unknown word.
    pub(super) fn of(vm: &Vm) -> Result<Self, ArgsError> {
        let Some(word) = vm.platformdata.get(CONTROLLER_KEY).map(|word| word.trim()) else {
            return Ok(Self::default());
        };
        Self::ALL
            .into_iter()
            .find(|controller| controller.word() == word)
            .ok_or_else(|| ArgsError::Controller(word.to_owned()))
    }

    /// The value of [`CONTROLLER_KEY`] that asks for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ide => "ide",
            Self::Ahci => "ahci",
        }
    }

    /// How many drives it has.
    pub(super) fn drives(self) -> usize {
        match self {
            Self::Ide => IDE_DRIVES,
            Self::Ahci => AHCI_DRIVES,
        }
    }

    /// What QEMU is told of it. The PC's own is always there.
    pub(super) fn options(self) -> Option<Pair> {
        (self == Self::Ahci).then(|| ("-device", "ahci,id=ahci0".to_owned()))
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ide => "IDE",
            Self::Ahci => "AHCI",
        })
    }
}

/// Name of a disk by its number, which is below 26.
pub(super) fn disk_name(prefix: &str, number: usize) -> String {
    ('a'..='z').nth(number).map_or_else(|| prefix.to_owned(), |letter| format!("{prefix}{letter}"))
}

/// An emulated drive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Drive {
    /// Its place, from 0 on: on IDE primary master, primary slave, secondary master, secondary slave; on AHCI the port.
    pub index: usize,
    /// The device number of its PV twin.
    pub number: u32,
    /// Which VBD it is, by the second part of its id.
    pub vbd: String,
    /// Whether it is a CD-ROM drive.
    pub cdrom: bool,
    /// What it is attached to.
    pub controller: Controller,
}

impl Drive {
    /// QEMU's name for it, as libxl has it.
    pub fn qemu_id(&self) -> String {
        match self.controller {
            Controller::Ide => format!("ide-{}", self.number),
            Controller::Ahci => format!("ahcidisk-{}", self.index),
        }
    }

    /// What QEMU is told of it, with the number that its descriptor has there.
    pub(super) fn options(&self, descriptor: Option<usize>) -> Vec<Pair> {
        // The set's number is the drive's, so that a later medium finds it free again.
        let set = self.index;
        let mut options = Vec::new();
        options.extend(descriptor.map(|fd| ("-add-fd", format!("fd={fd},set={set}"))));
        // The format is said, never guessed: what a guest wrote to its disk would decide otherwise.
        let file = descriptor.map_or_else(String::new, |_| {
            format!(
                ",driver=raw,file.driver=host_device,file.filename=/dev/fdset/{set},file.auto-read-only=off"
            )
        });
        let id = self.qemu_id();
        let (read_only, cache, model) =
            if self.cdrom { ("on", "", "ide-cd") } else { ("off", ",cache=writeback", "ide-hd") };
        options.push(("-drive", format!("if=none,readonly={read_only},id={id}{file}{cache}")));
        options.push((
            "-device",
            match self.controller {
                Controller::Ide => {
                    format!("{model},id={id},drive={id},bus=ide.{},unit={}", self.index / 2, self.index % 2)
                }
                Controller::Ahci => format!("{model},bus=ahci0.{},unit=0,drive={id}", self.index),
            },
        ));
        options
    }
}

/// The disks of a VM that are emulated, by their places. Hard disks are on the controller it asks for, CD-ROM drives on IDE.
pub(super) fn of(hard_disks: Controller, vbds: &[Vbd]) -> Result<Vec<Drive>, ArgsError> {
    let mut drives: Vec<Drive> = Vec::new();
    for vbd in vbds {
        let Some(position) = &vbd.position else { continue };
        let cdrom = vbd.ty == VbdType::Cdrom;
        let controller = if cdrom { Controller::Ide } else { hard_disks };
        let disk = || vbd.id.device.clone();
        let index = usize::try_from(position.disk).ok();
        let Some(index) = index.filter(|index| *index < controller.drives() && position.partition == 0)
        else {
            if position.bus == BusType::Ide {
                return Err(ArgsError::NoSuchDrive { disk: disk(), controller });
            }
            continue;
        };
        if !matches!(position.bus, BusType::Ide | BusType::Xen) {
            continue;
        }
        // An emulated hard disk cannot be kept from writes (XSA-142): such a disk is there for PV drivers only.
        if !cdrom && (vbd.mode == VbdMode::ReadOnly || vbd.backend.is_none()) {
            continue;
        }
        if drives.iter().any(|drive| drive.index == index) {
            return Err(ArgsError::DriveTaken(disk()));
        }
        let number = position.to_xenstore();
        let number = number.map_err(|_| ArgsError::NoSuchDrive { disk: disk(), controller })?;
        drives.push(Drive { index, number, vbd: disk(), cdrom, controller });
    }
    drives.sort_by_key(|drive| drive.index);
    Ok(drives)
}
