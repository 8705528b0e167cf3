//! Change notifications: which objects to look at again.

use super::errors::Error;
use super::ids::{DeviceId, TaskId, VmId};
use super::value::Int;

variant! {
    /// An object that changes.
    pub enum DynamicId as "Dynamic.id" derive(Eq, Hash, PartialOrd, Ord) {
        /// A VM.
        Vm as "Vm" (VmId),
        /// A VBD.
        Vbd as "Vbd" (DeviceId),
        /// A VIF.
        Vif as "Vif" (DeviceId),
        /// A PCI device.
        Pci as "Pci" (DeviceId),
        /// A virtual GPU.
        Vgpu as "Vgpu" (DeviceId),
        /// A USB device.
        Vusb as "Vusb" (DeviceId),
        /// A task.
        Task as "Task" (TaskId),
    }
}

/// A barrier's id, and the objects that had changed when it was injected.
pub type Barrier = (Int, Vec<DynamicId>);

/// Barriers that came due, objects that changed, and the id to ask from next time.
pub type Updates = (Vec<Barrier>, Vec<DynamicId>, Int);

methods! {
    debug_info as "debug_info", errors Error;

    /// Waits until something has changed since an event, and says what. Returns nothing new on timeout.
    "UPDATES.get" UpdatesGet -> Updates {
        /// The event; absent means from the beginning.
        last_id: Option<Int>,
        /// Seconds to wait; absent waits for ever.
        timeout: Option<Int>,
    }

    /// The latest event's id.
    "UPDATES.last_id" UpdatesLastId -> Int {}

    /// Puts a mark into the stream of events: who sees it has seen all earlier events of the VM and its devices.
    "UPDATES.inject_barrier" UpdatesInjectBarrier -> () {
        /// The VM.
        vm_id: VmId,
        /// The mark.
        id: Int,
    }

    /// Takes a mark out of the stream again.
    "UPDATES.remove_barrier" UpdatesRemoveBarrier -> () {
        /// The mark.
        id: Int,
    }

    /// Reports a VM and its devices as changed.
    "UPDATES.refresh_vm" UpdatesRefreshVm -> () {
        /// The VM.
        id: VmId,
    }
}
