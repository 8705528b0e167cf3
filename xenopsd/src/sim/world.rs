//! Everything that happens by itself: one thread that plays the backends, the guests and xenconsoled.
//!
//! It sleeps until the store or the hypervisor tells of something, or a step is due. Each step is taken a little
//! later than it could be, by a delay that the seed gives to that step of that object, so that orders differ from seed
//! to seed.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, RecvTimeoutError};
use xenstore::layout::DeviceAddress;
use xenstore::store::ConnectionId;
use xenstore::{Client, Operations, Path, Request};

use super::backend::Backend;
use super::chance::{Chance, Luck};
use super::guest::{Birth, Guest, Wish};
use super::terminals::Terminals;
use super::{Shared, SimOptions, store_domid};
use crate::edge::DomId;

/// Where the backends of dom0 are announced.
const BACKENDS: [&str; 2] = ["/local/domain/0/backend/vbd", "/local/domain/0/backend/vif"];

/// Segments of a backend's path: `/local/domain/0/backend/vbd/D/N`.
const BACKEND_DEPTH: usize = 7;

/// Until when an idle world sleeps; it is woken by signals, this only bounds one call.
const IDLE: Duration = Duration::from_secs(3600);

/// What a console's terminal is when nobody is behind it.
const TTY: &str = "/dev/null";

/// What the world is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// The domain's last pause was undone.
    Runs(DomId),
    /// The domain was destroyed.
    Died(DomId),
    /// dom0's watches fired.
    Dom0,
    /// A guest's watches fired.
    Guest(DomId),
    /// Switched off.
    End,
}

/// What is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Task {
    Device(DeviceAddress),
    Guest(DomId),
    Consoles,
    Bury(DomId),
}

pub(super) struct World {
    shared: Arc<Shared>,
    incoming: Receiver<Signal>,
    dom0: Client,
    connection: ConnectionId,
    chance: Chance,
    delay: Duration,
    /// What guests do whose VM does not say.
    script: Vec<(String, String)>,
    due: BinaryHeap<Reverse<(Instant, u64, Task)>>,
    /// When each task is due: what `due` holds beside is outdated.
    scheduled: HashMap<Task, Instant>,
    steps: u64,
    backends: HashMap<DeviceAddress, Backend>,
    guests: HashMap<DomId, (Guest, ConnectionId)>,
    /// Domains whose console has a terminal.
    served: HashSet<DomId>,
    console_rounds: u64,
    terminals: Option<Terminals>,
}

impl World {
    pub(super) fn new(
        shared: Arc<Shared>,
        incoming: Receiver<Signal>,
        options: &SimOptions,
    ) -> std::io::Result<Self> {
        let terminals = options.terminals.then(Terminals::start).transpose()?;
        let (dom0, connection) = Guest::connect(&shared.store, xenstore::DomId::DOM0);
        Ok(Self {
            shared,
            incoming,
            dom0,
            connection,
            chance: Chance::new(options.seed),
            delay: options.delay,
            script: options.script.clone(),
            due: BinaryHeap::new(),
            scheduled: HashMap::new(),
            steps: 0,
            backends: HashMap::new(),
            guests: HashMap::new(),
            served: HashSet::new(),
            console_rounds: 0,
            terminals,
        })
    }

    /// Registers dom0's watches and runs on a thread of its own.
    pub(super) fn start(mut self) -> std::io::Result<std::thread::JoinHandle<()>> {
        self.wake_on_events(self.connection, Signal::Dom0);
        for watched in BACKENDS.into_iter().chain(["@introduceDomain"]) {
            let path = Path::new(watched).map_err(std::io::Error::other)?;
            let watch = Request::Watch { path, token: b"world".to_vec() };
            self.dom0.request(watch).map_err(std::io::Error::other)?;
        }
        std::thread::Builder::new()
            .name("simulated-world".into())
            .stack_size(crate::ops::WORKER_STACK)
            .spawn(move || self.run())
    }

    fn wake_on_events(&self, connection: ConnectionId, signal: Signal) {
        let signals = self.shared.signals.clone();
        self.shared.store.lock().wake_with(connection, move || {
            let _ = signals.send(signal);
        });
    }

