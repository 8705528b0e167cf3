//! A domain's own nodes: its skeleton before the build, and what changes while it runs.

use super::arrange::arrange;
use super::device::DeviceAddress;
use super::table::{Layout, Node, Rule, Side, Writer, items};
use super::{Pairs, flag, text};
use crate::batch::Batch;
use crate::path::Path;
use crate::perms::{DomId, Perms};
use crate::vmdata::VmData;
use std::collections::BTreeSet;
use uuid::Uuid;

/// `/local/domain/D`.
pub fn domain_path(domid: DomId) -> Path {
    Path::known(format!("/local/domain/{domid}"))
}

/// `/vm/U`.
pub fn vm_path(uuid: Uuid) -> Path {
    Path::known(format!("/vm/{uuid}"))
}

/// Where an HVM guest's clock is kept, below `/vm/U`.
const TIME_OFFSET: &str = "rtc/timeoffset";

/// The node that says how far an HVM guest's clock is off UTC, in seconds.
pub fn time_offset_path(uuid: Uuid) -> Path {
    vm_path(uuid).at(TIME_OFFSET)
}

/// `/libxl/D`.
pub fn libxl_path(domid: DomId) -> Path {
    Path::known(format!("/libxl/{domid}"))
}

/// How a domain is virtualised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DomainKind {
    /// Paravirtualised.
    Pv,
    /// Hardware, without a device model.
    Pvh,
    /// Hardware, with a device model.
    Hvm,
}

impl DomainKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Pv => "pv",
            Self::Pvh => "pvh",
            Self::Hvm => "hvm",
        }
    }
}

/// A new domain, before it is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Its number.
    pub domid: DomId,
    /// Its VM.
    pub uuid: Uuid,
    /// Its name; must be unique for `xl`.
    pub name: String,
    /// How it is virtualised.
    pub kind: DomainKind,
    /// Changes with every start and resume: agents in the guest drop what they remember.
    pub unique_id: Uuid,
    /// Nodes below `platform/`, named without it.
    pub platform: Pairs,
    /// Nodes below `bios-strings/`, named without it.
    pub bios_strings: Pairs,
    /// The firmware that hvmloader starts, `seabios` or `ovmf`; HVM only.
    pub bios: Option<&'static str>,
    /// Seconds by which its clock is off UTC; HVM only.
    pub time_offset: Option<i32>,
    /// Whether Windows may find its vendor's drivers by itself.
    pub vendor_device: bool,
    /// What the VM's owner has for the guest.
    pub vm_data: VmData,
    /// Leave `/vm/U` as it is: another domain of the same VM exists (a migration within the host).
    pub keep_vm: bool,
}

/// Whose a domain's home is, and what of it that has no owner of its own.
pub(super) fn home_perms(domid: DomId) -> Perms {
    Perms::ro(domid)
}

impl Domain {
    /// The whole skeleton, in one transaction. Whatever an earlier domain of this number left is removed.
    pub fn create(&self) -> Batch {
        let mut batch = Batch::new();
        batch.rm(domain_path(self.domid)).rm(libxl_path(self.domid));
        if !self.keep_vm {
            batch.rm(vm_path(self.uuid));
        }
        let domid = self.domid;
        for (side, more) in [
            (Side::Domain, self.vm_data.guests(domid).collect()),
            (Side::Vm, Vec::new()),
            (Side::Private, self.vm_data.copies(domid).collect()),
        ] {
            let nodes = items(self, side).into_iter().chain(more).collect();
            arrange(&self.root(side), nodes, None, &mut batch);
        }
        batch
    }
}

/// Removes all nodes of a domain that is gone and of the `devices` that it had. Their backends' directories are its own:
/// whatever else is in them goes along.
pub fn remove_domain(domid: DomId, uuid: Option<Uuid>, devices: &[DeviceAddress]) -> Batch {
    let mut batch = Batch::new();
    for directory in devices.iter().flat_map(DeviceAddress::domains_directories).collect::<BTreeSet<_>>() {
        batch.rm(directory);
    }
    batch.rm(domain_path(domid)).rm(libxl_path(domid));
    batch.rm(domain_path(DomId::DOM0).at(format!("device-model/{domid}")));
    if let Some(uuid) = uuid {
        batch.rm(vm_path(uuid));
    }
    batch
}

/// Which of a running domain's processors its kernel is to use: the first `online` of `max`.
pub fn set_online_vcpus(domid: DomId, max: u32, online: u32) -> Batch {
    let mut batch = Batch::new();
    for (node, value) in availability(max, online) {
        batch.write(domain_path(domid).at(node), value);
    }
    batch
}

