//! One HTTP request and its reply on an open connection, blocking, within a deadline.

use std::io::{self, Read as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;

use super::http::{Reply, ReplyError};

/// Bytes read at once: most replies are shorter.
const CHUNK: usize = 8 * 1024;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// The deadline passed.
    #[error("no answer in time")]
    Late,
    /// The server ended the connection before it had all of the request: it has not done, and will not do, what was asked.
    #[error("the connection was closed before the request had arrived: {0}")]
    Unserved(io::Error),
    /// Reading or writing failed.
    #[error("cannot {doing} the connection: {source}")]
    Io {
        /// `write to` or `read from`.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The reply is not as expected.
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

/// A reply.
#[derive(Debug)]
pub(super) struct Answer {
    /// Its body.
    pub(super) body: Vec<u8>,
    /// The server keeps the connection.
    pub(super) kept: bool,
}

/// Sends a framed request and returns the body of its reply; no deadline waits for ever.
pub(super) fn exchange(
    stream: &UnixStream,
    request: &[u8],
    deadline: Option<Instant>,
) -> Result<Vec<u8>, ExchangeError> {
    let sent = send(stream, request, deadline)?;
    Ok(receive(stream, &mut Vec::new(), sent, deadline)?.body)
}

fn error(doing: &'static str, source: io::Error) -> ExchangeError {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ExchangeError::Late,
        _ => ExchangeError::Io { doing, source },
    }
}

/// What is left until the deadline, for a socket timeout.
fn remaining(deadline: Option<Instant>) -> Result<Option<Duration>, ExchangeError> {
    let Some(deadline) = deadline else { return Ok(None) };
    let remaining = deadline.saturating_duration_since(Instant::now());
    if remaining.is_zero() { Err(ExchangeError::Late) } else { Ok(Some(remaining)) }
}

/// How much of a request was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// All of it.
    Whole,
    /// Not all of it: the server has closed its end. It may have answered before, to say why.
    InPart,
}

/// Sends a framed request and leaves the reply to whoever wants it.
pub(super) fn send(
    stream: &UnixStream,
    mut request: &[u8],
    deadline: Option<Instant>,
) -> Result<Sent, ExchangeError> {
    let failed = |errno: Errno| error("write to", errno.into());
    // What fits at once needs no time limit to be set.
    let mut flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    while !request.is_empty() {
        match nix::sys::socket::send(stream.as_raw_fd(), request, flags) {
            Ok(written) => request = &request[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) if flags.contains(MsgFlags::MSG_DONTWAIT) => {
                flags.remove(MsgFlags::MSG_DONTWAIT);
                stream.set_write_timeout(remaining(deadline)?).map_err(|source| error("write to", source))?;
            }
            Err(Errno::EPIPE | Errno::ECONNRESET) => return Ok(Sent::InPart),
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(Sent::Whole)
}

/// Receives a reply. `ahead` is what was read behind the one before it, and then what was read behind this one; `sent` is
/// what became of the request, which is the last that was sent.
///
/// A connection that was closed with bytes in it that nobody had read says so (`ECONNRESET`), and the last byte that was
/// sent is then among them.
pub(super) fn receive(
    mut stream: &UnixStream,
    ahead: &mut Vec<u8>,
    sent: Sent,
    deadline: Option<Instant>,
) -> Result<Answer, ExchangeError> {
    let failed = |source| error("read from", source);
    let mut reply = Reply::default();
    let mut complete = !ahead.is_empty() && reply.feed(&std::mem::take(ahead))?;
    let mut chunk = [0; CHUNK];
    while !complete {
        stream.set_read_timeout(remaining(deadline)?).map_err(failed)?;
        match stream.read(&mut chunk) {
            Ok(0) if reply.is_empty() && sent == Sent::InPart => {
                return Err(ExchangeError::Unserved(io::ErrorKind::BrokenPipe.into()));
            }
            Ok(0) => break,
            Ok(read) => complete = reply.feed(&chunk[..read])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset && reply.is_empty() => {
                return Err(ExchangeError::Unserved(error));
            }
            Err(error) => return Err(failed(error)),
        }
    }
    let kept = reply.keeps();
    let (body, behind) = reply.into_parts()?;
    *ahead = behind;
    Ok(Answer { body, kept })
}
