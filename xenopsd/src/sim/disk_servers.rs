//! Disk servers: processes that show an image as a network block device.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Shared;
use super::host::unusable;
use super::processes::Processes;
use crate::edge::linux::nbd;
use crate::edge::{
    Access, AttachedDisk, DISK_SERVER, DiskId, FileId, HostError, NoteServer, ServerWanted, disk_of,
};
use crate::state::journal::DiskServerId;

/// The identifiers of the devices that are connected, by number.
#[derive(Debug, Default)]
pub(super) struct Devices(Mutex<BTreeMap<u32, String>>);

impl Devices {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Their numbers.
    pub(super) fn all(&self) -> Vec<u32> {
        self.lock().keys().copied().collect()
    }

    /// The first number that no device has.
    fn free(&self) -> u32 {
        let devices = self.lock();
        (0..u32::MAX).find(|number| !devices.contains_key(number)).unwrap_or(u32::MAX)
    }

    /// Whether it was free still: another may have taken it since it was found.
    fn connect(&self, number: u32, identifier: String) -> bool {
        match self.lock().entry(number) {
            Entry::Vacant(place) => {
                place.insert(identifier);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// The disk behind one of ours.
    pub(super) fn disk(&self, number: u32) -> Option<DiskId> {
        self.lock().get(&number).and_then(|identifier| disk_of(identifier))
    }
}

/// As the real one takes its steps, with a failure that can be had before each.
pub(super) fn start(
    shared: &Shared,
    image: FileId,
    wanted: &ServerWanted<'_>,
    note: &mut NoteServer<'_>,
) -> Result<(), HostError> {
    let mut server = DiskServerId {
        vdev: wanted.vdev.into(),
        disk: DiskId::from(image).to_string(),
        writable: wanted.access == Access::ReadWrite,
        format: wanted.format.to_string(),
        ..DiskServerId::default()
    };
    note(&server)?;
    shared.faults.check("host.serve_disk.spawn")?;
    let (process, go) = Processes::start(&shared.processes, DISK_SERVER, Path::new("/"), false);
    server.process = Some(process);
    note(&server)?;
    go();
    shared.faults.check("host.serve_disk.export")?;
    let devices = &shared.network_disks;
    let mut number = devices.free();
    server.number = Some(number.into());
    note(&server)?;
    shared.faults.check("host.serve_disk.connect")?;
    while !devices.connect(number, server.identifier().unwrap_or_default()) {
        number = devices.free();
        server.number = Some(number.into());
        note(&server)?;
    }
    Ok(())
}

/// Its device, if it runs.
pub(super) fn find(shared: &Shared, server: &DiskServerId) -> Result<Option<AttachedDisk>, HostError> {
    let runs = server.process.as_ref().is_some_and(|process| shared.processes.is_there(process));
    let Some(number) = connected(shared, server).filter(|_| runs) else { return Ok(None) };
    let keep = File::open("/dev/null").map_err(|e| unusable("disk", &format!("/dev/null: {e}")))?;
    Ok(Some(AttachedDisk {
        id: server.disk.parse().map_err(|why: String| unusable("disk", &why))?,
        device: (nbd::MAJOR, number.into()),
        node: PathBuf::from(format!("/dev/nbd{number}")),
        keep: Some(keep.into()),
    }))
}

/// Ends it; whether there was anything of it.
pub(super) fn release(shared: &Shared, server: &DiskServerId) -> bool {
    let device = connected(shared, server).and_then(|number| shared.network_disks.lock().remove(&number));
    let process = server.process.as_ref().is_some_and(|process| shared.processes.kill(process));
    device.is_some() || process
}

fn connected(shared: &Shared, server: &DiskServerId) -> Option<u32> {
    let (number, identifier) = (u32::try_from(server.number?).ok()?, server.identifier()?);
    (shared.network_disks.lock().get(&number) == Some(&identifier)).then_some(number)
}
