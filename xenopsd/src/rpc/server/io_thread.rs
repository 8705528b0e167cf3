//! The event loop.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, unbounded};
use mio::net::{UnixListener, UnixStream};
use mio::{Events, Interest, Poll, Token, Waker};

use super::connection::{Connection, Phase, Read, Then, Written};
use super::responder::{Completed, Outbox, Presence, Responder};
use super::{Limits, ServerError, Service, StopHandle, decode, hand_over};
use crate::rpc::codec::Codec;
use crate::rpc::console::ConsoleCall;
use crate::rpc::http::{Refusal, Request, frame_reply};
use crate::rpc::socket::peer;

/// Events taken from the kernel at once.
const EVENTS: usize = 256;

/// How long accepting pauses when the process is out of file descriptors and no connection's end will free one.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// The token of the waker; listeners follow, connections come after those and are never reused.
const WAKER: usize = 0;

struct Listener {
    socket: UnixListener,
    codec: Codec,
    /// There may be connections to accept: the kernel says so once, when the first arrives.
    ready: bool,
}

/// A server on one or more listening sockets, not running yet.
pub struct Server<S> {
    service: S,
    limits: Limits,
    agent: Arc<str>,
    poll: Poll,
    listeners: Vec<Listener>,
    connections: HashMap<usize, Connection>,
    next_connection: usize,
    /// Connections by deadline.
    deadlines: BTreeSet<(Instant, usize)>,
    /// Connections whose turn of reading ended with more to read.
    unfinished: VecDeque<usize>,
    /// When to try accepting again after running out of file descriptors.
    accept_retry: Option<Instant>,
    reserved: usize,
    outbox: Outbox,
    completed: Receiver<Completed>,
    stopping: Arc<AtomicBool>,
}

impl<S> std::fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("listeners", &self.listeners.len())
            .field("connections", &self.connections.len())
            .finish_non_exhaustive()
    }
}

impl<S: Service> Server<S> {
    /// Prepares to serve.
    ///
    /// # Errors
    /// [`ServerError::Io`] if the kernel refuses an event queue or a listener.
    pub fn bind(listeners: Vec<(StdUnixListener, Codec)>, service: S) -> Result<Self, ServerError> {
        Self::with_limits(listeners, service, Limits::default())
    }

