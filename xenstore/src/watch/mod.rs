//! Watches, delivered to a mio loop.
//!
//! ```text
//!   reconnect() --> registering --acks--> watching --EOF, error--> disconnected
//!        ^                                                              |
//!        +------------- the owner's timer, with its back-off -----------+
//! ```
//!
//! The stream has a connection of its own and never blocks. What the owner does:
//!
//! - register it with mio for reading and writing, and call [`WatchStream::drain`] when it is ready. mio is
//!   edge-triggered, so `drain` reads until there is no more; when that would take too long, it sees to it that
//!   mio reports the stream ready once again;
//! - when `drain` fails, call [`WatchStream::reconnect`] after a while, and register the stream with mio again: it
//!   is a new file descriptor. All watches are registered again by themselves, and an [`Event::Resync`] tells
//!   the owner to look at everything, since nobody knows what was missed.
//!
//! Watch events are hints. They may come twice, or for a change that has been undone; the only promise is that
//! after the last change there is an event. Guests can cause as many as they like, which is why they are merged.

mod merge;

pub use merge::MAX_PATHS_PER_WATCH;

use crate::path::Path;
use crate::transport::{DEFAULT_TIMEOUT, Endpoint, Link, TransportError};
use crate::wire::{self, Decoder, Errno, Frame, Kind, Payload, Request, TxId};
use merge::Merge;
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Most watches of one stream: some dozens for each of the thousands of domains that Xen can run.
pub const MAX_WATCHES: usize = 1 << 17;

/// Bytes that one [`WatchStream::drain`] reads before it hands the thread back to its owner: about a thousand events.
/// A guest that writes all the time must not keep the loop from everything else.
pub const MAX_DRAIN: usize = 1 << 16;

const READ_SIZE: usize = 16 * 1024;

/// Names a watch for as long as its stream lives; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchToken(u64);

impl WatchToken {
    fn to_wire(self) -> Vec<u8> {
        format!("{:x}", self.0).into_bytes()
    }

    fn from_wire(bytes: &[u8]) -> Option<Self> {
        u64::from_str_radix(std::str::from_utf8(bytes).ok()?, 16).ok().map(Self)
    }
}

/// What [`WatchStream::drain`] delivers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Something happened at `path`, which is the watched path or below it. The first one of each watch comes
    /// because it was registered. When there is more news than is worth listing, it is one event for the watched
    /// path itself: something happened at or below it.
    Changed {
        /// The watch.
        token: WatchToken,
        /// Where.
        path: Path,
    },
    /// The connection was lost for a while, and nobody knows what happened meanwhile: look at everything that any
    /// watch is for.
    Resync,
    /// The daemon did not accept the watch. It is gone.
    Refused {
        /// The watch.
        token: WatchToken,
        /// What it was for.
        path: Path,
        /// The daemon's reason.
        errno: Errno,
    },
}

/// A connection that carries watches and nothing else.
#[derive(Debug)]
pub struct WatchStream {
    endpoint: Endpoint,
    connection: Option<Connection>,
    watches: BTreeMap<WatchToken, Path>,
    next_token: u64,
    resync_due: bool,
    /// Watches over [`MAX_WATCHES`], to be reported as refused.
    refused: Vec<(WatchToken, Path)>,
    /// How the stream was registered with mio, to be woken for what one `drain` left.
    registered: Option<(Registry, Token, Interest)>,
}

#[derive(Debug)]
struct Connection {
    link: Link,
    decoder: Decoder,
    buffer: Vec<u8>,
    /// Encoded requests that have not been taken yet, each by itself: the xenbus device wants one per write(2).
    output: VecDeque<Vec<u8>>,
    next_id: u32,
    /// Registrations without an answer, in the order they were sent.
    unanswered: VecDeque<(u32, WatchToken)>,
    last_progress: Instant,
    /// Why the connection is of no more use; told by the next `drain`.
    failed: Option<io::Error>,
}

impl WatchStream {
    /// Connects to the xenstored at `endpoint`. A daemon with a queue of new connections (oxenstored takes one at a
    /// time) is waited for up to [`DEFAULT_TIMEOUT`].
    ///
    /// # Errors
    /// [`TransportError::Connect`].
    pub fn connect(endpoint: Endpoint) -> Result<Self, TransportError> {
        let mut stream = Self {
            endpoint,
            connection: None,
            watches: BTreeMap::new(),
            next_token: 1,
            resync_due: false,
            refused: Vec::new(),
            registered: None,
        };
        stream.open(DEFAULT_TIMEOUT)?;
        stream.resync_due = false;
        Ok(stream)
    }

    /// Opens a new connection in place of the old one and registers all watches on it. It does not wait: the
    /// answers come as events. The owner decides when to try and how often.
    ///
    /// # Errors
    /// [`TransportError::Connect`]; `WouldBlock` in it means that the daemon has a queue of new connections.
    pub fn reconnect(&mut self) -> Result<(), TransportError> {
        self.open(Duration::ZERO)
    }

