//! Requests and replies over a byte stream: the socket, and the xenbus device.

use super::endpoint::Limits;
use super::{Answer, Endpoint, Link, Transport, TransportError, Violation};
use crate::wire::{Decoder, EncodeError, Errno, Frame, HEADER_LEN, Kind, Payload, Reply, Request, TxId};
use nix::errno::Errno as OsErrno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// How long an exchange may take unless told otherwise. A loaded xenstored answers within a second; one that died
/// behind `/dev/xen/xenbus`, or that hangs, never does.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Most requests sent and not yet answered. At up to 4112 bytes each that is 257 KiB a daemon has to hold for us;
/// enough that a domain's whole skeleton goes out at once.
pub const MAX_IN_FLIGHT: usize = 64;

/// Bytes read at once. Most replies have a few dozen.
const READ_SIZE: usize = 16 * 1024;

/// A transport over a socket or the xenbus device. It connects when first used, and again after a failure.
#[derive(Debug)]
pub struct StreamTransport {
    endpoint: Endpoint,
    timeout: Duration,
    connection: Option<Connection>,
    generation: u64,
    next_id: u32,
}

#[derive(Debug)]
struct Connection {
    link: Link,
    decoder: Decoder,
    buffer: Vec<u8>,
}

/// What ends an exchange early, before it is told where.
enum Failure {
    Io(io::Error),
    Closed,
    TimedOut { unanswered: usize },
    Violation(Violation),
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::Io(e)
    }
}

impl StreamTransport {
    /// A transport to `endpoint`; nothing is opened yet.
    pub const fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, timeout: DEFAULT_TIMEOUT, connection: None, generation: 0, next_id: 1 }
    }

    /// Opens the connection if there is none.
    ///
    /// # Errors
    /// [`TransportError::Connect`].
    pub fn connect(&mut self) -> Result<(), TransportError> {
        if self.connection.is_none() {
            let link = self
                .endpoint
                .open(self.timeout)
                .map_err(|source| TransportError::Connect { endpoint: self.endpoint.to_string(), source })?;
            self.connection =
                Some(Connection { link, decoder: Decoder::default(), buffer: vec![0; READ_SIZE] });
            self.generation += 1;
        }
        Ok(())
    }

    /// A connection that is alive as far as one can see, a new one if need be and allowed.
    fn ready(&mut self, in_transaction: bool) -> Result<(), TransportError> {
        if self.connection.as_mut().is_some_and(|c| !c.is_alive()) {
            self.connection = None;
        }
        if self.connection.is_none() && in_transaction {
            return Err(TransportError::TransactionLost { endpoint: self.endpoint.to_string() });
        }
        self.connect()
    }

    fn explain(&self, failure: Failure, requests: &[(TxId, Request)]) -> TransportError {
        let endpoint = self.endpoint.to_string();
        match failure {
            Failure::Io(source) => TransportError::Io { endpoint, source },
            Failure::Closed => TransportError::Closed { endpoint },
            Failure::Violation(violation) => TransportError::Protocol { endpoint, violation },
            Failure::TimedOut { unanswered } => {
                let describe = |(_, r): &(TxId, Request)| format!("{} {}", r.name(), r.target());
                let operation = requests.get(unanswered).map(describe).unwrap_or_default();
                TransportError::TimedOut {
                    endpoint,
                    operation: operation.trim_end().to_owned(),
                    after: self.timeout,
                }
            }
        }
    }
}

impl Transport for StreamTransport {
    fn exchange(&mut self, requests: &[(TxId, Request)]) -> Result<Vec<Answer>, TransportError> {
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + self.timeout;
        let mut exchange = Exchange::encode(requests, self.next_id, self.endpoint.limits())?;
        self.ready(requests.iter().any(|(tx, _)| *tx != TxId::NONE))?;
        self.next_id = exchange.next_id();
        // Taken out, so that any failure leaves no connection behind whose state is unknown.
        let Some(mut connection) = self.connection.take() else {
            return Err(TransportError::Closed { endpoint: self.endpoint.to_string() });
        };
        match connection.run(&mut exchange, deadline) {
            Ok(()) => {
                self.connection = Some(connection);
                Ok(exchange.answers.into_iter().flatten().collect())
            }
            Err(failure) => Err(self.explain(failure, requests)),
        }
    }

    fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    fn generation(&self) -> u64 {
        self.generation
    }
}

impl Connection {
    /// Whether an idle connection still stands. Sees a daemon that went away before a request is spent on it.
    fn is_alive(&mut self) -> bool {
        let mut nothing_asked = Exchange::none();
        matches!(self.receive(&mut nothing_asked), Ok(()))
    }

    fn run(&mut self, exchange: &mut Exchange, deadline: Instant) -> Result<(), Failure> {
        loop {
            self.send(exchange)?;
            self.wait(exchange, deadline)?;
            self.receive(exchange)?;
            if exchange.is_done() {
                return Ok(());
            }
        }
    }

