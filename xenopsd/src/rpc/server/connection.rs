//! One connection: what has been read, what is to be written, and what the socket says.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::sync::Arc;
use std::time::Instant;

use mio::net::UnixStream;

use super::responder::Presence;
use crate::rpc::codec::Codec;
use crate::rpc::http::{Progress, Refusal, Request};

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Reads done for one connection before the others get their turn.
const READS_PER_TURN: usize = 64;

/// Where a connection is in its exchange, of which there may be more, one after the other.
pub(super) enum Phase {
    /// The request is arriving, or nothing of it yet.
    Reading(Request),
    /// The service has the request.
    Waiting(Arc<Presence>),
    /// The reply is leaving.
    Writing {
        /// The reply.
        bytes: Vec<u8>,
        /// How much of it has left.
        sent: usize,
    },
    /// The refusal has left; the rest of the request is thrown away.
    Draining,
}

/// What becomes of a connection whose reply has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It is closed.
    Close,
    /// It stays for another request.
    Keep,
    /// The request was refused, and the rest of it may still be arriving.
    Drain,
}

pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) codec: Codec,
    pub(super) phase: Phase,
    /// When it is closed for being too slow; kept in step with the server's own list.
    pub(super) deadline: Option<Instant>,
    /// Bytes of its request that count against the server's bound.
    pub(super) reserved: usize,
    /// The client has closed altogether. The kernel says so once, which may be before the request is read.
    pub(super) gone: bool,
    /// What the client sends has ended. The kernel says so once, too.
    pub(super) ended: bool,
    /// There may be more to read than was read.
    pub(super) readable: bool,
    /// The kernel is asked to say when the client takes more. Otherwise it is not: it would say so after each reply.
    pub(super) writes_watched: bool,
    /// What becomes of it after the reply under way.
    pub(super) then: Then,
    /// It has been kept after a reply.
    kept: bool,
    /// What came with the request before this one.
    rest: Vec<u8>,
}

/// What a turn of reading came to.
pub(super) enum Read {
    /// Nothing more for now.
    Idle,
    /// The turn is over and there may be more.
    More,
    /// The request is complete.
    Complete(Request),
    /// It is complete, and for a console.
    Console(Request),
    /// The request is refused.
    Refused(Refusal),
    /// The client has gone, or broken off.
    Closed,
}

/// What a turn of writing came to.
pub(super) enum Written {
    /// The client takes no more for now.
    Blocked {
        /// It took some this time.
        progressed: bool,
    },
    /// All has left.
    All,
    /// The client has gone.
    Closed,
}

impl Connection {
    pub(super) fn new(stream: UnixStream, codec: Codec) -> Self {
        let phase = Phase::Reading(Request::default());
        Self {
            stream,
            codec,
            phase,
            deadline: None,
            reserved: 0,
            gone: false,
            ended: false,
            readable: false,
            writes_watched: false,
            then: Then::Close,
            kept: false,
            rest: Vec::new(),
        }
    }

    /// Whether a request is arriving, or has yet to begin.
    pub(super) fn is_reading(&self) -> bool {
        matches!(self.phase, Phase::Reading(_))
    }

    /// Whether it has been kept and nothing of another request has been looked at.
    pub(super) fn is_idle(&self) -> bool {
        self.kept && matches!(&self.phase, Phase::Reading(request) if request.is_empty())
    }

    /// Begins to wait for another request; whether there may be something of it already.
    pub(super) fn keep(&mut self) -> bool {
        self.phase = Phase::Reading(Request::default());
        self.kept = true;
        self.readable || self.ended || !self.rest.is_empty()
    }

    /// Reads what has arrived of the request. `reserve` is asked for the bytes of a body before they are taken
    /// in, and says whether there is room.
    pub(super) fn read(&mut self, mut reserve: impl FnMut(usize) -> bool) -> Read {
        let Phase::Reading(request) = &mut self.phase else { return Read::Idle };
        let mut chunk = [0; CHUNK];
        for _ in 0..READS_PER_TURN {
            let rest = std::mem::take(&mut self.rest);
            let bytes = if rest.is_empty() {
                match self.stream.read(&mut chunk) {
                    Ok(0) => return Read::Closed,
                    Ok(read) => {
                        // Less than asked for is all there was: what comes later the kernel says anew.
                        self.readable = read == CHUNK;
                        &chunk[..read]
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.readable = false;
                        return Read::Idle;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return Read::Closed,
                }
            } else {
                &rest
            };
            match request.feed(bytes) {
                Ok(Progress::Head) => {}
                Ok(Progress::Body(length)) => {
                    if self.reserved == 0 && length > 0 {
                        if !reserve(length) {
                            return Read::Refused(Refusal::Busy);
                        }
                        self.reserved = length;
                    }
                }
                Ok(Progress::Console) => return Read::Console(std::mem::take(request)),
                Ok(Progress::Complete) => {
                    self.rest = request.take_rest();
                    return Read::Complete(std::mem::take(request));
                }
                Err(refusal) => return Read::Refused(refusal),
            }
        }
        Read::More
    }

    /// Writes as much of the reply as the client takes.
    pub(super) fn write(&mut self) -> Written {
        let Phase::Writing { bytes, sent } = &mut self.phase else {
            return Written::Blocked { progressed: false };
        };
        let before = *sent;
        while *sent < bytes.len() {
            match self.stream.write(&bytes[*sent..]) {
                Ok(0) => return Written::Closed,
                Ok(written) => *sent += written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Written::Blocked { progressed: *sent > before };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Written::Closed,
            }
        }
        Written::All
    }

    /// Ends the server's side after a refusal.
    pub(super) fn begin_draining(&mut self) {
        // Fails only when the client has gone, which the next read notices.
        let _ = self.stream.shutdown(Shutdown::Write);
        self.phase = Phase::Draining;
    }

    /// Throws away what arrives.
    pub(super) fn drain(&mut self) -> Read {
        let mut chunk = [0; CHUNK];
        for _ in 0..READS_PER_TURN {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Read::Closed,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Read::Idle,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Read::Closed,
            }
        }
        Read::More
    }
}
