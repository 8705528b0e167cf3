//! PCI devices passed through to VMs.

use std::fmt;

use super::errors::Error;
use super::ids::{DeviceId, VmId};
use super::value::Int;

record! {
    /// Where a PCI device is.
    pub struct PciAddress as "Pci.address" derive(Copy, Eq, Hash, PartialOrd, Ord) {
        /// Segment.
        domain: Int,
        /// Bus.
        bus: Int,
        /// Device.
        dev: Int,
        /// Function.
        function as "fn": Int,
    }
}

impl PciAddress {
    /// The address with every part zero.
    pub const ZERO: Self = Self { domain: 0, bus: 0, dev: 0, function: 0 };
}

/// `0000:00:1b.0`.
impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.dev, self.function)
    }
}

record! {
    /// A PCI device of a VM.
    pub struct Pci as "Pci.t" derive(Eq) {
        /// Which device of which VM.
        id: DeviceId,
        /// Its place among the VM's PCI devices.
        position: Int,
        /// Where it is on the host.
        address: PciAddress,
        /// Overrides the VM's setting.
        msitranslate: Option<bool>,
        /// Overrides the VM's setting.
        power_mgmt: Option<bool>,
    }
}

record! {
    /// What is observed of a PCI device.
    pub struct PciState as "Pci.state" derive(Copy, Eq) {
        /// Whether the running VM has it.
        plugged: bool,
    }
}

methods! {
    debug_info as "debug_info", errors Error;

    /// Adds a PCI device to a VM, or replaces it. Returns its id.
    "PCI.add" PciAdd -> DeviceId {
        /// The device.
        pci: Pci,
    }

    /// Forgets a PCI device that is not plugged.
    "PCI.remove" PciRemove -> () {
        /// The device.
        id: DeviceId,
    }

    /// A PCI device's configuration and state.
    "PCI.stat" PciStat -> (Pci, PciState) {
        /// The device.
        id: DeviceId,
    }

    /// The PCI devices of a VM.
    "PCI.list" PciList -> Vec<(Pci, PciState)> {
        /// The VM.
        id: VmId,
    }

    /// Gives a PCI device back that the hypervisor keeps in quarantine.
    "PCI.dequarantine" PciDequarantine -> () {
        /// The device.
        pci_addr: PciAddress,
    }
}
