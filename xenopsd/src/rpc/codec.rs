//! The two encodings of a message body.

use super::json_rpc::{self, EnvelopeError};
use super::xml::XmlError;
use super::xml_rpc;
use crate::api::value::{Text, Value};
use crate::api::{Call, Error};

/// How bodies on a socket are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// XML-RPC: what management layers speak on the socket.
    Xml,
    /// JSON-RPC, version 1 shape: what they speak through the message switch.
    Json,
}

/// A body that could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not XML-RPC.
    #[error(transparent)]
    Xml(#[from] XmlError),
    /// Not JSON-RPC.
    #[error(transparent)]
    Json(#[from] EnvelopeError),
}

impl Codec {
    /// Decodes a request into method name and parameters.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn decode_request(self, body: &[u8]) -> Result<(Text, Vec<Value>), CodecError> {
        match self {
            Self::Xml => Ok(xml_rpc::decode_request(body)?),
            Self::Json => Ok(json_rpc::decode_request(body)?),
        }
    }

    /// Decodes a request into a call. A request that is none, names no method of the contract or has arguments
    /// that do not fit yields the error to answer with, an `Internal_error` that says what is wrong.
    ///
    /// # Errors
    /// The error to answer with.
    pub fn decode_call(self, body: &[u8]) -> Result<Call, Error> {
        let (method, params) = self.decode_request(body).map_err(Error::internal)?;
        Call::decode(&method.to_string(), &params).map_err(Error::from)
    }

    /// Encodes a request with one parameter.
    pub fn encode_request(self, method: &str, params: Value, id: i64) -> Vec<u8> {
        match self {
            Self::Xml => xml_rpc::encode_request(method, &params),
            Self::Json => json_rpc::encode_request(method, params, id),
        }
    }

    /// Encodes a reply from a result or an encoded error.
    pub fn encode_reply(self, outcome: Result<Value, Value>) -> Vec<u8> {
        match self {
            Self::Xml => xml_rpc::encode_reply(outcome),
            Self::Json => json_rpc::encode_reply(outcome),
        }
    }

    /// Decodes a reply into result or encoded error.
    ///
    /// # Errors
    /// [`CodecError`].
    pub fn decode_reply(self, body: &[u8]) -> Result<Result<Value, Value>, CodecError> {
        match self {
            Self::Xml => Ok(xml_rpc::decode_reply(body)?),
            Self::Json => Ok(json_rpc::decode_reply(body)?),
        }
    }

    /// The media type of its bodies.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Xml => "text/xml",
            Self::Json => "application/json",
        }
    }
}
