//! Connecting the host's side of a virtual network interface (`vifD.N`, or the tap of an emulated one) to a bridge.
//!
//! ```text
//!  look up vif and bridge ─► down, address ─► MTU ─► bridge port ─► up, if it has a carrier
//!                                   any refusal: port and state are undone, the error names the step
//! ```
//!
//! What is as it should be is not touched, so that a guest that goes on sending notices a move to another bridge, or a
//! repetition, as little as can be.
//!
//! This is the sequence of Xen's `vif-bridge` hotplug script, without the script. The address must be changed while
//! the interface is down; it joins the bridge before it comes up so that no packet of the guest is handled by dom0.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use ffi::linux::ethtool;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::mac::MacAddr;
use super::netlink::{IfName, Link, LinkChange, Master, Netlink, NetlinkError};
use super::ovsdb::{self, OvsError};
use crate::edge::{BridgeKind, HostError, Note, Offload};
use crate::state::journal::Resource;

/// How an interface ended up connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Index of the interface: the handle for everything later.
    pub ifindex: u32,
    /// Index of the bridge.
    pub bridge_index: u32,
    /// MTU in force.
    pub mtu: u32,
}

/// Why an interface could not be connected.
#[derive(Debug, thiserror::Error)]
pub enum VifError {
    /// The backend has not made the interface.
    #[error(
        "network interface {interface} does not exist: netback has not created it (is xen-netback loaded?)"
    )]
    InterfaceMissing {
        /// The interface looked for.
        interface: IfName,
    },
    /// No such bridge.
    #[error(
        "cannot connect {interface}: bridge {bridge} does not exist; make it with `ip link add {bridge} type bridge` and `ip link set {bridge} up`, or name another in the VM's configuration"
    )]
    BridgeMissing {
        /// The interface to connect.
        interface: IfName,
        /// The bridge looked for.
        bridge: IfName,
    },
    /// Something else has the bridge's name.
    #[error("cannot connect {interface}: {bridge} is no bridge but {}; name a bridge in the VM's configuration", described(kind.as_deref()))]
    NotABridge {
        /// The interface to connect.
        interface: IfName,
        /// The name given as bridge.
        bridge: IfName,
        /// The kind of interface it is; `None` for a plain one.
        kind: Option<String>,
    },
    /// The driver or the bridge does not accept the MTU.
    #[error("interface {interface} cannot have an MTU of {mtu}{}: change the MTU in the VM's configuration", range(*limits))]
    MtuRefused {
        /// The interface.
        interface: String,
        /// The MTU asked for.
        mtu: u32,
        /// What the driver accepts, when the kernel says so.
        limits: Option<(u32, u32)>,
        /// The kernel's answer.
        source: NetlinkError,
    },
    /// Open vSwitch did not do its part.
    #[error(transparent)]
    Ovs(#[from] OvsError),
    /// It cannot be written down that there will be a port.
    #[error("{0}")]
    Note(HostError),
    /// Any other refusal.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

fn described(kind: Option<&str>) -> String {
    kind.map_or_else(|| "a plain interface".to_owned(), |kind| format!("an interface of kind {kind}"))
}

fn range(limits: Option<(u32, u32)>) -> String {
    match limits {
        Some((low, 0)) => format!(" (at least {low})"),
        Some((low, high)) => format!(" (it takes {low} to {high})"),
        None => String::new(),
    }
}

/// How an interface is to be connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The bridge to join.
    pub bridge: &'a IfName,
    /// In bytes; `None` takes the bridge's, so that adding the port does not lower the bridge's own.
    pub mtu: Option<u32>,
    /// Its own address, usually [`MacAddr::BACKEND`].
    pub mac: MacAddr,
    /// Whether it is up: nothing comes through one that is not.
    pub up: bool,
    /// What only an Open vSwitch can do.
    pub switch: Switch<'a>,
}

/// An Open vSwitch, and the port that the interface is to be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Switch<'a> {
    /// Where its database server listens.
    pub socket: &'a Path,
    /// [`ovsdb::Port::vlan`].
    pub vlan: Option<u16>,
    /// [`ovsdb::Port::trunks`].
    pub trunks: &'a [u16],
    /// [`ovsdb::Port::external_ids`].
    pub external_ids: &'a [(String, String)],
}

