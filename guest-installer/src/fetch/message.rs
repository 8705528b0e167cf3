//! What the two processes say to each other: one message each, of text in fixed places.
//!
//! What comes from the worker may be anything.

use super::{Error, HEAD_BYTES, Target, url::is_host};
use crate::error::printable;

/// Longest message.
pub(super) const BYTES: usize = HEAD_BYTES;

/// What a worker says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FromWorker {
    /// It has locked itself in.
    Ready,
    /// It wants a connection.
    Connect(Target),
    /// So many bytes are there, of so many.
    Progress(u64, Option<u64>),
    /// It has come to its end.
    Done(Result<(), Error>),
}

impl FromWorker {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Ready => "ready".to_owned(),
            Self::Connect(Target { host, port, privileged }) => {
                format!("connect {host} {port} {}", u8::from(*privileged))
            }
            Self::Progress(done, total) => {
                format!("progress {done} {}", total.map_or_else(|| "-".to_owned(), |n| n.to_string()))
            }
            Self::Done(Ok(())) => "done".to_owned(),
            Self::Done(Err(error)) => encode_error(error),
        }
        .into_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        let words: Vec<&str> = rest.split(' ').collect();
        match (kind, words.as_slice()) {
            ("ready", [""]) => Some(Self::Ready),
            ("connect", [host, port, privileged]) => Some(Self::Connect(Target {
                host: is_host(host).then(|| (*host).to_owned())?,
                port: port.parse().ok().filter(|&port| port > 0)?,
                privileged: *privileged == "1",
            })),
            ("progress", [done, total]) => {
                let total = if *total == "-" { None } else { Some(total.parse().ok()?) };
                Some(Self::Progress(done.parse().ok()?, total))
            }
            ("done", [""]) => Some(Self::Done(Ok(()))),
            _ => decode_error(kind, rest).map(|error| Self::Done(Err(error))),
        }
    }
}

fn encode_error(error: &Error) -> String {
    match error {
        Error::NotFound => "missing".to_owned(),
        Error::TooLarge(limit) => format!("large {limit}"),
        Error::Broken(why) => format!("broken {}", printable(why)),
        Error::Refused(why) => format!("refused {}", printable(why)),
        Error::Cancelled => "cancelled".to_owned(),
    }
}

fn decode_error(kind: &str, rest: &str) -> Option<Error> {
    Some(match kind {
        "missing" => Error::NotFound,
        "large" => Error::TooLarge(rest.parse().ok()?),
        "broken" => Error::Broken(printable(rest)),
        "refused" => Error::Refused(printable(rest)),
        "cancelled" => Error::Cancelled,
        _ => return None,
    })
}

/// What a worker is told: a job first, then an answer to each wish for a connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ToWorker {
    /// Get this, of at most so many bytes, through that.
    Job { address: String, limit: u64, proxy: Option<String> },
    /// The connection comes with the message.
    Connected,
    /// There is none.
    Failed(Error),
}

impl ToWorker {
    pub(super) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Job { address, limit, proxy } => {
                format!("job {limit} {address} {}", proxy.as_deref().unwrap_or("-"))
            }
            Self::Connected => "connected".to_owned(),
            Self::Failed(error) => encode_error(error),
        }
        .into_bytes()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        match (kind, rest.split(' ').collect::<Vec<_>>().as_slice()) {
            ("job", [limit, address, proxy]) => Some(Self::Job {
                address: (*address).to_owned(),
                limit: limit.parse().ok()?,
                proxy: (*proxy != "-").then(|| (*proxy).to_owned()),
            }),
            ("connected", [""]) => Some(Self::Connected),
            _ => decode_error(kind, rest).map(Self::Failed),
        }
    }
}

/// Whatever a worker says that was taken over, what is understood of it means the same when it is said again, names a host
/// that can be looked up, and is one printable line; for fuzzing.
pub fn fuzz(bytes: &[u8]) {
    match FromWorker::decode(bytes) {
        Some(FromWorker::Connect(target)) => {
            assert!(is_host(&target.host) && target.port > 0);
            let said = FromWorker::Connect(target);
            assert_eq!(FromWorker::decode(&said.encode()), Some(said));
        }
        Some(FromWorker::Done(Err(error))) => assert!(!error.to_string().contains(char::is_control)),
        Some(said) => assert_eq!(FromWorker::decode(&said.encode()), Some(said)),
        None => {}
    }
    if let Some(said @ ToWorker::Job { .. }) = ToWorker::decode(bytes) {
        assert_eq!(ToWorker::decode(&said.encode()), Some(said));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let target = Target { host: "::1".to_owned(), port: 80, privileged: true };
        for said in [
            FromWorker::Ready,
            FromWorker::Connect(target),
            FromWorker::Progress(5, Some(10)),
            FromWorker::Progress(5, None),
            FromWorker::Done(Ok(())),
            FromWorker::Done(Err(Error::NotFound)),
            FromWorker::Done(Err(Error::TooLarge(7))),
            FromWorker::Done(Err(Error::Broken("a b".to_owned()))),
            FromWorker::Done(Err(Error::Cancelled)),
        ] {
            assert_eq!(FromWorker::decode(&said.encode()), Some(said));
        }
        for proxy in [None, Some("http://p:1/".to_owned())] {
            let said = ToWorker::Job { address: "http://h/".to_owned(), limit: 5, proxy };
            assert_eq!(ToWorker::decode(&said.encode()), Some(said));
        }
        let said = ToWorker::Failed(Error::Refused("no route".to_owned()));
        assert_eq!(ToWorker::decode(&said.encode()), Some(said));
    }

    #[test]
    fn a_worker_that_was_taken_over_can_say_nothing_else() {
        for bytes in [
            b"".as_slice(),
            b"connect",
            b"connect h 0 0",
            b"connect h 99999 0",
            b"connect a/b 80 0",
            b"connect a\nb 80 0",
            b"connect h 80 0 x",
            b"progress x -",
            b"ready now",
            b"\xff",
            b"job",
        ] {
            assert_eq!(FromWorker::decode(bytes), None, "{}", bytes.escape_ascii());
        }
        let Some(FromWorker::Done(Err(error))) = FromWorker::decode(b"refused a\nb\x1b[2J") else { panic!() };
        assert!(!error.to_string().contains(['\n', '\x1b']));
    }
}
