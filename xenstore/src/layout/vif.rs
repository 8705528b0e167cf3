//! Network interfaces.

use super::device::{self, DeviceAddress, DeviceKind};
use super::table::{Layout, Node, Rule, Side, Writer};
use super::{Pairs, XenbusState, flag, text};
use crate::batch::Batch;
use crate::path::Path;
use crate::perms::DomId;
use std::fmt;
use std::str::FromStr;

/// netback refuses an interface whose `script` is missing, even when nobody runs it.
const DEFAULT_SCRIPT: &str = "/etc/xen/scripts/vif-bridge";

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<_> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&pairs.join(":"))
    }
}

/// Text that is not an Ethernet address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an Ethernet address: six pairs of hexadecimal digits with colons between them are")]
pub struct BadMac {
    /// What was given.
    pub text: String,
}

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac { text: text.to_owned() };
        let pair = |p: &str| {
            let plain = p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
            u8::from_str_radix(p, 16).ok().filter(|_| plain)
        };
        let bytes: Option<Vec<u8>> = text.split(':').map(pair).collect();
        bytes.and_then(|b| b.try_into().ok()).map(Self).ok_or_else(bad)
    }
}

/// A limit on what the guest sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes per interval.
    pub bytes: u64,
    /// The interval in microseconds.
    pub interval_us: u64,
}

/// A network interface of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vif {
    /// The guest.
    pub domid: DomId,
    /// The domain that runs the backend.
    pub backend_domid: DomId,
    /// Its index.
    pub handle: u32,
    /// The guest's address.
    pub mac: Mac,
    /// The bridge it is to join.
    pub bridge: String,
    /// Largest packet in bytes; the bridge's when `None`.
    pub mtu: Option<u32>,
    /// Limit on sending.
    pub rate: Option<Rate>,
    /// Whether the guest's link is up.
    pub carrier: bool,
    /// Whether the guest should trust the backend (XSA-403).
    pub trusted: bool,
    /// Whether an emulated interface stands in for it until the guest's driver takes over (HVM).
    pub emulated: bool,
    /// Hotplug script; the toolstack does its work by itself, but netback wants one.
    pub script: Option<String>,
    /// Further backend nodes.
    pub extra_backend: Pairs,
    /// Further private nodes.
    pub extra_private: Pairs,
}

/// Which script sets up the host's side, below the private root. Kept apart from `script`, which is always there.
const HOTPLUG_SCRIPT: &str = "hotplug-script";

impl Vif {
    /// Its address.
    pub const fn address(&self) -> DeviceAddress {
        DeviceAddress {
            kind: DeviceKind::Vif,
            domid: self.domid,
            id: self.handle,
            backend_domid: self.backend_domid,
        }
    }

    /// All nodes of the new interface. Leftovers with the same address are removed.
    pub fn create(&self) -> Batch {
        device::create(self, self.address(), &self.extra_private)
    }

    /// The node that names the script which set up the host's side: it is the one to be told of the end.
    pub fn script_node(address: DeviceAddress) -> Path {
        address.private().at(HOTPLUG_SCRIPT)
    }

    /// Forgets what a script said of the interface, before it is called again.
    pub fn forget_hotplug(address: DeviceAddress) -> Batch {
        let mut batch = Batch::new();
        batch.write(address.backend().at("hotplug-status"), "");
        batch.rm(address.backend().at("hotplug-error"));
        batch
    }

    /// Tells the backend that its interface is in place: what a hotplug script would write.
    pub fn connect(address: DeviceAddress) -> Batch {
        let mut batch = Batch::new();
        batch.write(address.backend().at("hotplug-status"), "connected");
        batch
    }

    /// Another bridge, and whether the guest's link is up.
    pub fn change(address: DeviceAddress, bridge: &str, carrier: bool) -> Batch {
        let mut batch = Batch::new();
        batch.write(address.backend().at("bridge"), bridge);
        let disconnect = address.frontend().at("disconnect");
        if carrier {
            batch.rm(disconnect)
        } else {
            batch.write(disconnect, "1")
        };
        batch
    }
}

use Side::{Backend, Frontend, Private};

impl Layout for Vif {
    const TITLE: &'static str = "Network interface (vif)";

