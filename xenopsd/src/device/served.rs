//! Disks that a process of ours serves, as the journal has them.
//!
//! ```text
//!   written down ──► process written down ──► number written down ──► /dev/nbdN ──► … ──► its users are gone ──► ended ──► struck off
//!         └── anything fails, or the daemon is killed: ended, here or by the next daemon
//!   its end, or none there after a restart ──► known, and said by VBD.stat; its disk's users get errors
//! ```
//!
//! A disk has one server for everybody who uses it: the backend, the device model, the search for a kernel. Two would each
//! write their own tables into its image.

use std::sync::Weak;

use xenstore::Operations;
use xenstore::layout::DeviceKind;

use super::{address, vbd};
use crate::api::{Dict, DynamicId, Error, Int, Vbd};
use crate::core::Core;
use crate::edge::{
    Access, AttachedDisk, DomId, Followed, HostError, IMAGE_FORMAT, ImageFormat, ServerWanted, Tell,
};
use crate::state::journal::{DiskServerId, EntryId, ProcessId, Resource};

/// A server that runs, or ran, for a disk of a running VM.
#[derive(Debug)]
pub struct Served {
    /// Its process's number.
    pid: Int,
    /// It has ended, and nobody has asked it to.
    ended: bool,
    /// While it is here, its end is told.
    _followed: Option<Followed>,
}

/// The format that a disk's image is served by, if it is.
///
/// # Errors
/// When there is none of that name.
pub fn format(keys: &Dict<String>) -> Result<Option<ImageFormat>, String> {
    keys.get(IMAGE_FORMAT).map(|name| name.parse()).transpose()
}

/// Starts the server of a disk; there is nothing to do when it runs.
///
/// # Errors
/// What the host says of the image, or the journal's; nothing is left then.
pub fn start(core: &Core, domid: DomId, vbd: &Vbd, wanted: &ServerWanted<'_>) -> Result<(), Error> {
    let vm = &*vbd.id.vm;
    if let Some((id, server)) = of(core, vm, wanted.vdev) {
        let as_wanted =
            server.writable == (wanted.access == Access::ReadWrite) && server.format == wanted.format.name();
        if as_wanted && core.edges.host().open_served(&server)?.is_some() {
            return follow(core, vbd, domid, &server);
        }
        give_back(core, vm, id, server)?;
    }
    let mut entry = None;
    let mut server = DiskServerId::default();
    let mut note = |now: &DiskServerId| {
        server.clone_from(now);
        let resource = Resource::DiskServer(now.clone());
        let written = match entry {
            Some(id) => core.journal.amend(vm, id, resource),
            None => core.journal.take(vm, resource).map(|id| entry = Some(id)),
        };
        written.map_err(|error| HostError::not_noted(&error))
    };
    let started = core.edges.host().serve_disk(wanted, &mut note).map_err(Error::from);
    let followed = started.and_then(|()| follow(core, vbd, domid, &server));
    if followed.is_err()
        && let Some(id) = entry
        && let Err(error) = give_back(core, vm, id, server)
    {
        tracing::error!(vbd = %vbd.id, %error, "a disk server that was not started stays in the journal");
    }
    followed
}

/// The block device of a disk that is served.
///
/// # Errors
/// When it is not.
pub fn open(core: &Core, vbd: &Vbd) -> Result<AttachedDisk, Error> {
    let found = match of(core, &vbd.id.vm, vbd::number(vbd)?) {
        Some((_, server)) => core.edges.host().open_served(&server)?,
        None => None,
    };
    found.ok_or_else(|| Error::StorageBackendError {
        code: "DISK_NOT_SERVED".to_owned(),
        params: vec![format!("the server of disk {} has ended, or was not started", vbd.id)],
    })
}

/// Ends the server of a disk that nobody uses any more; there may be none.
///
/// # Errors
/// The host's; it stays in the journal.
pub fn stop(core: &Core, vm: &str, vdev: u32) -> Result<(), Error> {
    of(core, vm, vdev).map_or(Ok(()), |(id, server)| give_back(core, vm, id, server))
}

