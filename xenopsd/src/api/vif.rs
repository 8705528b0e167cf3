//! Virtual network interfaces.

use super::errors::Error;
use super::ids::{DeviceId, TaskId, VmId};
use super::pci::PciAddress;
use super::value::{Dict, Int};

variant! {
    /// What an interface is connected to.
    pub enum Network as "Network.t" derive(Eq) {
        /// A bridge in dom0.
        Local as "Local" (String),
        /// A bridge in a driver domain.
        Remote as "Remote" {
            /// The driver domain's VM.
            vm: String,
            /// Its bridge.
            switch: String,
        },
        /// A virtual function of a physical card.
        Sriov as "Sriov" (PciAddress),
    }
}

variant! {
    /// IPv4 configuration asked of the guest.
    pub enum Ipv4Configuration as "Vif.ipv4_configuration" derive(Eq) {
        /// None asked.
        Unspecified as "Unspecified4",
        /// Fixed.
        Static as "Static4" {
            /// Addresses with prefix lengths.
            addresses: Vec<String>,
            /// Default gateway.
            gateway: Option<String>,
        },
        /// By DHCP.
        Dhcp as "DHCP4",
    }
}

variant! {
    /// IPv6 configuration asked of the guest.
    pub enum Ipv6Configuration as "Vif.ipv6_configuration" derive(Eq) {
        /// None asked.
        Unspecified as "Unspecified6",
        /// Fixed.
        Static as "Static6" {
            /// Addresses with prefix lengths.
            addresses: Vec<String>,
            /// Default gateway.
            gateway: Option<String>,
        },
        /// By router advertisement.
        Autoconf as "Autoconf6",
    }
}

record! {
    /// Addresses a locked interface may send from.
    pub struct LockedAddresses as "Vif.locked_addresses" derive(Eq) {
        /// IPv4 addresses.
        ipv4: Vec<String>,
        /// IPv6 addresses.
        ipv6: Vec<String>,
    }
}

variant! {
    /// What traffic an interface may carry.
    pub enum LockingMode as "Vif.locking_mode" derive(Eq) {
        /// Any.
        Unlocked as "Unlocked",
        /// None.
        Disabled as "Disabled",
        /// Only from its own MAC address and these IP addresses.
        Locked as "Locked" (LockedAddresses),
    }
}

record! {
    /// A provisioning server behind a proxy.
    pub struct PvsServer as "Vif.PVS_proxy.server" derive(Eq) {
        /// Its addresses.
        addresses: Vec<String>,
        /// First UDP port.
        first_port: Int,
        /// Last UDP port.
        last_port: Int,
    }
}

/// A proxy in front of provisioning servers: site, servers, and the bridge it is reached on.
pub type PvsProxy = (String, Vec<PvsServer>, String);

record! {
    /// A virtual network interface of a VM.
    pub struct Vif as "Vif.t" derive(Eq) {
        /// Which device of which VM.
        id: DeviceId = DeviceId::default(),
        /// Its place among the VM's interfaces.
        position: Int = 0,
        /// MAC address; `random` for a random local one, empty for one derived from the VM's id.
        mac: String = "fe:ff:ff:ff:ff:ff".to_owned(),
        /// Whether the cable is in.
        carrier: bool = true,
        /// Largest frame payload in bytes.
        mtu: Int = 1500,
        /// Bandwidth limit: kilobytes per second, and the time slice in microseconds.
        rate: Option<(i64, i64)> = None,
        /// What it is connected to.
        backend: Network = Network::Local("xenbr0".to_owned()),
        /// Extra settings, e.g. `ethtool-tx`.
        other_config: Dict<String> = Dict::new(),
        /// What traffic it may carry.
        locking_mode: LockingMode = LockingMode::Unlocked,
        /// Keys added to the toolstack's private directory in xenstore.
        extra_private_keys: Dict<String> = Dict::new(),
        /// IPv4 configuration asked of the guest.
        ipv4_configuration: Ipv4Configuration = Ipv4Configuration::Unspecified,
        /// IPv6 configuration asked of the guest.
        ipv6_configuration: Ipv6Configuration = Ipv6Configuration::Unspecified,
        /// Provisioning proxy.
        pvs_proxy: Option<PvsProxy> = None,
        /// VLAN tag.
        vlan: Option<i64> = None,
        /// VLAN tags it carries as a trunk.
        trunks: Vec<i64> = Vec::new(),
    }
}

