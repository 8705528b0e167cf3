//! Mapping pages that other domains granted to this one (`/dev/xen/gntdev`).
//!
//! There is no restricted form: the kernel cannot limit this device to one domain. Pass mapped memory or events on to
//! a jailed process, not the device.

use std::sync::Arc;

use crate::domid::DomId;
use crate::error::{Error, Result};
use crate::evtchn::Port;
use crate::foreignmemory::log_unmap;
use crate::handle::{Handle, scalar_call};
use crate::shared::{Access, PAGE_SIZE, SharedPages};
use crate::sys;

/// Most grants in one mapping: more than any ring or buffer has.
pub const MAX_GRANTS: usize = 1024;

/// A grant reference: an index into the granting domain's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GrantRef(pub u32);

impl GrantRef {
    /// The console ring's, by convention (`GNTTAB_RESERVED_CONSOLE`).
    pub const CONSOLE: Self = Self(0);
    /// The xenstore ring's, by convention (`GNTTAB_RESERVED_XENSTORE`).
    pub const XENSTORE: Self = Self(1);
}

/// What the kernel does to a mapped page when it is unmapped, even by this process's death, so that the other side
/// learns of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnmapNotify {
    /// Offset of a byte in the page to set to 0.
    pub clear_byte: Option<u16>,
    /// A local port to signal.
    pub port: Option<Port>,
}

/// An open grant device.
#[derive(Debug)]
pub struct Gnttab(Arc<Handle<sys::xengnttab_handle>>);

impl Gnttab {
    /// Opens `/dev/xen/gntdev`.
    ///
    /// # Errors
    /// [`Error::NoXen`].
    pub fn open() -> Result<Self> {
        // SAFETY: the library's own pair of functions, the first called with the logger it is given and known flags.
        let handle = unsafe {
            Handle::open(
                "libxengnttab",
                "/dev/xen/gntdev",
                |logger| sys::xengnttab_open(logger, 0),
                sys::xengnttab_close,
            )?
        };
        Ok(Self(Arc::new(handle)))
    }

    /// Limits how many grants can be mapped by this handle at once. Before the first mapping.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn set_max_grants(&self, grants: u32) -> Result<()> {
        scalar_call!(self.0, None, xengnttab_set_max_grants(grants)).map(drop)
    }

    /// Maps pages a domain granted, one after the other. The mapping keeps the device open by itself.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for none or more than [`MAX_GRANTS`]; [`Error::Call`] when any cannot be mapped.
    pub fn map(&self, domid: DomId, grants: &[GrantRef], access: Access) -> Result<GrantMapping> {
        const CALL: &str = "xengnttab_map_domain_grant_refs";
        let count = u32::try_from(grants.len()).ok().filter(|n| (1..=MAX_GRANTS).contains(&(*n as usize)));
        let Some(count) = count else {
            return Err(Error::invalid(
                CALL,
                format!("{} grants; 1 to {MAX_GRANTS} can be mapped", grants.len()),
            ));
        };
        let mut references: Vec<u32> = grants.iter().map(|grant| grant.0).collect();
        let address = self.0.run_pointer(CALL, Some(domid), |raw| {
            // SAFETY: `count` references that outlive the call.
            unsafe {
                sys::xengnttab_map_domain_grant_refs(
                    raw,
                    count,
                    domid.raw(),
                    references.as_mut_ptr(),
                    access.prot(),
                )
            }
        })?;
        // SAFETY: freshly mapped and unmapped only by the drop below.
        let pages = unsafe { SharedPages::new(address.cast(), grants.len(), access) };
        Ok(GrantMapping { pages, count, handle: Arc::clone(&self.0) })
    }

    /// Maps one page, with a message to the other side on unmapping.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a byte outside the page; [`Error::Call`].
    pub fn map_notify(
        &self,
        domid: DomId,
        grant: GrantRef,
        access: Access,
        notify: UnmapNotify,
    ) -> Result<GrantMapping> {
        const CALL: &str = "xengnttab_map_grant_ref_notify";
        if notify.clear_byte.is_some_and(|offset| usize::from(offset) >= PAGE_SIZE) {
            return Err(Error::invalid(CALL, "the byte to clear is outside the page"));
        }
        // All bits set stands for "none" in both.
        let offset = notify.clear_byte.map_or(u32::MAX, u32::from);
        let port = notify.port.map_or(u32::MAX, Port::get);
        let address = self.0.run_pointer(CALL, Some(domid), |raw| {
            // SAFETY: no pointers but the handle.
            unsafe {
                sys::xengnttab_map_grant_ref_notify(raw, domid.raw(), grant.0, access.prot(), offset, port)
            }
        })?;
        // SAFETY: freshly mapped and unmapped only by the drop below.
        let pages = unsafe { SharedPages::new(address.cast(), 1, access) };
        Ok(GrantMapping { pages, count: 1, handle: Arc::clone(&self.0) })
    }
}

/// Mapped grants. Unmapped on drop.
#[derive(Debug)]
pub struct GrantMapping {
    pages: SharedPages,
    count: u32,
    handle: Arc<Handle<sys::xengnttab_handle>>,
}

impl GrantMapping {
    /// The memory.
    pub const fn memory(&self) -> &SharedPages {
        &self.pages
    }
}

impl Drop for GrantMapping {
    fn drop(&mut self) {
        let (address, count) = (self.pages.address(), self.count);
        let unmapped = self.handle.run("xengnttab_unmap", None, |raw| {
            // SAFETY: what a mapping call returned, with its count; nobody can reach it after this drop.
            unsafe { sys::xengnttab_unmap(raw, address.as_ptr().cast(), count) }
        });
        log_unmap(unmapped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opening_without_xen_names_the_device() {
        if std::path::Path::new("/dev/xen/gntdev").exists() {
            return;
        }
        let error = Gnttab::open().unwrap_err();
        assert!(
            matches!(error, Error::NoXen { what: "/dev/xen/gntdev", errno: libc::ENOENT, .. }),
            "{error:?}"
        );
    }
}
