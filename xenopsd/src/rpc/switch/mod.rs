//! JSON-RPC over a message-switch queue: a client of the switch that takes the same calls as the sockets do.
//!
//! ```text
//!                       ┌─ "switch": log in, queue, transfer, transfer, ... ─┐ message   ┌─────────┐
//!   message switch ◄────┤                                                    ├─────────► │ Service │
//!                       └─ "switch-replies": response, ack ◄── channel ◄─────┴ Responder └─────────┘
//! ```
//!
//! Two threads, each with a connection of its own, as one of them is mostly blocked in the switch's long poll. No
//! message has a thread: its call goes to the service, and its answer comes back through the channel whenever the
//! [`Responder`](super::Responder) is used.
//!
//! * A message is acknowledged after its response was sent, so one that a killed daemon had begun is carried out by
//!   its successor: at least once, as with the reference implementation.
//! * A connection that fails is made again, with growing pauses; the daemon neither waits for the switch when it
//!   starts nor ends with it. After that the switch offers again what was not acknowledged. Those still being worked on
//!   or answered a moment ago are recognised and not carried out twice; if a switch that lost its queues has given their
//!   number to another message, their answers are dropped.
//! * At most [`Limits::in_flight`] messages are being worked on. More stay in the switch.
//! * A message that makes no sense is answered with `Internal_error` in JSON. (The reference implementation sends the
//!   bare text of an exception, which its clients cannot read either.)

mod consumer;
mod link;
pub mod protocol;
mod replies;

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::channel::{Sender, bounded, unbounded};

use self::protocol::{Kind, Message, MessageId};
use super::server::Service;

/// Where the switch is and what is read from it.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its socket.
    pub path: PathBuf,
    /// The queue that calls come through.
    pub queue: String,
}

/// The transport's bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Messages being worked on at once. More than can wait in `UPDATES.get`, lest waiting calls shut out those that
    /// would end the wait.
    pub in_flight: usize,
    /// How long the switch is asked to wait for a message.
    pub poll: Duration,
    /// How long the switch may take for anything else, and beyond [`Limits::poll`] for that.
    pub reply: Duration,
    /// The first pause before a failed connection is made again; it doubles each time.
    pub min_pause: Duration,
    /// The longest such pause.
    pub max_pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: 2 * crate::ops::updates::MAX_WAITERS,
            poll: Duration::from_secs(30),
            reply: Duration::from_secs(30),
            min_pause: Duration::from_millis(50),
            max_pause: Duration::from_secs(5),
        }
    }
}

/// How many of the messages answered last are remembered.
const ANSWERED: usize = 1024;

/// The running transport. Dropping it ends its threads; messages not yet answered stay in the switch.
pub struct Switch {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Its end is the news that the transport ends.
    alive: Option<Sender<Never>>,
}

/// What no message can be made of.
enum Never {}

impl Switch {
    /// Begins to take calls from the switch, as soon as it is there.
    ///
    /// # Errors
    /// When the kernel refuses a thread.
    pub fn start(
        settings: Settings,
        limits: Limits,
        service: impl Service + 'static,
    ) -> std::io::Result<Self> {
        let (outbox, answers) = unbounded();
        let shared = Arc::new(Shared { settings, limits, state: Mutex::default(), changed: Condvar::new() });
        let (alive, ended) = bounded(0);
        let mut switch = Self { shared: Arc::clone(&shared), threads: Vec::new(), alive: Some(alive) };
        let consume = Arc::clone(&shared);
        switch.spawn("switch", move || consumer::run(&consume, &service, &outbox))?;
        switch.spawn("switch-replies", move || replies::run(&shared, &answers, &ended))?;
        Ok(switch)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(crate::ops::WORKER_STACK);
        self.threads.push(thread.spawn(run)?);
        Ok(())
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop();
        self.alive = None;
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the message switch's transport had panicked");
            }
        }
    }
}

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Switch").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

/// The answer to a message, on its way to the switch.
struct Answer {
    id: MessageId,
    serial: u64,
    /// The queue and the body; none for a message that expects no response.
    response: Option<(String, Vec<u8>)>,
}

/// What the two threads share.
struct Shared {
    settings: Settings,
    limits: Limits,
    state: Mutex<State>,
    /// Told when `state` changed in a way that a thread may be waiting for.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    stopping: bool,
    /// The connections, to end what blocks on them.
    streams: HashMap<&'static str, UnixStream>,
    in_flight: HashMap<MessageId, InFlight>,
    /// Recently acknowledged; the newest last.
    answered: VecDeque<(MessageId, u64)>,
    serial: u64,
}

struct InFlight {
    /// Tells this message from an earlier one of the same id.
    serial: u64,
    fingerprint: u64,
}

/// What became of a message that the switch handed over.
#[derive(Debug, PartialEq, Eq)]
enum Admission {
    /// It is to be worked on under this serial number.
    New(u64),
    /// It is being worked on, or has been.
    Known,
    /// The transport is ending.
    Stopping,
}

/// Two messages of one id but different contents come from different lives of the switch.
fn fingerprint(message: &Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    message.payload.as_bytes().hash(&mut hasher);
    match &message.kind {
        Kind::Request(queue) => queue.hash(&mut hasher),
        Kind::Response(id) => id.hash(&mut hasher),
    }
    hasher.finish()
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        for stream in state.streams.values() {
            // Fails only for a connection that has ended already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.changed.notify_all();
    }

    /// Takes note of a new connection; it is of no use when the transport is ending.
    fn register(&self, name: &'static str, stream: UnixStream) {
        let mut state = self.lock();
        if state.stopping {
            // As in `stop`.
            let _ = stream.shutdown(Shutdown::Both);
        }
        state.streams.insert(name, stream);
    }

    fn stopping(&self) -> bool {
        self.lock().stopping
    }

    /// Waits; false when the transport is ending.
    fn pause(&self, pause: Duration) -> bool {
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), pause, |state| !state.stopping)
            .unwrap_or_else(PoisonError::into_inner);
        !state.stopping
    }

    /// Takes a message in, when there is room for it.
    fn admit(&self, id: &MessageId, message: &Message) -> Admission {
        let fingerprint = fingerprint(message);
        let full = |state: &mut State| !state.stopping && state.in_flight.len() >= self.limits.in_flight;
        let mut state = self.changed.wait_while(self.lock(), full).unwrap_or_else(PoisonError::into_inner);
        if state.stopping {
            return Admission::Stopping;
        }
        let known = state.in_flight.get(id).is_some_and(|known| known.fingerprint == fingerprint)
            || state.answered.iter().any(|(known, print)| known == id && *print == fingerprint);
        if known {
            return Admission::Known;
        }
        state.serial += 1;
        let serial = state.serial;
        if state.in_flight.insert(id.clone(), InFlight { serial, fingerprint }).is_some() {
            tracing::warn!(queue = id.queue, number = id.number, "the switch has lost a message");
        }
        Admission::New(serial)
    }

    /// Whether an answer still belongs to the message that has its id now.
    fn awaited(&self, id: &MessageId, serial: u64) -> bool {
        self.lock().in_flight.get(id).is_some_and(|known| known.serial == serial)
    }

    /// Strikes an acknowledged message off.
    fn done(&self, id: &MessageId, serial: u64) {
        let mut state = self.lock();
        if state.in_flight.get(id).is_some_and(|known| known.serial == serial)
            && let Some(known) = state.in_flight.remove(id)
        {
            if state.answered.len() >= ANSWERED {
                state.answered.pop_front();
            }
            state.answered.push_back((id.clone(), known.fingerprint));
        }
        self.changed.notify_all();
    }
}
