//! The message switch's frames, in both directions: what a client of it sends, and what it answers.
//!
//! | command               | request                                 | body of the reply            |
//! |-----------------------|-----------------------------------------|------------------------------|
//! | log in                | `GET /login/<token>`                    | empty                        |
//! | persistent queue      | `GET /persistent/<queue>`               | its name                     |
//! | transient queue       | `GET /transient/<queue>`                | its name                     |
//! | destroy a queue       | `GET /destroy/<queue>`                  | empty                        |
//! | send a request        | `POST /request/<queue>/<reply queue>`   | its id, [`encode_sent`]      |
//! | send a response       | `POST /response/<queue>/<from>/<number>`| the same                     |
//! | wait for messages     | `POST /transfer`                        | [`Transferred`]              |
//! | acknowledge a message | `GET /ack/<queue>/<number>`             | empty                        |
//! | list queues           | `GET /list/[alive/]<prefix>`            | names, [`encode_names`]      |
//!
//! Names in paths are percent-encoded where a path needs it. A connection has to log in first; others are answered 404.

use crate::api::decode::DecodeError;
use crate::api::value::{FromValue, Text, ToValue, Value};
use crate::rpc::json::{self, JsonError};

/// A message's place: its queue, and its number there.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MessageId {
    /// The queue's name.
    pub queue: String,
    /// Counted up by the switch.
    pub number: i64,
}

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A call; the response goes to this queue.
    Request(String),
    /// The response to that message.
    Response(MessageId),
}

/// What queues hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The body of a JSON-RPC request or reply.
    pub payload: Text,
    /// Which of the two.
    pub kind: Kind,
}

/// A client's command to the switch.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Names the session that this connection belongs to.
    Login(String),
    /// Makes a queue that stays, unless it is there.
    CreatePersistent(String),
    /// Makes a queue that goes with the session.
    CreateTransient(String),
    /// Removes a queue.
    Destroy(String),
    /// Puts a message into a queue.
    Send(String, Message),
    /// Waits for messages.
    Transfer {
        /// What the last reply gave as `next`: only later messages are wanted.
        from: Option<String>,
        /// How long to wait for the first, in seconds.
        timeout: f64,
        /// From which queues.
        queues: Vec<String>,
    },
    /// Removes a message.
    Ack(MessageId),
    /// Names queues.
    List {
        /// What their names begin with.
        prefix: String,
        /// Only those somebody waits on.
        alive: bool,
    },
}

/// The HTTP request of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// Path, encoded.
    pub path: String,
    /// Body; a `GET` has none.
    pub body: Option<Vec<u8>>,
}

/// A frame that is not of this protocol.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum FrameError {
    /// The path or method names no command.
    #[error("not a command of the message switch")]
    Command,
    /// The body is not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The body is JSON of another shape.
    #[error(transparent)]
    Shape(#[from] DecodeError),
}

impl Command {
    /// The command as an HTTP request.
    pub fn encode(&self) -> Frame {
        let get = |words: &[&str]| Frame { method: "GET", path: path(words), body: None };
        let post =
            |words: &[&str], body: Vec<u8>| Frame { method: "POST", path: path(words), body: Some(body) };
        match self {
            Self::Login(token) => get(&["login", token]),
            Self::CreatePersistent(queue) => get(&["persistent", queue]),
            Self::CreateTransient(queue) => get(&["transient", queue]),
            Self::Destroy(queue) => get(&["destroy", queue]),
            Self::Ack(id) => get(&["ack", &id.queue, &id.number.to_string()]),
            Self::List { prefix, alive: false } => get(&["list", prefix]),
            Self::List { prefix, alive: true } => get(&["list", "alive", prefix]),
            Self::Send(queue, Message { payload, kind }) => {
                let payload = payload.as_bytes().to_vec();
                match kind {
                    Kind::Request(reply_to) => post(&["request", queue, reply_to], payload),
                    Kind::Response(id) => {
                        post(&["response", queue, &id.queue, &id.number.to_string()], payload)
                    }
                }
            }
            Self::Transfer { from, timeout, queues } => {
                let from = from.as_ref().map(|from| (Text::from("from"), from.to_value()));
                let rest = [("timeout", timeout.to_value()), ("queues", queues.to_value())];
                let rest = rest.map(|(key, value)| (Text::from(key), value));
                post(&["transfer"], json::print(&Value::Dict(from.into_iter().chain(rest).collect())))
            }
        }
    }

