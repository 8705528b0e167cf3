//! What runs, brought in line with its records.

use super::VmExecutor;
use crate::api::Error;
use crate::device::{self, vif};
use crate::ops::change::{Change, Record};
use crate::ops::plan::Device;

impl VmExecutor<'_> {
    /// Does for the running VM what a change of its records says. What does not run, or is not plugged, will be as its
    /// record says when it is.
    pub(super) fn apply(&self, change: &Change) -> Result<(), Error> {
        let Record::Vif(interface) = &change.now else { return Ok(()) };
        let named = Device::Vif(interface.id.device.clone());
        if !device::is_plugged(self.core, self.vm(), &named)? {
            return Ok(());
        }
        vif::apply(self.core, self.domid()?, interface)
    }
}
