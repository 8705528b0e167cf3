//! One connection to the switch, made again whenever it has failed.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::Shared;
use super::protocol::{Command, Frame};
use crate::rpc::exchange::{ExchangeError, exchange};
use crate::rpc::http::frame_keep_alive;
use crate::rpc::socket::connect_within;

/// How long a switch whose queue of connections is full is waited for; the end of the transport may have to.
const CONNECT: Duration = Duration::from_secs(2);

/// Why a command was not answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// The socket does not take connections.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// The connection failed, or carried something else than HTTP.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// The answer is not the one of the command.
    #[error(transparent)]
    Frame(#[from] super::protocol::FrameError),
}

/// A connection by the name of its thread.
pub(super) struct Link<'a> {
    shared: &'a Shared,
    name: &'static str,
    stream: Option<UnixStream>,
    pause: Duration,
}

impl<'a> Link<'a> {
    pub(super) fn new(shared: &'a Shared, name: &'static str) -> Self {
        Self { shared, name, stream: None, pause: shared.limits.min_pause }
    }

    pub(super) fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Connects and logs in.
    pub(super) fn open(&mut self) -> Result<(), LinkError> {
        let path = &self.shared.settings.path;
        let stream = connect_within(path, Some(CONNECT)).map_err(LinkError::Connect)?;
        self.shared.register(self.name, stream.try_clone().map_err(LinkError::Connect)?);
        self.stream = Some(stream);
        self.call(&Command::Login(token()), Duration::ZERO).map(drop)
    }

    /// Sends a command and returns the body of the answer. `wait` is how long the switch was asked to take.
    pub(super) fn call(&mut self, command: &Command, wait: Duration) -> Result<Vec<u8>, LinkError> {
        let Some(stream) = &self.stream else {
            return Err(LinkError::Connect(std::io::ErrorKind::NotConnected.into()));
        };
        let Frame { method, path, body } = command.encode();
        let request = frame_keep_alive(method, &path, &body.unwrap_or_default());
        let deadline = Instant::now().checked_add(self.shared.limits.reply.saturating_add(wait));
        Ok(exchange(stream, &request, deadline)?)
    }

    /// The switch did as it should: the next failure is the first again.
    pub(super) fn worked(&mut self) {
        self.pause = self.shared.limits.min_pause;
    }

    /// Closes the connection and pauses; false when the transport is ending.
    pub(super) fn failed(&mut self, error: &LinkError) -> bool {
        self.close();
        if !self.shared.stopping() {
            let path = &self.shared.settings.path;
            tracing::warn!(switch = %path.display(), %error, pause = ?self.pause, "message switch; trying again");
        }
        self.rest()
    }

    /// Pauses, longer each time; false when the transport is ending.
    pub(super) fn rest(&mut self) -> bool {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.shared.limits.max_pause);
        self.shared.pause(pause)
    }

    fn close(&mut self) {
        self.stream = None;
        self.shared.lock().streams.remove(self.name);
    }
}

/// The session: all connections with the same token are one client to the switch.
fn token() -> String {
    let program = std::env::args_os().next().map(std::path::PathBuf::from);
    let name = program.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy());
    format!("{}:{}", name.as_deref().unwrap_or("xenopsd"), std::process::id())
}
