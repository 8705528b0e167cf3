//! `DEBUG.*`: for tests of clients, and for support.

use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::api::Error;
use crate::core::{Core, Operation};

/// Does what a test asks:
///
/// | command | arguments | effect |
/// |---|---|---|
/// | `reboot` | VM | as if its guest had rebooted |
/// | `halt` | VM | as if its guest had shut down |
/// | `set-cancel-trigger` | words, n | tasks with that `debug_info` are cancelled at their nth step |
///
/// # Errors
/// `Unimplemented` with the command for any other, or with other arguments.
pub(super) fn trigger(core: &Arc<Core>, command: &str, arguments: &[String]) -> Result<(), Error> {
    let unknown = || Error::Unimplemented(command.to_owned());
    match (command, arguments) {
        ("reboot", [vm]) => submit(core, vm, Operation::Reboot(None)),
        ("halt", [vm]) => submit(core, vm, Operation::Shutdown(None)),
        ("set-cancel-trigger", [dbg, step]) => {
            core.tasks.set_cancel_trigger(dbg, step.parse().map_err(|_| unknown())?)
        }
        _ => Err(unknown()),
    }
}

fn submit(core: &Arc<Core>, vm: &str, operation: Operation) -> Result<(), Error> {
    core.records.need_vm(vm)?;
    core.submit_then(vm, "DEBUG.trigger", operation, |_| ());
    Ok(())
}

/// Ends the daemon as SIGTERM does: guests keep running.
///
/// # Errors
/// When the kernel refuses the signal.
pub(super) fn shutdown() -> Result<(), Error> {
    kill(Pid::this(), Signal::SIGTERM)
        .map_err(|errno| Error::internal(format!("SIGTERM to this process: {errno}")))
}