pub(super) fn availability(max: u32, online: u32) -> Pairs {
    let word = |n| if n < online { "online" } else { "offline" };
    (0..max).map(|n| (Path::known(format!("cpu/{n}/availability")), word(n).into())).collect()
}

/// Another balloon target and range of a running domain, in KiB.
pub fn set_memory(domid: DomId, target: u64, range: (u64, u64)) -> Batch {
    let mut batch = Batch::new();
    batch.write(domain_path(domid).at("memory/target"), target.to_string());
    batch.append(set_memory_range(domid, range));
    batch
}

/// Another balloon range only.
pub fn set_memory_range(domid: DomId, (dynamic_min, dynamic_max): (u64, u64)) -> Batch {
    let mut batch = Batch::new();
    for (name, value) in [("dynamic-min", dynamic_min), ("dynamic-max", dynamic_max)] {
        batch.write(domain_path(domid).at(format!("memory/{name}")), value.to_string());
    }
    batch
}

/// Gives a running domain another name.
pub fn rename_domain(domid: DomId, uuid: Uuid, name: &str) -> Batch {
    let mut batch = Batch::new();
    batch.write(domain_path(domid).at("name"), name).write(vm_path(uuid).at("name"), name);
    batch
}

fn below(directory: &str, nodes: &Pairs) -> Pairs {
    let directory = Path::known(directory);
    let place = |(name, value): &(Path, Vec<u8>)| Some((directory.join(name.as_str()).ok()?, value.clone()));
    nodes.iter().filter_map(place).collect()
}

impl Layout for Domain {
    const TITLE: &'static str = "Domain, when it is created";

