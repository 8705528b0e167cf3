//! Disks: a file or block device of dom0, shown to the guest by the kernel's blkback.
//!
//! Everything blkback wants is written in one go, the device number included, so that a plug costs one transaction
//! and one wait.

use std::collections::BTreeSet;
use std::path::PathBuf;

use xenstore::Operations;
use xenstore::layout::{self, BlockBackend, BlockDevice, DeviceAddress, DeviceKind, Media, XenbusState};

use super::storage::{self, Purpose};
use super::{Plug, handshake, loops, plugged, qos, served, sharing, store_domid};
use crate::api::{BuilderInfo, DeviceNumber, Dict, Disk, Error, Int, Vbd, VbdMode, VbdState, VbdType};
use crate::core::Core;
use crate::edge::{
    Access, AttachedDisk, BlockSize, DiskWanted, DomId, IMAGE_FORMAT, ImageFormat, ServerWanted,
};
use crate::ops::wait::Waiting;

/// Run by `xl block-detach`, should an administrator use it on our domain.
const SCRIPT: &str = "/etc/xen/scripts/block";

/// The number the guest knows the disk by.
///
/// # Errors
/// When the record has no position.
pub fn number(vbd: &Vbd) -> Result<u32, Error> {
    let position = vbd
        .position
        .as_ref()
        .ok_or_else(|| Error::internal(format!("VBD {} has no device number", vbd.id)))?;
    position.to_xenstore().map_err(|e| Error::internal(format!("VBD {}: {e}", vbd.id)))
}

/// Its address in a domain.
///
/// # Errors
/// As [`number`].
pub fn address(domid: DomId, vbd: &Vbd) -> Result<DeviceAddress, Error> {
    Ok(super::address(DeviceKind::Vbd, domid, number(vbd)?))
}

/// How it may be opened: a CD-ROM is read-only whatever its record says.
fn access(vbd: &Vbd) -> Access {
    if vbd.mode == VbdMode::ReadOnly || vbd.ty == VbdType::Cdrom {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    }
}

/// Key of `extra_backend_keys` with the size of its logical blocks. It is the backend's own node, which the kernel writes.
const BLOCK_SIZE: &str = "sector-size";

/// Those that are for this daemon.
const OWN_KEYS: [&str; 2] = [BLOCK_SIZE, IMAGE_FORMAT];

fn block_size(vbd: &Vbd) -> Result<Option<BlockSize>, Error> {
    match vbd.extra_backend_keys.get(BLOCK_SIZE).map(String::as_str) {
        None => Ok(None),
        Some("512") => Ok(Some(BlockSize::B512)),
        Some("4096") => Ok(Some(BlockSize::B4096)),
        Some(other) => Err(Error::internal(format!(
            "VBD {}: extra_backend_keys {BLOCK_SIZE} must be 512 or 4096, not {other:?}",
            vbd.id
        ))),
    }
}

/// The format of its image, if a disk server is to serve it.
fn image_format(vbd: &Vbd) -> Result<Option<ImageFormat>, Error> {
    served::format(&vbd.extra_backend_keys)
        .map_err(|why| Error::internal(format!("VBD {}: extra_backend_keys {}: {why}", vbd.id, IMAGE_FORMAT)))
}

/// Makes its content a block device of dom0's; none for an empty drive. A file's is another one each time it is asked.
///
/// # Errors
/// As [`check`].
pub fn attach(core: &Core, vbd: &Vbd) -> Result<Option<AttachedDisk>, Error> {
    let Some((path, _)) = located(core, vbd)? else { return Ok(None) };
    if image_format(vbd)?.is_some() {
        return served::open(core, vbd).map(Some);
    }
    let wanted = DiskWanted { path: &path, access: access(vbd), block_size: block_size(vbd)? };
    loops::attach(core, &vbd.id.vm, number(vbd)?, &wanted).map(Some)
}

/// Where its content can be read in dom0.
///
/// # Errors
/// When it is a storage layer's and not attached, or is to be served and is not.
pub fn path(core: &Core, vbd: &Vbd) -> Result<Option<PathBuf>, Error> {
    let Some((path, _)) = located(core, vbd)? else { return Ok(None) };
    let served = image_format(vbd)?.map(|_| served::open(core, vbd)).transpose()?;
    Ok(Some(served.map_or(path, |served| served.node)))
}

