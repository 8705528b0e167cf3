//! A blocking client over a Unix socket. It keeps one connection between calls.
//!
//! The daemon may close that at any moment between two calls: it was idle for too long, or it is another daemon now. Nothing
//! is done twice for that. A call is made again, on a new connection, only where the daemon cannot have had all of its
//! request ([`ExchangeError::Unserved`]); one that ends without a reply in any other way is an error, as what was asked
//! for may have been done.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::codec::{Codec, CodecError};
use super::exchange::ExchangeError;
use super::http::{ReplyError, frame_kept_request, frame_request};
use super::line::Line;
use crate::api::value::{FromValue as _, Int, Value};
use crate::api::{
    DecodeError, DynamicId, Error, Method, Task, TaskDestroy, TaskStat, TaskState, UpdatesGet, UpdatesLastId,
};

/// How long an ordinary call may take before the daemon counts as hung.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(120);

/// How long an idle connection is kept: less than the daemon does ([`Limits::idle_time`](super::server::Limits)), so that no
/// request meets its end.
const KEEP_FOR: Duration = Duration::from_secs(20);

/// How long one request for updates waits for something to happen, in seconds, while waiting for a task.
const UPDATES_WAIT: Int = 30;
const UPDATES_WAIT_TIME: Duration = Duration::from_secs(30);

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon answered with an error.
    #[error(transparent)]
    Remote(Error),
    /// Nobody listens on the socket.
    #[error("no xenopsd is listening on {}: {source}; is it running?", .path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What connecting said.
        source: io::Error,
    },
    /// Reading or writing failed.
    #[error("{method}: cannot {doing} {}: {source}", .path.display())]
    Io {
        /// The method called.
        method: &'static str,
        /// What was being done.
        doing: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The daemon did not answer in time.
    #[error("{method}: no answer within {} s", .after.as_secs())]
    Timeout {
        /// The method called.
        method: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The answer is not the HTTP expected.
    #[error("{method}: {source}")]
    Http {
        /// The method called.
        method: &'static str,
        /// What is wrong with it.
        source: ReplyError,
    },
    /// The answer's body does not decode.
    #[error("{method}: the reply's body is not understood: {source}")]
    Codec {
        /// The method called.
        method: &'static str,
        /// What is wrong with it.
        source: CodecError,
    },
    /// The answer is not what the method returns.
    #[error("{method}: the result is not what the contract says: {source}")]
    Result {
        /// The method called.
        method: &'static str,
        /// What is wrong with it.
        source: DecodeError,
    },
}

/// A client of a daemon. Cheap; calls are independent of each other and may be made from several threads, of which one at a
/// time has the connection that is kept; the others open their own.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    codec: Codec,
    timeout: Option<Duration>,
    agent: String,
    next_id: AtomicI64,
    keep_for: Duration,
    idle: Mutex<Option<(Line, Instant)>>,
}

impl Client {
    /// A client of the daemon at `path`. It does not connect before its first call.
    pub fn new(path: impl Into<PathBuf>, codec: Codec) -> Self {
        let agent = std::env::args_os().next().map(PathBuf::from);
        let agent =
            agent.as_deref().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        Self {
            path: path.into(),
            codec,
            timeout: Some(CALL_TIMEOUT),
            agent: agent.unwrap_or_else(|| "xenops".to_owned()),
            next_id: AtomicI64::new(1),
            keep_for: KEEP_FOR,
            idle: Mutex::new(None),
        }
    }

    /// The same client with another limit for a call; `None` waits for ever.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// The same client with a connection for each call: for a socket that leads to the daemon through a tunnel, which learns
    /// late that the daemon has closed.
    #[must_use]
    pub fn without_keeping(mut self) -> Self {
        self.keep_for = Duration::ZERO;
        self
    }

    /// The socket it calls.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a call within the client's limit.
    ///
    /// # Errors
    /// [`ClientError::Remote`] with the daemon's own error, or why there was no answer.
    pub fn call<M: Method>(&self, arguments: &M) -> Result<M::Result, ClientError> {
        self.call_within(arguments, self.timeout)
    }

