//! The first console of a domain.

use super::device::{self, DeviceAddress, DeviceKind};
use super::domain::{domain_path, home_perms, libxl_path};
use super::table::{Layout, Node, Rule, Side, Writer, write_side};
use super::{XenbusState, flag, text};
use crate::batch::Batch;
use crate::path::Path;
use crate::perms::DomId;

/// Bytes that xenconsoled keeps for a reader that is slow, or not there yet.
const BUFFER_LIMIT: u32 = 1 << 20;

/// Who reads and writes the console's ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleServer {
    /// The daemon of the control domain.
    Xenconsoled,
    /// The device model.
    Qemu,
}

/// Console 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Console {
    /// The guest.
    pub domid: DomId,
    /// The domain that serves it.
    pub backend_domid: DomId,
    /// Who serves it there.
    pub server: ConsoleServer,
    /// The guest's unbound event channel.
    pub port: u32,
    /// Frame number of the ring's page.
    pub gfn: u64,
}

impl Console {
    /// Its address.
    pub const fn address(&self) -> DeviceAddress {
        DeviceAddress {
            kind: DeviceKind::Console,
            domid: self.domid,
            id: 0,
            backend_domid: self.backend_domid,
        }
    }

    /// All nodes of the console of a domain that was created in this store ([`Domain`](super::Domain)) and has none yet.
    /// Leftovers of an earlier domain's are removed.
    pub fn create(&self) -> Batch {
        device::create_with_domain(self, self.address(), &home_perms(self.domid))
    }
}

use Side::{Backend, Frontend, Private};

impl Layout for Console {
    const TITLE: &'static str = "Console 0";

    const NODES: &'static [Node<Self>] = &[
        Node::dir(
            Frontend,
            "",
            Rule::FeRo,
            "the guest may look, not touch: the daemon of dom0 believes what is here",
        ),
        Node::value(Frontend, "backend", "path", |c| text(c.address().backend()), "xl"),
        Node::value(Frontend, "backend-id", "B", |c| text(c.backend_domid), "xl"),
        Node::value(
            Frontend,
            "type",
            "xenconsoled | ioemu",
            |c| {
                text(match c.server {
                    ConsoleServer::Xenconsoled => "xenconsoled",
                    ConsoleServer::Qemu => "ioemu",
                })
            },
            "xenconsoled serves only its own",
        ),
        Node::value(Frontend, "output", "pty", |_| text("pty"), "QEMU"),
        Node::value(Frontend, "limit", "1048576", |_| text(BUFFER_LIMIT), "xenconsoled: bytes to keep"),
        Node::value(Frontend, "port", "N", |c| text(c.port), "xenconsoled: event channel"),
        Node::value(Frontend, "ring-ref", "N", |c| text(c.gfn), "xenconsoled: frame number of the ring"),
        Node::value(
            Frontend,
            "tty",
            "(empty), then /dev/pts/N",
            |_| text(""),
            "xenconsoled writes it, xl console opens it",
        ),
        Node::dir(Backend, "", Rule::Be, "nothing drives it; xl expects it at destroy"),
        Node::<Self>::value(Backend, "frontend", "path", |c| text(c.address().frontend()), "xl").copied(),
        Node::value(Backend, "frontend-id", "D", |c| text(c.domid), "xl"),
        Node::value(Backend, "online", "1", |_| flag(true), "xl"),
        Node::value(Backend, "state", "1", |_| text(XenbusState::Initialising), "xl"),
        Node::value(Backend, "protocol", "vt100", |_| text("vt100"), "xl"),
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
            Side::Backend => "/local/domain/B/backend/console/D/0",
            Side::Private => "/libxl/D/device/console/0",
            _ => "/local/domain/D/console",
        }
    }

    fn parties(&self) -> (DomId, DomId) {
        (self.domid, self.backend_domid)
    }
}

/// The terminal server of a guest's text: of console 0, as a VNC screen and as it is; of an HVM guest's serial port, as it
/// is only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalServer {
    /// The guest.
    pub domid: DomId,
    /// Its port for VNC, on 127.0.0.1; an HVM guest's screen is its device model's, and so is the node.
    pub vnc_port: Option<u16>,
    /// Its port for the raw text, on 127.0.0.1.
    pub text_port: u16,
    /// Its process.
    pub pid: u32,
}

const VNC_PORT: &str = "console/vnc-port";
const TEXT_PORT: &str = "console/tc-port";
const PID: &str = "vncterm-pid";

impl TerminalServer {
    /// All nodes.
    pub fn create(&self) -> Batch {
        let mut batch = Batch::new();
        write_side(self, Side::Domain, &mut batch);
        batch
    }

    /// Removes the nodes of a domain's terminal server, whichever it was, as [`Self::paths`] has them.
    pub fn remove(domid: DomId, screen: bool) -> Batch {
        let mut batch = Batch::new();
        for path in Self::paths(domid, screen) {
            batch.rm(path);
        }
        batch
    }

    /// The nodes that [`Self::parse`] reads: of one that serves a `screen` or of one that does not.
    pub fn paths(domid: DomId, screen: bool) -> Vec<Path> {
        let names = [PID, TEXT_PORT].into_iter().chain(screen.then_some(VNC_PORT));
        names.map(|name| domain_path(domid).at(name)).collect()
    }

    /// From the values of [`Self::paths`]; none when one is missing or is no number. The guest cannot write them.
    pub fn parse(domid: DomId, values: &[Option<Vec<u8>>]) -> Option<Self> {
        let number = |n: usize| std::str::from_utf8(values.get(n)?.as_deref()?).ok();
        let vnc_port = if values.len() > 2 { Some(number(2)?.parse().ok()?) } else { None };
        Some(Self { domid, vnc_port, text_port: number(1)?.parse().ok()?, pid: number(0)?.parse().ok()? })
    }
}

impl Layout for TerminalServer {
    const TITLE: &'static str = "Terminal server of console 0";

    const NODES: &'static [Node<Self>] = &[
        Node::value(
            Side::Domain,
            VNC_PORT,
            "N",
            |t| text(t.vnc_port?),
            "viewers, by way of the management layer",
        ),
        Node::value(Side::Domain, TEXT_PORT, "N", |t| text(t.text_port), "xenops console, telnet"),
        Node::value(
            Side::Domain,
            PID,
            "N",
            |t| text(t.pid),
            "people; the toolstack compares it with its journal",
        ),
    ];

    fn root(&self, side: Side) -> Path {
        if side == Side::Private { libxl_path(self.domid) } else { domain_path(self.domid) }
    }

    fn root_shown(_: Side) -> &'static str {
        "/local/domain/D"
    }

    fn parties(&self) -> (DomId, DomId) {
        (self.domid, DomId::DOM0)
    }
}
