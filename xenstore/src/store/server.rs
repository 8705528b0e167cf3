//! The wire protocol over a Unix stream: what [`crate::WatchStream`] and any other client of a daemon's socket speaks.
//!
//! One thread for each connection sleeps in mio until there are requests, events, or room for output. Input is not
//! read while output waits, so that a client that does not read its answers gets no further ones; its events wait in
//! the store, merged and bounded.

use super::{ConnectionId, SharedStore};
use crate::perms::DomId;
use crate::transport::Endpoint;
use crate::wire::{Decoder, Errno, Frame, Header, Kind, MAX_PAYLOAD, Payload, Request, TxId};
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Output that may wait before no further request is read and no further event fetched, in bytes.
const MAX_OUTPUT: usize = 1 << 16;

/// Bytes read at once.
const READ_SIZE: usize = 16 * 1024;

const STREAM: Token = Token(0);
const WAKE: Token = Token(1);

/// A connection that is being served.
pub struct Serving {
    thread: JoinHandle<()>,
    /// The same socket, to end it.
    stream: UnixStream,
}

impl Serving {
    /// Ends the connection and waits for its thread.
    pub fn stop(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        // A panic in there has been reported by its own message.
        let _ = self.thread.join();
    }

    /// Whether the connection has ended.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Serves `stream` on behalf of `domid` on a thread of its own, until the other end closes it.
///
/// # Errors
/// When the kernel refuses the event loop or the thread.
pub fn serve(store: &SharedStore, stream: UnixStream, domid: DomId) -> io::Result<Serving> {
    stream.set_nonblocking(true)?;
    let ours = stream.try_clone()?;
    let poll = Poll::new()?;
    let waker = Arc::new(Waker::new(poll.registry(), WAKE)?);
    poll.registry().register(
        &mut SourceFd(&stream.as_raw_fd()),
        STREAM,
        Interest::READABLE | Interest::WRITABLE,
    )?;
    let wake = Arc::clone(&waker);
    let connection = {
        let mut locked = store.lock();
        let connection = locked.connect(domid);
        locked.wake_with(connection, move || {
            // A full counter means that a wake is due already.
            let _ = wake.wake();
        });
        connection
    };
    let mut session = Session {
        store: store.clone(),
        connection,
        stream,
        decoder: Decoder::new(MAX_PAYLOAD),
        input: Vec::new(),
        output: Vec::new(),
        _waker: waker,
    };
    let thread =
        std::thread::Builder::new().name("xenstore-server".into()).spawn(move || session.run(poll))?;
    Ok(Serving { thread, stream: ours })
}

/// Connections that a [`Listening`] serves at once; more are closed as they come. Each is a thread.
pub const MAX_CONNECTIONS: usize = 64;

/// A socket on which every connection is served for dom0, as a daemon's is, until dropped. Connections made by then go
/// on until their clients end them.
pub struct Listening {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    serving: Arc<Mutex<Vec<Serving>>>,
    thread: Option<JoinHandle<()>>,
}

fn lock(serving: &Mutex<Vec<Serving>>) -> MutexGuard<'_, Vec<Serving>> {
    serving.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens at `path`, which must not exist, for clients of dom0.
///
/// # Errors
/// When the socket cannot be made, or the kernel refuses the thread.
pub fn listen(store: &SharedStore, path: &Path) -> io::Result<Listening> {
    let listener = UnixListener::bind(path)?;
    let stop = Arc::new(AtomicBool::new(false));
    let serving = Arc::new(Mutex::new(Vec::new()));
    let (store, stopped, all) = (store.clone(), Arc::clone(&stop), Arc::clone(&serving));
    let thread = std::thread::Builder::new().name("xenstore-listen".into()).spawn(move || {
        for stream in listener.incoming() {
            if stopped.load(Ordering::Acquire) {
                break;
            }
            let Ok(stream) = stream else { continue };
            let mut serving = lock(&all);
            serving.retain(|s| !s.is_over());
            if serving.len() < MAX_CONNECTIONS {
                // A connection that cannot be served is closed, which its client sees.
                serving.extend(serve(&store, stream, DomId::DOM0));
            }
        }
    })?;
    Ok(Listening { path: path.to_owned(), stop, serving, thread: Some(thread) })
}

impl Listening {
    /// Where clients connect.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::Socket(self.path.clone())
    }

