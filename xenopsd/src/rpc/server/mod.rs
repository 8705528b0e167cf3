//! The RPC server: one I/O thread for all connections, replies from any thread.
//!
//! ```text
//!            accept, check credentials            complete: decode, Service::call
//!  listener ───────────────────────────► Reading ────────────────────────────────► Waiting
//!                                           │ refused                                 │ Responder::send
//!                                           │ (413, 404, ...)                         ▼ (channel + waker)
//!                    ▲                      └──────────────────────────────────────► Writing ──► closed
//!                    │                                                                │  │ refused
//!                    └────────────── if the request asked for it ─────────────────────┘  ▼
//!                                                                                  Draining ──► closed
//! ```
//!
//! * A request with `connection: keep-alive` keeps its connection. One at a time is served: what has come of the next is
//!   looked at once the reply has left, after a turn of the others, and not at all if the client has gone by then. So a
//!   client may write several at once; at most one read's worth of them is held, the rest waits in the socket.
//! * Reading has a deadline, Writing has one that starts anew with every byte taken, Draining has a short one, and so has a
//!   kept connection between two requests.
//!   Waiting has none: a request for updates may wait for ever. A client that goes away while it waits is noticed,
//!   and its [`Responder`] told.
//! * Only root and the user the daemon runs as are served; anybody else is closed without a byte.
//! * A connection over [`Limits::connections`] takes the place of the one that has been kept without a request for the
//!   longest time; if there is none, of the one whose request has been arriving for the longest
//!   time, so that idle clients cannot keep others out. Where every request is complete, it waits in the kernel's queue
//!   until one is answered.
//! * A request that cannot be decoded is answered with `Internal_error` and a text that says why. (The reference
//!   implementation closes the connection instead, which leaves its users without any explanation.)

mod connection;
mod io_thread;
mod responder;

#[cfg(test)]
mod tests;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mio::Waker;

use super::codec::Codec;
use super::console::ConsoleCall;
use crate::api::Call;
use crate::api::value::ToValue as _;

pub use io_thread::Server;
pub use responder::Responder;

/// What answers calls.
pub trait Service: Send + Sync {
    /// Takes a call. Runs on the I/O thread and must not wait for anything: what takes time belongs on another
    /// thread, which the responder can be given to. A panic is reported to the caller as an internal error.
    fn call(&self, call: Call, reply: Responder);

    /// Takes a client that wants a VM's screen, under the same rules. One that serves none turns it away.
    fn console(&self, call: ConsoleCall) {
        call.refuse("404 Not Found");
    }
}

impl<S: Service + ?Sized> Service for Arc<S> {
    fn call(&self, call: Call, reply: Responder) {
        (**self).call(call, reply);
    }

    fn console(&self, call: ConsoleCall) {
        (**self).console(call);
    }
}

/// Why the server could not start or had to end.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Setting up the event loop or waiting for events failed.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// Ends [`Server::run`] from another thread.
#[derive(Clone)]
pub struct StopHandle {
    stopping: Arc<AtomicBool>,
    waker: Arc<Waker>,
}

impl StopHandle {
    /// Makes [`Server::run`] return soon. Calls being served get no answer any more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake the RPC server to end it");
        }
    }
}

impl std::fmt::Debug for StopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StopHandle").finish_non_exhaustive()
    }
}

/// Makes out the call in a request's body.
///
/// # Errors
/// The body of the reply that says what is wrong with it.
pub(crate) fn decode(codec: Codec, body: &[u8]) -> Result<Call, Vec<u8>> {
    codec.decode_call(body).map_err(|error| {
        tracing::warn!(%error, "answered an RPC request that makes no sense with an error");
        codec.encode_reply(Err(error.to_value()))
    })
}

/// Gives a call to the service. One that panics answers by dropping its responder.
pub(crate) fn hand_over<S: Service + ?Sized>(service: &S, call: Call, responder: Responder) {
    let method = call.name();
    tracing::debug!(method, debug_info = call.debug_info(), "RPC");
    if catch_unwind(AssertUnwindSafe(|| service.call(call, responder))).is_err() {
        tracing::error!(method, "an RPC handler panicked");
    }
}

/// The server's bounds.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections served at once. A management layer keeps one waiting for updates and a few calling; each
    /// command line that watches keeps one. A connection costs a file descriptor.
    pub connections: usize,
    /// Bytes of incomplete requests held at once, over all connections: eight of the largest.
    pub request_bytes: usize,
    /// How long a request may take to arrive.
    pub request_time: Duration,
    /// How long a connection is kept without a request. One costs a descriptor and gives way to whoever needs it.
    pub idle_time: Duration,
    /// How long a client may go without taking a byte of its reply.
    pub reply_time: Duration,
    /// How long the rest of a refused request is read and thrown away, so that the client sees the answer
    /// before its own write fails.
    pub drain_time: Duration,
}

/// The part of a process' descriptors that connections may take, at most: operations need theirs, some per VM.
const SHARE_OF_FILES: u64 = 2;

impl Limits {
    /// The bounds of a process that may have `files` descriptors open.
    pub fn within(files: u64) -> Self {
        let default = Self::default();
        let share = usize::try_from(files / SHARE_OF_FILES).unwrap_or(usize::MAX);
        Self { connections: default.connections.min(share.max(1)), ..default }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 2048,
            request_bytes: 8 * super::http::BODY_MAX,
            request_time: Duration::from_secs(30),
            idle_time: Duration::from_secs(60),
            reply_time: Duration::from_secs(60),
            drain_time: Duration::from_secs(5),
        }
    }
}
