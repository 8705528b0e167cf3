//! The atoms that plug devices into a domain and take them away from one that goes on running.
//!
//! While a device is plugged into a running guest, a node of the domain's private tree says so; the domain as a whole is
//! complete, so that a daemon killed in between needs to be told which device is not.

use xenstore::layout::{DeviceAddress, libxl_path};
use xenstore::{Operations, Path};

use super::VmExecutor;
use crate::api::{DeviceId, Error};
use crate::device::{self, Plug, store_domid};
use crate::edge::DomId;
use crate::ops::plan::{Device, Unplugging};
use crate::ops::task::TaskHandle;

/// How the names of the marks begin, below the domain's private tree; a mark's value is the backend's path.
const MARK: &str = "xenopsd-plugging-";

impl<'a> VmExecutor<'a> {
    pub(super) fn begin_plug(&self, device: &Device) -> Result<(), Error> {
        let domid = self.domid()?;
        let address = self.address(domid, device)?;
        let mark = mark(address)?;
        Ok(self.core.edges.store()?.write(&mark, address.backend().as_str())?)
    }

    pub(super) fn attach_storage(&self, device: &Device) -> Result<(), Error> {
        match device {
            Device::Vbd(name) => {
                let waiting = self.core.waiting(Some(self.task), self.slot);
                device::vbd::attach_storage(self.core, self.vbd(name)?, waiting)
            }
            Device::Vif(_) => Ok(()),
        }
    }

    pub(super) fn serve_disk(&self, name: &str) -> Result<(), Error> {
        let domid = self.domid()?;
        self.slot.without(|| device::vbd::serve(self.core, domid, self.vbd(name)?))
    }

    pub(super) fn refresh_disk(&self, name: &str) -> Result<(), Error> {
        device::vbd::refresh(self.core, self.domid()?, self.vbd(name)?)
    }

    pub(super) fn plug(&self, device: &Device) -> Result<(), Error> {
        let plug = self.plugging(Some(self.task))?;
        match device {
            Device::Vbd(name) => device::vbd::plug(&plug, self.vbd(name)?),
            Device::Vif(name) => device::vif::plug(&plug, self.vif(name)?),
        }
    }

    pub(super) fn end_plug(&self, device: &Device) -> Result<(), Error> {
        self.remove_mark(self.address(self.domid()?, device)?)
    }

    /// Forced, it may be of a device that was never complete, and is not given up for a cancelled task.
    pub(super) fn unplug(&self, device: &Device, how: Unplugging) -> Result<(), Error> {
        let address = self.address(self.domid()?, device)?;
        match how {
            Unplugging::Clean => {
                let id = match device {
                    Device::Vbd(name) | Device::Vif(name) => DeviceId::new(self.vm(), name).to_string(),
                };
                device::unplug(&self.plugging(Some(self.task))?, address, &id, how)
            }
            Unplugging::Forced => self.unplug_by_force(address),
        }
    }

    fn unplug_by_force(&self, address: DeviceAddress) -> Result<(), Error> {
        device::unplug(&self.plugging(None)?, address, &address.to_string(), Unplugging::Forced)?;
        self.remove_mark(address)
    }

    fn remove_mark(&self, address: DeviceAddress) -> Result<(), Error> {
        Ok(self.core.edges.store()?.rm(&mark(address)?)?)
    }

    /// Takes away what an earlier daemon had not completed, and what it had begun to take away.
    pub(crate) fn finish_devices(&self) -> Result<(), Error> {
        let domid = self.domid()?;
        let incomplete = self.incomplete(domid)?;
        let closed = device::closed(self.core, domid)?;
        for address in incomplete.into_iter().chain(closed) {
            tracing::warn!(vm = self.vm(), %address, "an earlier daemon left it half plugged or half unplugged; removing it");
            self.unplug_by_force(address)?;
        }
        device::loops::give_back_unused(self.core, self.vm(), domid)?;
        self.slot.without(|| device::served::adopt(self.core, &self.records.vbds, self.vm(), domid))?;
        self.slot.without(|| device::storage::give_back_unused(self.core, self.vm(), domid))?;
        self.finish_interfaces(domid);
        self.follow_disks(domid);
        Ok(())
    }

    /// Disks that an earlier daemon plugged have their priorities from it, and are to have them after a suspend.
    fn follow_disks(&self, domid: DomId) {
        for vbd in self.records.vbds.iter().filter(|vbd| vbd.qos.is_some()) {
            let named = Device::Vbd(vbd.id.device.clone());
            let followed = self.if_plugged(&named, || device::qos::follow(self.core, domid, vbd));
            if let Err(error) = followed {
                tracing::warn!(vbd = %vbd.id, %error, "the I/O priority of a disk is not kept");
            }
        }
    }

    /// Interfaces whose change an earlier daemon was killed in, or whose bridge was made anew while there was no daemon.
    fn finish_interfaces(&self, domid: DomId) {
        for vif in &self.records.vifs {
            let named = Device::Vif(vif.id.device.clone());
            let applied = self.if_plugged(&named, || {
                device::vif::apply(self.core, domid, vif, self.core.waiting(None, self.slot))
            });
            if let Err(error) = applied {
                tracing::warn!(vif = %vif.id, %error, "an interface of a running VM is not as its record says");
            }
        }
    }

    fn if_plugged(&self, device: &Device, then: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        if device::is_plugged(self.core, self.vm(), device)? { then() } else { Ok(()) }
    }

    fn incomplete(&self, domid: DomId) -> Result<Vec<DeviceAddress>, Error> {
        let private = libxl_path(store_domid(domid));
        let mut store = self.core.edges.store()?;
        let names = store.directory(&private)?.unwrap_or_default();
        let marks = names.iter().filter(|name| name.starts_with(MARK));
        let paths: Result<Vec<_>, _> = marks.map(|name| private.join(name)).collect();
        let backends = store.read_all(&paths.map_err(xenstore::Error::from)?)?;
        let address = |value: Vec<u8>| DeviceAddress::from_backend_path(&Path::from_bytes(&value).ok()?);
        Ok(backends
            .into_iter()
            .flatten()
            .filter_map(address)
            .filter(|a| a.domid == store_domid(domid))
            .collect())
    }

    fn address(&self, domid: DomId, device: &Device) -> Result<DeviceAddress, Error> {
        match device {
            Device::Vbd(name) => device::vbd::address(domid, self.vbd(name)?),
            Device::Vif(name) => device::vif::address(domid, self.vif(name)?),
        }
    }

    pub(super) fn vbd(&self, name: &str) -> Result<&crate::api::Vbd, Error> {
        let found = self.records.vbds.iter().find(|v| v.id.device == name);
        found.ok_or_else(|| Error::does_not_exist("VBD", name))
    }

    fn vif(&self, name: &str) -> Result<&crate::api::Vif, Error> {
        let found = self.records.vifs.iter().find(|v| v.id.device == name);
        found.ok_or_else(|| Error::does_not_exist("VIF", name))
    }

    fn plugging(&self, task: Option<&'a TaskHandle>) -> Result<Plug<'a>, Error> {
        Ok(Plug {
            core: self.core,
            vm: &self.records.vm.id,
            domid: self.domid()?,
            waiting: self.core.waiting(task, self.slot),
        })
    }
}

fn mark(address: DeviceAddress) -> Result<Path, Error> {
    let name = format!("{MARK}{}-{}", address.kind.frontend_name(), address.id);
    Ok(libxl_path(address.domid).join(name.as_str()).map_err(xenstore::Error::from)?)
}
