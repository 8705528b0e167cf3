//! The head of an answer.

use crate::fetch::{Error, HEAD_BYTES, Result, broken};
use std::io::BufRead;

/// Most header fields.
const FIELDS: usize = 100;

/// Longest validator that is sent back.
const VALIDATOR_BYTES: usize = 256;

/// What matters of a head.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) status: u16,
    /// Bytes of the body, unless it is chunked.
    pub(super) length: Option<u64>,
    pub(super) chunked: bool,
    /// The body is packed.
    pub(super) encoded: bool,
    pub(super) location: Option<String>,
    /// Of a part: where it starts, and how long the whole is.
    pub(super) range: Option<(u64, Option<u64>)>,
    /// An entity tag that is a strong one, or else the time of the last change.
    pub(super) validator: Option<String>,
}

impl Head {
    /// Reads a head. Interim answers (100 and the like) are passed over.
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection ends in it, [`Error::Refused`] for what is none.
    pub(super) fn read(stream: &mut impl BufRead) -> Result<Self> {
        // All heads of an answer together are within the limit.
        let mut left = HEAD_BYTES;
        loop {
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") && !bytes.ends_with(b"\n\n") {
                let line = line(stream, &mut left)?;
                bytes.extend(line);
            }
            let head = Self::parse(&bytes)?;
            if !(100..200).contains(&head.status) {
                return Ok(head);
            }
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(bytes) {
            Ok(httparse::Status::Complete(_)) => {}
            Ok(httparse::Status::Partial) => return Err(Error::refused("the server's answer is no HTTP")),
            Err(error) => {
                return Err(Error::refused(format_args!("the server's answer is no HTTP: {error}")));
            }
        }
        let mut head = Self { status: response.code.unwrap_or(0), ..Self::default() };
        let (mut tag, mut changed) = (None, None);
        for field in response.headers.iter() {
            let text = std::str::from_utf8(field.value).unwrap_or_default().trim();
            let sent_back = || Some(text.to_owned()).filter(|t| t.len() <= VALIDATOR_BYTES && printable(t));
            match field.name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let length = decimal(text).ok_or_else(|| Error::refused("a length that is none"))?;
                    if head.length.is_some_and(|other| other != length) {
                        return Err(Error::refused("two lengths that differ"));
                    }
                    head.length = Some(length);
                }
                "transfer-encoding" if text.eq_ignore_ascii_case("chunked") => head.chunked = true,
                "transfer-encoding" => return Err(Error::refused("a transfer encoding nobody asked for")),
                "content-encoding" => head.encoded = !text.eq_ignore_ascii_case("identity"),
                "location" => head.location = Some(text.to_owned()),
                "content-range" => head.range = range(text),
                "etag" if text.starts_with('"') => tag = sent_back(),
                "last-modified" => changed = sent_back(),
                _ => {}
            }
        }
        if head.chunked {
            head.length = None;
        }
        head.validator = tag.or(changed);
        Ok(head)
    }
}

fn printable(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}

fn decimal(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()))
}

/// `bytes 5-9/10`, or `/*`.
fn range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (from, to) = range.split_once('-')?;
    let (from, to) = (decimal(from)?, decimal(to)?);
    let total = if total == "*" { None } else { Some(decimal(total)?) };
    (from <= to && total.is_none_or(|total| to < total)).then_some((from, total))
}

/// The next line with its end, counted off a limit.
pub(super) fn line(stream: &mut impl BufRead, left: &mut usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        let buffer = stream.fill_buf().map_err(|e| broken(&e))?;
        if buffer.is_empty() {
            return Err(Error::Broken("the server ended the connection".to_owned()));
        }
        let end = buffer.iter().position(|&b| b == b'\n').map(|at| at + 1);
        let taken = end.unwrap_or(buffer.len());
        if taken > *left {
            return Err(Error::refused("the head of the server's answer is too long"));
        }
        *left -= taken;
        bytes.extend_from_slice(&buffer[..taken]);
        stream.consume(taken);
        if end.is_some() {
            return Ok(bytes);
        }
    }
}

/// A head and its body end in the same way wherever the bytes are cut; for fuzzing.
pub fn fuzz(bytes: &[u8]) {
    let outcome = |capacity: usize| {
        let mut stream = std::io::BufReader::with_capacity(capacity, bytes);
        let head = Head::read(&mut stream)?;
        let mut body = Vec::new();
        let read = super::body::each(&mut stream, &head, &mut |part| {
            body.extend_from_slice(part);
            Ok(())
        });
        assert!(body.len() <= bytes.len());
        read.map(|()| (head, body))
    };
    assert_eq!(outcome(1), outcome(8 << 10));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Head> {
        Head::read(&mut text.as_bytes())
    }

    #[test]
    fn what_matters_is_found() {
        let head = parse(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\nETag: \"x\"\r\n\
             Last-Modified: then\r\nContent-Range: bytes 5-9/10\r\n\r\n",
        )
        .unwrap();
        assert_eq!((head.status, head.length, head.range), (206, Some(5), Some((5, Some(10)))));
        assert_eq!(head.validator.as_deref(), Some("\"x\""));
        let weak = parse("HTTP/1.0 200\nETag: W/\"x\"\nLast-Modified: then\n\n").unwrap();
        assert_eq!(weak.validator.as_deref(), Some("then"));
        assert!(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap().chunked);
    }

    #[test]
    fn what_is_no_head_is_refused() {
        for text in [
            "SSH-2.0-OpenSSH\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        ] {
            assert!(matches!(parse(text), Err(Error::Refused(_))), "{text}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(HEAD_BYTES));
        assert!(matches!(parse(&long), Err(Error::Refused(_))));
        let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(HEAD_BYTES / 10);
        assert!(matches!(parse(&endless), Err(Error::Refused(_))));
        assert!(matches!(parse("HTTP/1.1 200 OK\r\n"), Err(Error::Broken(_))));
        for bad in ["bytes 5-4/10", "bytes 5-10/10", "bytes */10", "5-9/10", "bytes 5-9"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
