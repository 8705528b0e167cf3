//! Loop devices of VMs' disks, as the journal has them.
//!
//! ```text
//!   plug ──► written down ──► attached ──► … ──► its backend is gone ──► given back ──► struck off
//!                 └── daemon killed: the next one gives back what belongs to no device that is there
//! ```
//!
//! The kernel frees one with its last user: the daemon while it is attached, then blkback. Giving it back makes sure of
//! that; while blkback still has it open, it goes with blkback.

use std::io;

use xenstore::Operations;
use xenstore::layout::{DeviceAddress, DeviceKind};

use super::address;
use crate::api::Error;
use crate::core::Core;
use crate::edge::{AttachedDisk, DiskWanted, DomId, FileId};
use crate::state::journal::{EntryId, LoopId, Resource};

/// Attaches the disk that a guest is to know by the number `vdev`.
///
/// # Errors
/// What the host says of the disk, or the journal's when it cannot be written down; nothing is attached then.
pub fn attach(core: &Core, vm: &str, vdev: u32, wanted: &DiskWanted<'_>) -> Result<AttachedDisk, Error> {
    let journal = &core.journal;
    let mut entry = None;
    let mut reserve = |number: u32, file: FileId| {
        let resource = Resource::Loop(LoopId::new(number, file, vdev));
        let written = match entry {
            Some(id) => journal.amend(vm, id, resource),
            None => journal.take(vm, resource).map(|id| entry = Some(id)),
        };
        written.map_err(|error| io::Error::other(error.to_string()))
    };
    let attached = core.edges.host().attach_disk(wanted, &mut reserve);
    if attached.is_err()
        && let Err(error) = give_back(core, vm, |id, _| Some(id) == entry)
    {
        tracing::error!(vm, vdev, %error, "a loop device that was not attached stays in the journal");
    }
    Ok(attached?)
}

/// Gives back what a device had that is gone.
pub(super) fn detach(core: &Core, vm: &str, device: DeviceAddress) -> Result<(), Error> {
    let its = |_, vdev: i64| device.kind == DeviceKind::Vbd && vdev == i64::from(device.id);
    give_back(core, vm, its)
}

/// Gives back what belongs to no device of a running domain: an earlier daemon was killed before it could.
///
/// # Errors
/// The first refusal; what is refused stays in the journal. When xenstored does not answer.
pub fn give_back_unused(core: &Core, vm: &str, domid: DomId) -> Result<(), Error> {
    for (_, taken) in of(core, vm) {
        let Ok(vdev) = u32::try_from(taken.vdev) else { continue };
        let device = address(DeviceKind::Vbd, domid, vdev);
        let used = core.edges.store()?.exists(&device.private())?;
        if !used {
            detach(core, vm, device)?;
        }
    }
    Ok(())
}

fn of(core: &Core, vm: &str) -> Vec<(EntryId, LoopId)> {
    let of_loop = |(id, resource)| match resource {
        Resource::Loop(device) => Some((id, device)),
        _ => None,
    };
    core.journal.of(vm).into_iter().filter_map(of_loop).collect()
}

fn give_back(core: &Core, vm: &str, chosen: impl Fn(EntryId, i64) -> bool) -> Result<(), Error> {
    for (id, device) in of(core, vm).into_iter().rev().filter(|(id, device)| chosen(*id, device.vdev)) {
        core.edges.host().release(&Resource::Loop(device))?;
        core.journal.strike(vm, id)?;
    }
    Ok(())
}
