//! Disks that a process serves: images of formats that dom0's kernel does not read.
//!
//! ```text
//!   blkback ──► /dev/nbdN ──► the kernel's NBD client ──socket──► disk server (QEMU, jailed) ──descriptor──► image
//! ```

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use super::disk_image::ImageFormat;
use super::{Access, BlockSize, DiskId, DomId, HostError};
use crate::state::journal::DiskServerId;

/// What the journal calls a disk server's process.
pub const DISK_SERVER: &str = "disk-server";

/// A disk that is to be served.
#[derive(Debug, Clone, Copy)]
pub struct ServerWanted<'a> {
    /// To which domain: its servers have a user of their own.
    pub domid: DomId,
    /// Of which VM.
    pub vm: &'a str,
    /// The number the guest knows the disk by.
    pub vdev: u32,
    /// The image: a file, or a block device.
    pub path: &'a Path,
    /// How it is opened.
    pub access: Access,
    /// What it is, whatever it looks like.
    pub format: ImageFormat,
    /// Logical blocks of the disk.
    pub block_size: BlockSize,
}

/// Writes down what is known of a server, the first time before there is anything of it, and each time before there is more.
pub type NoteServer<'a> = dyn FnMut(&DiskServerId) -> Result<(), HostError> + Send + 'a;

/// As it is in the journal and where the kernel shows whose a device is: `file:DEVICE:INODE` or `block:MAJOR:MINOR`, in
/// hexadecimal.
impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block { major, minor } => write!(f, "block:{major:x}:{minor:x}"),
            Self::File { device, inode } => write!(f, "file:{device:x}:{inode:x}"),
        }
    }
}

impl FromStr for DiskId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = || {
            let (kind, rest) = text.split_once(':')?;
            let (first, second) = rest.split_once(':')?;
            let number = |text| u64::from_str_radix(text, 16).ok();
            Some((kind, number(first)?, number(second)?))
        };
        match parts() {
            Some(("block", major, minor)) => Ok(Self::Block { major, minor }),
            Some(("file", device, inode)) => Ok(Self::File { device, inode }),
            _ => Err(format!("{text:?} names no disk")),
        }
    }
}

/// What identifiers of this daemon's devices begin with.
const IDENTIFIER: &str = "xenopsd";

impl DiskServerId {
    /// What the kernel is told that its device belongs to: the process, and the disk. None before there is a process.
    pub fn identifier(&self) -> Option<String> {
        let process = self.process.as_ref()?;
        Some(format!("{IDENTIFIER} {}.{} {}", process.pid, process.started, self.disk))
    }
}

/// The disk behind a device of that [identifier](DiskServerId::identifier); none of somebody else's.
pub fn disk_of(identifier: &str) -> Option<DiskId> {
    let (_process, disk) = identifier.strip_prefix(IDENTIFIER)?.strip_prefix(' ')?.split_once(' ')?;
    disk.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::journal::ProcessId;

    #[test]
    fn an_identifier_leads_to_the_disk() {
        let file = DiskId::File { device: 0xfe00, inode: 77 };
        let process = ProcessId { pid: 12, started: 34, uid: 0, role: DISK_SERVER.to_owned() };
        let mut server = DiskServerId { disk: file.to_string(), ..DiskServerId::default() };
        assert_eq!(server.identifier(), None);
        server.process = Some(process);
        let identifier = server.identifier().unwrap();
        assert_eq!(identifier, "xenopsd 12.34 file:fe00:4d");
        assert_eq!(disk_of(&identifier), Some(file));
        let block = DiskId::Block { major: 253, minor: 1 };
        assert_eq!(block.to_string().parse(), Ok(block));
        for other in
            ["", "xenopsd", "xenopsd 1.2", "xenopsd 1.2 file:1", "xenopsd 1.2 file:x:1", "nbd 1.2 file:1:1"]
        {
            assert_eq!(disk_of(other), None, "{other}");
        }
    }
}
