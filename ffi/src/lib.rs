//! Every `unsafe` line of the project: bindings to Xen's C libraries, owned handles, safe calls.
//!
//! ```text
//!   sys           bindgen's output (private)         compat    what differs between releases of Xen
//!   error, log    failures with the library's text   domid     which numbers are domains
//!   xenctrl       hypercalls                         builder   kernel image -> domain (xc_dom)
//!   migrate       a domain's memory to and from a stream
//!   evtchn, foreignmemory, gnttab, devicemodel, xs   one owned handle each
//!   shared        memory a guest can change          restrict  handles that can only touch one domain
//!   given         Xen's drivers by descriptors from another process
//!   jail              processes that own nothing      passing  descriptors between processes
//!   pid, sig, linux   system calls no dependency wraps
//! ```
//!
//! Every handle closes on drop, may move between threads (and be shared by them where the library allows it), and
//! refuses to work in a forked child ([`Error::Forked`]).

pub mod builder;
mod compat;
pub mod devicemodel;
pub mod domid;
pub mod error;
pub mod evtchn;
pub mod foreignmemory;
pub mod given;
pub mod gnttab;
mod handle;
pub mod jail;
pub mod linux;
mod log;
pub mod migrate;
pub mod passing;
pub mod pid;
pub mod restrict;
pub mod shared;
pub mod sig;
mod sys;
pub mod xenctrl;
#[cfg(feature = "libxenstore")]
pub mod xs;

pub use domid::DomId;
pub use error::{Error, Result};
pub use xenctrl::Xenctrl;