    /// Writes what may be in flight now, as far as the other side takes it.
    fn send(&mut self, exchange: &mut Exchange) -> Result<(), Failure> {
        while exchange.written < exchange.sendable() {
            match self.link.write(&exchange.bytes[exchange.written..exchange.sendable()]) {
                Ok(0) => return Err(Failure::Closed),
                Ok(n) => exchange.written += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Err(Failure::Closed),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Waits for input, and for room for output if there is output left. Reading goes on while writing is stuck,
    /// so that a daemon that is itself stuck writing to us gets free.
    fn wait(&self, exchange: &Exchange, deadline: Instant) -> Result<(), Failure> {
        let mut events = PollFlags::POLLIN;
        if exchange.written < exchange.sendable() && self.link.polls_for_output() {
            events |= PollFlags::POLLOUT;
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a poll that returns a little early would only be called again.
            let millis = left.as_millis().saturating_add(1);
            let timeout = PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX);
            if left.is_zero() {
                return Err(Failure::TimedOut { unanswered: exchange.first_unanswered() });
            }
            match poll(&mut [PollFd::new(self.link.as_fd(), events)], timeout) {
                Ok(0) | Err(OsErrno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(e) => return Err(Failure::Io(e.into())),
            }
        }
    }

    /// Reads all there is, up to the answers that are missing.
    fn receive(&mut self, exchange: &mut Exchange) -> Result<(), Failure> {
        loop {
            let n = match self.link.read(&mut self.buffer) {
                Ok(0) => return Err(Failure::Closed),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Err(Failure::Closed),
                Err(e) => return Err(e.into()),
            };
            let mut input = &self.buffer[..n];
            while let Some(frame) = self.decoder.next(&mut input).map_err(|e| Failure::Violation(e.into()))? {
                exchange.take(frame).map_err(Failure::Violation)?;
            }
            // A short read emptied the queue; asking again would cost a system call for nothing.
            if n < self.buffer.len() {
                return Ok(());
            }
        }
    }
}

/// The requests of one call on their way, and the answers so far.
struct Exchange {
    bytes: Vec<u8>,
    /// Per request: where its message ends in `bytes`, and what its reply must look like.
    expected: Vec<Expected>,
    first_id: u32,
    in_flight: usize,
    written: usize,
    answers: Vec<Option<Answer>>,
    answered: usize,
}

struct Expected {
    end: usize,
    kind: Kind,
    tx_id: TxId,
}

impl Exchange {
    const fn none() -> Self {
        Self {
            bytes: Vec::new(),
            expected: Vec::new(),
            first_id: 0,
            in_flight: 0,
            written: 0,
            answers: Vec::new(),
            answered: 0,
        }
    }

    /// Encodes everything before anything is sent, so that a request that cannot be sent has no half of the
    /// exchange behind it.
    fn encode(requests: &[(TxId, Request)], first_id: u32, limits: Limits) -> Result<Self, TransportError> {
        let mut exchange = Self { first_id, in_flight: limits.in_flight, ..Self::none() };
        let mut id = first_id;
        for (tx_id, request) in requests {
            request.append(*tx_id, id, &mut exchange.bytes)?;
            let begin = exchange.expected.last().map_or(0, |e| e.end);
            let end = exchange.bytes.len();
            if end - begin > limits.message {
                let (op, target, len) = (request.name(), request.target(), end - begin - HEADER_LEN);
                return Err(EncodeError::TooLong { op, target, len, max: limits.message - HEADER_LEN }.into());
            }
            exchange.expected.push(Expected { end, kind: request.kind(), tx_id: *tx_id });
            id = id.wrapping_add(1);
        }
        exchange.answers.resize_with(requests.len(), || None);
        Ok(exchange)
    }

    fn next_id(&self) -> u32 {
        // Sequence numbers wrap; so may their count.
        self.first_id.wrapping_add(u32::try_from(self.expected.len()).unwrap_or(u32::MAX))
    }

    fn sendable(&self) -> usize {
        let last = (self.answered + self.in_flight).min(self.expected.len());
        last.checked_sub(1).map_or(0, |i| self.expected[i].end)
    }

    fn is_done(&self) -> bool {
        self.answered == self.answers.len()
    }

    fn first_unanswered(&self) -> usize {
        self.answers.iter().position(Option::is_none).unwrap_or(0)
    }

    fn take(&mut self, Frame { header, payload }: Frame) -> Result<(), Violation> {
        // This connection registers no watches. Events that come all the same mean nothing to it.
        if header.kind == Kind::WatchEvent {
            return Ok(());
        }
        let unknown = Violation::UnknownRequest { req_id: header.req_id };
        let slot = usize::try_from(header.req_id.wrapping_sub(self.first_id)).unwrap_or(usize::MAX);
        let Some(expected) = self.expected.get(slot).filter(|e| e.end <= self.written) else {
            return Err(unknown);
        };
        if self.answers[slot].is_some() {
            return Err(unknown);
        }
        let is_error = header.kind == Kind::Error;
        if header.tx_id != expected.tx_id || !(is_error || header.kind == expected.kind) {
            return Err(Violation::Mismatch { req_id: header.req_id });
        }
        self.answers[slot] = Some(match payload {
            Payload::Whole(bytes) if is_error => Err(Errno::from_wire(&bytes)),
            Payload::Whole(bytes) => Ok(Reply(bytes)),
            Payload::TooLong { .. } => Err(Errno::TooBig),
        });
        self.answered += 1;
        Ok(())
    }
}
