//! libxenstore, the C xenstore client: a selectable transport, and the reference the Rust client is tested against.
//!
//! Paths and tokens are C strings, values are bytes, errors are the store's error numbers. A handle whose connection
//! broke fails every call from then on: open another, and set the watches again.

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::{cell::Cell, slice};

use crate::domid::DomId;
use crate::error::{Error, Result, clear_errno, last_errno};
use crate::evtchn::Port;
use crate::handle::Owner;
use crate::sys;

/// Most entries in a permission list: each takes at least three bytes of a message of 4096, and the library keeps an
/// array of them on the stack.
const MAX_PERMISSIONS: usize = 1024;

/// A transaction, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct XsTransaction(u32);

impl XsTransaction {
    /// No transaction: each request stands for itself.
    pub const NONE: Self = Self(sys::XBT_NULL);
}

/// One entry of a node's permissions. The first of a list names the owner, and what domains not listed may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XsPermission {
    /// The domain.
    pub domid: u32,
    /// May read.
    pub read: bool,
    /// May write.
    pub write: bool,
}

/// A fired watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct XsEvent {
    /// The node that changed.
    pub path: Vec<u8>,
    /// The token the watch was set with.
    pub token: Vec<u8>,
}

/// An open connection to xenstored. Closed on drop.
///
/// It may move to another thread but not be used by two at once: when a request fails half way, the library closes
/// the descriptor after letting others go on. Setting a first watch starts a reader thread inside the library.
/// It does not survive a fork: see [`Error::Forked`].
#[derive(Debug)]
pub struct XsHandle {
    raw: NonNull<sys::xs_handle>,
    owner: Owner,
    not_sync: PhantomData<Cell<()>>,
}

// SAFETY: nothing in the handle is tied to the thread that opened it.
unsafe impl Send for XsHandle {}

impl XsHandle {
    /// Connects to xenstored's socket or, failing that, to `/dev/xen/xenbus`. After a watch is removed, its events
    /// still queued are dropped.
    ///
    /// Each request changes the process's handling of `SIGPIPE` for its duration: see [`crate::sig::ignore_sigpipe`].
    ///
    /// # Errors
    /// [`Error::NoXen`].
    pub fn open() -> Result<Self> {
        clear_errno();
        // SAFETY: a known flag.
        let raw = unsafe { sys::xs_open(u64::from(sys::XS_UNWATCH_FILTER)) };
        let errno = last_errno();
        NonNull::new(raw)
            .map(|raw| Self { raw, owner: Owner::this_process("libxenstore"), not_sync: PhantomData })
            .ok_or(Error::NoXen { what: "xenstored's socket and /dev/xen/xenbus", errno, detail: None })
    }

    /// Runs a function that returns whether it succeeded.
    fn done(
        &self,
        call: &'static str,
        domid: Option<DomId>,
        function: impl FnOnce(*mut sys::xs_handle) -> bool,
    ) -> Result<()> {
        self.owner.check()?;
        clear_errno();
        let done = function(self.raw.as_ptr());
        let errno = last_errno();
        if done { Ok(()) } else { Err(Error::plain(call, domid, errno)) }
    }

    /// Runs a function that returns memory of the C library, null for failure.
    fn got<T>(
        &self,
        call: &'static str,
        domid: Option<DomId>,
        function: impl FnOnce(*mut sys::xs_handle) -> *mut T,
    ) -> Result<Malloced<T>> {
        self.owner.check()?;
        clear_errno();
        let memory = function(self.raw.as_ptr());
        let errno = last_errno();
        NonNull::new(memory).map(Malloced).ok_or_else(|| Error::plain(call, domid, errno))
    }

    /// A node's value.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOENT`, `EACCES`, ...
    pub fn read(&self, transaction: XsTransaction, path: &CStr) -> Result<Vec<u8>> {
        let mut length: c_uint = 0;
        let value = self.got("xs_read", None, |raw| {
            // SAFETY: a C string and a place for the length, both living through the call.
            unsafe { sys::xs_read(raw, transaction.0, path.as_ptr(), &raw mut length) }
        })?;
        // SAFETY: the library returned `length` bytes.
        Ok(unsafe { slice::from_raw_parts(value.0.as_ptr().cast::<u8>(), length as usize) }.to_vec())
    }