/// Where its image is, and what the storage layer has for its backend's directory.
fn located(core: &Core, vbd: &Vbd) -> Result<Option<(PathBuf, Dict<String>)>, Error> {
    match &vbd.backend {
        None => Ok(None),
        Some(Disk::Local(path)) => Ok(Some((path.into(), Dict::new()))),
        Some(Disk::Vdi(_)) => storage::attached(core, &vbd.id.vm, Purpose::Vbd(number(vbd)?)).map(Some),
    }
}

/// Makes a disk of a storage layer reachable; there is nothing to do for another.
///
/// # Errors
/// As [`storage::attach`].
pub fn attach_storage(core: &Core, vbd: &Vbd, waiting: Waiting<'_>) -> Result<(), Error> {
    let Some(Disk::Vdi(disk)) = &vbd.backend else { return Ok(()) };
    let wanted = (Purpose::Vbd(number(vbd)?), &**disk);
    storage::attach(core, &vbd.id.vm, wanted, access(vbd) == Access::ReadWrite, waiting)
}

/// Starts the server of a disk that is to have one.
///
/// # Errors
/// As [`served::start`].
pub fn serve(core: &Core, domid: DomId, vbd: &Vbd) -> Result<(), Error> {
    let (Some(format), Some((path, _))) = (image_format(vbd)?, located(core, vbd)?) else { return Ok(()) };
    let wanted = ServerWanted {
        domid,
        vm: &vbd.id.vm,
        vdev: number(vbd)?,
        path: &path,
        access: access(vbd),
        format,
        block_size: block_size(vbd)?.unwrap_or_default(),
    };
    served::start(core, domid, vbd, &wanted)
}

/// Finds what would make a plug fail, taking nothing.
///
/// # Errors
/// `Does_not_exist("disk", …)`, `Storage_backend_error` for something that is no usable disk or in use elsewhere, or for a
/// disk of a storage layer that there is none of.
pub fn check(core: &Core, vbd: &Vbd) -> Result<(), Error> {
    number(vbd)?;
    block_size(vbd)?;
    image_format(vbd)?;
    qos::priority(vbd)?;
    match &vbd.backend {
        None => Ok(()),
        Some(Disk::Local(path)) => {
            let access = access(vbd);
            let host = core.edges.host();
            let disk = match image_format(vbd)? {
                Some(format) => host.check_image(path.as_ref(), access, format)?,
                None => host.check_disk(path.as_ref(), access)?,
            };
            sharing::check(core, disk, access == Access::ReadWrite)
        }
        Some(Disk::Vdi(disk)) => storage::check(core, disk),
    }
}

/// Attaches the disk to dom0, offers it to the guest and waits for its backend.
///
/// # Errors
/// As [`check`], and when the backend refuses. What was attached is given back with the domain.
pub fn plug(plug: &Plug<'_>, vbd: &Vbd) -> Result<(), Error> {
    let Some((path, extra)) = located(plug.core, vbd)? else {
        tracing::info!(vbd = %vbd.id, "an empty drive has no backend to offer to a PV guest");
        return Ok(());
    };
    let access = access(vbd);
    let address = address(plug.domid, vbd)?;
    let Some(attached) = attach(plug.core, vbd)? else { return Ok(()) };
    sharing::claim(plug.core, address, attached.id, access == Access::ReadWrite)?;
    let (major, minor) = attached.device;
    let number =
        |n: u64| u32::try_from(n).map_err(|_| Error::internal(format!("device number {n} is too large")));
    let own_keys = vbd.extra_backend_keys.iter().filter(|(key, _)| !OWN_KEYS.contains(key));
    let layout = layout::Vbd {
        domid: store_domid(plug.domid),
        backend_domid: xenstore::DomId::DOM0,
        vdev: self::number(vbd)?,
        name: vbd.id.device.clone(),
        backend: BlockBackend::Phy { path: path.as_os_str().as_encoded_bytes().to_vec() },
        media: match vbd.ty {
            VbdType::Disk => Media::Disk,
            VbdType::Cdrom => Media::Cdrom,
            VbdType::Floppy => Media::Floppy,
        },
        writable: access == Access::ReadWrite,
        removable: vbd.unpluggable && vbd.ty != VbdType::Disk,
        discard: true,
        trusted: true,
        script: Some(SCRIPT.to_owned()),
        device: Some(BlockDevice { major: number(major)?, minor: number(minor)? }),
        extra_backend: layout::pairs(extra.iter().chain(own_keys).map(|(k, v)| (k, v.as_bytes())))
            .map_err(|e| Error::internal(format!("VBD {}: extra_backend_keys: {e}", vbd.id)))?,
        extra_private: layout::pairs(vbd.extra_private_keys.iter().map(|(k, v)| (k, v.as_bytes())))
            .map_err(|e| Error::internal(format!("VBD {}: extra_private_keys: {e}", vbd.id)))?,
    };
    plug.core.edges.store()?.commit(&layout.create())?;
    if let Some(keep) = attached.keep {
        plug.core.runtimes.with(plug.vm, |r| r.kept.push((address, keep)));
    }
    handshake::backend_ready(plug, address)?;
    qos::follow(plug.core, plug.domid, vbd)
}

