//! A guest's kernel from its own disk: what is asked, and what comes of it.

use std::convert::Infallible;
use std::fmt;
use std::path::Path;

use crossbeam::channel::Receiver;
use guest_installer::boot::Request;
use guest_installer::eliloader::{Changes, Install};

use super::{DomId, HostError, ImageFile};

/// What to look for.
#[derive(Debug)]
pub struct KernelSearch<'a> {
    /// The disk.
    pub disk: &'a Path,
    /// Which entry or files. Its limits are the host's and the VM's.
    pub request: &'a Request,
    /// The VM's own limits.
    pub limits: KernelLimits,
    /// The domain it is for: who looks has a user of its own.
    pub domid: DomId,
    /// Disconnected when it is no longer wanted.
    pub cancelled: &'a Receiver<Infallible>,
    /// A round of an installation, whose kernel need not be on the disk.
    pub install: Option<Installing<'a>>,
}

/// A round of an installation.
#[derive(Clone, Copy)]
pub struct Installing<'a> {
    /// Which.
    pub install: &'a Install,
    /// Told which fraction of its files is there.
    pub progress: &'a (dyn Fn(f64) + Sync),
}

impl fmt::Debug for Installing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Installing").field(self.install).finish()
    }
}

/// How large the files may be, in bytes; the host's limit where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelLimits {
    /// The kernel's file, as it is on the disk.
    pub kernel: Option<u64>,
    /// The kernel once it is unpacked.
    pub unpacked: Option<u64>,
    /// All ramdisks together.
    pub ramdisk: Option<u64>,
}

/// What was found. The files have no name and go with their last user.
#[derive(Debug)]
pub struct FoundKernel {
    /// The title of the entry that was taken, or where the kernel came from; empty when it was named.
    pub title: String,
    /// The kernel, unpacked.
    pub kernel: ImageFile,
    /// The ramdisk.
    pub ramdisk: Option<ImageFile>,
    /// What the entry says is the kernel's command line.
    pub args: String,
    /// What becomes of the record, of a round of an installation.
    pub changes: Option<Changes>,
}

/// Why nothing was.
#[derive(Debug, thiserror::Error)]
pub enum KernelSearchError {
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] HostError),
    /// There is no kernel on it that could be taken, for a reason the guest's owner can do something about.
    #[error("{0}")]
    None(String),
    /// It could not be looked for.
    #[error("{0}")]
    Unable(String),
    /// It was not wanted any more.
    #[error("it was cancelled")]
    Cancelled,
}
