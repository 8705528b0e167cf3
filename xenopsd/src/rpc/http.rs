//! HTTP/1.1 framing: request heads and bodies on the server's side, replies on the client's.
//!
//! | request                                          | answer on the XML socket  | on the JSON socket |
//! |--------------------------------------------------|---------------------------|--------------------|
//! | POST with content-length, any path, 1.0 or 1.1   | 200, then close           | the same           |
//! | the same with `connection: keep-alive`           | 200 that says so, too     | the same           |
//! | POST without content-length                      | close without a byte      | 411                |
//! | POST with a transfer-encoding                    | close without a byte      | 501                |
//! | CONNECT or WebSocket to `/console?ref=VM`        | the VM's screen           | the same           |
//! | the same, malformed                              | 400                       | 400                |
//! | any other method or path                         | 404, empty                | 404, empty         |
//! | not HTTP                                         | close without a byte      | 400                |
//! | head larger than [`HEAD_MAX`]                    | 431                       | 431                |
//! | body larger than [`BODY_MAX`]                    | 413                       | 413                |
//! | too much under way at once                       | 503                       | 503                |
//!
//! The XML column is what the reference implementation does; it has no bounds and therefore no answers for the
//! last three rows. Without `keep-alive` one request is served per connection, and what follows it is not looked at, as
//! there; it closes whatever is asked for, and says nothing of it. With it, requests are answered one after the other in
//! their order: the next is not looked at before the reply to the one before it has left. So they may be written at once.
//! What follows a refusal, or a reply that does not say `keep-alive`, is never served.

use super::codec::Codec;
use super::console::{ConsoleRequest, console_request};

/// Longest request or reply head accepted, in bytes. Clients send about 120.
pub const HEAD_MAX: usize = 16 * 1024;

/// Longest request body accepted, in bytes. The largest requests carry one VM with all its devices, some ten KiB;
/// this leaves room for hundreds of disks with long keys.
pub const BODY_MAX: usize = 32 * 1024 * 1024;

/// Longest reply a client accepts, in bytes: a list of ten thousand VMs in XML takes about a quarter of it.
pub const REPLY_MAX: usize = 256 * 1024 * 1024;

/// Header lines looked at in one head.
const HEADERS_MAX: usize = 64;

/// Why a request is turned away before its body is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not HTTP.
    #[error("the request is not HTTP")]
    Malformed,
    /// Not a POST.
    #[error("the request is not a POST")]
    NotPost,
    /// For a console, and without its name or a WebSocket's headers.
    #[error("the request for a console is not as RFC 6455 or /console?ref=VM have it")]
    Console,
    /// No content-length.
    #[error("the request has no content-length")]
    NoLength,
    /// A transfer-encoding, which is not supported.
    #[error("the request has a transfer-encoding")]
    TransferEncoding,
    /// Head larger than [`HEAD_MAX`].
    #[error("the request's head is larger than {HEAD_MAX} bytes")]
    HeadTooLarge,
    /// Body larger than [`BODY_MAX`].
    #[error("the request's body is larger than {BODY_MAX} bytes")]
    BodyTooLarge,
    /// Too many bytes of requests are under way at once.
    #[error("too many bytes of requests are under way")]
    Busy,
}

impl Refusal {
    /// The answer to send before closing; none means to close without a byte.
    pub fn answer(self, codec: Codec) -> Option<Vec<u8>> {
        let status = match (self, codec) {
            (Self::NotPost, _) => "404 Not Found",
            (Self::Malformed, Codec::Json) | (Self::Console, _) => "400 Bad Request",
            (Self::HeadTooLarge, _) => "431 Request Header Fields Too Large",
            (Self::BodyTooLarge, _) => "413 Content Too Large",
            (Self::Busy, _) => "503 Service Unavailable",
            (_, Codec::Xml) => return None,
            (Self::NoLength, Codec::Json) => "411 Length Required",
            (Self::TransferEncoding, Codec::Json) => "501 Not Implemented",
        };
        Some(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").into_bytes())
    }
}

/// What a request's head asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// A call of the contract, in the body.
    Call(Head),
    /// A VM's screen.
    Console(ConsoleRequest),
}

/// How a request's head ends and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Bytes of the head with its empty line.
    pub length: usize,
    /// Bytes of the body.
    pub body: usize,
    /// The connection is to stay for another request.
    pub keep: bool,
}

