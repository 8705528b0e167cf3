//! Starts the terminal server of a guest's text console, `vncterm`, in its jail.
//!
//! ```text
//!   this daemon                                             vncterm (own user, empty root, no network)
//!     pty, listening sockets, screen ── descriptors ──►  0 the guest   1, 2 the daemon   3 VNC   4 text
//!     ◄──────────────────────────────────────── "ready"  everything is loaded and open
//!     its root is taken away; the journal is written
//!     a line ───────────────────────────────────────► │  only now the guest's first byte is read
//! ```
//!
//! The line is the password that viewers must know, if there is one. Closed without it, because this daemon was killed or the journal refused, the socket ends it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use vncterm::rfb::auth::Password;

use ffi::jail::{self, Child, Entry, Jail, Limits};

use super::ports::{Ports, PortsError};
use super::process;
use super::pty::{PtyError, open_slave};
use crate::edge::{Prepared, TerminalPorts, TerminalSockets, TerminalWanted};

/// The role of its entries in the journal.
pub const ROLE: &str = "vncterm";

/// How long it may take to load: it takes some milliseconds, on a dom0 with hundreds of starts much longer.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// Bytes of what it says when it cannot start.
const MAX_MESSAGE: u64 = 4096;

/// Where the jail has the file of the saved screen.
const SCREEN: &str = "/screen";

/// Where the jail has the file of the console's log.
const LOG: &str = "/log";

/// What its process may use: the largest screen with its scroll-back, the largest log and eight viewers' buffers fit in;
/// files are the saved screen and the log, which is twice [`ConsoleLog::MAX_SIZE`] at most.
pub(super) const LIMITS: Limits = Limits {
    open_files: Some(64),
    // Itself: the kernel compares before it starts the program.
    processes: Some(2),
    file_size: Some(32 << 20),
    address_space: Some(128 << 20),
    data: None,
    cpu_seconds: None,
};

