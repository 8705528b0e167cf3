//! Where viewers of an HVM guest's screen come in: a listening socket of the daemon's. The device model listens nowhere
//! and is handed each viewer that has come.

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// What kind of place is wanted. There is none that other hosts reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScreenPlace {
    /// A port of 127.0.0.1, this one if it is free: viewers of a guest whose daemon was restarted come back to it.
    Port(Option<u16>),
    /// A Unix socket that only root reaches.
    Socket,
}

/// Where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScreenAddress {
    /// A port of 127.0.0.1.
    Port(u16),
    /// A Unix socket.
    Socket(PathBuf),
}

/// A socket that viewers connect to. It ends when this is dropped; the name of a Unix socket is in the journal.
#[derive(Debug)]
pub struct ScreenListener {
    socket: Listening,
    address: ScreenAddress,
}

#[derive(Debug)]
enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl ScreenListener {
    /// One on a port.
    ///
    /// # Errors
    /// The kernel's.
    pub fn on_port(listener: TcpListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let address = ScreenAddress::Port(listener.local_addr()?.port());
        Ok(Self { socket: Listening::Tcp(listener), address })
    }

    /// One that is a file.
    ///
    /// # Errors
    /// The kernel's.
    pub fn on_file(listener: UnixListener, path: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { socket: Listening::Unix(listener), address: ScreenAddress::Socket(path) })
    }

    /// Where it is.
    pub fn address(&self) -> &ScreenAddress {
        &self.address
    }

    /// A viewer that has come, if there is one; this does not wait.
    ///
    /// # Errors
    /// The kernel's.
    pub fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let accepted = match &self.socket {
            Listening::Tcp(listener) => listener.accept().map(|(viewer, _)| viewer.into()),
            Listening::Unix(listener) => listener.accept().map(|(viewer, _)| viewer.into()),
        };
        match accepted {
            Ok(viewer) => Ok(Some(viewer)),
            // One that has gone again before it was let in is none.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl AsFd for ScreenListener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Listening::Tcp(listener) => listener.as_fd(),
            Listening::Unix(listener) => listener.as_fd(),
        }
    }
}
