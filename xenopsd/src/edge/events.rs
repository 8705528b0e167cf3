//! Watches for worker threads: one thread owns the watch connection and its event loop, workers subscribe to paths.
//!
//! ```text
//!   worker ── subscribe(paths) ──► commands ──► ┌─────────────┐ ◄── watch events ── xenstored
//!   worker ◄── "changed" (coalesced) ───────────│ event thread│
//!   daemon ◄── "some domain began or ended" ────└─────────────┘
//! ```
//!
//! A lost connection is made again with all its watches, and every subscriber is told to look: what happened
//! meanwhile is found by looking, never assumed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError, bounded, unbounded};
use mio::{Interest, Poll, Token, Waker};
use xenstore::watch::Event;
use xenstore::{Path, WatchStream, WatchToken};

use crate::api::Error;

/// First pause before a lost connection is tried again; doubled up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(50);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

const STREAM: Token = Token(0);
const COMMANDS: Token = Token(1);

enum Command {
    Watch(u64, Path, Sink),
    Unwatch(u64),
}

/// What is told of a change. Neither kind blocks the event thread.
enum Sink {
    /// Holds at most one message: a burst of changes is one reason to look.
    Channel(Sender<()>),
    Call(Box<dyn Fn() + Send>),
}

impl Sink {
    fn tell(&self) {
        match self {
            // Full means that the subscriber has not looked yet; gone means that it no longer cares.
            Self::Channel(sender) => {
                let _ = sender.try_send(());
            }
            Self::Call(call) => call(),
        }
    }
}

/// Handle to the event thread, which ends with the last one. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    commands: Sender<Command>,
    // Behind `commands`: the thread must find those gone when the last of these wakes it.
    waker: Arc<LastWake>,
    keys: Arc<AtomicU64>,
}

/// Wakes the event thread once more when it goes.
struct LastWake(Arc<Waker>);

impl Drop for LastWake {
    fn drop(&mut self) {
        // Without the wake the thread sleeps on, which harms nobody.
        let _ = self.0.wake();
    }
}

/// Watches that last as long as this value.
pub struct Following {
    events: Events,
    keys: Vec<u64>,
}

/// Watches that last as long as this value, for one who waits.
pub struct Subscription {
    _watches: Following,
    changed: Receiver<()>,
}

impl Events {
    /// Starts the event thread over an open watch connection.
    ///
    /// # Errors
    /// When the kernel refuses the event loop or the thread.
    pub fn start(mut stream: WatchStream) -> std::io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Arc::new(Waker::new(poll.registry(), COMMANDS)?);
        poll.registry().register(&mut stream, STREAM, Interest::READABLE | Interest::WRITABLE)?;
        let (commands, incoming) = unbounded();
        let (sinks, tokens, own_waker) = (HashMap::new(), HashMap::new(), Arc::clone(&waker));
        let thread = EventThread { poll, stream, incoming, sinks, tokens, _waker: own_waker };
        std::thread::Builder::new()
            .name("store-events".into())
            .stack_size(crate::ops::SMALL_STACK)
            .spawn(move || thread.run())?;
        Ok(Self { commands, waker: Arc::new(LastWake(waker)), keys: Arc::default() })
    }

    /// Watches `paths` for one subscriber, who is told of each change at or below them, and once at the beginning.
    ///
    /// # Errors
    /// `Internal_error` when the event thread has ended.
    pub fn subscribe(&self, paths: &[Path]) -> Result<Subscription, Error> {
        let (tell, changed) = bounded(1);
        let mut watches = Following { events: self.clone(), keys: Vec::with_capacity(paths.len()) };
        for path in paths {
            watches.keys.push(self.watch(path, Sink::Channel(tell.clone()))?);
        }
        Ok(Subscription { _watches: watches, changed })
    }

    /// Calls `look` on the event thread whenever something at or below one of `paths` changes, and once for each of them at
    /// the beginning, as long as the value that is returned lives. It must not block.
    ///
    /// # Errors
    /// `Internal_error` when the event thread has ended.
    pub fn follow(
        &self,
        paths: &[Path],
        look: impl Fn() + Clone + Send + 'static,
    ) -> Result<Following, Error> {
        let mut watches = Following { events: self.clone(), keys: Vec::with_capacity(paths.len()) };
        for path in paths {
            watches.keys.push(self.watch(path, Sink::Call(Box::new(look.clone())))?);
        }
        Ok(watches)
    }

    /// Calls `look` on the event thread whenever something at or below `path` changes. It must not block.
    ///
    /// # Errors
    /// `Internal_error` when the event thread has ended.
    pub fn always(&self, path: &Path, look: impl Fn() + Send + 'static) -> Result<(), Error> {
        self.watch(path, Sink::Call(Box::new(look))).map(drop)
    }

    fn watch(&self, path: &Path, sink: Sink) -> Result<u64, Error> {
        let key = self.keys.fetch_add(1, Ordering::Relaxed);
        self.send(Command::Watch(key, path.clone(), sink))?;
        Ok(key)
    }

    fn send(&self, command: Command) -> Result<(), Error> {
        let ended = || Error::internal("the xenstore event thread has ended; restart xenopsd".to_owned());
        self.commands.send(command).map_err(|_| ended())?;
        self.waker.0.wake().map_err(|_| ended())
    }
}

