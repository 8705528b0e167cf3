//! JSON text to values and back, in the dialect of the reference implementation's parser.
//!
//! Beyond the standard it takes `//` and `/* */` comments, object keys without quotes, `NaN` and `Infinity`, and raw
//! control characters in strings; it keeps duplicate keys and bytes that are not UTF-8. It refuses what the
//! standard refuses otherwise: trailing commas, leading zeros, a byte order mark, anything after the value, half a
//! surrogate pair (a lone low half is the one exception), integers beyond 64 bits.

use super::text::general;
use crate::api::value::{Text, Value};

/// Deepest nesting accepted. The contract's own types nest about ten deep; the rest is for a task result, which
/// is of any shape. Values are dropped recursively, so this also bounds the stack.
pub const MAX_DEPTH: usize = 128;

/// Most values accepted in one text: room for a list of ten thousand VMs, while small enough that a text of
/// nothing but `[0,0,0...]` cannot take up more than some hundred MiB.
pub const MAX_VALUES: usize = 1 << 22;

/// A text that is not JSON, or more of it than is accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("JSON: {problem} at byte {offset}")]
pub struct JsonError {
    /// What is wrong.
    pub problem: Problem,
    /// Where, counted in bytes from 0.
    pub offset: usize,
}

/// What can be wrong with a JSON text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The text ends in the middle of a value.
    #[error("unexpected end of text")]
    Truncated,
    /// Something that cannot be there.
    #[error("unexpected character")]
    Unexpected,
    /// There is something after the value.
    #[error("junk after the value")]
    Trailing,
    /// An escape sequence that is none, or half a surrogate pair.
    #[error("invalid escape sequence")]
    Escape,
    /// An integer that does not fit 64 bits.
    #[error("integer beyond 64 bits")]
    IntegerRange,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    Depth,
    /// More values than [`MAX_VALUES`].
    #[error("more than {MAX_VALUES} values")]
    Count,
}

/// Parses one value.
///
/// # Errors
/// [`JsonError`] with the place of the first thing that does not fit.
pub fn parse(text: &[u8]) -> Result<Value, JsonError> {
    let mut parser = Parser { text, at: 0, values: 0 };
    let value = parser.value(0)?;
    parser.blanks()?;
    if parser.at < text.len() {
        return Err(parser.error(Problem::Trailing));
    }
    Ok(value)
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    values: usize,
}