record! {
    /// What is observed of a VIF.
    pub struct VifState as "Vif.state" derive(Eq) {
        /// Whether it will be plugged whenever the VM runs.
        active: bool,
        /// Whether the running VM has it.
        plugged: bool,
        /// Process id of the backend's kernel thread, 0 for none.
        kthread_pid: Int,
        /// Whether the cable is in.
        media_present: bool,
        /// Its network device in dom0.
        device: Option<String>,
        /// Whether the provisioning proxy's rules are in force.
        pvs_rules_active: bool,
    }
}

methods! {
    debug_info as "debug_info", errors Error;

    /// Adds a VIF to a VM, or replaces it. Returns its id.
    "VIF.add" VifAdd -> DeviceId {
        /// The VIF.
        vif: Vif,
    }

    /// Plugs a VIF into a running VM.
    "VIF.plug" VifPlug -> TaskId {
        /// The VIF.
        id: DeviceId,
    }

    /// Unplugs a VIF from a running VM.
    "VIF.unplug" VifUnplug -> TaskId {
        /// The VIF.
        id: DeviceId,
        /// Do not ask the guest.
        force: bool,
    }

    /// Connects a VIF to another network.
    "VIF.move" VifMove -> TaskId {
        /// The VIF.
        id: DeviceId,
        /// The network.
        network: Network,
    }

    /// A VIF's configuration and state.
    "VIF.stat" VifStat -> (Vif, VifState) {
        /// The VIF.
        id: DeviceId,
    }

    /// The VIFs of a VM.
    "VIF.list" VifList -> Vec<(Vif, VifState)> {
        /// The VM.
        id: VmId,
    }

    /// Forgets a VIF that is not plugged.
    "VIF.remove" VifRemove -> () {
        /// The VIF.
        id: DeviceId,
    }

    /// Pulls the cable or puts it in.
    "VIF.set_carrier" VifSetCarrier -> TaskId {
        /// The VIF.
        id: DeviceId,
        /// Whether the cable is in.
        carrier: bool,
    }

    /// Changes what traffic a VIF may carry.
    "VIF.set_locking_mode" VifSetLockingMode -> TaskId {
        /// The VIF.
        id: DeviceId,
        /// What it may carry.
        locking_mode: LockingMode,
    }

    /// Changes the IPv4 configuration asked of the guest.
    "VIF.set_ipv4_configuration" VifSetIpv4Configuration -> TaskId {
        /// The VIF.
        id: DeviceId,
        /// The configuration.
        ipv4_configuration: Ipv4Configuration,
    }

    /// Changes the IPv6 configuration asked of the guest.
    "VIF.set_ipv6_configuration" VifSetIpv6Configuration -> TaskId {
        /// The VIF.
        id: DeviceId,
        /// The configuration.
        ipv6_configuration: Ipv6Configuration,
    }

    /// Sets or removes the provisioning proxy.
    "VIF.set_pvs_proxy" VifSetPvsProxy -> TaskId {
        /// The VIF.
        id: DeviceId,
        /// The proxy; absent removes it.
        proxy: Option<PvsProxy>,
    }

    /// Changes the VLAN tags a VIF carries.
    "VIF.set_trunks" VifSetTrunks -> TaskId {
        /// The VIF.
        id: DeviceId,
        /// VLAN tags.
        trunks: Vec<i64>,
    }
}
