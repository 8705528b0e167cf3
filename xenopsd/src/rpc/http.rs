//! HTTP/1.1 framing: request heads and bodies on the server's side, replies on the client's.
//!
//! | request                                          | answer on the XML socket  | on the JSON socket |
//! |--------------------------------------------------|---------------------------|--------------------|
//! | POST with content-length, any path, 1.0 or 1.1   | 200, then close           | the same           |
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
//! last three rows. One request is served per connection; what follows it is not looked at.

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
            Ok(Some(Asked::Call(Head { length, body })))
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
    /// Takes bytes in. Bytes after a complete request are dropped.
    ///
    /// # Errors
    /// [`Refusal`] as soon as it is clear that the request will not be served.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Progress, Refusal> {
        let missing = match self.head {
            None => bytes.len(),
            Some(head) => (head.length + head.body).saturating_sub(self.bytes.len()).min(bytes.len()),
        };
        self.bytes.extend_from_slice(&bytes[..missing]);
        if self.head.is_none() && self.console.is_none() {
            match request_head(&self.bytes)? {
                None => {}
                Some(Asked::Call(head)) => {
                    self.bytes.truncate(head.length + head.body);
                    self.head = Some(head);
                }
                Some(Asked::Console(console)) => self.console = Some(console),
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

/// Frames a reply. `agent` goes into the `user-agent` header, where the reference names itself in replies too.
pub fn frame_reply(codec: Codec, agent: &str, body: &[u8]) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nuser-agent: {agent}\r\n", body.len());
    if codec == Codec::Json {
        out.push_str("content-type: application/json\r\nconnection: close\r\n");
    }
    out.push_str("\r\n");
    let mut out = out.into_bytes();
    out.extend_from_slice(body);
    out
}

/// Frames a request.
pub fn frame_request(codec: Codec, path: &str, agent: &str, body: &[u8]) -> Vec<u8> {
    // A path or name with blanks or line ends in it would be another request; servers do not look at either.
    let clean = |text: &str| -> String { text.chars().filter(char::is_ascii_graphic).collect() };
    let mut out = format!(
        "POST {} HTTP/1.1\r\ncontent-length: {}\r\nhost: localhost\r\nuser-agent: {}\r\ncontent-type: {}\r\n\r\n",
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
    /// Length of the head, and of the body unless it ends with the connection.
    head: Option<(usize, Option<usize>)>,
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
        Ok(matches!(self.head, Some((head, Some(body))) if self.bytes.len() >= head + body))
    }

    /// The body of a reply that is complete, or that ended with its connection.
    ///
    /// # Errors
    /// [`ReplyError::Truncated`].
    pub fn into_body(mut self) -> Result<Vec<u8>, ReplyError> {
        let (head, body) = self.head.ok_or(ReplyError::Truncated)?;
        let end = body.map_or(self.bytes.len(), |body| head + body);
        if self.bytes.len() < end {
            return Err(ReplyError::Truncated);
        }
        self.bytes.truncate(end);
        Ok(self.bytes.split_off(head))
    }
}

fn reply_head(bytes: &[u8]) -> Result<Option<(usize, Option<usize>)>, ReplyError> {
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
            let Some(value) = header(response.headers, "content-length") else {
                return Ok(Some((length, None)));
            };
            let digits = value.trim_ascii();
            let body = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<usize>().ok());
            match body {
                Some(body) if body > REPLY_MAX => Err(ReplyError::TooLarge),
                Some(body) => Ok(Some((length, Some(body)))),
                None => Err(ReplyError::Malformed),
            }
        }
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_MAX => Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => Err(ReplyError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        BODY_MAX, HEAD_MAX, Progress, Refusal, Reply, ReplyError, Request, frame_reply, frame_request,
    };
    use crate::rpc::Codec;
    use proptest::prelude::*;

    fn feed(text: &str) -> Result<Progress, Refusal> {
        Request::default().feed(text.as_bytes())
    }

    #[test]
    fn heads() {
        for (text, expected) in [
            ("", Ok(Progress::Head)),
            ("POST / HTTP/1.1\r\ncontent-le", Ok(Progress::Head)),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", Ok(Progress::Body(3))),
            ("POST /any HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc", Ok(Progress::Complete)),
            ("POST / HTTP/1.1\ncontent-length: 0\n\n", Ok(Progress::Complete)),
            ("POST / HTTP/1.1\r\ncontent-length: 0\r\nexpect: 100-continue\r\n\r\n", Ok(Progress::Complete)),
            ("POST / HTTP/1.1\r\n\r\n", Err(Refusal::NoLength)),
            ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", Err(Refusal::TransferEncoding)),
            ("GET / HTTP/1.1\r\ncontent-length: 3\r\n\r\n", Err(Refusal::NotPost)),
            ("hello\r\n\r\n", Err(Refusal::Malformed)),
            ("\0\0\0\0", Err(Refusal::Malformed)),
            ("POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", Err(Refusal::Malformed)),
            ("POST / HTTP/1.1\r\ncontent-length: +1\r\n\r\n", Err(Refusal::Malformed)),
            ("POST / HTTP/1.1\r\ncontent-length: \r\n\r\n", Err(Refusal::Malformed)),
            (
                "POST / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n",
                Err(Refusal::BodyTooLarge),
            ),
        ] {
            assert_eq!(feed(text), expected, "{text:?}");
        }
        let long = format!("POST / HTTP/1.1\r\nx: {}", "x".repeat(HEAD_MAX));
        assert_eq!(feed(&long), Err(Refusal::HeadTooLarge));
        let many = format!("POST / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100));
        assert_eq!(feed(&many), Err(Refusal::HeadTooLarge));
        let large = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n", BODY_MAX + 1);
        assert_eq!(feed(&large), Err(Refusal::BodyTooLarge));
    }

    #[test]
    fn a_request_may_come_byte_by_byte_and_have_a_tail() {
        let mut request = Request::default();
        let text = frame_request(Codec::Xml, "/a b\r\nx: y", "agent", b"hello");
        for (index, byte) in text.iter().enumerate() {
            let progress = request.feed(&[*byte]).expect("fits");
            assert_eq!(progress == Progress::Complete, index + 1 == text.len());
        }
        assert_eq!(request.feed(b"POST"), Ok(Progress::Complete));
        assert_eq!(request.body(), b"hello");
        let mut request = Request::default();
        let both = [text.clone(), text].concat();
        assert_eq!(request.feed(&both), Ok(Progress::Complete));
        assert_eq!(request.body(), b"hello");
    }

    #[test]
    fn the_xml_socket_is_silent_where_the_reference_is() {
        for refusal in [Refusal::Malformed, Refusal::NoLength, Refusal::TransferEncoding] {
            assert_eq!(refusal.answer(Codec::Xml), None);
            assert!(refusal.answer(Codec::Json).is_some());
        }
        let not_found = Refusal::NotPost.answer(Codec::Xml).unwrap_or_default();
        assert!(not_found.starts_with(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n"));
    }

    #[test]
    fn replies() {
        let body = |text: &[u8]| {
            let mut reply = Reply::default();
            reply.feed(text).and_then(|_| reply.into_body())
        };
        let framed = frame_reply(Codec::Xml, "xenopsd", b"hello");
        assert_eq!(framed, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nuser-agent: xenopsd\r\n\r\nhello");
        assert_eq!(body(&framed), Ok(b"hello".to_vec()));
        assert_eq!(body(b"HTTP/1.0 200 OK\n\nhello"), Ok(b"hello".to_vec()));
        assert_eq!(body(&framed[..framed.len() - 1]), Err(ReplyError::Truncated));
        assert_eq!(body(b""), Err(ReplyError::Truncated));
        assert_eq!(body(b"HTTP/1.1 404 Not Found\r\n\r\n"), Err(ReplyError::Status(404)));
        assert_eq!(body(b"hello"), Err(ReplyError::Malformed));
        assert_eq!(
            body(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"),
            Err(ReplyError::TooLarge)
        );
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_body(body in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..400) {
            let text = frame_request(Codec::Json, "/", "a", &body);
            let (first, second) = text.split_at(cut.min(text.len()));
            let mut request = Request::default();
            let _ = request.feed(first);
            prop_assert_eq!(request.feed(second), Ok(Progress::Complete));
            prop_assert_eq!(request.body(), &body[..]);
        }

        #[test]
        fn never_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..5)) {
            let mut request = Request::default();
            let mut reply = Reply::default();
            for chunk in &chunks {
                let _ = request.feed(chunk);
                let _ = reply.feed(chunk);
            }
            let _ = (request.body().len(), reply.into_body());
        }
    }
}
