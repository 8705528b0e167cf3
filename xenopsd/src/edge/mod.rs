//! The three edges: everything that touches the machine goes through here, and nothing else does.
//!
//! | trait | what it is |
//! |---|---|
//! | [`Hypervisor`] | domains: create, build, pause, destroy, list; the host's resources |
//! | [`xenstore::Transport`] | the store, reached through [`xenstore::Client`] |
//! | [`Host`] | Linux: disks, network interfaces, images |
//!
//! [`Edges`] bundles them and lends connections to worker threads: neither libxenctrl's handle nor a xenstore
//! connection may be shared between threads, so each worker borrows its own and gives it back.

mod acpi;
mod build;
mod device_model;
pub mod disk_image;
mod disk_server;
mod events;
mod firmware;
mod host;
mod hypervisor;
mod image;
mod kernel_search;
pub mod linux;
mod machine;
mod network;
mod pool;
mod screen;
mod state_file;
pub mod storage;
mod unhurried;
mod xen;

pub use device_model::{
    DeviceModel, FIRST_DESCRIPTOR, KILL_LIMIT, MONITOR, NewDeviceModel, Note, StartFile, Terminal,
};
pub use ffi::builder::HOLE_SIZES;
pub use ffi::domid::DomId;
pub use ffi::linux::ethtool::Offload;
pub use ffi::migrate::Stream;
pub use ffi::xenctrl::{CpuMap, DomainInfo, FeatureSet, GuestKind, Physinfo, ShutdownReason, XenVersion};

pub use build::{
    Built, DomainImage, GrantFrames, HvmImage, KernelImage, NO_DELAY_FOR_MISSED_TICKS, NewDomain, Platform,
    Resources, Ring, ShimImage, TscMode,
};
pub use disk_image::{IMAGE_FORMAT, ImageFormat};
pub use disk_server::{DISK_SERVER, NoteServer, ServerWanted, disk_of};
pub use events::{Events, Following, Subscription};
pub use firmware::{Firmware, FirmwarePaths};
pub use host::{
    AttachedDisk, DiskId, DiskWanted, Followed, FrameBufferWanted, Host, HostError, IoPriority, Prepared,
    Reserve, ScreenSocket, ScriptEnd, ScriptError, ScriptRun, TerminalPorts, TerminalSockets, TerminalWanted,
};
pub use hypervisor::{Hypervisor, HypervisorError};
pub use image::{Image, ImageError, ImageFile, MAX_KERNEL, MAX_RAMDISK, Pages};
pub use kernel_search::{FoundKernel, Installing, KernelLimits, KernelSearch, KernelSearchError};
pub use linux::blockdev::{Access, FileId};
pub use linux::boot::BootLoader;
pub use linux::ends::Tell;
pub use linux::loopdev::BlockSize;
pub use linux::mac::MacAddr;
pub use linux::nftables::Locked;
pub use linux::suspend_file::SuspendFile;
pub use machine::{LinuxHost, StoreAddress, real};
pub use network::{BridgeKind, NetworkNews, NetworkTell, VifScripts, VifSettings};
pub use pool::{Edges, Lent};
pub use screen::{ScreenAddress, ScreenListener, ScreenPlace};
pub use state_file::{MAX_STATE, StateFile};
pub use storage::{Attached, Datapath, StorageCall, StorageError, Vdi, Verb};
pub use xen::free_memory_mib;