    /// Makes out the command in an HTTP request.
    ///
    /// # Errors
    /// [`FrameError`] for a request that is none.
    pub fn decode(method: &str, path: &str, body: &[u8]) -> Result<Self, FrameError> {
        let path = path.strip_prefix('/').ok_or(FrameError::Command)?;
        let words = path.split('/').map(percent_decoded).collect::<Option<Vec<_>>>();
        let words = words.ok_or(FrameError::Command)?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let number = |text: &str| text.parse::<i64>().map_err(|_| FrameError::Command);
        let message = |kind| Message { payload: Text::from(body), kind };
        match (method, &words[..]) {
            ("POST", ["transfer"]) => transfer_command(body),
            ("POST", ["request", queue, reply_to]) => {
                Ok(Self::Send((*queue).to_owned(), message(Kind::Request((*reply_to).to_owned()))))
            }
            ("POST", ["response", queue, from, n]) => {
                let id = MessageId { queue: (*from).to_owned(), number: number(n)? };
                Ok(Self::Send((*queue).to_owned(), message(Kind::Response(id))))
            }
            ("GET", _) if !body.is_empty() => Err(FrameError::Command),
            ("GET", ["login", token]) => Ok(Self::Login((*token).to_owned())),
            ("GET", ["persistent", queue]) => Ok(Self::CreatePersistent((*queue).to_owned())),
            ("GET", ["transient", queue]) => Ok(Self::CreateTransient((*queue).to_owned())),
            ("GET", ["destroy", queue]) => Ok(Self::Destroy((*queue).to_owned())),
            ("GET", ["ack", queue, n]) => {
                Ok(Self::Ack(MessageId { queue: (*queue).to_owned(), number: number(n)? }))
            }
            ("GET", ["list", "alive", prefix]) => {
                Ok(Self::List { prefix: (*prefix).to_owned(), alive: true })
            }
            ("GET", ["list", prefix]) => Ok(Self::List { prefix: (*prefix).to_owned(), alive: false }),
            _ => Err(FrameError::Command),
        }
    }
}

/// The reply to a transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transferred {
    /// The messages, oldest first.
    pub messages: Vec<(MessageId, Message)>,
    /// What to give as `from` for those that come after them.
    pub next: String,
}

impl Transferred {
    /// The body of the reply.
    pub fn encode(&self) -> Vec<u8> {
        json::print(&Value::Dict(vec![
            (Text::from("messages"), self.messages.to_value()),
            (Text::from("next"), self.next.to_value()),
        ]))
    }

    /// Reads the body of the reply.
    ///
    /// # Errors
    /// [`FrameError`] when it is not one.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let value = json::parse(body)?;
        Ok(Self { messages: member(&value, "messages")?, next: member(&value, "next")? })
    }
}

/// The reply to a message sent: its id, or none when its queue is not there.
pub fn encode_sent(id: Option<&MessageId>) -> Vec<u8> {
    json::print(&Value::Array(id.map(ToValue::to_value).into_iter().collect()))
}

/// Reads the reply to a message sent.
///
/// # Errors
/// [`FrameError`] when it is not one.
pub fn decode_sent(body: &[u8]) -> Result<Option<MessageId>, FrameError> {
    Ok(FromValue::from_value(&json::parse(body)?)?)
}

/// The reply to a request for queues.
pub fn encode_names(names: &[String]) -> Vec<u8> {
    json::print(&Value::Array(names.iter().map(ToValue::to_value).collect()))
}

/// Reads the reply to a request for queues.
///
/// # Errors
/// [`FrameError`] when it is not one.
pub fn decode_names(body: &[u8]) -> Result<Vec<String>, FrameError> {
    Ok(FromValue::from_value(&json::parse(body)?)?)
}

fn transfer_command(body: &[u8]) -> Result<Command, FrameError> {
    let value = json::parse(body)?;
    let from = value.get("from").map(String::from_value).transpose()?;
    Ok(Command::Transfer { from, timeout: member(&value, "timeout")?, queues: member(&value, "queues")? })
}

fn member<T: FromValue>(value: &Value, key: &'static str) -> Result<T, DecodeError> {
    value.get(key).map_or_else(|| Err(DecodeError::expected(key, value)), T::from_value)
}

impl ToValue for MessageId {
    fn to_value(&self) -> Value {
        Value::Array(vec![self.queue.to_value(), self.number.to_value()])
    }
}

impl FromValue for MessageId {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let (queue, number) = FromValue::from_value(value)?;
        Ok(Self { queue, number })
    }
}

impl ToValue for Message {
    fn to_value(&self) -> Value {
        let (tag, contents) = match &self.kind {
            Kind::Request(reply_to) => ("Request", reply_to.to_value()),
            Kind::Response(id) => ("Response", id.to_value()),
        };
        Value::Dict(vec![
            (Text::from("payload"), Value::String(self.payload.clone())),
            (Text::from("kind"), Value::Array(vec![Value::string(tag), contents])),
        ])
    }
}

