//! Disks of a storage layer in use, as the journal has them.
//!
//! ```text
//!   written down ──► attach ──► written down where it is ──► activate ──► … ──► deactivate ──► detach ──► struck off
//!         └── anything fails, or the daemon is killed: deactivate and detach, here or by the next daemon
//! ```
//!
//! A disk is attached once for everybody who uses it: the backend, the device model, the search for a kernel. It goes with
//! its device, or with its domain. The program is told to give back whatever it may have begun to give: it must take being
//! asked for what it does not have as done.

use std::convert::Infallible;
use std::path::PathBuf;

use crossbeam::channel::{Receiver, never};
use xenstore::Operations;
use xenstore::layout::DeviceKind;

use super::address;
use crate::api::{Dict, Error};
use crate::core::Core;
use crate::edge::{Attached, Datapath, DomId, StorageCall, StorageError, Vdi, Verb};
use crate::ops::wait::Waiting;
use crate::state::journal::{EntryId, Resource, StorageId};

/// What a disk is attached for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A disk of the VM, by the number its guest knows it by.
    Vbd(u32),
    /// The image the VM is suspended to.
    Image,
}

/// An image's number in the journal; no disk has it.
const IMAGE: i64 = -1;

impl Purpose {
    fn number(self) -> i64 {
        match self {
            Self::Vbd(vdev) => vdev.into(),
            Self::Image => IMAGE,
        }
    }
}

/// Checks, taking nothing, that a disk can be asked for.
///
/// # Errors
/// `Storage_backend_error` that names what is missing.
pub fn check(core: &Core, disk: &str) -> Result<(), Error> {
    parse(disk)?;
    Ok(core.edges.host().check_storage()?)
}

fn parse(disk: &str) -> Result<Vdi, Error> {
    disk.parse().map_err(|why: String| StorageError::unusable(why).into())
}

/// Makes a disk ready for use. One that is already is left as it is.
///
/// # Errors
/// `Storage_backend_error` with what the program says; `Cancelled`. Nothing is attached then.
pub fn attach(
    core: &Core,
    vm: &str,
    (purpose, disk): (Purpose, &str),
    writable: bool,
    waiting: Waiting<'_>,
) -> Result<(), Error> {
    let vdi = parse(disk)?;
    if let Some((id, taken)) = of(core, vm, purpose) {
        if taken.is_ready() && (&*taken.sr, &*taken.vdi, taken.writable) == (&*vdi.sr, &*vdi.vdi, writable) {
            return Ok(());
        }
        waiting.slot.without(|| give_back_entry(core, vm, id, &taken))?;
    }
    let mut taken = StorageId {
        sr: vdi.sr,
        vdi: vdi.vdi,
        vdev: purpose.number(),
        writable,
        path: String::new(),
        extra: Dict::new(),
    };
    let id = core.journal.take(vm, Resource::Storage(taken.clone()))?;
    let outcome = waiting.slot.without(|| make_ready(core, vm, id, &mut taken, waiting));
    if outcome.is_err()
        && let Err(error) = waiting.slot.without(|| give_back_entry(core, vm, id, &taken))
    {
        tracing::error!(vm, disk, %error, "a disk that could not be attached stays in the journal");
    }
    outcome
}

fn make_ready(
    core: &Core,
    vm: &str,
    id: EntryId,
    taken: &mut StorageId,
    waiting: Waiting<'_>,
) -> Result<(), Error> {
    let never = never();
    let cancelled = waiting.task.map_or(&never, |task| task.cancel_event());
    let refused = |error: StorageError| match (error, waiting.task) {
        (StorageError::Cancelled, Some(task)) => task.cancelled_error(),
        (error, _) => error.into(),
    };
    let Attached { path, extra } = call(core, vm, Verb::Attach, taken, cancelled)
        .and_then(|found| found.ok_or_else(|| StorageError::unusable("attach was not answered")))
        .map_err(refused)?;
    taken.path = path
        .into_os_string()
        .into_string()
        .map_err(|path| Error::from(StorageError::unusable(format!("{} is not UTF-8", path.display()))))?;
    taken.extra = Dict(extra);
    core.journal.amend(vm, id, Resource::Storage(taken.clone()))?;
    call(core, vm, Verb::Activate, taken, cancelled).map(drop).map_err(refused)
}

