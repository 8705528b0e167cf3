//! Bytes straight onto the daemon's socket: what no well-behaved client sends.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use xenopsd::rpc::Codec;

use crate::dom0::{Dom0, LIMIT};

/// Longest reply a test looks at.
const REPLY_MAX: u64 = 1 << 20;

/// What came back.
#[derive(Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// After the head.
    pub body: String,
}

impl Dom0 {
    /// Sends a request's body in an otherwise faultless HTTP request.
    #[track_caller]
    pub fn post(&self, codec: Codec, body: &str) -> Option<Reply> {
        let head = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        self.exchange(codec, format!("{head}{body}").as_bytes())
    }

    /// Sends bytes and reads until the daemon closes; none when it does so without a word.
    #[track_caller]
    pub fn exchange(&self, codec: Codec, bytes: &[u8]) -> Option<Reply> {
        let mut stream = self.connect(codec);
        // The daemon may refuse and close before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut reply = Vec::new();
        let read = stream.take(REPLY_MAX).read_to_end(&mut reply);
        if reply.is_empty() {
            // A reset is what a close before everything was read looks like.
            assert!(
                !matches!(&read, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock),
                "neither reply nor close"
            );
            return None;
        }
        let text = String::from_utf8_lossy(&reply).into_owned();
        let status =
            text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).and_then(|code| code.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no HTTP reply: {text:?}"));
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Some(Reply { status, body })
    }

    /// A connection to the daemon.
    #[track_caller]
    pub fn connect(&self, codec: Codec) -> UnixStream {
        let stream = UnixStream::connect(self.socket(codec)).expect("connects");
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        stream.set_write_timeout(Some(LIMIT)).expect("a limit");
        stream
    }
}
