//! XML-RPC envelopes.
//!
//! A reply is a struct with `Status` and either `Value` or `ErrorDescription`. A `<fault>` is understood in replies
//! and never sent.

use super::xml::{Document, Problem, XmlError, escape, transcode, write_value};
use crate::api::value::{Text, Value};

const DECLARATION: &[u8] = b"<?xml version=\"1.0\"?>";

/// Decodes a request into method name and parameters. What follows the root element is not looked at.
///
/// # Errors
/// [`XmlError`] with the place of the first thing that does not fit.
pub fn decode_request(body: &[u8]) -> Result<(Text, Vec<Value>), XmlError> {
    let text = transcode(body)?;
    let mut document = Document::new(&text);
    document.open("methodCall")?;
    document.open("methodName")?;
    let method = document.text()?;
    let params = params(&mut document)?;
    document.close()?;
    Ok((Text::from(method), params))
}

fn params(document: &mut Document<'_>) -> Result<Vec<Value>, XmlError> {
    let mut params = Vec::new();
    document.open("params")?;
    while !document.closes()? {
        document.open("param")?;
        params.push(document.value(0)?);
        document.close()?;
    }
    Ok(params)
}

/// Encodes a request with one parameter.
pub fn encode_request(method: &str, params: &Value) -> Vec<u8> {
    let mut out = DECLARATION.to_vec();
    out.extend_from_slice(b"<methodCall><methodName>");
    escape(method.as_bytes(), &mut out);
    out.extend_from_slice(b"</methodName><params><param>");
    write_value(params, &mut out);
    out.extend_from_slice(b"</param></params></methodCall>");
    out
}

/// Encodes a reply.
pub fn encode_reply(outcome: Result<Value, Value>) -> Vec<u8> {
    let (status, name, value) = match outcome {
        Ok(value) => ("Success", "Value", value),
        Err(error) => ("Failure", "ErrorDescription", error),
    };
    let mut out = DECLARATION.to_vec();
    out.extend_from_slice(b"<methodResponse><params><param>");
    write_value(
        &Value::Dict(vec![(Text::from("Status"), Value::string(status)), (Text::from(name), value)]),
        &mut out,
    );
    out.extend_from_slice(b"</param></params></methodResponse>");
    out
}

/// Decodes a reply into result or error. A struct without `Status`, or any other value, is a bare result.
///
/// # Errors
/// [`XmlError`] with the place of the first thing that does not fit.
pub fn decode_reply(body: &[u8]) -> Result<Result<Value, Value>, XmlError> {
    let text = transcode(body)?;
    let mut document = Document::new(&text);
    document.open("methodResponse")?;
    if document.opens("fault")? {
        return document.value(0).map(Err);
    }
    let mut params = params(&mut document)?;
    let value = match params.len() {
        1 => params.remove(0),
        count => {
            let found = format!("{count} parameters");
            return Err(XmlError {
                problem: Problem::Unexpected { expected: "one parameter".to_owned(), found },
                offset: 0,
            });
        }
    };
    let status = value.get("Status").cloned();
    Ok(match (status, value.get("Value"), value.get("ErrorDescription")) {
        (Some(Value::String(status)), Some(result), _) if status == "Success" => Ok(result.clone()),
        (Some(Value::String(status)), _, Some(error)) if status == "Failure" => Err(error.clone()),
        _ => Ok(value),
    })
}

#[cfg(test)]
mod tests {
    use super::{decode_reply, decode_request, encode_reply, encode_request};
    use crate::api::value::Value;
    use proptest::prelude::*;

    #[test]
    fn envelopes() {
        assert_eq!(
            String::from_utf8(encode_request("a<b", &Value::Null)).as_deref(),
            Ok("<?xml version=\"1.0\"?><methodCall><methodName>a&lt;b</methodName><params><param>\
                <value><nil/></value></param></params></methodCall>")
        );
        let fault = b"<methodResponse><fault><value>f</value></fault></methodResponse>";
        assert_eq!(decode_reply(fault), Ok(Err(Value::string("f"))));
        let bare = b"<methodResponse><params><param><value>f</value></param></params></methodResponse>";
        assert_eq!(decode_reply(bare), Ok(Ok(Value::string("f"))));
        assert!(decode_reply(b"<methodResponse><params/></methodResponse>").is_err());
        assert!(decode_request(b"<methodCall><methodName>m</methodName></methodCall>").is_err());
        let nothing = decode_request(b"<methodCall><methodName> m</methodName><params/></methodCall>\n");
        assert_eq!(nothing, Ok((" m".into(), vec![])));
    }

    proptest! {
        #[test]
        fn round_trips(method in "[a-zA-Z._<>&\"]*", text in "[ -~]*") {
            let value = Value::string(text);
            let (name, params) = decode_request(&encode_request(&method, &value))?;
            prop_assert_eq!(name.as_str(), Some(method.as_str()));
            prop_assert_eq!(&params, &vec![value.clone()]);
            prop_assert_eq!(decode_reply(&encode_reply(Ok(value.clone())))?, Ok(value.clone()));
            prop_assert_eq!(decode_reply(&encode_reply(Err(value.clone())))?, Err(value));
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_request(&bytes);
            let _ = decode_reply(&bytes);
        }
    }
}
