//! The device classes that have records: one table, and one trait that ties a record's type to its line.

use crate::api::value::{FromValue, ToValue};
use crate::api::{DeviceId, DynamicId, Error, Int, Pci, Vbd, Vgpu, Vif, Vusb};

/// Longest device name, in bytes: names become part of file names.
const LONGEST_NAME: usize = 64;

/// How a class of devices is stored and announced.
#[derive(Debug)]
pub struct DeviceClass {
    /// What the contract calls it, as in `Does_not_exist("VBD", …)`.
    pub name: &'static str,
    /// The directory that has a directory per VM.
    pub(super) tree: &'static str,
    /// What the names of its files begin with.
    pub(super) prefix: &'static str,
    /// How a change of one of its devices is announced.
    pub event: fn(DeviceId) -> DynamicId,
}

const VBD: DeviceClass = DeviceClass { name: "VBD", tree: "VM", prefix: "vbd.", event: DynamicId::Vbd };
const VIF: DeviceClass = DeviceClass { name: "VIF", tree: "VM", prefix: "vif.", event: DynamicId::Vif };
const PCI: DeviceClass = DeviceClass { name: "PCI", tree: "PCI", prefix: "pci.", event: DynamicId::Pci };
const VGPU: DeviceClass = DeviceClass { name: "VGPU", tree: "VM", prefix: "vgpu.", event: DynamicId::Vgpu };
const VUSB: DeviceClass = DeviceClass { name: "VUSB", tree: "VM", prefix: "vusb.", event: DynamicId::Vusb };

/// Every class.
pub const CLASSES: [&DeviceClass; 5] = [&VBD, &VIF, &PCI, &VGPU, &VUSB];

impl DeviceClass {
    /// Whether a device may have this name.
    ///
    /// # Errors
    /// `Internal_error` for a name that cannot be part of a file's.
    pub fn check_name(&self, device: &str) -> Result<(), Error> {
        self.file(device).map(drop)
    }

    /// The file of a device.
    ///
    /// # Errors
    /// As [`DeviceClass::check_name`].
    pub(super) fn file(&self, device: &str) -> Result<String, Error> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':');
        if device.is_empty() || device.len() > LONGEST_NAME || !device.chars().all(fine) {
            return Err(Error::internal(format!(
                "{} name {device:?} must be 1 to {LONGEST_NAME} letters, digits, '.', '_', '-' or ':'",
                self.name
            )));
        }
        Ok(format!("{}{device}", self.prefix))
    }
}

/// A device's record.
pub trait DeviceRecord: ToValue + FromValue {
    /// Its class.
    const CLASS: &'static DeviceClass;

    /// Which device of which VM.
    fn id(&self) -> &DeviceId;

    /// As [`DeviceRecord::id`], to be changed.
    fn id_mut(&mut self) -> &mut DeviceId;

    /// Its place among the VM's devices of its class.
    fn position(&self) -> Int;
}

macro_rules! device_records {
    ($($record:ident: $class:ident, |$device:ident| $position:expr;)+) => {$(
        impl DeviceRecord for $record {
            const CLASS: &'static DeviceClass = &$class;
            fn id(&self) -> &DeviceId {
                &self.id
            }
            fn id_mut(&mut self) -> &mut DeviceId {
                &mut self.id
            }
            fn position(&self) -> Int {
                let $device = self;
                $position
            }
        }
    )+};
}

device_records! {
    Vbd: VBD, |disk| disk_number(disk);
    Vif: VIF, |interface| interface.position;
    Pci: PCI, |function| function.position;
    Vgpu: VGPU, |gpu| gpu.position;
    Vusb: VUSB, |_usb| 0;
}

/// Disks are in the order of their device numbers, those without one last.
fn disk_number(disk: &Vbd) -> Int {
    let number = disk.position.as_ref().and_then(|p| p.to_xenstore().ok());
    number.and_then(|n| Int::try_from(n).ok()).unwrap_or(Int::MAX)
}
