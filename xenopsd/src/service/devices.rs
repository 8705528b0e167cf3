//! Device calls: the same for every class.

use std::sync::Arc;

use crate::api::{
    DeviceId, Error, Pci, PciState, Vbd, VbdState, Vgpu, VgpuState, Vif, VifState, Vusb, VusbState,
};
use crate::core::{Core, Operation};
use crate::device;
use crate::ops::plan::{Device, Unplugging};
use crate::state::DeviceRecord;

/// A class of devices as these calls see it.
pub(super) trait Observed: DeviceRecord + Clone {
    /// What is observed of a device.
    type State;

    /// Looks at it.
    fn state(&self, core: &Core) -> Result<Self::State, Error>;

    /// Whether the running VM has it: its record must stay then.
    fn plugged(state: &Self::State) -> bool;

    /// The record to store for the one that was given.
    fn chosen(&self) -> Result<Self, Error> {
        Ok(self.clone())
    }
}

pub(super) fn add<D: Observed>(core: &Core, device: &D) -> Result<DeviceId, Error> {
    let device = device.chosen()?;
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

impl Observed for Vbd {
    type State = VbdState;

    fn state(&self, core: &Core) -> Result<VbdState, Error> {
        device::vbd::state(core, self)
    }

    fn plugged(state: &VbdState) -> bool {
        state.plugged
    }
}

impl Observed for Vif {
    type State = VifState;

    fn state(&self, core: &Core) -> Result<VifState, Error> {
        device::vif::state(core, self)
    }

    fn plugged(state: &VifState) -> bool {
        state.plugged
    }

    fn chosen(&self) -> Result<Self, Error> {
        Ok(Self { mac: device::vif::chosen_mac(self)?, ..self.clone() })
    }
}

// The classes below have records and no backend yet: nothing plugs them, so that none is ever plugged.

impl Observed for Pci {
    type State = PciState;

    fn state(&self, _core: &Core) -> Result<PciState, Error> {
        Ok(PciState { plugged: false })
    }

    fn plugged(state: &PciState) -> bool {
        state.plugged
    }
}

impl Observed for Vgpu {
    type State = VgpuState;

    fn state(&self, _core: &Core) -> Result<VgpuState, Error> {
        Ok(VgpuState { active: false, plugged: false, emulator_pid: None })
    }

    fn plugged(state: &VgpuState) -> bool {
        state.plugged
    }
}

impl Observed for Vusb {
    type State = VusbState;

    fn state(&self, _core: &Core) -> Result<VusbState, Error> {
        Ok(VusbState { plugged: false })
    }

    fn plugged(state: &VusbState) -> bool {
        state.plugged
    }
}
