//! Device-model operations: what a QEMU may do to its guest, through the one hypercall the kernel can restrict.

use crate::domid::DomId;
use crate::error::Result;
use crate::handle::{Handle, scalar_call};
use crate::restrict::{Restrict, Restricted, Sealed};
use crate::sys;
use crate::xenctrl::ShutdownReason;

/// An open device-model handle.
#[derive(Debug)]
pub struct DeviceModel(Handle<sys::xendevicemodel_handle>);

impl DeviceModel {
    /// Opens `/dev/xen/privcmd` for device-model operations.
    ///
    /// # Errors
    /// [`crate::Error::NoXen`].
    pub fn open() -> Result<Self> {
        // SAFETY: the library's own pair of functions, the first called with the logger it is given and known flags.
        let handle = unsafe {
            Handle::open(
                "libxendevicemodel",
                "/dev/xen/privcmd",
                |logger| sys::xendevicemodel_open(logger, 0),
                sys::xendevicemodel_close,
            )?
        };
        Ok(Self(handle))
    }

    /// Shuts the domain down for this reason.
    ///
    /// # Errors
    /// [`crate::Error::Call`].
    pub fn shutdown(&self, domid: DomId, reason: ShutdownReason) -> Result<()> {
        scalar_call!(self.0, Some(domid), xendevicemodel_shutdown(domid.get(), u32::from(reason.code())))
            .map(drop)
    }

    /// How many vCPUs the domain has.
    ///
    /// # Errors
    /// [`crate::Error::Call`]; `EOPNOTSUPP` before Xen 4.17.
    pub fn nr_vcpus(&self, domid: DomId) -> Result<u32> {
        let mut vcpus = 0;
        self.0.run("xendevicemodel_nr_vcpus", Some(domid), |raw| {
            // SAFETY: `vcpus` is where the number goes.
            unsafe { sys::xendevicemodel_nr_vcpus(raw, domid.get(), &raw mut vcpus) }
        })?;
        Ok(vcpus)
    }

    /// Sends a message-signalled interrupt to the guest.
    ///
    /// # Errors
    /// [`crate::Error::Call`].
    pub fn inject_msi(&self, domid: DomId, address: u64, data: u32) -> Result<()> {
        scalar_call!(self.0, Some(domid), xendevicemodel_inject_msi(domid.get(), address, data)).map(drop)
    }
}

impl Restrict for DeviceModel {}

impl Sealed for DeviceModel {
    /// `IOCTL_PRIVCMD_RESTRICT` on the descriptor.
    fn restrict_to(&self, domid: DomId) -> Result<()> {
        scalar_call!(self.0, Some(domid), xendevicemodel_restrict(domid.get())).map(drop)
    }
}

/// What remains after restricting: every operation, on that domain.
impl Restricted<DeviceModel> {
    /// See [`DeviceModel::shutdown`].
    ///
    /// # Errors
    /// As there.
    pub fn shutdown(&self, reason: ShutdownReason) -> Result<()> {
        self.inner().shutdown(self.domid(), reason)
    }

    /// See [`DeviceModel::nr_vcpus`].
    ///
    /// # Errors
    /// As there.
    pub fn nr_vcpus(&self) -> Result<u32> {
        self.inner().nr_vcpus(self.domid())
    }

    /// See [`DeviceModel::inject_msi`].
    ///
    /// # Errors
    /// As there.
    pub fn inject_msi(&self, address: u64, data: u32) -> Result<()> {
        self.inner().inject_msi(self.domid(), address, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn opening_without_xen_names_the_device() {
        if std::path::Path::new("/dev/xen/privcmd").exists() {
            return;
        }
        let error = DeviceModel::open().unwrap_err();
        assert!(matches!(error, Error::NoXen { what: "/dev/xen/privcmd", .. }), "{error:?}");
    }
}
