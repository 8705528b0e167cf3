//! Devices: one file per class, over one xenbus handshake.

pub mod frame_buffer;
mod handshake;
pub mod loops;
mod observed;
pub mod qos;
pub mod served;
pub mod sharing;
pub mod storage;
pub mod vbd;
pub mod vif;

use xenstore::Operations;
use xenstore::layout::{DeviceAddress, DeviceKind, XenbusState, devices_of};

use crate::api::{DeviceId, Error};
use crate::core::Core;
use crate::edge::{DomId, HostError};
use crate::ops::plan::Device;
use crate::ops::wait::Waiting;

pub use handshake::{closing, unplug};
pub use observed::Observed;

/// What plugging a device into a domain needs.
pub struct Plug<'a> {
    /// The daemon.
    pub core: &'a Core,
    /// The VM's id.
    pub vm: &'a str,
    /// Its domain.
    pub domid: DomId,
    /// How to wait for the backend.
    pub waiting: Waiting<'a>,
}

/// The domain's number as the store's layouts want it.
pub fn store_domid(domid: DomId) -> xenstore::DomId {
    xenstore::DomId(domid.get())
}

/// The address of a device served by dom0.
fn address(kind: DeviceKind, domid: DomId, id: u32) -> DeviceAddress {
    DeviceAddress { kind, domid: store_domid(domid), id, backend_domid: xenstore::DomId::DOM0 }
}

/// Whether the VM's domain has the device.
///
/// # Errors
/// `Does_not_exist` when there is no such record; when Xen or xenstored does not answer.
pub fn is_plugged(core: &Core, vm: &str, device: &Device) -> Result<bool, Error> {
    match device {
        Device::Vbd(name) => Ok(vbd::state(core, &core.records.device(&DeviceId::new(vm, name))?)?.plugged),
        Device::Vif(name) => Ok(vif::state(core, &core.records.device(&DeviceId::new(vm, name))?)?.plugged),
    }
}

/// Devices of a domain that have been told to go and have closed, and are still there.
///
/// # Errors
/// When xenstored does not answer.
pub fn closed(core: &Core, domid: DomId) -> Result<Vec<DeviceAddress>, Error> {
    let mut store = core.edges.store()?;
    let devices = devices_of(&mut *store, store_domid(domid))?;
    let nodes: Result<Vec<_>, _> =
        devices.iter().flat_map(|d| [Ok(d.backend_state()), d.backend().join("online")]).collect();
    let values = store.read_all(&nodes.map_err(xenstore::Error::from)?)?;
    let gone = |values: &[Option<Vec<u8>>]| {
        values[0].as_ref().is_some_and(|state| XenbusState::from_value(state) == XenbusState::Closed)
            && values[1].as_deref() == Some(b"0")
    };
    Ok(devices.into_iter().zip(values.chunks(2)).filter(|(_, v)| gone(v)).map(|(device, _)| device).collect())
}

/// The VM's domain, if it has the device at the address made from its domid.
fn plugged(core: &Core, vm: &str, address: impl Fn(DomId) -> DeviceAddress) -> Result<Option<DomId>, Error> {
    let Some(domain) = core.domain_of(vm)? else { return Ok(None) };
    let there = core.edges.store()?.exists(&address(domain.domid).private())?;
    Ok(there.then_some(domain.domid))
}

impl From<HostError> for Error {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Missing { class, id, text } => {
                tracing::warn!("{text}");
                Self::does_not_exist(class, id)
            }
            HostError::Unusable { class: "disk", text } => {
                Self::StorageBackendError { code: "DISK_UNUSABLE".to_owned(), params: vec![text] }
            }
            HostError::Unusable { text, .. } => Self::internal(text),
        }
    }
}
