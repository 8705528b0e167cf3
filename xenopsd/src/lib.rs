//! The Xen toolstack backend as a library; `src/bin/xenopsd.rs` and `src/bin/xenops.rs` are thin programs over it.
//!
//! ```text
//!  clients ──► rpc (frames, codecs) ──► api (the contract) ──► service
//!                                                                │
//!                         state (records on disk) ◄── ops (plan, queues, tasks, updates)
//!                                                                │ atoms
//!                                                      domain ◄──┴──► device
//!                                                          │            │
//!                                                          └── edge ────┘   (hypervisor, xenstore, Linux)
//! ```

#[macro_use]
pub mod api;
pub mod cli;
pub mod edge;
pub mod rfb;
pub mod rpc;
pub mod xlcfg;

pub mod config;
pub mod core;
pub mod daemon;
pub mod device;
pub mod dm;
pub mod domain;
pub mod hostinfo;
pub mod ops;
pub mod service;
pub mod sim;
pub mod state;
#[cfg(test)]
mod testing;
#[cfg(test)]
pub(crate) use testing::*;
