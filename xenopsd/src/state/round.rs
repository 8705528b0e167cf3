//! A round of an installation whose start is not complete: `round/<uuid>` has the VM's record before and after it, and that
//! of a disk which was for the installer and goes with it.
//!
//! ```text
//!   begin: round/<uuid> ─► VM/<uuid>/config ─► no VM/<uuid>/vbd.<disk> ─► the domain is complete ─► end: no round/<uuid>
//!                                │
//!                                └─ a failure, or a kill and no complete domain ─► undo: the records as they were
//! ```

use super::{Lasting, Records, dir};
use crate::api::value::{FromValue, ToValue, Value};
use crate::api::{DecodeError, DeviceId, DynamicId, Error, Vbd, Vm};

/// The directory.
pub(super) const ROUNDS: &str = "round";

/// The records.
struct Round {
    /// As it was when the start began.
    before: Vm,
    /// As the round leaves it.
    after: Vm,
    /// The disk that it no longer has then.
    disk: Option<Vbd>,
}

const BEFORE: &str = "before";
const AFTER: &str = "after";
const DISK: &str = "disk";

impl ToValue for Round {
    fn to_value(&self) -> Value {
        let records = [(BEFORE.into(), self.before.to_value()), (AFTER.into(), self.after.to_value())];
        let disk = self.disk.iter().map(|disk| (DISK.into(), disk.to_value()));
        Value::Dict(records.into_iter().chain(disk).collect())
    }
}

impl FromValue for Round {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let record = |name: &'static str| Vm::from_value(value.get(name).unwrap_or(&Value::Null));
        let disk = value.get(DISK).map(Vbd::from_value).transpose()?;
        Ok(Self { before: record(BEFORE)?, after: record(AFTER)?, disk })
    }
}

impl Records {
    /// Replaces a VM's record by what a round of its installation makes of it, and removes that of the disk `leaving`, if
    /// there is one, until that is undone or ended.
    ///
    /// # Errors
    /// `Internal_error` when the disk refuses. Then it is to be undone.
    pub fn begin_round(&self, before: Vm, after: Vm, leaving: Option<&DeviceId>) -> Result<(), Error> {
        dir(ROUNDS, &after.id)?;
        let disk = leaving.map(|id| self.device::<Vbd>(id)).transpose()?;
        let round = Round { before, after, disk };
        self.write(ROUNDS, &round.after.id, &round)?;
        self.put_vm(&round.after)?;
        round.disk.map_or(Ok(()), |disk| self.remove::<Vbd>(&disk.id))
    }

    /// The start is complete: the records stay as the round left them.
    ///
    /// # Errors
    /// `Internal_error` when the disk refuses.
    pub fn end_round(&self, vm: &str) -> Result<(), Error> {
        dir(ROUNDS, vm)?;
        if self.files.exists(ROUNDS, vm) {
            self.files.remove(ROUNDS, vm, Lasting::Host)?;
        }
        Ok(())
    }

    /// The start came to nothing: the records become what they were, unless somebody has changed the VM's since. What
    /// clients are to be told of; nothing if there was no round, or it had not begun.
    ///
    /// # Errors
    /// `Internal_error` when the disk refuses.
    pub fn undo_round(&self, vm: &str) -> Result<Vec<DynamicId>, Error> {
        dir(ROUNDS, vm)?;
        let Some(round) = self.read::<Round>(ROUNDS, vm)? else { return Ok(Vec::new()) };
        let mut changed = Vec::new();
        if self.vm(vm)? == round.after {
            // The VM's own record goes last: until it is as it was, this can be done again.
            if let Some(disk) = &round.disk
                && !self.device_names::<Vbd>(vm)?.contains(&disk.id.device)
            {
                self.put(disk)?;
                changed.push(DynamicId::Vbd(disk.id.clone()));
            }
            self.put_vm(&round.before)?;
            changed.push(DynamicId::Vm(vm.to_owned()));
        }
        self.end_round(vm)?;
        Ok(changed)
    }
}
