//! Xenstore for a toolstack: the wire protocol, a client, watches for an event loop, and the typed layouts of
//! everything a domain needs to find in the store.
//!
//! ```text
//!  layout, vmdata      what is written: tables -> Batch      subtree  what guests wrote, read within bounds
//!        |
//!  client              read/write/..., Batch, transactions      watch    events for a mio loop
//!        |                                                        |
//!  transport           socket | /dev/xen/xenbus | any other       |
//!        |                                                        |
//!  wire  (path, perms) bytes <-> requests and replies, no I/O  ---+
//! ```

pub mod path;
pub mod perms;
pub mod wire;

pub use path::Path;
pub use perms::{Access, DomId, Perms};
pub use wire::{Errno, Reply, Request, TxId};

pub mod batch;
mod client;
#[cfg(feature = "xenstore-rs")]
pub mod compat;
mod error;
pub mod layout;
mod operations;
pub mod store;
pub mod subtree;
pub mod transport;
pub mod vmdata;
pub mod watch;

pub use batch::{Batch, Step};
pub use client::{Client, MAX_ATTEMPTS, Transaction};
pub use error::Error;
pub use operations::{MAX_DIRECTORY, MAX_DIRECTORY_RESTARTS, Operations};
pub use transport::{Endpoint, Transport, TransportError};
pub use vmdata::VmData;
pub use watch::{WatchStream, WatchToken};
