//! Bytes to and fro between this terminal and a console, until one side ends or Ctrl-] is typed.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{read, write};

use super::super::error::ConsoleError;
use super::{Link, Terminal};

/// Ctrl-], as in xenconsole and telnet.
pub(super) const ESCAPE: u8 = 0x1d;

/// Bytes taken at once in either direction; also all that is held for a guest that does not read.
const CHUNK: usize = 4096;

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum End {
    /// Ctrl-] was typed.
    Escaped,
    /// The domain, or the server of its console, has gone.
    HungUp,
    /// A signal asked us to end.
    Signalled,
}

/// Connects this terminal to `terminal`, and gives it back as it was.
pub(in super::super) fn attach(terminal: Terminal) -> Result<End, ConsoleError> {
    let Terminal { path, link } = terminal;
    let failed =
        |source: Errno| ConsoleError::Io { action: "use", path: path.clone(), source: source.into() };
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let signals = Signals::block().map_err(failed)?;
    let _raw = RawMode::enter(stdin.as_fd()).map_err(failed)?;
    let remote = match &link {
        Link::Pty(pty) => pty.as_fd(),
        Link::Socket(socket) => socket.as_fd(),
    };
    let mut pump = Pump {
        input: Some(stdin.as_fd()),
        output: stdout.as_fd(),
        remote,
        signals: Some(signals.fd.as_fd()),
        pending: Vec::new(),
    };
    pump.run().map_err(failed)
}

/// Signals that end a session arrive as bytes, so that the terminal is put back whatever ends it.
struct Signals {
    mask: SigSet,
    fd: SignalFd,
}

impl Signals {
    fn block() -> Result<Self, Errno> {
        let mask = [Signal::SIGTERM, Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT].into_iter().collect();
        let fd = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        mask.thread_block()?;
        Ok(Self { mask, fd })
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Unblocking cannot fail for signals that exist.
        let _ = self.mask.thread_unblock();
    }
}

/// A terminal in raw mode, put back on drop.
pub(super) struct RawMode<'a> {
    terminal: BorrowedFd<'a>,
    saved: Termios,
}

impl<'a> RawMode<'a> {
    /// `None` when the input is no terminal, which needs no mode.
    pub(super) fn enter(terminal: BorrowedFd<'a>) -> Result<Option<Self>, Errno> {
        let saved = match tcgetattr(terminal) {
            Ok(saved) => saved,
            Err(Errno::ENOTTY | Errno::EINVAL) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        tcsetattr(terminal, SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { terminal, saved }))
    }
}

impl Drop for RawMode<'_> {
    fn drop(&mut self) {
        // A terminal that has gone needs no mode.
        let _ = tcsetattr(self.terminal, SetArg::TCSADRAIN, &self.saved);
    }
}

/// The loop: no buffer grows, because input is only read when the last of it was taken.
pub(super) struct Pump<'a> {
    /// `None` once it has ended.
    pub(super) input: Option<BorrowedFd<'a>>,
    pub(super) output: BorrowedFd<'a>,
    /// Does not block.
    pub(super) remote: BorrowedFd<'a>,
    pub(super) signals: Option<BorrowedFd<'a>>,
    /// Typed, and not yet taken by the remote.
    pub(super) pending: Vec<u8>,
}

impl Pump<'_> {
    pub(super) fn run(&mut self) -> Result<End, Errno> {
        loop {
            let ready = self.wait()?;
            if ready.signal {
                return Ok(End::Signalled);
            }
            if ready.readable && !self.show_output()? {
                return Ok(End::HungUp);
            }
            if ready.writable && !self.send_pending()? {
                return Ok(End::HungUp);
            }
            if ready.typed && self.take_input()? {
                // What was typed before the escape is still meant for the guest, if it takes it now.
                self.send_pending()?;
                return Ok(End::Escaped);
            }
        }
    }

    fn wait(&self) -> Result<Ready, Errno> {
        let mut remote = PollFlags::POLLIN;
        if !self.pending.is_empty() {
            remote |= PollFlags::POLLOUT;
        }
        let mut fds = vec![PollFd::new(self.remote, remote)];
        let signals = self.signals.map(|fd| fds.len_then_push(fd));
        let input = self.input.filter(|_| self.pending.is_empty()).map(|fd| fds.len_then_push(fd));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let state = |index: usize| fds.get(index).and_then(PollFd::revents).unwrap_or(PollFlags::empty());
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        let any = |index: Option<usize>| {
            index.is_some_and(|index| state(index).intersects(PollFlags::POLLIN | gone))
        };
        Ok(Ready {
            signal: any(signals),
            readable: state(0).intersects(PollFlags::POLLIN | gone),
            writable: state(0).contains(PollFlags::POLLOUT),
            typed: any(input),
        })
    }

    /// False when the remote has gone.
    fn show_output(&mut self) -> Result<bool, Errno> {
        let mut bytes = [0; CHUNK];
        match read(self.remote, &mut bytes) {
            // A pseudo-terminal whose master is closed says either.
            Ok(0) | Err(Errno::EIO | Errno::ECONNRESET) => Ok(false),
            Ok(length) => {
                write_all(self.output, &bytes[..length])?;
                Ok(true)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
            Err(errno) => Err(errno),
        }
    }

    /// False when the remote has gone.
    fn send_pending(&mut self) -> Result<bool, Errno> {
        if self.pending.is_empty() {
            return Ok(true);
        }
        match write(self.remote, &self.pending) {
            Ok(length) => {
                self.pending.drain(..length);
                Ok(true)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
            Err(Errno::EIO | Errno::EPIPE | Errno::ECONNRESET) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// True when the escape was typed.
    fn take_input(&mut self) -> Result<bool, Errno> {
        let Some(input) = self.input else { return Ok(false) };
        let mut bytes = [0; CHUNK];
        match read(input, &mut bytes) {
            // A script's input ends; the guest's output goes on.
            Ok(0) | Err(Errno::EIO) => {
                self.input = None;
                Ok(false)
            }
            Ok(length) => {
                let (before, escaped) = until_escape(&bytes[..length]);
                self.pending.extend_from_slice(before);
                Ok(escaped)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

struct Ready {
    signal: bool,
    readable: bool,
    writable: bool,
    typed: bool,
}

trait LenThenPush<'a> {
    /// Appends a descriptor to be read; where it is.
    fn len_then_push(&mut self, fd: BorrowedFd<'a>) -> usize;
}

impl<'a> LenThenPush<'a> for Vec<PollFd<'a>> {
    fn len_then_push(&mut self, fd: BorrowedFd<'a>) -> usize {
        self.push(PollFd::new(fd, PollFlags::POLLIN));
        self.len() - 1
    }
}

/// What was typed before the escape, and whether it was typed.
pub(super) fn until_escape(typed: &[u8]) -> (&[u8], bool) {
    match typed.iter().position(|byte| *byte == ESCAPE) {
        Some(at) => (&typed[..at], true),
        None => (typed, false),
    }
}

/// Writes everything; waits when the output (which may have been made non-blocking by its owner) takes no more.
fn write_all(output: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match write(output, bytes) {
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(output, PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
