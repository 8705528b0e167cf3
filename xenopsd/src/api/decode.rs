//! Why a value could not be decoded, and the lookups the record and argument decoders share.
//!
//! Where the reference implementation's text is known it is kept word for word, because it travels inside
//! `Internal_error` to callers that log it; what follows in parentheses is ours.

use super::value::{FromValue, Text, ToValue, Value};

/// Longest rendering of an offending value inside an error text, in bytes: enough to recognise it, too little to
/// make a reply as large as a hostile request.
const SHOWN_VALUE_MAX: usize = 200;

/// A value that does not fit the type it was read as.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The value has another shape.
    #[error("Expected {what}, got '{got}'")]
    Expected {
        /// The type that was wanted.
        what: &'static str,
        /// The value, abbreviated.
        got: String,
    },
    /// A string that the contract's typed records hold as text is not UTF-8.
    #[error("Expected a UTF-8 string, got '{got}'")]
    NotUtf8 {
        /// The value, abbreviated, with replacement characters.
        got: String,
    },
    /// A tuple was wanted and something else than an array came.
    #[error("Expecting Rpc.Enum when unmarshalling a tuple")]
    NotATuple,
    /// A tuple has the wrong number of members.
    #[error("Expecting a tuple of {expected} members, got {got}")]
    TupleLength {
        /// Members the type has.
        expected: usize,
        /// Members that came.
        got: usize,
    },
    /// A record was wanted and something else than a dictionary came.
    #[error("Expecting Rpc.Dict when unmarshalling a '{record}', got '{got}'")]
    NotARecord {
        /// The record type.
        record: &'static str,
        /// The value, abbreviated.
        got: String,
    },
    /// A field that has no default is absent.
    #[error("No value found for key: '{field}' when unmarshalling '{}'", short_name(.record))]
    MissingField {
        /// The absent field.
        field: &'static str,
        /// The record type.
        record: &'static str,
    },
    /// A field is there but does not decode.
    #[error("{source} (in field '{field}' of {record})")]
    Field {
        /// The field.
        field: &'static str,
        /// The record type.
        record: &'static str,
        /// What is wrong with it.
        source: Box<DecodeError>,
    },
    /// Something that is neither a tag nor a pair of a tag and its payload.
    #[error("Expecting a tag or [tag, contents] when unmarshalling a '{variant}', got '{got}'")]
    NotAVariant {
        /// The variant type.
        variant: &'static str,
        /// The value, abbreviated.
        got: String,
    },
    /// A tag the variant does not have.
    #[error("Unknown tag '{tag}' when unmarshalling a '{variant}'")]
    UnknownTag {
        /// The tag.
        tag: String,
        /// The variant type.
        variant: &'static str,
    },
    /// The call has no dictionary of arguments.
    #[error("Marshalling error: Expecting dict as first argument when named parameters exist")]
    NoArguments,
    /// A required argument is absent.
    #[error("Expecting named argument '{0}'")]
    MissingArgument(&'static str),
}

/// The reference names a type in its errors without the module it is in.
fn short_name(wire: &str) -> &str {
    wire.rsplit('.').next().unwrap_or(wire)
}

impl DecodeError {
    pub(crate) fn expected(what: &'static str, value: &Value) -> Self {
        Self::Expected { what, got: show(value) }
    }

    pub(crate) fn not_utf8(value: &Value) -> Self {
        Self::NotUtf8 { got: show(value) }
    }

    /// The members of an array of exactly `length` items.
    pub(crate) fn tuple_items(value: &Value, length: usize) -> Result<&[Value], Self> {
        match value {
            Value::Array(items) if items.len() == length => Ok(items),
            Value::Array(items) => Err(Self::TupleLength { expected: length, got: items.len() }),
            _ => Err(Self::NotATuple),
        }
    }
}

/// The reference's compact rendering of a value (`S(text)`, `I(5)`, `[F(60)]`, `N`), cut at [`SHOWN_VALUE_MAX`].
pub(crate) fn show(value: &Value) -> String {
    let mut out = String::new();
    render(value, &mut out);
    if out.len() > SHOWN_VALUE_MAX {
        let mut end = SHOWN_VALUE_MAX;
        while !out.is_char_boundary(end) {
            end -= 1;
        }
        out.truncate(end);
        out.push_str("...");
    }
    out
}

