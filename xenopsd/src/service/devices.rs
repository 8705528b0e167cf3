//! `VBD.*` and `VIF.*` calls that only touch records, or only look.

use crate::api::{DeviceId, DynamicId, Error, Vbd, VbdState, Vif, VifState};
use crate::core::Core;
use crate::device;

pub(super) fn add_vbd(core: &Core, vbd: &Vbd) -> Result<DeviceId, Error> {
    core.records.put_vbd(vbd)?;
    core.updates.add(DynamicId::Vbd(vbd.id.clone()));
    Ok(vbd.id.clone())
}

pub(super) fn remove_vbd(core: &Core, id: &DeviceId) -> Result<(), Error> {
    let vbd = core.records.vbd(id)?;
    if device::vbd::state(core, &vbd)?.plugged {
        return Err(Error::DeviceIsConnected);
    }
    core.records.remove_vbd(id)?;
    core.updates.add(DynamicId::Vbd(id.clone()));
    Ok(())
}

pub(super) fn stat_vbd(core: &Core, id: &DeviceId) -> Result<(Vbd, VbdState), Error> {
    let vbd = core.records.vbd(id)?;
    let state = device::vbd::state(core, &vbd)?;
    Ok((vbd, state))
}

pub(super) fn list_vbds(core: &Core, vm: &str) -> Result<Vec<(Vbd, VbdState)>, Error> {
    let stat = |vbd: Vbd| device::vbd::state(core, &vbd).map(|state| (vbd, state));
    core.records.vbds(vm)?.into_iter().map(stat).collect()
}

pub(super) fn add_vif(core: &Core, vif: &Vif) -> Result<DeviceId, Error> {
    let vif = Vif { mac: device::vif::chosen_mac(vif)?, ..vif.clone() };
    core.records.put_vif(&vif)?;
    core.updates.add(DynamicId::Vif(vif.id.clone()));
    Ok(vif.id)
}

pub(super) fn remove_vif(core: &Core, id: &DeviceId) -> Result<(), Error> {
    let vif = core.records.vif(id)?;
    if device::vif::state(core, &vif)?.plugged {
        return Err(Error::DeviceIsConnected);
    }
    core.records.remove_vif(id)?;
    core.updates.add(DynamicId::Vif(id.clone()));
    Ok(())
}

pub(super) fn stat_vif(core: &Core, id: &DeviceId) -> Result<(Vif, VifState), Error> {
    let vif = core.records.vif(id)?;
    let state = device::vif::state(core, &vif)?;
    Ok((vif, state))
}

pub(super) fn list_vifs(core: &Core, vm: &str) -> Result<Vec<(Vif, VifState)>, Error> {
    let stat = |vif: Vif| device::vif::state(core, &vif).map(|state| (vif, state));
    core.records.vifs(vm)?.into_iter().map(stat).collect()
}