/// Plugs `interface` into its bridge, or out of another one into that. Connecting an interface that is already connected
/// gives the same result.
///
/// # Errors
///
/// [`VifError`]; the interface is then down and in no bridge.
pub fn connect_vif(
    netlink: &mut Netlink,
    interface: &IfName,
    wanted: &Wanted<'_>,
    note: &mut Note<'_>,
) -> Result<Connection, VifError> {
    let bridge = wanted.bridge;
    let vif = netlink
        .link_by_name(interface)?
        .ok_or_else(|| VifError::InterfaceMissing { interface: interface.clone() })?;
    let bridge_link = netlink
        .link_by_name(bridge)?
        .ok_or_else(|| VifError::BridgeMissing { interface: interface.clone(), bridge: bridge.clone() })?;
    if bridge_link.bridge_kind().is_none() {
        return Err(VifError::NotABridge {
            interface: interface.clone(),
            bridge: bridge.clone(),
            kind: bridge_link.kind,
        });
    }
    let mtu = wanted.mtu.unwrap_or(bridge_link.mtu);
    match plug(netlink, &vif, mtu, wanted)
        .and_then(|()| join(netlink, interface, &vif, &bridge_link, wanted, note))
    {
        Ok(()) => Ok(Connection { ifindex: vif.index, bridge_index: bridge_link.index, mtu }),
        Err(error) => {
            // The first refusal is the one to report; an interface that is gone needs no undo, and Open vSwitch keeps none
            // that it refused.
            let _ = disconnect_vif(netlink, &vif);
            let _ = netlink.change(&vif, &LinkChange { up: Some(false), ..LinkChange::default() });
            Err(error)
        }
    }
}

/// Turns offloads on and off. One that the interface or the kernel does not have is left alone, with a word in the log.
///
/// # Errors
///
/// The kernel's errno.
pub fn set_offloads(interface: &IfName, offloads: &[(Offload, bool)]) -> io::Result<()> {
    if offloads.is_empty() {
        return Ok(());
    }
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    for (offload, on) in offloads {
        match ethtool::set(socket.as_fd(), interface.as_str(), *offload, *on) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                tracing::info!(%interface, ?offload, "this kernel cannot switch the offload");
            }
            other => other?,
        }
    }
    Ok(())
}

/// Whether an interface has an offload.
///
/// # Errors
///
/// The kernel's errno; `EOPNOTSUPP` when there is no such offload.
pub fn offload(interface: &IfName, offload: Offload) -> io::Result<bool> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    ethtool::get(socket.as_fd(), interface.as_str(), offload)
}

/// Where a kernel with XenServer's bridge takes whether a port is sent everything; others have no such thing.
fn promiscuity(interface: &IfName) -> PathBuf {
    PathBuf::from(format!("/sys/class/net/{interface}/brport/promisc"))
}

