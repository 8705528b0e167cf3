//! A script that sets up the host's side of an interface, for sites that have one: called as libxl calls it.
//!
//! ```text
//!   backend InitWait ──► SCRIPT online ──► it writes hotplug-status = connected ──► netback goes on
//!                              └── it fails, writes hotplug-error, takes too long: the plug fails
//!   backend Closed ──► SCRIPT offline, whatever comes of it ──► nodes removed
//! ```
//!
//! Which script it was is kept in the toolstack's private tree, so that the same one is told of the end, also by the next
//! daemon and when the record says otherwise by then.

use std::path::{Path, PathBuf};
use std::time::Instant;

use xenstore::Operations;
use xenstore::layout::{self, DeviceAddress, printable};

use crate::api::Error;
use crate::core::Core;
use crate::edge::{ScriptError, ScriptRun};
use crate::ops::wait::{Ended, Waiting};

/// A script and the interface that it is for.
pub(super) struct Script<'a> {
    pub(super) core: &'a Core,
    pub(super) waiting: Waiting<'a>,
    pub(super) address: DeviceAddress,
    /// netback's name for the host's side.
    pub(super) interface: &'a str,
    pub(super) path: PathBuf,
}

impl Script<'_> {
    /// Lets it set up the host's side, and waits until it says that it has.
    pub(super) fn online(&self) -> Result<(), Error> {
        self.core.edges.store()?.commit(&layout::Vif::forget_hotplug(self.address))?;
        self.call("online")?;
        let node = |name: &str| self.address.backend().join(name).map_err(xenstore::Error::from);
        // Xen's scripts write both when they fail; one of somebody else's may write no more than why.
        let nodes = [node("hotplug-status")?, node("hotplug-error")?];
        let deadline = Instant::now() + self.core.patience.hotplug;
        let waited = self.waiting.until(&nodes, deadline, || {
            let status = self.address.status(&mut *self.core.edges.store()?)?;
            match (status.hotplug_status.as_deref(), status.hotplug_error) {
                (_, Some(why)) => Err(self.failed(&printable(&why))),
                (Some(b"error"), None) => Err(self.failed(&"it says so, and not why")),
                (Some(b"connected"), None) => Ok(Some(())),
                _ => Ok(None),
            }
        });
        waited.map_err(|ended| match ended {
            Ended::TimedOut => self.failed(&format!(
                "it has ended and not written \"connected\" to hotplug-status of {} within {} s",
                self.address.backend(),
                self.core.patience.hotplug.as_secs()
            )),
            Ended::Failed(error) => error,
        })
    }

    /// Tells it that the interface is gone, or about to leave its bridge. A failure is only logged: nothing would be gained
    /// by keeping the interface.
    pub(super) fn offline(&self) {
        if let Err(error) = self.call("offline") {
            tracing::warn!(%error, "an interface's hotplug script failed at the end; the interface goes all the same");
        }
    }

    fn call(&self, what: &str) -> Result<(), Error> {
        let (kind, domid, id) = (self.address.kind.backend_name(), self.address.domid, self.address.id);
        let variable = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let environment = [
            variable("script", &self.path.to_string_lossy()),
            variable("XENBUS_TYPE", kind),
            variable("XENBUS_PATH", &format!("backend/{kind}/{domid}/{id}")),
            variable("XENBUS_BASE_PATH", "backend"),
            variable("type_if", "vif"),
            variable("vif", self.interface),
        ];
        let never = crossbeam::channel::never();
        let run = ScriptRun {
            script: &self.path,
            arguments: &[what.to_owned()],
            input: None,
            environment: &environment,
            limit: self.core.patience.hotplug,
            cancelled: self.waiting.task.map_or(&never, |task| task.cancel_event()),
        };
        let ended = self.waiting.slot.without(|| self.core.edges.host().run_script(&run));
        match ended {
            Ok(end) if end.code == 0 => Ok(()),
            Ok(end) => {
                let why = self.address.status(&mut *self.core.edges.store()?)?.hotplug_error;
                let why =
                    why.map_or_else(|| "without a word in hotplug-error".to_owned(), |text| printable(&text));
                Err(self.failed(&format!("`{what}` ended with {}: {why}", end.code)))
            }
            Err(ScriptError::Cancelled) => {
                self.waiting.task.map_or(Ok(()), crate::ops::task::TaskHandle::check_cancelled)?;
                Err(self.failed(&"it was cancelled"))
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, why: &dyn std::fmt::Display) -> Error {
        Error::internal(format!("{}: hotplug script {}: {why}", self.address, self.path.display()))
    }
}

/// The script that set up the host's side of an interface; none when we did.
pub(super) fn script_of(core: &Core, address: DeviceAddress) -> Result<Option<PathBuf>, Error> {
    let value = core.edges.store()?.read(&layout::Vif::script_node(address))?;
    Ok(value.map(|path| Path::new(&*String::from_utf8_lossy(&path)).to_owned()))
}
