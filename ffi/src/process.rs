//! Which process owns a handle.

use crate::error::Error;

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
    pub(crate) fn check(self) -> Result<(), Error> {
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
