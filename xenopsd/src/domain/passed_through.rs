//! The host's own devices that a VM's records want: PCI functions, virtual GPUs, USB devices.
//!
//! None is given to a guest yet. A VM that wants one is not started without it: a guest that was installed on a passed
//! through controller, or whose work needs the card, is better off with an error than with a machine that lacks it.

use super::VmExecutor;
use crate::api::{Error, Pci, Vgpu, VgpuImplementation, Vusb};
use crate::edge::Physinfo;
use crate::state::DeviceRecord;

impl VmExecutor<'_> {
    /// Whether all the devices of the host's that the VM is to have can be given to it.
    pub(super) fn check_passed_through(&self, host: &Physinfo) -> Result<(), Error> {
        if let [first, ..] = &self.passed_through::<Pci>()?[..] {
            return Err(pci_refusal(first, host));
        }
        let gpus = self.passed_through::<Vgpu>()?;
        if let Some(gpu) = gpus.iter().find(|gpu| gpu.implementation != VgpuImplementation::Empty) {
            return Err(Error::Unimplemented(format!("VGPU {}: a virtual GPU", gpu.id)));
        }
        if let [first, ..] = &self.passed_through::<Vusb>()?[..] {
            let place = format!("port {} of bus {}", first.hostport, first.hostbus);
            return Err(Error::Unimplemented(format!(
                "VUSB {}: a USB device of the host ({place})",
                first.id
            )));
        }
        Ok(())
    }

    fn passed_through<D: DeviceRecord>(&self) -> Result<Vec<D>, Error> {
        self.core.records.devices(self.vm())
    }
}

/// What stands in the way: without an IOMMU the device could read and write all of the host's memory, which no setting
/// here permits; with one, this daemon.
fn pci_refusal(pci: &Pci, host: &Physinfo) -> Error {
    let what = format!("PCI {}: device {} of the host", pci.id, pci.address);
    if host.iommu {
        return Error::Unimplemented(what);
    }
    Error::internal(format!(
        "{what} cannot be given to a VM: Xen has no IOMMU here. Enable VT-d or AMD-Vi in the firmware and do not start Xen \
         with iommu=off; `xl info` then lists hvm_directio. Or remove the device from the VM"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{DeviceId, PciAddress};

    #[test]
    fn a_pci_device_is_refused_for_what_is_missing() {
        let address = PciAddress { bus: 0x1b, function: 3, ..PciAddress::ZERO };
        let id = DeviceId::new("vm", "0000:1b:00.3");
        let pci = Pci { id, position: 0, address, msitranslate: None, power_mgmt: None };
        let with = Physinfo { iommu: true, ..Physinfo::default() };
        let without = Physinfo::default();
        assert!(
            matches!(pci_refusal(&pci, &with), Error::Unimplemented(what) if what.contains("0000:1b:00.3"))
        );
        let text = pci_refusal(&pci, &without).to_string();
        assert!(text.contains("0000:1b:00.3") && text.contains("no IOMMU"), "{text}");
    }
}
