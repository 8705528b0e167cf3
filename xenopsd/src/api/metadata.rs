//! What `VM.export_metadata` and `VM.import_metadata` carry as JSON text: a VM with its devices.

use super::pci::Pci;
use super::vbd::Vbd;
use super::vgpu::Vgpu;
use super::vif::Vif;
use super::vm::Vm;
use super::vusb::Vusb;

record! {
    /// A VM and its devices.
    pub struct Metadata as "Metadata.t" {
        /// The VM.
        vm: Vm,
        /// Its VBDs.
        vbds: Vec<Vbd> = Vec::new(),
        /// Its VIFs.
        vifs: Vec<Vif> = Vec::new(),
        /// Its PCI devices.
        pcis: Vec<Pci> = Vec::new(),
        /// Its virtual GPUs.
        vgpus: Vec<Vgpu> = Vec::new(),
        /// Its USB devices.
        vusbs: Vec<Vusb> = Vec::new(),
        /// Private state of the daemon that exported it, as JSON text.
        domains: Option<String> = None,
    }
}
