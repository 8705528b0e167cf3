//! The kernel's network block devices: a disk server's connection shown as a block device, for blkback.
//!
//! ```text
//!          reserve(N)            NBD_CMD_CONNECT (socket, size, identifier)
//!  free N ───────────► recorded ─────────────────────────► /dev/nbdN ──disconnect(N, identifier)──► free with its last user
//!     ▲                            │ EBUSY: somebody else took N
//!     └────────────────────────────┘
//! ```
//!
//! A device keeps its socket until it is disconnected, also across a crash of the daemon, and a server that has ended leaves a
//! device whose reads and writes fail. Each is given an identifier, which the kernel shows in `/sys/block/nbdN/backend` (Linux
//! 5.14 and later): a number that is somebody else's by now is left alone.

pub mod negotiate;

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use super::blockdev::DevNumber;
use super::generic::Family;
pub use super::generic::GenericError;
use negotiate::Export;

/// Major number of network block devices (Linux `include/uapi/linux/major.h`).
pub const MAJOR: u64 = 43;

const SYS_BLOCK: &str = "/sys/block";

/// The driver's parameter that says how many partitions of a disk the kernel looks for.
const PARTITIONS: &str = "/sys/module/nbd/parameters/max_part";

/// Most devices: what the kernel has numbers for when it looks for partitions (16 as it comes, rounded up to 32 each).
const MAX_DEVICES: u32 = 1 << 15;

/// How often a number that was free a moment ago may turn out to be taken, as with loop devices.
const ATTEMPTS: usize = 64;

/// How long the server may take for one request before the kernel gives it up, and with it the disk. No storage takes as long;
/// a server that is stuck or taken over must not hold the backend for ever.
const REQUEST_LIMIT: Duration = Duration::from_secs(120);

// <linux/nbd-netlink.h>
const FAMILY: &str = "nbd";
const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const INDEX: u16 = 1;
const SIZE: u16 = 2;
const BLOCK_SIZE: u16 = 3;
const TIMEOUT: u16 = 4;
const SERVER_FLAGS: u16 = 5;
const SOCKETS: u16 = 7;
const IDENTIFIER: u16 = 10;
/// In [`SOCKETS`], and in that.
const SOCKET: u16 = 1;

/// Why a server's disk is no block device, or still one.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// No driver.
    #[error("no network block devices on this host: load the driver with `modprobe nbd max_part=0`")]
    NoDriver,
    /// Others were always faster, or there is none left.
    #[error("no free network block device: other programs have them all, or take every one first")]
    NoneFree,
    /// The caller could not write the number down.
    #[error("network block device {number} was not used because it could not be recorded: {source}")]
    NotRecorded {
        /// The number that was going to be used.
        number: u32,
        /// The caller's error.
        source: io::Error,
    },
    /// Its identifier is not shown.
    #[error("/dev/nbd{number} does not show whose it is: the kernel must be Linux 5.14 or later")]
    NotIdentified {
        /// N of `/dev/nbdN`.
        number: u32,
    },
    /// The kernel's refusal.
    #[error("cannot {action} /dev/nbd{number}: {source}")]
    Refused {
        /// N of `/dev/nbdN`.
        number: u32,
        /// What was tried.
        action: &'static str,
        /// Its answer.
        source: GenericError,
    },
    /// What the kernel shows of a device cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// Where.
        path: PathBuf,
        /// Its answer.
        source: io::Error,
    },
}

/// A device that shows a server's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NbdDevice {
    /// N of `/dev/nbdN`.
    pub number: u32,
    /// `/dev/nbdN`.
    pub path: PathBuf,
    /// Its device number, for the backend.
    pub dev: DevNumber,
}

/// Checks that there is a driver. Says so where it looks into guests' disks.
///
/// # Errors
/// [`NbdError::NoDriver`].
pub fn check() -> Result<(), NbdError> {
    let text = fs::read_to_string(PARTITIONS).map_err(|_| NbdError::NoDriver)?;
    if text.trim() != "0" {
        tracing::warn!(
            "dom0's kernel looks for partitions in guests' disks that a disk server shows: load the driver with `modprobe nbd max_part=0`"
        );
    }
    Ok(())
}

