//! The state of a device model on its way into an image and out of it.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::api::Error;
use crate::dm::model::Model;
use crate::domain::VmExecutor;

/// What an image has of a device model.
#[derive(Debug)]
pub(in crate::domain) struct ModelState {
    /// What it wrote; only another one understands it.
    pub(in crate::domain) bytes: Vec<u8>,
    /// Processors it emulated for: there are never fewer, whatever the guest makes of them.
    pub(in crate::domain) vcpus: usize,
}

impl VmExecutor<'_> {
    pub(in crate::domain) fn save_device_model(&self) -> Result<(), Error> {
        let model = self.model()?;
        let file = self.core.edges.host().make_state_file(None)?;
        let writer = file.writer().map_err(|error| self.state_failed(&error))?;
        let saved = self.slot.without(|| model.save_state(writer.as_fd()));
        let vcpus = saved.map_err(|error| self.not_saved(&error))?;
        let bytes = file.content().map_err(|error| self.not_saved(&error))?;
        tracing::debug!(vm = self.vm(), bytes = bytes.len(), vcpus, "the device model's state is taken");
        self.hold_state(Some(ModelState { bytes, vcpus }));
        Ok(())
    }

    pub(in crate::domain) fn load_device_model(&self) -> Result<(), Error> {
        let model = self.model()?;
        let state = self.take_state();
        let state = state.ok_or_else(|| Error::internal("no state of a device model was read"))?;
        let file = self.core.edges.host().make_state_file(Some(&state.bytes))?;
        let reader = file.reader().map_err(|error| self.state_failed(&error))?;
        let limit = self.core.patience.device_model;
        let loaded = self.slot.without(|| model.load_state(reader.as_fd(), state.vcpus, limit));
        loaded.map_err(|error| self.not_started(&error))
    }

    pub(in crate::domain) fn hold_state(&self, state: Option<ModelState>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    pub(in crate::domain) fn take_state(&self) -> Option<ModelState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn model(&self) -> Result<Arc<Model>, Error> {
        let model = self.core.runtimes.with(self.vm(), |r| r.model.clone());
        model.ok_or_else(|| Error::internal(format!("VM {}: it has no device model", self.vm())))
    }

    fn not_saved(&self, error: &dyn std::fmt::Display) -> Error {
        Error::internal(format!("VM {}: the device model's state is not saved: {error}", self.vm()))
    }

    fn state_failed(&self, error: &io::Error) -> Error {
        Error::internal(format!("VM {}: no way for the device model's state: {error}", self.vm()))
    }

    /// Lets a stopped device model go on, before its guest does. Without it the guest is as one that has crashed.
    pub(super) fn continue_device_model(&self) {
        let Some(model) = self.core.runtimes.with(self.vm(), |r| r.model.clone()) else { return };
        let Err(error) = model.run() else { return };
        tracing::error!(vm = self.vm(), %error, "the device model does not go on");
        self.core.runtimes.with(self.vm(), |r| r.model_ended = true);
        self.core.check_at(self.vm(), Instant::now());
    }
}
