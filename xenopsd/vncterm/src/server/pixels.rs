//! The loop of a guest's frame buffer: one thread, no waiting but in one place, every queue bounded.
//!
//! ```text
//!   the guest signals ─► its ring is read, its port unmasked: at most 50 times a second
//!        └─ tiles are stale ─► a viewer wants an update ─► they are looked at, RATE bytes a second ─► sent
//!   a viewer types ─► queue ─► the guest's ring, as far as there is room
//! ```
//!
//! A guest that signals and draws without end costs what a guest that prints without end does: a port that has signalled
//! stays masked until the next look at its ring, and the looks at its pixels are counted.

use super::budget::Budget;
use super::client::Kind;
use super::clients::Clients;
use super::listener::Listener;
use crate::fb::Shared;
use crate::fb::canvas::Canvas;
use crate::fb::described::Geometry;
use crate::fb::input::{Pressed, Queue};
use crate::fb::ring::{Input, Lost, Told, Updates};
use crate::rfb::auth::{Gate, Password};
use crate::rfb::{Act, PixelViewer};
use ffi::evtchn::Port;
use ffi::given::Channels;
use ffi::shared::SharedError;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::signalfd::SignalFd;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Bytes of the guest's pixels that are looked at each second, at most: about a tenth of a core.
const RATE: u32 = 64 << 20;

/// What may be looked at once before that counts: the largest screen.
const BURST: usize = 16 << 20;

/// Time between two looks at the guest's rings.
const LOOK: Duration = Duration::from_millis(20);

/// Bytes read from a viewer in one turn.
const CHUNK: usize = 32 << 10;

const CHANNELS: Token = Token(0);
const SIGNALS: Token = Token(1);
const LISTENER: Token = Token(2);

/// How the guest and this process wake each other.
pub trait Signals: AsFd {
    /// The next port that was signalled; it stays masked.
    ///
    /// # Errors
    /// The kernel's.
    fn pending(&self) -> io::Result<Option<Port>>;

    /// Lets it signal again.
    ///
    /// # Errors
    /// The kernel's.
    fn unmask(&self, port: Port) -> io::Result<()>;

    /// Signals the guest.
    ///
    /// # Errors
    /// The kernel's.
    fn notify(&self, port: Port) -> io::Result<()>;
}

impl Signals for Channels {
    fn pending(&self) -> io::Result<Option<Port>> {
        self.pending()
    }

    fn unmask(&self, port: Port) -> io::Result<()> {
        self.unmask(port)
    }

    fn notify(&self, port: Port) -> io::Result<()> {
        self.notify(port)
    }
}

/// The shared page of one of the two devices, and its port here.
#[derive(Debug)]
pub struct Device<M> {
    /// Its page.
    pub page: M,
    /// Its port.
    pub port: Port,
}

/// What a server begins with.
#[derive(Debug)]
pub struct PixelServer<M, S> {
    /// How guest and server wake each other.
    pub channels: S,
    /// The frame buffer.
    pub screen: Device<M>,
    /// How its pixels are laid out.
    pub geometry: Geometry,
    /// Its pages.
    pub memory: M,
    /// Bytes of them.
    pub length: usize,
    /// Keyboard and pointer, if the guest has them, and whether it wants the pointer's place.
    pub input: Option<(Device<M>, bool)>,
    /// For viewers.
    pub listener: Listener,
    /// What they must know, if anything.
    pub password: Option<Password>,
    /// SIGTERM, which ends it, blocked otherwise.
    pub signals: SignalFd,
}

struct Loop<M, S> {
    server: PixelServer<M, S>,
    gate: Option<Rc<Gate>>,
    poll: Poll,
    clients: Clients<PixelViewer>,
    /// What viewers hold down, by their tokens.
    pressed: BTreeMap<usize, Pressed>,
    canvas: Canvas,
    updates: Updates,
    /// Another layout of the pixels, which waits for bytes of the budget.
    resize: Option<Geometry>,
    typed: Option<(Input, Queue)>,
    /// The guest has signalled.
    readable: bool,
    looked: Option<Instant>,
    budget: Budget,
    ended: bool,
}

fn broken(error: SharedError) -> io::Error {
    io::Error::other(format!("the guest's pages: {error}"))
}

impl<M: Shared, S: Signals> PixelServer<M, S> {
    /// Serves until SIGTERM comes.
    ///
    /// # Errors
    /// When the kernel refuses what cannot be done without.
    pub fn run(mut self) -> io::Result<()> {
        let updates = Updates::new(&self.screen.page).map_err(broken)?;
        let typed = self.input.as_ref().map(|(device, absolute)| {
            Input::new(&device.page).map(|input| (input, Queue::new(*absolute))).map_err(broken)
        });
        let mut running = Loop {
            gate: self.password.take().map(Gate::new).map(Rc::new),
            poll: Poll::new()?,
            clients: Clients::default(),
            pressed: BTreeMap::new(),
            canvas: Canvas::new(self.geometry),
            updates,
            resize: None,
            typed: typed.transpose()?,
            readable: true,
            looked: None,
            budget: Budget::new(RATE, BURST),
            ended: false,
            server: self,
        };
        running.register()?;
        running.run()
    }
}

