//! Disks.

use super::device::{self, DeviceAddress, DeviceKind};
use super::table::{Layout, Node, Rule, Side, Writer};
use super::{Pairs, XenbusState, flag, text};
use crate::batch::Batch;
use crate::path::Path;
use crate::perms::DomId;

/// What a disk looks like to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// A hard disk.
    Disk,
    /// A CD-ROM drive: read-only, removable.
    Cdrom,
    /// A floppy drive; to paravirtual drivers it is a disk.
    Floppy,
}

/// Who serves a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockBackend {
    /// The kernel, from a block device: this path.
    Phy {
        /// Path of the block device, or of the file behind a loop device.
        path: Vec<u8>,
    },
    /// QEMU, from an image of this format (`aio` for raw, `qcow2`, `vhd`, ...).
    Qdisk {
        /// QEMU's word for the format.
        format: String,
        /// Path of the image; empty for a drive without a medium.
        path: Vec<u8>,
    },
}

/// A block device's number in the backend domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockDevice {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl BlockDevice {
    /// `major:minor` in hexadecimal, as blkback reads it.
    pub fn number(self) -> String {
        format!("{:x}:{:x}", self.major, self.minor)
    }
}

/// A disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vbd {
    /// The guest.
    pub domid: DomId,
    /// The domain that runs the backend.
    pub backend_domid: DomId,
    /// The device number (51712 for xvda).
    pub vdev: u32,
    /// The device's name for people (`xvda`).
    pub name: String,
    /// Who serves it, from what.
    pub backend: BlockBackend,
    /// Disk or CD-ROM.
    pub media: Media,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether the guest sees a removable drive.
    pub removable: bool,
    /// Whether the guest may discard blocks.
    pub discard: bool,
    /// Whether the guest should trust the backend (XSA-403).
    pub trusted: bool,
    /// Hotplug script; the toolstack does its work by itself, but `xl block-detach` runs it.
    pub script: Option<String>,
    /// The block device, when it is known before the backend's driver has seen the device.
    pub device: Option<BlockDevice>,
    /// Further backend nodes.
    pub extra_backend: Pairs,
    /// Further private nodes.
    pub extra_private: Pairs,
}

impl Vbd {
    /// Its address.
    pub fn address(&self) -> DeviceAddress {
        let kind = match self.backend {
            BlockBackend::Phy { .. } => DeviceKind::Vbd,
            BlockBackend::Qdisk { .. } => DeviceKind::Qdisk,
        };
        DeviceAddress { kind, domid: self.domid, id: self.vdev, backend_domid: self.backend_domid }
    }

    /// All nodes of the new disk. Leftovers with the same address are removed.
    pub fn create(&self) -> Batch {
        device::create(self, self.address(), &self.extra_private)
    }

    /// Tells a guest that is connected of another size of its disk: what blkback writes when it notices by itself.
    pub fn resized(address: DeviceAddress, bytes: u64) -> Batch {
        // blkback counts in 512 bytes, whatever the disk's blocks are.
        let sectors = bytes / 512;
        let mut batch = Batch::new();
        batch.write(address.backend().at("sectors"), sectors.to_string());
        batch.write(address.backend_state(), XenbusState::Connected.to_value());
        batch
    }

    fn params(&self) -> Vec<u8> {
        match &self.backend {
            BlockBackend::Phy { path } => path.clone(),
            BlockBackend::Qdisk { format, path } => [format.as_bytes(), b":", path].concat(),
        }
    }
}

impl Media {
    const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Cdrom => "cdrom",
            Self::Floppy => "floppy",
        }
    }
}

use Side::{Backend, Frontend, Private};

impl Layout for Vbd {
    const TITLE: &'static str = "Disk (vbd, qdisk)";

