//! Where a xenstored is to be found, and an open byte stream to it.

use super::MAX_IN_FLIGHT;
use crate::wire::{HEADER_LEN, MAX_PAYLOAD};
use nix::fcntl::OFlag;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// The socket of a xenstored that runs in this domain.
pub const DEFAULT_SOCKET: &str = "/run/xenstored/socket";
/// The kernel's way to a xenstored, wherever it runs.
pub const DEFAULT_XENBUS: &str = "/dev/xen/xenbus";
/// The environment variable that names another socket; libxenstore obeys it too.
pub const SOCKET_VARIABLE: &str = "XENSTORED_PATH";

/// Where a xenstored listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A Unix stream socket.
    Socket(PathBuf),
    /// The xenbus character device of the kernel.
    Xenbus(PathBuf),
}

impl Endpoint {
    /// Most requests that may be on their way, and the longest message with its header.
    ///
    /// The device holds one message of at most 4096 bytes per open file, and drops what follows it in the same
    /// write(2) (Linux `drivers/xen/xenbus/xenbus_dev_frontend.c`).
    pub(super) const fn limits(&self) -> Limits {
        match self {
            Self::Socket(_) => Limits { in_flight: MAX_IN_FLIGHT, message: HEADER_LEN + MAX_PAYLOAD },
            Self::Xenbus(_) => Limits { in_flight: 1, message: 4096 },
        }
    }

    /// What the environment says, else the default socket when it exists, else the device.
    pub fn from_environment() -> Self {
        if let Some(path) = std::env::var_os(SOCKET_VARIABLE).filter(|p| !p.is_empty()) {
            return Self::Socket(path.into());
        }
        let socket = PathBuf::from(DEFAULT_SOCKET);
        if socket.exists() { Self::Socket(socket) } else { Self::Xenbus(DEFAULT_XENBUS.into()) }
    }

    /// Opens a non-blocking stream. A full backlog of the socket is waited for up to `patience`, and not at all
    /// when that is zero.
    ///
    /// # Errors
    /// Whatever `socket(2)`, `connect(2)` or `open(2)` say; `WouldBlock` for a backlog that stayed full.
    pub fn open(&self, patience: Duration) -> io::Result<Link> {
        match self {
            Self::Socket(path) => {
                let flags = SockFlag::SOCK_CLOEXEC;
                let flags = if patience.is_zero() { flags | SockFlag::SOCK_NONBLOCK } else { flags };
                let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
                if !patience.is_zero() {
                    // connect(2) on a Unix socket waits for the backlog as long as SO_SNDTIMEO allows.
                    let millis = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
                    let limit = TimeVal::milliseconds(millis.into());
                    socket::setsockopt(&fd, sockopt::SendTimeout, &limit)?;
                }
                socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
                let stream = UnixStream::from(fd);
                stream.set_nonblocking(true)?;
                Ok(Link { io: Io::Socket(stream) })
            }
            Self::Xenbus(path) => {
                let device = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(OFlag::O_NONBLOCK.bits())
                    .open(path)?;
                Ok(Link { io: Io::Device(device) })
            }
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Socket(path) | Self::Xenbus(path)) = self;
        fmt::Display::fmt(&path.display(), f)
    }
}

/// What an endpoint can take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) in_flight: usize,
    pub(super) message: usize,
}

/// An open, non-blocking stream to a xenstored.
#[derive(Debug)]
pub struct Link {
    io: Io,
}

#[derive(Debug)]
enum Io {
    Socket(UnixStream),
    Device(File),
}

impl Link {
    /// Whether poll(2) ever says that it can be written to. The xenbus device never does, and takes every write.
    pub const fn polls_for_output(&self) -> bool {
        matches!(self.io, Io::Socket(_))
    }
}

impl From<UnixStream> for Link {
    /// A stream that is connected already, a socket pair's end for instance; it must be non-blocking.
    fn from(stream: UnixStream) -> Self {
        Self { io: Io::Socket(stream) }
    }
}

impl Read for Link {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.io {
            Io::Socket(stream) => stream.read(buf),
            Io::Device(device) => device.read(buf),
        }
    }
}

impl Write for Link {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.io {
            Io::Socket(stream) => stream.write(buf),
            Io::Device(device) => device.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.io {
            Io::Socket(stream) => stream.as_fd(),
            Io::Device(device) => device.as_fd(),
        }
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
