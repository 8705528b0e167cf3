//! Devices: one file per class, over one xenbus handshake.

mod handshake;
pub mod vbd;
pub mod vif;

use xenstore::Operations;
use xenstore::layout::DeviceAddress;

use crate::api::Error;
use crate::core::Core;
use crate::edge::{DomId, HostError};
use crate::ops::wait::Waiting;

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

/// The VM's domain, if it has the device at the address made from its domid.
fn plugged(
    core: &Core,
    vm: &str,
    address: impl Fn(xenstore::DomId) -> DeviceAddress,
) -> Result<Option<DomId>, Error> {
    let Some(domain) = core.domain_of(vm)? else { return Ok(None) };
    let there = core.edges.store()?.exists(&address(store_domid(domain.domid)).private())?;
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
