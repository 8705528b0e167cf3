//! Media of emulated CD-ROM drives: what QEMU is told to change one.
//!
//! ```text
//!   insert   remove-fd (of an earlier one) ─► add-fd, with the descriptor ─► blockdev-change-medium
//!   eject    eject ─► remove-fd
//! ```
//!
//! A medium is a descriptor in a set of the drive's number. QEMU keeps the set for as long as a monitor is connected, so it
//! is told when to let it go.

use std::os::fd::BorrowedFd;

use super::drives::Drive;
use super::model::{Model, ModelError};
use super::qmp::QmpError;
use crate::api::value::Value;

/// QEMU's class of all errors that have none of their own.
const GENERIC: &str = "GenericError";

pub(super) fn set(number: usize) -> (&'static str, Value) {
    // 0 to 7.
    ("fdset-id", Value::Int(i64::try_from(number).unwrap_or(i64::MAX)))
}

pub(super) fn arguments<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Dict(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

impl Model {
    /// Puts a medium into a drive that has none.
    ///
    /// # Errors
    /// [`ModelError::Monitor`].
    pub fn insert(&self, drive: &Drive, medium: BorrowedFd<'_>) -> Result<(), ModelError> {
        self.forget_set(drive.index)?;
        let opaque = ("opaque", Value::string(drive.vbd.as_str()));
        self.execute("add-fd", arguments([set(drive.index), opaque]), Some(medium))?;
        let changed = self.execute(
            "blockdev-change-medium",
            arguments([
                ("id", Value::string(drive.qemu_id())),
                // The driver is said: QEMU would look for a device of that name to find it.
                ("filename", Value::string(format!("host_device:/dev/fdset/{}", drive.index))),
                ("format", Value::string("raw")),
                ("read-only-mode", Value::string("read-only")),
            ]),
            None,
        );
        if changed.is_err() {
            self.forget_set(drive.index)?;
        }
        changed
    }

    /// Takes the medium out of a drive. The guest can lock it; forced, that is not minded.
    ///
    /// # Errors
    /// [`ModelError::Monitor`], whose [`QmpError::Refused`] is the guest's doing.
    pub fn eject(&self, drive: &Drive, force: bool) -> Result<(), ModelError> {
        let (id, force) = (("id", Value::string(drive.qemu_id())), ("force", Value::Bool(force)));
        self.execute("eject", arguments([id, force]), None)?;
        self.forget_set(drive.index)
    }

    /// Lets the descriptors of a set go; there may be none.
    pub(super) fn forget_set(&self, number: usize) -> Result<(), ModelError> {
        match self.execute("remove-fd", arguments([set(number)]), None) {
            Err(ModelError::Monitor(QmpError::Refused { class, .. })) if class == GENERIC => Ok(()),
            other => other,
        }
    }
}
