//! A domain's own nodes: what is known once it is built.

use super::domain::{DomainKind, availability, root, shown};
use super::table::{Layout, Node, Side, write_side};
use super::{Pairs, text};
use crate::batch::Batch;
use crate::path::Path;
use crate::perms::DomId;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// A domain's memory in KiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Most it can ever have.
    pub static_max: u64,
    /// Most the balloon may be asked for.
    pub dynamic_max: u64,
    /// Least the balloon may be asked for.
    pub dynamic_min: u64,
    /// What the balloon is asked for now.
    pub target: u64,
    /// Video memory within it.
    pub video: u64,
}

/// What is known once a domain is built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// Its number.
    pub domid: DomId,
    /// Its VM.
    pub uuid: Uuid,
    /// How it is virtualised.
    pub kind: DomainKind,
    /// Its memory.
    pub memory: Memory,
    /// Vcpus it can have.
    pub max_vcpus: u32,
    /// Vcpus that are online, the first so many.
    pub online_vcpus: u32,
    /// Unbound event channel of its xenstore ring.
    pub store_port: u32,
    /// Frame number of its xenstore ring.
    pub store_gfn: u64,
    /// Now.
    pub start_time: SystemTime,
}

impl Built {
    /// The nodes, to be written before the domain is introduced.
    pub fn create(&self) -> Batch {
        let mut batch = Batch::new();
        for side in [Side::Domain, Side::Vm] {
            write_side(self, side, &mut batch);
        }
        batch
    }

    fn availability(&self) -> Pairs {
        availability(self.max_vcpus, self.online_vcpus)
    }
}

impl Layout for Built {
    const TITLE: &'static str = "Domain, when it is built";

    const NODES: &'static [Node<Self>] = &[
        Node::value(Side::Domain, "domid", "D", |b| text(b.domid), "agents"),
        Node::value(
            Side::Domain,
            "memory/static-max",
            "KiB",
            |b| text(b.memory.static_max),
            "balloon driver",
        ),
        Node::value(
            Side::Domain,
            "memory/target",
            "KiB",
            |b| text(b.memory.target),
            "balloon driver: follow this",
        ),
        Node::value(
            Side::Domain,
            "memory/initial-target",
            "KiB",
            |b| text(b.memory.target),
            "ballooning daemon",
        ),
        Node::value(
            Side::Domain,
            "memory/dynamic-min",
            "KiB",
            |b| text(b.memory.dynamic_min),
            "ballooning daemon",
        ),
        Node::value(
            Side::Domain,
            "memory/dynamic-max",
            "KiB",
            |b| text(b.memory.dynamic_max),
            "ballooning daemon",
        ),
        Node::value(Side::Domain, "memory/videoram", "KiB", |b| text(b.memory.video), "xl"),
        Node::value(Side::Domain, "store/port", "N", |b| text(b.store_port), "the ring this is read through"),
        Node::value(
            Side::Domain,
            "store/ring-ref",
            "N",
            |b| text(b.store_gfn),
            "the ring this is read through",
        ),
        Node::many(
            Side::Domain,
            "cpu/N/availability",
            "online | offline",
            Self::availability,
            "kernel: vcpu hotplug",
        ),
        Node::value(Side::Vm, "start_time", "SECONDS.CENTISECONDS", |b| text(start_time(b.start_time)), "xl"),
        Node::value(
            Side::Vm,
            "image/ostype",
            "linux | hvm",
            |b| match b.kind {
                DomainKind::Pv => text("linux"),
                DomainKind::Hvm => text("hvm"),
                DomainKind::Pvh => None,
            },
            "xl",
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

fn start_time(time: SystemTime) -> String {
    // A clock before 1970 is as good as 1970 here.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:02}", since.as_secs(), since.subsec_millis() / 10)
}
