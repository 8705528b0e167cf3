//! XML text to XML-RPC values and back, in the dialect of the reference implementation.
//!
//! An integer is printed without its type and is therefore read back as a string; the decoders of the contract's
//! integers accept that. A `<value>` that holds only text is that text, blanks included. `<base64>` and
//! `<dateTime.iso8601>`, which the contract never uses, are refused.
//!
//! The document is UTF-8, or ISO-8859-1 if it says so. A DOCTYPE is skipped unread: no entity is ever defined, so
//! none can expand. Only `&lt; &gt; &amp; &quot; &apos;` and character references mean anything.

use quick_xml::events::{BytesStart, Event};
use quick_xml::name::QName;

use super::text::general;
use crate::api::decode::{parse_float, parse_integer};
use crate::api::value::{Text, Value};

/// Deepest nesting of values accepted; see [`super::json::MAX_DEPTH`].
pub const MAX_DEPTH: usize = super::json::MAX_DEPTH;

/// Most values accepted in one document; see [`super::json::MAX_VALUES`].
pub const MAX_VALUES: usize = super::json::MAX_VALUES;

/// A text that is not the XML expected here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("XML: {problem} at byte {offset}")]
pub struct XmlError {
    /// What is wrong.
    pub problem: Problem,
    /// Roughly where, counted in bytes from 0.
    pub offset: u64,
}

/// What can be wrong with a document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is not well-formed.
    #[error("{0}")]
    Syntax(String),
    /// Its bytes are not text in its encoding, or it holds characters XML does not allow.
    #[error("the text is not {0}")]
    Encoding(&'static str),
    /// An element, text or the end where something else must be.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// What must be there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The content of a typed value is not of that type.
    #[error("'{text}' is not a {ty}")]
    Scalar {
        /// The element.
        ty: &'static str,
        /// Its content, abbreviated.
        text: String,
    },
    /// A reference to an entity; none are defined.
    #[error("unknown entity '{0}'")]
    Entity(String),
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("nested deeper than {MAX_DEPTH} levels")]
    Depth,
    /// More values than [`MAX_VALUES`].
    #[error("more than {MAX_VALUES} values")]
    Count,
}

/// Attributes of one element that are looked at; XML-RPC has none but namespace declarations.
const ATTRIBUTES_MAX: usize = 16;

/// Namespace prefixes in scope at once, which are searched for every end tag.
const PREFIXES_MAX: usize = 16;

/// Longest piece of the document repeated in an error text, in characters.
const SHOWN_MAX: usize = 64;

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}

/// What the grammar of XML-RPC is made of: elements without attributes, and text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Open(String),
    Close,
    Text(String),
    End,
}

impl Token {
    fn name(&self) -> String {
        match self {
            Self::Open(name) => format!("<{}>", shown(name)),
            Self::Close => "a closing tag".to_owned(),
            Self::Text(_) => "text".to_owned(),
            Self::End => "the end".to_owned(),
        }
    }
}

/// The document as tokens: comments, processing instructions and the DOCTYPE are gone, references are resolved,
/// adjacent text is one.
pub(crate) struct Document<'a> {
    reader: quick_xml::Reader<&'a [u8]>,
    /// Read from the reader and not yet handed out, oldest first; at most two.
    pending: std::collections::VecDeque<Token>,
    depth: usize,
    values: usize,
    /// Namespace prefixes in scope, with the depth of the element that declared them.
    prefixes: Vec<(usize, String)>,
}

/// The text of a document, whatever its encoding.
pub(crate) fn transcode(body: &[u8]) -> Result<std::borrow::Cow<'_, str>, XmlError> {
    let error = |problem| XmlError { problem, offset: 0 };
    let encoding = declared_encoding(body);
    let text = match encoding.as_deref() {
        None | Some("UTF-8" | "UTF8" | "US-ASCII" | "ASCII") => {
            let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
            let text = std::str::from_utf8(body).map_err(|bad| XmlError {
                problem: Problem::Encoding("UTF-8"),
                offset: u64::try_from(bad.valid_up_to()).unwrap_or(u64::MAX),
            })?;
            std::borrow::Cow::Borrowed(text)
        }
        Some("ISO-8859-1" | "LATIN1" | "LATIN-1") => {
            std::borrow::Cow::Owned(body.iter().copied().map(char::from).collect())
        }
        Some(_) => {
            return Err(error(Problem::Encoding("in an encoding this server reads (UTF-8, ISO-8859-1)")));
        }
    };
    if let Some(offset) = text.find(|c| !is_xml_char(c)) {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        return Err(XmlError { problem: Problem::Encoding("made of characters XML allows"), offset });
    }
    Ok(text)
}

