//! Mapping memory of other domains.

use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::domid::DomId;
use crate::error::{Error, Result};
use crate::handle::{Handle, scalar_call};
use crate::restrict::{Restrict, Restricted, Sealed};
use crate::shared::{Access, SharedPages};
use crate::sys;

/// Most pages in one mapping (1 GiB): bounds what a wrong number costs.
pub const MAX_PAGES: usize = 1 << 18;

/// An open foreign memory device.
#[derive(Debug)]
pub struct ForeignMemory(Arc<Handle<sys::xenforeignmemory_handle>>);

impl ForeignMemory {
    /// Opens `/dev/xen/privcmd` for mapping.
    ///
    /// # Errors
    /// [`Error::NoXen`].
    pub fn open() -> Result<Self> {
        // SAFETY: the library's own pair of functions, the first called with the logger it is given and known flags.
        let handle = unsafe {
            Handle::open(
                "libxenforeignmemory",
                "/dev/xen/privcmd",
                |logger| sys::xenforeignmemory_open(logger, 0),
                sys::xenforeignmemory_close,
            )?
        };
        Ok(Self(Arc::new(handle)))
    }

    /// Maps frames of a domain, one after the other. `frames` are machine frames for a PV domain, guest frames for
    /// others. The mapping keeps the device open by itself.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for none or more than [`MAX_PAGES`]; [`Error::Call`] when any frame cannot be mapped.
    pub fn map(&self, domid: DomId, frames: &[u64], access: Access) -> Result<ForeignMapping> {
        const CALL: &str = "xenforeignmemory_map";
        if frames.is_empty() || frames.len() > MAX_PAGES {
            return Err(Error::invalid(
                CALL,
                format!("{} pages; 1 to {MAX_PAGES} can be mapped", frames.len()),
            ));
        }
        let address = self.0.run_pointer(CALL, Some(domid), |raw| {
            // SAFETY: the frames outlive the call, and their number is right. Without an array for errors the call maps
            // every page or none.
            unsafe {
                sys::xenforeignmemory_map(
                    raw,
                    domid.raw(),
                    access.prot(),
                    frames.len(),
                    frames.as_ptr(),
                    ptr::null_mut(),
                )
            }
        })?;
        // SAFETY: freshly mapped and unmapped only by the drop below.
        let pages = unsafe { SharedPages::new(address.cast(), frames.len(), access) };
        Ok(ForeignMapping { pages, handle: Arc::clone(&self.0) })
    }

    /// Maps the first `frames` frames of a domain's grant table (version 1 layout), read-only or writable.
    ///
    /// # Errors
    /// [`Error::Call`]; `EOPNOTSUPP` on a kernel without resource mapping (Linux before 4.18).
    pub fn map_grant_table(&self, domid: DomId, frames: u16, access: Access) -> Result<ResourceMapping> {
        let mut address = ptr::null_mut();
        let resource = self.0.run_pointer("xenforeignmemory_map_resource", Some(domid), |raw| {
            // SAFETY: `address` receives where the library mapped the frames.
            unsafe {
                sys::xenforeignmemory_map_resource(
                    raw,
                    domid.get(),
                    sys::XENMEM_resource_grant_table,
                    sys::XENMEM_resource_grant_table_id_shared,
                    0,
                    u64::from(frames),
                    &raw mut address,
                    access.prot(),
                    0,
                )
            }
        })?;
        let Some(address) = NonNull::new(address) else {
            return Err(Error::plain("xenforeignmemory_map_resource", Some(domid), 0));
        };
        // SAFETY: freshly mapped and unmapped only by the drop below.
        let pages = unsafe { SharedPages::new(address.cast(), usize::from(frames), access) };
        Ok(ResourceMapping { pages, resource, handle: Arc::clone(&self.0) })
    }
}

impl Restrict for ForeignMemory {}

impl Sealed for ForeignMemory {
    /// `IOCTL_PRIVCMD_RESTRICT` on the descriptor.
    fn restrict_to(&self, domid: DomId) -> Result<()> {
        scalar_call!(self.0, Some(domid), xenforeignmemory_restrict(domid.get())).map(drop)
    }
}

/// What remains after restricting: mapping that domain's memory.
impl Restricted<ForeignMemory> {
    /// See [`ForeignMemory::map`].
    ///
    /// # Errors
    /// As there.
    pub fn map(&self, frames: &[u64], access: Access) -> Result<ForeignMapping> {
        self.inner().map(self.domid(), frames, access)
    }
}

/// Mapped frames of a domain. Unmapped on drop.
#[derive(Debug)]
pub struct ForeignMapping {
    pages: SharedPages,
    handle: Arc<Handle<sys::xenforeignmemory_handle>>,
}

impl ForeignMapping {
    /// The memory.
    pub const fn memory(&self) -> &SharedPages {
        &self.pages
    }
}

impl Drop for ForeignMapping {
    fn drop(&mut self) {
        let (address, pages) = (self.pages.address(), self.pages.pages());
        // In a forked child the mapping is not there (privcmd's are not inherited), and must not be unmapped.
        let unmapped = self.handle.run("xenforeignmemory_unmap", None, |raw| {
            // SAFETY: what `map` returned, with its number of pages; nobody can reach it after this drop.
            unsafe { sys::xenforeignmemory_unmap(raw, address.as_ptr().cast(), pages) }
        });
        log_unmap(unmapped);
    }
}

/// A mapped resource of a domain. Unmapped on drop.
#[derive(Debug)]
pub struct ResourceMapping {
    pages: SharedPages,
    resource: NonNull<sys::xenforeignmemory_resource_handle>,
    handle: Arc<Handle<sys::xenforeignmemory_handle>>,
}

// SAFETY: the resource handle is an address and a length, used only by the drop.
unsafe impl Send for ResourceMapping {}
// SAFETY: as above; shared references reach the pages only, which may be shared.
unsafe impl Sync for ResourceMapping {}

impl ResourceMapping {
    /// The memory.
    pub const fn memory(&self) -> &SharedPages {
        &self.pages
    }
}

impl Drop for ResourceMapping {
    fn drop(&mut self) {
        let resource = self.resource.as_ptr();
        let unmapped = self.handle.run("xenforeignmemory_unmap_resource", None, |raw| {
            // SAFETY: what the mapping call returned, given back once.
            unsafe { sys::xenforeignmemory_unmap_resource(raw, resource) }
        });
        log_unmap(unmapped);
    }
}

/// Nothing can be done about a failed unmap, and a forked child's is meant to be left out.
pub(crate) fn log_unmap(result: Result<i32>) {
    match result {
        Ok(_) | Err(Error::Forked { .. }) => {}
        Err(error) => tracing::warn!(%error, "unmapping guest memory failed"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_without_xen_names_the_device() {
        if std::path::Path::new("/dev/xen/privcmd").exists() {
            return;
        }
        let error = ForeignMemory::open().unwrap_err();
        assert!(
            matches!(error, Error::NoXen { what: "/dev/xen/privcmd", errno: libc::ENOENT, .. }),
            "{error:?}"
        );
    }
}
