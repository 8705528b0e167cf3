//! Bytes to and fro between a client and a screen.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::client::{Client, Read, read_some, write_some};
use super::{ConsoleCall, Place};

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The client has closed.
    Client,
    /// The screen has.
    Screen,
    /// One of the two took nothing for too long.
    Stalled,
}

/// Answers the client and carries bytes until one side ends, or nobody takes what waits for `stalled`.
/// `place` is given back before either of them hears of the end.
pub(super) fn run(
    call: ConsoleCall,
    screen: UnixStream,
    stalled: Duration,
    place: Option<Place>,
) -> io::Result<End> {
    call.stream.set_nonblocking(true)?;
    screen.set_nonblocking(true)?;
    let (client, up) = Client::welcome(call);
    let mut session = Session { _place: place, client, screen, up, screen_ended: false, owed: None };
    loop {
        match session.turn()? {
            Turn::Ended(end) => return Ok(end),
            Turn::Moved => {}
            Turn::Still => {
                if !session.wait(stalled)? {
                    return Ok(End::Stalled);
                }
            }
        }
    }
}

enum Turn {
    Ended(End),
    /// Something was carried; there may be more.
    Moved,
    /// There is nothing to be done until a socket says so.
    Still,
}

/// Fields are dropped in this order.
struct Session {
    _place: Option<Place>,
    client: Client,
    screen: UnixStream,
    /// From the client, not yet taken by the screen.
    up: Vec<u8>,
    screen_ended: bool,
    /// Since when nobody has taken what waits.
    owed: Option<Instant>,
}

impl Session {
    fn turn(&mut self) -> io::Result<Turn> {
        let mut moved = false;
        if self.up.is_empty() {
            match self.client.read()? {
                Read::Bytes(bytes) => (self.up, moved) = (bytes, true),
                Read::Blocked => {}
                Read::Closed => return Ok(Turn::Ended(End::Client)),
            }
        }
        match write_some(&mut self.screen, &mut self.up) {
            Ok(written) => moved |= written,
            // It takes no more, and may still have something to say.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.up.clear();
                moved = true;
            }
            Err(error) => return Err(error),
        }
        if self.client.is_idle() && !self.screen_ended {
            match read_some(&mut self.screen)? {
                Read::Bytes(bytes) => {
                    self.client.give(&bytes)?;
                    moved = true;
                }
                Read::Blocked => {}
                Read::Closed => (self.screen_ended, moved) = (true, true),
            }
        }
        moved |= self.client.flush()?;
        if moved {
            self.owed = None;
        }
        if self.screen_ended && self.client.is_idle() {
            self.client.close();
            return Ok(Turn::Ended(End::Screen));
        }
        Ok(if moved { Turn::Moved } else { Turn::Still })
    }

    /// Waits for a socket; false when nobody has taken what waits for too long.
    fn wait(&mut self, stalled: Duration) -> io::Result<bool> {
        let (idle, nothing_up) = (self.client.is_idle(), self.up.is_empty());
        let timeout = if idle && nothing_up {
            PollTimeout::NONE
        } else {
            let until = *self.owed.get_or_insert_with(Instant::now) + stalled;
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // Rounded up, so that it is not waited for in a circle.
            PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
        };
        // Who is asked for nothing is not listened to: one that has gone would say so again and again.
        let mut sockets = Vec::with_capacity(2);
        let mut listen = |socket, read: bool, write: bool| {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLIN, read);
            flags.set(PollFlags::POLLOUT, write);
            if !flags.is_empty() {
                sockets.push(PollFd::new(socket, flags));
            }
        };
        listen(self.client.as_fd(), nothing_up, !idle);
        listen(self.screen.as_fd(), idle && !self.screen_ended, !nothing_up);
        match poll(&mut sockets, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(errno.into()),
        }
    }
}
