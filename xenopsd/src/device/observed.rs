//! What is observed of the devices of each class.

use super::{vbd, vif};
use crate::api::{Error, Pci, PciState, Vbd, VbdState, Vgpu, VgpuState, Vif, VifState, Vusb, VusbState};
use crate::core::Core;
use crate::state::DeviceRecord;

/// A class of devices that can be looked at.
pub trait Observed: DeviceRecord + Clone {
    /// What is observed of a device.
    type State;

    /// Looks at it.
    ///
    /// # Errors
    /// When Xen or xenstored does not answer.
    fn state(&self, core: &Core) -> Result<Self::State, Error>;

    /// Whether the running VM has it: its record must stay then.
    fn plugged(state: &Self::State) -> bool;

    /// The record to store for the one that was given.
    ///
    /// # Errors
    /// When it says what cannot be.
    fn chosen(&self) -> Result<Self, Error> {
        Ok(self.clone())
    }

    /// The record with a place of its own among the VM's devices, if it says none.
    ///
    /// # Errors
    /// When their records cannot be read.
    fn placed(self, _core: &Core) -> Result<Self, Error> {
        Ok(self)
    }
}

impl Observed for Vbd {
    type State = VbdState;

    fn state(&self, core: &Core) -> Result<VbdState, Error> {
        vbd::state(core, self)
    }

    fn plugged(state: &VbdState) -> bool {
        state.plugged
    }

    fn placed(self, core: &Core) -> Result<Self, Error> {
        Ok(Self { position: vbd::chosen_position(core, &self)?, ..self })
    }
}

impl Observed for Vif {
    type State = VifState;

    fn state(&self, core: &Core) -> Result<VifState, Error> {
        vif::state(core, self)
    }

    fn plugged(state: &VifState) -> bool {
        state.plugged
    }

    fn chosen(&self) -> Result<Self, Error> {
        Ok(Self { mac: vif::chosen_mac(self)?, ..self.clone() })
    }
}

// The classes below have records and no backend yet: a VM that has one is not started (`domain/passed_through.rs`), so that none
// is ever plugged.

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