/// Follows those that an earlier daemon started for a running domain, and ends those that no device of it has.
///
/// # Errors
/// The first refusal; what is refused stays in the journal. When xenstored does not answer.
pub fn adopt(core: &Core, vbds: &[Vbd], vm: &str, domid: DomId) -> Result<(), Error> {
    for (id, server) in all(core, vm) {
        let vdev = u32::try_from(server.vdev).unwrap_or(u32::MAX);
        let used = core.edges.store()?.exists(&address(DeviceKind::Vbd, domid, vdev).private())?;
        match vbds.iter().find(|vbd| vbd::number(vbd) == Ok(vdev)) {
            Some(vbd) if used => follow(core, vbd, domid, &server)?,
            _ => give_back(core, vm, id, server)?,
        }
    }
    Ok(())
}

/// The process that serves a disk, if there is one.
pub fn process(core: &Core, vm: &str, vdev: u32) -> Option<ProcessId> {
    of(core, vm, vdev).and_then(|(_, server)| server.process)
}

/// Whether a disk's server has ended although its disk is in use.
pub fn has_ended(core: &Core, vm: &str, vdev: u32) -> bool {
    core.runtimes.with(vm, |r| r.served.get(&vdev).is_some_and(|served| served.ended))
}

/// Gets told of its end, of which there is no second.
fn follow(core: &Core, vbd: &Vbd, domid: DomId, server: &DiskServerId) -> Result<(), Error> {
    let missing = || Error::internal(format!("VBD {}: its disk server has no process", vbd.id));
    let process = server.process.as_ref().ok_or_else(missing)?;
    let (pid, vdev) = (process.pid, vbd::number(vbd)?);
    let known = |served: &Served| served.pid == process.pid;
    if core.runtimes.with(&vbd.id.vm, |r| r.served.get(&vdev).is_some_and(known)) {
        return Ok(());
    }
    // Held while it is looked at: an end that is told meanwhile finds it here.
    core.runtimes.with(&vbd.id.vm, |r| {
        let followed = core.edges.host().follow_process(process, on_end(core, vbd, vdev, process))?;
        let ended = followed.is_none();
        if ended {
            tracing::error!(vbd = %vbd.id, %domid, pid, "its disk server ended while no daemon ran: the guest gets errors");
        }
        r.served.insert(vdev, Served { pid: process.pid, ended, _followed: followed });
        Ok(())
    })
}

fn on_end(core: &Core, vbd: &Vbd, vdev: u32, process: &ProcessId) -> Tell {
    let (core, id, pid) = (Weak::clone(&core.me), vbd.id.clone(), process.pid);
    Box::new(move || {
        let Some(core) = core.upgrade() else { return };
        let told = core.runtimes.with(&id.vm, |r| {
            let served = r.served.get_mut(&vdev).filter(|served| served.pid == pid);
            served.is_some_and(|served| !std::mem::replace(&mut served.ended, true))
        });
        if told {
            tracing::error!(vbd = %id, pid, "its disk server has ended: the guest gets errors until the disk is plugged anew");
            core.updates.add(DynamicId::Vbd(id));
        }
    })
}

fn give_back(core: &Core, vm: &str, id: EntryId, server: DiskServerId) -> Result<(), Error> {
    // Not followed any more, so that its end is no news.
    let vdev = u32::try_from(server.vdev).ok();
    drop(core.runtimes.with(vm, |r| vdev.and_then(|vdev| r.served.remove(&vdev))));
    core.edges.host().release(&Resource::DiskServer(server))?;
    core.journal.strike(vm, id)
}

fn of(core: &Core, vm: &str, vdev: u32) -> Option<(EntryId, DiskServerId)> {
    all(core, vm).into_iter().find(|(_, server)| server.vdev == i64::from(vdev))
}

fn all(core: &Core, vm: &str) -> Vec<(EntryId, DiskServerId)> {
    let of_server = |(id, resource)| match resource {
        Resource::DiskServer(server) => Some((id, server)),
        _ => None,
    };
    core.journal.of(vm).into_iter().filter_map(of_server).collect()
}