/// Has a port of a bridge sent what the bridge carries for others, or not.
///
/// # Errors
/// The kernel's; one that cannot is only told of in the log.
pub fn set_promiscuous(interface: &IfName, on: bool) -> io::Result<()> {
    match fs::File::options().write(true).open(promiscuity(interface)) {
        Ok(mut file) => file.write_all(if on { b"1" } else { b"0" }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if on {
                tracing::warn!(%interface, "this kernel's bridge has no promiscuous ports: the guest sees what is flooded only");
            }
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Takes an interface out of its bridge and brings it down. An interface that is gone is a success.
///
/// # Errors
///
/// [`NetlinkError`].
pub fn disconnect_vif(netlink: &mut Netlink, vif: &Link) -> Result<(), NetlinkError> {
    let change = LinkChange { up: Some(false), master: Some(Master::None), ..LinkChange::default() };
    match netlink.change(vif, &change) {
        Err(NetlinkError::Refused { errno: Errno::ENODEV, .. }) => Ok(()),
        result => result,
    }
}

fn plug(netlink: &mut Netlink, vif: &Link, mtu: u32, wanted: &Wanted<'_>) -> Result<(), VifError> {
    let readdress = vif.mac != Some(wanted.mac);
    if vif.is_up() && (readdress || !wanted.up) {
        netlink.change(vif, &LinkChange { up: Some(false), ..LinkChange::default() })?;
    }
    if readdress {
        netlink.change(vif, &LinkChange { address: Some(wanted.mac), ..LinkChange::default() })?;
    }
    if vif.mtu != mtu {
        netlink.change(vif, &LinkChange { mtu: Some(mtu), ..LinkChange::default() }).map_err(|source| {
            match source {
                NetlinkError::Refused { errno: Errno::EINVAL | Errno::ERANGE, .. } => {
                    VifError::MtuRefused { interface: vif.name.clone(), mtu, limits: vif.mtu_range, source }
                }
                other => VifError::Netlink(other),
            }
        })?;
    }
    Ok(())
}

/// Into its bridge, out of another, and up.
fn join(
    netlink: &mut Netlink,
    interface: &IfName,
    vif: &Link,
    bridge: &Link,
    wanted: &Wanted<'_>,
    note: &mut Note<'_>,
) -> Result<(), VifError> {
    let master = vif.master.map(|index| netlink.link_by_index(index)).transpose()?.flatten();
    let of_switch = |link: &Link| link.bridge_kind() == Some(BridgeKind::OpenVswitch);
    let in_switch = master.as_ref().is_some_and(of_switch);
    if of_switch(bridge) {
        if master.is_some() && !in_switch {
            netlink.change(vif, &LinkChange { master: Some(Master::None), ..LinkChange::default() })?;
        }
        note(Resource::SwitchPort(vif.name.clone())).map_err(VifError::Note)?;
        let Switch { socket, vlan, trunks, external_ids } = wanted.switch;
        let port = ovsdb::Port { interface, bridge: wanted.bridge, vlan, trunks, external_ids };
        ovsdb::add_port(socket, &port)?;
    } else {
        if in_switch {
            ovsdb::remove_port(wanted.switch.socket, interface)?;
        }
        if vif.master != Some(bridge.index) {
            let port = LinkChange { master: Some(Master::Index(bridge.index)), ..LinkChange::default() };
            netlink.change(vif, &port)?;
        }
    }
    // One that is up is left alone.
    let is_up = netlink.link_by_index(vif.index)?.is_some_and(|now| now.is_up());
    if wanted.up && !is_up {
        netlink.change(vif, &LinkChange { up: Some(true), ..LinkChange::default() })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::netlink::tests::{create, in_namespace};
    use super::*;

    fn name(text: &str) -> IfName {
        text.parse().unwrap()
    }

    fn wanted(bridge: &IfName, mtu: Option<u32>, up: bool) -> Wanted<'_> {
        let socket = Path::new("/nonexistent");
        let switch = Switch { socket, vlan: None, trunks: &[], external_ids: &[] };
        Wanted { bridge, mtu, mac: MacAddr::BACKEND, up, switch }
    }

    fn connect(netlink: &mut Netlink, mtu: Option<u32>, bridge: &str) -> Result<Connection, VifError> {
        connect_vif(netlink, &name("vif1.0"), &wanted(&name(bridge), mtu, true), &mut |_| Ok(()))
    }

    #[test]
    fn a_connected_vif_moves_to_another_bridge_and_loses_its_carrier() {
        in_namespace(|netlink| {
            let Some(_first) = create(netlink, "xenbr0", "bridge") else { return };
            let Some(second) = create(netlink, "xenbr1", "bridge") else { return };
            let Some(vif) = create(netlink, "vif1.0", "veth") else { return };
            connect(netlink, None, "xenbr0").unwrap();
            connect(netlink, None, "xenbr1").unwrap();
            let link = netlink.link_by_index(vif.index).unwrap().expect("there");
            assert_eq!((link.master, link.is_up()), (Some(second.index), true));
            for up in [false, true] {
                let bridge = name("xenbr1");
                let wanted = wanted(&bridge, None, up);
                connect_vif(netlink, &name("vif1.0"), &wanted, &mut |_| Ok(())).unwrap();
                let link = netlink.link_by_index(vif.index).unwrap().expect("there");
                assert_eq!((link.master, link.is_up()), (Some(second.index), up));
            }
        });
    }

    #[test]
    fn a_vif_joins_its_bridge_with_the_bridges_mtu() {
        in_namespace(|netlink| {
            let Some(bridge) = create(netlink, "xenbr0", "bridge") else { return };
            let Some(vif) = create(netlink, "vif1.0", "veth") else { return };
            netlink.change(&bridge, &LinkChange { mtu: Some(1450), ..LinkChange::default() }).unwrap();
            for _ in 0..2 {
                let connection = connect(netlink, None, "xenbr0").unwrap();
                let expected = Connection { ifindex: vif.index, bridge_index: bridge.index, mtu: 1450 };
                assert_eq!(connection, expected);
            }
            let link = netlink.link_by_index(vif.index).unwrap().expect("there");
            assert!(link.is_up());
            assert_eq!((link.mac, link.mtu, link.master), (Some(MacAddr::BACKEND), 1450, Some(bridge.index)));
            disconnect_vif(netlink, &link).unwrap();
            assert_eq!(netlink.link_by_index(vif.index).unwrap().expect("there").master, None);
        });
    }

    #[test]
    fn each_mistake_has_its_own_error_and_leaves_the_vif_unplugged() {
        in_namespace(|netlink| {
            let Some(_bridge) = create(netlink, "xenbr0", "bridge") else { return };
            assert!(matches!(connect(netlink, None, "xenbr0"), Err(VifError::InterfaceMissing { .. })));
            let Some(vif) = create(netlink, "vif1.0", "veth") else { return };
            assert!(matches!(connect(netlink, None, "xenbr9"), Err(VifError::BridgeMissing { .. })));
            let plain = connect(netlink, None, "lo").unwrap_err();
            assert!(matches!(plain, VifError::NotABridge { kind: None, .. }), "{plain}");
            let refused = connect(netlink, Some(70000), "xenbr0").unwrap_err();
            assert!(matches!(refused, VifError::MtuRefused { mtu: 70000, limits: Some(_), .. }), "{refused}");
            let link = netlink.link_by_index(vif.index).unwrap().expect("there");
            assert!(!link.is_up() && link.master.is_none());
        });
    }
}