    /// Sets a node's value, making it and its parents when absent.
    ///
    /// # Errors
    /// [`Error::Call`]; `E2BIG` when path and value exceed 4096 bytes, `EACCES`, `EQUOTA`.
    pub fn write(&self, transaction: XsTransaction, path: &CStr, value: &[u8]) -> Result<()> {
        let length = message_length("xs_write", value.len())?;
        self.done("xs_write", None, |raw| {
            let data = value.as_ptr().cast::<c_void>();
            // SAFETY: a C string and `length` bytes, both living through the call.
            unsafe { sys::xs_write(raw, transaction.0, path.as_ptr(), data, length) }
        })
    }

    /// Makes a node. It is no error when it exists.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn mkdir(&self, transaction: XsTransaction, path: &CStr) -> Result<()> {
        // SAFETY: a C string living through the call.
        self.done("xs_mkdir", None, |raw| unsafe { sys::xs_mkdir(raw, transaction.0, path.as_ptr()) })
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOENT` when its parent is absent.
    pub fn rm(&self, transaction: XsTransaction, path: &CStr) -> Result<()> {
        // SAFETY: a C string living through the call.
        self.done("xs_rm", None, |raw| unsafe { sys::xs_rm(raw, transaction.0, path.as_ptr()) })
    }

    /// The names of a node's children.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn directory(&self, transaction: XsTransaction, path: &CStr) -> Result<Vec<Vec<u8>>> {
        let mut count: c_uint = 0;
        let names = self.got("xs_directory", None, |raw| {
            // SAFETY: a C string and a place for the count, both living through the call.
            unsafe { sys::xs_directory(raw, transaction.0, path.as_ptr(), &raw mut count) }
        })?;
        // SAFETY: the library returned `count` pointers to C strings in the same memory.
        Ok(unsafe { strings(&names, count as usize) })
    }

    /// A node's permissions.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn get_permissions(&self, transaction: XsTransaction, path: &CStr) -> Result<Vec<XsPermission>> {
        let mut count: c_uint = 0;
        let list = self.got("xs_get_permissions", None, |raw| {
            // SAFETY: a C string and a place for the count, both living through the call.
            unsafe { sys::xs_get_permissions(raw, transaction.0, path.as_ptr(), &raw mut count) }
        })?;
        // SAFETY: the library returned `count` entries.
        let list = unsafe { slice::from_raw_parts(list.0.as_ptr(), count as usize) };
        let entry = |raw: &sys::xs_permissions| XsPermission {
            domid: raw.id,
            read: raw.perms & sys::XS_PERM_READ != 0,
            write: raw.perms & sys::XS_PERM_WRITE != 0,
        };
        Ok(list.iter().map(entry).collect())
    }

    /// Sets a node's permissions.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an empty or overlong list; [`Error::Call`].
    pub fn set_permissions(
        &self,
        transaction: XsTransaction,
        path: &CStr,
        permissions: &[XsPermission],
    ) -> Result<()> {
        const CALL: &str = "xs_set_permissions";
        if permissions.is_empty() || permissions.len() > MAX_PERMISSIONS {
            return Err(Error::invalid(CALL, format!("{} entries", permissions.len())));
        }
        let count = message_length(CALL, permissions.len())?;
        let mut list: Vec<sys::xs_permissions> = permissions.iter().copied().map(raw_permission).collect();
        self.done(CALL, None, |raw| {
            // SAFETY: a C string and `count` entries, both living through the call.
            unsafe { sys::xs_set_permissions(raw, transaction.0, path.as_ptr(), list.as_mut_ptr(), count) }
        })
    }

    /// Starts a transaction.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOSPC` for too many.
    pub fn transaction_start(&self) -> Result<XsTransaction> {
        self.owner.check()?;
        clear_errno();
        // SAFETY: an open handle.
        let id = unsafe { sys::xs_transaction_start(self.raw.as_ptr()) };
        let errno = last_errno();
        if id == sys::XBT_NULL {
            return Err(Error::plain("xs_transaction_start", None, errno));
        }
        Ok(XsTransaction(id))
    }

