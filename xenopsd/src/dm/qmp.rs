//! A client of QEMU's monitor protocol (QMP): JSON objects, one a line, over a Unix socket.
//!
//! The other end is a process the guest may have taken over. Whatever it sends, this side keeps no more than
//! [`MAX_LINE`] bytes and [`MAX_EVENTS`] events, waits no longer than it was told, and ends with an error that says what
//! was wrong; afterwards the connection is of no further use. No string of an answer is ever a path, a number of a
//! process or a size here.

use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::api::value::Value;
use crate::rpc::json;

/// Longest line, in bytes. The longest answer to a command used here (`query-version`) is below one KiB.
pub const MAX_LINE: usize = 64 * 1024;

/// Most events that wait to be fetched, the oldest of which are dropped. A guest can make QEMU send them: its clock
/// (`RTC_CHANGE`) at most once for each second of guest time, its drivers at will.
pub const MAX_EVENTS: usize = 64;

/// Most messages looked at while one answer is awaited: a stream of events must not hold a caller for its whole limit.
const MAX_UNRELATED: usize = 4096;

/// Longest text of the device model's that is repeated in an error or a log, in characters.
const MAX_QUOTED: usize = 200;

/// Why the device model cannot be talked to.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed, or the other end closed it.
    #[error("device model: {doing}: {source}")]
    Connection {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("device model: no answer to {command} within {} s", limit.as_secs_f64())]
    TimedOut {
        /// Which command, or `greeting`.
        command: String,
        /// How long was waited.
        limit: Duration,
    },
    /// What came is not the protocol.
    #[error("device model: {0}")]
    Malformed(String),
    /// It was understood and refused.
    #[error("device model refuses {command}: {class}: {text}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of errors.
        class: String,
        /// QEMU's text.
        text: String,
    },
}

/// Something that happened in the device model.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, such as `RTC_CHANGE`.
    pub name: String,
    /// What belongs to it.
    pub data: Value,
}

/// One message of the device model's.
#[derive(Debug, Clone, PartialEq)]
enum Message {
    Greeting,
    Return { id: Option<i64>, value: Value },
    Error { id: Option<i64>, class: String, text: String },
    Event(Event),
}

/// A connection to a device model's monitor.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    input: Input,
    events: VecDeque<Event>,
    next_id: i64,
}

impl Qmp {
    /// Takes over a connected socket and enters command mode.
    ///
    /// # Errors
    /// [`QmpError`].
    pub fn start(stream: UnixStream, limit: Duration) -> Result<Self, QmpError> {
        let mut qmp = Self { stream, input: Input::default(), events: VecDeque::new(), next_id: 1 };
        match qmp.message("greeting", Instant::now() + limit, limit)? {
            Message::Greeting => {}
            other => return Err(QmpError::Malformed(format!("{} in place of a greeting", kind(&other)))),
        }
        qmp.execute("qmp_capabilities", None, limit)?;
        Ok(qmp)
    }