impl<M: Shared, S: Signals> Loop<M, S> {
    fn register(&mut self) -> io::Result<()> {
        let registry = self.poll.registry();
        let channels = self.server.channels.as_fd().as_raw_fd();
        registry.register(&mut SourceFd(&channels), CHANNELS, Interest::READABLE)?;
        registry.register(&mut SourceFd(&self.server.signals.as_raw_fd()), SIGNALS, Interest::READABLE)?;
        self.server.listener.register(registry, LISTENER)
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(64);
        let mut buffer = vec![0; CHUNK];
        while !self.ended {
            match self.poll.poll(&mut events, self.timeout(Instant::now())) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for event in &events {
                match event.token() {
                    CHANNELS => self.readable = true,
                    SIGNALS => self.ended |= self.server.signals.read_signal()?.is_some(),
                    LISTENER => self.accept(),
                    Token(token) => self.clients.readable(token),
                }
            }
            let now = Instant::now();
            self.hear(now)?;
            self.read_clients(&mut buffer);
            self.tell()?;
            self.look(now)?;
            self.clients.serve(&self.canvas, now);
            for (token, _) in self.clients.take_dropped() {
                if let (Some(pressed), Some((_, queue))) = (self.pressed.remove(&token), &mut self.typed) {
                    queue.gone(pressed);
                }
            }
            self.tell()?;
        }
        Ok(())
    }

    /// How long nothing is to be done without an event.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let rings = self.readable.then(|| self.next_look(now));
        let behind = (self.canvas.has_stale() || self.resize.is_some()) && self.is_watched();
        // For a look at what a frame's time allows.
        let pixels = behind.then(|| self.budget.refilled + LOOK);
        let soonest = rings.into_iter().chain(pixels).chain(self.clients.wakes(now)).min()?;
        Some(soonest.saturating_duration_since(now))
    }

    fn next_look(&self, now: Instant) -> Instant {
        self.looked.map_or(now, |looked| looked + LOOK)
    }

    fn is_watched(&self) -> bool {
        self.clients.want_update()
    }

    fn accept(&mut self) {
        let gate = &self.gate;
        self.clients.accept(&self.server.listener, self.poll.registry(), false, || {
            Kind::Viewer(Box::new(PixelViewer::new(gate.clone())))
        });
    }

    /// Takes what the guest tells, if it is time.
    fn hear(&mut self, now: Instant) -> io::Result<()> {
        if !self.readable || self.next_look(now) > now {
            return Ok(());
        }
        self.readable = false;
        let mut masked = Vec::new();
        // Each port comes once, for it is masked then.
        while let Some(port) = self.server.channels.pending()? {
            masked.push(port);
        }
        self.looked = Some(now);
        let (canvas, resize) = (&mut self.canvas, &mut self.resize);
        let (length, mut some) = (self.server.length, false);
        let each = |told: Told| {
            some = true;
            match &told {
                // One that cannot be is none: what was there goes on.
                Told::Resize(said) => *resize = Geometry::checked(said, length).ok().or(*resize),
                Told::Update { .. } => canvas.drawn(&told),
            }
        };
        let Lost(lost) = self.updates.take(&self.server.screen.page, each).map_err(broken)?;
        if lost {
            self.canvas.all_drawn();
        }
        if some || lost {
            self.notify(self.server.screen.port);
        }
        for port in masked {
            self.server.channels.unmask(port)?;
        }
        // One that was signalled meanwhile is told by the poll.
        Ok(())
    }

    /// A guest that has closed its end is none to be told, and no reason to end: who watches its devices sees to that.
    fn notify(&self, port: Port) {
        let _ = self.server.channels.notify(port);
    }

    fn read_clients(&mut self, buffer: &mut [u8]) {
        let mut only = None;
        for (token, client) in self.clients.iter_mut().filter(|(_, client)| client.readable) {
            let Some(count) = client.read(buffer) else { continue };
            let Kind::Viewer(viewer) = &mut client.kind else { continue };
            let pressed = self.pressed.entry(*token).or_default();
            let typed = &mut self.typed;
            let result = viewer.received(&buffer[..count], &self.canvas, |act| match (act, &mut *typed) {
                (Act::Exclusive, _) => only = Some(*token),
                (_, None) => {}
                (Act::Key { down, keysym }, Some((_, queue))) => queue.key(pressed, down, keysym),
                (Act::Pointer { buttons, x, y }, Some((_, queue))) => queue.pointer(pressed, buttons, (x, y)),
            });
            client.after(result);
        }
        if let Some(only) = only {
            self.clients.drop_viewers_but(only);
        }
    }

    /// Tells the guest what was typed, as far as it has room. It signals when it has taken something.
    fn tell(&mut self) -> io::Result<()> {
        let (Some((device, _)), Some((input, queue))) = (&self.server.input, &mut self.typed) else {
            return Ok(());
        };
        if queue.flush(|event| input.put(&device.page, event)).map_err(broken)? {
            self.notify(device.port);
        }
        Ok(())
    }

    /// Looks at what the guest drew, when somebody wants to see it.
    fn look(&mut self, now: Instant) -> io::Result<()> {
        self.budget.refill(now);
        if !self.is_watched() {
            return Ok(());
        }
        if let Some(geometry) = self.resize.take() {
            // Making one costs as much as a look at it.
            match self.budget.left.checked_sub(geometry.screen()) {
                Some(left) => {
                    self.budget.left = left;
                    self.canvas.resize(geometry);
                }
                None => self.resize = Some(geometry),
            }
        }
        let clients = &mut self.clients;
        let changed = |tile| clients.viewers().for_each(|viewer| viewer.changed(tile));
        self.canvas.look(&self.server.memory, &mut self.budget.left, changed).map_err(broken)
    }
}
