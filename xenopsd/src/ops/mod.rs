//! From a request to its effects: what is to be done (a pure [`plan`], or a [`change`] of what runs), by whom and when ([`queue`]), how a client
//! follows it ([`task`], [`updates`], [`explain`]), and the [`runner`] that takes the steps and undoes them on failure.

pub mod change;
pub mod explain;
pub mod hook;
pub mod plan;
pub mod queue;
pub mod runner;
pub mod starts;
pub mod task;
pub mod timer;
pub mod updates;
pub mod wait;

/// Stack of threads that only pass messages, in bytes.
pub const SMALL_STACK: usize = 128 * 1024;

/// Stack of threads that run operations, in bytes: libxenguest's builders keep page-sized arrays on theirs.
pub const WORKER_STACK: usize = 2 * 1024 * 1024;
