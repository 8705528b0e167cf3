//! The nested Xen host: a real Xen with a real dom0 inside QEMU, without KVM, on any Debian 12 machine.
//!
//! It builds its own dom0 image from Debian packages, boots it once, snapshots the running dom0, and gives each test
//! a copy-on-write clone of that in about a second:
//!
//! ```no_run
//! # fn main() -> Result<(), xen_host::Error> {
//! let host = xen_host::Template::base(xen_host::Options::default())?.start()?;
//! assert!(host.check(&["xl", "list"])?.contains("Domain-0"));
//! # Ok(()) }
//! ```
//!
//! Everything has a deadline, and failures carry the end of the Xen console. Nothing here needs root, except for
//! installing packages and for [`DebianDisk`]; everything lives under `target/nested`.

pub mod boot_sector;
mod error;
mod forward;
mod hash;
mod host;
mod image;
mod lock;
mod machine;
pub mod packages;
mod paths;
mod plug;
mod preload;
pub mod probe;
mod process;
pub mod programs;
pub mod progress;
mod qmp;
mod snapshot;
mod ssh;
mod vm;
mod watch;

pub use error::{Error, Result};
pub use forward::Forward;
pub use host::{COMMAND_LIMIT, Host};
pub use image::{DebianDisk, Image};
pub use lock::{SLOTS_VARIABLE, slots};
pub use machine::{C_XENSTORED_VARIABLE, Options, Processors};
pub use paths::{target, workspace};
pub use process::{Output, Stream};
pub use qmp::QmpError;
pub use snapshot::{Layer, Template};
pub use ssh::{quote, quote_all};
