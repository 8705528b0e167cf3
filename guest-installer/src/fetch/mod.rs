//! Files from installation repositories: over HTTP, HTTPS, FTP and NFS, by a worker that has no network either.
//!
//! ```text
//!   caller (root)                                       worker (its own user, no files, no network, no names)
//!   opens the output ──────────── spawn ──────────────► locks itself in
//!   job ────────────────────────────────────────────►   speaks HTTP, TLS, FTP, NFS
//!   looks up, connects ◄──────── "connect me" ────────────┤
//!        └─────────── a connected socket ─────────────► reads, writes the output
//!   task's progress ◄──────────── bytes so far ───────────┤
//!   checks the length ◄─────────── outcome ───────────────┘
//! ```
//! A worker that a hostile server took over has that server's connection, and can ask for others; it cannot bind, look
//! around or reach what is this host's own: [`broker`] refuses loopback and link-local addresses unless the
//! administrator's own repository or proxy is there. (Other guests' consoles listen on loopback.)
//!
//! [`url`] reads addresses; [`http`], [`ftp`] and [`nfs`] are the protocols, each over whatever [`Connect`] opens;
//! [`download`] tries again, goes on where it was, and starts over; [`worker`] and [`broker`] are the two processes.
//!
//! HTTP is our own on `httparse`: `ureq` reaches plain HTTP through a proxy by `CONNECT` only, which Squid denies to port
//! 80 as it comes. TLS is `rustls` with `ring`. NFS is our own, too: there is no client crate without an async runtime.

pub mod broker;
pub mod download;
pub mod ftp;
pub mod http;
pub mod message;
pub mod nfs;
pub mod url;
pub mod worker;

use std::{fmt, io, net::TcpStream, time::Duration};

pub use broker::{By, Job, fetch};
pub use download::{Sink, download};
pub use http::Network;
pub use url::Address;

/// The name a worker is started under, its `argv[0]`.
pub const NAME: &str = "fetch-worker";

/// How long a server may say nothing, or take nothing.
pub const STALL: Duration = Duration::from_secs(30);

/// How long one file may take. 128 MiB come in that time at 150 kB/s.
pub const WALL: Duration = Duration::from_secs(15 * 60);

/// Most redirects followed for one request.
pub const REDIRECTS: usize = 5;

/// Most connections for one file: attempts, redirects, FTP's second and NFS' three.
pub const CONNECTIONS: usize = 64;

/// Longest line, head or message of a server that is not a file.
pub const HEAD_BYTES: usize = 32 << 10;

/// Longest address.
pub const ADDRESS_BYTES: usize = 2048;

/// Why a file did not come.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The server says that it has none of that name.
    #[error("there is no such file")]
    NotFound,
    /// It is larger than it may be, in bytes.
    #[error("it exceeds the limit of {0} bytes")]
    TooLarge(u64),
    /// The connection ended or stalled on the way: worth another attempt.
    #[error("{0}")]
    Broken(String),
    /// Another attempt would end the same way.
    #[error("{0}")]
    Refused(String),
    /// It was not wanted any more.
    #[error("it was cancelled")]
    Cancelled,
}

/// What comes of a request.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn refused(why: impl fmt::Display) -> Self {
        Self::Refused(why.to_string())
    }
}

/// An error of a connection that is there.
pub(crate) fn broken(error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Error::Broken("the server says nothing any more".to_owned())
        }
        io::ErrorKind::UnexpectedEof => Error::Broken("the server ended the connection".to_owned()),
        // What TLS does not like.
        io::ErrorKind::InvalidData => Error::Refused(error.to_string()),
        _ => Error::Broken(error.to_string()),
    }
}

/// A host and port to be connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A name or a number, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// From a port below 1024, which NFS servers want as it comes.
    pub privileged: bool,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Opens connections. Those read and write with a limit of their own ([`STALL`]).
pub trait Connect {
    /// A connection.
    ///
    /// # Errors
    /// [`Error::Refused`] when there is none to be had.
    fn connect(&self, target: &Target) -> Result<TcpStream>;
}
