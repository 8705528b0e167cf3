//! Pseudo-terminals of simulated consoles: what xenconsoled makes for a domain, with a guest behind that repeats what
//! is typed.
//!
//! One thread for all sleeps in mio until somebody types.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use nix::pty::openpty;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::ttyname;

use crate::edge::DomId;

/// What somebody who connects sees first.
const BANNER: &[u8] = b"This guest is simulated; it repeats what you type.\r\n";

/// Bytes repeated at once. What a reader does not take is lost, as on a serial line.
const CHUNK: usize = 4096;

/// Token of the waker: above every domain's.
const END: Token = Token(usize::MAX);

/// One console.
struct Terminal {
    guest: File,
    /// Kept open, so that the terminal outlives its readers.
    _user: OwnedFd,
}

type Table = Arc<Mutex<HashMap<DomId, Terminal>>>;

/// All consoles.
pub(super) struct Terminals {
    table: Table,
    registry: Registry,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

fn lock(table: &Table) -> MutexGuard<'_, HashMap<DomId, Terminal>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn token(domid: DomId) -> Token {
    Token(usize::from(domid.get()))
}

impl Terminals {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let poll = Poll::new()?;
        let registry = poll.registry().try_clone()?;
        let waker = Waker::new(poll.registry(), END)?;
        let table = Table::default();
        let shared = Arc::clone(&table);
        let thread = std::thread::Builder::new()
            .name("simulated-consoles".into())
            .stack_size(crate::ops::SMALL_STACK)
            .spawn(move || repeat(poll, &shared))?;
        Ok(Self { table, registry, waker, thread: Some(thread) })
    }

    /// Makes a terminal for a domain; where it is.
    pub(super) fn open(&self, domid: DomId) -> io::Result<PathBuf> {
        let pty = openpty(None, None)?;
        let mut settings = tcgetattr(&pty.slave)?;
        cfmakeraw(&mut settings);
        tcsetattr(&pty.slave, SetArg::TCSANOW, &settings)?;
        let path = ttyname(&pty.slave)?;
        let mut guest = nonblocking(&pty.master)?;
        self.registry.register(&mut SourceFd(&guest.as_raw_fd()), token(domid), Interest::READABLE)?;
        guest.write_all(BANNER)?;
        lock(&self.table).insert(domid, Terminal { guest, _user: pty.slave });
        Ok(path)
    }

    /// Hangs up. Closing the terminal also ends its registration.
    pub(super) fn close(&self, domid: DomId) {
        lock(&self.table).remove(&domid);
    }
}

fn nonblocking(master: &OwnedFd) -> io::Result<File> {
    let file = File::from(master.try_clone()?);
    let flags = nix::fcntl::OFlag::from_bits_retain(nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETFL)?);
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETFL(flags | nix::fcntl::OFlag::O_NONBLOCK))?;
    Ok(file)
}

impl Drop for Terminals {
    fn drop(&mut self) {
        lock(&self.table).clear();
        // Without the wake the thread sleeps on, which harms nobody.
        if self.waker.wake().is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}

fn repeat(mut poll: Poll, table: &Table) {
    let mut ready = Events::with_capacity(64);
    let mut buffer = [0; CHUNK];
    loop {
        match poll.poll(&mut ready, None) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return,
            _ => {}
        }
        for event in &ready {
            if event.token() == END {
                return;
            }
            let domid = u16::try_from(event.token().0).ok().and_then(DomId::new);
            if let Some(terminal) =
                domid.and_then(|d| lock(table).get(&d).and_then(|t| t.guest.try_clone().ok()))
            {
                echo(terminal, &mut buffer);
            }
        }
    }
}

/// Until there is no more: mio tells once.
fn echo(mut terminal: File, buffer: &mut [u8]) {
    while let Ok(n @ 1..) = terminal.read(buffer) {
        let _ = terminal.write(&buffer[..n]);
    }
}