fn call(
    core: &Core,
    vm: &str,
    verb: Verb,
    taken: &StorageId,
    cancelled: &Receiver<Infallible>,
) -> Result<Option<Attached>, StorageError> {
    let name = match taken.vdev {
        IMAGE => format!("image/{vm}"),
        vdev => format!("vbd/{vm}/{vdev}"),
    };
    let disk = Vdi { sr: taken.sr.clone(), vdi: taken.vdi.clone() };
    let datapath = Datapath { name, vm: vm.to_owned(), disk, writable: taken.writable };
    let limit = core.patience.storage;
    core.edges.host().call_storage(&StorageCall { verb, datapath: &datapath, limit, cancelled })
}

/// Where an attached disk is, and what its backend's directory is to have.
///
/// # Errors
/// When it is not attached.
pub fn attached(core: &Core, vm: &str, purpose: Purpose) -> Result<(PathBuf, Dict<String>), Error> {
    let found = of(core, vm, purpose).map(|(_, taken)| taken).filter(StorageId::is_ready);
    let missing = || Error::internal(format!("VM {vm}: the storage of {purpose:?} is not attached"));
    found.map(|taken| (taken.path.into(), taken.extra)).ok_or_else(missing)
}

/// Gives one use back; there may be none.
///
/// # Errors
/// `Storage_backend_error`; it stays in the journal.
pub fn detach(core: &Core, vm: &str, purpose: Purpose) -> Result<(), Error> {
    of(core, vm, purpose).map_or(Ok(()), |(id, taken)| give_back_entry(core, vm, id, &taken))
}

/// Gives back what belongs to no device of a running domain and to no suspend: an earlier daemon was killed before it could.
///
/// # Errors
/// The first refusal; what is refused stays in the journal. When xenstored does not answer.
pub fn give_back_unused(core: &Core, vm: &str, domid: DomId) -> Result<(), Error> {
    for (id, taken) in all(core, vm) {
        let used = match u32::try_from(taken.vdev) {
            Ok(vdev) => core.edges.store()?.exists(&address(DeviceKind::Vbd, domid, vdev).private())?,
            Err(_) => core.suspending(domid)?.is_some(),
        };
        if !used {
            give_back_entry(core, vm, id, &taken)?;
        }
    }
    Ok(())
}

/// Asks the program to let go of what the journal names. It need not have it.
///
/// # Errors
/// `Storage_backend_error`.
pub fn release(core: &Core, vm: &str, taken: &StorageId) -> Result<(), Error> {
    let never = never();
    // What is not deactivated may be detached all the same, and the storage layer is the one to know.
    let deactivated = call(core, vm, Verb::Deactivate, taken, &never);
    let detached = call(core, vm, Verb::Detach, taken, &never);
    deactivated.and(detached).map(drop).map_err(Error::from)
}

fn give_back_entry(core: &Core, vm: &str, id: EntryId, taken: &StorageId) -> Result<(), Error> {
    release(core, vm, taken)?;
    core.journal.strike(vm, id)
}

fn of(core: &Core, vm: &str, purpose: Purpose) -> Option<(EntryId, StorageId)> {
    all(core, vm).into_iter().find(|(_, taken)| taken.vdev == purpose.number())
}

fn all(core: &Core, vm: &str) -> Vec<(EntryId, StorageId)> {
    let of_storage = |(id, resource)| match resource {
        Resource::Storage(taken) => Some((id, taken)),
        _ => None,
    };
    core.journal.of(vm).into_iter().filter_map(of_storage).collect()
}
