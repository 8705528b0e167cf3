//! The device model of an HVM guest: a QEMU that emulates its firmware's view of a PC, assumed taken over by the guest.
//!
//! ```text
//!   VM record ──► args (pure) ──► the command line ──► Host::start_device_model (the jail)
//!                                                        │ socket, descriptor of the process
//!                  model ◄── qmp ◄───────────────────────┘   commands, answers, events, its end
//! ```

pub mod args;
pub mod drives;
pub mod kernel;
pub mod media;
pub mod model;
pub mod qmp;
pub mod state;
mod vcpus;
