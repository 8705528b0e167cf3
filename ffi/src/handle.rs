//! What all of Xen's library handles have in common: opened with a logger, usable only in the process that opened
//! them, errors in `errno`, closed once.

use std::ffi::c_int;
use std::ptr::NonNull;

use crate::domid::DomId;
use crate::error::{Error, Result, clear_errno, last_errno};
use crate::log::Logger;
use crate::sys;

/// Remembers the process that opened a handle.
///
/// A forked child shares the descriptors but not the hypercall buffers (they are `MADV_DONTFORK`) nor the reader
/// threads, so a handle is useless and harmful there: every call asks [`Owner::check`] first, and the destructor
/// closes nothing in a child.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    handle: &'static str,
    pid: u32,
}

impl Owner {
    pub(crate) fn this_process(handle: &'static str) -> Self {
        Self { handle, pid: std::process::id() }
    }

    /// `Err(Error::Forked)` in any process but the one that opened the handle.
    pub(crate) fn check(self) -> Result<()> {
        if self.is_here() { Ok(()) } else { Err(Error::Forked { handle: self.handle, opened_by: self.pid }) }
    }

    pub(crate) fn is_here(self) -> bool {
        self.pid == std::process::id()
    }

    /// As if the handle came from a parent process.
    #[cfg(test)]
    pub(crate) fn pretend_forked(&mut self) {
        self.pid = self.pid.wrapping_add(1);
    }
}

/// A library's close function.
type Close<T> = unsafe extern "C" fn(*mut T) -> c_int;

/// An open handle of one of the libraries.
#[derive(Debug)]
pub(crate) struct Handle<T> {
    raw: NonNull<T>,
    close: Close<T>,
    owner: Owner,
    /// Dropped after `raw` is closed: closing may log.
    log: Logger,
}

// SAFETY: nothing in the libraries' handles is tied to the thread that opened them.
unsafe impl<T> Send for Handle<T> {}
// SAFETY: libxenevtchn, libxenforeignmemory, libxengnttab and libxendevicemodel keep nothing but a descriptor and the
// logger in a handle: each call is one system call on the descriptor, and the logger has a lock. libxenctrl, which
// keeps more, is wrapped in a type that is not `Sync`.
unsafe impl<T> Sync for Handle<T> {}

impl<T> Handle<T> {
    /// Opens a handle of `library`, which opens the device `what`.
    ///
    /// # Safety
    /// `open` is a library's open function called with the logger given to it, `close` its close function.
    pub(crate) unsafe fn open(
        library: &'static str,
        what: &'static str,
        open: impl FnOnce(*mut sys::xentoollog_logger) -> *mut T,
        close: Close<T>,
    ) -> Result<Self> {
        let log = Logger::new();
        clear_errno();
        let raw = open(log.as_ptr());
        let errno = last_errno();
        match NonNull::new(raw) {
            Some(raw) => Ok(Self { raw, close, owner: Owner::this_process(library), log }),
            None => Err(Error::NoXen { what, errno, detail: log.take_errors() }),
        }
    }

    /// The pointer, after checking that this process may use it.
    pub(crate) fn raw(&self) -> Result<*mut T> {
        self.owner.check()?;
        Ok(self.raw.as_ptr())
    }

    /// The pointer, for what harms nobody in a forked child.
    pub(crate) fn raw_unchecked(&self) -> *mut T {
        self.raw.as_ptr()
    }

    pub(crate) fn log(&self) -> &Logger {
        &self.log
    }

    /// Runs one library function and turns a negative result into an [`Error`].
    ///
    /// The functions return -1 and set `errno`, but some return `-errno`.
    pub(crate) fn run(
        &self,
        call: &'static str,
        domid: Option<DomId>,
        function: impl FnOnce(*mut T) -> c_int,
    ) -> Result<c_int> {
        let raw = self.raw()?;
        self.log.clear();
        clear_errno();
        let result = function(raw);
        let errno = last_errno();
        match result {
            0.. => Ok(result),
            -1 => Err(self.failed(call, domid, errno)),
            _ => Err(self.failed(call, domid, -result)),
        }
    }

    /// Runs one library function that returns a pointer, null for failure.
    pub(crate) fn run_pointer<P>(
        &self,
        call: &'static str,
        domid: Option<DomId>,
        function: impl FnOnce(*mut T) -> *mut P,
    ) -> Result<NonNull<P>> {
        let raw = self.raw()?;
        self.log.clear();
        clear_errno();
        let result = function(raw);
        let errno = last_errno();
        NonNull::new(result).ok_or_else(|| self.failed(call, domid, errno))
    }

    fn failed(&self, call: &'static str, domid: Option<DomId>, errno: i32) -> Error {
        Error::Call { call, domid: domid.map(u32::from), errno, detail: self.log.take_errors() }
    }

    #[cfg(test)]
    pub(crate) fn pretend_forked(&mut self) {
        self.owner.pretend_forked();
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        if self.owner.is_here() {
            // SAFETY: `raw` came from the library's open function and is closed once; the logger is still alive.
            unsafe { (self.close)(self.raw.as_ptr()) };
        }
    }
}

/// What can be passed to a library by value: proof for [`scalar_call!`] that no pointer is involved.
pub(crate) trait Scalar: Copy {}
macro_rules! scalars { ($($t:ty),*) => { $(impl Scalar for $t {})* } }
scalars!(u8, u16, u32, u64, i32, i64, bool);

/// The identity, for values without pointers only.
pub(crate) const fn scalar<T: Scalar>(value: T) -> T {
    value
}

/// `scalar_call!(handle, Some(domid), xc_domain_pause(arguments...))`: a library function whose arguments after the
/// handle are all plain numbers.
macro_rules! scalar_call {
    ($handle:expr, $domid:expr, $function:ident($($argument:expr),* $(,)?)) => {
        $handle.run(stringify!($function), $domid, |raw| {
            // SAFETY: `raw` is the open handle, and `scalar` lets through no pointers, so the function has nothing
            // else to reach.
            unsafe { crate::sys::$function(raw, $(crate::handle::scalar($argument)),*) }
        })
    };
}
pub(crate) use scalar_call;
