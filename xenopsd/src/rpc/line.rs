//! A client's connection, kept from one call to the next where the daemon keeps it.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::exchange::{Answer, ExchangeError, Sent, receive, send};
use super::socket::connect_within;

/// Replies that may be waiting on a connection for nobody: each is some hundred bytes, and a server whose replies are not
/// taken serves no more.
const OWED_MAX: usize = 16;

/// One connection. Who has it makes its calls one by one.
#[derive(Debug)]
pub(super) struct Line {
    stream: UnixStream,
    /// The last reply said that it stays; of a new one nothing is known yet.
    kept: bool,
    /// Replies that nobody waits for, which come before the next one.
    owed: usize,
    /// What was read behind the last reply.
    ahead: Vec<u8>,
}

impl Line {
    /// Connects, waiting at most `timeout` for a busy daemon.
    pub(super) fn open(path: &Path, timeout: Option<Duration>) -> io::Result<Self> {
        let stream = connect_within(path, timeout)?;
        Ok(Self { stream, kept: true, owed: 0, ahead: Vec::new() })
    }

    /// Sends framed requests at once, as many as `bodies` is long, and takes the bodies of their replies.
    ///
    /// # Errors
    /// [`ExchangeError`]; the connection is of no use then. With [`ExchangeError::Unserved`] the last of the requests was
    /// not served.
    pub(super) fn exchange<const N: usize>(
        &mut self,
        requests: &[u8],
        deadline: Option<Instant>,
    ) -> Result<[Vec<u8>; N], ExchangeError> {
        let sent = send(&self.stream, requests, deadline)?;
        while self.owed > 0 {
            self.receive(sent, deadline)?;
            self.owed -= 1;
            self.more_to_come()?;
        }
        let mut bodies = [const { Vec::new() }; N];
        for (index, body) in bodies.iter_mut().enumerate() {
            *body = self.receive(sent, deadline)?;
            if index + 1 < N {
                self.more_to_come()?;
            }
        }
        Ok(bodies)
    }

    /// Sends a framed request, whose reply makes no difference.
    ///
    /// # Errors
    /// As [`Line::exchange`].
    pub(super) fn tell(&mut self, request: &[u8], deadline: Option<Instant>) -> Result<(), ExchangeError> {
        match send(&self.stream, request, deadline)? {
            Sent::Whole => self.owed += 1,
            Sent::InPart => return Err(ExchangeError::Unserved(io::ErrorKind::BrokenPipe.into())),
        }
        Ok(())
    }

    /// Whether another call can be made on it. Where something came behind a reply the two ends do not agree.
    pub(super) fn is_kept(&self) -> bool {
        self.kept && self.ahead.is_empty() && self.owed < OWED_MAX
    }

    fn receive(&mut self, sent: Sent, deadline: Option<Instant>) -> Result<Vec<u8>, ExchangeError> {
        let Answer { body, kept } = receive(&self.stream, &mut self.ahead, sent, deadline)?;
        self.kept = kept;
        Ok(body)
    }

    /// A reply has come behind which there must be another. Where the connection does not stay, what followed its request
    /// is never served.
    fn more_to_come(&self) -> Result<(), ExchangeError> {
        if self.kept { Ok(()) } else { Err(ExchangeError::Unserved(io::ErrorKind::ConnectionAborted.into())) }
    }
}