    /// Runs one command and returns what it returns.
    ///
    /// # Errors
    /// [`QmpError::Refused`] leaves the connection usable; the others do not.
    pub fn execute(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, None, limit)
    }

    /// The same, with a descriptor for the commands that take one along.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn execute_with(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        descriptor: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        let deadline = Instant::now() + limit;
        let id = self.next_id;
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        self.send(command, arguments, descriptor, id, limit)?;
        for _ in 0..MAX_UNRELATED {
            let (answered, outcome) = match self.message(command, deadline, limit)? {
                Message::Event(event) => {
                    self.keep(event);
                    continue;
                }
                Message::Return { id, value } => (id, Ok(value)),
                Message::Error { id, class, text } => {
                    (id, Err(QmpError::Refused { command: command.to_owned(), class, text }))
                }
                Message::Greeting => return Err(QmpError::Malformed("a second greeting".to_owned())),
            };
            if answered != Some(id) {
                return Err(QmpError::Malformed(format!("an answer to something else than {command}")));
            }
            return outcome;
        }
        Err(QmpError::Malformed(format!("more than {MAX_UNRELATED} messages before the answer to {command}")))
    }

    /// The same, and goes on to wait for an event that `is_wanted`, which is dropped.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub fn execute_until(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        is_wanted: impl Fn(&Event) -> bool,
        limit: Duration,
    ) -> Result<(), QmpError> {
        let deadline = Instant::now() + limit;
        self.execute(command, arguments, limit)?;
        let kept = self.events.len();
        self.events.retain(|event| !is_wanted(event));
        if self.events.len() < kept {
            return Ok(());
        }
        for _ in 0..MAX_UNRELATED {
            match self.message(command, deadline, limit)? {
                Message::Event(event) if is_wanted(&event) => return Ok(()),
                Message::Event(event) => self.keep(event),
                other => return Err(QmpError::Malformed(format!("{} that nobody asked for", kind(&other)))),
            }
        }
        Err(QmpError::Malformed(format!("more than {MAX_UNRELATED} messages before the end of {command}")))
    }

    /// The events that have come, the oldest first, without waiting for any.
    ///
    /// # Errors
    /// [`QmpError::Connection`], also when the other end has closed it; [`QmpError::Malformed`].
    pub fn events(&mut self) -> Result<Vec<Event>, QmpError> {
        let lost = |source| QmpError::Connection { doing: "waiting for an event", source };
        self.stream.set_nonblocking(true).map_err(lost)?;
        let mut bytes = [0; 4096];
        let read = self.stream.read(&mut bytes);
        self.stream.set_nonblocking(false).map_err(lost)?;
        match read {
            // What came before the end is told first.
            Ok(0) if self.events.is_empty() => return Err(lost(ErrorKind::UnexpectedEof.into())),
            Ok(count) => self.input.push(&bytes[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(lost(error)),
        }
        while let Some(line) = self.input.line()? {
            match parse(&line)? {
                Message::Event(event) => self.keep(event),
                other => return Err(QmpError::Malformed(format!("{} that nobody asked for", kind(&other)))),
            }
        }
        Ok(self.events.drain(..).collect())
    }

    /// Another handle of the connection, to wait on.
    ///
    /// # Errors
    /// As `dup`.
    pub fn try_clone_stream(&self) -> std::io::Result<UnixStream> {
        self.stream.try_clone()
    }

    fn keep(&mut self, event: Event) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn send(
        &mut self,
        command: &str,
        arguments: Option<Value>,
        descriptor: Option<BorrowedFd<'_>>,
        id: i64,
        limit: Duration,
    ) -> Result<(), QmpError> {
        let mut members = vec![("execute".into(), Value::string(command)), ("id".into(), Value::Int(id))];
        members.extend(arguments.map(|arguments| ("arguments".into(), arguments)));
        let mut line = json::print(&Value::Dict(members));
        line.extend_from_slice(b"\r\n");
        let lost = |source| QmpError::Connection { doing: "sending a command", source };
        self.stream.set_write_timeout(Some(limit)).map_err(lost)?;
        let Some(descriptor) = descriptor else { return self.stream.write_all(&line).map_err(lost) };
        // It goes with the first byte; a line is short enough to go at once.
        let passed = [descriptor.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&passed)];
        let (fd, flags) = (self.stream.as_fd().as_raw_fd(), MsgFlags::MSG_NOSIGNAL);
        let sent = sendmsg::<()>(fd, &[IoSlice::new(&line)], &message, flags, None)
            .map_err(|errno| lost(errno.into()))?;
        self.stream.write_all(&line[sent..]).map_err(lost)
    }

    fn message(&mut self, command: &str, deadline: Instant, limit: Duration) -> Result<Message, QmpError> {
        let lost = |source| QmpError::Connection { doing: "waiting for an answer", source };
        let late = || QmpError::TimedOut { command: command.to_owned(), limit };
        loop {
            if let Some(line) = self.input.line()? {
                return parse(&line);
            }
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero());
            self.stream.set_read_timeout(Some(left.ok_or_else(late)?)).map_err(lost)?;
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(lost(std::io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.input.push(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Err(late()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }
}

/// Bytes received that are no whole line yet.
#[derive(Debug, Default)]
struct Input(Vec<u8>);

impl Input {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// The next line, without its end; empty lines are passed over.
    fn line(&mut self) -> Result<Option<Vec<u8>>, QmpError> {
        while let Some(end) = self.0.iter().position(|byte| *byte == b'\n') {
            let rest = self.0.split_off(end + 1);
            let mut line = std::mem::replace(&mut self.0, rest);
            line.truncate(line.trim_ascii_end().len());
            if line.len() > MAX_LINE {
                break;
            }
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
        if self.0.len() > MAX_LINE || self.0.contains(&b'\n') {
            return Err(QmpError::Malformed(format!("a line of more than {MAX_LINE} bytes")));
        }
        Ok(None)
    }
}

fn kind(message: &Message) -> &'static str {
    match message {
        Message::Greeting => "a greeting",
        Message::Return { .. } => "an answer",
        Message::Error { .. } => "an error",
        Message::Event(_) => "an event",
    }
}

/// Text of the other side's for a person: cut, and without control characters.
fn quoted(value: Option<&Value>) -> String {
    let Some(Value::String(text)) = value else { return String::new() };
    let text = String::from_utf8_lossy(text.as_bytes());
    text.chars().take(MAX_QUOTED).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn parse(line: &[u8]) -> Result<Message, QmpError> {
    let value = json::parse(line).map_err(|error| QmpError::Malformed(error.to_string()))?;
    let id = match value.get("id") {
        Some(Value::Int(id)) => Some(*id),
        _ => None,
    };
    if value.get("event").is_some() {
        let data = value.get("data").cloned().unwrap_or(Value::Null);
        return Ok(Message::Event(Event { name: quoted(value.get("event")), data }));
    }
    if let Some(error) = value.get("error") {
        let (class, text) = (quoted(error.get("class")), quoted(error.get("desc")));
        return Ok(Message::Error { id, class, text });
    }
    if let Some(value) = value.get("return") {
        return Ok(Message::Return { id, value: value.clone() });
    }
    if value.get("QMP").is_some() {
        return Ok(Message::Greeting);
    }
    Err(QmpError::Malformed("a message that is neither greeting, answer, error nor event".to_owned()))
}

/// What QEMU calls the state of the machine (`query-status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunState {
    /// Set up, and waiting for `cont`: the state in which a start is complete.
    Prelaunch,
    /// Set up, and waiting to be told what the machine was like: the same for a resume.
    InMigrate,
    /// Emulating.
    Running,
    /// Stopped.
    Paused,
    /// Anything else; nothing here needs to tell those apart.
    Other,
}

impl RunState {
    /// From the answer to `query-status`.
    pub fn of(answer: &Value) -> Self {
        let is = |name: &str| matches!(answer.get("status"), Some(Value::String(text)) if text == name);
        match () {
            () if is("prelaunch") => Self::Prelaunch,
            () if is("inmigrate") => Self::InMigrate,
            () if is("running") => Self::Running,
            () if is("paused") => Self::Paused,
            () => Self::Other,
        }
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
