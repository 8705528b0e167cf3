//! The value tree every message of the contract is made of, and the conversions between it and typed records.
//!
//! ```text
//!   bytes  <-- rpc::json / rpc::xml -->  Value  <-- ToValue / FromValue -->  Vm, Vbd, Task, ...
//! ```
//!
//! Bounds on depth and size are the codecs' business: a `Value` built here is as deep as its builder made it.

use std::fmt;

use super::decode::{DecodeError, parse_float, parse_integer};

/// The contract's `int`: 63 bits wide on the wire (bit 62 is the sign), the width of the reference
/// implementation's native integer. Decoding a number outside that range wraps, as the reference does.
/// `i64` is the contract's `int64` and `i32` its `int32`, which wrap at their own width.
pub type Int = isize;

/// Width in bits of [`Int`] on the wire.
pub(crate) const INT_BITS: u32 = 63;

/// A string of the wire: bytes that are usually, but not necessarily, UTF-8.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text(Vec<u8>);

impl Text {
    /// The bytes as they were on the wire, after unescaping.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text, if it is UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// Takes the bytes out.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl From<Vec<u8>> for Text {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl PartialEq<str> for Text {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

/// Bytes that are not UTF-8 show as the replacement character.
impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

/// One value of the wire.
///
/// XML-RPC as spoken here does not mark integers, so a number sent by an XML client arrives as a `String`;
/// the integer and float decoders accept that.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null` / `<nil/>`: the unit value.
    Null,
    /// A truth value.
    Bool(bool),
    /// An integer.
    Int(i64),
    /// A float, possibly infinite or not a number.
    Float(f64),
    /// A string.
    String(Text),
    /// An ordered list, a tuple, or a variant with its payload.
    Array(Vec<Value>),
    /// A record or a dictionary: ordered, and keys may repeat.
    Dict(Vec<(Text, Value)>),
}

impl Value {
    /// A string value.
    pub fn string(text: impl Into<Text>) -> Self {
        Self::String(text.into())
    }

    /// The first member of a dictionary whose key is exactly `key`.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Dict(members) => members.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }
}

/// What a type is called in the contract's own notation, e.g. `list<tuple<Vm.t,Vm.state>>`.
pub trait WireType {
    /// The type expression.
    fn type_expr() -> String;
}

/// Encoding into a [`Value`].
pub trait ToValue {
    /// The value on its own: list item, tuple member, variant payload, result.
    fn to_value(&self) -> Value;

    /// The value as a record field or a named argument. `None` means the key is left out, which is how an
    /// option says "none" in these places (everywhere else it is an empty array).
    fn to_field(&self) -> Option<Value> {
        Some(self.to_value())
    }
}

/// Decoding from a [`Value`].
pub trait FromValue: Sized {
    /// The value on its own: list item, tuple member, variant payload, result.
    ///
    /// # Errors
    /// Says what was expected and what was found.
    fn from_value(value: &Value) -> Result<Self, DecodeError>;

    /// The value as a present record field or named argument (an option is not wrapped here).
    ///
    /// # Errors
    /// As [`FromValue::from_value`].
    fn from_field(value: &Value) -> Result<Self, DecodeError> {
        Self::from_value(value)
    }

    /// What an absent field or argument means, if it may be absent at all.
    fn absent() -> Option<Self> {
        None
    }
}

macro_rules! integer {
    ($ty:ty, $name:literal, $bits:expr, $wrap:expr) => {
        impl WireType for $ty {
            fn type_expr() -> String {
                $name.to_owned()
            }
        }

        impl FromValue for $ty {
            fn from_value(value: &Value) -> Result<Self, DecodeError> {
                let wide = match value {
                    Value::Int(number) => Some(*number),
                    Value::String(text) => text.as_str().and_then(|text| parse_integer(text, $bits)),
                    _ => None,
                };
                wide.map($wrap).ok_or_else(|| DecodeError::expected($name, value))
            }
        }
    };
}

integer!(i64, "int64", 64, |wide: i64| wide);
integer!(i32, "int32", 32, |wide: i64| {
    let bytes = wide.to_le_bytes();
    i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
});
// The shift drops bit 63 and extends bit 62, which is what the reference's native integer does.
integer!(Int, "int", INT_BITS, |wide: i64| {
    let wrapped = (wide << (64 - INT_BITS)) >> (64 - INT_BITS);
    Self::try_from(wrapped).unwrap_or(if wrapped < 0 { Self::MIN } else { Self::MAX })
});

impl ToValue for i64 {
    fn to_value(&self) -> Value {
        Value::Int(*self)
    }
}

impl ToValue for i32 {
    fn to_value(&self) -> Value {
        Value::Int(i64::from(*self))
    }
}

impl ToValue for Int {
    fn to_value(&self) -> Value {
        Value::Int(i64::try_from(*self).unwrap_or(if *self < 0 { i64::MIN } else { i64::MAX }))
    }
}

impl WireType for f64 {
    fn type_expr() -> String {
        "float".to_owned()
    }
}

impl ToValue for f64 {
    fn to_value(&self) -> Value {
        Value::Float(*self)
    }
}

impl FromValue for f64 {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let number = match value {
            Value::Float(number) => Some(*number),
            // The nearest double, as a numeric string of the same digits would give.
            #[expect(clippy::cast_precision_loss, reason = "the contract's own int-to-float rule")]
            Value::Int(number) => Some(*number as Self),
            Value::String(text) => text.as_str().and_then(parse_float),
            _ => None,
        };
        number.ok_or_else(|| DecodeError::expected("float", value))
    }
}

