//! What the end-to-end tests share: a nested host with the daemon in it, guests for it, and a look at everything that
//! must be gone when a guest is.
//!
//! ```no_run
//! let dom0 = suite::Dom0::start();
//! let before = dom0.snapshot();
//! let guest = suite::Guest::new("web").cmdline("gip=10.9.0.21").vif("xenbr0");
//! dom0.boot(&guest);
//! dom0.hard_shutdown(&guest).expect("goes down");
//! before.must_be_left(&dom0);
//! ```
//!
//! Helpers panic with what happened, because in a test nothing else can be done with it. A test that fails shows the
//! end of the daemon's log.

mod boot_server;
mod dom0;
mod guest;
mod medians;
mod probe;
mod process_view;
mod screen;
mod snapshot;
mod wire;

pub use dom0::{Dom0, HTTP, LIMIT};
pub use guest::Guest;
pub use medians::Medians;
pub use probe::Ask;
pub use process_view::{Descriptor, ProcessView};
pub use screen::{Screen, Viewing};
pub use snapshot::Snapshot;
pub use wire::Reply;