    /// Each node of the backend's costs a plug some four milliseconds on a small machine, and each of the frontend's three:
    /// its request, its event to all who watch, and the kernel's question because of it. So what nobody reads is not there,
    /// and neither is what says the same as its absence; docs/differences.md has what `xl` writes besides.
    const NODES: &'static [Node<Self>] = &[
        Node::dir(Frontend, "", Rule::Fe, "blkfront's side"),
        Node::<Self>::value(Frontend, "backend", "path", |v| text(v.address().backend()), "blkfront")
            .owned(Rule::Above),
        Node::value(Frontend, "backend-id", "B", |v| text(v.backend_domid), "blkfront: whom to grant pages"),
        Node::value(
            Frontend,
            "state",
            "1",
            |_| text(XenbusState::Initialising),
            "xenbus; driven by the guest",
        ),
        Node::value(Frontend, "virtual-device", "N", |v| text(v.vdev), "blkfront: which disk this is"),
        Node::value(Frontend, "device-type", "disk | cdrom | floppy", |v| text(v.media.name()), "blkfront"),
        Node::value(
            Frontend,
            "trusted",
            "0, or none",
            |v| if v.trusted { None } else { flag(false) },
            "blkfront: 0 bounces all data (XSA-403); 1 if there is none",
        ),
        Node::later(
            Frontend,
            "ring-ref, event-channel, protocol, feature-*",
            "numbers",
            Writer::Guest,
            "blkback connects to these",
        ),
        Node::dir(Backend, "", Rule::Be, "blkback's or QEMU's side"),
        Node::<Self>::value(Backend, "frontend", "path", |v| text(v.address().frontend()), "blkback")
            .owned(Rule::Above)
            .copied(),
        Node::value(Backend, "frontend-id", "D", |v| text(v.domid), "blkback: whose pages to map"),
        Node::value(Backend, "online", "1", |_| flag(true), "0 makes closing final"),
        Node::value(
            Backend,
            "state",
            "1",
            |_| text(XenbusState::Initialising),
            "xenbus; driven by the backend",
        ),
        Node::<Self>::value(
            Backend,
            "params",
            "PATH | FORMAT:PATH",
            |v| Some(v.params()),
            "scripts, xl; QEMU opens it",
        )
        .copied(),
        Node::<Self>::value(Backend, "dev", "xvda", |v| text(&v.name), "blkback: name of its threads; xl")
            .copied(),
        Node::<Self>::value(
            Backend,
            "mode",
            "w | r",
            |v| text(if v.writable { "w" } else { "r" }),
            "blkback: how to open; xl",
        )
        .copied(),
        Node::<Self>::value(
            Backend,
            "device-type",
            "disk | cdrom | floppy",
            |v| text(v.media.name()),
            "OVMF, QEMU, xl",
        )
        .copied(),
        Node::<Self>::value(Backend, "removable", "0 | 1", |v| flag(v.removable), "Windows' blkfront, xl")
            .copied(),
        Node::value(
            Backend,
            "discard-enable",
            "0 | 1 (qdisk); 0, or none",
            |v| if v.discard && v.address().kind == DeviceKind::Vbd { None } else { flag(v.discard) },
            "blkback: offer discard, as it does if there is none",
        ),
        Node::value(Backend, "script", "path", |v| v.script.as_ref().and_then(text), "run by xl at detach"),
        Node::value(
            Backend,
            "physical-device",
            "MAJOR:MINOR, hexadecimal",
            |v| v.device.and_then(|d| text(d.number())),
            "blkback opens this number; it must not change afterwards",
        ),
        Node::many(Backend, "(others)", "from the caller", |v| v.extra_backend.clone(), "storage"),
        Node::later(Backend, "sectors, sector-size, info, feature-*", "numbers", Writer::Backend, "blkfront"),
        Node::later(
            Private,
            "frontend, backend",
            "paths",
            Writer::Toolstack,
            "what to remove, never read elsewhere",
        ),
        Node::value(
            Private,
            "type",
            "phy | qdisk",
            |v| text(if v.address().kind == DeviceKind::Qdisk { "qdisk" } else { "phy" }),
            "xl",
        ),
    ];

    fn root(&self, side: Side) -> Path {
        device::root(self.address(), side)
    }

    fn root_shown(side: Side) -> &'static str {
        match side {
            Side::Backend => "/local/domain/B/backend/vbd/D/N",
            Side::Private => "/libxl/D/device/vbd/N",
            _ => "/local/domain/D/device/vbd/N",
        }
    }

    fn parties(&self) -> (DomId, DomId) {
        (self.domid, self.backend_domid)
    }
}