impl WireType for bool {
    fn type_expr() -> String {
        "bool".to_owned()
    }
}

impl ToValue for bool {
    fn to_value(&self) -> Value {
        Value::Bool(*self)
    }
}

impl FromValue for bool {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        match value {
            Value::Bool(truth) => Ok(*truth),
            _ => Err(DecodeError::expected("bool", value)),
        }
    }
}

impl WireType for String {
    fn type_expr() -> String {
        "string".to_owned()
    }
}

impl ToValue for String {
    fn to_value(&self) -> Value {
        Value::string(self.as_str())
    }
}

impl FromValue for String {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        match value {
            Value::String(text) => {
                text.as_str().map(str::to_owned).ok_or_else(|| DecodeError::not_utf8(value))
            }
            _ => Err(DecodeError::expected("string", value)),
        }
    }
}

impl WireType for () {
    fn type_expr() -> String {
        "unit".to_owned()
    }
}

impl ToValue for () {
    fn to_value(&self) -> Value {
        Value::Null
    }
}

impl FromValue for () {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        match value {
            Value::Null => Ok(()),
            _ => Err(DecodeError::expected("unit", value)),
        }
    }
}

/// A value of no fixed type (a task's result and its failure) passes through as it is.
impl WireType for Value {
    fn type_expr() -> String {
        "abstract:Rpc.t".to_owned()
    }
}

impl ToValue for Value {
    fn to_value(&self) -> Value {
        self.clone()
    }
}

impl FromValue for Value {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        Ok(value.clone())
    }
}

impl<T: WireType> WireType for Option<T> {
    fn type_expr() -> String {
        format!("option<{}>", T::type_expr())
    }
}

impl<T: ToValue> ToValue for Option<T> {
    fn to_value(&self) -> Value {
        Value::Array(self.iter().map(ToValue::to_value).collect())
    }

    fn to_field(&self) -> Option<Value> {
        self.as_ref().map(ToValue::to_value)
    }
}

impl<T: FromValue> FromValue for Option<T> {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        match value {
            Value::Array(items) => match items.as_slice() {
                [] => Ok(None),
                [item] => T::from_value(item).map(Some),
                _ => Err(DecodeError::expected("option", value)),
            },
            _ => Err(DecodeError::expected("option", value)),
        }
    }

    fn from_field(value: &Value) -> Result<Self, DecodeError> {
        T::from_value(value).map(Some)
    }

    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl<T: WireType> WireType for Vec<T> {
    fn type_expr() -> String {
        format!("list<{}>", T::type_expr())
    }
}

impl<T: ToValue> ToValue for Vec<T> {
    fn to_value(&self) -> Value {
        Value::Array(self.iter().map(ToValue::to_value).collect())
    }
}

impl<T: FromValue> FromValue for Vec<T> {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        match value {
            Value::Array(items) => items.iter().map(T::from_value).collect(),
            _ => Err(DecodeError::expected("list", value)),
        }
    }
}

macro_rules! tuple {
    ($($item:ident $index:tt),+) => {
        impl<$($item: WireType),+> WireType for ($($item,)+) {
            fn type_expr() -> String {
                format!("tuple<{}>", [$($item::type_expr()),+].join(","))
            }
        }

        impl<$($item: ToValue),+> ToValue for ($($item,)+) {
            fn to_value(&self) -> Value {
                Value::Array(vec![$(self.$index.to_value()),+])
            }
        }

        impl<$($item: FromValue),+> FromValue for ($($item,)+) {
            fn from_value(value: &Value) -> Result<Self, DecodeError> {
                let items = DecodeError::tuple_items(value, [$($index),+].len())?;
                Ok(($($item::from_value(&items[$index])?,)+))
            }
        }
    };
}

tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);

/// A dictionary of the contract: string keys, order kept, keys may repeat.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Dict<T>(pub Vec<(String, T)>);

impl<T> Dict<T> {
    /// An empty dictionary.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The first value under `key`.
    pub fn get(&self, key: &str) -> Option<&T> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// Sets `key`, replacing its first value if it has one.
    pub fn insert(&mut self, key: impl Into<String>, value: T) {
        let key = key.into();
        match self.0.iter_mut().find(|(name, _)| *name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key, value)),
        }
    }

    /// The members in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Whether there are no members.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl<T> Default for Dict<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Into<String>, T> FromIterator<(K, T)> for Dict<T> {
    fn from_iter<I: IntoIterator<Item = (K, T)>>(members: I) -> Self {
        Self(members.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

impl<T> IntoIterator for Dict<T> {
    type Item = (String, T);
    type IntoIter = std::vec::IntoIter<(String, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl<T: WireType> WireType for Dict<T> {
    fn type_expr() -> String {
        format!("dict<{}>", T::type_expr())
    }
}

impl<T: ToValue> ToValue for Dict<T> {
    fn to_value(&self) -> Value {
        Value::Dict(self.0.iter().map(|(key, value)| (Text::from(key.as_str()), value.to_value())).collect())
    }
}

impl<T: FromValue> FromValue for Dict<T> {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let Value::Dict(members) = value else { return Err(DecodeError::expected("dict", value)) };
        members
            .iter()
            .map(|(key, item)| {
                let name = key.as_str().ok_or_else(|| DecodeError::not_utf8(value))?;
                Ok((name.to_owned(), T::from_value(item)?))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}
