//! The RPC contract as types: every method, record, variant and error, with its exact encoding. No I/O.
//!
//! ```text
//!   method name + params (Values) --Call::decode--> Call::VmStart(VmStart { id, paused, .. })
//!   Method::Result --ToValue--> Value --rpc--> bytes
//! ```
//!
//! One file per noun holds its records and its calls, written in the declarations of `macros.rs`, which also
//! yield the description that [`schema::document`] prints as `docs/contract.md`.

#[macro_use]
mod macros;

pub mod call;
pub mod decode;
pub mod device_number;
pub mod errors;
pub mod explain;
pub mod host;
pub mod ids;
pub mod metadata;
pub mod observer;
pub mod pci;
pub mod query;
pub mod schema;
pub mod task;
pub mod updates;
pub mod value;
pub mod vbd;
pub mod vgpu;
pub mod vif;
pub mod vm;
pub mod vusb;

pub use call::{Call, CallError, Method};
pub use decode::DecodeError;
pub use device_number::{BusType, DeviceNumber};
pub use errors::Error;
pub use explain::*;
pub use host::*;
pub use ids::{DeviceId, TaskId, VmId};
pub use metadata::Metadata;
pub use observer::*;
pub use pci::*;
pub use query::*;
pub use task::*;
pub use updates::*;
pub use value::{Dict, FromValue, Int, Text, ToValue, Value, WireType};
pub use vbd::*;
pub use vgpu::*;
pub use vif::*;
pub use vm::*;
pub use vusb::*;
