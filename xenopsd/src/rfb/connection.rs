//! A connection to a screen that ends at a deadline.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
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
    let stream = match address {
        Address::Port(port) => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            Stream::Tcp(TcpStream::connect_timeout(&address, limit).map_err(failed)?)
        }
        Address::Socket(path) => Stream::Unix(connect_within(path, Some(limit)).map_err(failed)?),
    };
    Ok(Deadlined { stream, deadline })
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Every read and write ends by the deadline, with [`io::ErrorKind::TimedOut`].
struct Deadlined {
    stream: Stream,
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
        match &mut self.stream {
            Stream::Tcp(stream) => {
                stream.set_read_timeout(left)?;
                stream.read(buffer)
            }
            Stream::Unix(stream) => {
                stream.set_read_timeout(left)?;
                stream.read(buffer)
            }
        }
        .map_err(timed_out)
    }
}

impl Write for Deadlined {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let left = self.left()?;
        match &mut self.stream {
            Stream::Tcp(stream) => {
                stream.set_write_timeout(left)?;
                stream.write(buffer)
            }
            Stream::Unix(stream) => {
                stream.set_write_timeout(left)?;
                stream.write(buffer)
            }
        }
        .map_err(timed_out)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
