//! What a guest printed before, from its terminal server: who closes its half of the connection gets it, and the end.

use std::io::{self, Read as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// How long the server may take: it sends what it has at once, from memory.
const LIMIT: Duration = Duration::from_secs(20);

/// Most bytes taken: no server keeps more than 16 MiB, and what the guest prints meanwhile is not sent.
const MAX_LOG: usize = 32 << 20;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// Reads the log.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] when it does not end in time, [`io::ErrorKind::FileTooLarge`] when it is longer than any is.
pub(in super::super) fn log(server: OwnedFd) -> io::Result<Vec<u8>> {
    read_within(server, LIMIT)
}

pub(super) fn read_within(server: OwnedFd, limit: Duration) -> io::Result<Vec<u8>> {
    // Of any family: only what all sockets have is used.
    let mut socket = UnixStream::from(server);
    socket.set_nonblocking(false)?;
    socket.shutdown(Shutdown::Write)?;
    let deadline = Instant::now() + limit;
    let mut log = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut chunk) {
            Ok(0) => return Ok(log),
            Ok(count) => log.extend_from_slice(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if log.len() > MAX_LOG {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
}
