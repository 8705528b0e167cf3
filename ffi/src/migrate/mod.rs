//! A domain's memory and processors to a stream and back: libxenguest's save and restore.
//!
//! ```text
//!   save      [live: copy pages while the guest runs, until the policy stops it] -> suspended? -> the rest
//!   restore   header -> CPU policy (or the lack of one) -> pages, processors -> rings
//! ```
//!
//! Both calls run on the caller's thread until the stream is through, for minutes with a big domain. The library looks at
//! nothing but the stream meanwhile, so [`Stream::stop`] from another thread is what ends them early: every later read
//! or write on it fails, and the library takes its own error path, which gives back what it mapped and switches
//! logging of dirty pages off.

mod restore;
mod save;
mod stream;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

pub use restore::{RingEnds, restore};
pub use save::{Precopy, PrecopyStats, SaveCallbacks, save};
pub use stream::{Stopper, Stream};

use crate::domid::DomId;
use crate::error::Error;

/// Why a save or a restore failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// [`Stream::stop`] or [`Stopper::stop`] was called.
    #[error("domain {domid}: the stream was stopped")]
    Stopped {
        /// The domain.
        domid: DomId,
    },
    /// The callback that sees to the guest's suspension did not.
    #[error("domain {domid} was not suspended")]
    NotSuspended {
        /// The domain.
        domid: DomId,
    },
    /// The precopy policy gave up.
    #[error("domain {domid}: copying the running guest was given up")]
    GaveUp {
        /// The domain.
        domid: DomId,
    },
    /// Reading or writing the stream, or a hypercall, failed.
    #[error(transparent)]
    Call(#[from] Error),
}

/// Panics of callbacks: kept while C code is on the stack, and let go after it has returned.
#[derive(Default)]
struct Panics(Option<Box<dyn Any + Send>>);

impl Panics {
    /// What `run` returns, or `failed` when it, or an earlier one, panicked.
    fn contain<R>(&mut self, failed: R, run: impl FnOnce() -> R) -> R {
        if self.0.is_some() {
            return failed;
        }
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(value) => value,
            Err(panic) => {
                self.0 = Some(panic);
                failed
            }
        }
    }

    /// Goes on with the panic, if there was one.
    fn release(self) {
        if let Some(panic) = self.0 {
            resume_unwind(panic);
        }
    }
}

#[cfg(test)]
mod tests;
