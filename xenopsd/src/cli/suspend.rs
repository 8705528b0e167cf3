//! `suspend`, `resume`, `checkpoint` and `fast-resume`.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf, absolute};

use crate::api::{Disk, VmCheckpoint, VmFastResume, VmResume, VmSuspend};

use super::Session;
use super::error::CliError;
use super::resolve::Known;
use super::vm::{find, unpause_known};

/// Where images go that are not told where.
const DIRECTORY: &str = "/var/lib/xcp/suspend";

pub(super) fn suspend(
    session: &mut Session<'_, '_>,
    wanted: &str,
    file: Option<&Path>,
) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    if file.is_none() {
        // Guests' memory is nobody's business.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(DIRECTORY);
        made.map_err(|source| CliError::File { file: DIRECTORY.to_owned(), source })?;
    }
    let suspend_vdi = place(&vm, file)?;
    let call = VmSuspend { debug_info: session.dbg(), id: vm.id.clone(), suspend_vdi };
    let task = session.client.call(&call)?;
    session.wait(&format!("suspending {}", vm.name), &task)
}

pub(super) fn resume(
    session: &mut Session<'_, '_>,
    wanted: &str,
    file: Option<&Path>,
    paused: bool,
) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    let suspend_vdi = place(&vm, file)?;
    let call = VmResume { debug_info: session.dbg(), id: vm.id.clone(), suspend_vdi };
    let task = session.client.call(&call)?;
    session.wait(&format!("resuming {}", vm.name), &task)?;
    // First: whatever becomes of the image, the guest is to run.
    let running = if paused { Ok(()) } else { unpause_known(session, &vm) };
    if file.is_some() {
        return running;
    }
    let image = default_path(&vm);
    let removed = fs::remove_file(&image)
        .map_err(|source| CliError::File { file: image.display().to_string(), source });
    running.and(removed)
}

pub(super) fn checkpoint(session: &mut Session<'_, '_>, wanted: &str, file: &Path) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    let suspend_vdi = place(&vm, Some(file))?;
    let call = VmCheckpoint { debug_info: session.dbg(), id: vm.id.clone(), suspend_vdi };
    let task = session.client.call(&call)?;
    session.wait(&format!("writing a checkpoint of {}", vm.name), &task)
}

pub(super) fn fast_resume(session: &mut Session<'_, '_>, wanted: &str) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    let task = session.client.call(&VmFastResume { debug_info: session.dbg(), id: vm.id.clone() })?;
    session.wait(&format!("resuming {}", vm.name), &task)
}

fn default_path(vm: &Known) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{}.suspend", vm.id))
}

/// The daemon has another working directory.
fn place(vm: &Known, file: Option<&Path>) -> Result<Disk, CliError> {
    let path = match file {
        None => default_path(vm),
        Some(file) => {
            absolute(file).map_err(|source| CliError::File { file: file.display().to_string(), source })?
        }
    };
    Ok(Disk::Local(path.display().to_string()))
}
