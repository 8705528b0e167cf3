//! Messages of the OVSDB protocol (RFC 7047): JSON-RPC 1.0 without frames. No I/O.
//!
//! A message is an object; the next follows it at once. [`Framer`] finds where one ends by its braces, within bounds, and
//! leaves the rest to the JSON parser.

use crate::api::value::Value;

/// Longest message taken, in bytes. Answers here are about one bridge and its ports: 40 bytes for each of a port's uuid,
/// of which a bridge can have 65,279.
pub const MAX_MESSAGE: usize = 4 << 20;

/// Bytes that are not what the protocol allows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Something other than an object.
    #[error("a message does not begin with a brace")]
    NoObject,
    /// It does not end.
    #[error("a message is longer than {MAX_MESSAGE} bytes")]
    TooLong,
    /// The object is not JSON.
    #[error(transparent)]
    Json(#[from] crate::rpc::json::JsonError),
}

/// Cuts a stream of bytes into messages.
#[derive(Debug, Default)]
pub struct Framer {
    bytes: Vec<u8>,
    /// How many of them have been looked at.
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Framer {
    /// More bytes have come.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next message that is complete.
    ///
    /// # Errors
    /// [`MessageError`]; the stream is of no use any more.
    pub fn message(&mut self) -> Result<Option<Value>, MessageError> {
        while let Some(&byte) = self.bytes.get(self.seen) {
            self.seen += 1;
            if self.depth == 0 {
                match byte {
                    b'{' => self.depth = 1,
                    b' ' | b'\t' | b'\r' | b'\n' => {}
                    _ => return Err(MessageError::NoObject),
                }
                continue;
            }
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth -= 1,
                _ => {}
            }
            if self.depth == 0 {
                let message: Vec<u8> = self.bytes.drain(..std::mem::take(&mut self.seen)).collect();
                return Ok(Some(crate::rpc::json::parse(&message)?));
            }
        }
        if self.bytes.len() > MAX_MESSAGE { Err(MessageError::TooLong) } else { Ok(None) }
    }
}

/// An object.
pub(super) fn object<const N: usize>(members: [(&str, Value); N]) -> Value {
    Value::Dict(members.map(|(key, value)| (key.into(), value)).into())
}

/// A string.
pub(super) fn text(text: &str) -> Value {
    Value::string(text)
}

/// A list.
pub(super) fn list<const N: usize>(items: [Value; N]) -> Value {
    Value::Array(items.into())
}

/// A set of a column (RFC 7047, 5.1).
pub(super) fn set(items: Vec<Value>) -> Value {
    list([text("set"), Value::Array(items)])
}

/// A map of a column.
pub(super) fn map(pairs: &[(String, String)]) -> Value {
    let pairs = pairs.iter().map(|(key, value)| list([text(key), text(value)])).collect();
    list([text("map"), Value::Array(pairs)])
}

/// Rows whose `column` is `value`.
pub(super) fn is(column: &str, value: Value) -> Value {
    list([list([text(column), text("=="), value])])
}

/// The elements of a set: a set of one may be written as its element.
pub(super) fn elements(value: &Value) -> Vec<&Value> {
    match value {
        Value::Array(items) => match &items[..] {
            [Value::String(tag), Value::Array(items)] if *tag == "set" => items.iter().collect(),
            _ => vec![value],
        },
        _ => vec![value],
    }
}

/// `["uuid", "…"]`.
pub(super) fn uuid(value: &Value) -> Option<&str> {
    match value {
        Value::Array(items) => match &items[..] {
            [Value::String(tag), Value::String(uuid)] if *tag == "uuid" => uuid.as_str(),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All messages of a stream that comes in pieces of `size`.
    fn cut(stream: &[u8], size: usize) -> Result<Vec<Value>, MessageError> {
        let mut framer = Framer::default();
        let mut found = Vec::new();
        for piece in stream.chunks(size) {
            framer.feed(piece);
            while let Some(message) = framer.message()? {
                found.push(message);
            }
        }
        Ok(found)
    }

    #[test]
    fn messages_are_cut_wherever_they_are_broken() {
        let stream =
            br#"{"id":1,"error":null,"result":[{"a":"}]\"{"}]} {"method":"echo","params":[],"id":"echo"}{}"#;
        for size in 1..stream.len() {
            let found = cut(stream, size).unwrap();
            assert_eq!(found.len(), 3, "{size}");
            assert_eq!(found[0].get("id"), Some(&Value::Int(1)));
            assert_eq!(found[1].get("method"), Some(&Value::string("echo")));
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(cut(b"[1]", 1), Err(MessageError::NoObject));
        assert!(matches!(cut(b"{]", 1), Err(MessageError::Json(_))));
        let mut framer = Framer::default();
        framer.feed(&[b"{\"".to_vec(), vec![b'x'; MAX_MESSAGE]].concat());
        assert_eq!(framer.message(), Err(MessageError::TooLong));
    }

    #[test]
    fn a_set_of_one_may_be_bare() {
        let one = list([text("uuid"), text("x")]);
        assert_eq!(elements(&one), [&one]);
        assert_eq!(elements(&set(vec![one.clone()])), [&one]);
        assert!(elements(&set(Vec::new())).is_empty());
        assert_eq!((uuid(&one), uuid(&text("uuid"))), (Some("x"), None));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(stream: Vec<u8>, size in 1_usize..16) {
            let _ = cut(&stream, size);
        }
    }
}
