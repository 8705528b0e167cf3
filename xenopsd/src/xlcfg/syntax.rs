//! The grammar of `xl.cfg` files: text to settings. What the keys mean is decided elsewhere.
//!
//! ```text
//!  file    := { setting } ; separated by newlines or `;`, `#` starts a comment
//!  setting := key ( '=' | '+=' ) value
//!  value   := 'text' | "text" | number | '[' [ value { ',' value } [ ',' ] ] ']'
//! ```
//!
//! Newlines and comments may stand anywhere inside a list. Numbers are decimal, octal with a leading `0`, or
//! hexadecimal with `0x`. `+=` joins two texts, extends a list by a list, and by a single value.

/// Longest file read. The largest sensible configuration is a few KiB.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Deepest list in a list; the format's own keys need two.
const LIST_DEPTH_MAX: usize = 8;

/// A value as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A quoted text.
    Text(String),
    /// A number.
    Number(u64),
    /// A list; each value with its line.
    List(Vec<(usize, Value)>),
}

impl Value {
    /// What it is, for error texts.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Number(_) => "a number",
            Self::List(_) => "a list",
        }
    }
}

/// One `key = value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Line of the key, from 1.
    pub line: usize,
    /// The key.
    pub key: String,
    /// The value, after all `+=`.
    pub value: Value,
}

/// A file that is not in the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct SyntaxError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong there, and what is right.
    pub what: String,
}

/// Reads a file. A key that is set twice appears twice, in the order of the file.
///
/// # Errors
///
/// [`SyntaxError`] for the first thing that is not in the format.
pub fn parse(file: &[u8]) -> Result<Vec<Setting>, SyntaxError> {
    if file.len() > FILE_BYTES_MAX {
        let what = format!("the file has {} bytes, a configuration has at most {FILE_BYTES_MAX}", file.len());
        return Err(SyntaxError { line: 1, what });
    }
    let text = file.strip_prefix(b"\xef\xbb\xbf").unwrap_or(file);
    Parser { text, at: 0, line: 1 }.file()
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
}