impl Parser<'_> {
    fn error(&self, problem: Problem) -> JsonError {
        JsonError { problem, offset: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn unexpected(&self) -> JsonError {
        self.error(if self.at < self.text.len() { Problem::Unexpected } else { Problem::Truncated })
    }

    fn rest(&self) -> &[u8] {
        &self.text[self.at.min(self.text.len())..]
    }

    fn expect(&mut self, byte: u8) -> Result<(), JsonError> {
        if self.peek() == Some(byte) {
            self.at += 1;
            Ok(())
        } else {
            Err(self.unexpected())
        }
    }

    /// Skips blanks and comments.
    fn blanks(&mut self) -> Result<(), JsonError> {
        loop {
            match self.rest() {
                [b' ' | b'\t' | b'\r' | b'\n', ..] => self.at += 1,
                [b'/', b'/', comment @ ..] => {
                    let length = comment.iter().position(|byte| *byte == b'\n').unwrap_or(comment.len());
                    self.at += 2 + length;
                }
                [b'/', b'*', comment @ ..] => {
                    let Some(length) = comment.windows(2).position(|pair| pair == b"*/") else {
                        self.at = self.text.len();
                        return Err(self.error(Problem::Truncated));
                    };
                    self.at += 2 + length + 2;
                }
                _ => return Ok(()),
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, JsonError> {
        if depth > MAX_DEPTH {
            return Err(self.error(Problem::Depth));
        }
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.error(Problem::Count));
        }
        self.blanks()?;
        match self.peek() {
            Some(b'"') => self.string().map(Value::String),
            Some(b'[') => self.array(depth),
            Some(b'{') => self.object(depth),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => self.word(),
        }
    }

    fn word(&mut self) -> Result<Value, JsonError> {
        for (word, value) in [
            ("true", Value::Bool(true)),
            ("false", Value::Bool(false)),
            ("null", Value::Null),
            ("NaN", Value::Float(f64::NAN)),
            ("Infinity", Value::Float(f64::INFINITY)),
        ] {
            if self.rest().starts_with(word.as_bytes()) {
                self.at += word.len();
                return Ok(value);
            }
        }
        Err(self.unexpected())
    }

    fn array(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.at += 1;
        let mut items = Vec::new();
        self.blanks()?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(depth + 1)?);
            self.blanks()?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                _ => return Err(self.unexpected()),
            }
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, JsonError> {
        self.at += 1;
        let mut members = Vec::new();
        self.blanks()?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Dict(members));
        }
        loop {
            self.blanks()?;
            let key = self.key()?;
            self.blanks()?;
            self.expect(b':')?;
            members.push((key, self.value(depth + 1)?));
            self.blanks()?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Dict(members));
                }
                _ => return Err(self.unexpected()),
            }
        }
    }

    /// A string, or a word that needs no quotes.
    fn key(&mut self) -> Result<Text, JsonError> {
        if self.peek() == Some(b'"') {
            return self.string();
        }
        let rest = self.rest();
        let word = rest.iter().take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_').count();
        if word == 0 || rest[0].is_ascii_digit() {
            return Err(self.unexpected());
        }
        let key = Text::from(&rest[..word]);
        self.at += word;
        Ok(key)
    }

    fn digits(&mut self) -> usize {
        let count = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        count
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
            if self.rest().starts_with(b"Infinity") {
                self.at += b"Infinity".len();
                return Ok(Value::Float(f64::NEG_INFINITY));
            }
        }
        if self.peek() == Some(b'0') {
            // No leading zeros: what follows is not part of the number, and is junk.
            self.at += 1;
        } else if self.digits() == 0 {
            return Err(self.unexpected());
        }
        let mut float = false;
        if self.peek() == Some(b'.') {
            self.at += 1;
            float = true;
            if self.digits() == 0 {
                return Err(self.unexpected());
            }
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            float = true;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            if self.digits() == 0 {
                return Err(self.unexpected());
            }
        }
        // Only ASCII was taken.
        let literal = std::str::from_utf8(&self.text[start..self.at]).unwrap_or_default();
        if float {
            literal.parse().map(Value::Float).map_err(|_| self.error(Problem::Unexpected))
        } else {
            literal.parse().map(Value::Int).map_err(|_| self.error(Problem::IntegerRange))
        }
    }

    fn string(&mut self) -> Result<Text, JsonError> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            let rest = self.rest();
            let plain = rest.iter().take_while(|byte| !matches!(byte, b'"' | b'\\')).count();
            bytes.extend_from_slice(&rest[..plain]);
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Text::from(bytes));
                }
                Some(_) => {
                    self.at += 1;
                    self.escape(&mut bytes)?;
                }
                None => return Err(self.error(Problem::Truncated)),
            }
        }
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), JsonError> {
        let Some(kind) = self.peek() else { return Err(self.error(Problem::Truncated)) };
        self.at += 1;
        let byte = match kind {
            b'"' | b'\\' | b'/' => kind,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => return self.unicode_escape(bytes),
            _ => return Err(self.error(Problem::Escape)),
        };
        bytes.push(byte);
        Ok(())
    }

    fn unicode_escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), JsonError> {
        let first = self.hex4()?;
        let code = if (0xd800..0xdc00).contains(&first) {
            if !self.rest().starts_with(b"\\u") {
                return Err(self.error(Problem::Escape));
            }
            self.at += 2;
            let second = self.hex4()?;
            if !(0xdc00..0xe000).contains(&second) {
                return Err(self.error(Problem::Escape));
            }
            0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
        } else {
            first
        };
        if let Some(character) = char::from_u32(code) {
            bytes.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            // A lone low surrogate: three bytes that are not UTF-8, as the reference has it. Six bits fit a byte.
            let low = |bits: u32| u8::try_from(0x80 | (bits & 0x3f)).unwrap_or(0x80);
            bytes.extend_from_slice(&[0xed, low(code >> 6), low(code)]);
        }
        Ok(())
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|byte| char::from(byte).to_digit(16));
            let Some(digit) = digit else { return Err(self.error(Problem::Escape)) };
            code = code * 16 + digit;
            self.at += 1;
        }
        Ok(code)
    }
}

/// Prints a value without blanks, byte for byte as the reference does.
pub fn print(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write(value, &mut out);
    out
}

/// As [`print`], for people: bytes that are not UTF-8 become the replacement character.
pub fn print_lossy(value: &Value) -> String {
    String::from_utf8_lossy(&print(value)).into_owned()
}

pub(crate) fn write(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Int(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Float(number) => out.extend_from_slice(float(*number).as_bytes()),
        Value::String(text) => write_string(text.as_bytes(), out),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(item, out);
            }
            out.push(b']');
        }
        Value::Dict(members) => {
            out.push(b'{');
            for (index, (key, item)) in members.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_string(key.as_bytes(), out);
                out.push(b':');
                write(item, out);
            }
            out.push(b'}');
        }
    }
}

/// The shorter of 16 and 17 significant digits that reads back to the same number, with a point if it would look
/// like an integer.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "NaN".to_owned();
    }
    if number.is_infinite() {
        return if number < 0.0 { "-Infinity" } else { "Infinity" }.to_owned();
    }
    let short = general(number, 16);
    let exact = short.parse::<f64>().is_ok_and(|back| back.to_bits() == number.to_bits());
    let mut text = if exact { short } else { general(number, 17) };
    if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-') {
        text.push_str(".0");
    }
    text
}

fn write_string(bytes: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    for &byte in bytes {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x00..=0x1f | 0x7f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

#[cfg(test)]
pub(crate) mod tests;