    fn open(&mut self, patience: Duration) -> Result<(), TransportError> {
        self.disconnect();
        let link = self
            .endpoint
            .open(patience)
            .map_err(|source| TransportError::Connect { endpoint: self.endpoint.to_string(), source })?;
        let mut connection = Connection::new(link);
        self.resync_due = true;
        for (token, path) in &self.watches {
            connection.queue_watch(*token, path);
        }
        connection.flush();
        self.connection = Some(connection);
        Ok(())
    }

    /// Whether there is a connection that has not failed.
    pub fn is_connected(&self) -> bool {
        self.connection.as_ref().is_some_and(|c| c.failed.is_none())
    }

    /// Watches `path` and all below it. The first event comes when the daemon has the watch; without a
    /// connection that is after the next [`WatchStream::reconnect`]. Past [`MAX_WATCHES`] the next
    /// [`WatchStream::drain`] reports it refused.
    pub fn watch(&mut self, path: &Path) -> WatchToken {
        let token = WatchToken(self.next_token);
        self.next_token += 1;
        if self.watches.len() >= MAX_WATCHES {
            self.refused.push((token, path.clone()));
            return token;
        }
        if let Some(connection) = &mut self.connection {
            connection.queue_watch(token, path);
            connection.flush();
        }
        self.watches.insert(token, path.clone());
        token
    }

    /// Ends a watch. No event of it is delivered from now on, even if some are on their way.
    pub fn unwatch(&mut self, token: WatchToken) {
        let Some(path) = self.watches.remove(&token) else { return };
        if let Some(connection) = &mut self.connection {
            connection.queue_unwatch(token, &path);
            connection.flush();
        }
    }

    /// What a watch is for; `None` when it is not registered (any more).
    pub fn path(&self, token: WatchToken) -> Option<&Path> {
        self.watches.get(&token)
    }

    /// Since when the daemon owes an answer without having given any: a daemon that hangs does not close its
    /// connections, so an owner with a timer should reconnect when this gets too long ago.
    pub fn stalled_since(&self) -> Option<Instant> {
        let connection = self.connection.as_ref()?;
        (!connection.unanswered.is_empty()).then_some(connection.last_progress)
    }

    /// Reads what there is, up to [`MAX_DRAIN`] bytes at a time, and delivers it: each watch and path once, in order
    /// of first appearance.
    ///
    /// # Errors
    /// [`TransportError`] when the connection is lost, after what had arrived was delivered.
    pub fn drain(&mut self, mut deliver: impl FnMut(Event)) -> Result<(), TransportError> {
        for (token, path) in self.refused.drain(..) {
            deliver(Event::Refused { token, path, errno: Errno::NoSpc });
        }
        let Some(connection) = &mut self.connection else {
            return Err(TransportError::Closed { endpoint: self.endpoint.to_string() });
        };
        if std::mem::take(&mut self.resync_due) {
            deliver(Event::Resync);
        }
        connection.flush();
        let mut merge = Merge::default();
        let result = connection.read_all(&mut |arrival| take(&mut self.watches, arrival, &mut merge));
        let failed = connection.failed.take();
        merge.deliver(&self.watches, &mut deliver);
        match (result, failed) {
            (Ok(Drained::Empty), None) => Ok(()),
            (Ok(Drained::More), None) => self.wake_again().map_err(|source| self.lost(Lost::Io(source))),
            (Ok(_), Some(source)) => Err(self.lost(Lost::Io(source))),
            (Err(lost), _) => Err(self.lost(lost)),
        }
    }

    /// Registering anew makes the kernel report an edge for what is there already.
    fn wake_again(&mut self) -> io::Result<()> {
        let Some((registry, token, interests)) = &self.registered else { return Ok(()) };
        SourceFd(&self.source()?.as_raw_fd()).reregister(registry, *token, *interests)
    }

    fn lost(&mut self, why: Lost) -> TransportError {
        self.disconnect();
        let endpoint = self.endpoint.to_string();
        match why {
            Lost::Io(source) => TransportError::Io { endpoint, source },
            Lost::Closed => TransportError::Closed { endpoint },
            Lost::Decode(e) => TransportError::Protocol { endpoint, violation: e.into() },
        }
    }

    /// Closing the descriptor ends its registration with mio.
    fn disconnect(&mut self) {
        self.connection = None;
        self.registered = None;
    }

    fn source(&self) -> io::Result<&Link> {
        let connection = self.connection.as_ref();
        connection.map(|c| &c.link).ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))
    }
}

/// Whether everything was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Drained {
    Empty,
    More,
}

/// What arrived, seen from the watches.
enum Arrival {
    Event(Vec<u8>),
    Refused(WatchToken, Errno),
}

