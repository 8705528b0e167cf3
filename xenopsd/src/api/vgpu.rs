//! Virtual GPUs.

use super::errors::Error;
use super::ids::{DeviceId, VmId};
use super::pci::PciAddress;
use super::value::Int;

record! {
    /// A mediated share of an Intel graphics device.
    pub struct GvtG as "Vgpu.gvt_g" derive(Eq) {
        /// Host device, as older peers send it; newer ones put it beside the implementation.
        physical_pci_address: Option<PciAddress>,
        /// Mappable graphics memory in MiB.
        low_gm_sz: i64,
        /// Other graphics memory in MiB.
        high_gm_sz: i64,
        /// Fence registers.
        fence_sz: i64,
        /// Configuration file of the monitor shown.
        monitor_config_file: Option<String>,
    }
}

record! {
    /// A mediated share of an NVIDIA device.
    pub struct Nvidia as "Vgpu.nvidia" derive(Eq) {
        /// Host device, as older peers send it; newer ones put it beside the implementation.
        physical_pci_address: Option<PciAddress>,
        /// Configuration file.
        config_file: Option<String>,
        /// Where the guest sees it.
        virtual_pci_address: PciAddress = PciAddress { dev: 11, ..PciAddress::ZERO },
        /// Type of share.
        type_id: Option<String>,
        /// Its uuid.
        uuid: Option<String>,
        /// Its class.
        vclass: Option<String>,
        /// Extra arguments for its helper process.
        extra_args: String = String::new(),
    }
}

record! {
    /// A virtual function of an AMD device.
    pub struct MxGpu as "Vgpu.mxgpu" derive(Eq) {
        /// The device whose function it is.
        physical_function: Option<PciAddress>,
        /// Functions the device is split into.
        vgpus_per_pgpu: i64,
        /// Frame buffer in bytes.
        framebufferbytes: i64,
    }
}

variant! {
    /// How a virtual GPU is made.
    pub enum VgpuImplementation as "Vgpu.implementation" derive(Eq) {
        /// A mediated share of an Intel device.
        GvtG as "GVT_g" (GvtG),
        /// A mediated share of an NVIDIA device.
        Nvidia as "Nvidia" (Nvidia),
        /// A virtual function of an AMD device.
        MxGpu as "MxGPU" (MxGpu),
        /// Not at all.
        Empty as "Empty",
    }
    otherwise Empty
}

record! {
    /// A virtual GPU of a VM.
    pub struct Vgpu as "Vgpu.t" derive(Eq) {
        /// Which device of which VM.
        id: DeviceId = DeviceId::default(),
        /// Its place among the VM's virtual GPUs.
        position: Int = 0,
        /// Where the guest sees it.
        virtual_pci_address: Option<PciAddress> = None,
        /// Host device.
        physical_pci_address: PciAddress = PciAddress::ZERO,
        /// How it is made.
        implementation: VgpuImplementation = VgpuImplementation::Empty,
    }
}

record! {
    /// What is observed of a virtual GPU.
    pub struct VgpuState as "Vgpu.state" derive(Copy, Eq) {
        /// Whether the VM will have it whenever it runs.
        active: bool,
        /// Whether the running VM has it.
        plugged: bool,
        /// Process that emulates it.
        emulator_pid: Option<Int>,
    }
}

methods! {
    debug_info as "debug_info", errors Error;

    /// Adds a virtual GPU to a VM, or replaces it. Returns its id.
    "VGPU.add" VgpuAdd -> DeviceId {
        /// The virtual GPU.
        vgpu: Vgpu,
    }

    /// A virtual GPU's configuration and state.
    "VGPU.stat" VgpuStat -> (Vgpu, VgpuState) {
        /// The virtual GPU.
        id: DeviceId,
    }

    /// The virtual GPUs of a VM.
    "VGPU.list" VgpuList -> Vec<(Vgpu, VgpuState)> {
        /// The VM.
        id: VmId,
    }

    /// Forgets a virtual GPU that is not plugged.
    "VGPU.remove" VgpuRemove -> () {
        /// The virtual GPU.
        id: DeviceId,
    }
}