impl FromValue for Message {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let Some(Value::String(payload)) = value.get("payload") else {
            return Err(DecodeError::expected("payload", value));
        };
        let kind = match value.get("kind") {
            Some(Value::Array(parts)) => match &parts[..] {
                [Value::String(tag), contents] if *tag == "Request" => {
                    Kind::Request(String::from_value(contents)?)
                }
                [Value::String(tag), contents] if *tag == "Response" => {
                    Kind::Response(MessageId::from_value(contents)?)
                }
                _ => return Err(DecodeError::expected("kind", value)),
            },
            _ => return Err(DecodeError::expected("kind", value)),
        };
        Ok(Self { payload: payload.clone(), kind })
    }
}

/// The characters of a path segment that stand for themselves (RFC 3986, `pchar`).
const fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b':' | b'@' | b'!' | b'$')
}

fn path(words: &[&str]) -> String {
    use std::fmt::Write as _;
    let mut out = String::new();
    for word in words {
        out.push('/');
        for &byte in word.as_bytes() {
            if is_plain(byte) {
                out.push(char::from(byte));
            } else {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
    out
}

/// None for a `%` that is not followed by two hexadecimal digits, and for bytes that are not UTF-8.
fn percent_decoded(word: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word.as_bytes();
    while let [first, tail @ ..] = rest {
        if let (b'%', [high, low, tail @ ..]) = (first, tail) {
            let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|d| u8::try_from(d).ok());
            bytes.push(digit(high)? * 16 + digit(low)?);
            rest = tail;
        } else if *first == b'%' {
            return None;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message_id() -> impl Strategy<Value = MessageId> {
        ("\\PC{0,12}", any::<i64>()).prop_map(|(queue, number)| MessageId { queue, number })
    }

    fn message() -> impl Strategy<Value = Message> {
        let kind = prop_oneof!["\\PC{0,12}".prop_map(Kind::Request), message_id().prop_map(Kind::Response)];
        (prop::collection::vec(any::<u8>(), 0..40), kind)
            .prop_map(|(payload, kind)| Message { payload: Text::from(payload), kind })
    }

    fn command() -> impl Strategy<Value = Command> {
        let name = "\\PC{0,12}";
        prop_oneof![
            name.prop_map(Command::Login),
            name.prop_map(Command::CreatePersistent),
            name.prop_map(Command::CreateTransient),
            name.prop_map(Command::Destroy),
            message_id().prop_map(Command::Ack),
            // `alive` alone would be read as the other form's first word.
            ("[a-z.]{0,3}", any::<bool>()).prop_map(|(prefix, alive)| Command::List { prefix, alive }),
            (name, message()).prop_map(|(queue, message)| Command::Send(queue, message)),
            (prop::option::of(name), 0.0..100.0, prop::collection::vec(name, 0..3))
                .prop_map(|(from, timeout, queues)| Command::Transfer { from, timeout, queues }),
        ]
    }

    proptest! {
        #[test]
        fn commands_round_trip(command in command()) {
            let Frame { method, path, body } = command.encode();
            prop_assert!(path.bytes().all(|byte| byte.is_ascii_graphic()), "{path}");
            prop_assert_eq!(Command::decode(method, &path, &body.unwrap_or_default()), Ok(command));
        }

        #[test]
        fn replies_round_trip(messages in prop::collection::vec((message_id(), message()), 0..4), next in "\\PC*") {
            let reply = Transferred { messages, next };
            prop_assert_eq!(Transferred::decode(&reply.encode()), Ok(reply.clone()));
            let id = reply.messages.first().map(|(id, _)| id);
            prop_assert_eq!(decode_sent(&encode_sent(id)), Ok(id.cloned()));
            let names: Vec<_> = reply.messages.into_iter().map(|(id, _)| id.queue).collect();
            prop_assert_eq!(decode_names(&encode_names(&names)), Ok(names));
        }

        #[test]
        fn never_panics(path in "\\PC*", body in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Command::decode("GET", &path, &[]);
            let _ = Command::decode("POST", &path, &body);
            let _ = Command::decode("POST", "/transfer", &body);
            let _ = (Transferred::decode(&body), decode_sent(&body), decode_names(&body));
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for (method, path, body) in [
            ("GET", "login/x", ""),
            ("GET", "/login/x", "body"),
            ("GET", "/login/%2", ""),
            ("GET", "/login/%ff", ""),
            ("GET", "/ack/q/five", ""),
            ("GET", "/nothing", ""),
            ("PUT", "/login/x", ""),
            ("POST", "/transfer", "{}"),
            ("POST", "/transfer", "{"),
        ] {
            assert!(Command::decode(method, path, body.as_bytes()).is_err(), "{method} {path}");
        }
    }
}