    /// Ends every connection that there is now, as the end of a daemon does; its clients may connect again.
    pub fn hang_up(&self) {
        for serving in std::mem::take(&mut *lock(&self.serving)) {
            serving.stop();
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Ends the wait for a connection.
        let woken = UnixStream::connect(&self.path).is_ok();
        let _ = std::fs::remove_file(&self.path);
        if let Some(thread) = self.thread.take().filter(|_| woken) {
            let _ = thread.join();
        }
    }
}

/// Whether to go on.
type Step = io::Result<bool>;

struct Session {
    store: SharedStore,
    connection: ConnectionId,
    stream: UnixStream,
    decoder: Decoder,
    /// Read and not yet decoded.
    input: Vec<u8>,
    output: Vec<u8>,
    /// Closing it would take back the wake of a connection that the store has just ended.
    _waker: Arc<Waker>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.store.lock().disconnect(self.connection);
        // The owner of the `Serving` holds another descriptor.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl Session {
    fn run(&mut self, mut poll: Poll) {
        let mut ready = Events::with_capacity(4);
        while matches!(self.turn(), Ok(true)) {
            match poll.poll(&mut ready, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
                _ => {}
            }
        }
    }

    /// Does what can be done without waiting.
    fn turn(&mut self) -> Step {
        loop {
            // What happened before a request is told before its answer, and what it causes after.
            self.tell();
            if !self.answer() {
                return Ok(false);
            }
            self.tell();
            if !self.flush()? {
                return Ok(false);
            }
            // Stuck: mio tells when there is room.
            if !self.output.is_empty() {
                return Ok(true);
            }
            let more = !self.input.is_empty() || self.store.lock().events_waiting(self.connection) > 0;
            if !more && !self.read()? {
                return Ok(self.store.lock().is_connected(self.connection));
            }
        }
    }

    /// Whether there was anything; an error when the other end is gone.
    fn read(&mut self) -> Step {
        let mut buffer = [0; READ_SIZE];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.input.extend_from_slice(&buffer[..n]);
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers the requests that have been read, as long as there is room for answers; whether the connection goes on.
    fn answer(&mut self) -> bool {
        let input = std::mem::take(&mut self.input);
        let mut rest = &input[..];
        while self.output.len() < MAX_OUTPUT {
            match self.decoder.next(&mut rest) {
                Ok(Some(frame)) => {
                    if !self.reply(frame) {
                        return false;
                    }
                }
                Ok(None) => break,
                // The daemons answer an unknown kind; here the stream is given up, as none of our clients sends one.
                Err(_) => return false,
            }
        }
        self.input = rest.to_vec();
        true
    }

    /// Whether the connection goes on.
    fn reply(&mut self, Frame { header, payload }: Frame) -> bool {
        // As the daemons do: a client that sends more than it may is not spoken to.
        let Payload::Whole(payload) = payload else { return false };
        let answer = match Request::parse(header.kind, &payload) {
            Ok(request) => self.store.lock().request(self.connection, header.tx_id, &request),
            Err(_) => Some(Err(Errno::Inval)),
        };
        let Some(answer) = answer else { return false };
        match answer {
            Ok(reply) => header.append_message(&reply.0, &mut self.output),
            Err(errno) => Header { kind: Kind::Error, ..header }
                .append_message(format!("{errno}\0").as_bytes(), &mut self.output),
        }
        true
    }

    /// Fetches events while there is room for them.
    fn tell(&mut self) {
        let header = Header { kind: Kind::WatchEvent, req_id: 0, tx_id: TxId::NONE };
        while self.output.len() < MAX_OUTPUT {
            let Some(event) = self.store.lock().take_event(self.connection) else { return };
            let payload = [event.path.as_str().as_bytes(), b"\0", &event.token, b"\0"].concat();
            header.append_message(&payload, &mut self.output);
        }
    }

    /// Writes what is taken.
    fn flush(&mut self) -> Step {
        let mut written = 0;
        let outcome = loop {
            if written == self.output.len() {
                break Ok(true);
            }
            match self.stream.write(&self.output[written..]) {
                Ok(0) => break Ok(false),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break Ok(true),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.output.drain(..written);
        outcome
    }
}
