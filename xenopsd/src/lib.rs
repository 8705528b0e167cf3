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

pub mod api;
pub mod edge;
pub mod rpc;
pub mod xlcfg;
