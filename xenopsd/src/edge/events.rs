//! Watches for worker threads: one thread owns the watch connection and its event loop, workers subscribe to paths.
//!
//! ```text
//!   worker ── subscribe(paths) ──► commands ──► ┌─────────────┐ ◄── watch events ── xenstored
//!   worker ◄── "changed" (coalesced) ───────────│ event thread│
//!   daemon ◄── "some domain began or ended" ────└─────────────┘
//! ```
//!
//! Subscribers to one path share its watch: xenstored sends each event once, and is not asked for one watch twice.
//!
//! A lost connection is made again with all its watches, and every subscriber is told to look: what happened
//! meanwhile is found by looking, never assumed.

use std::collections::{HashMap, hash_map::Entry};
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
        let (watched, own_waker) = (Watched::default(), Arc::clone(&waker));
        let thread = EventThread { poll, stream, incoming, watched, _waker: own_waker };
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

/// What is watched, for whom.
#[derive(Default)]
struct Watched {
    /// The watch of each path.
    tokens: HashMap<Path, WatchToken>,
    /// Who wants to hear of it.
    sinks: HashMap<WatchToken, Vec<(u64, Sink)>>,
    /// What a subscriber's key is for.
    keys: HashMap<u64, (Path, WatchToken)>,
}

impl Watched {
    /// One more subscriber. Where a watch is there already, nothing comes from xenstored to begin with: he is told by us.
    fn add(&mut self, key: u64, path: Path, sink: Sink, watch: impl FnOnce(&Path) -> WatchToken) {
        let token = match self.tokens.entry(path.clone()) {
            Entry::Occupied(there) => {
                sink.tell();
                *there.get()
            }
            Entry::Vacant(new) => *new.insert(watch(&path)),
        };
        self.keys.insert(key, (path, token));
        self.sinks.entry(token).or_default().push((key, sink));
    }

    /// One less. The watch that nobody wants any more.
    fn remove(&mut self, key: u64) -> Option<WatchToken> {
        let (path, token) = self.keys.remove(&key)?;
        let left = self.sinks.get_mut(&token)?;
        left.retain(|(other, _)| *other != key);
        if !left.is_empty() {
            return None;
        }
        self.sinks.remove(&token);
        // After a refusal it may have another watch.
        if self.tokens.get(&path) == Some(&token) {
            self.tokens.remove(&path);
        }
        Some(token)
    }

    /// The next subscriber to the path asks again.
    fn refused(&mut self, path: &Path) {
        self.tokens.remove(path);
    }

    fn tell(&self, token: WatchToken) {
        self.sinks.get(&token).into_iter().flatten().for_each(|(_, sink)| sink.tell());
    }

    fn tell_all(&self) {
        self.sinks.values().flatten().for_each(|(_, sink)| sink.tell());
    }
}

struct EventThread {
    poll: Poll,
    stream: WatchStream,
    incoming: Receiver<Command>,
    watched: Watched,
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
                    self.watched.add(key, path, sink, |path| self.stream.watch(path));
                }
                Ok(Command::Unwatch(key)) => {
                    if let Some(token) = self.watched.remove(key) {
                        self.stream.unwatch(token);
                    }
                }
            }
        }
    }

    fn listen(&mut self) -> Result<(), xenstore::TransportError> {
        let watched = &mut self.watched;
        self.stream.drain(|event| match event {
            Event::Changed { token, .. } => watched.tell(token),
            Event::Refused { token, path, errno } => {
                tracing::error!(%path, %errno, "xenstored refuses a watch; its waiter ends by its deadline");
                watched.tell(token);
                watched.refused(&path);
            }
            Event::Resync => watched.tell_all(),
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
        self.watched.tell_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::store::{SharedStore, listen};
    use xenstore::{DomId, Operations};

    /// No event takes so long.
    const LIMIT: Duration = Duration::from_secs(30);

    fn is_told(subscription: &Subscription) {
        subscription.receiver().recv_timeout(LIMIT).expect("it is told");
    }

    #[test]
    fn a_path_has_one_watch_whose_subscribers_all_hear_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = SharedStore::new();
        let listening = listen(&store, &directory.path().join("xenstored")).unwrap();
        let events = Events::start(WatchStream::connect(listening.endpoint()).unwrap()).unwrap();
        let mut client = store.client(DomId::DOM0);
        let path = [Path::new("/a").unwrap()];

        let first = events.subscribe(&path).unwrap();
        is_told(&first);
        let second = events.subscribe(&path).unwrap();
        is_told(&second);
        client.write(&path[0], "1").unwrap();
        is_told(&first);
        is_told(&second);
        // The watch stays for the one who is left, and another is set for who comes when nobody was.
        drop(first);
        client.write(&path[0], "2").unwrap();
        is_told(&second);
        drop(second);
        let third = events.subscribe(&path).unwrap();
        is_told(&third);
        client.write(&path[0], "3").unwrap();
        is_told(&third);
    }

    #[test]
    fn a_watch_lasts_until_its_last_subscriber_goes() {
        let directory = tempfile::tempdir().unwrap();
        let listening = listen(&SharedStore::new(), &directory.path().join("xenstored")).unwrap();
        let mut stream = WatchStream::connect(listening.endpoint()).unwrap();
        let (mut watched, path) = (Watched::default(), Path::new("/a").unwrap());
        let mut set = 0;
        let mut add = |watched: &mut Watched, key| {
            let (tell, told) = bounded(1);
            watched.add(key, path.clone(), Sink::Channel(tell), |path| {
                set += 1;
                stream.watch(path)
            });
            (told, set)
        };
        let (first, watches) = add(&mut watched, 1);
        assert_eq!((first.try_recv(), watches), (Err(TryRecvError::Empty), 1));
        let (second, watches) = add(&mut watched, 2);
        assert_eq!((second.try_recv(), watches), (Ok(()), 1));
        assert_eq!(watched.remove(1), None);
        let token = watched.remove(2).expect("nobody wants it any more");
        assert_eq!(watched.remove(2), None);
        // One that was refused is asked for again, and its end leaves the other alone.
        let (_, watches) = add(&mut watched, 3);
        assert_eq!(watches, 2);
        watched.refused(&path);
        let (_, watches) = add(&mut watched, 4);
        assert_eq!(watches, 3);
        assert!(watched.remove(3).is_some_and(|refused| refused != token));
        let (_, watches) = add(&mut watched, 5);
        assert_eq!(watches, 3);
    }
}
