//! What the daemon itself must remember of a VM beyond its configuration: `extra/<uuid>`, in the form the model keeps
//! it, so that it can be handed to and taken from a peer with the VM's metadata.

use crate::api::value::{FromValue, ToValue, Value};
use crate::api::{BuilderInfo, DecodeError, Dict, Int};

/// The version written into a VM's private state when it starts: the model's newest ("naples").
pub const VERSION: Int = 2;

record! {
    /// The private state of a VM. A missing file, or a missing member, is the default. Members this daemon has no use
    /// for are in the file and in metadata as a peer wrote them, without being listed here.
    pub struct VmExtra as "VmExtra.persistent_t" {
        /// The version of this record with which the VM was started; 0 for a VM from before versions.
        version: Int = 0,
        /// How the domain was built, in the model's own words; only passed on.
        build_info: Option<Value> = None,
        /// What kind of guest it was started as, for a resume: the configuration may have been changed since.
        ty: Option<BuilderInfo> = None,
        /// When it was last started, in seconds since 1970.
        last_start_time: f64 = 0.0,
        /// Platform flag `nomigrate` when it was started.
        nomigrate: bool = false,
        /// Platform flag `nested-virt` when it was started.
        nested_virt: bool = false,
        /// Device model profile it was started with.
        profile: Option<String> = None,
        /// Device model profile it was first started with.
        original_profile: Option<String> = None,
        /// Memory it had when it was suspended, in bytes; 0 when it is not suspended.
        suspend_memory_bytes: i64 = 0,
        /// As in the configuration when it was started.
        pci_msitranslate: bool = false,
        /// As in the configuration when it was started.
        pci_power_mgmt: bool = false,
        /// Whether paravirtual drivers were seen in the guest.
        pv_drivers_detected: bool = false,
        /// Platform flags when it was started.
        platformdata: Dict<String> = Dict::new(),
    }
}

/// The file: the record as its only member.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Stored {
    pub(super) persistent: VmExtra,
}

impl Stored {
    /// The name of the member.
    pub(super) const MEMBER: &'static str = "persistent";
}

impl ToValue for Stored {
    fn to_value(&self) -> Value {
        Value::Dict(vec![(Self::MEMBER.into(), self.persistent.to_value())])
    }
}

impl FromValue for Stored {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let persistent = value.get(Self::MEMBER).map(VmExtra::from_value).transpose()?;
        Ok(Self { persistent: persistent.unwrap_or_default() })
    }
}

impl VmExtra {
    /// Whether the VM has an image to resume from and no domain: the power state `Suspended`.
    pub fn is_suspended(&self) -> bool {
        self.suspend_memory_bytes != 0
    }
}
