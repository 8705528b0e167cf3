//! What a VM should be after each operation: the contract in a few lines, to compare the daemon with.

use super::*;
use crate::ops::plan::{Device, Unplugging};
use PowerState::{Halted, Paused, Running, Suspended};
use std::collections::BTreeSet;

/// The devices that every VM here has.
pub(super) fn devices() -> [Device; 3] {
    [Device::Vbd("xvda".to_owned()), Device::Vbd("xvdb".to_owned()), Device::Vif("0".to_owned())]
}

/// How a guest takes what it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manners {
    /// Goes down when asked, and lets devices go.
    Good,
    /// Does neither.
    None,
}

/// One VM. Devices are kept by name: they have no order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Model {
    pub(super) state: PowerState,
    /// Its domain has memory.
    pub(super) built: bool,
    pub(super) plugged: BTreeSet<String>,
    /// There is a whole image of it.
    pub(super) image: bool,
}

impl Model {
    /// One that was never started.
    pub(super) fn new() -> Self {
        Self { state: Halted, built: false, plugged: BTreeSet::new(), image: false }
    }

    /// Without a domain.
    pub(super) fn halted(&self) -> Self {
        Self { image: self.image, ..Self::new() }
    }

    /// With all that it has.
    pub(super) fn up(&self, state: PowerState) -> Self {
        let plugged = devices().iter().map(Device::to_string).collect();
        Self { state, built: true, plugged, image: self.image }
    }

    /// Whether it has a domain.
    pub(super) fn has_domain(&self) -> bool {
        matches!(self.state, Running | Paused)
    }

    fn is(&self, state: PowerState) -> Self {
        Self { state, ..self.clone() }
    }

    fn need(&self, wanted: &[PowerState]) -> Result<(), Option<Error>> {
        if wanted.contains(&self.state) {
            return Ok(());
        }
        Err(Some(Error::BadPowerState { found: self.state, expected: wanted[0] }))
    }

    /// Whether the guest answers.
    pub(super) fn answers(&self, manners: Manners) -> bool {
        manners == Manners::Good && self.state == Running && self.built
    }

    /// The VM after an operation, or the error it is refused with. None is an error that the contract leaves open.
    pub(super) fn after(&self, operation: &Operation, manners: Manners) -> Result<Self, Option<Error>> {
        let up = || self.need(&[Running, Paused]);
        Ok(match operation {
            Operation::Start if self.state == Running => self.clone(),
            Operation::Start => self.need(&[Halted]).map(|()| self.up(Paused))?,
            // What it is resumed from stays.
            Operation::DestroyDomain if self.state == Suspended => self.clone(),
            Operation::Shutdown(None) | Operation::DestroyDomain => self.halted(),
            Operation::Shutdown(Some(_)) | Operation::Reboot(Some(_)) => {
                up()?;
                if !self.answers(manners) {
                    return Err(Some(Error::FailedToAcknowledgeShutdownRequest));
                }
                if matches!(operation, Operation::Reboot(_)) { self.up(Running) } else { self.halted() }
            }
            Operation::Reboot(None) => up().map(|()| self.up(Running))?,
            Operation::Suspend(_) | Operation::Checkpoint(_) => {
                self.need(&[Running])?;
                if !self.answers(manners) {
                    return Err(None);
                }
                let before = Self { image: true, ..self.clone() };
                if matches!(operation, Operation::Checkpoint(_)) {
                    return Ok(before);
                }
                Self { state: Suspended, ..before.halted() }
            }
            Operation::Resume(_) => {
                self.need(&[Suspended, Halted])?;
                if !self.image {
                    return Err(None);
                }
                self.up(Paused)
            }
            // A guest suspends only when it is asked.
            Operation::FastResume => {
                return Err(Some(Error::BadPowerState { found: self.state, expected: Suspended }));
            }
            Operation::Pause | Operation::Unpause if self.state == Paused && !self.built => {
                return Err(Some(Error::DomainNotBuilt));
            }
            Operation::Pause => self.need(&[Running, Paused]).map(|()| self.is(Paused))?,
            Operation::Unpause => self.need(&[Paused, Running]).map(|()| self.is(Running))?,
            Operation::CreateDomain => {
                self.need(&[Halted])?;
                Self { state: Paused, ..self.halted() }
            }
            Operation::BuildDomain => {
                self.need(&[Paused])?;
                if self.built {
                    return Err(None);
                }
                Self { built: true, ..self.clone() }
            }
            // A guest that needs none.
            Operation::StartDeviceModel => {
                self.need(&[Paused])?;
                if !self.built {
                    return Err(Some(Error::DomainNotBuilt));
                }
                self.clone()
            }
            Operation::Plug(device) => {
                up()?;
                let mut after = self.clone();
                after.plugged.insert(device.to_string());
                after
            }
            Operation::Unplug(device, how) => {
                let mut after = self.clone();
                if !self.has_domain() || !after.plugged.remove(&device.to_string()) {
                    return Err(Some(Error::DeviceNotConnected));
                }
                if *how == Unplugging::Clean && !self.answers(manners) {
                    return Err(None);
                }
                after
            }
            Operation::RefreshDisk(name) => {
                if !self.has_domain() || !self.plugged.contains(&Device::Vbd(name.clone()).to_string()) {
                    return Err(Some(Error::DeviceNotConnected));
                }
                self.clone()
            }
            Operation::Delay(_) | Operation::Check | Operation::ImportMetadata(_) | Operation::Change(_) => {
                self.clone()
            }
            Operation::Remove => {
                self.need(&[Halted, Suspended])?;
                self.halted()
            }
        })
    }

    /// Where the VM may be found when the operation is cut short.
    pub(super) fn between(&self, operation: &Operation) -> Vec<PowerState> {
        let mut all = vec![self.state];
        match operation {
            Operation::Start | Operation::CreateDomain => all.extend([Halted, Paused]),
            Operation::Reboot(_) => all.extend([Halted, Paused, Running]),
            // It is paused before it goes.
            Operation::Shutdown(_) | Operation::DestroyDomain => all.extend([Paused, Halted]),
            Operation::Pause | Operation::Resume(_) => all.push(Paused),
            Operation::Unpause => all.push(Running),
            Operation::Suspend(_) => all.push(Suspended),
            _ => {}
        }
        all
    }
}
