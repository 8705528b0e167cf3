//! The loop: one thread, no waiting but in one place, every queue bounded.

mod budget;
mod client;
mod clients;
mod listener;
mod log;
mod pixels;

pub use listener::{Listener, Stream};
pub use log::Log;
pub use pixels::{Device, PixelServer, Signals};

use crate::rfb::auth::{Gate, Password};
use crate::rfb::{Input, Viewer};
use crate::source::Source;
use crate::term::Terminal;
use budget::Budget;
use client::Kind;
use clients::Clients;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::signal::Signal;
use nix::sys::signalfd::SignalFd;
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// A guest may print this much each second: a tenth of a core, and ten times what xenconsoled lets through.
const RATE: u32 = 4 << 20;

/// What it may print at once before that counts.
const BURST: usize = 512 << 10;

/// Bytes read from anyone in one turn, so that nobody waits for another.
const CHUNK: usize = 32 << 10;

/// Bytes for a guest that does not read: a clipboard. More is lost.
const MAX_INPUT: usize = 128 << 10;

/// Time between two starts of a command that ends at once.
const RESTART: Duration = Duration::from_secs(1);

const SOURCE: Token = Token(0);
const SIGNALS: Token = Token(1);
const LISTENERS: usize = 2;

/// What a server begins with.
#[derive(Debug)]
pub struct Server {
    /// The guest or command.
    pub source: Source,
    /// Its screen.
    pub terminal: Terminal,
    /// Its output.
    pub log: Log,
    /// For viewers.
    pub vnc: Option<Listener>,
    /// For text clients.
    pub text: Option<Listener>,
    /// Where the screen is saved.
    pub save: Option<File>,
    /// What viewers must know, if anything.
    pub password: Option<Password>,
    /// SIGUSR1 (save) and SIGTERM (save and end), blocked otherwise.
    pub signals: SignalFd,
    /// Run the command again.
    pub restart: bool,
    /// Stay when the guest has gone.
    pub stay: bool,
}

/// What is at the other end of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    There,
    /// A command that will be run again then.
    Again(Instant),
    Gone,
}

struct Loop {
    server: Server,
    gate: Option<Rc<Gate>>,
    poll: Poll,
    clients: Clients<Viewer>,
    /// For the guest.
    input: Vec<u8>,
    source_readable: bool,
    other: Other,
    /// Bytes that may be read from the source.
    budget: Budget,
    ended: bool,
}

impl Server {
    /// Serves until the guest goes or SIGTERM comes.
    ///
    /// # Errors
    /// When the kernel refuses what cannot be done without.
    pub fn run(mut self) -> io::Result<()> {
        let mut running = Loop {
            gate: self.password.take().map(Gate::new).map(Rc::new),
            poll: Poll::new()?,
            server: self,
            clients: Clients::default(),
            input: Vec::new(),
            source_readable: true,
            other: Other::There,
            budget: Budget::new(RATE, BURST),
            ended: false,
        };
        running.register()?;
        running.run()
    }
}