fn render(value: &Value, out: &mut String) {
    use std::fmt::Write as _;
    // Writing to a String cannot fail; stopping early keeps the work bounded for a huge value.
    if out.len() > SHOWN_VALUE_MAX {
        return;
    }
    match value {
        Value::Null => out.push('N'),
        Value::Bool(truth) => {
            let _ = write!(out, "B({truth})");
        }
        Value::Int(number) => {
            let _ = write!(out, "I({number})");
        }
        Value::Float(number) => {
            let _ = write!(out, "F({number})");
        }
        Value::String(text) => {
            let bytes = text.as_bytes();
            let head = &bytes[..bytes.len().min(SHOWN_VALUE_MAX)];
            let _ = write!(out, "S({})", String::from_utf8_lossy(head));
        }
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().take(SHOWN_VALUE_MAX).enumerate() {
                if index > 0 {
                    out.push(';');
                }
                render(item, out);
            }
            out.push(']');
        }
        Value::Dict(members) => {
            out.push('{');
            for (index, (key, item)) in members.iter().take(SHOWN_VALUE_MAX).enumerate() {
                if index > 0 {
                    out.push(';');
                }
                let bytes = key.as_bytes();
                let head = &bytes[..bytes.len().min(SHOWN_VALUE_MAX)];
                let _ = write!(out, "{}:", String::from_utf8_lossy(head));
                render(item, out);
            }
            out.push('}');
        }
    }
}

/// The fields of one record while it is being decoded.
///
/// The reference reports the failing field that was declared last, so a later failure replaces an earlier one.
pub(crate) struct Fields<'a> {
    record: &'static str,
    members: &'a [(Text, Value)],
    failed: Option<DecodeError>,
}

impl<'a> Fields<'a> {
    pub(crate) fn of(value: &'a Value, record: &'static str) -> Result<Self, DecodeError> {
        match value {
            Value::Dict(members) => Ok(Self { record, members, failed: None }),
            _ => Err(DecodeError::NotARecord { record, got: show(value) }),
        }
    }

    fn find(&self, field: &str) -> Option<&'a Value> {
        self.members
            .iter()
            .find(|(key, _)| key.as_bytes().eq_ignore_ascii_case(field.as_bytes()))
            .map(|(_, value)| value)
    }

    /// A field without default: must be there (unless it is an option) and decode.
    pub(crate) fn required<T: FromValue>(&mut self, field: &'static str) -> Option<T> {
        let record = self.record;
        let outcome = match self.find(field) {
            Some(value) => T::from_field(value).map_err(|source| DecodeError::Field {
                field,
                record,
                source: Box::new(source),
            }),
            None => T::absent().ok_or(DecodeError::MissingField { field, record }),
        };
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed = Some(error);
                None
            }
        }
    }

    /// A field with a default: the default stands in for absence and for anything that does not decode.
    pub(crate) fn or_default<T: FromValue>(&self, field: &str, default: impl FnOnce() -> T) -> T {
        self.find(field).and_then(|value| T::from_field(value).ok()).unwrap_or_else(default)
    }

    /// The failure to report once some required field yielded `None`.
    pub(crate) fn failure(self) -> DecodeError {
        self.failed.unwrap_or(DecodeError::NotARecord { record: self.record, got: String::new() })
    }
}

/// Appends a field to a record under construction, unless it is an absent option.
pub(crate) fn push_member(members: &mut Vec<(Text, Value)>, name: &'static str, field: &impl ToValue) {
    if let Some(value) = field.to_field() {
        members.push((Text::from(name), value));
    }
}

/// Splits a variant value into its tag and payload (`Null` for none).
pub(crate) fn variant_parts<'a>(
    value: &'a Value,
    variant: &'static str,
) -> Result<(&'a Text, &'a Value), DecodeError> {
    match value {
        Value::String(tag) => Ok((tag, &Value::Null)),
        Value::Array(items) => match items.as_slice() {
            [Value::String(tag), contents] => Ok((tag, contents)),
            _ => Err(DecodeError::NotAVariant { variant, got: show(value) }),
        },
        _ => Err(DecodeError::NotAVariant { variant, got: show(value) }),
    }
}

/// A variant value from its tag and payload; a payload that is `Null` disappears, as the contract has it.
pub(crate) fn variant_value(tag: &'static str, contents: Value) -> Value {
    match contents {
        Value::Null => Value::string(tag),
        contents => Value::Array(vec![Value::string(tag), contents]),
    }
}

/// The named arguments of a call: the first parameter, names compared exactly, first of duplicates wins.
pub(crate) struct Arguments<'a>(&'a [(Text, Value)]);

impl<'a> Arguments<'a> {
    pub(crate) fn of(params: &'a [Value]) -> Result<Self, DecodeError> {
        match params.first() {
            Some(Value::Dict(members)) => Ok(Self(members)),
            _ => Err(DecodeError::NoArguments),
        }
    }

    pub(crate) fn get<T: FromValue>(&self, name: &'static str) -> Result<T, DecodeError> {
        match self.0.iter().find(|(key, _)| key == name) {
            Some((_, value)) => T::from_field(value),
            None => T::absent().ok_or(DecodeError::MissingArgument(name)),
        }
    }
}