impl Parser<'_> {
    fn file(mut self) -> Result<Vec<Setting>, SyntaxError> {
        let mut settings: Vec<Setting> = Vec::new();
        loop {
            self.skip_between_settings();
            if self.peek().is_none() {
                return Ok(settings);
            }
            let line = self.line;
            let key = self.key()?;
            let appends = self.operator(&key)?;
            self.skip_blanks();
            let value = self.value(&key, 0)?;
            self.end_of_setting(&key)?;
            let earlier =
                if appends { settings.iter_mut().rev().find(|setting| setting.key == key) } else { None };
            match earlier {
                Some(setting) => append(setting, line, value)?,
                None => settings.push(Setting { line, key, value }),
            }
        }
    }

    fn key(&mut self) -> Result<String, SyntaxError> {
        let start = self.at;
        if self.peek().is_some_and(|byte| byte.is_ascii_alphabetic()) {
            while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
            {
                self.at += 1;
            }
        }
        if start == self.at {
            return Err(self.unexpected("a key, like `memory = 1024`"));
        }
        Ok(String::from_utf8_lossy(&self.text[start..self.at]).into_owned())
    }

    fn operator(&mut self, key: &str) -> Result<bool, SyntaxError> {
        self.skip_blanks();
        let append = self.take(b'+');
        if self.take(b'=') { Ok(append) } else { Err(self.unexpected(&format!("`=` after `{key}`"))) }
    }

    fn value(&mut self, key: &str, depth: usize) -> Result<Value, SyntaxError> {
        match self.peek() {
            Some(quote @ (b'\'' | b'"')) => self.text(quote).map(Value::Text),
            Some(b'0'..=b'9') => self.number().map(Value::Number),
            Some(b'[') if depth < LIST_DEPTH_MAX => self.list(key, depth).map(Value::List),
            Some(b'[') => {
                Err(self.error(format!("`{key}`: lists are nested more than {LIST_DEPTH_MAX} deep")))
            }
            Some(b'-') => Err(self.error(format!("`{key}`: there are no negative numbers in this format"))),
            Some(byte) if byte.is_ascii_alphabetic() => {
                Err(self
                    .error(format!("`{key}`: a text needs quotes, like '...'; for yes and no write 1 and 0")))
            }
            _ => Err(self.unexpected(&format!("a value for `{key}`: a quoted text, a number or a [list]"))),
        }
    }

    fn list(&mut self, key: &str, depth: usize) -> Result<Vec<(usize, Value)>, SyntaxError> {
        let start = self.line;
        self.at += 1;
        let mut items = Vec::new();
        loop {
            self.skip_in_list();
            if self.take(b']') {
                return Ok(items);
            }
            if self.peek().is_none() {
                return Err(SyntaxError {
                    line: start,
                    what: format!("the list of `{key}` is not closed: `]` is missing"),
                });
            }
            let line = self.line;
            let value = self.value(key, depth + 1)?;
            items.push((line, value));
            self.skip_in_list();
            if !self.take(b',') && !matches!(self.peek(), Some(b']') | None) {
                return Err(self.unexpected(&format!("`,` or `]` in the list of `{key}`")));
            }
        }
    }

    fn number(&mut self) -> Result<u64, SyntaxError> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.') {
            self.at += 1;
        }
        let word = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        let (digits, radix) =
            if let Some(digits) = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
                (digits, 16)
            } else if word.len() > 1 && word.starts_with('0') {
                (&word[1..], 8)
            } else {
                (word.as_str(), 10)
            };
        u64::from_str_radix(digits, radix).map_err(|_| {
            self.error(format!(
                "{word:?} is not a number: write digits, 0x and hexadecimal digits, or quote a text"
            ))
        })
    }

    fn text(&mut self, quote: u8) -> Result<String, SyntaxError> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.peek() {
                None | Some(b'\n') => {
                    let quote = char::from(quote);
                    return Err(self.error(format!("the text is not closed on its line: {quote} is missing")));
                }
                Some(byte) if byte == quote => {
                    self.at += 1;
                    break;
                }
                Some(b'\\') => {
                    self.at += 1;
                    bytes.push(self.escape()?);
                }
                Some(byte) => {
                    self.at += 1;
                    bytes.push(byte);
                }
            }
        }
        if bytes.contains(&0) {
            return Err(self.error("a text cannot contain a zero byte".to_owned()));
        }
        String::from_utf8(bytes).map_err(|_| self.error("the text is not UTF-8".to_owned()))
    }

    fn escape(&mut self) -> Result<u8, SyntaxError> {
        let Some(byte) = self.peek() else { return Err(self.unexpected("a character after `\\`")) };
        if (b'0'..=b'7').contains(&byte) {
            return self.coded(3, 8);
        }
        self.at += 1;
        Ok(match byte {
            b'\\' | b'\'' | b'"' => byte,
            b'a' => 7,
            b'b' => 8,
            b't' => b'\t',
            b'n' => b'\n',
            b'v' => 11,
            b'f' => 12,
            b'r' => b'\r',
            b'x' => self.coded(2, 16)?,
            _ => {
                self.at -= 1;
                return Err(self.unexpected("one of \\ ' \" a b f n r t v x or an octal number after `\\`"));
            }
        })
    }

    /// A character given by at most `limit` digits.
    fn coded(&mut self, limit: usize, radix: u32) -> Result<u8, SyntaxError> {
        let start = self.at;
        while self.at - start < limit && self.peek().is_some_and(|byte| char::from(byte).is_digit(radix)) {
            self.at += 1;
        }
        std::str::from_utf8(&self.text[start..self.at])
            .ok()
            .and_then(|digits| u8::from_str_radix(digits, radix).ok())
            .ok_or_else(|| self.error("the character code after `\\` is not 0 to 255".to_owned()))
    }

    fn end_of_setting(&mut self, key: &str) -> Result<(), SyntaxError> {
        self.skip_blanks();
        match self.peek() {
            None | Some(b'\n' | b';' | b'#') => Ok(()),
            Some(_) => Err(self.unexpected(&format!("the end of the line after the value of `{key}`"))),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn skip_blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r')) {
            self.at += 1;
        }
    }

    fn skip_in_list(&mut self) {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\r') => {}
                Some(b'\n') => self.line += 1,
                Some(b'#') => {
                    self.skip_comment();
                    continue;
                }
                _ => return,
            }
            self.at += 1;
        }
    }

    fn skip_between_settings(&mut self) {
        loop {
            self.skip_in_list();
            if !self.take(b';') {
                return;
            }
        }
    }

    fn skip_comment(&mut self) {
        while self.peek().is_some_and(|byte| byte != b'\n') {
            self.at += 1;
        }
    }

    fn unexpected(&self, wanted: &str) -> SyntaxError {
        let found = match self.peek() {
            None => "the end of the file".to_owned(),
            Some(b'\n') => "the end of the line".to_owned(),
            Some(byte) => format!("`{}`", byte.escape_ascii()),
        };
        self.error(format!("found {found}, expected {wanted}"))
    }

    fn error(&self, what: String) -> SyntaxError {
        SyntaxError { line: self.line, what }
    }
}

