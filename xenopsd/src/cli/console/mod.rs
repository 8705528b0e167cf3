//! The text console of a domain in this terminal.
//!
//! ```text
//!  guest ──ring──► xenconsoled ──pty──► xenstore: D/console/tty = /dev/pts/N
//!                                 │
//!  this terminal (raw) ◄──attach──┘        a terminal server's port or socket is taken instead when there is one
//! ```

mod attach;
mod log;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open as open_file};
use nix::sys::stat::{Mode, major};
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use xenstore::{Client, Endpoint, Operations as _, WatchStream};

use crate::api::{Console, ConsoleProtocol, DomainType, VmState};

use super::error::ConsoleError;
pub(super) use attach::{End, attach};
pub(super) use log::log;

/// How long xenconsoled may take to make a terminal for a new domain. It does so as soon as it hears of the domain;
/// a dom0 that is busy with many starts takes seconds.
const TERMINAL_WAIT: Duration = Duration::from_secs(10);

/// Block of major numbers of pseudo-terminal slaves (`Documentation/admin-guide/devices.txt` of Linux).
const PTS_MAJORS: std::ops::RangeInclusive<u64> = 136..=143;

/// The far end of a console, ready to be read and written without waiting.
#[derive(Debug)]
pub(super) struct Terminal {
    pub(super) path: PathBuf,
    pub(super) link: Link,
}

#[derive(Debug)]
pub(super) enum Link {
    /// A pseudo-terminal, locked against a second `xenops console`: two readers would each get half of the output.
    Pty(Flock<OwnedFd>),
    /// A terminal server.
    Socket(OwnedFd),
}

/// Opens the text console of a running domain.
pub(super) fn open(domid: u16, state: &VmState) -> Result<Terminal, ConsoleError> {
    let offered = state.consoles.iter().find(|console| console.protocol == ConsoleProtocol::Vt100);
    if let Some(console) = offered {
        return open_offered(domid, console);
    }
    let nodes = nodes(domid, state.domain_type);
    let path = find_terminal(&Endpoint::from_environment(), domid, &nodes, TERMINAL_WAIT)?;
    open_pty(domid, &path)
}

fn open_offered(domid: u16, console: &Console) -> Result<Terminal, ConsoleError> {
    if !console.path.is_empty() {
        let path = PathBuf::from(&console.path);
        let socket = std::fs::metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket());
        if !socket {
            return open_pty(domid, &console.path);
        }
        let stream =
            UnixStream::connect(&path).and_then(|stream| stream.set_nonblocking(true).map(|()| stream));
        return match stream {
            Ok(stream) => Ok(Terminal { path, link: Link::Socket(stream.into()) }),
            Err(source) => Err(ConsoleError::Io { action: "connect to", path, source }),
        };
    }
    let path = PathBuf::from(format!("127.0.0.1:{}", console.port));
    let port = u16::try_from(console.port).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let stream = port
        .and_then(|port| TcpStream::connect((Ipv4Addr::LOCALHOST, port)))
        .and_then(|stream| stream.set_nonblocking(true).map(|()| stream));
    match stream {
        Ok(stream) => Ok(Terminal { path, link: Link::Socket(stream.into()) }),
        Err(source) => Err(ConsoleError::Io { action: "connect to", path, source }),
    }
}

/// Where the store names a domain's terminal, best first: an HVM guest's firmware and loader speak on the serial
/// port, its kernel may use the paravirtual console.
fn nodes(domid: u16, kind: DomainType) -> Vec<String> {
    let serial = format!("/local/domain/{domid}/serial/0/tty");
    let console = format!("/local/domain/{domid}/console/tty");
    if kind == DomainType::Hvm { vec![serial, console] } else { vec![console] }
}

/// Waits, by a watch, until one of the nodes names a terminal.
fn find_terminal(
    store_at: &Endpoint,
    domid: u16,
    nodes: &[String],
    wait: Duration,
) -> Result<String, ConsoleError> {
    let store = |source: xenstore::Error| ConsoleError::Store { domid, source };
    let paths = nodes.iter().map(|node| xenstore::Path::new(node)).collect::<Result<Vec<_>, _>>();
    let paths = paths.map_err(|error| store(error.into()))?;
    let mut client = Client::connect_to(store_at.clone()).map_err(store)?;
    let lost = |error: xenstore::TransportError| store(error.into());
    let mut watches = WatchStream::connect(store_at.clone()).map_err(lost)?;
    for path in &paths {
        watches.watch(path);
    }
    let broken =
        |source: io::Error| ConsoleError::Io { action: "wait for", path: nodes[0].clone().into(), source };
    let mut poll = Poll::new().map_err(broken)?;
    poll.registry()
        .register(&mut watches, Token(0), Interest::READABLE | Interest::WRITABLE)
        .map_err(broken)?;
    let mut events = Events::with_capacity(8);
    let deadline = Instant::now() + wait;
    loop {
        watches.drain(|_| ()).map_err(lost)?;
        let values = client.read_all(&paths).map_err(store)?;
        if let Some(value) = values.into_iter().flatten().find(|value| !value.is_empty()) {
            return Ok(String::from_utf8_lossy(&value).into_owned());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ConsoleError::NoTerminal { domid, seconds: wait.as_secs() });
        }
        match poll.poll(&mut events, Some(left)) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(broken(error)),
            _ => {}
        }
    }
}

/// Opens a pseudo-terminal by the name found in the store. The name is only trusted to be that of a terminal: it is
/// never any other file.
fn open_pty(domid: u16, path: &str) -> Result<Terminal, ConsoleError> {
    let refused = || ConsoleError::NotATerminal { domid, path: path.chars().take(80).collect() };
    let number = path.strip_prefix("/dev/pts/").filter(|number| (1..=9).contains(&number.len()));
    if !number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err(refused());
    }
    let path = PathBuf::from(path);
    let failed = |action| {
        let path = path.clone();
        move |errno: Errno| ConsoleError::Io { action, path, source: errno.into() }
    };
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    let terminal = open_file(&path, flags, Mode::empty()).map_err(failed("open"))?;
    if !is_pty_slave(&terminal, &path)? {
        return Err(refused());
    }
    let terminal =
        Flock::lock(terminal, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => ConsoleError::Busy { domid },
            errno => failed("lock")(errno),
        })?;
    // Bytes of the guest are not for dom0's line discipline: no echo, no signals, no translation.
    let mut modes = tcgetattr(&*terminal).map_err(failed("configure"))?;
    cfmakeraw(&mut modes);
    tcsetattr(&*terminal, SetArg::TCSANOW, &modes).map_err(failed("configure"))?;
    Ok(Terminal { path, link: Link::Pty(terminal) })
}

fn is_pty_slave(terminal: &OwnedFd, path: &Path) -> Result<bool, ConsoleError> {
    let metadata = terminal.try_clone().and_then(|copy| File::from(copy).metadata());
    let metadata =
        metadata.map_err(|source| ConsoleError::Io { action: "examine", path: path.to_owned(), source })?;
    Ok(metadata.file_type().is_char_device() && PTS_MAJORS.contains(&major(metadata.rdev())))
}