    /// Ends a transaction: takes effect as a whole, or not at all.
    ///
    /// # Errors
    /// [`Error::Call`]; `EAGAIN` when it has to be tried again, with a new transaction.
    pub fn transaction_end(&self, transaction: XsTransaction, commit: bool) -> Result<()> {
        self.done("xs_transaction_end", None, |raw| {
            // SAFETY: an open handle and plain values.
            unsafe { sys::xs_transaction_end(raw, transaction.0, !commit) }
        })
    }

    /// Watches a node and all below it. The first event comes at once.
    ///
    /// # Errors
    /// [`Error::Call`]; `EEXIST` for a watch with the same token.
    pub fn watch(&self, path: &CStr, token: &CStr) -> Result<()> {
        // SAFETY: two C strings living through the call.
        self.done("xs_watch", None, |raw| unsafe { sys::xs_watch(raw, path.as_ptr(), token.as_ptr()) })
    }

    /// Removes a watch.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOENT` when there is none.
    pub fn unwatch(&self, path: &CStr, token: &CStr) -> Result<()> {
        // SAFETY: two C strings living through the call.
        self.done("xs_unwatch", None, |raw| unsafe { sys::xs_unwatch(raw, path.as_ptr(), token.as_ptr()) })
    }

    /// A descriptor that becomes readable when watches have fired; then [`XsHandle::check_watch`] until `None`.
    ///
    /// # Errors
    /// [`Error::Call`] when a pipe cannot be made.
    pub fn watch_fd(&self) -> Result<BorrowedFd<'_>> {
        self.owner.check()?;
        clear_errno();
        // SAFETY: an open handle.
        let fd = unsafe { sys::xs_fileno(self.raw.as_ptr()) };
        let errno = last_errno();
        if fd < 0 {
            return Err(Error::plain("xs_fileno", None, errno));
        }
        // SAFETY: the library keeps the pipe until the handle is closed.
        Ok(unsafe { BorrowedFd::borrow_raw(fd) })
    }

    /// The next event, or `None` when there is none now.
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` when the connection is gone.
    pub fn check_watch(&self) -> Result<Option<XsEvent>> {
        // SAFETY: an open handle.
        match self.got("xs_check_watch", None, |raw| unsafe { sys::xs_check_watch(raw) }) {
            Ok(event) => Ok(Some(to_event(&event))),
            Err(error) if error.is_errno(libc::EAGAIN) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next event; waits for one. Waits for ever when no watch is set.
    ///
    /// # Errors
    /// [`Error::Call`]; `EINVAL` when the connection is gone.
    pub fn read_watch(&self) -> Result<XsEvent> {
        let mut count: c_uint = 0;
        let event = self.got("xs_read_watch", None, |raw| {
            // SAFETY: an open handle and a place for the count.
            unsafe { sys::xs_read_watch(raw, &raw mut count) }
        })?;
        if count < 2 {
            return Err(Error::plain("xs_read_watch", None, libc::EIO));
        }
        Ok(to_event(&event))
    }

    /// Tells xenstored of a domain: the frame of its ring (a machine frame for PV, a guest frame for others) and the
    /// domain's port for it.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn introduce(&self, domid: DomId, frame: u64, port: Port) -> Result<()> {
        self.done("xs_introduce_domain", Some(domid), |raw| {
            // SAFETY: an open handle and plain values.
            unsafe { sys::xs_introduce_domain(raw, domid.raw(), frame, port.get()) }
        })
    }

    /// Tells xenstored that a domain is gone.
    ///
    /// # Errors
    /// [`Error::Call`]; `ENOENT` when it was not introduced.
    pub fn release(&self, domid: DomId) -> Result<()> {
        self.done("xs_release_domain", Some(domid), |raw| {
            // SAFETY: an open handle and a plain value.
            unsafe { sys::xs_release_domain(raw, domid.raw()) }
        })
    }

    /// Tells xenstored that a domain that had shut down runs on, so that its next shutdown is reported again.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn resume(&self, domid: DomId) -> Result<()> {
        self.done("xs_resume_domain", Some(domid), |raw| {
            // SAFETY: an open handle and a plain value.
            unsafe { sys::xs_resume_domain(raw, domid.raw()) }
        })
    }

    /// Gives a domain another's rights in the store.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn set_target(&self, domid: DomId, target: DomId) -> Result<()> {
        self.done("xs_set_target", Some(domid), |raw| {
            // SAFETY: an open handle and plain values.
            unsafe { sys::xs_set_target(raw, domid.raw(), target.raw()) }
        })
    }

    /// A domain's home, as `/local/domain/7`. Answered for any id.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn domain_path(&self, domid: DomId) -> Result<Vec<u8>> {
        let path = self.got("xs_get_domain_path", Some(domid), |raw| {
            // SAFETY: an open handle and a plain value.
            unsafe { sys::xs_get_domain_path(raw, domid.raw()) }
        })?;
        // SAFETY: the library returned a C string.
        Ok(unsafe { CStr::from_ptr(path.0.as_ptr()) }.to_bytes().to_vec())
    }

    /// Whether xenstored knows the domain.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn is_domain_introduced(&self, domid: DomId) -> Result<bool> {
        const CALL: &str = "xs_is_domain_introduced";
        let answer = self.done(CALL, Some(domid), |raw| {
            // SAFETY: an open handle and a plain value.
            unsafe { sys::xs_is_domain_introduced(raw, domid.raw()) }
        });
        match answer {
            Ok(()) => Ok(true),
            // The function's "no" and its failure differ only in errno.
            Err(Error::Call { errno: 0, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for XsHandle {
    fn drop(&mut self) {
        if self.owner.is_here() {
            // SAFETY: `raw` came from xs_open and is closed once; the library ends its reader thread first.
            unsafe { sys::xs_close(self.raw.as_ptr()) };
        }
    }
}

/// Memory the library allocated for the caller.
struct Malloced<T>(NonNull<T>);

impl<T> Drop for Malloced<T> {
    fn drop(&mut self) {
        // SAFETY: from malloc, owned by the caller by the library's contract, freed once.
        unsafe { libc::free(self.0.as_ptr().cast()) };
    }
}

/// Copies C strings out.
///
/// # Safety
/// The memory starts with `count` pointers to C strings.
unsafe fn strings(list: &Malloced<*mut c_char>, count: usize) -> Vec<Vec<u8>> {
    // SAFETY: the caller's promise.
    let list = unsafe { slice::from_raw_parts(list.0.as_ptr(), count) };
    // SAFETY: as above.
    list.iter().map(|name| unsafe { CStr::from_ptr(*name) }.to_bytes().to_vec()).collect()
}

fn to_event(event: &Malloced<*mut c_char>) -> XsEvent {
    // SAFETY: the library checked or returned that there are at least two strings: path and token.
    let mut fields = unsafe { strings(event, 2) }.into_iter();
    XsEvent { path: fields.next().unwrap_or_default(), token: fields.next().unwrap_or_default() }
}

fn raw_permission(entry: XsPermission) -> sys::xs_permissions {
    let bit = |set: bool, bit: u32| if set { bit } else { sys::XS_PERM_NONE };
    sys::xs_permissions {
        id: entry.domid,
        perms: bit(entry.read, sys::XS_PERM_READ) | bit(entry.write, sys::XS_PERM_WRITE),
    }
}

fn message_length(call: &'static str, length: usize) -> Result<c_uint> {
    c_uint::try_from(length).map_err(|_| Error::plain(call, None, libc::E2BIG))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connecting_without_a_store_names_what_was_tried() {
        if ["/run/xenstored/socket", "/dev/xen/xenbus"].iter().any(|p| std::path::Path::new(p).exists()) {
            return;
        }
        let error = XsHandle::open().unwrap_err();
        assert!(matches!(&error, Error::NoXen { errno: libc::ENOENT, .. }), "{error:?}");
        assert!(error.to_string().contains("xenbus"), "{error}");
    }

    #[test]
    fn permissions_become_the_librarys_bits() {
        let raw = |read, write| raw_permission(XsPermission { domid: 7, read, write }).perms;
        assert_eq!([raw(false, false), raw(true, false), raw(false, true), raw(true, true)], [0, 1, 2, 3]);
    }
}
