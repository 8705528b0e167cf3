//! The paravirtual frame buffer with its keyboard and pointer: two devices, which one process serves.

use super::device::{self, DeviceAddress, DeviceKind};
use super::domain::{domain_path, libxl_path};
use super::table::{Layout, Node, Rule, Side, Writer, write_side};
use super::{XenbusState, flag, text};
use crate::batch::Batch;
use crate::path::Path;
use crate::perms::DomId;

/// One of the two devices of a domain, served by dom0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameBuffer {
    /// The guest.
    pub domid: DomId,
}

/// The other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyboard {
    /// The guest.
    pub domid: DomId,
}

const fn address(kind: DeviceKind, domid: DomId) -> DeviceAddress {
    DeviceAddress { kind, domid, id: 0, backend_domid: DomId::DOM0 }
}

impl FrameBuffer {
    /// Its address.
    pub const fn address(&self) -> DeviceAddress {
        address(DeviceKind::Vfb, self.domid)
    }

    /// All nodes. Leftovers are removed.
    pub fn create(&self) -> Batch {
        device::create(self, self.address(), &Vec::new())
    }
}

/// The node by which a guest asks for its pointer's place.
const ABSOLUTE: &str = "request-abs-pointer";

impl Keyboard {
    /// Its address.
    pub const fn address(&self) -> DeviceAddress {
        address(DeviceKind::Vkbd, self.domid)
    }

    /// All nodes. Leftovers are removed. With the guest's request for its pointer's place if it has made it `before`, in the
    /// domain that this one goes on from: its driver does so once.
    pub fn create(&self, before: bool) -> Batch {
        let mut batch = device::create(self, self.address(), &Vec::new());
        if before {
            batch.write(self.address().frontend().at(ABSOLUTE), "1");
        }
        batch
    }
}

/// A node of the guest's, as it is: any bytes.
type Said = Option<Vec<u8>>;

/// What both ends of both devices say. All of the frontends' is the guest's: hostile.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrameBufferSaid {
    /// State of the frame buffer's backend.
    pub screen_backend: Said,
    /// State of its frontend.
    pub screen_frontend: Said,
    /// Frame number of its page.
    pub screen_page: Said,
    /// Its port.
    pub screen_port: Said,
    /// How the guest's words are.
    pub protocol: Said,
    /// State of the keyboard's backend.
    pub keyboard_backend: Said,
    /// State of its frontend.
    pub keyboard_frontend: Said,
    /// Frame number of its page.
    pub keyboard_page: Said,
    /// Its port.
    pub keyboard_port: Said,
    /// Whether it wants the pointer's place.
    pub keyboard_absolute: Said,
}

impl FrameBufferSaid {
    /// The nodes that [`Self::from_values`] is made of.
    pub fn paths(domid: DomId) -> Vec<Path> {
        let (screen, keyboard) = (FrameBuffer { domid }.address(), Keyboard { domid }.address());
        let of = |address: DeviceAddress, name: &str| address.frontend().at(name);
        vec![
            screen.backend_state(),
            of(screen, "state"),
            of(screen, "page-ref"),
            of(screen, "event-channel"),
            of(screen, "protocol"),
            keyboard.backend_state(),
            of(keyboard, "state"),
            of(keyboard, "page-ref"),
            of(keyboard, "event-channel"),
            of(keyboard, ABSOLUTE),
        ]
    }

    /// From their values, in that order.
    pub fn from_values(values: Vec<Said>) -> Self {
        let mut values = values.into_iter();
        let mut next = || values.next().flatten();
        Self {
            screen_backend: next(),
            screen_frontend: next(),
            screen_page: next(),
            screen_port: next(),
            protocol: next(),
            keyboard_backend: next(),
            keyboard_frontend: next(),
            keyboard_page: next(),
            keyboard_port: next(),
            keyboard_absolute: next(),
        }
    }

