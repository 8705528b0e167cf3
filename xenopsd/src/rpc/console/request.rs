//! The head of a request for a console.

use crate::rpc::http::{Refusal, header};

/// Path of consoles, as the management layer has it.
const PATH: &str = "/console";

/// Longest name of a VM: a uuid has 36 characters.
const MAX_NAME: usize = 64;

/// A WebSocket's key is 16 bytes in base64 (RFC 6455, 4.1).
const KEY_LENGTH: usize = 24;

/// A client wants a VM's screen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleRequest {
    /// Bytes of the request; what follows is for the screen.
    pub length: usize,
    /// The VM's id.
    pub vm: String,
    /// As a WebSocket rather than as it is.
    pub websocket: Option<WebSocketOffer>,
}

/// What a WebSocket's answer depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocketOffer {
    /// Its key.
    pub key: String,
    /// Whether it asks for the subprotocol `binary`, as older noVNC does.
    pub binary: bool,
}

/// Makes out what a complete head of a request other than POST asks for.
///
/// # Errors
/// [`Refusal`].
pub fn console_request(
    request: &httparse::Request<'_, '_>,
    length: usize,
) -> Result<ConsoleRequest, Refusal> {
    let websocket = match request.method {
        Some("CONNECT") => false,
        Some("GET") => true,
        _ => return Err(Refusal::NotPost),
    };
    let (path, query) = request.path.unwrap_or_default().split_once('?').ok_or(Refusal::NotPost)?;
    if path != PATH {
        return Err(Refusal::NotPost);
    }
    let vm =
        query.split('&').find_map(|pair| pair.strip_prefix("ref=").or_else(|| pair.strip_prefix("uuid=")));
    let vm = vm.filter(|vm| is_name(vm)).ok_or(Refusal::Console)?.to_owned();
    let websocket = if websocket { Some(offer(request.headers)?) } else { None };
    Ok(ConsoleRequest { length, vm, websocket })
}

/// Names of VMs are uuids: nothing in them is ever written another way.
fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn offer(headers: &[httparse::Header<'_>]) -> Result<WebSocketOffer, Refusal> {
    let value = |name| header(headers, name).and_then(|value| std::str::from_utf8(value).ok()).map(str::trim);
    let lists = |name, word: &str| {
        value(name).is_some_and(|list| list.split(',').any(|item| item.trim().eq_ignore_ascii_case(word)))
    };
    let is_websocket = lists("upgrade", "websocket") && lists("connection", "upgrade");
    if !is_websocket || value("sec-websocket-version") != Some("13") {
        return Err(Refusal::Console);
    }
    let is_key = |key: &&str| {
        key.len() == KEY_LENGTH
            && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte))
    };
    let key = value("sec-websocket-key").filter(is_key).ok_or(Refusal::Console)?;
    Ok(WebSocketOffer { key: key.to_owned(), binary: lists("sec-websocket-protocol", "binary") })
}