    /// Makes a call within a limit of its own; `None` waits for ever, which is what `UPDATES.get` wants.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub fn call_within<M: Method>(
        &self,
        arguments: &M,
        timeout: Option<Duration>,
    ) -> Result<M::Result, ClientError> {
        let request = self.request(arguments);
        let exchange = |line: &mut Line, deadline: _| line.exchange(&request, deadline);
        let [body] = self.on_a_line(M::NAME, timeout, exchange)?;
        self.result::<M>(&body)
    }

    /// Makes two calls that only look, the second after the first, in one round trip where the daemon keeps connections.
    fn look_twice<A: Method, B: Method>(
        &self,
        first: &A,
        second: &B,
        timeout: Option<Duration>,
    ) -> Result<(A::Result, B::Result), ClientError> {
        if !self.keeps() {
            return Ok((self.call_within(first, timeout)?, self.call_within(second, timeout)?));
        }
        let requests = [self.request(first), self.request(second)].concat();
        let deadline = deadline(timeout);
        let mut line = self.idle_line().map_or_else(|| self.open(A::NAME, timeout), Ok)?;
        match line.exchange(&requests, deadline) {
            Ok([one, other]) => {
                self.keep(line);
                Ok((self.result::<A>(&one)?, self.result::<B>(&other)?))
            }
            // Looking again does no harm: at least the second was not answered.
            Err(ExchangeError::Unserved(_)) => {
                Ok((self.call_within(first, timeout)?, self.call_within(second, timeout)?))
            }
            Err(error) => Err(self.no_answer(A::NAME, timeout, error)),
        }
    }

    /// Makes a call whose answer makes no difference, and does not wait for it.
    ///
    /// # Errors
    /// [`ClientError`] when it cannot be sent.
    pub fn tell<M: Method>(&self, arguments: &M) -> Result<(), ClientError> {
        let request = self.request(arguments);
        self.on_a_line(M::NAME, self.timeout, |line, deadline| line.tell(&request, deadline))
    }

    fn request<M: Method>(&self, arguments: &M) -> Vec<u8> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let body = self.codec.encode_request(M::NAME, arguments.to_params(), id);
        let frame = if self.keeps() { frame_kept_request } else { frame_request };
        frame(self.codec, &self.path.to_string_lossy(), &self.agent, &body)
    }

    fn keeps(&self) -> bool {
        !self.keep_for.is_zero()
    }

    fn no_answer(&self, method: &'static str, timeout: Option<Duration>, why: ExchangeError) -> ClientError {
        match why {
            ExchangeError::Late => ClientError::Timeout { method, after: timeout.unwrap_or(Duration::MAX) },
            ExchangeError::Io { doing, source } => {
                ClientError::Io { method, doing, path: self.path.clone(), source }
            }
            ExchangeError::Unserved(source) => {
                ClientError::Io { method, doing: "send the request to", path: self.path.clone(), source }
            }
            ExchangeError::Reply(source) => ClientError::Http { method, source },
        }
    }

    /// Does something on the connection that was kept, or a new one if the daemon has not had it there.
    fn on_a_line<T>(
        &self,
        method: &'static str,
        timeout: Option<Duration>,
        doing: impl Fn(&mut Line, Option<Instant>) -> Result<T, ExchangeError>,
    ) -> Result<T, ClientError> {
        let deadline = deadline(timeout);
        if let Some(mut line) = self.idle_line() {
            match doing(&mut line, deadline) {
                Ok(done) => {
                    self.keep(line);
                    return Ok(done);
                }
                Err(ExchangeError::Unserved(_)) => {}
                Err(error) => return Err(self.no_answer(method, timeout, error)),
            }
        }
        let mut line = self.open(method, timeout)?;
        let done = doing(&mut line, deadline).map_err(|error| self.no_answer(method, timeout, error))?;
        self.keep(line);
        Ok(done)
    }

    fn result<M: Method>(&self, body: &[u8]) -> Result<M::Result, ClientError> {
        let method = M::NAME;
        let unexpected = |source| ClientError::Result { method, source };
        match self.codec.decode_reply(body) {
            Ok(Ok(value)) => M::Result::from_value(&value).map_err(unexpected),
            Ok(Err(error)) => Err(Error::from_value(&error).map_or_else(unexpected, ClientError::Remote)),
            Err(source) => Err(ClientError::Codec { method, source }),
        }
    }

    /// The connection that was kept, if nobody else has it and it was not idle for too long.
    fn idle_line(&self) -> Option<Line> {
        let (line, since) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        (since.elapsed() < self.keep_for).then_some(line)
    }

    fn keep(&self, line: Line) {
        if line.is_kept() {
            *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some((line, Instant::now()));
        }
    }

    fn open(&self, method: &'static str, timeout: Option<Duration>) -> Result<Line, ClientError> {
        let timeout = timeout.filter(|timeout| !timeout.is_zero());
        Line::open(&self.path, timeout).map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => {
                ClientError::Timeout { method, after: timeout.unwrap_or(Duration::MAX) }
            }
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { path: self.path.clone(), source }
            }
            _ => ClientError::Io { method, doing: "connect to", path: self.path.clone(), source },
        })
    }

    /// Waits for a task to end and forgets it in the daemon. `progress` sees the task whenever it has changed.
    /// Returns what the task returns, which for most is nothing.
    ///
    /// # Errors
    /// [`ClientError::Remote`] with the task's own error if it failed.
    pub fn wait_task(
        &self,
        debug_info: &str,
        id: &str,
        progress: impl FnMut(&Task),
    ) -> Result<Option<Value>, ClientError> {
        let outcome = self.task_outcome(debug_info, id, progress)?;
        // The outcome is known; that the daemon has forgotten the task already would not change it.
        let _ = self.call(&TaskDestroy { debug_info: debug_info.to_owned(), id: id.to_owned() });
        outcome
    }

    /// Waits likewise, and tells the daemon to forget the task without waiting for that.
    ///
    /// # Errors
    /// As [`Client::wait_task`].
    pub fn finish_task(
        &self,
        debug_info: &str,
        id: &str,
        progress: impl FnMut(&Task),
    ) -> Result<Option<Value>, ClientError> {
        let outcome = self.task_outcome(debug_info, id, progress)?;
        let _ = self.tell(&TaskDestroy { debug_info: debug_info.to_owned(), id: id.to_owned() });
        outcome
    }

    /// How a task ended, once it has; or that this cannot be learned.
    fn task_outcome(
        &self,
        debug_info: &str,
        id: &str,
        mut progress: impl FnMut(&Task),
    ) -> Result<Result<Option<Value>, ClientError>, ClientError> {
        let stat = TaskStat { debug_info: debug_info.to_owned(), id: id.to_owned() };
        // The stream's position must be read before the task: a change in between would be missed otherwise. One of an
        // earlier wait may be another daemon's, whose numbers this one comes to much later.
        let position = UpdatesLastId { debug_info: debug_info.to_owned() };
        let (mut last_id, mut task) = self.look_twice(&position, &stat, self.timeout)?;
        progress(&task);
        // Whether what changes next is likely to be the task: its end is then learned with the change.
        let mut ours = true;
        while matches!(task.state, TaskState::Pending(_)) {
            let get = UpdatesGet {
                debug_info: debug_info.to_owned(),
                last_id: Some(last_id),
                timeout: Some(UPDATES_WAIT),
            };
            let patience = self.timeout.map(|timeout| timeout.saturating_add(UPDATES_WAIT_TIME));
            let seen = if ours {
                let (batch, task) = self.look_twice(&get, &stat, patience)?;
                (batch, Some(task))
            } else {
                (self.call_within(&get, patience)?, None)
            };
            let ((_, changed, next), mut now) = seen;
            last_id = next;
            // After a while without news it is asked all the same: it may be another daemon now, which has no such task.
            ours = changed.is_empty()
                || changed.iter().any(|object| matches!(object, DynamicId::Task(task) if task == id));
            if ours && now.is_none() {
                now = Some(self.call(&stat)?);
            }
            if let Some(now) = now {
                task = now;
                progress(&task);
            }
        }
        Ok(match task.state {
            TaskState::Completed(completion) => Ok(completion.result),
            TaskState::Failed(error) => Err(ClientError::Remote(task_error(&error))),
            TaskState::Pending(_) => Ok(None),
        })
    }
}

/// A limit beyond what the clock can express is none.
fn deadline(timeout: Option<Duration>) -> Option<Instant> {
    timeout.and_then(|timeout| Instant::now().checked_add(timeout))
}

/// A task's failure as an error of the contract; what is none is shown as it is.
fn task_error(error: &Value) -> Error {
    Error::from_value(error).unwrap_or_else(|_| Error::InternalError(super::json::print_lossy(error)))
}

#[cfg(test)]
mod tests;
