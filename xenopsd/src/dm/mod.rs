//! The device model of an HVM guest: a QEMU that emulates its firmware's view of a PC, assumed taken over by the guest.
//!
//! ```text
//!   VM record ──► args (pure) ──► the command line ──► ffi::jail
//!                                                        │ socket
//!                                 qmp ◄──────────────────┘   commands, answers, events
//! ```

pub mod args;
pub mod qmp;