fn take(watches: &mut BTreeMap<WatchToken, Path>, arrival: Arrival, merge: &mut Merge) {
    match arrival {
        Arrival::Event(payload) => {
            let Some((path, token)) = wire::watch_event(&payload) else { return };
            let Some(token) = WatchToken::from_wire(token) else { return };
            // Events of a watch that was given up meanwhile end here.
            let Some(watched) = watches.get(&token) else { return };
            // A path that makes no sense still says that something changed below the watched one.
            merge.changed(token, Path::from_bytes(path).unwrap_or_else(|_| watched.clone()));
        }
        Arrival::Refused(token, errno) => {
            if let Some(path) = watches.remove(&token) {
                merge.refused(token, path, errno);
            }
        }
    }
}

/// Why a connection ended.
enum Lost {
    Io(io::Error),
    Closed,
    Decode(wire::DecodeError),
}

impl Connection {
    fn new(link: Link) -> Self {
        Self {
            link,
            decoder: Decoder::default(),
            buffer: vec![0; READ_SIZE],
            output: VecDeque::new(),
            next_id: 1,
            unanswered: VecDeque::new(),
            last_progress: Instant::now(),
            failed: None,
        }
    }

    fn queue_watch(&mut self, token: WatchToken, path: &Path) {
        if self.unanswered.is_empty() {
            self.last_progress = Instant::now();
        }
        let id = self.queue(&Request::Watch { path: path.clone(), token: token.to_wire() });
        self.unanswered.push_back((id, token));
    }

    /// Nobody waits for the answer.
    fn queue_unwatch(&mut self, token: WatchToken, path: &Path) {
        self.queue(&Request::Unwatch { path: path.clone(), token: token.to_wire() });
    }

    /// A path and a token fit a message whatever they are: 3072 and 16 bytes of 4096.
    fn queue(&mut self, request: &Request) -> u32 {
        let (id, mut message) = (self.next_id, Vec::new());
        if let Err(e) = request.append(TxId::NONE, id, &mut message) {
            self.failed = Some(io::Error::new(io::ErrorKind::InvalidInput, e));
        }
        self.output.push_back(message);
        // Zero is never used: it is the id of events, and of the kernel's own answers.
        self.next_id = id.checked_add(1).unwrap_or(1);
        id
    }

    /// Writes what is taken without waiting. The rest goes when mio says writable.
    fn flush(&mut self) {
        while let Some(message) = self.output.front_mut() {
            match self.link.write(message) {
                Ok(n) if n == message.len() => drop(self.output.pop_front()),
                Ok(0) => return self.failed = Some(io::ErrorKind::WriteZero.into()),
                Ok(n) => drop(message.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return self.failed = Some(e),
            }
        }
    }

    fn read_all(&mut self, arrived: &mut impl FnMut(Arrival)) -> Result<Drained, Lost> {
        let mut total = 0;
        while total < MAX_DRAIN {
            let n = match self.link.read(&mut self.buffer) {
                Ok(0) => return Err(Lost::Closed),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Drained::Empty),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Lost::Io(e)),
            };
            total += n;
            let mut input = &self.buffer[..n];
            while let Some(frame) = self.decoder.next(&mut input).map_err(Lost::Decode)? {
                if let Some(arrival) = sort(&mut self.unanswered, &mut self.last_progress, frame) {
                    arrived(arrival);
                }
            }
        }
        Ok(Drained::More)
    }
}

/// Events and refusals; an answer that says OK, or that answers nothing, needs no further notice.
fn sort(
    unanswered: &mut VecDeque<(u32, WatchToken)>,
    last_progress: &mut Instant,
    Frame { header, payload }: Frame,
) -> Option<Arrival> {
    let payload = match payload {
        Payload::Whole(bytes) => bytes,
        Payload::TooLong { .. } => Vec::new(),
    };
    if header.kind == Kind::WatchEvent {
        return Some(Arrival::Event(payload));
    }
    let found = unanswered.iter().position(|(id, _)| *id == header.req_id);
    // The kernel answers for a watch on its device itself, in order, and with request id zero.
    let by_kernel = header.kind == Kind::Watch && header.req_id == 0;
    let (_, token) = unanswered.remove(found.or_else(|| by_kernel.then_some(0))?)?;
    *last_progress = Instant::now();
    (header.kind == Kind::Error).then(|| Arrival::Refused(token, Errno::from_wire(&payload)))
}

impl Source for WatchStream {
    fn register(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.source()?.as_raw_fd()).register(registry, token, interests)?;
        self.registered = Some((registry.try_clone()?, token, interests));
        Ok(())
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interests: Interest) -> io::Result<()> {
        SourceFd(&self.source()?.as_raw_fd()).reregister(registry, token, interests)?;
        self.registered = Some((registry.try_clone()?, token, interests));
        Ok(())
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        self.registered = None;
        // Without a connection there is nothing registered any more.
        self.source().map_or(Ok(()), |link| SourceFd(&link.as_raw_fd()).deregister(registry))
    }
}
