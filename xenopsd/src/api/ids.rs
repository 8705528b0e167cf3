//! Names of objects.

use std::fmt;

use super::decode::DecodeError;
use super::value::{FromValue, ToValue, Value, WireType};

/// A VM's id: by convention its uuid in lower case, but any string.
pub type VmId = String;

/// A task's id: decimal digits in practice, opaque to clients.
pub type TaskId = String;

/// A device of a VM: on the wire the pair `[vm, device]`.
///
/// Conventions for the second half: VBD `xvda`, VIF `0`, PCI `0000:00:1b.0`, VGPU `0`, VUSB `vusb1-2`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId {
    /// The VM it belongs to.
    pub vm: VmId,
    /// Its name within the VM.
    pub device: String,
}

impl DeviceId {
    /// A device of a VM.
    pub fn new(vm: impl Into<String>, device: impl Into<String>) -> Self {
        Self { vm: vm.into(), device: device.into() }
    }
}

/// `vm.device`, the way logs and error texts name it.
impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.vm, self.device)
    }
}

impl WireType for DeviceId {
    fn type_expr() -> String {
        <(String, String)>::type_expr()
    }
}

impl ToValue for DeviceId {
    fn to_value(&self) -> Value {
        Value::Array(vec![self.vm.to_value(), self.device.to_value()])
    }
}

impl FromValue for DeviceId {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let (vm, device) = FromValue::from_value(value)?;
        Ok(Self { vm, device })
    }
}
