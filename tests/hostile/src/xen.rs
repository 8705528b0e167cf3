//! Attempts on Xen's drivers, on the domain it serves (which must go on working) and on others.

use ffi::devicemodel::DeviceModel;
use ffi::domid::DomId;
use ffi::evtchn::{Evtchn, Virq};
use ffi::foreignmemory::ForeignMemory;
use ffi::shared::Access;
use ffi::xenctrl::{ShutdownReason, Xenctrl};
use nix::errno::Errno;

use crate::log;

/// A frame at 1 MiB, which is memory in every HVM and PVH guest.
const FRAME: u64 = 0x100;

/// Handles of every kind that can be left to a device model, opened while it could.
pub(crate) struct Handles {
    memory: ForeignMemory,
    model: DeviceModel,
    channels: Evtchn,
    control: Xenctrl,
}

impl Handles {
    /// Opens them, and restricts none.
    pub(crate) fn open() -> ffi::error::Result<Self> {
        Ok(Self {
            memory: ForeignMemory::open()?,
            model: DeviceModel::open()?,
            channels: Evtchn::open()?,
            control: Xenctrl::open()?,
        })
    }

    /// Tries everything on `own` and on `other`. Before it is sealed, nothing that would change another domain.
    pub(crate) fn attempts(&self, phase: &str, own: DomId, other: DomId) {
        let say = |name: &str, outcome: ffi::error::Result<()>| {
            let outcome = outcome.map_err(|e| e.errno().map_or(Errno::UnknownErrno, Errno::from_raw));
            log::attempt(phase, name, outcome);
        };
        let map = |domid| self.memory.map(domid, &[FRAME], Access::ReadWrite).map(drop);
        say("map own memory", map(own));
        say("map another's memory", map(other));
        say("map another's grant table", self.memory.map_grant_table(other, 1, Access::ReadWrite).map(drop));
        say("device model operation on own", self.model.nr_vcpus(own).map(drop));
        say("device model operation on another", self.model.nr_vcpus(other).map(drop));
        say("port for own", self.bind(own));
        say("port for another", self.bind(other));
        say("port for dom0", self.bind(DomId::DOM0));
        say("virtual interrupt", self.interrupt());
        say("hypercall about another", self.control.domain_info(other).map(drop));
        say("hypercall about the host", self.control.physinfo().map(drop));
        if phase == "after" {
            say("map dom0's memory", map(DomId::DOM0));
            let reason = ShutdownReason::Crash;
            say("shut another down", self.model.shutdown(other, reason));
            say("pause another", self.control.pause(other));
            say("destroy another", self.control.destroy(other));
            say("pause own", self.control.pause(own));
        }
    }

    fn bind(&self, domid: DomId) -> ffi::error::Result<()> {
        self.channels.bind_unbound(domid).and_then(|port| self.channels.unbind(port))
    }

    fn interrupt(&self) -> ffi::error::Result<()> {
        self.channels.bind_virq(Virq::PcpuState).and_then(|port| self.channels.unbind(port))
    }
}
