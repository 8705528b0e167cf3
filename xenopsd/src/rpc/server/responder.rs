//! The one reply to one call.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::ThreadId;

use crossbeam::channel::Sender;
use mio::Waker;

use crate::api::value::{ToValue as _, Value};
use crate::api::{Call, Error, Method};
use crate::rpc::codec::Codec;
use crate::rpc::http::frame_reply;

/// A framed reply on its way to its connection.
pub(super) struct Completed {
    pub(super) connection: usize,
    pub(super) bytes: Vec<u8>,
}

/// Where replies go.
#[derive(Clone)]
pub(super) struct Outbox {
    pub(super) sender: Sender<Completed>,
    pub(super) waker: Arc<Waker>,
    /// The thread that reads it: what it sends itself it finds without being woken.
    pub(super) reader: Arc<OnceLock<ThreadId>>,
}

impl Outbox {
    fn send(&self, completed: Completed) {
        // Both fail only when the server has ended, and the connection with it.
        let _ = self.sender.send(completed);
        if self.reader.get() != Some(&std::thread::current().id()) {
            let _ = self.waker.wake();
        }
    }
}

/// What runs when the client goes away.
type Hook = Box<dyn FnOnce() + Send>;

/// Shared by a responder and its connection.
#[derive(Default)]
pub(super) struct Presence(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    There,
    Watched(Hook),
    Gone,
}

impl Presence {
    pub(super) fn leave(&self) {
        let before =
            std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), State::Gone);
        if let State::Watched(hook) = before {
            hook();
        }
    }
}

/// Answers one call, once, from any thread. Dropped without an answer, it answers `Internal_error`.
pub struct Responder {
    pending: Option<Pending>,
}

struct Pending {
    method: &'static str,
    codec: Codec,
    encode_error: fn(Error) -> Value,
    to: Destination,
    presence: Arc<Presence>,
}

/// Who gets the reply.
enum Destination {
    /// A connection of the server, which stays if `keep` is set.
    Connection { token: usize, agent: Arc<str>, keep: bool, outbox: Outbox },
    /// Another transport, which frames the body itself.
    Transport(Box<dyn FnOnce(Vec<u8>) + Send>),
}

impl Responder {
    pub(super) fn new(
        call: &Call,
        token: usize,
        codec: Codec,
        agent: Arc<str>,
        keep: bool,
        outbox: Outbox,
        presence: Arc<Presence>,
    ) -> Self {
        Self::to(call, codec, Destination::Connection { token, agent, keep, outbox }, presence)
    }

    /// For a transport without connections: `deliver` gets the reply's body, once, on any thread. It must not block.
    pub(crate) fn delivering(
        call: &Call,
        codec: Codec,
        deliver: impl FnOnce(Vec<u8>) + Send + 'static,
    ) -> Self {
        Self::to(call, codec, Destination::Transport(Box::new(deliver)), Arc::default())
    }

    fn to(call: &Call, codec: Codec, to: Destination, presence: Arc<Presence>) -> Self {
        let (method, encode_error) = (call.name(), call.encode_error());
        Self { pending: Some(Pending { method, codec, encode_error, to, presence }) }
    }

    /// Sends an encoded result, or an error.
    pub fn send(mut self, outcome: Result<Value, Error>) {
        if let Some(pending) = self.pending.take() {
            pending.send(outcome);
        }
    }

    /// Sends the result of a method, or an error.
    pub fn finish<M: Method>(self, outcome: Result<M::Result, Error>) {
        self.send(outcome.map(|result| result.to_value()));
    }

    /// Whether the client has gone away, so that nobody will see the answer.
    pub fn client_gone(&self) -> bool {
        self.pending.as_ref().is_none_or(|pending| {
            let state = pending.presence.0.lock().unwrap_or_else(PoisonError::into_inner);
            matches!(*state, State::Gone)
        })
    }

    /// Runs `hook` when the client goes away, or at once if it has. It runs on the I/O thread and must not wait.
    /// Replaces an earlier hook.
    pub fn when_client_gone(&self, hook: impl FnOnce() + Send + 'static) {
        let Some(pending) = &self.pending else { return };
        let mut state = pending.presence.0.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*state, State::Gone) {
            drop(state);
            hook();
        } else {
            *state = State::Watched(Box::new(hook));
        }
    }
}

impl Pending {
    fn send(self, outcome: Result<Value, Error>) {
        let body = self.codec.encode_reply(outcome.map_err(self.encode_error));
        match self.to {
            Destination::Connection { token, agent, keep, outbox } => {
                let bytes = frame_reply(self.codec, &agent, keep, &body);
                outbox.send(Completed { connection: token, bytes });
            }
            Destination::Transport(deliver) => deliver(body),
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(pending) = self.pending.take() {
            let text = format!("{}: the call was dropped without an answer", pending.method);
            pending.send(Err(Error::InternalError(text)));
        }
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = self.pending.as_ref().map(|pending| pending.method);
        f.debug_struct("Responder").field("method", &method).finish_non_exhaustive()
    }
}
