//! Attempts on Xen's drivers, on the domain it serves (which must go on working) and on others.

use ffi::devicemodel::DeviceModel;
use ffi::domid::DomId;
use ffi::evtchn::{Evtchn, Port, Virq};
use ffi::foreignmemory::ForeignMemory;
use ffi::shared::Access;
use ffi::xenctrl::{ShutdownReason, Xenctrl};
use nix::errno::Errno;

use crate::log;

/// A frame at 1 MiB, which is memory in every HVM and PVH guest.
const FRAME: u64 = 0x100;

/// Handles of every kind that can be left to a device model, opened while it could, and what was made with them.
pub(crate) struct Handles {
    memory: ForeignMemory,
    model: DeviceModel,
    channels: Evtchn,
    control: Xenctrl,
    /// Ports of its domain and of the other one that wait for dom0 to bind them.
    own_port: Port,
    other_port: Port,
}

impl Handles {
    /// Opens them, and restricts none.
    pub(crate) fn open(own: DomId, other: DomId) -> ffi::error::Result<Self> {
        let control = Xenctrl::open()?;
        Ok(Self {
            memory: ForeignMemory::open()?,
            model: DeviceModel::open()?,
            channels: Evtchn::open()?,
            own_port: control.alloc_unbound_port(own, DomId::DOM0)?,
            other_port: control.alloc_unbound_port(other, DomId::DOM0)?,
            control,
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
        say("event channel of own", self.bind(own, self.own_port));
        say("event channel of another", self.bind(other, self.other_port));
        say("new port for own", self.offer(own));
        say("new port for another", self.offer(other));
        say("new port for dom0", self.offer(DomId::DOM0));
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

    /// Unbound again, it waits as before.
    fn bind(&self, domid: DomId, port: Port) -> ffi::error::Result<()> {
        self.channels.bind_interdomain(domid, port).and_then(|port| self.channels.unbind(port))
    }

    fn offer(&self, domid: DomId) -> ffi::error::Result<()> {
        self.channels.bind_unbound(domid).and_then(|port| self.channels.unbind(port))
    }

    fn interrupt(&self) -> ffi::error::Result<()> {
        self.channels.bind_virq(Virq::PcpuState).and_then(|port| self.channels.unbind(port))
    }
}