/// Why there is no terminal server. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum TerminalError {
    /// The console's terminal.
    #[error(transparent)]
    Pty(#[from] PtyError),
    /// No port.
    #[error(transparent)]
    Ports(#[from] PortsError),
    /// The file its screen is kept in.
    #[error("{}: {source}", path.display())]
    Screen {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file of the password: without it, nobody is let in rather than everybody.
    #[error("{}: {why}; vncterm-password-file names the file of text consoles' password", path.display())]
    Password {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A driver of Xen's, for the server of a frame buffer.
    #[error("{} restricted to domain {domid}: {source}", path.display())]
    Driver {
        /// Its device.
        path: PathBuf,
        /// The domain.
        domid: crate::edge::DomId,
        /// What the kernel said.
        source: io::Error,
    },
    /// The jail.
    #[error(transparent)]
    Jail(#[from] jail::Error),
    /// It ended, or did not become ready.
    #[error("{} did not become ready: {why}", program.display())]
    NotReady {
        /// The program.
        program: PathBuf,
        /// What it said, or the kernel.
        why: String,
    },
}

/// What is kept of consoles' output, beside the screen and its scroll-back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleLog {
    /// Bytes in memory, at most [`Self::MAX_SIZE`].
    pub size: u32,
    /// Directory of files of twice as many; none keeps them in memory only.
    pub directory: Option<PathBuf>,
}

impl ConsoleLog {
    /// What a Linux guest prints while it boots.
    pub const DEFAULT_SIZE: u32 = 64 << 10;
    /// What vncterm accepts.
    pub const MAX_SIZE: u32 = 16 << 20;
}

/// Which program, as whom.
#[derive(Debug)]
pub struct TerminalServers {
    /// The program.
    pub program: PathBuf,
    /// User number of domain 0's; each domain has its own.
    pub uid_base: u32,
    /// What it keeps of the output.
    pub log: ConsoleLog,
    /// File of the password that viewers must know.
    pub password: Option<PathBuf>,
    vnc: Ports,
    text: Ports,
}

impl TerminalServers {
    /// `uid_base` must leave room for every domain ([`jail::check_uid_base`]).
    pub fn new(program: PathBuf, uid_base: u32, log: ConsoleLog) -> Self {
        Self { program, uid_base, log, password: None, vnc: Ports::vnc(), text: Ports::text() }
    }

    /// Listens for readers of the text, and for viewers if there is a `screen`.
    ///
    /// # Errors
    /// [`TerminalError::Ports`].
    pub fn listen(&self, screen: bool) -> Result<TerminalSockets, TerminalError> {
        let vnc = screen.then(|| self.listen_for_viewers(None)).transpose()?;
        let text = self.text.listen(None)?;
        let port = |listener: &TcpListener| listener.local_addr().map_or(0, |address| address.port());
        let ports = TerminalPorts { vnc: vnc.as_ref().map(port), text: port(&text) };
        Ok(TerminalSockets { ports, sockets: vnc.into_iter().chain([text]).map(OwnedFd::from).collect() })
    }

    /// Listens for viewers alone, of a screen that is not this program's.
    ///
    /// # Errors
    /// [`PortsError`].
    pub fn listen_for_viewers(&self, wanted: Option<u16>) -> Result<TcpListener, PortsError> {
        self.vnc.listen(wanted)
    }

    /// Starts one; it waits for its word.
    ///
    /// # Errors
    /// [`TerminalError`].
    pub fn start(&self, wanted: &TerminalWanted<'_>) -> Result<Prepared, TerminalError> {
        let uid = jail::uid_of(self.uid_base, wanted.domid)?;
        let screen = |source| TerminalError::Screen { path: wanted.screen.to_owned(), source };
        let restored = prepare_file(wanted.screen, wanted.restore, uid).map_err(screen)?;
        let log = self.prepare_log(wanted.vm, uid);
        // Only viewers are asked for it.
        let password = self.password.as_deref().filter(|_| wanted.sockets.ports.vnc.is_some());
        let password = password.map(read_password).transpose()?;
        let broken = |error: io::Error| self.not_ready(&error);
        let (ours, its) = UnixStream::pair().map_err(broken)?;
        let its = OwnedFd::from(its);
        let mut jail = Jail::new(uid, uid)?
            .system_libraries()
            .entry(Entry::Writable { source: wanted.screen.to_owned(), path: SCREEN.into() })
            .limits(LIMITS);
        if let Some(source) = &log {
            jail = jail.entry(Entry::Writable { source: source.clone(), path: LOG.into() });
        }
        jail = jail
            .descriptor(open_slave(wanted.tty)?)
            .descriptor(its.try_clone().map_err(broken)?)
            .descriptor(its);
        for socket in &wanted.sockets.sockets {
            jail = jail.descriptor(socket.try_clone().map_err(broken)?);
        }
        let jail = jail.variable("LISTEN_FDS", wanted.sockets.sockets.len().to_string())?;
        let log_size = self.log.size.to_string();
        let mut arguments = vec!["vncterm", "--supervised", "--pty", "-", "--title", wanted.title];
        arguments.extend(["--log-size", &log_size]);
        if log.is_some() {
            arguments.extend(["--log", LOG]);
        }
        if wanted.sockets.ports.vnc.is_none() {
            arguments.push("--no-vnc");
        }
        arguments.extend(["--savestate", SCREEN]);
        if restored {
            arguments.extend(["--loadstate", SCREEN]);
        }
        self.hold(jail, &arguments, (ours, password), (uid, ROLE))
    }
}

impl TerminalServers {
    pub(super) fn not_ready(&self, why: &dyn std::fmt::Display) -> TerminalError {
        TerminalError::NotReady { program: self.program.clone(), why: why.to_string() }
    }

    /// Runs the program in its jail until it has all that it needs; it waits for its word, which may bring a password, over the
    /// socket. It is of this user, and its entry in the journal of this role.
    pub(super) fn hold(
        &self,
        jail: Jail,
        arguments: &[&str],
        (socket, password): (UnixStream, Option<Password>),
        (uid, role): (u32, &str),
    ) -> Result<Prepared, TerminalError> {
        let not_ready = |why: &dyn std::fmt::Display| self.not_ready(why);
        let mut held = Held::new(jail.spawn(&self.program, arguments)?, socket, password);
        held.wait_until_ready().map_err(|why| not_ready(&why))?;
        let pid = held.settle(&not_ready)?;
        let process = process::describe(pid, uid, role).map_err(|error| not_ready(&error))?;
        let program = self.program.clone();
        let go = move || {
            held.go().map_err(|source| {
                let why = format!("it ended while it was written down: {source}");
                TerminalError::NotReady { program, why }.into()
            })
        };
        Ok(Prepared { process, go: Box::new(go) })
    }

    /// The file of a VM's log, which goes on where it ended, if one is kept. A guest is not kept from running because what
    /// it prints cannot be written to a disk: then it is kept in memory only, and the daemon's log says so.
    fn prepare_log(&self, vm: &str, uid: u32) -> Option<PathBuf> {
        let path = self.log.directory.as_ref()?.join(format!("{vm}.log"));
        match prepare_file(&path, true, uid) {
            Ok(_) => Some(path),
            Err(error) => {
                let file = path.display();
                tracing::warn!(vm, %file, %error, "the console's log is not kept on disk (console-log-directory)");
                None
            }
        }
    }
}

/// A process that was not given its word: it is ended when this is dropped.
struct Held {
    child: Option<Child>,
    socket: UnixStream,
    password: Option<Password>,
}

impl Held {
    fn new(child: Child, socket: UnixStream, password: Option<Password>) -> Self {
        Self { child: Some(child), socket, password }
    }

    /// It has all that it needs: even its root goes. Its number.
    fn settle(
        &self,
        not_ready: &dyn Fn(&dyn std::fmt::Display) -> TerminalError,
    ) -> Result<u32, TerminalError> {
        let child = self.child.as_ref().ok_or_else(|| not_ready(&"it is gone"))?;
        child.empty_root()?;
        Ok(child.pid())
    }

    /// Reads `ready`, or why it cannot be.
    fn wait_until_ready(&mut self) -> Result<(), String> {
        const READY: &[u8] = b"ready\n";
        self.socket.set_read_timeout(Some(READY_LIMIT)).map_err(|e| e.to_string())?;
        let mut first = [0; READY.len()];
        match self.socket.read_exact(&mut first) {
            Ok(()) if first == READY => return Ok(()),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(format!("nothing within {} s ({error})", READY_LIMIT.as_secs())),
        }
        let mut rest = Vec::new();
        // It is ending; what it says is read as far as it comes.
        let _ = (&mut self.socket).take(MAX_MESSAGE).read_to_end(&mut rest);
        let text = String::from_utf8_lossy(&first).trim_end_matches('\0').to_owned()
            + &String::from_utf8_lossy(&rest);
        Err(if text.trim().is_empty() { "it ended".to_owned() } else { text.trim().to_owned() })
    }

    fn go(mut self) -> io::Result<()> {
        let password = self.password.take();
        let word = [password.as_ref().map_or(&b""[..], Password::text), b"\n"].concat();
        self.socket.write_all(&word)?;
        self.socket.shutdown(Shutdown::Both)?;
        // It is on its own now, and found again by its number.
        self.child = None;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The password in a file that nobody but its owner may read.
pub(super) fn read_password(path: &Path) -> Result<Password, TerminalError> {
    let wrong = |why: String| TerminalError::Password { path: path.to_owned(), why };
    let file = File::open(path).map_err(|error| wrong(error.to_string()))?;
    let mode = file.metadata().map_err(|error| wrong(error.to_string()))?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(wrong(format!(
            "others than its owner may use it (mode {:03o}): chmod 600",
            mode & 0o777
        )));
    }
    let mut text = Vec::new();
    file.take(Password::MOST_READ).read_to_end(&mut text).map_err(|error| wrong(error.to_string()))?;
    Password::new(&text).map_err(|error| wrong(error.to_string()))
}

/// A file of a VM's terminal server, owned by the jail's user and with its contents if they are to be `kept`; whether there
/// is something in it to begin with.
fn prepare_file(path: &Path, kept: bool, uid: u32) -> io::Result<bool> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    if !kept {
        file.set_len(0)?;
    }
    file.set_permissions(Permissions::from_mode(0o600))?;
    std::os::unix::fs::fchown(&file, Some(uid), Some(uid))?;
    Ok(file.metadata()?.len() > 0)
}