/// The place that a disk has whose record says none: the one it has already, else the first that no disk of the VM has. An
/// HVM guest's first four are emulated.
///
/// # Errors
/// When the VM's records cannot be read.
pub fn chosen_position(core: &Core, vbd: &Vbd) -> Result<Option<DeviceNumber>, Error> {
    // That there is no such VM is said by whoever stores the record.
    if vbd.position.is_some() || !core.records.has_vm(&vbd.id.vm) {
        return Ok(vbd.position);
    }
    let all: Vec<Vbd> = core.records.devices(&vbd.id.vm)?;
    let (own, others): (Vec<_>, Vec<_>) = all.iter().partition(|other| other.id == vbd.id);
    if let Some(position) = own.first().and_then(|own| own.position) {
        return Ok(Some(position));
    }
    let taken: BTreeSet<_> = others.iter().filter_map(|other| Some(other.position?.disk)).collect();
    // One more than there are taken has a free one among them.
    let free =
        (0..=taken.len()).filter_map(|disk| Int::try_from(disk).ok()).find(|disk| !taken.contains(disk));
    let free = free.unwrap_or(Int::MAX);
    let hvm = matches!(core.records.vm(&vbd.id.vm)?.ty, BuilderInfo::Hvm(_));
    DeviceNumber::from_index(free, hvm)
        .map(Some)
        .map_err(|error| Error::internal(format!("VBD {}: {error}", vbd.id)))
}

/// Looks again how large the disk of a plugged device is, and tells the guest if it has connected to it.
///
/// # Errors
/// `Device_not_connected`; `Storage_backend_error` for an image, whose server has its size from when it was started and
/// nobody can tell it another; what the host says of the disk; when xenstored does not answer.
pub fn refresh(core: &Core, domid: DomId, vbd: &Vbd) -> Result<(), Error> {
    let address = address(domid, vbd)?;
    if let Some(format) = image_format(vbd)? {
        return Err(Error::StorageBackendError {
            code: "DISK_SIZE_FIXED".to_owned(),
            params: vec![format!(
                "disk {} is served from a {format} image, whose size is fixed while it is plugged: unplug it, resize the image and plug it again",
                vbd.id
            )],
        });
    }
    let mut store = core.edges.store()?;
    let node = address.backend().join("physical-device").map_err(xenstore::Error::from)?;
    let device = store.read(&node)?.ok_or(Error::DeviceNotConnected)?;
    let device = sharing::device_number(&device);
    let (major, minor) = device.ok_or_else(|| Error::internal(format!("{address}: {node} is no device")))?;
    let bytes = core.edges.host().refresh_disk(major, minor)?;
    let told = store.transaction::<bool, xenstore::Error>(|t| {
        let state = t.read(&address.backend_state())?;
        let connected = state.is_some_and(|s| XenbusState::from_value(&s) == XenbusState::Connected);
        if connected {
            // As blkback does it when it notices by itself, which is at the guest's next request.
            t.apply(&layout::Vbd::resized(address, bytes))?;
        }
        Ok(connected)
    })?;
    tracing::info!(vbd = %vbd.id, bytes, told, "the size of a disk is looked at again");
    Ok(())
}

/// What is observed of a disk.
///
/// # Errors
/// When Xen or xenstored does not answer.
pub fn state(core: &Core, vbd: &Vbd) -> Result<VbdState, Error> {
    let plugged = match number(vbd) {
        Ok(id) => plugged(core, &vbd.id.vm, |domid| super::address(DeviceKind::Vbd, domid, id))?.is_some(),
        Err(_) => false,
    };
    let backend_present = vbd.backend.clone().filter(|_| plugged);
    let served = !number(vbd).is_ok_and(|id| served::has_ended(core, &vbd.id.vm, id));
    Ok(VbdState { active: plugged && served, plugged, qos_target: vbd.qos, backend_present })
}
