//! Rounds of installations, as a VM's operations see them.

use super::Core;
use super::operation::Request;
use crate::api::Error;
use crate::domain::bootloader;
use crate::ops::plan;

impl Core {
    /// Takes back what a round whose start came to nothing has changed, and tells of it; whether there was anything.
    ///
    /// # Errors
    /// `Internal_error` when the disk refuses.
    pub fn forget_round(&self, vm: &str) -> Result<bool, Error> {
        let changed = self.records.undo_round(vm)?;
        let any = !changed.is_empty();
        self.updates.add_all(changed);
        Ok(any)
    }
}

impl Request<'_> {
    /// The VM as it is started: without a disk that was for its installer, if this is the round in which that goes.
    pub(super) fn starting(&self) -> Result<plan::Records, Error> {
        let mut records = self.records()?;
        records.leaving = bootloader::take_leaving(&records.vm, &mut records.vbds);
        Ok(records)
    }

    /// A start that an earlier daemon was killed in is no round of an installation.
    pub(super) fn undo_round(&self) -> Result<(), Error> {
        if self.core.forget_round(self.vm)? {
            tracing::warn!(
                vm = self.vm,
                "the start of a round of its installation came to nothing; its record is as before"
            );
        }
        Ok(())
    }
}