    const NODES: &'static [Node<Self>] = &[
        Node::dir(Frontend, "", Rule::Fe, "netfront's side"),
        Node::<Self>::value(Frontend, "backend", "path", |v| text(v.address().backend()), "netfront")
            .owned(Rule::Above),
        Node::value(Frontend, "backend-id", "B", |v| text(v.backend_domid), "netfront: whom to grant pages"),
        Node::value(
            Frontend,
            "state",
            "1",
            |_| text(XenbusState::Initialising),
            "xenbus; driven by the guest",
        ),
        Node::value(Frontend, "handle", "N", |v| text(v.handle), "netfront"),
        Node::value(Frontend, "mac", "aa:bb:cc:dd:ee:ff", |v| text(v.mac), "netfront: the guest's address"),
        Node::value(
            Frontend,
            "trusted",
            "0, or none",
            |v| if v.trusted { None } else { flag(false) },
            "netfront: 0 bounces all data (XSA-403); 1 if there is none",
        ),
        Node::value(
            Frontend,
            "disconnect",
            "1, or none",
            |v| if v.carrier { None } else { flag(true) },
            "Windows netfront: 1 takes the link down",
        ),
        Node::<Self>::value(Frontend, "mtu", "bytes", |v: &Self| v.mtu.and_then(text), "netfront")
            .owned(Rule::FeRo),
        Node::later(
            Frontend,
            "tx-ring-ref, rx-ring-ref, event-channel*",
            "numbers",
            Writer::Guest,
            "netback connects to these",
        ),
        Node::dir(Backend, "", Rule::Be, "netback's side"),
        Node::<Self>::value(Backend, "frontend", "path", |v| text(v.address().frontend()), "netback")
            .owned(Rule::Above)
            .copied(),
        Node::value(Backend, "frontend-id", "D", |v| text(v.domid), "netback: whose pages to map"),
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
            "script",
            "path",
            |v| text(v.script.as_deref().unwrap_or(DEFAULT_SCRIPT)),
            "netback refuses to start without it; run by xl at detach",
        )
        .copied(),
        Node::<Self>::value(Backend, "mac", "aa:bb:cc:dd:ee:ff", |v| text(v.mac), "netback, xl, scripts")
            .copied(),
        Node::<Self>::value(Backend, "bridge", "name", |v| text(&v.bridge), "scripts, xl").copied(),
        Node::<Self>::value(Backend, "handle", "N", |v| text(v.handle), "netback: vifD.N; xl").copied(),
        Node::<Self>::value(
            Backend,
            "type",
            "vif | vif_ioemu",
            |v| text(if v.emulated { "vif_ioemu" } else { "vif" }),
            "xl, scripts",
        )
        .copied(),
        Node::<Self>::value(Backend, "mtu", "bytes", |v| v.mtu.and_then(text), "scripts, xl").copied(),
        Node::value(
            Backend,
            "rate",
            "BYTES,MICROSECONDS",
            |v| v.rate.and_then(|r| text(format_args!("{},{}", r.bytes, r.interval_us))),
            "netback: limit on the guest, read when connecting",
        ),
        Node::value(
            Backend,
            "hotplug-status",
            "(empty), connected",
            |_| text(""),
            "netback connects once it says so",
        ),
        Node::many(Backend, "(others)", "from the caller", |v| v.extra_backend.clone(), "network"),
        Node::later(Backend, "feature-*", "numbers", Writer::Backend, "netfront"),
        Node::later(
            Private,
            "frontend, backend",
            "paths",
            Writer::Toolstack,
            "what to remove, never read elsewhere",
        ),
        Node::value(
            Private,
            HOTPLUG_SCRIPT,
            "path",
            |v| v.script.as_deref().and_then(text),
            "toolstack: the script that is to be told of the end; none when it set up the interface itself",
        ),
    ];

    fn root(&self, side: Side) -> Path {
        device::root(self.address(), side)
    }

    fn root_shown(side: Side) -> &'static str {
        match side {
            Side::Backend => "/local/domain/B/backend/vif/D/N",
            Side::Private => "/libxl/D/device/vif/N",
            _ => "/local/domain/D/device/vif/N",
        }
    }

    fn parties(&self) -> (DomId, DomId) {
        (self.domid, self.backend_domid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_read_strictly() {
        assert_eq!("00:16:3E:0a:0b:0c".parse(), Ok(Mac([0, 0x16, 0x3e, 10, 11, 12])));
        for bad in [
            "",
            "00:16:3e:0a:0b",
            "00:16:3e:0a:0b:0c:0d",
            "0:16:3e:0a:0b:0c",
            "+0:16:3e:0a:0b:0c",
            "é:16:3e:0a:0b:0c",
        ] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn addresses_round_trip(bytes: [u8; 6]) {
            prop_assert_eq!(Mac(bytes).to_string().parse(), Ok(Mac(bytes)));
        }

        #[test]
        fn any_text_is_survived(text: String) {
            let _ = text.parse::<Mac>();
        }
    }
}
