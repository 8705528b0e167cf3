//! A round of an installation whose start is not complete: `round/<uuid>` has the VM's record before and after it.
//!
//! ```text
//!   begin: round/<uuid> ─► VM/<uuid>/config ─► the domain is complete ─► end: no round/<uuid>
//!                                │
//!                                └─ a failure, or a kill and no complete domain ─► undo: the record as it was
//! ```

use super::{Lasting, Records, dir};
use crate::api::value::{FromValue, ToValue, Value};
use crate::api::{DecodeError, Error, Vm};

/// The directory.
pub(super) const ROUNDS: &str = "round";

/// The two records.
struct Round {
    /// As it was when the start began.
    before: Vm,
    /// As the round leaves it.
    after: Vm,
}

const BEFORE: &str = "before";
const AFTER: &str = "after";

impl ToValue for Round {
    fn to_value(&self) -> Value {
        Value::Dict(vec![(BEFORE.into(), self.before.to_value()), (AFTER.into(), self.after.to_value())])
    }
}

impl FromValue for Round {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let record = |name: &'static str| Vm::from_value(value.get(name).unwrap_or(&Value::Null));
        Ok(Self { before: record(BEFORE)?, after: record(AFTER)? })
    }
}

impl Records {
    /// Replaces a VM's record by what a round of its installation makes of it, until that is undone or ended.
    ///
    /// # Errors
    /// `Internal_error` when the disk refuses; the record is as it was then.
    pub fn begin_round(&self, before: Vm, after: Vm) -> Result<(), Error> {
        dir(ROUNDS, &after.id)?;
        let round = Round { before, after };
        self.write(ROUNDS, &round.after.id, &round)?;
        self.put_vm(&round.after)
    }

    /// The start is complete: the record stays as the round left it.
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

    /// The start came to nothing: the record becomes what it was, unless somebody has changed it since. Whether it did.
    ///
    /// # Errors
    /// `Internal_error` when the disk refuses.
    pub fn undo_round(&self, vm: &str) -> Result<bool, Error> {
        dir(ROUNDS, vm)?;
        let Some(round) = self.read::<Round>(ROUNDS, vm)? else { return Ok(false) };
        let ours = self.vm(vm)? == round.after;
        if ours {
            self.put_vm(&round.before)?;
        }
        self.end_round(vm)?;
        Ok(ours)
    }
}
