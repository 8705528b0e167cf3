//! Running cargo, and programs like it, with their output shown as it comes.

use crate::Failure;
use std::{env, process::Command};
use xen_host::workspace;

/// A cargo to run in the workspace: the one that runs us.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args(arguments);
    command
}

/// Runs a command to its successful end.
pub(crate) fn check(command: &mut Command) -> Result<(), Failure> {
    let status = command.status().map_err(|e| Failure::start(command, e))?;
    if status.success() {
        return Ok(());
    }
    let words: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let program = command.get_program().to_string_lossy();
    let program = program.rsplit('/').next().unwrap_or_default();
    Err(Failure::Step { command: format!("{program} {}", words.join(" ")), status: status.to_string() })
}

/// Builds the programs that run in dom0.
pub(crate) fn build_programs() -> Result<(), Failure> {
    check(&mut cargo(&[
        "build",
        "--quiet",
        "--release",
        "--package",
        "xenopsd",
        "--package",
        "guest-installer",
        "--package",
        "vncterm",
        "--package",
        "hostile-dm",
        "--bins",
    ]))
}

/// Builds what runs in dom0 for a measurement only.
pub(crate) fn build_clock() -> Result<(), Failure> {
    check(&mut cargo(&["build", "--quiet", "--release", "--package", "xenopsd", "--example", "plug_clock"]))
}