    /// The nodes whose changes are of interest.
    pub fn watched(domid: DomId) -> Vec<Path> {
        [FrameBuffer { domid }.address(), Keyboard { domid }.address()]
            .into_iter()
            .flat_map(|address| [address.frontend().at("state"), address.backend_state()])
            .collect()
    }
}

use Side::{Backend, Frontend, Private};

impl Layout for FrameBuffer {
    const TITLE: &'static str = "Frame buffer";

    const NODES: &'static [Node<Self>] = &[
        Node::dir(Frontend, "", Rule::Fe, "the guest's side"),
        Node::value(Frontend, "backend", "path", |f| text(f.address().backend()), "fbfront"),
        Node::value(Frontend, "backend-id", "B", |_| text(DomId::DOM0), "fbfront"),
        Node::value(
            Frontend,
            "state",
            "1",
            |_| text(XenbusState::Initialising),
            "xenbus; driven by the guest",
        ),
        Node::later(
            Frontend,
            "page-ref, event-channel",
            "numbers",
            Writer::Guest,
            "toolstack: what to map and bind",
        ),
        Node::later(
            Frontend,
            "protocol",
            "x86_64-abi",
            Writer::Guest,
            "toolstack: how the page's directory is",
        ),
        Node::later(
            Frontend,
            "feature-update",
            "1",
            Writer::Guest,
            "nobody: updates are asked for in any case",
        ),
        Node::dir(Backend, "", Rule::Be, "served by vncterm; the toolstack writes the states"),
        Node::<Self>::value(Backend, "frontend", "path", |f| text(f.address().frontend()), "xl").copied(),
        Node::value(Backend, "frontend-id", "D", |f| text(f.domid), "xl"),
        Node::value(Backend, "online", "1", |_| flag(true), "0 makes closing final"),
        Node::value(
            Backend,
            "state",
            "2",
            |_| text(XenbusState::InitWait),
            "xenbus: 4 once it is served, 6 when it is not",
        ),
        Node::value(Backend, "request-update", "1", |_| flag(true), "fbfront: tell what was drawn to"),
        Node::value(Backend, "feature-resize", "1", |_| flag(true), "fbfront: it may choose another size"),
        Node::later(
            Private,
            "frontend, backend",
            "paths",
            Writer::Toolstack,
            "what to remove, never read elsewhere",
        ),
    ];

    fn root(&self, side: Side) -> Path {
        device::root(self.address(), side)
    }

    fn root_shown(side: Side) -> &'static str {
        match side {
            Side::Backend => "/local/domain/B/backend/vfb/D/0",
            Side::Private => "/libxl/D/device/vfb/0",
            _ => "/local/domain/D/device/vfb/0",
        }
    }

    fn parties(&self) -> (DomId, DomId) {
        (self.domid, DomId::DOM0)
    }
}

impl Layout for Keyboard {
    const TITLE: &'static str = "Keyboard and pointer";

