//! One HTTP request and its reply on an open connection, blocking, within a deadline.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::http::{Reply, ReplyError};

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    /// The deadline passed.
    #[error("no answer in time")]
    Late,
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

/// Sends a framed request and returns the body of its reply; no deadline waits for ever.
pub(super) fn exchange(
    stream: &UnixStream,
    request: &[u8],
    deadline: Option<Instant>,
) -> Result<Vec<u8>, ExchangeError> {
    send(stream, request, deadline)?;
    receive(stream, deadline)
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

/// Sends a framed request and leaves the reply to whoever wants it.
pub(super) fn send(
    mut stream: &UnixStream,
    mut request: &[u8],
    deadline: Option<Instant>,
) -> Result<(), ExchangeError> {
    let failed = |source| error("write to", source);
    while !request.is_empty() {
        stream.set_write_timeout(remaining(deadline)?).map_err(failed)?;
        match stream.write(request) {
            Ok(0) => return Err(failed(io::ErrorKind::WriteZero.into())),
            Ok(written) => request = &request[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The server may have refused without reading all of it; its answer says why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

fn receive(mut stream: &UnixStream, deadline: Option<Instant>) -> Result<Vec<u8>, ExchangeError> {
    let failed = |source| error("read from", source);
    let mut reply = Reply::default();
    let mut chunk = [0; CHUNK];
    loop {
        stream.set_read_timeout(remaining(deadline)?).map_err(failed)?;
        match stream.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => {
                if reply.feed(&chunk[..read])? {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(reply.into_body()?)
}
