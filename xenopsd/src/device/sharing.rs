//! Which disks are in use, so that no two guests write to one.
//!
//! ```text
//!   plug ──► claim(address, disk, writable) ──► refused: somebody has it, and one of the two writes
//!   unplug, end of the domain ──► release(address)
//!   start of the daemon ──► what running domains have is found in the store and claimed for them
//! ```
//!
//! A writable disk has one user; a read-only one as many as like. A disk is told by what the kernel says it is, whatever
//! its paths are called. Other toolstacks' domains are looked at when a disk is claimed; theirs look at ours likewise
//! (`/etc/xen/scripts/block`).

use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use xenstore::layout::{DeviceAddress, DeviceKind};
use xenstore::{Client, Operations, Path};

use super::store_domid;
use crate::api::Error;
use crate::core::Core;
use crate::edge::{DiskId, DomId};

/// The code of the contract's `Storage_backend_error` for a disk that somebody else has.
const IN_USE: &str = "DISK_IN_USE";

/// Where dom0's disks are announced.
const BACKENDS: &str = "/local/domain/0/backend/vbd";

/// A disk in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Use {
    disk: DiskId,
    writable: bool,
}

impl Use {
    fn excludes(self, other: Self) -> bool {
        self.disk == other.disk && (self.writable || other.writable)
    }
}

/// Disks that domains of this daemon have.
#[derive(Debug, Default)]
pub struct DisksInUse {
    table: Mutex<HashMap<DeviceAddress, Use>>,
}

impl DisksInUse {
    /// Notes that a device is not there any more.
    pub fn release(&self, address: DeviceAddress) {
        self.lock().remove(&address);
    }

