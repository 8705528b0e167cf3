//! Listening sockets in the file system: private from the first instant, one daemon per path, no stale leftovers.

use std::fs::{DirBuilder, File, symlink_metadata};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};

/// Mode of the socket: only its owner may connect.
const SOCKET_MODE: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Mode of the directory it is in, if it has to be made.
const DIRECTORY_MODE: u32 = 0o755;

/// Connections the kernel holds while the server is busy; clients wait when it is full.
const BACKLOG: i32 = 128;

/// Why a path cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens on it already.
    #[error(
        "another xenopsd is listening on {}{}; stop it first or choose another path",
        .path.display(),
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    InUse {
        /// The path.
        path: PathBuf,
        /// The process that listens, if the kernel says.
        pid: Option<i32>,
    },
    /// There is something that is not a socket.
    #[error("{} is not a socket; move it away or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The path has no directory or no name, or is longer than a socket address can be.
    #[error("{} cannot be the path of a socket", .0.display())]
    BadPath(PathBuf),
    /// A system call failed.
    #[error("cannot {doing} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// A listening socket that removes its path when it is dropped, if the path is still its own.
#[derive(Debug)]
pub struct BoundSocket {
    path: PathBuf,
    /// Device and inode of the path, to recognise it again.
    identity: (u64, u64),
    listener: UnixListener,
}

impl BoundSocket {
    /// Listens on a path. Makes the directory it is in; removes what a dead daemon left there.
    ///
    /// # Errors
    /// [`BindError::InUse`] if somebody listens there, and what else may go wrong with a path.
    pub fn bind(path: &Path) -> Result<Self, BindError> {
        let io = |doing, path: &Path| {
            let path = path.to_path_buf();
            move |error: Errno| BindError::Io { doing, path, source: error.into() }
        };
        let directory = match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
            Some(parent) => parent,
            None => return Err(BindError::BadPath(path.to_path_buf())),
        };
        let address = UnixAddr::new(path).map_err(|_| BindError::BadPath(path.to_path_buf()))?;
        DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(|source| {
            BindError::Io { doing: "create the directory", path: directory.to_path_buf(), source }
        })?;
        // Two daemons that start together would both find a stale socket, and the second would remove what the
        // first has just made. The lock lasts until this function returns.
        let _lock = lock_directory(directory)?;
        remove_stale(path)?;
        let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .map_err(io("create a socket for", path))?;
        // Linux gives the path the mode of the socket, less the umask: nobody else can ever connect.
        fchmod(&fd, SOCKET_MODE).map_err(io("set the mode of", path))?;
        bind(fd.as_raw_fd(), &address).map_err(io("bind", path))?;
        let identity = symlink_metadata(path)
            .map(|meta| (meta.dev(), meta.ino()))
            .map_err(|source| BindError::Io { doing: "look at", path: path.to_path_buf(), source })?;
        let bound = Self { path: path.to_path_buf(), identity, listener: UnixListener::from(fd) };
        let backlog = Backlog::new(BACKLOG).map_err(io("listen on", path))?;
        listen(&bound.listener, backlog).map_err(io("listen on", path))?;
        Ok(bound)
    }

    /// The listener.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Another handle of the listener, for a server to own.
    ///
    /// # Errors
    /// As `dup`.
    pub fn try_clone_listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let ours = symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

fn lock_directory(directory: &Path) -> Result<Flock<File>, BindError> {
    let error = |source| BindError::Io { doing: "lock the directory", path: directory.to_path_buf(), source };
    let file = File::open(directory).map_err(error)?;
    Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| error(errno.into()))
}

/// Removes a socket nobody listens on.
fn remove_stale(path: &Path) -> Result<(), BindError> {
    match symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(BindError::NotASocket(path.to_path_buf())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(BindError::Io { doing: "look at", path: path.to_path_buf(), source });
        }
    }
    let error = |source| BindError::Io { doing: "probe", path: path.to_path_buf(), source };
    match probe(path) {
        Ok(stream) => {
            let pid = peer(&stream).map(|peer| peer.pid()).ok();
            Err(BindError::InUse { path: path.to_path_buf(), pid })
        }
        // Its queue is full, so there is somebody.
        Err(Errno::EAGAIN) => Err(BindError::InUse { path: path.to_path_buf(), pid: None }),
        Err(Errno::ECONNREFUSED) => std::fs::remove_file(path).map_err(|source| BindError::Io {
            doing: "remove the stale socket",
            path: path.to_path_buf(),
            source,
        }),
        Err(Errno::ENOENT) => Ok(()),
        Err(errno) => Err(error(errno.into())),
    }
}

/// Connects without ever waiting.
fn probe(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Who is at the other end, as it was when it connected or began to listen.
pub(crate) fn peer(stream: &impl std::os::fd::AsFd) -> Result<nix::sys::socket::UnixCredentials, Errno> {
    getsockopt(stream, sockopt::PeerCredentials)
}

/// Connects, waiting at most `timeout` for a busy server.
pub(crate) fn connect_within(path: &Path, timeout: Option<std::time::Duration>) -> io::Result<UnixStream> {
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let stream = UnixStream::from(fd);
    // The send timeout also bounds the wait for room in the listener's queue.
    stream.set_write_timeout(timeout)?;
    connect(stream.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::{BindError, BoundSocket};
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn is_private_and_removed_on_drop() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("deep/er/socket");
        let bound = BoundSocket::bind(&path).expect("bind");
        let mode = std::fs::symlink_metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        UnixStream::connect(&path).expect("connect");
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).expect("bind"));
        assert!(path.exists());
        let bound = BoundSocket::bind(&path).expect("bind");
        UnixStream::connect(bound.path()).expect("connect");
    }

    #[test]
    fn a_live_daemon_is_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("socket");
        let bound = BoundSocket::bind(&path).expect("bind");
        let error = BoundSocket::bind(&path).expect_err("in use");
        let own = i32::try_from(std::process::id()).expect("pid");
        assert!(matches!(&error, BindError::InUse { pid: Some(pid), .. } if *pid == own), "{error}");
        assert!(error.to_string().starts_with("another xenopsd is listening on "), "{error}");
        UnixStream::connect(bound.path()).expect("still there");
    }

    #[test]
    fn a_live_daemon_with_a_full_queue_is_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("socket");
        let bound = BoundSocket::bind(&path).expect("bind");
        let mut waiting = Vec::new();
        while let Ok(stream) = super::probe(&path) {
            waiting.push(stream);
            assert!(waiting.len() < 1000, "the queue never fills up");
        }
        assert!(matches!(BoundSocket::bind(&path), Err(BindError::InUse { .. })));
        drop(bound);
    }

    #[test]
    fn something_else_is_left_alone() {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").expect("write");
        assert!(matches!(BoundSocket::bind(&file), Err(BindError::NotASocket(_))));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&file, &link).expect("symlink");
        assert!(matches!(BoundSocket::bind(&link), Err(BindError::NotASocket(_))));
        assert_eq!(std::fs::read(&file).expect("read"), b"precious");
    }

    #[test]
    fn a_successors_socket_is_not_removed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let path = dir.path().join("socket");
        let bound = BoundSocket::bind(&path).expect("bind");
        std::fs::remove_file(&path).expect("remove");
        let other = UnixListener::bind(&path).expect("bind");
        drop(bound);
        assert!(path.exists());
        drop(other);
    }

    #[test]
    fn a_path_too_long_for_an_address_is_refused() {
        let path = std::env::temp_dir().join("x".repeat(200));
        assert!(matches!(BoundSocket::bind(&path), Err(BindError::BadPath(_))));
    }
}