/// Looks for a complete head at the start of `bytes`; `None` means that more are needed.
///
/// # Errors
/// [`Refusal`] as soon as it is clear that the request will not be served.
pub fn request_head(bytes: &[u8]) -> Result<Option<Asked>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let window = &bytes[..bytes.len().min(HEAD_MAX)];
    match request.parse(window) {
        Ok(httparse::Status::Complete(length)) => {
            if request.method != Some("POST") {
                return console_request(&request, length).map(|console| Some(Asked::Console(console)));
            }
            if header(request.headers, "transfer-encoding").is_some() {
                return Err(Refusal::TransferEncoding);
            }
            let value = header(request.headers, "content-length").ok_or(Refusal::NoLength)?;
            let body = content_length(value)?;
            Ok(Some(Asked::Call(Head { length, body, keep: keeps(request.headers) })))
        }
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_MAX => Err(Refusal::HeadTooLarge),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(Refusal::HeadTooLarge),
        Err(_) => Err(Refusal::Malformed),
    }
}

pub(super) fn header<'a>(headers: &[httparse::Header<'a>], name: &str) -> Option<&'a [u8]> {
    headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
}

/// Whether the sender wants the connection to stay: `keep-alive` somewhere, and `close` nowhere.
fn keeps(headers: &[httparse::Header<'_>]) -> bool {
    let lines = headers.iter().filter(|header| header.name.eq_ignore_ascii_case("connection"));
    let words = || lines.clone().flat_map(|header| header.value.split(|byte| *byte == b','));
    let says = |what: &[u8]| words().any(|word| word.trim_ascii().eq_ignore_ascii_case(what));
    says(b"keep-alive") && !says(b"close")
}

/// A length in decimal digits; one that does not fit any integer is merely too large.
fn content_length(value: &[u8]) -> Result<usize, Refusal> {
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Malformed);
    }
    let length = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
    length.filter(|length| *length <= BODY_MAX).ok_or(Refusal::BodyTooLarge)
}

/// A request as far as it has arrived.
#[derive(Debug, Default)]
pub struct Request {
    bytes: Vec<u8>,
    head: Option<Head>,
    console: Option<ConsoleRequest>,
    /// What came with its last bytes and belongs to the next one.
    rest: Vec<u8>,
}

/// What a request needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// More of its head.
    Head,
    /// More of its body, which is this long in all.
    Body(usize),
    /// Nothing: it is complete.
    Complete,
    /// Nothing: it is for a console, and what follows is for its screen.
    Console,
}

impl Request {
    /// Takes bytes in. Bytes after a complete request are dropped, unless it [keeps](Self::keeps) the connection.
    ///
    /// # Errors
    /// [`Refusal`] as soon as it is clear that the request will not be served.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Progress, Refusal> {
        self.bytes.extend_from_slice(bytes);
        if self.head.is_none() && self.console.is_none() {
            match request_head(&self.bytes)? {
                None => {}
                Some(Asked::Call(head)) => self.head = Some(head),
                Some(Asked::Console(console)) => self.console = Some(console),
            }
        }
        if let Some(head) = self.head
            && self.bytes.len() > head.length + head.body
        {
            let beyond = self.bytes.split_off(head.length + head.body);
            if head.keep {
                self.rest.extend_from_slice(&beyond);
            }
        }
        if self.console.is_some() {
            return Ok(Progress::Console);
        }
        Ok(match self.head {
            None => Progress::Head,
            Some(head) if self.bytes.len() < head.length + head.body => Progress::Body(head.body),
            Some(_) => Progress::Complete,
        })
    }

    /// The body, once the request is complete.
    pub fn body(&self) -> &[u8] {
        self.head.and_then(|head| self.bytes.get(head.length..)).unwrap_or_default()
    }

    /// Whether the connection is to stay after its reply.
    pub fn keeps(&self) -> bool {
        self.head.is_some_and(|head| head.keep)
    }

    /// What came behind it, with its last bytes, of a connection that is kept.
    pub fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.rest)
    }

    /// The console that it is for, and what has arrived for its screen.
    pub fn into_console(mut self) -> Option<(ConsoleRequest, Vec<u8>)> {
        let console = self.console?;
        let first = self.bytes.split_off(console.length.min(self.bytes.len()));
        Some((console, first))
    }

    /// Whether anything has arrived.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

/// Frames a reply. `agent` goes into the `user-agent` header, where the reference names itself in replies too; `keep`
/// says that the connection stays.
pub fn frame_reply(codec: Codec, agent: &str, keep: bool, body: &[u8]) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nuser-agent: {agent}\r\n", body.len());
    if codec == Codec::Json {
        out.push_str("content-type: application/json\r\n");
    }
    out.push_str(match (keep, codec) {
        (true, _) => "connection: keep-alive\r\n\r\n",
        (false, Codec::Json) => "connection: close\r\n\r\n",
        // The reference says nothing, and closes.
        (false, Codec::Xml) => "\r\n",
    });
    let mut out = out.into_bytes();
    out.extend_from_slice(body);
    out
}

/// Frames a request whose reply is the last on its connection.
pub fn frame_request(codec: Codec, path: &str, agent: &str, body: &[u8]) -> Vec<u8> {
    frame(codec, path, agent, "", body)
}

