//! A connection to a screen that ends at a deadline.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::RfbError;
use crate::rpc::socket::connect_within;

/// Where a screen is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A port of 127.0.0.1.
    Port(u16),
    /// A Unix socket.
    Socket(PathBuf),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(port) => write!(f, "127.0.0.1:{port}"),
            Self::Socket(path) => path.display().fmt(f),
        }
    }
}

/// Connects, to be done with within `limit`.
///
/// # Errors
/// [`RfbError::Io`].
pub fn open(address: &Address, limit: Duration) -> Result<impl Read + Write + use<>, RfbError> {
    let failed = |source| RfbError::Io { doing: "connect to the screen", source };
    let deadline = Instant::now() + limit;
    Ok(Deadlined { stream: connect(address, limit).map_err(failed)?, deadline })
}

/// Connects within `limit`. The stream may be TCP's: only what all sockets have is to be used of it.
pub(crate) fn connect(address: &Address, limit: Duration) -> io::Result<UnixStream> {
    match address {
        Address::Port(port) => {
            let stream = TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, *port)), limit)?;
            // Keys and movements are short, and are not to wait for each other.
            stream.set_nodelay(true)?;
            Ok(OwnedFd::from(stream).into())
        }
        Address::Socket(path) => connect_within(path, Some(limit)),
    }
}

/// Every read and write ends by the deadline, with [`io::ErrorKind::TimedOut`].
struct Deadlined {
    stream: UnixStream,
    deadline: Instant,
}

impl Deadlined {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(Some(left)) }
    }
}

/// A socket's timeout has another name than a deadline.
fn timed_out(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
}

impl Read for Deadlined {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left()?;
        self.stream.set_read_timeout(left)?;
        self.stream.read(buffer).map_err(timed_out)
    }
}

impl Write for Deadlined {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let left = self.left()?;
        self.stream.set_write_timeout(left)?;
        self.stream.write(buffer).map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
