//! How requests get to a xenstored and replies come back.
//!
//! The caller's thread does the I/O: [`Transport::exchange`] sends everything it is given without waiting in
//! between, and returns when the last reply is there. That matters because a round trip to a busy xenstored takes
//! milliseconds, most of it scheduling.

mod endpoint;
#[cfg(feature = "libxenstore")]
mod libxenstore;
mod stream;

pub use endpoint::{DEFAULT_SOCKET, DEFAULT_XENBUS, Endpoint, Link, SOCKET_VARIABLE};
#[cfg(feature = "libxenstore")]
pub use libxenstore::LibTransport;
pub use stream::{DEFAULT_TIMEOUT, MAX_IN_FLIGHT, StreamTransport};

use crate::wire::{DecodeError, EncodeError, Errno, Reply, Request, TxId};
use std::io;
use std::time::Duration;

/// What a daemon said to one request.
pub type Answer = Result<Reply, Errno>;

/// A way to a xenstored, or to something that acts as one.
pub trait Transport: Send {
    /// Sends all requests in order, without waiting in between, and returns one answer per request in the same
    /// order. Later requests are sent whatever the answers to earlier ones are.
    ///
    /// # Errors
    /// [`TransportError`] when the answers are not known. Unless it is [`TransportError::Encode`], some requests
    /// may have taken effect, and the transactions of this connection are gone.
    fn exchange(&mut self, requests: &[(TxId, Request)]) -> Result<Vec<Answer>, TransportError>;

    /// Bounds the time one exchange may take.
    fn set_timeout(&mut self, timeout: Duration);

    /// Counts the connections made so far. A transaction belongs to the connection it was started on.
    fn generation(&self) -> u64;
}

/// The way to the daemon failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// No connection can be made. Is xenstored running, and may this user speak to it?
    #[error("cannot connect to xenstored at {endpoint}: {source}")]
    Connect {
        /// Where.
        endpoint: String,
        /// Why not.
        source: io::Error,
    },
    /// Reading or writing failed; the next exchange will connect again.
    #[error("connection to xenstored at {endpoint} failed: {source}")]
    Io {
        /// Where.
        endpoint: String,
        /// Why.
        source: io::Error,
    },
    /// The daemon closed the connection; the next exchange will connect again.
    #[error("xenstored at {endpoint} closed the connection")]
    Closed {
        /// Where.
        endpoint: String,
    },
    /// No answer in time. The connection has been given up; the next exchange will connect again.
    #[error("xenstored at {endpoint} did not answer {operation} within {} s", after.as_secs_f32())]
    TimedOut {
        /// Where.
        endpoint: String,
        /// The first request without an answer, and what it was about.
        operation: String,
        /// The time that was given.
        after: Duration,
    },
    /// The daemon sent what no daemon should. The connection has been given up.
    #[error("xenstored at {endpoint} broke the protocol: {violation}")]
    Protocol {
        /// Where.
        endpoint: String,
        /// How.
        violation: Violation,
    },
    /// The request belongs to a transaction of a connection that is gone: start the transaction again.
    #[error("the transaction was lost with its connection to xenstored at {endpoint}")]
    TransactionLost {
        /// Where.
        endpoint: String,
    },
    /// A request cannot be sent at all; nothing has been.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// How a daemon can break the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A header that is none.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A reply to nothing we asked, or a second one.
    #[error("a reply to request {req_id}, which is not waiting for one")]
    UnknownRequest {
        /// The number in the reply.
        req_id: u32,
    },
    /// A reply of another kind or transaction than its request.
    #[error("the reply to request {req_id} is of another kind or transaction than the request")]
    Mismatch {
        /// The number in the reply.
        req_id: u32,
    },
}
