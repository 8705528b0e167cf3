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
pub mod error;
pub mod fs;
pub mod kernel;
pub mod limits;
pub mod partition;
pub mod pygrub;
#[cfg(test)]
mod testing;
pub mod volumes;
pub mod worker;

pub use error::{Error, Result};
