//! Rounds of installations, as a VM's operations see them.

use super::operation::Request;
use crate::api::Error;
use crate::domain::bootloader;
use crate::ops::plan;

impl Request<'_> {
    /// The VM as it is started: without a disk that was for its installer, if this is the round in which that goes.
    pub(super) fn starting(&self) -> Result<plan::Records, Error> {
        let mut records = self.records()?;
        records.leaving = bootloader::take_leaving(&records.vm, &mut records.vbds);
        Ok(records)
    }

    /// A start that an earlier daemon was killed in is no round of an installation.
    pub(super) fn undo_round(&self) -> Result<(), Error> {
        let changed = self.core.records.undo_round(self.vm)?;
        if !changed.is_empty() {
            tracing::warn!(
                vm = self.vm,
                "the start of a round of its installation came to nothing; its record is as before"
            );
        }
        changed.into_iter().for_each(|object| self.core.updates.add(object));
        Ok(())
    }
}
