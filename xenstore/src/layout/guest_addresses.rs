//! Addresses that a guest's agent is asked to give a network interface.
//!
//! The agent reads them when they change and says in `error-code` and `error-msg` what came of it: the guest's words.

use super::domain::{domain_path, libxl_path};
use super::table::{Layout, Node, Rule, Side, Writer, write_side};
use super::{Mac, text};
use crate::batch::Batch;
use crate::path::Path;
use crate::perms::DomId;

/// How an interface is to come by its addresses of a family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// As the guest likes.
    Nothing,
    /// An address of its own, with the length of its prefix, and a gateway.
    Fixed(String, Option<String>),
    /// From the network: DHCP, or router advertisements.
    Automatic,
}

impl Asked {
    const fn number(&self) -> u8 {
        match self {
            Self::Nothing => 0,
            Self::Fixed(..) => 1,
            Self::Automatic => 2,
        }
    }

    fn address(&self) -> Option<Vec<u8>> {
        if let Self::Fixed(address, _) = self { text(address) } else { None }
    }

    fn gateway(&self) -> Option<Vec<u8>> {
        if let Self::Fixed(_, Some(gateway)) = self { text(gateway) } else { None }
    }
}

/// What the agent of a guest is asked to do with an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestAddresses {
    /// The guest.
    pub domid: DomId,
    /// The interface's index.
    pub handle: u32,
    /// Its address, by which the agent finds it.
    pub mac: Mac,
    /// IPv4.
    pub ipv4: Asked,
    /// IPv6.
    pub ipv6: Asked,
}

impl GuestAddresses {
    /// All nodes, in place of what was asked before and of what the agent said of that.
    pub fn ask(&self) -> Batch {
        let mut batch = Batch::new();
        batch.rm(self.settings());
        write_side(self, Side::Domain, &mut batch);
        batch
    }

    /// Their directory.
    pub fn settings(&self) -> Path {
        self.root(Side::Domain).at("static-ip-setting")
    }

    /// Whether anything is asked.
    pub fn is_something(&self) -> bool {
        self.ipv4 != Asked::Nothing || self.ipv6 != Asked::Nothing
    }

    /// The directory of an interface that these nodes are in.
    pub(super) fn directory(domid: DomId, handle: u32) -> Path {
        domain_path(domid).at(format!("xenserver/device/vif/{handle}"))
    }
}

impl Layout for GuestAddresses {
    const TITLE: &'static str = "Addresses asked of the guest's agent";

    const NODES: &'static [Node<Self>] = &[
        Node::dir(Side::Domain, "", Rule::Rw, "there when an address is asked for"),
        Node::value(Side::Domain, "static-ip-setting/mac", "aa:bb:cc:dd:ee:ff", |a| text(a.mac), "agent"),
        Node::value(
            Side::Domain,
            "static-ip-setting/error-code",
            "0",
            |_| text(0),
            "the agent says how it went",
        ),
        Node::value(
            Side::Domain,
            "static-ip-setting/error-msg",
            "(empty)",
            |_| text(""),
            "the same for people",
        ),
        Node::value(Side::Domain, "static-ip-setting/address", "10.0.0.2/24", |a| a.ipv4.address(), "agent"),
        Node::value(Side::Domain, "static-ip-setting/gateway", "10.0.0.1", |a| a.ipv4.gateway(), "agent"),
        Node::value(Side::Domain, "static-ip-setting/address6", "fd00::2/64", |a| a.ipv6.address(), "agent"),
        Node::value(Side::Domain, "static-ip-setting/gateway6", "fd00::1", |a| a.ipv6.gateway(), "agent"),
        Node::value(
            Side::Domain,
            "static-ip-setting/enabled",
            "0 | 1 | 2",
            |a| text(a.ipv4.number()),
            "agent: nothing, the address here, DHCP",
        ),
        Node::value(
            Side::Domain,
            "static-ip-setting/enabled6",
            "0 | 1 | 2",
            |a| text(a.ipv6.number()),
            "agent: nothing, the address here, router advertisements",
        ),
        Node::later(Side::Domain, "…", "anything", Writer::Guest, "agents keep more here"),
    ];

    fn root(&self, side: Side) -> Path {
        if side == Side::Private { libxl_path(self.domid) } else { Self::directory(self.domid, self.handle) }
    }

    fn root_shown(_: Side) -> &'static str {
        "/local/domain/D/xenserver/device/vif/N"
    }

    fn parties(&self) -> (DomId, DomId) {
        (self.domid, DomId::DOM0)
    }
}
