//! A VM's screen over the daemon's own sockets, for a management layer's proxy: `CONNECT /console?ref=VM` turns the
//! connection into the VNC stream, and a WebSocket to the same path carries it for noVNC.
//!
//! ```text
//!   I/O thread ── head of CONNECT or GET ──► call thread: where is that VM's screen? ──► session's thread
//!                                                │ no VM, no screen: 404                     │ connects, answers
//!                                                │ too many sessions: 503                    ▼
//!                                 client ◄─────── raw bytes, or binary messages ──────► vncterm or QEMU
//! ```
//!
//! Who may use the sockets may use the consoles: the socket's owner, like for every call. The stream itself is not looked
//! at. Each session holds one buffer in each direction, so that a side that does not read stops the other; when
//! nothing of what waits was taken for [`STALLED`], the session ends.

mod client;
mod relay;
mod request;
#[cfg(test)]
mod tests;

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub use request::{ConsoleRequest, WebSocketOffer, console_request};

use crate::rfb::Address;

/// Most sessions at once; each has a thread and four buffers.
pub const MAX_SESSIONS: usize = 64;

/// How long a client, or its screen, may take nothing while there is something for it.
pub const STALLED: Duration = Duration::from_secs(60);

/// How long the screen may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A client that wants a console, and has not been answered.
#[derive(Debug)]
pub struct ConsoleCall {
    /// What it wants.
    pub request: ConsoleRequest,
    /// Its connection.
    pub stream: UnixStream,
    /// What it has sent after its request.
    pub first: Vec<u8>,
}

impl ConsoleCall {
    /// Sends the client away with a status such as `404 Not Found`.
    pub fn refuse(mut self, status: &str) {
        tracing::warn!(vm = self.request.vm, status, "refused a console");
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        // A few bytes fit a socket that nothing was written to; a client that has gone needs no answer.
        let _ = self.stream.write_all(answer.as_bytes());
    }
}

/// The sessions of a daemon.
#[derive(Debug, Default)]
pub struct Consoles {
    running: Arc<AtomicUsize>,
}

/// One of [`MAX_SESSIONS`], given back when it is dropped.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Consoles {
    /// Sessions at this moment.
    pub fn running(&self) -> usize {
        self.running.load(Ordering::Acquire)
    }

    /// Connects a client to a screen, on a thread of its own, until one of the two ends.
    pub fn start(&self, call: ConsoleCall, screen: Address) {
        let free = |running: usize| (running < MAX_SESSIONS).then_some(running + 1);
        if self.running.fetch_update(Ordering::AcqRel, Ordering::Acquire, free).is_err() {
            return call.refuse("503 Service Unavailable");
        }
        let place = Place(Arc::clone(&self.running));
        let thread = std::thread::Builder::new().name("console".into()).stack_size(crate::ops::SMALL_STACK);
        let session = move || serve(call, &screen, place);
        if let Err(error) = thread.spawn(session) {
            // The connection went with the thread that was not.
            tracing::error!(%error, "no thread for a console");
        }
    }
}

fn serve(call: ConsoleCall, screen: &Address, place: Place) {
    let server = match crate::rfb::connect(screen, CONNECT_LIMIT) {
        Ok(server) => server,
        Err(error) => {
            tracing::warn!(%error, %screen, "a console's screen does not answer");
            return call.refuse("404 Not Found");
        }
    };
    let vm = call.request.vm.clone();
    match relay::run(call, server, STALLED, Some(place)) {
        Ok(end) => tracing::debug!(vm, ?end, "a console was closed"),
        Err(error) => tracing::debug!(vm, %error, "a console broke"),
    }
}
