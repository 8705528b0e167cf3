//! LVM's text format: `name = value`, `name { ... }`, strings, numbers and `[ arrays ]`.

use crate::error::{Error, Result};

/// Deepest nesting: a group, its volumes, a volume, a segment; twice that.
const DEPTH: usize = 8;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Number(u64),
    Array(Vec<Value>),
    Section(Section),
}

/// Names and values in the order of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Section(Vec<(String, Value)>);

impl Section {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v)
    }

    pub(super) fn number(&self, name: &str) -> Option<u64> {
        if let Value::Number(n) = self.get(name)? { Some(*n) } else { None }
    }

    pub(super) fn string(&self, name: &str) -> Option<&str> {
        if let Value::Text(text) = self.get(name)? { Some(text) } else { None }
    }

    pub(super) fn array(&self, name: &str) -> Option<&[Value]> {
        if let Value::Array(items) = self.get(name)? { Some(items) } else { None }
    }

    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        if let Value::Section(section) = self.get(name)? { Some(section) } else { None }
    }

    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0
            .iter()
            .filter_map(|(n, v)| if let Value::Section(s) = v { Some((n.as_str(), s)) } else { None })
    }
}

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

fn corrupt(why: &str) -> Error {
    Error::corrupt("LVM metadata", why)
}

impl Parser<'_> {
    /// The next byte that is no space and no comment.
    fn peek(&mut self) -> Option<u8> {
        loop {
            match *self.text.get(self.at)? {
                b'#' => {
                    let rest = &self.text[self.at..];
                    self.at += rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
                }
                // The text ends with a NUL.
                b if b.is_ascii_whitespace() || b == 0 => self.at += 1,
                b => return Some(b),
            }
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += usize::from(there);
        there
    }

    fn word(&mut self) -> String {
        let rest = &self.text[self.at..];
        let is_word = |b: u8| b.is_ascii_alphanumeric() || b"_-+./".contains(&b);
        let len = rest.iter().position(|&b| !is_word(b)).unwrap_or(rest.len());
        self.at += len;
        String::from_utf8_lossy(&rest[..len]).into_owned()
    }

    fn string(&mut self) -> Result<String> {
        let mut out = Vec::new();
        loop {
            let byte = *self.text.get(self.at).ok_or_else(|| corrupt("a string has no end"))?;
            self.at += 1;
            match byte {
                b'"' => return Ok(String::from_utf8_lossy(&out).into_owned()),
                b'\\' => {
                    out.extend(self.text.get(self.at));
                    self.at += 1;
                }
                other => out.push(other),
            }
        }
    }

    fn value(&mut self) -> Result<Value> {
        if self.eat(b'"') {
            return self.string().map(Value::Text);
        }
        let word = self.word();
        // Fractions do not occur in what is used here; the text is kept.
        match word.parse() {
            Ok(number) => Ok(Value::Number(number)),
            Err(_) if word.is_empty() => Err(corrupt("a value is missing")),
            Err(_) => Ok(Value::Text(word)),
        }
    }

    fn array(&mut self) -> Result<Value> {
        let mut items = Vec::new();
        while !self.eat(b']') {
            self.peek();
            items.push(self.value()?);
            self.eat(b',');
        }
        Ok(Value::Array(items))
    }

    fn section(&mut self, depth: usize) -> Result<Section> {
        if depth > DEPTH {
            return Err(corrupt("it is nested too deeply"));
        }
        let mut section = Section::default();
        loop {
            match self.peek() {
                None if depth == 0 => return Ok(section),
                None => return Err(corrupt("a section has no end")),
                Some(b'}') if depth > 0 => {
                    self.at += 1;
                    return Ok(section);
                }
                Some(_) => {}
            }
            let name = self.word();
            if name.is_empty() {
                return Err(corrupt("a name is missing"));
            }
            let value = if self.eat(b'{') {
                Value::Section(self.section(depth + 1)?)
            } else if self.eat(b'=') {
                if self.eat(b'[') {
                    self.array()?
                } else {
                    self.peek();
                    self.value()?
                }
            } else {
                return Err(corrupt("a name has no value"));
            };
            section.0.push((name, value));
        }
    }
}

/// Parses a metadata text.
pub(super) fn parse(text: &[u8]) -> Result<Section> {
    Parser { text, at: 0 }.section(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SAMPLE: &[u8] = br#"# a comment
vg0 {
id = "q\"x" # another
seqno = 2
status = ["RESIZEABLE", "READ"]
lv { segment1 { stripes = [ "pv0", 0 ] } }
}
contents = "Text Format Volume Group"
"#;

    #[test]
    fn a_text_is_read() {
        let root = parse(SAMPLE).unwrap();
        let vg = root.section("vg0").unwrap();
        assert_eq!((vg.string("id"), vg.number("seqno")), (Some("q\"x"), Some(2)));
        let segment = vg.section("lv").unwrap().section("segment1").unwrap();
        assert_eq!(segment.array("stripes").unwrap()[1], Value::Number(0));
        assert_eq!(root.string("contents"), Some("Text Format Volume Group"));
    }

    #[test]
    fn what_is_no_text_is_an_error() {
        for bad in ["a {", "a", "a =", "a = [", "a = \"x", "}", "= 3", &"a{".repeat(1000)] {
            assert!(parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(mut bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 0..SAMPLE.len()) {
            let _ = parse(&bytes);
            bytes.splice(0..0, SAMPLE[..cut].iter().copied());
            let _ = parse(&bytes);
        }
    }
}
