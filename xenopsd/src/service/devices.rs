//! Device calls: the same for every class.

use std::sync::Arc;

use crate::api::{DeviceId, Disk, Error, PvsProxy, Vbd, Vif};
use crate::core::{Core, Operation, VifWish, Wish};
use crate::device::Observed;
use crate::ops::plan::{Device, Unplugging};
use crate::state::DeviceRecord;

pub(super) fn add<D: Observed>(core: &Core, device: &D) -> Result<DeviceId, Error> {
    let device = device.chosen()?.placed(core)?;
    core.records.put(&device)?;
    let id = device.id().clone();
    core.updates.add((D::CLASS.event)(id.clone()));
    Ok(id)
}

pub(super) fn remove<D: Observed>(core: &Core, id: &DeviceId) -> Result<(), Error> {
    let (_, state) = stat::<D>(core, id)?;
    if D::plugged(&state) {
        return Err(Error::DeviceIsConnected);
    }
    core.records.remove::<D>(id)?;
    core.updates.add((D::CLASS.event)(id.clone()));
    Ok(())
}

pub(super) fn stat<D: Observed>(core: &Core, id: &DeviceId) -> Result<(D, D::State), Error> {
    let device: D = core.records.device(id)?;
    let state = device.state(core)?;
    Ok((device, state))
}

pub(super) fn list<D: Observed>(core: &Core, vm: &str) -> Result<Vec<(D, D::State)>, Error> {
    let stat = |device: D| device.state(core).map(|state| (device, state));
    core.records.devices(vm)?.into_iter().map(stat).collect()
}

/// A class of devices that come and go while the guest runs.
pub(super) trait Pluggable: DeviceRecord {
    /// As plans name it.
    const NAMED: fn(String) -> Device;
}

impl Pluggable for Vbd {
    const NAMED: fn(String) -> Device = Device::Vbd;
}

impl Pluggable for Vif {
    const NAMED: fn(String) -> Device = Device::Vif;
}

pub(super) fn plug<D: Pluggable>(core: &Arc<Core>, id: &DeviceId, dbg: &str) -> Result<String, Error> {
    core.records.device::<D>(id)?;
    core.submit(&id.vm, dbg, Operation::Plug(D::NAMED(id.device.clone())))
}

pub(super) fn unplug<D: Pluggable>(
    core: &Arc<Core>,
    id: &DeviceId,
    dbg: &str,
    force: bool,
) -> Result<String, Error> {
    core.records.device::<D>(id)?;
    let how = if force { Unplugging::Forced } else { Unplugging::Clean };
    core.submit(&id.vm, dbg, Operation::Unplug(D::NAMED(id.device.clone()), how))
}

pub(super) fn refresh(core: &Arc<Core>, id: &DeviceId, dbg: &str) -> Result<String, Error> {
    core.records.device::<Vbd>(id)?;
    core.submit(&id.vm, dbg, Operation::RefreshDisk(id.device.clone()))
}

pub(super) fn insert(core: &Arc<Core>, id: &DeviceId, dbg: &str, disk: &Disk) -> Result<String, Error> {
    core.submit(&id.vm, dbg, Operation::Change(Wish::Insert(id.device.clone(), disk.clone())))
}

pub(super) fn eject(core: &Arc<Core>, id: &DeviceId, dbg: &str) -> Result<String, Error> {
    core.submit(&id.vm, dbg, Operation::Change(Wish::Eject(id.device.clone())))
}

/// There is no proxy to be set up: taking one away has nothing to do but to clear the record.
pub(super) fn set_pvs_proxy(
    core: &Arc<Core>,
    id: &DeviceId,
    dbg: &str,
    proxy: Option<&PvsProxy>,
) -> Result<String, Error> {
    core.records.device::<Vif>(id)?;
    if proxy.is_some() {
        return Err(Error::Unimplemented(format!(
            "VIF {id}: a proxy for provisioning servers; the VM reaches them by itself without one"
        )));
    }
    change(core, id, dbg, VifWish::NoProxy)
}

pub(super) fn change(core: &Arc<Core>, id: &DeviceId, dbg: &str, wish: VifWish) -> Result<String, Error> {
    core.submit(&id.vm, dbg, Operation::Change(Wish::Interface(id.device.clone(), wish)))
}