impl Subscription {
    /// Readable when something changed since [`Subscription::take`].
    pub fn receiver(&self) -> &Receiver<()> {
        &self.changed
    }

    /// Takes the notice, before looking.
    pub fn take(&self) {
        let _ = self.changed.try_recv();
    }
}

impl std::fmt::Debug for Following {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Following").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        for key in &self.keys {
            // An ended thread has no watches left to remove.
            let _ = self.events.send(Command::Unwatch(*key));
        }
    }
}

struct EventThread {
    poll: Poll,
    stream: WatchStream,
    incoming: Receiver<Command>,
    sinks: HashMap<WatchToken, (u64, Sink)>,
    tokens: HashMap<u64, WatchToken>,
    /// A closed waker would take its last wake along.
    _waker: Arc<Waker>,
}

impl EventThread {
    fn run(mut self) {
        // A plug is some forty events: they are taken together, and not each one from xenstored's hands.
        let _unhurried = ffi::linux::sched::Unhurried::begin();
        let mut ready = mio::Events::with_capacity(8);
        loop {
            if let Err(error) = self.poll.poll(&mut ready, None) {
                if error.kind() == std::io::ErrorKind::Interrupted {
                    continue;
                }
                tracing::error!(%error, "the xenstore event loop failed");
                return;
            }
            if !self.obey() {
                return;
            }
            if let Err(error) = self.listen() {
                tracing::error!(%error, "the xenstore watch connection is lost; connecting again");
                if !self.reconnect() {
                    return;
                }
            }
        }
    }

    /// Whether there is still somebody who can command.
    fn obey(&mut self) -> bool {
        loop {
            match self.incoming.try_recv() {
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
                Ok(Command::Watch(key, path, sink)) => {
                    let token = self.stream.watch(&path);
                    self.tokens.insert(key, token);
                    self.sinks.insert(token, (key, sink));
                }
                Ok(Command::Unwatch(key)) => {
                    if let Some(token) = self.tokens.remove(&key) {
                        self.sinks.remove(&token);
                        self.stream.unwatch(token);
                    }
                }
            }
        }
    }

    fn listen(&mut self) -> Result<(), xenstore::TransportError> {
        let sinks = &self.sinks;
        self.stream.drain(|event| match event {
            Event::Changed { token, .. } => {
                if let Some((_, sink)) = sinks.get(&token) {
                    sink.tell();
                }
            }
            Event::Refused { token, path, errno } => {
                tracing::error!(%path, %errno, "xenstored refuses a watch; its waiter ends by its deadline");
                if let Some((_, sink)) = sinks.get(&token) {
                    sink.tell();
                }
            }
            Event::Resync => sinks.values().for_each(|(_, sink)| sink.tell()),
        })
    }

    /// Whether there is still somebody to do it for.
    fn reconnect(&mut self) -> bool {
        let mut pause = MIN_BACKOFF;
        let _ = self.poll.registry().deregister(&mut self.stream);
        loop {
            match self.stream.reconnect() {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(%error, seconds = pause.as_secs_f64(), "xenstored does not answer; trying again");
                    if !self.obey() {
                        return false;
                    }
                    // Commands go on queueing; waits end by their own deadlines.
                    crossbeam::channel::at(Instant::now() + pause).recv().ok();
                    pause = (pause * 2).min(MAX_BACKOFF);
                }
            }
        }
        let again = Interest::READABLE | Interest::WRITABLE;
        if let Err(error) = self.poll.registry().register(&mut self.stream, STREAM, again) {
            tracing::error!(%error, "the new xenstore connection cannot be polled");
        }
        self.sinks.values().for_each(|(_, sink)| sink.tell());
        true
    }
}
