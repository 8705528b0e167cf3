//! Linux system calls that no safe crate offers: loop device and block device ioctls, one netlink socket option, taps, I/O priorities, files
//! mapped under a lease.
//!
//! Each function is one system call on a descriptor the caller owns, with plain structures in and out. Which calls
//! are made in which order, and what an error means for a disk or an interface, is decided by the (safe) callers.

pub mod block;
pub mod ethtool;
mod ioctl;
pub mod ioprio;
pub mod loopdev;
pub mod mapped;
pub mod netlink;
pub mod sched;
pub mod tap;