    fn run(mut self) {
        loop {
            let until = self.due.peek().map_or_else(|| Instant::now() + IDLE, |Reverse((at, ..))| *at);
            match self.incoming.recv_deadline(until) {
                Ok(Signal::End) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(signal) => self.hear(signal),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // All of them, before a guest that is never done gets its next turn.
            for signal in self.incoming.clone().try_iter() {
                if signal == Signal::End {
                    return;
                }
                self.hear(signal);
            }
            self.take_due_steps();
        }
    }

    fn hear(&mut self, signal: Signal) {
        match signal {
            Signal::Runs(domid) => self.begin(domid),
            Signal::Died(domid) => {
                self.guests.remove(&domid);
                if self.served.remove(&domid)
                    && let Some(terminals) = &self.terminals
                {
                    terminals.close(domid);
                }
                self.soon(Task::Bury(domid));
            }
            Signal::Dom0 => self.listen(),
            Signal::Guest(domid) => {
                if let Some((_, connection)) = self.guests.get(&domid) {
                    // What happened is found by looking.
                    self.shared.store.lock().drop_events(*connection);
                    self.soon(Task::Guest(domid));
                }
            }
            Signal::End => {}
        }
    }

    /// A domain runs, for the first time or again.
    fn begin(&mut self, domid: DomId) {
        if !self.guests.contains_key(&domid) {
            let (boots, runs) = {
                let hardware = self.shared.hardware();
                (hardware.boots(domid), hardware.runs(domid))
            };
            if !runs {
                return;
            }
            let (client, connection) = Guest::connect(&self.shared.store, store_domid(domid));
            let (name, luck) = self.named("guest", domid);
            let birth = Birth { domid, name, luck, most: self.delay, first: boots <= 1, now: Instant::now() };
            let guest = Guest::new(birth, client, &self.script, &self.shared);
            self.guests.insert(domid, (guest, connection));
            self.wake_on_events(connection, Signal::Guest(domid));
        }
        self.soon(Task::Guest(domid));
    }

    /// dom0's events: which devices and consoles to look at.
    fn listen(&mut self) {
        let events: Vec<_> = {
            let mut store = self.shared.store.lock();
            std::iter::from_fn(|| store.take_event(self.connection)).collect()
        };
        for event in events {
            if event.path.as_str().starts_with('@') {
                self.soon(Task::Consoles);
                continue;
            }
            let world = *event.token == *b"world";
            // Too much news to list, or the directory itself was made or removed.
            if world && BACKENDS.contains(&event.path.as_str()) {
                self.look_at_all(&event.path);
                continue;
            }
            let named = if world { backend_of(&event.path) } else { Path::from_bytes(&event.token).ok() };
            if let Some(address) = named.and_then(|path| DeviceAddress::from_backend_path(&path)) {
                self.soon(Task::Device(address));
            }
        }
    }

    /// Devices that are there, and those that were.
    fn look_at_all(&mut self, class: &Path) {
        let known: Vec<_> = self.backends.keys().copied().collect();
        for address in known {
            self.soon(Task::Device(address));
        }
        let children = |store: &mut Client, path: &Path| {
            let names = store.directory(path).ok().flatten().unwrap_or_default();
            names.into_iter().filter_map(|name| path.join(&name).ok()).collect::<Vec<_>>()
        };
        for domain in children(&mut self.dom0, class) {
            for device in children(&mut self.dom0, &domain) {
                if let Some(address) = DeviceAddress::from_backend_path(&device) {
                    self.soon(Task::Device(address));
                }
            }
        }
    }

    /// An object of a domain: what it is called whatever number its domain got, and its luck.
    fn named(&self, what: &str, domid: DomId) -> (String, Luck) {
        let start = self.shared.hardware().start_of(domid);
        let name = format!("{what} of {}", start.unwrap_or_else(|| format!("domain {domid}")));
        let luck = self.chance.of(&name);
        (name, luck)
    }

    fn backend(&mut self, address: DeviceAddress) -> &mut Backend {
        if !self.backends.contains_key(&address) {
            let what = format!("{} {}", address.kind.backend_name(), address.id);
            let domid = DomId::new(address.domid.0).unwrap_or(DomId::DOM0);
            let (name, luck) = self.named(&what, domid);
            self.backends.insert(address, Backend::new(name, luck));
        }
        self.backends.get_mut(&address).expect("present or just inserted")
    }

    /// After the delay that the seed has for it.
    fn soon(&mut self, task: Task) {
        let most = self.delay;
        let delay = match task {
            Task::Device(address) => self.backend(address).delay(most),
            Task::Guest(domid) => {
                self.guests.get(&domid).map_or(Duration::ZERO, |(guest, _)| guest.reaction())
            }
            Task::Consoles => self.chance.of("xenconsoled").delay(self.console_rounds, most),
            Task::Bury(domid) => self.named("end", domid).1.delay(0, most),
        };
        self.at(Instant::now() + delay, task);
    }

    /// At a time, or before if it is due before.
    fn at(&mut self, at: Instant, task: Task) {
        if self.scheduled.get(&task).is_none_or(|due| at < *due) {
            self.scheduled.insert(task, at);
            self.steps += 1;
            self.due.push(Reverse((at, self.steps, task)));
        }
    }

    fn take_due_steps(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, _, task))) = self.due.peek().copied() {
            if at > now {
                return;
            }
            self.due.pop();
            // It was due before, and has been done.
            if self.scheduled.get(&task) != Some(&at) {
                continue;
            }
            self.scheduled.remove(&task);
            match task {
                Task::Device(address) => self.step_device(address),
                Task::Guest(domid) => self.step_guest(domid, now),
                Task::Consoles => {
                    self.console_rounds += 1;
                    self.serve_consoles();
                }
                Task::Bury(domid) => self.shared.change(|hardware| hardware.bury(domid)),
            }
        }
    }

    fn step_device(&mut self, address: DeviceAddress) {
        self.backend(address);
        let Some(backend) = self.backends.get_mut(&address) else { return };
        match backend.step(address, &mut self.dom0, &self.shared) {
            Ok(true) => {}
            Ok(false) => drop(self.backends.remove(&address)),
            Err(error) => tracing::error!(%address, %error, "a simulated backend failed"),
        }
        // It may have let go of a dying domain.
        if let Some(domid) = DomId::new(address.domid.0) {
            let dying = self.shared.hardware().info(domid).is_some_and(|d| d.dying);
            if dying {
                self.soon(Task::Bury(domid));
            }
        }
    }

    fn step_guest(&mut self, domid: DomId, now: Instant) {
        // A paused guest is called again when it runs.
        if !self.shared.hardware().runs(domid) {
            return;
        }
        let Some((guest, _)) = self.guests.get_mut(&domid) else { return };
        match guest.step(now, &self.shared) {
            Wish::Wait => {}
            Wish::At(at) => self.at(at, Task::Guest(domid)),
            Wish::Stop(reason) => self.shared.shut_down(domid, reason),
        }
    }

    /// As xenconsoled does for new domains.
    fn serve_consoles(&mut self) {
        let mut unserved = self.shared.hardware().living();
        unserved.retain(|domid| !self.served.contains(domid));
        for domid in unserved {
            match self.serve_console(domid) {
                Ok(true) => drop(self.served.insert(domid)),
                // Its introduction is still to come.
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%domid, %error, "the simulated console daemon tries again");
                    self.soon(Task::Consoles);
                }
            }
        }
    }

    /// Whether the domain has a console by now.
    fn serve_console(&mut self, domid: DomId) -> Result<bool, xenstore::Error> {
        let tty = Path::new(&format!("/local/domain/{domid}/console/tty"))?;
        if self.dom0.read(&tty)?.is_none() {
            return Ok(false);
        }
        let made = self.terminals.as_ref().map(|terminals| terminals.open(domid)).transpose();
        let name = made.unwrap_or_else(|error| {
            tracing::warn!(%domid, %error, "no pseudo-terminal for a simulated console");
            None
        });
        let name =
            name.map_or_else(|| TTY.as_bytes().to_vec(), |path| path.into_os_string().into_encoded_bytes());
        self.dom0.transaction(|t| if t.exists(&tty)? { t.write(&tty, name.clone()) } else { Ok(()) })?;
        Ok(true)
    }
}

/// The backend that a path is, or is in.
fn backend_of(path: &Path) -> Option<Path> {
    let segments: Vec<_> = path.segments().take(BACKEND_DEPTH).collect();
    (segments.len() == BACKEND_DEPTH).then(|| Path::new(&format!("/{}", segments.join("/"))).ok())?
}