/// Shows what is served on `socket` as a block device with blocks of `block_size` bytes. `identifier` has neither zero nor line
/// end.
///
/// `reserve` is called with each number before it is tried, the last call wins, as with loop devices.
///
/// # Errors
/// [`NbdError`]; nothing is connected then.
pub fn connect(
    socket: BorrowedFd<'_>,
    export: Export,
    block_size: u32,
    identifier: &str,
    reserve: &mut dyn FnMut(u32) -> io::Result<()>,
) -> Result<NbdDevice, NbdError> {
    let mut family = Family::open(FAMILY).map_err(|_| NbdError::NoDriver)?;
    let mut free = (0..MAX_DEVICES).filter(|number| !is_connected(*number));
    for _ in 0..ATTEMPTS {
        let Some(number) = free.next() else { break };
        reserve(number).map_err(|source| NbdError::NotRecorded { number, source })?;
        let connected = family.call(CONNECT, |request| {
            request
                .number(INDEX, number)
                .long(SIZE, export.size)
                .long(BLOCK_SIZE, block_size.into())
                .long(TIMEOUT, REQUEST_LIMIT.as_secs())
                .long(SERVER_FLAGS, export.flags.into())
                .text(IDENTIFIER, identifier)
                .nested(SOCKETS, |sockets| {
                    sockets.nested(SOCKET, |one| one.number(SOCKET, socket.as_raw_fd().unsigned_abs()))
                })
        });
        match connected {
            Ok(()) => {}
            Err(GenericError::Kernel(Errno::EBUSY)) => continue,
            Err(source) => return Err(NbdError::Refused { number, action: "connect", source }),
        }
        if backend(number).as_deref() != Some(identifier) {
            let _ = family.call(DISCONNECT, |request| request.number(INDEX, number));
            return Err(NbdError::NotIdentified { number });
        }
        return device(number);
    }
    Err(NbdError::NoneFree)
}

/// Disconnects the device of that number if it is the one that is meant; whether it was. Whoever still has it open gets errors.
///
/// # Errors
/// The kernel's.
pub fn disconnect(number: u32, identifier: &str) -> Result<bool, NbdError> {
    if backend(number).as_deref() != Some(identifier) {
        return Ok(false);
    }
    let refused = |source| NbdError::Refused { number, action: "disconnect", source };
    let mut family = Family::open(FAMILY).map_err(refused)?;
    match family.call(DISCONNECT, |request| request.number(INDEX, number)) {
        Ok(()) => Ok(true),
        // Nothing is configured any more, or it is being taken down.
        Err(GenericError::Kernel(Errno::EINVAL | Errno::EBUSY | Errno::ENOENT)) => Ok(false),
        Err(source) => Err(refused(source)),
    }
}

/// The device of that number if it shows the disk that is meant.
///
/// # Errors
/// [`NbdError::Unreadable`].
pub fn find(number: u32, identifier: &str) -> Result<Option<NbdDevice>, NbdError> {
    if backend(number).as_deref() == Some(identifier) { device(number).map(Some) } else { Ok(None) }
}

/// Who the device of that number, of minor number `minor`, was said to belong to.
pub fn backend_of(minor: u64) -> Option<String> {
    let path = format!("/sys/dev/block/{}/backend", DevNumber { major: MAJOR, minor });
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

fn attribute(number: u32, name: &str) -> PathBuf {
    Path::new(SYS_BLOCK).join(format!("nbd{number}")).join(name)
}

/// The kernel shows who connected it while it is.
fn is_connected(number: u32) -> bool {
    attribute(number, "pid").exists()
}

fn backend(number: u32) -> Option<String> {
    fs::read_to_string(attribute(number, "backend")).ok().map(|text| text.trim_end().to_owned())
}

fn device(number: u32) -> Result<NbdDevice, NbdError> {
    let path = attribute(number, "dev");
    let unreadable = |source| NbdError::Unreadable { path: path.clone(), source };
    let text = fs::read_to_string(&path).map_err(unreadable)?;
    let pair = text.trim().split_once(':').and_then(|(major, minor)| {
        Some(DevNumber { major: major.parse().ok()?, minor: minor.parse().ok()? })
    });
    let dev = pair.ok_or_else(|| unreadable(io::ErrorKind::InvalidData.into()))?;
    Ok(NbdDevice { number, path: PathBuf::from(format!("/dev/nbd{number}")), dev })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_the_driver_says_what_to_load() {
        if Path::new(PARTITIONS).exists() {
            // A connected device is what the nested host's tests have.
            return;
        }
        assert!(matches!(check(), Err(NbdError::NoDriver)));
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let export = Export { size: 4096, flags: 1 };
        let refused = connect(std::os::fd::AsFd::as_fd(&socket), export, 512, "x", &mut |_| Ok(()));
        assert!(refused.unwrap_err().to_string().contains("modprobe nbd"));
        assert!(!disconnect(0, "x").unwrap());
        assert!(find(0, "x").unwrap().is_none() && backend_of(0).is_none());
    }
}