/// Reads an integer literal the way the reference does for a `bits`-wide integer: optional sign, `0x`/`0o`/`0b`
/// prefixes, `0u` for unsigned decimal, `_` between digits. Prefixed numbers may use all `bits` bits and wrap to
/// negative; plain decimal must fit the signed range.
pub(crate) fn parse_integer(text: &str, bits: u32) -> Option<i64> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, unsigned, digits) = match rest.as_bytes() {
        [b'0', b'x' | b'X', digits @ ..] => (16, true, digits),
        [b'0', b'o' | b'O', digits @ ..] => (8, true, digits),
        [b'0', b'b' | b'B', digits @ ..] => (2, true, digits),
        [b'0', b'u' | b'U', digits @ ..] => (10, true, digits),
        digits => (10, false, digits),
    };
    let mut magnitude: u64 = 0;
    let mut seen = false;
    for &byte in digits {
        if byte == b'_' && seen {
            continue;
        }
        let digit = char::from(byte).to_digit(radix)?;
        magnitude = magnitude.checked_mul(u64::from(radix))?.checked_add(u64::from(digit))?;
        seen = true;
    }
    if !seen {
        return None;
    }
    let limit =
        if unsigned { u64::MAX >> (64 - bits) } else { (u64::MAX >> (65 - bits)) + u64::from(negative) };
    if magnitude > limit {
        return None;
    }
    let value = magnitude.cast_signed();
    let value = if negative { value.wrapping_neg() } else { value };
    // Sign-extend from the top bit of the narrower width.
    Some((value << (64 - bits)) >> (64 - bits))
}

/// Reads a float literal as the reference does: decimal or hexadecimal, `inf`, `nan`, leading blanks and `_`
/// allowed, nothing after it.
pub(crate) fn parse_float(text: &str) -> Option<f64> {
    let text: String = text
        .trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c'])
        .chars()
        .filter(|c| *c != '_')
        .collect();
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(&text)),
    };
    if rest.starts_with(['+', '-']) {
        return None;
    }
    match rest.strip_prefix("0x").or_else(|| rest.strip_prefix("0X")) {
        Some(digits) => hex_float(digits).map(|magnitude| sign * magnitude),
        None => rest.parse::<f64>().ok().map(|magnitude| sign * magnitude),
    }
}

/// `h.hhhp±d` without its `0x`.
fn hex_float(text: &str) -> Option<f64> {
    let (mantissa, exponent) = match text.split_once(['p', 'P']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value = 0.0_f64;
    for c in whole.chars() {
        value = value.mul_add(16.0, f64::from(c.to_digit(16)?));
    }
    let mut scale = 1.0 / 16.0;
    for c in fraction.chars() {
        value += f64::from(c.to_digit(16)?) * scale;
        scale /= 16.0;
    }
    Some(value * 2.0_f64.powi(exponent))
}

#[cfg(test)]
mod tests {
    use super::{parse_float, parse_integer};
    use proptest::prelude::*;

    #[test]
    fn integers_read_as_the_reference_does() {
        let cases: [(&str, u32, Option<i64>); 20] = [
            ("5", 63, Some(5)),
            ("-5", 63, Some(-5)),
            ("+5", 63, Some(5)),
            ("0x10", 63, Some(16)),
            ("-0x10", 63, Some(-16)),
            ("0o17", 63, Some(15)),
            ("0b1", 63, Some(1)),
            ("1_000", 63, Some(1000)),
            ("_1", 63, None),
            (" 5", 63, None),
            ("5.0", 63, None),
            ("", 63, None),
            ("-", 63, None),
            ("0x", 63, None),
            ("4611686018427387903", 63, Some(4_611_686_018_427_387_903)),
            ("4611686018427387904", 63, None),
            ("-4611686018427387904", 63, Some(-4_611_686_018_427_387_904)),
            ("0x7fffffffffffffff", 63, Some(-1)),
            ("0u18446744073709551615", 64, Some(-1)),
            ("4294967295", 32, None),
        ];
        for (text, bits, expected) in cases {
            assert_eq!(parse_integer(text, bits), expected, "{text} in {bits} bits");
        }
        assert_eq!(parse_integer("0xffffffff", 32), Some(-1));
        assert_eq!(parse_integer("-9223372036854775808", 64), Some(i64::MIN));
    }

    #[test]
    fn floats_read_as_the_reference_does() {
        assert_eq!(parse_float(" 5"), Some(5.0));
        assert_eq!(parse_float("1e3"), Some(1000.0));
        assert_eq!(parse_float("-inf"), Some(f64::NEG_INFINITY));
        assert!(parse_float("nan").is_some_and(f64::is_nan));
        assert_eq!(parse_float("0x1p3"), Some(8.0));
        assert_eq!(parse_float("0x1.8p-1"), Some(0.75));
        for bad in ["", "5 ", "x", "--5", "+-5", "0x", "0xp1"] {
            assert_eq!(parse_float(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn decimal_round_trips(number in any::<i64>()) {
            prop_assert_eq!(parse_integer(&number.to_string(), 64), Some(number));
        }

        #[test]
        fn never_panics(text in "\\PC*", bits in prop::sample::select(vec![32_u32, 63, 64])) {
            let _ = parse_integer(&text, bits);
            let _ = parse_float(&text);
        }
    }
}
