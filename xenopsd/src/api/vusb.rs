//! USB devices passed through to VMs.

use super::errors::Error;
use super::ids::{DeviceId, TaskId, VmId};

record! {
    /// A USB device of a VM.
    pub struct Vusb as "Vusb.t" {
        /// Which device of which VM.
        id: DeviceId,
        /// Bus on the host.
        hostbus: String,
        /// Port on that bus, e.g. `1.2`.
        hostport: String,
        /// USB version, e.g. `2.00`.
        version: String,
        /// Device path in dom0.
        path: String,
        /// Megabits per second.
        speed: f64,
    }
}

record! {
    /// What is observed of a USB device.
    pub struct VusbState as "Vusb.state" derive(Copy, Eq) {
        /// Whether the running VM has it.
        plugged: bool,
    }
}

methods! {
    debug_info as "debug_info", errors Error;

    /// Adds a USB device to a VM, or replaces it. Returns its id.
    "VUSB.add" VusbAdd -> DeviceId {
        /// The device.
        vusb: Vusb,
    }

    /// Plugs a USB device into a running VM.
    "VUSB.plug" VusbPlug -> TaskId {
        /// The device.
        id: DeviceId,
    }

    /// Unplugs a USB device from a running VM.
    "VUSB.unplug" VusbUnplug -> TaskId {
        /// The device.
        id: DeviceId,
    }

    /// A USB device's configuration and state.
    "VUSB.stat" VusbStat -> (Vusb, VusbState) {
        /// The device.
        id: DeviceId,
    }

    /// The USB devices of a VM.
    "VUSB.list" VusbList -> Vec<(Vusb, VusbState)> {
        /// The VM.
        id: VmId,
    }

    /// Forgets a USB device that is not plugged.
    "VUSB.remove" VusbRemove -> () {
        /// The device.
        id: DeviceId,
    }
}
