//! S-expressions as OCaml's sexplib writes and reads them: the notation of the first record of a suspend image.

use std::fmt::Write as _;

use crate::api::value::Value;

/// Lists within lists: a VM's record has about ten.
const MAX_DEPTH: usize = 64;

/// An S-expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Sexp {
    /// Bytes; usually a word.
    Atom(Vec<u8>),
    /// In parentheses.
    List(Vec<Sexp>),
}

/// Why a text is no S-expression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SexpError {
    /// It ends within a list or a quoted atom.
    #[error("it ends in the middle")]
    Unfinished,
    /// A character that cannot stand where it does.
    #[error("byte {0} is not expected there")]
    Unexpected(usize),
    /// Too many lists within lists.
    #[error("lists are nested more than {MAX_DEPTH} deep")]
    TooDeep,
}

impl Sexp {
    /// An atom.
    pub(super) fn atom(text: impl Into<Vec<u8>>) -> Self {
        Self::Atom(text.into())
    }

    /// `(name value)`.
    pub(super) fn field(name: &str, value: Self) -> Self {
        Self::List(vec![Self::atom(name), value])
    }

    /// The value of the first `(name value)` in this list.
    pub(super) fn get(&self, name: &str) -> Option<&Self> {
        let Self::List(fields) = self else { return None };
        fields.iter().find_map(|field| match field {
            Self::List(pair) => match &pair[..] {
                [Self::Atom(key), value] if key == name.as_bytes() => Some(value),
                _ => None,
            },
            Self::Atom(_) => None,
        })
    }

    /// The atom's text; none for a list or for other bytes than UTF-8.
    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Atom(bytes) => std::str::from_utf8(bytes).ok(),
            Self::List(_) => None,
        }
    }

    /// A value of the contract as the model's derived converters write it: records and dictionaries are lists of pairs,
    /// variants are a word or a list that begins with one.
    pub(super) fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::List(Vec::new()),
            Value::Bool(truth) => Self::atom(truth.to_string()),
            Value::Int(number) => Self::atom(number.to_string()),
            Value::Float(number) => Self::atom(number.to_string()),
            Value::String(text) => Self::atom(text.as_bytes()),
            Value::Array(items) => Self::List(items.iter().map(Self::of_value).collect()),
            Value::Dict(members) => Self::List(
                members
                    .iter()
                    .map(|(key, item)| Self::List(vec![Self::atom(key.as_bytes()), Self::of_value(item)]))
                    .collect(),
            ),
        }
    }

    /// As text, on one line.
    pub(super) fn print(&self) -> String {
        let mut out = String::new();
        self.print_to(&mut out);
        out
    }

    fn print_to(&self, out: &mut String) {
        match self {
            Self::Atom(bytes) => print_atom(bytes, out),
            Self::List(items) => {
                out.push('(');
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        out.push(' ');
                    }
                    item.print_to(out);
                }
                out.push(')');
            }
        }
    }

    /// Reads one S-expression, with nothing but white space after it.
    ///
    /// # Errors
    /// [`SexpError`].
    pub(super) fn parse(text: &[u8]) -> Result<Self, SexpError> {
        let mut reader = Reader { text, at: 0 };
        let value = reader.value(0)?;
        reader.skip_blanks();
        if reader.at == text.len() { Ok(value) } else { Err(SexpError::Unexpected(reader.at)) }
    }
}

/// Bytes that end a bare atom.
fn is_special(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, b'(' | b')' | b'"' | b';')
}

