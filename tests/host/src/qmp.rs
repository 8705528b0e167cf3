//! A client of QEMU's monitor protocol (QMP): one JSON object per line over a Unix socket, each wait with a limit.

use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

/// Longest line taken from QEMU. Answers of the commands used here are a few hundred bytes.
const MAX_LINE: usize = 1 << 20;

/// Most events kept while an answer is awaited; the oldest go first.
const MAX_EVENTS: usize = 256;

/// A failure of the monitor connection.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket failed or QEMU closed it.
    #[error("connection lost while waiting for {what}: {source}")]
    Connection {
        /// The command or event waited for.
        what: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// Nothing came in time.
    #[error("no answer to {what} within {limit:?}")]
    Deadline {
        /// The command or event waited for.
        what: String,
        /// The limit that passed.
        limit: Duration,
    },
    /// What came is no QMP message.
    #[error("not a QMP message: {0}")]
    Malformed(String),
    /// QEMU refused a command.
    #[error("`{command}` refused: {class}: {description}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's error class.
        class: String,
        /// QEMU's text.
        description: String,
    },
    /// A migration (the way snapshots are written and read) failed.
    #[error("snapshot transfer ended as `{status}`")]
    Transfer {
        /// QEMU's migration status.
        status: String,
    },
}

type Result<T> = std::result::Result<T, QmpError>;

/// One message from QEMU.
#[derive(Debug, PartialEq)]
enum Message {
    Greeting,
    Return(Value),
    Error { class: String, description: String },
    Event { name: String, data: Value },
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn parse(line: &[u8]) -> Result<Message> {
    let malformed = || QmpError::Malformed(String::from_utf8_lossy(line).chars().take(200).collect());
    let mut value: Value = serde_json::from_slice(line).map_err(|_| malformed())?;
    if let Some(result) = value.get_mut("return") {
        return Ok(Message::Return(result.take()));
    }
    if let Some(error) = value.get("error") {
        return Ok(Message::Error { class: text(error, "class"), description: text(error, "desc") });
    }
    if let Some(name) = value.get("event").and_then(Value::as_str) {
        let name = name.to_owned();
        return Ok(Message::Event { name, data: value.get_mut("data").map(Value::take).unwrap_or_default() });
    }
    if value.get("QMP").is_some() { Ok(Message::Greeting) } else { Err(malformed()) }
}

/// A connection to a monitor.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    buffer: Vec<u8>,
    events: VecDeque<(String, Value)>,
}

impl Qmp {
    /// Takes over a connected socket and enters command mode.
    ///
    /// # Errors
    /// When QEMU does not answer as a monitor does within `limit`.
    pub(crate) fn new(stream: UnixStream, limit: Duration) -> Result<Self> {
        let mut qmp = Self { stream, buffer: Vec::new(), events: VecDeque::new() };
        let greeting = qmp.message("the greeting", limit)?;
        if greeting != Message::Greeting {
            return Err(QmpError::Malformed(format!("{greeting:?} instead of a greeting")));
        }
        qmp.execute("qmp_capabilities", &json!({}), limit)?;
        Ok(qmp)
    }

    /// Runs one command and returns its result.
    ///
    /// # Errors
    /// [`QmpError::Refused`] when QEMU says no; the others when the connection fails or `limit` passes.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value, limit: Duration) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        let lost = |source| QmpError::Connection { what: command.to_owned(), source };
        self.stream.set_write_timeout(Some(limit)).map_err(lost)?;
        self.stream.write_all(line.as_bytes()).map_err(lost)?;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.message(command, left)? {
                Message::Return(value) => return Ok(value),
                Message::Error { class, description } => {
                    return Err(QmpError::Refused { command: command.to_owned(), class, description });
                }
                Message::Event { name, data } => self.keep(name, data),
                Message::Greeting => {}
            }
        }
    }

    /// Waits for an event that `wanted` gives a value for; events it does not want are dropped.
    ///
    /// # Errors
    /// When the connection fails or `limit` passes.
    pub(crate) fn event<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&str, &Value) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some((name, data)) = self.events.pop_front() {
                if let Some(value) = wanted(&name, &data) {
                    return Ok(value);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if let Message::Event { name, data } = self.message(what, left)? {
                self.keep(name, data);
            }
        }
    }

    fn keep(&mut self, name: String, data: Value) {
        if self.events.len() == MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back((name, data));
    }

    fn message(&mut self, what: &str, limit: Duration) -> Result<Message> {
        let deadline = Instant::now() + limit;
        let lost = |source| QmpError::Connection { what: what.to_owned(), source };
        let late = || QmpError::Deadline { what: what.to_owned(), limit };
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return parse(line.trim_ascii());
            }
            if self.buffer.len() > MAX_LINE {
                return Err(QmpError::Malformed(format!("a line of more than {MAX_LINE} bytes")));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(late());
            }
            self.stream.set_read_timeout(Some(left)).map_err(lost)?;
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => return Err(lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.buffer.extend_from_slice(piece.get(..count).unwrap_or_default()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Err(late());
                }
                Err(e) => return Err(lost(e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::thread;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A monitor that says `lines` one after another, the first at once, each other after a line from the client.
    fn monitor(lines: &'static [&'static str]) -> UnixStream {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        thread::spawn(move || {
            let mut byte = [0; 1];
            for line in lines {
                theirs.write_all(line.as_bytes()).expect("write");
                while theirs.read(&mut byte).is_ok_and(|n| n == 1) && byte != [b'\n'] {}
            }
        });
        ours
    }

    const HELLO: &str = "{\"QMP\": {}}\r\n";
    const DONE: &str = "{\"return\": {}}\r\n";

    #[test]
    fn events_are_kept_while_an_answer_is_awaited() {
        let stream = monitor(&[
            HELLO,
            DONE,
            "{\"event\": \"STOP\"}\n{\"event\": \"E\", \"data\": {\"n\": 3}}\n{\"return\": 5}\n",
        ]);
        let mut qmp = Qmp::new(stream, LIMIT).expect("connects");
        assert_eq!(qmp.execute("x", &json!({}), LIMIT).expect("answers"), json!(5));
        let n = qmp.event("E", LIMIT, |name, data| (name == "E").then(|| data["n"].as_u64()));
        assert_eq!(n.expect("came"), Some(3));
    }

    #[test]
    fn refusals_and_ends_are_told_apart() {
        let stream =
            monitor(&[HELLO, DONE, "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n"]);
        let mut qmp = Qmp::new(stream, LIMIT).expect("connects");
        assert!(matches!(qmp.execute("x", &json!({}), LIMIT), Err(QmpError::Refused { .. })));
        assert!(matches!(qmp.execute("y", &json!({}), LIMIT), Err(QmpError::Connection { .. })));
    }

    #[test]
    fn a_silent_monitor_is_not_waited_for_for_ever() {
        let (ours, _theirs) = UnixStream::pair().expect("pair");
        let begin = Instant::now();
        assert!(matches!(Qmp::new(ours, Duration::from_millis(50)), Err(QmpError::Deadline { .. })));
        assert!(begin.elapsed() < LIMIT);
    }

    #[test]
    fn an_endless_line_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().expect("pair");
        thread::spawn(move || while theirs.write_all(&[b'x'; 4096]).is_ok() {});
        assert!(matches!(Qmp::new(ours, LIMIT), Err(QmpError::Malformed(_))));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            drop(parse(&line));
        }
    }
}