    const NODES: &'static [Node<Self>] = &[
        Node::dir(Frontend, "", Rule::Fe, "the guest's side"),
        Node::value(Frontend, "backend", "path", |k| text(k.address().backend()), "kbdfront"),
        Node::value(Frontend, "backend-id", "B", |_| text(DomId::DOM0), "kbdfront"),
        Node::value(
            Frontend,
            "state",
            "1",
            |_| text(XenbusState::Initialising),
            "xenbus; driven by the guest",
        ),
        Node::later(
            Frontend,
            "page-ref, event-channel",
            "numbers",
            Writer::Guest,
            "toolstack: what to map and bind",
        ),
        Node::later(
            Frontend,
            ABSOLUTE,
            "1",
            Writer::Guest,
            "toolstack: the pointer's place is wanted, not its moves; after a resume it is there if it was before",
        ),
        Node::dir(Backend, "", Rule::Be, "served by vncterm; the toolstack writes the states"),
        Node::<Self>::value(Backend, "frontend", "path", |k| text(k.address().frontend()), "xl").copied(),
        Node::value(Backend, "frontend-id", "D", |k| text(k.domid), "xl"),
        Node::value(Backend, "online", "1", |_| flag(true), "0 makes closing final"),
        Node::value(
            Backend,
            "state",
            "2",
            |_| text(XenbusState::InitWait),
            "xenbus: 4 once it is served, 6 when it is not",
        ),
        Node::value(
            Backend,
            "feature-abs-pointer",
            "1",
            |_| flag(true),
            "kbdfront: it may ask for the pointer's place",
        ),
        Node::later(
            Private,
            "frontend, backend",
            "paths",
            Writer::Toolstack,
            "what to remove, never read elsewhere",
        ),
    ];

    fn root(&self, side: Side) -> Path {
        device::root(self.address(), side)
    }

    fn root_shown(side: Side) -> &'static str {
        match side {
            Side::Backend => "/local/domain/B/backend/vkbd/D/0",
            Side::Private => "/libxl/D/device/vkbd/0",
            _ => "/local/domain/D/device/vkbd/0",
        }
    }

    fn parties(&self) -> (DomId, DomId) {
        (self.domid, DomId::DOM0)
    }
}

/// The process that serves both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameBufferServer {
    /// The guest.
    pub domid: DomId,
    /// Its port for VNC, on 127.0.0.1.
    pub vnc_port: u16,
    /// Its process.
    pub pid: u32,
    /// Which of the guest's pages and ports it serves.
    pub serves: String,
}

const VNC_PORT: &str = "console/vnc-port";
const PID: &str = "vfb-pid";
const SERVES: &str = "vfb-serves";

impl FrameBufferServer {
    /// All nodes.
    pub fn create(&self) -> Batch {
        let mut batch = Batch::new();
        write_side(self, Side::Domain, &mut batch);
        write_side(self, Side::Private, &mut batch);
        batch
    }

    /// Removes them.
    pub fn remove(domid: DomId) -> Batch {
        let mut batch = Batch::new();
        for path in Self::paths(domid) {
            batch.rm(path);
        }
        batch
    }

    /// The nodes that [`Self::parse`] reads. The guest can write none of them.
    pub fn paths(domid: DomId) -> Vec<Path> {
        let home = domain_path(domid);
        vec![home.at(PID), home.at(VNC_PORT), libxl_path(domid).at(SERVES)]
    }

    /// From the values of [`Self::paths`]; none when one is missing or is no number.
    pub fn parse(domid: DomId, values: &[Option<Vec<u8>>]) -> Option<Self> {
        let value = |n: usize| std::str::from_utf8(values.get(n)?.as_deref()?).ok();
        let serves = value(2)?.to_owned();
        Some(Self { domid, pid: value(0)?.parse().ok()?, vnc_port: value(1)?.parse().ok()?, serves })
    }
}

impl Layout for FrameBufferServer {
    const TITLE: &'static str = "Server of the frame buffer";

    const NODES: &'static [Node<Self>] = &[
        Node::value(
            Side::Domain,
            VNC_PORT,
            "N",
            |s| text(s.vnc_port),
            "viewers, by way of the management layer; there while the guest's driver is connected",
        ),
        Node::value(
            Side::Domain,
            PID,
            "N",
            |s| text(s.pid),
            "people; the toolstack compares it with its journal",
        ),
        Node::value(
            Private,
            SERVES,
            "D:FRAME:PORT:64:FRAME:PORT:abs",
            |s| text(&s.serves),
            "toolstack: whether the guest has the same pages and ports still",
        ),
    ];

    fn root(&self, side: Side) -> Path {
        if side == Side::Private { libxl_path(self.domid) } else { domain_path(self.domid) }
    }

    fn root_shown(side: Side) -> &'static str {
        if matches!(side, Side::Private) { "/libxl/D" } else { "/local/domain/D" }
    }

    fn parties(&self) -> (DomId, DomId) {
        (self.domid, DomId::DOM0)
    }
}
