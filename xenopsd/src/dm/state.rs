//! A device model's own state, out of one and into the next: what QEMU is told when its guest is suspended or resumed.
//!
//! ```text
//!   save   stop ─► add-fd ─► xen-save-devices-state ─► remove-fd           (it stays stopped until `cont`)
//!   load   device_add (of processors) ─► getfd ─► migrate-incoming ─► MIGRATION: completed    (likewise)
//! ```
//!
//! One that is to be loaded was started with `-incoming defer`. The state is of an earlier QEMU, which its guest may have
//! taken over: it is read in the jail, by a process that ends when it cannot make sense of it.

use std::os::fd::BorrowedFd;
use std::time::Duration;

use super::args::STATE_SET;
use super::media::{arguments, set};
use super::model::{Model, ModelError};
use super::qmp::{Event, RunState};
use super::vcpus;
use crate::api::value::Value;

/// The name of the descriptor that is passed.
const NAME: &str = "state";

impl Model {
    /// Stops it, when all that its guest has written to disks is there, and has it write its state. Whatever comes of it, it
    /// is to be [let run](Model::run) again if its guest is. The number of processors it emulates for.
    ///
    /// # Errors
    /// [`ModelError::Monitor`].
    pub fn save_state(&self, into: BorrowedFd<'_>) -> Result<usize, ModelError> {
        self.execute("stop", arguments([]), None)?;
        let vcpus = vcpus::present(&self.ask("query-hotpluggable-cpus")?)?;
        self.forget_set(STATE_SET)?;
        self.execute("add-fd", arguments([set(STATE_SET)]), Some(into))?;
        let filename = ("filename", Value::string(format!("/dev/fdset/{STATE_SET}")));
        // Not "live": its disks stay its own, in case that the guest runs on here.
        let saved =
            self.execute("xen-save-devices-state", arguments([filename, ("live", Value::Bool(false))]), None);
        let forgotten = self.forget_set(STATE_SET);
        saved.and(forgotten).map(|()| vcpus)
    }

    /// Gives it the state that another one wrote, which emulated for `vcpus` processors, and waits no longer than `limit`
    /// until it has taken it. Its domain has its memory.
    ///
    /// # Errors
    /// [`ModelError`]; it is to be ended.
    pub fn load_state(&self, from: BorrowedFd<'_>, vcpus: usize, limit: Duration) -> Result<(), ModelError> {
        self.plug_vcpus(vcpus)?;
        let events = [("capability", Value::string("events")), ("state", Value::Bool(true))];
        let events = Value::Array(vec![arguments(events)]);
        self.execute("migrate-set-capabilities", arguments([("capabilities", events)]), None)?;
        self.execute("getfd", arguments([("fdname", Value::string(NAME))]), Some(from))?;
        let load = arguments([("uri", Value::string(format!("fd:{NAME}")))]);
        self.execute_until("migrate-incoming", load, is_over, limit)?;
        self.expect(RunState::Paused)
    }
}

/// One that fails says so as well, and ends.
fn is_over(event: &Event) -> bool {
    event.name == "MIGRATION"
        && matches!(event.data.get("status"), Some(Value::String(status)) if status == "completed" || status == "failed")
}