    const NODES: &'static [Node<Self>] = &[
        Node::dir(Side::Domain, "", Rule::Ro, "the domain's home: relative paths of the guest begin here"),
        Node::value(Side::Domain, "vm", "/vm/U", |d| text(vm_path(d.uuid)), "xl, agents"),
        Node::value(Side::Domain, "name", "text", |d| text(&d.name), "xl list, xentop, log of xenconsoled"),
        Node::value(
            Side::Domain,
            "unique-domain-id",
            "UUID",
            |d| text(d.unique_id),
            "agents: another one than before means that the VM was resumed or copied",
        ),
        Node::value(
            Side::Domain,
            "domain-type",
            "pv | pvh | hvm",
            |d| text(d.kind.name()),
            "XenServer's tools",
        ),
        Node::dir(Side::Domain, "device", Rule::Ro, "kernel: frontends"),
        Node::value(
            Side::Domain,
            "device/suspend/event-channel",
            "(empty)",
            |_| text(""),
            "kernel writes a port to be told of suspend by",
        )
        .owned(Rule::Rw),
        Node::dir(
            Side::Domain,
            "control",
            Rule::Rw,
            "requests to the guest, and what it can do (agents create nodes here)",
        ),
        Node::value(
            Side::Domain,
            "control/shutdown",
            "(empty), poweroff | reboot | suspend | halt | s3",
            |_| text(""),
            "toolstack asks; the guest clears it",
        )
        .owned(Rule::Rw),
        Node::value(
            Side::Domain,
            "control/sysrq",
            "(empty), a letter",
            |_| text(""),
            "toolstack asks; the guest clears it",
        )
        .owned(Rule::Rw),
        Node::value(
            Side::Domain,
            "control/platform-feature-multiprocessor-suspend",
            "1",
            |_| flag(true),
            "kernel: all vcpus may be up at suspend",
        )
        .owned(Rule::Ro),
        Node::value(
            Side::Domain,
            "control/platform-feature-xs_reset_watches",
            "1",
            |_| flag(true),
            "kernel: may send RESET_WATCHES",
        )
        .owned(Rule::Ro),
        Node::value(
            Side::Domain,
            "control/has-vendor-device",
            "0 | 1",
            |d: &Self| flag(d.vendor_device),
            "Windows drivers",
        )
        .owned(Rule::Ro),
        Node::later(
            Side::Domain,
            "control/feature-*",
            "1",
            Writer::Guest,
            "what the guest can do: poweroff, reboot, suspend, balloon, ...",
        ),
        Node::dir(Side::Domain, "attr", Rule::Rw, "agents: addresses, versions"),
        Node::dir(Side::Domain, "data", Rule::Rw, "agents: operating system, memory"),
        Node::dir(Side::Domain, "drivers", Rule::Rw, "agents: versions of drivers"),
        Node::dir(Side::Domain, "error", Rule::Rw, "kernel: errors of frontends"),
        Node::dir(Side::Domain, "feature", Rule::Rw, "agents: what can be hotplugged"),
        Node::dir(Side::Domain, "messages", Rule::Rw, "agents: messages"),
        Node::dir(Side::Domain, "rrd", Rule::Rw, "agents: pages with metrics"),
        Node::dir(Side::Domain, "xenserver/attr", Rule::Rw, "agents: SR-IOV addresses"),
        Node::later(
            Side::Domain,
            "vm-data/...",
            "any",
            Writer::Toolstack,
            "the VM's owner for the guest; rw, and the guest may add to it",
        ),
        Node::many(
            Side::Domain,
            "platform/*",
            "from the VM",
            |d| below("platform", &d.platform),
            "hvmloader, drivers",
        ),
        Node::many(
            Side::Domain,
            "bios-strings/*",
            "from the VM",
            |d| below("bios-strings", &d.bios_strings),
            "hvmloader: SMBIOS",
        ),
        Node::<Self>::value(
            Side::Domain,
            "hvmloader",
            "(directory, HVM only)",
            |d| (d.kind == DomainKind::Hvm).then(Vec::new),
            "hvmloader: which firmware",
        )
        .owned(Rule::Ro),
        Node::value(
            Side::Domain,
            "hvmloader/bios",
            "seabios | ovmf",
            |d| d.bios.and_then(text),
            "hvmloader: without it the firmware is taken for one of Xen's old ones",
        ),
        Node::value(
            Side::Domain,
            "hvmloader/allow-memory-relocate",
            "0",
            |d| d.bios.and(flag(false)),
            "hvmloader: this device model does not follow memory that is moved for large PCI devices",
        ),
        Node::<Self>::value(
            Side::Domain,
            "hvmloader/generation-id-address",
            "(empty, HVM only)",
            |d| (d.kind == DomainKind::Hvm).then(Vec::new),
            "nobody: before Xen 4.5 hvmloader wrote here where it has put the generation id, which is a parameter of the domain now",
        )
        .owned(Rule::Rw),
        Node::dir(Side::Vm, "", Rule::Ro, "what belongs to the VM rather than to this domain"),
        Node::value(Side::Vm, "uuid", "U", |d| text(d.uuid), "agents"),
        Node::value(Side::Vm, "name", "text", |d| text(&d.name), "xl rename"),
        Node::value(
            Side::Vm,
            TIME_OFFSET,
            "seconds (HVM only)",
            |d| d.time_offset.and_then(|seconds| text(seconds.to_string())),
            "the toolstack, Windows drivers: what the guest's clock is off UTC, changed when the guest sets it",
        ),
        Node::many(
            Side::Vm,
            "domains/D",
            "/local/domain/D",
            |d| vec![(Path::known(format!("domains/{}", d.domid)), domain_path(d.domid).as_str().into())],
            "XenServer's tools: domains of this VM",
        ),
        Node::dir(Side::Private, "", Rule::No, "the toolstack's memory of the domain"),
        Node::later(
            Side::Private,
            "device",
            "(directory)",
            Writer::Toolstack,
            "the toolstack's memory of its devices",
        ),
        Node::dir(Side::Private, "vm-data", Rule::No, "the toolstack's copy of what it wrote below vm-data"),
        Node::value(
            Side::Private,
            "type",
            "pv | pvh | hvm",
            |d| text(d.kind.name()),
            "xl: without it a PVH domain is taken for HVM",
        ),
        Node::value(
            Side::Private,
            "dm-version",
            "qemu_xen",
            |_| text("qemu_xen"),
            "xl: without it the device model is taken for the old one",
        ),
    ];

    fn root(&self, side: Side) -> Path {
        root(side, self.uuid, self.domid)
    }

    fn root_shown(side: Side) -> &'static str {
        shown(side)
    }

    fn parties(&self) -> (DomId, DomId) {
        (self.domid, DomId::DOM0)
    }
}

/// Where the nodes of a domain are, by side.
pub(super) fn root(side: Side, uuid: Uuid, domid: DomId) -> Path {
    match side {
        Side::Vm => vm_path(uuid),
        Side::Private => libxl_path(domid),
        Side::Domain | Side::Frontend | Side::Backend => domain_path(domid),
    }
}

/// The same as the documentation shows it.
pub(super) const fn shown(side: Side) -> &'static str {
    match side {
        Side::Vm => "/vm/U",
        Side::Private => "/libxl/D",
        Side::Domain | Side::Frontend | Side::Backend => "/local/domain/D",
    }
}