/// Frames a request after which the connection is to stay.
pub fn frame_kept_request(codec: Codec, path: &str, agent: &str, body: &[u8]) -> Vec<u8> {
    frame(codec, path, agent, "connection: keep-alive\r\n", body)
}

fn frame(codec: Codec, path: &str, agent: &str, more: &str, body: &[u8]) -> Vec<u8> {
    // A path or name with blanks or line ends in it would be another request; servers do not look at either.
    let clean = |text: &str| -> String { text.chars().filter(char::is_ascii_graphic).collect() };
    let mut out = format!(
        "POST {} HTTP/1.1\r\ncontent-length: {}\r\nhost: localhost\r\nuser-agent: {}\r\ncontent-type: {}\r\n{more}\r\n",
        clean(path),
        body.len(),
        clean(agent),
        codec.content_type()
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// Frames a request on a connection that is to be kept, as clients of the message switch do.
pub(crate) fn frame_keep_alive(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    let mut out = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: xenopsd\r\ncontent-length: {}\r\n\
         connection: keep-alive\r\n\r\n",
        body.len()
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// Why a reply is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Not HTTP, or of a kind the server never sends.
    #[error("the reply is not HTTP as expected here")]
    Malformed,
    /// Another status than 200.
    #[error("the server answered with HTTP status {0}")]
    Status(u16),
    /// The connection ended before the reply did.
    #[error("the server closed the connection before its reply was complete")]
    Truncated,
    /// The reply is larger than [`REPLY_MAX`].
    #[error("the reply is larger than {REPLY_MAX} bytes")]
    TooLarge,
}

/// A reply as far as it has arrived.
#[derive(Debug, Default)]
pub struct Reply {
    bytes: Vec<u8>,
    head: Option<ReplyHead>,
}

#[derive(Debug, Clone, Copy)]
struct ReplyHead {
    /// Bytes of the head with its empty line.
    length: usize,
    /// Bytes of the body, unless it ends with the connection.
    body: Option<usize>,
    /// The server keeps the connection.
    keep: bool,
}

impl ReplyHead {
    /// Where the reply ends, if it does before its connection.
    fn end(self) -> Option<usize> {
        self.body.map(|body| self.length + body)
    }
}

impl Reply {
    /// Takes bytes in; true once the reply is complete.
    ///
    /// # Errors
    /// [`ReplyError`].
    pub fn feed(&mut self, bytes: &[u8]) -> Result<bool, ReplyError> {
        if self.bytes.len() + bytes.len() > HEAD_MAX + REPLY_MAX {
            return Err(ReplyError::TooLarge);
        }
        self.bytes.extend_from_slice(bytes);
        if self.head.is_none() {
            self.head = reply_head(&self.bytes)?;
        }
        Ok(self.head.and_then(ReplyHead::end).is_some_and(|end| self.bytes.len() >= end))
    }

    /// Whether anything of it has arrived.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether the server keeps the connection after it.
    pub fn keeps(&self) -> bool {
        self.head.is_some_and(|head| head.keep && head.body.is_some())
    }

    /// The body of a reply that is complete, or that ended with its connection.
    ///
    /// # Errors
    /// [`ReplyError::Truncated`].
    pub fn into_body(self) -> Result<Vec<u8>, ReplyError> {
        self.into_parts().map(|(body, _)| body)
    }

    /// Its body likewise, and what has arrived behind it.
    ///
    /// # Errors
    /// [`ReplyError::Truncated`].
    pub fn into_parts(mut self) -> Result<(Vec<u8>, Vec<u8>), ReplyError> {
        let head = self.head.ok_or(ReplyError::Truncated)?;
        let end = head.end().unwrap_or(self.bytes.len());
        if self.bytes.len() < end {
            return Err(ReplyError::Truncated);
        }
        let behind = self.bytes.split_off(end);
        Ok((self.bytes.split_off(head.length), behind))
    }
}

fn reply_head(bytes: &[u8]) -> Result<Option<ReplyHead>, ReplyError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(&bytes[..bytes.len().min(HEAD_MAX)]) {
        Ok(httparse::Status::Complete(length)) => {
            match response.code {
                Some(200) => {}
                Some(status) => return Err(ReplyError::Status(status)),
                None => return Err(ReplyError::Malformed),
            }
            if header(response.headers, "transfer-encoding").is_some() {
                return Err(ReplyError::Malformed);
            }
            let keep = keeps(response.headers);
            let Some(value) = header(response.headers, "content-length") else {
                return Ok(Some(ReplyHead { length, body: None, keep }));
            };
            let digits = value.trim_ascii();
            let body = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<usize>().ok());
            match body {
                Some(body) if body > REPLY_MAX => Err(ReplyError::TooLarge),
                Some(body) => Ok(Some(ReplyHead { length, body: Some(body), keep })),
                None => Err(ReplyError::Malformed),
            }
        }
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => Err(ReplyError::Malformed),
    }
}

#[cfg(test)]
mod tests;