fn append(setting: &mut Setting, line: usize, added: Value) -> Result<(), SyntaxError> {
    match (&mut setting.value, added) {
        (Value::Text(text), Value::Text(more)) => text.push_str(&more),
        (Value::List(list), Value::List(more)) => list.extend(more),
        (Value::List(list), single) => list.push((line, single)),
        (Value::Text(text), Value::List(more)) => {
            let first = (setting.line, Value::Text(std::mem::take(text)));
            setting.value = Value::List(std::iter::once(first).chain(more).collect());
        }
        (old, new) => {
            let what = format!("`{} +=` cannot add {} to {}", setting.key, new.kind(), old.kind());
            return Err(SyntaxError { line, what });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings(file: &str) -> Vec<(usize, String, Value)> {
        let found = parse(file.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{file}"));
        found.into_iter().map(|setting| (setting.line, setting.key, setting.value)).collect()
    }

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    fn one(line: usize, key: &str, value: Value) -> (usize, String, Value) {
        (line, key.to_owned(), value)
    }

    #[test]
    fn values_of_every_kind_with_their_lines() {
        let file = "# comment with caf\u{e9}\nname = 'web' ; memory=0x400\n\nvcpus = 010 # eight\r\ncmdline=\"a \\\"b\\\" \\x41\\101\"\n";
        assert_eq!(
            settings(file),
            [
                one(2, "name", text("web")),
                one(2, "memory", Value::Number(1024)),
                one(4, "vcpus", Value::Number(8)),
                one(5, "cmdline", text("a \"b\" AA")),
            ]
        );
    }

    #[test]
    fn lists_span_lines_and_may_end_with_a_comma() {
        let file = "disk = [\n  'a', # first\n\n  \"b\",\n]\nvif=[]\nvnuma = [ [ 'x', 1 ] ]";
        assert_eq!(
            settings(file),
            [
                one(1, "disk", Value::List(vec![(2, text("a")), (4, text("b"))])),
                one(6, "vif", Value::List(vec![])),
                one(
                    7,
                    "vnuma",
                    Value::List(vec![(7, Value::List(vec![(7, text("x")), (7, Value::Number(1))]))])
                ),
            ]
        );
    }

    #[test]
    fn appending_follows_the_kinds() {
        assert_eq!(settings("a='x'\na+='y'"), [one(1, "a", text("xy"))]);
        assert_eq!(settings("a+='x'"), [one(1, "a", text("x"))]);
        assert_eq!(
            settings("a=['x']\na += ['y']\na += 'z'"),
            [one(1, "a", Value::List(vec![(1, text("x")), (2, text("y")), (3, text("z"))]))]
        );
        assert_eq!(
            settings("a='x'\na+=['y']"),
            [one(1, "a", Value::List(vec![(1, text("x")), (2, text("y"))]))]
        );
        assert_eq!(parse(b"a=1\na+=2").unwrap_err().line, 2);
    }

    #[test]
    fn errors_name_the_line_and_what_is_right() {
        for (file, line, part) in [
            ("\nmemory 1024", 2, "`=` after `memory`"),
            ("name = web", 1, "needs quotes"),
            ("name = 'web", 1, "not closed"),
            ("name = 'we\nb'", 1, "not closed"),
            ("vif = [ 'a'\n'b' ]", 2, "`,` or `]`"),
            ("\ndisk = [ 'a',", 2, "`]` is missing"),
            ("memory = 12x", 1, "not a number"),
            ("memory = 99999999999999999999", 1, "not a number"),
            ("memory = 1.5", 1, "not a number"),
            ("memory = -1", 1, "negative"),
            ("memory = ", 1, "a value for `memory`"),
            ("memory = 1 2", 1, "the end of the line"),
            ("= 1", 1, "a key"),
            ("import os\nname='x'", 1, "`=` after `import`"),
            ("a = '\\q'", 1, "after `\\`"),
            ("a = '\\x00'", 1, "zero byte"),
            ("a = '\\xff'", 1, "UTF-8"),
            ("a = '\\777'", 1, "0 to 255"),
            ("a = [[[[[[[[[1]]]]]]]]]", 1, "nested"),
        ] {
            let error = parse(file.as_bytes()).expect_err(file);
            assert!(error.line == line && error.what.contains(part), "{file:?}: {error}");
        }
        assert!(parse(&vec![b'\n'; FILE_BYTES_MAX + 1]).is_err());
    }

    fn written(value: &Value) -> String {
        match value {
            Value::Text(text) => {
                let escaped: Vec<String> = text.bytes().map(|byte| format!("\\x{byte:02x}")).collect();
                format!("\"{}\"", escaped.concat())
            }
            Value::Number(number) => format!("{number:#x}"),
            Value::List(items) => {
                let items: Vec<String> = items.iter().map(|(_, item)| written(item)).collect();
                format!("[{}]", items.join(","))
            }
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<u64>().prop_map(Value::Number), "[^\0]*".prop_map(Value::Text)];
        leaf.prop_recursive(4, 16, 4, |inner| {
            proptest::collection::vec(inner.prop_map(|value| (1, value)), 0..4).prop_map(Value::List)
        })
    }

    proptest! {
        #[test]
        fn never_panics(file: Vec<u8>) {
            let _ = parse(&file);
        }

        #[test]
        fn never_panics_on_nearly_right_files(file in "[a-c0-9x='\"\\[\\],;#\\\\\n +]{0,64}") {
            let _ = parse(file.as_bytes());
        }

        #[test]
        fn what_is_written_is_read(key in "[a-zA-Z][a-z0-9_]{0,10}", value in any_value()) {
            let read = settings(&format!("{key}={}", written(&value)));
            prop_assert_eq!(read, [(1, key, value)]);
        }
    }
}
