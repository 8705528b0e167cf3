//! Linux side of the host edge: loop devices, block devices, network interfaces, the administrator's scripts.
//!
//! ```text
//!  disk path ─► blockdev::open_disk ─┬─ Disk::Block ───────────────────────► major:minor ─► blkback
//!                                    ├─ Disk::File ──► loopdev::attach ────► major:minor ─► blkback
//!                                    └─ image ──► disk_server ──► nbd ─────► major:minor ─► blkback
//!  command line ► device_model::start ─► ffi::jail ─► QEMU
//!  vifD.N ────► nftables (what it may send) ─► vif::connect_vif ─► netlink (address, MTU, bridge, up), or ovsdb (port) ─► netback
//! ```
//!
//! Everything here names kernel objects by numbers that cannot be taken over while they are held (descriptors,
//! interface indices), because names can be reused by somebody else between two calls.

pub mod backend_threads;
pub mod blockdev;
pub mod boot;
pub mod device_model;
pub mod disk_server;
pub mod ends;
pub mod ethtool;
pub mod frame_buffer;
mod generic;
pub mod loopdev;
pub mod mac;
pub mod nbd;
pub mod netlink;
pub mod network_watch;
pub mod nftables;
pub mod nic;
pub mod ovsdb;
pub mod ports;
pub mod process;
pub mod pty;
pub mod release;
pub mod script;
pub mod serial;
pub mod storage;
pub mod suspend_file;
pub mod terminal;
pub mod vif;