/// The `encoding` of the XML declaration, in upper case.
fn declared_encoding(body: &[u8]) -> Option<String> {
    let declaration = body.strip_prefix(b"<?xml")?;
    let end = declaration.windows(2).position(|pair| pair == b"?>")?;
    let declaration = std::str::from_utf8(&declaration[..end]).ok()?;
    let (_, rest) = declaration.split_once("encoding")?;
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
    let (encoding, _) = rest[1..].split_once(quote)?;
    Some(encoding.to_ascii_uppercase())
}

/// The characters of XML 1.0.
const fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

impl<'a> Document<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let mut reader = quick_xml::Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        Self { reader, pending: std::collections::VecDeque::new(), depth: 0, values: 0, prefixes: Vec::new() }
    }

    fn error(&self, problem: Problem) -> XmlError {
        XmlError { problem, offset: self.reader.buffer_position() }
    }

    /// Reads from the reader until there is a token.
    fn read(&mut self) -> Result<(), XmlError> {
        let mut text = String::new();
        let mut has_text = false;
        loop {
            let event = match self.reader.read_event() {
                Ok(event) => event,
                Err(error) => return Err(self.error(Problem::Syntax(shown(&error.to_string())))),
            };
            let token = match event {
                Event::Text(content) => {
                    let content = content.xml10_content();
                    if self.depth > 0 {
                        text.push_str(&content);
                        has_text = true;
                    } else if !content.trim_matches(is_blank).is_empty() {
                        return Err(self.unexpected("an element", &Token::Text(String::new())));
                    }
                    continue;
                }
                Event::CData(content) => {
                    text.push_str(&content.xml10_content());
                    has_text = true;
                    continue;
                }
                Event::GeneralRef(reference) => {
                    text.push(self.resolve(&reference)?);
                    has_text = true;
                    continue;
                }
                Event::Comment(_) | Event::PI(_) | Event::Decl(_) | Event::DocType(_) => continue,
                Event::Start(start) | Event::Empty(start) => {
                    self.depth += 1;
                    self.declare(&start)?;
                    Token::Open(self.local_name(start.name())?)
                }
                Event::End(_) => {
                    self.prefixes.retain(|(depth, _)| *depth < self.depth);
                    self.depth = self.depth.saturating_sub(1);
                    Token::Close
                }
                Event::Eof => Token::End,
            };
            if has_text {
                self.pending.push_back(Token::Text(text));
            }
            self.pending.push_back(token);
            return Ok(());
        }
    }

    fn resolve(&self, reference: &quick_xml::events::BytesRef<'_>) -> Result<char, XmlError> {
        let unknown = || self.error(Problem::Entity(shown(&reference.xml10_content())));
        if reference.is_char_ref() {
            let resolved = reference.resolve_char_ref().ok().flatten();
            return resolved.filter(|c| is_xml_char(*c)).ok_or_else(unknown);
        }
        match reference.xml10_content().as_ref() {
            "lt" => Ok('<'),
            "gt" => Ok('>'),
            "amp" => Ok('&'),
            "quot" => Ok('"'),
            "apos" => Ok('\''),
            _ => Err(unknown()),
        }
    }

    /// Takes note of `xmlns:prefix` attributes; all others are ignored.
    fn declare(&mut self, start: &BytesStart<'_>) -> Result<(), XmlError> {
        // Looking for duplicates would take quadratic time, and nothing depends on it.
        for attribute in start.attributes().with_checks(false).take(ATTRIBUTES_MAX) {
            let attribute =
                attribute.map_err(|error| self.error(Problem::Syntax(shown(&error.to_string()))))?;
            if let Some(prefix) = attribute.key.as_ref().strip_prefix("xmlns:") {
                if self.prefixes.len() >= PREFIXES_MAX {
                    return Err(self.error(Problem::Syntax("too many namespace prefixes".to_owned())));
                }
                self.prefixes.push((self.depth, prefix.to_owned()));
            }
        }
        Ok(())
    }

    /// An element's name without its prefix, which must have been declared.
    fn local_name(&self, name: QName<'_>) -> Result<String, XmlError> {
        let name = name.as_ref();
        match name.split_once(':') {
            None => Ok(name.to_owned()),
            Some((prefix, local)) if self.prefixes.iter().any(|(_, known)| known == prefix) => {
                Ok(local.to_owned())
            }
            Some(_) => {
                Err(self.error(Problem::Syntax(format!("undeclared namespace prefix in <{}>", shown(name)))))
            }
        }
    }

    fn peek(&mut self) -> Result<&Token, XmlError> {
        if self.pending.is_empty() {
            self.read()?;
        }
        Ok(self.pending.front().unwrap_or(&Token::End))
    }

    fn next(&mut self) -> Result<Token, XmlError> {
        if self.pending.is_empty() {
            self.read()?;
        }
        Ok(self.pending.pop_front().unwrap_or(Token::End))
    }

    fn unexpected(&self, expected: impl Into<String>, found: &Token) -> XmlError {
        self.error(Problem::Unexpected { expected: expected.into(), found: found.name() })
    }

    /// Skips text that is only blanks.
    fn blanks(&mut self) -> Result<(), XmlError> {
        if let Token::Text(text) = self.peek()?
            && text.trim_matches(is_blank).is_empty()
        {
            self.next()?;
        }
        Ok(())
    }

    /// Whether the next thing is this element; if so it is entered.
    pub(crate) fn opens(&mut self, name: &str) -> Result<bool, XmlError> {
        self.blanks()?;
        let opens = matches!(self.peek()?, Token::Open(found) if found == name);
        if opens {
            self.next()?;
        }
        Ok(opens)
    }

    /// Enters an element that must be there.
    pub(crate) fn open(&mut self, name: &str) -> Result<(), XmlError> {
        if self.opens(name)? {
            return Ok(());
        }
        let found = self.next()?;
        Err(self.unexpected(format!("<{name}>"), &found))
    }

    /// Whether the element entered last ends here; if so it is left.
    pub(crate) fn closes(&mut self) -> Result<bool, XmlError> {
        self.blanks()?;
        let closes = *self.peek()? == Token::Close;
        if closes {
            self.next()?;
        }
        Ok(closes)
    }

    /// Leaves an element.
    pub(crate) fn close(&mut self) -> Result<(), XmlError> {
        if self.closes()? {
            return Ok(());
        }
        let found = self.next()?;
        Err(self.unexpected("a closing tag", &found))
    }

    /// The text up to the end of the element entered last, verbatim; leaves it.
    pub(crate) fn text(&mut self) -> Result<String, XmlError> {
        match self.next()? {
            Token::Close => Ok(String::new()),
            Token::Text(text) => match self.next()? {
                Token::Close => Ok(text),
                found => Err(self.unexpected("a closing tag", &found)),
            },
            found => Err(self.unexpected("text", &found)),
        }
    }

    /// A `<value>` element.
    pub(crate) fn value(&mut self, depth: usize) -> Result<Value, XmlError> {
        self.open("value")?;
        self.value_content(depth)
    }

    /// What is inside a `<value>` element that has been entered, and its end.
    pub(crate) fn value_content(&mut self, depth: usize) -> Result<Value, XmlError> {
        if depth > MAX_DEPTH {
            return Err(self.error(Problem::Depth));
        }
        self.values += 1;
        if self.values > MAX_VALUES {
            return Err(self.error(Problem::Count));
        }
        match self.next()? {
            Token::Close => return Ok(Value::string("")),
            Token::Text(text) => match self.next()? {
                Token::Close => return Ok(Value::string(text)),
                Token::Open(name) if text.trim_matches(is_blank).is_empty() => self.typed(&name, depth),
                found => Err(self.unexpected("</value>", &found)),
            },
            Token::Open(name) => self.typed(&name, depth),
            found @ Token::End => Err(self.unexpected("a value", &found)),
        }
        .and_then(|value| self.close().map(|()| value))
    }

    /// The content of a typed value whose element has been entered, and its end.
    fn typed(&mut self, name: &str, depth: usize) -> Result<Value, XmlError> {
        match name {
            "string" => self.text().map(Value::string),
            "int" | "i4" | "i8" => self.scalar("integer", |text| parse_integer(text, 64).map(Value::Int)),
            "double" => self.scalar("float", |text| parse_float(text).map(Value::Float)),
            // Anything but 1 is false; nothing at all is an error.
            "boolean" => {
                self.scalar("boolean", |text| (!text.is_empty()).then_some(Value::Bool(text == "1")))
            }
            "nil" => self.close().map(|()| Value::Null),
            "array" => self.array(depth),
            "struct" => self.members(depth),
            _ => Err(self.unexpected("a type of XML-RPC this contract uses", &Token::Open(name.to_owned()))),
        }
    }

    fn scalar(&mut self, ty: &'static str, parse: fn(&str) -> Option<Value>) -> Result<Value, XmlError> {
        let text = self.text()?;
        parse(&text).ok_or_else(|| self.error(Problem::Scalar { ty, text: shown(&text) }))
    }

    fn array(&mut self, depth: usize) -> Result<Value, XmlError> {
        let mut items = Vec::new();
        if self.closes()? {
            return Ok(Value::Array(items));
        }
        self.open("data")?;
        while !self.closes()? {
            items.push(self.value(depth + 1)?);
        }
        self.close()?;
        Ok(Value::Array(items))
    }

    fn members(&mut self, depth: usize) -> Result<Value, XmlError> {
        let mut members = Vec::new();
        while !self.closes()? {
            self.open("member")?;
            self.open("name")?;
            let name = self.text()?;
            let value = self.value(depth + 1)?;
            self.close()?;
            members.push((Text::from(name), value));
        }
        Ok(Value::Dict(members))
    }
}

const fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\r' | '\n')
}

/// Parses a lone `<value>` element.
///
/// # Errors
/// [`XmlError`] with the place of the first thing that does not fit.
pub fn parse_value(text: &[u8]) -> Result<Value, XmlError> {
    let text = transcode(text)?;
    Document::new(&text).value(0)
}

/// Prints a value as a `<value>` element without blanks, byte for byte as the reference does, except that the names
/// of members are escaped, which it forgets.
pub fn print_value(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    write_value(value, &mut out);
    out
}

pub(crate) fn write_value(value: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(b"<value>");
    match value {
        Value::Null => out.extend_from_slice(b"<nil/>"),
        Value::Bool(truth) => {
            out.extend_from_slice(if *truth { b"<boolean>1</boolean>" } else { b"<boolean>0</boolean>" });
        }
        Value::Int(number) => out.extend_from_slice(number.to_string().as_bytes()),
        Value::Float(number) => {
            out.extend_from_slice(b"<double>");
            out.extend_from_slice(general(*number, 16).as_bytes());
            out.extend_from_slice(b"</double>");
        }
        Value::String(text) => escape(text.as_bytes(), out),
        Value::Array(items) => {
            out.extend_from_slice(b"<array><data>");
            for item in items {
                write_value(item, out);
            }
            out.extend_from_slice(b"</data></array>");
        }
        Value::Dict(members) => {
            out.extend_from_slice(b"<struct>");
            for (name, item) in members {
                out.extend_from_slice(b"<member><name>");
                escape(name.as_bytes(), out);
                out.extend_from_slice(b"</name>");
                write_value(item, out);
                out.extend_from_slice(b"</member>");
            }
            out.extend_from_slice(b"</struct>");
        }
    }
    out.extend_from_slice(b"</value>");
}

/// Markup characters become entities; control characters XML cannot hold are dropped; the rest passes as it is,
/// UTF-8 or not.
pub(crate) fn escape(text: &[u8], out: &mut Vec<u8>) {
    for &byte in text {
        match byte {
            b'<' => out.extend_from_slice(b"&lt;"),
            b'>' => out.extend_from_slice(b"&gt;"),
            b'&' => out.extend_from_slice(b"&amp;"),
            b'"' => out.extend_from_slice(b"&quot;"),
            b'\t' | b'\n' | b'\r' | 0x20.. => out.push(byte),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