    /// As [`Server::bind`], with other bounds.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub fn with_limits(
        listeners: Vec<(StdUnixListener, Codec)>,
        service: S,
        limits: Limits,
    ) -> Result<Self, ServerError> {
        let io = |doing| move |source| ServerError::Io { doing, source };
        let poll = Poll::new().map_err(io("create an event queue"))?;
        let waker = Waker::new(poll.registry(), Token(WAKER)).map_err(io("create a waker"))?;
        let mut served = Vec::new();
        for (socket, codec) in listeners {
            socket.set_nonblocking(true).map_err(io("make a listener non-blocking"))?;
            let mut socket = UnixListener::from_std(socket);
            let token = Token(WAKER + 1 + served.len());
            poll.registry()
                .register(&mut socket, token, Interest::READABLE)
                .map_err(io("watch a listener"))?;
            served.push(Listener { socket, codec, ready: true });
        }
        let (sender, completed) = unbounded();
        let program = std::env::args_os().next().map(std::path::PathBuf::from);
        let agent = program
            .as_deref()
            .and_then(|path| path.file_name())
            .map(|name| name.to_string_lossy().chars().filter(char::is_ascii_graphic).collect::<String>());
        Ok(Self {
            service,
            limits,
            agent: agent.unwrap_or_else(|| "xenopsd".to_owned()).into(),
            next_connection: WAKER + 1 + served.len(),
            poll,
            listeners: served,
            connections: HashMap::new(),
            deadlines: BTreeSet::new(),
            unfinished: VecDeque::new(),
            accept_retry: None,
            reserved: 0,
            outbox: Outbox { sender, waker: Arc::new(waker), reader: Arc::new(OnceLock::new()) },
            completed,
            stopping: Arc::new(AtomicBool::new(false)),
        })
    }

    /// What ends [`Server::run`].
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle { stopping: self.stopping.clone(), waker: self.outbox.waker.clone() }
    }

    /// Serves until stopped.
    ///
    /// # Errors
    /// [`ServerError::Io`] if the kernel refuses to say what happens.
    pub fn run(mut self) -> Result<(), ServerError> {
        let mut events = Events::with_capacity(EVENTS);
        // Not set before: a server runs once.
        let _ = self.outbox.reader.set(std::thread::current().id());
        while !self.stopping.load(Ordering::Acquire) {
            self.accept_all();
            match self.poll.poll(&mut events, self.patience()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ServerError::Io { doing: "wait for events", source }),
            }
            for event in &events {
                let Token(token) = event.token();
                if token == WAKER {
                    continue;
                }
                if let Some(listener) = self.listeners.get_mut(token - WAKER - 1) {
                    listener.ready = true;
                } else {
                    if let Some(connection) = self.connections.get_mut(&token) {
                        connection.gone |= event.is_write_closed() || event.is_error();
                        connection.ended |= event.is_read_closed();
                        connection.readable |= event.is_readable();
                    }
                    self.attend(token);
                }
            }
            for _ in 0..self.unfinished.len() {
                if let Some(token) = self.unfinished.pop_front() {
                    self.attend(token);
                }
            }
            while let Ok(completed) = self.completed.try_recv() {
                self.complete(completed);
            }
            self.expire();
        }
        for (_, connection) in self.connections.drain() {
            if let Phase::Waiting(presence) = connection.phase {
                presence.leave();
            }
        }
        Ok(())
    }

    /// How long there is nothing to do unless something happens.
    fn patience(&self) -> Option<Duration> {
        // Answers of this thread's own have not woken it.
        if !self.unfinished.is_empty() || !self.completed.is_empty() {
            return Some(Duration::ZERO);
        }
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let next = deadline.into_iter().chain(self.accept_retry).min()?;
        Some(next.saturating_duration_since(Instant::now()))
    }

    fn accept_all(&mut self) {
        if self.accept_retry.is_some_and(|retry| retry > Instant::now()) {
            return;
        }
        self.accept_retry = None;
        for index in 0..self.listeners.len() {
            while self.listeners[index].ready && (self.has_room() || self.dispensable().is_some()) {
                match self.listeners[index].socket.accept() {
                    Ok((stream, _)) => {
                        if !self.has_room()
                            && let Some(dispensable) = self.dispensable()
                        {
                            tracing::warn!("closed an idle RPC connection to make room for another");
                            self.close(dispensable);
                        }
                        self.admit(stream, self.listeners[index].codec);
                    }
                    Err(error) => match error.kind() {
                        io::ErrorKind::WouldBlock => self.listeners[index].ready = false,
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                        _ => {
                            tracing::error!(%error, "cannot accept an RPC connection; trying again soon");
                            self.accept_retry = Instant::now().checked_add(ACCEPT_RETRY);
                            return;
                        }
                    },
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.connections.len() < self.limits.connections
    }

    /// Which connection gives way to another: the one that has waited for the longest time for its next request, else the
    /// one whose request has been arriving for the longest time.
    fn dispensable(&self) -> Option<usize> {
        let first = |wanted: fn(&Connection) -> bool| {
            let mut tokens = self.deadlines.iter().map(|(_, token)| *token);
            tokens.find(|token| self.connections.get(token).is_some_and(wanted))
        };
        first(Connection::is_idle).or_else(|| first(Connection::is_reading))
    }

    fn admit(&mut self, mut stream: UnixStream, codec: Codec) {
        match peer(&stream) {
            Ok(peer) if peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw() => {}
            Ok(peer) => {
                tracing::warn!(
                    uid = peer.uid(),
                    pid = peer.pid(),
                    "turned away an RPC client that is not root"
                );
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "turned away an RPC client whose user is unknown");
                return;
            }
        }
        let token = self.next_connection;
        self.next_connection += 1;
        if let Err(error) = self.poll.registry().register(&mut stream, Token(token), Interest::READABLE) {
            tracing::error!(%error, "cannot watch an RPC connection");
            return;
        }
        let deadline = Instant::now().checked_add(self.limits.request_time);
        self.connections.insert(token, Connection::new(stream, codec));
        self.set_deadline(token, deadline);
    }

    fn set_deadline(&mut self, token: usize, deadline: Option<Instant>) {
        if let Some(connection) = self.connections.get_mut(&token) {
            if let Some(old) = std::mem::replace(&mut connection.deadline, deadline) {
                self.deadlines.remove(&(old, token));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, token));
            }
        }
    }

    /// Does what a connection's phase calls for now that its socket has something to say.
    fn attend(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match connection.phase {
            Phase::Reading(_) => self.read(token),
            Phase::Waiting(_) => {}
            Phase::Writing { .. } => self.write(token),
            Phase::Draining => self.drain(token),
        }
        let waiting_for_nobody = self
            .connections
            .get(&token)
            .is_some_and(|connection| connection.gone && matches!(connection.phase, Phase::Waiting(_)));
        if waiting_for_nobody {
            self.close(token);
        }
    }

    fn read(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let (reserved, limit) = (&mut self.reserved, self.limits.request_bytes);
        let was_idle = connection.is_idle();
        let outcome = connection.read(|length| {
            let fits = reserved.saturating_add(length) <= limit;
            if fits {
                *reserved += length;
            }
            fits
        });
        if was_idle && !connection.is_idle() {
            self.set_deadline(token, Instant::now().checked_add(self.limits.request_time));
        }
        match outcome {
            Read::Idle => {}
            Read::More => self.unfinished.push_back(token),
            Read::Closed => self.close(token),
            Read::Refused(refusal) => self.refuse(token, refusal),
            Read::Complete(request) => self.serve(token, &request),
            Read::Console(request) => self.give_away(token, request),
        }
    }

    /// A connection that becomes a console is not the server's any more.
    fn give_away(&mut self, token: usize, request: Request) {
        let Some(connection) = self.forget(token) else { return };
        let Some((request, first)) = request.into_console() else { return };
        let call = ConsoleCall { request, stream: connection.stream.into(), first };
        if catch_unwind(AssertUnwindSafe(|| self.service.console(call))).is_err() {
            tracing::error!("the handler of consoles panicked");
        }
    }

    fn refuse(&mut self, token: usize, refusal: Refusal) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        tracing::warn!(%refusal, "refused an RPC request");
        match refusal.answer(connection.codec) {
            Some(answer) => {
                connection.then = Then::Drain;
                self.reply(token, answer);
            }
            None => self.close(token),
        }
    }

    fn serve(&mut self, token: usize, request: &Request) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        self.reserved -= std::mem::take(&mut connection.reserved);
        let (codec, keep) = (connection.codec, request.keeps());
        connection.then = if keep { Then::Keep } else { Then::Close };
        let call = match decode(codec, request.body()) {
            Ok(call) => call,
            Err(body) => return self.reply(token, frame_reply(codec, &self.agent, keep, &body)),
        };
        let presence = Arc::new(Presence::default());
        connection.phase = Phase::Waiting(presence.clone());
        self.set_deadline(token, None);
        let responder =
            Responder::new(&call, token, codec, self.agent.clone(), keep, self.outbox.clone(), presence);
        hand_over(&self.service, call, responder);
    }

    fn complete(&mut self, completed: Completed) {
        let phase = self.connections.get(&completed.connection).map(|connection| &connection.phase);
        if let Some(Phase::Waiting(_)) = phase {
            self.reply(completed.connection, completed.bytes);
        } else {
            tracing::debug!("dropped an RPC reply whose client has gone");
        }
    }

    fn reply(&mut self, token: usize, bytes: Vec<u8>) {
        if let Some(connection) = self.connections.get_mut(&token) {
            connection.phase = Phase::Writing { bytes, sent: 0 };
            self.set_deadline(token, Instant::now().checked_add(self.limits.reply_time));
            self.write(token);
        }
    }

    fn write(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        let then = match connection.write() {
            Written::Blocked { progressed } => {
                if progressed {
                    self.set_deadline(token, Instant::now().checked_add(self.limits.reply_time));
                }
                return self.watch_writes(token, true);
            }
            Written::Closed => Then::Close,
            Written::All => connection.then,
        };
        match then {
            Then::Close => self.close(token),
            Then::Keep => self.keep(token),
            Then::Drain => {
                connection.begin_draining();
                let deadline = Instant::now().checked_add(self.limits.drain_time);
                self.set_deadline(token, deadline);
                self.drain(token);
            }
        }
    }

    /// The reply has left, and the connection stays. What has come of the next request already has its turn later, so that
    /// one client's requests do not keep others waiting.
    fn keep(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.keep() {
            self.unfinished.push_back(token);
        }
        self.set_deadline(token, Instant::now().checked_add(self.limits.idle_time));
        self.watch_writes(token, false);
    }

    /// Has the kernel say, or not, when a client takes more of its reply.
    fn watch_writes(&mut self, token: usize, watch: bool) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        if connection.writes_watched == watch {
            return;
        }
        connection.writes_watched = watch;
        let interest = if watch { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
        if let Err(error) = self.poll.registry().reregister(&mut connection.stream, Token(token), interest) {
            tracing::error!(%error, "cannot watch an RPC connection");
            self.close(token);
        }
    }

    fn drain(&mut self, token: usize) {
        let Some(connection) = self.connections.get_mut(&token) else { return };
        match connection.drain() {
            Read::More => self.unfinished.push_back(token),
            Read::Closed => self.close(token),
            _ => {}
        }
    }

    /// Closes connections whose time is up.
    fn expire(&mut self) {
        let now = Instant::now();
        while let Some((deadline, token)) = self.deadlines.first().copied()
            && deadline <= now
        {
            let slow = |connection: &Connection| match connection.phase {
                Phase::Reading(_) => !connection.is_idle(),
                Phase::Writing { .. } => true,
                Phase::Waiting(_) | Phase::Draining => false,
            };
            if self.connections.get(&token).is_some_and(slow) {
                tracing::warn!("closed an RPC connection whose client is too slow");
            }
            self.deadlines.remove(&(deadline, token));
            self.close(token);
        }
    }

    fn close(&mut self, token: usize) {
        if let Some(connection) = self.forget(token)
            && let Phase::Waiting(presence) = connection.phase
        {
            presence.leave();
        }
    }

    /// Takes a connection out of the loop, as it is.
    fn forget(&mut self, token: usize) -> Option<Connection> {
        let mut connection = self.connections.remove(&token)?;
        if let Some(deadline) = connection.deadline {
            self.deadlines.remove(&(deadline, token));
        }
        self.reserved -= connection.reserved;
        // Fails only for a socket that was never registered.
        let _ = self.poll.registry().deregister(&mut connection.stream);
        Some(connection)
    }
}
