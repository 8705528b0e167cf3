//! Every `unsafe` line of the project: bindings to Xen's C libraries, owned handles, safe calls.
//!
//! ```text
//!   sys          bindgen's output (private)          compat    what differs between releases of Xen
//!   error, log   failures with the library's text    domid     which numbers are domains
//!   xenctrl      hypercalls   builder  xc_dom: kernel image -> domain
//!   evtchn, foreignmemory, gnttab, devicemodel, xs   one owned handle each
//!   restrict     handles that can only touch one domain
//!   linux        system calls no dependency wraps
//! ```
//!
//! Every handle closes on drop, may move between threads but not be shared by them, and refuses to work in a forked
//! child ([`Error::Forked`]).

pub mod builder;
mod compat;
pub mod domid;
pub mod error;
pub mod evtchn;
pub mod linux;
mod log;
mod process;
mod sys;
pub mod xenctrl;

pub use domid::DomId;
pub use error::{Error, Result};
pub use xenctrl::Xenctrl;