    /// Notes that a domain is not there any more.
    pub fn release_domain(&self, domid: DomId) {
        self.lock().retain(|address, _| address.domid != store_domid(domid));
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn conflict(&self, wanted: Use, except: Option<DeviceAddress>) -> Option<DeviceAddress> {
        let table = self.lock();
        let other = |(address, used): (&DeviceAddress, &Use)| {
            (Some(*address) != except && used.excludes(wanted)).then_some(*address)
        };
        table.iter().find_map(other)
    }

    /// Both at once, so that of two that want the same disk one is refused.
    fn claim(&self, address: DeviceAddress, wanted: Use) -> Result<(), DeviceAddress> {
        let mut table = self.lock();
        let other = table.iter().find(|(other, used)| **other != address && used.excludes(wanted));
        if let Some((other, _)) = other {
            return Err(*other);
        }
        table.insert(address, wanted);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DeviceAddress, Use>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notes that a device has a disk.
///
/// # Errors
/// `Storage_backend_error("DISK_IN_USE", …)`, with who has it; when xenstored does not answer.
pub fn claim(core: &Core, address: DeviceAddress, disk: DiskId, writable: bool) -> Result<(), Error> {
    let wanted = Use { disk, writable };
    others_have(core, wanted)?;
    core.disks.claim(address, wanted).map_err(|other| in_use(other, writable))
}

/// Checks that a disk could be claimed.
///
/// # Errors
/// As [`claim`].
pub fn check(core: &Core, disk: DiskId, writable: bool) -> Result<(), Error> {
    let wanted = Use { disk, writable };
    others_have(core, wanted)?;
    core.disks.conflict(wanted, None).map_or(Ok(()), |other| Err(in_use(other, writable)))
}

fn in_use(other: DeviceAddress, writable: bool) -> Error {
    let why =
        if writable { "only one may have a disk that it can write" } else { "and can be written there" };
    let text = format!("the disk is in use as {other}, {why}; unplug it there first");
    Error::StorageBackendError { code: IN_USE.to_owned(), params: vec![text] }
}

/// Domains of other toolstacks come and go without our knowledge.
fn others_have(core: &Core, wanted: Use) -> Result<(), Error> {
    let mut store = core.edges.store()?;
    let ours: BTreeSet<String> = core.runtimes.domids().iter().map(DomId::to_string).collect();
    let root = Path::new(BACKENDS).map_err(xenstore::Error::from)?;
    let domains = store.directory(&root)?.unwrap_or_default();
    let theirs: Vec<String> = domains.into_iter().filter(|name| !ours.contains(name)).collect();
    let used = disks_of(core, &mut store, &theirs)?;
    let conflict = used.into_iter().find(|(_, used)| used.excludes(wanted));
    conflict.map_or(Ok(()), |(address, _)| Err(in_use(address, wanted.writable)))
}

/// Claims what a running domain of an earlier daemon has.
///
/// # Errors
/// When xenstored does not answer.
pub fn adopt(core: &Core, domids: &[DomId]) -> Result<(), Error> {
    let names: Vec<String> = domids.iter().map(DomId::to_string).collect();
    let used = disks_of(core, &mut *core.edges.store()?, &names)?;
    let mut table = core.disks.lock();
    // Two that have the same disk were given it by somebody else; nothing is taken from them.
    table.extend(used);
    Ok(())
}

/// The disks that dom0's blkback serves to these domains.
fn disks_of(core: &Core, store: &mut Client, domids: &[String]) -> Result<Vec<(DeviceAddress, Use)>, Error> {
    let root = Path::new(BACKENDS).map_err(xenstore::Error::from)?;
    let mut devices = Vec::new();
    for domid in domids {
        let home = root.join(domid).map_err(xenstore::Error::from)?;
        for id in store.directory(&home)?.unwrap_or_default() {
            let (Ok(domid), Ok(id)) = (domid.parse(), id.parse()) else { continue };
            let (domid, backend_domid) = (xenstore::DomId(domid), xenstore::DomId::DOM0);
            devices.push(DeviceAddress { kind: DeviceKind::Vbd, domid, id, backend_domid });
        }
    }
    let nodes = devices.iter().flat_map(|d| ["physical-device", "mode"].map(|name| d.backend().join(name)));
    let nodes: Result<Vec<_>, _> = nodes.collect();
    let values = store.read_all(&nodes.map_err(xenstore::Error::from)?)?;
    let mut found = Vec::new();
    for (address, values) in devices.into_iter().zip(values.chunks(2)) {
        let Some((major, minor)) = values[0].as_deref().and_then(device_number) else { continue };
        // `w!` is how other toolstacks say that an administrator wants it shared.
        let writable = values[1].as_deref().is_some_and(|mode| mode.starts_with(b"w"));
        match core.edges.host().disk_id(major, minor) {
            Ok(disk) => found.push((address, Use { disk, writable })),
            Err(error) => tracing::warn!(%address, %error, "it cannot be told which disk this is"),
        }
    }
    Ok(found)
}

/// `major:minor` in hexadecimal.
pub(super) fn device_number(text: &[u8]) -> Option<(u64, u64)> {
    let (major, minor) = std::str::from_utf8(text).ok()?.split_once(':')?;
    Some((u64::from_str_radix(major, 16).ok()?, u64::from_str_radix(minor, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(domid: u16, id: u32) -> DeviceAddress {
        let (domid, backend_domid) = (xenstore::DomId(domid), xenstore::DomId::DOM0);
        DeviceAddress { kind: DeviceKind::Vbd, domid, id, backend_domid }
    }

    const DISK: DiskId = DiskId::File { device: 1, inode: 2 };

    #[test]
    fn a_disk_has_one_writer_or_many_readers() {
        let table = DisksInUse::default();
        let (reader, writer) = (Use { disk: DISK, writable: false }, Use { disk: DISK, writable: true });
        let (one, two, three) = (address(1, 0), address(2, 0), address(3, 0));
        assert_eq!(table.claim(one, reader), Ok(()));
        assert_eq!(table.claim(two, reader), Ok(()));
        assert!(table.claim(three, writer).is_err());
        table.release(one);
        assert_eq!(table.claim(three, writer), Err(two));
        table.release_domain(DomId::new(2).unwrap());
        assert_eq!(table.claim(three, writer), Ok(()));
        // Its own disk again, as after a failure in between.
        assert_eq!(table.claim(three, writer), Ok(()));
        assert_eq!(table.claim(one, reader), Err(three));
        assert_eq!(
            table.claim(one, Use { disk: DiskId::Block { major: 7, minor: 1 }, writable: true }),
            Ok(())
        );
    }

    #[test]
    fn device_numbers_are_hexadecimal() {
        assert_eq!(device_number(b"fd:1a"), Some((0xfd, 0x1a)));
        for bad in [&b""[..], b"7", b":", b"7:x", b"\xff:1"] {
            assert_eq!(device_number(bad), None, "{bad:?}");
        }
    }
}
