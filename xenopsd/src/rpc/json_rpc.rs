//! JSON-RPC envelopes: requests in version 1 and 2 shape, replies in version 1 shape with `"id":0`.
//!
//! That is how the reference implementation answers whatever it was asked, and its clients do not check the id. A
//! version 2 reply would have to put an error of the contract into an object with a code and a message, which
//! they cannot read.

use super::json::{self, JsonError};
use crate::api::value::{Text, Value};

/// A body that is not a JSON-RPC request or reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It is not JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// It is JSON of another shape.
    #[error("JSON-RPC: {0}")]
    Shape(&'static str),
}

/// Decodes a request into method name and parameters.
///
/// # Errors
/// [`EnvelopeError`] for a body that is not JSON, or not a request.
pub fn decode_request(body: &[u8]) -> Result<(Text, Vec<Value>), EnvelopeError> {
    let Value::Dict(members) = json::parse(body)? else {
        return Err(EnvelopeError::Shape("a request must be an object"));
    };
    let mut envelope = Envelope(members);
    let version2 = match envelope.take("jsonrpc") {
        None => false,
        Some(Value::String(version)) if version == "2.0" => true,
        Some(_) => return Err(EnvelopeError::Shape("\"jsonrpc\" must be \"2.0\" if it is there")),
    };
    let Some(Value::String(method)) = envelope.take("method") else {
        return Err(EnvelopeError::Shape("a request needs a string \"method\""));
    };
    let params = match (envelope.take("params"), version2) {
        (Some(Value::Array(params)), _) => params,
        (Some(params @ Value::Dict(_)), true) => vec![params],
        (None | Some(Value::Null), true) => Vec::new(),
        (_, true) => return Err(EnvelopeError::Shape("\"params\" must be an object or an array")),
        (_, false) => return Err(EnvelopeError::Shape("a request needs an array \"params\"")),
    };
    match envelope.take("id") {
        Some(Value::Int(_) | Value::String(_)) => Ok((method, params)),
        _ => Err(EnvelopeError::Shape("a request needs an integer or string \"id\"")),
    }
}

/// Encodes a request in version 1 shape.
pub fn encode_request(method: &str, params: Value, id: i64) -> Vec<u8> {
    json::print(&Value::Dict(vec![
        (Text::from("method"), Value::string(method)),
        (Text::from("params"), Value::Array(vec![params])),
        (Text::from("id"), Value::Int(id)),
    ]))
}

/// Encodes a reply.
pub fn encode_reply(outcome: Result<Value, Value>) -> Vec<u8> {
    let (result, error) = match outcome {
        Ok(result) => (result, Value::Null),
        Err(error) => (Value::Null, error),
    };
    json::print(&Value::Dict(vec![
        (Text::from("result"), result),
        (Text::from("error"), error),
        (Text::from("id"), Value::Int(0)),
    ]))
}

/// Decodes a reply of either version into result or error.
///
/// # Errors
/// [`EnvelopeError`] for a body that is not JSON, or not a reply.
pub fn decode_reply(body: &[u8]) -> Result<Result<Value, Value>, EnvelopeError> {
    let Value::Dict(members) = json::parse(body)? else {
        return Err(EnvelopeError::Shape("a reply must be an object"));
    };
    let mut envelope = Envelope(members);
    let version2 = envelope.take("jsonrpc").is_some();
    match (envelope.take("result"), envelope.take("error"), version2) {
        (Some(result), Some(Value::Null), _) | (Some(result), None, true) => Ok(Ok(result)),
        (Some(Value::Null), Some(error), _) | (None, Some(error), true) => Ok(Err(error)),
        (Some(_), Some(_), _) => Err(EnvelopeError::Shape("a reply has either a result or an error")),
        _ => Err(EnvelopeError::Shape("a reply needs \"result\" and \"error\"")),
    }
}

struct Envelope(Vec<(Text, Value)>);

impl Envelope {
    /// The first member of that exact name.
    fn take(&mut self, key: &str) -> Option<Value> {
        let member = self.0.iter_mut().find(|(name, _)| name == key)?;
        Some(std::mem::replace(&mut member.1, Value::Null))
    }
}

#[cfg(test)]
mod tests {
    use super::{decode_reply, decode_request, encode_reply, encode_request};
    use crate::api::value::Value;
    use proptest::prelude::*;

    #[test]
    fn replies_are_version_1() {
        assert_eq!(encode_reply(Ok(Value::Int(5))), br#"{"result":5,"error":null,"id":0}"#);
        assert_eq!(encode_reply(Err(Value::string("e"))), br#"{"result":null,"error":"e","id":0}"#);
    }

    #[test]
    fn version_2_replies_are_understood() {
        assert_eq!(decode_reply(br#"{"jsonrpc":"2.0","result":5,"id":0}"#), Ok(Ok(Value::Int(5))));
        assert_eq!(decode_reply(br#"{"jsonrpc":"2.0","error":5,"id":0}"#), Ok(Err(Value::Int(5))));
        assert!(decode_reply(br#"{"result":5,"id":0}"#).is_err());
        assert!(decode_reply(br#"{"result":5,"error":6,"id":0}"#).is_err());
    }

    proptest! {
        #[test]
        fn round_trips(value in crate::rpc::json::tests::any_value(), method in "\\PC*", id in any::<i64>()) {
            let (name, params) = decode_request(&encode_request(&method, value.clone(), id))?;
            prop_assert_eq!(name.as_str(), Some(method.as_str()));
            prop_assert_eq!(params, vec![value.clone()]);
            prop_assert_eq!(decode_reply(&encode_reply(Ok(value.clone())))?, Ok(value));
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_request(&bytes);
            let _ = decode_reply(&bytes);
        }
    }
}
