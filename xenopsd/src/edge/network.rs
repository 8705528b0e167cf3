//! Networks as the host's edge sees them.

use std::path::PathBuf;

use ffi::linux::ethtool::Offload;

use super::linux::nftables::Locked;

/// What kind of switch a bridge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BridgeKind {
    /// The kernel's own.
    Linux,
    /// Open vSwitch.
    OpenVswitch,
}

/// What a network interface's host side is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VifSettings {
    /// The bridge it joins.
    pub bridge: String,
    /// In bytes; none leaves the bridge's.
    pub mtu: Option<u32>,
    /// Whether the link is up.
    pub carrier: bool,
    /// What the guest may send; none for anything. Rules that there are already are left by none: they are released
    /// as a [`Resource`](crate::state::journal::Resource).
    pub locked: Option<Locked>,
    /// Offloads that are not to be as they happen to be.
    pub offloads: Vec<(Offload, bool)>,
    /// Whether it is sent what its bridge carries for others, where the bridge can do that.
    pub promiscuous: bool,
    /// The VLAN it is in, on an Open vSwitch.
    pub vlan: Option<u16>,
    /// VLANs that it carries tagged, on an Open vSwitch; empty for all.
    pub trunks: Vec<u16>,
    /// What controllers of an Open vSwitch know it by.
    pub external_ids: Vec<(String, String)>,
    /// A hotplug script puts it into its bridge and gives it its MTU.
    pub scripted: bool,
}

/// Hotplug scripts of network interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VifScripts {
    /// For interfaces that name none of their own; none when we set them up.
    pub default: Option<PathBuf>,
    /// Where those are that an interface may name: they run as root, so a record is not to choose any program of dom0's.
    pub directory: PathBuf,
}

/// What somebody else has done to dom0's networks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetworkNews {
    /// There is a bridge of this name that was not there before.
    Bridge(String),
    /// The rules of locked interfaces were changed or removed.
    RulesChanged,
    /// More has happened than the kernel could tell of.
    Unknown,
}

/// Whoever is to be told of that.
pub type NetworkTell = Box<dyn Fn(NetworkNews) + Send>;