fn print_atom(bytes: &[u8], out: &mut String) {
    let bare = |b: &u8| b.is_ascii_graphic() && !is_special(*b) && !matches!(b, b'\\' | b'#' | b'|');
    if !bytes.is_empty() && bytes.iter().all(bare) {
        out.extend(bytes.iter().map(|b| char::from(*b)));
        return;
    }
    out.push('"');
    for byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend(['\\', char::from(*byte)]),
            b'\n' => out.push_str("\\n"),
            b'\r' => out.push_str("\\r"),
            b'\t' => out.push_str("\\t"),
            0x08 => out.push_str("\\b"),
            b' '..=b'~' => out.push(char::from(*byte)),
            other => {
                // Infallible for a string.
                let _ = write!(out, "\\{other:03}");
            }
        }
    }
    out.push('"');
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Result<u8, SexpError> {
        let byte = self.peek().ok_or(SexpError::Unfinished)?;
        self.at += 1;
        Ok(byte)
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(|b| b.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<Sexp, SexpError> {
        if depth > MAX_DEPTH {
            return Err(SexpError::TooDeep);
        }
        self.skip_blanks();
        match self.peek().ok_or(SexpError::Unfinished)? {
            b'(' => {
                self.at += 1;
                self.list(depth)
            }
            b'"' => {
                self.at += 1;
                self.quoted()
            }
            b')' | b';' => Err(SexpError::Unexpected(self.at)),
            _ => {
                let start = self.at;
                while self.peek().is_some_and(|b| !is_special(b)) {
                    self.at += 1;
                }
                Ok(Sexp::atom(&self.text[start..self.at]))
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Sexp, SexpError> {
        let mut items = Vec::new();
        loop {
            self.skip_blanks();
            if self.peek() == Some(b')') {
                self.at += 1;
                return Ok(Sexp::List(items));
            }
            items.push(self.value(depth + 1)?);
        }
    }

    fn quoted(&mut self) -> Result<Sexp, SexpError> {
        let mut atom = Vec::new();
        loop {
            match self.next()? {
                b'"' => return Ok(Sexp::Atom(atom)),
                b'\\' => self.escape(&mut atom)?,
                byte => atom.push(byte),
            }
        }
    }

    /// OCaml's: a letter, three decimal digits, `x` and two hexadecimal ones, or a line break to be left out.
    fn escape(&mut self, atom: &mut Vec<u8>) -> Result<(), SexpError> {
        let at = self.at;
        match self.next()? {
            b'n' => atom.push(b'\n'),
            b'r' => atom.push(b'\r'),
            b't' => atom.push(b'\t'),
            b'b' => atom.push(0x08),
            b'x' => atom.push(self.number(2, 16).ok_or(SexpError::Unexpected(at))?),
            b'0'..=b'9' => {
                self.at = at;
                atom.push(self.number(3, 10).ok_or(SexpError::Unexpected(at))?);
            }
            b'\n' => {
                while matches!(self.peek(), Some(b' ' | b'\t')) {
                    self.at += 1;
                }
            }
            byte @ (b'\\' | b'"' | b'\'' | b' ') => atom.push(byte),
            byte => atom.extend([b'\\', byte]),
        }
        Ok(())
    }

    fn number(&mut self, digits: usize, radix: u32) -> Option<u8> {
        let text = self.text.get(self.at..self.at + digits)?;
        self.at += digits;
        let digit = |b: &u8| char::from(*b).to_digit(radix);
        let number = text.iter().try_fold(0, |number, b| Some(number * radix + digit(b)?))?;
        u8::try_from(number).ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_model_writes_is_read() {
        let text =
            br#"((time 20240131T10:20:30Z)(word_size 64)(vm_str "((id x) (name \"a b\"))")(xs_subtree ())
            (later (1 2)))"#;
        let sexp = Sexp::parse(text).unwrap();
        assert_eq!(sexp.get("word_size").and_then(Sexp::as_str), Some("64"));
        assert_eq!(sexp.get("xs_subtree"), Some(&Sexp::List(Vec::new())));
        let vm = Sexp::parse(sexp.get("vm_str").and_then(Sexp::as_str).unwrap().as_bytes()).unwrap();
        assert_eq!(vm.get("name").and_then(Sexp::as_str), Some("a b"));
        assert_eq!(sexp.get("missing"), None);
    }

    #[test]
    fn escapes_are_ocamls() {
        let parse = |text: &str| Sexp::parse(text.as_bytes()).unwrap();
        assert_eq!(parse(r#""\065\x42\n\\\"\b\q""#), Sexp::atom(*b"AB\n\\\"\x08\\q"));
        assert_eq!(parse("\"a\\\n   b\""), Sexp::atom("ab"));
        assert_eq!(Sexp::atom(*b"\xff(").print(), r#""\255(""#);
        assert_eq!(Sexp::atom("").print(), r#""""#);
    }

    #[test]
    fn what_is_no_sexp_says_where() {
        for (text, error) in [
            ("", SexpError::Unfinished),
            ("(a", SexpError::Unfinished),
            ("\"a", SexpError::Unfinished),
            (")", SexpError::Unexpected(0)),
            ("a b", SexpError::Unexpected(2)),
            (r#""\999""#, SexpError::Unexpected(2)),
            (r#""\x4""#, SexpError::Unexpected(2)),
        ] {
            assert_eq!(Sexp::parse(text.as_bytes()), Err(error), "{text}");
        }
        assert_eq!(Sexp::parse("(".repeat(100_000).as_bytes()), Err(SexpError::TooDeep));
    }

    fn any_sexp() -> impl Strategy<Value = Sexp> {
        let atom = any::<Vec<u8>>().prop_map(Sexp::Atom);
        atom.prop_recursive(4, 64, 8, |inner| prop::collection::vec(inner, 0..8).prop_map(Sexp::List))
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(sexp in any_sexp()) {
            prop_assert_eq!(Sexp::parse(sexp.print().as_bytes()), Ok(sexp));
        }

        #[test]
        fn any_bytes_are_a_sexp_or_an_error(bytes: Vec<u8>) {
            let _ = Sexp::parse(&bytes);
        }
    }
}