impl Loop {
    fn register(&mut self) -> io::Result<()> {
        let registry = self.poll.registry();
        registry.register(&mut SourceFd(&self.server.source.raw_fd()), SOURCE, clients::BOTH)?;
        registry.register(&mut SourceFd(&self.server.signals.as_raw_fd()), SIGNALS, Interest::READABLE)?;
        let listeners = [&mut self.server.vnc, &mut self.server.text].into_iter().zip(LISTENERS..);
        for (listener, token) in listeners.filter_map(|(listener, token)| Some((listener.as_mut()?, token))) {
            listener.register(registry, Token(token))?;
        }
        Ok(())
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
                    SOURCE => self.source_readable = true,
                    SIGNALS => self.signalled()?,
                    Token(LISTENERS) => self.accept(false),
                    Token(token) if token < clients::FIRST => self.accept(true),
                    Token(token) => self.clients.readable(token),
                }
            }
            let now = Instant::now();
            self.read_source(&mut buffer, now);
            self.read_clients(&mut buffer);
            self.write_source();
            self.clients.serve(&self.server.terminal, now);
            self.clients.take_dropped().for_each(drop);
        }
        Ok(())
    }

    /// How long nothing is to be done without an event.
    fn timeout(&self, now: Instant) -> Option<Duration> {
        let refill = (self.source_readable && self.other == Other::There).then(|| {
            // Enough for a turn, not for a byte.
            self.budget.has(CHUNK)
        });
        let again = if let Other::Again(when) = self.other { Some(when) } else { None };
        let clients = self.clients.wakes(now).into_iter();
        let soonest = clients.chain(again).chain(refill).min()?;
        Some(soonest.saturating_duration_since(now))
    }

    fn signalled(&mut self) -> io::Result<()> {
        while let Some(signal) = self.server.signals.read_signal()? {
            self.save()?;
            self.ended |= i32::try_from(signal.ssi_signo) != Ok(Signal::SIGUSR1 as i32);
        }
        Ok(())
    }

    fn save(&mut self) -> io::Result<()> {
        let Some(file) = &mut self.server.save else { return Ok(()) };
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(&self.server.terminal.save())?;
        file.sync_data()
    }

    fn read_source(&mut self, buffer: &mut [u8], now: Instant) {
        self.budget.refill(now);
        if let Other::Again(when) = self.other
            && when <= now
        {
            self.start_again(now);
        }
        // A turn takes at most a burst; below a chunk it waits until more may be read.
        while self.source_readable && self.other == Other::There && self.budget.left >= CHUNK {
            match self.server.source.read(buffer) {
                Ok(Some(count)) => {
                    self.budget.left -= count;
                    self.show(&buffer[..count]);
                }
                Ok(None) => self.source_readable = false,
                Err(_) => self.lost(now),
            }
        }
    }

    fn show(&mut self, bytes: &[u8]) {
        self.server.terminal.feed(bytes);
        self.server.log.write(bytes);
        let replies = self.server.terminal.take_replies();
        self.type_in(&replies);
        let rings = self.server.terminal.take_bells() > 0;
        for client in self.clients.values_mut() {
            client.printed(bytes, rings);
        }
    }

    /// The guest has gone, or the command has ended.
    fn lost(&mut self, now: Instant) {
        self.source_readable = false;
        if self.server.restart {
            self.other = Other::Again(now + RESTART);
        } else {
            self.other = Other::Gone;
            self.ended = !self.server.stay;
        }
    }

    fn start_again(&mut self, now: Instant) {
        let size = self.server.terminal.size();
        let registry = self.poll.registry();
        // It may have gone from the poll by itself; closing it takes it out anyway.
        let _ = registry.deregister(&mut SourceFd(&self.server.source.raw_fd()));
        let started = self.server.source.restart(size).and_then(Result::ok);
        let registered = started.filter(|source| {
            registry.register(&mut SourceFd(&source.raw_fd()), SOURCE, clients::BOTH).is_ok()
        });
        let Some(source) = registered else { return self.lost(now) };
        self.server.source = source;
        self.source_readable = true;
        self.other = Other::There;
        self.server.terminal.feed(b"\x1bc");
    }

    fn accept(&mut self, text: bool) {
        let listener = if text { &self.server.text } else { &self.server.vnc };
        let Some(listener) = listener else { return };
        let (log, gate) = (&self.server.log, &self.gate);
        self.clients.accept(listener, self.poll.registry(), text, || {
            if text {
                Kind::Text(log.ring().to_vec())
            } else {
                Kind::Viewer(Box::new(Viewer::new(gate.clone())))
            }
        });
    }

    fn read_clients(&mut self, buffer: &mut [u8]) {
        let (mut typed, mut resize, mut only) = (Vec::new(), None, None);
        for (token, client) in self.clients.iter_mut().filter(|(_, client)| client.readable) {
            let Some(count) = client.read(buffer) else { continue };
            let Kind::Viewer(viewer) = &mut client.kind else {
                typed.extend_from_slice(&buffer[..count]);
                continue;
            };
            let bracketed = self.server.terminal.modes().bracketed_paste;
            let result = viewer.received(&buffer[..count], &self.server.terminal, |input| match input {
                Input::Guest(bytes) => typed.extend(bytes),
                Input::Paste(text) if typed.len() < MAX_INPUT => typed.extend(pasted(&text, bracketed)),
                Input::Paste(_) => {}
                Input::Resize(size) => resize = Some(size),
                Input::Exclusive => only = Some(*token),
            });
            client.after(result);
        }
        if let Some(size) = resize {
            self.server.terminal.resize(size);
        }
        if let Some(only) = only {
            self.clients.drop_viewers_but(only);
        }
        self.type_in(&typed);
    }

    fn type_in(&mut self, bytes: &[u8]) {
        let room = MAX_INPUT.saturating_sub(self.input.len());
        self.input.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    fn write_source(&mut self) {
        if self.other != Other::There {
            self.input.clear();
        }
        while !self.input.is_empty() {
            match self.server.source.write(&self.input) {
                Ok(0) => return,
                Ok(count) => drop(self.input.drain(..count)),
                // Reading tells that it has gone.
                Err(_) => self.input.clear(),
            }
        }
    }
}

/// A clipboard as it is typed: line ends are Return, and no sequence within it can end a bracketed paste. Cut text is
/// Latin-1 (RFC 6143, 7.5.6), the guest's is UTF-8.
fn pasted(text: &[u8], bracketed: bool) -> Vec<u8> {
    let typed = text.iter().map(|byte| if *byte == b'\n' { '\r' } else { char::from(*byte) });
    let typed: String = typed.filter(|c| !c.is_control() || matches!(c, '\r' | '\t')).collect();
    let (before, after) = if bracketed { ("\x1b[200~", "\x1b[201~") } else { ("", "") };
    [before, &typed, after].concat().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::pasted;

    #[test]
    fn a_clipboard_cannot_press_keys() {
        assert_eq!(pasted(b"a\nb\x1b[201~\x03\x9b\xe4", true), "\x1b[200~a\rb[201~ä\x1b[201~".as_bytes());
        assert_eq!(pasted(b"ls\n", false), b"ls\r");
    }
}
