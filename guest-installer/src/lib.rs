//! Guest boot logic: from a guest's disk to its kernel, ramdisk and command line.
//!
//! ```text
//!   descriptor ─► disk ─► partition ─► fs ─► config ─► boot ─► kernel, ramdisk, arguments
//! ```
//! Every byte read here was written by a guest. Nothing trusts it: reads are checked against the volume they are in
//! and against a budget, numbers against [`limits`], and strings before they are passed on.

pub mod boot;
mod bytes;
pub mod config;
pub mod disk;
pub mod eliloader;
pub mod error;
pub mod fetch;
pub mod fs;
pub mod kernel;
pub mod limits;
pub mod output;
pub mod partition;
mod process;
pub mod pygrub;
#[cfg(test)]
mod testing;
pub mod volumes;
pub mod worker;

pub use error::{Error, Result};

/// Becomes a worker if this program was started as one ([`worker`], [`fetch`]); comes back at once if not.
#[must_use]
pub fn main_if_asked() -> Option<std::process::ExitCode> {
    match std::env::args_os().next()?.to_str()? {
        worker::NAME => Some(worker::inside::parse_disk()),
        fetch::NAME => Some(fetch::worker::main(fetch::download)),
        _ => None,
    }
}
