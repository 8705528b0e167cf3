//! A scripted stand-in for xenstored: says what a test wants to hear, right or wrong.
#![allow(dead_code, reason = "each test program uses its own part")]

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;
use tempfile::TempDir;
use xenstore::wire::{Decoder, Frame, Header, Kind, Payload};
use xenstore::{Client, Endpoint, Path, TxId};

/// What the stand-in does after a request.
pub(crate) enum Act {
    /// Answers with the request's own header and this payload.
    Reply(Vec<u8>),
    /// Refuses with this errno.
    Refuse(&'static str),
    /// Sends these bytes.
    Raw(Vec<u8>),
    /// Sends these bytes one at a time, so that the reader sees every cut.
    Drip(Vec<u8>),
    /// Closes the connection.
    Close,
    /// Nothing.
    Ignore,
}

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The how-manieth connection, from zero.
    pub(crate) connection: usize,
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
}

impl Seen {
    /// The payload with its NULs as bars.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).replace('\0', "|")
    }

    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.header.kind == kind
    }
}

/// The stand-in, listening on a socket of its own until dropped.
pub(crate) struct Fake {
    directory: TempDir,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
    seen: Receiver<Seen>,
}

impl Fake {
    /// Serves one connection after the other. `script` is asked after each request.
    pub(crate) fn start(script: impl FnMut(&Seen) -> Vec<Act> + Send + 'static) -> Self {
        Self::start_after(|_| (), script)
    }

    /// The same, with something to be done to each connection first.
    pub(crate) fn start_after(
        mut greet: impl FnMut(&mut UnixStream) + Send + 'static,
        mut script: impl FnMut(&Seen) -> Vec<Act> + Send + 'static,
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let (tell, seen) = channel();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let thread = std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                if !shared.begin(&stream) {
                    return;
                }
                greet(&mut stream);
                serve(&mut stream, connection, &mut |request| {
                    let _ = tell.send(request.clone());
                    script(request)
                });
            }
        });
        Self { directory, state, thread: Some(thread), seen }
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::Socket(self.directory.path().join("socket"))
    }

    pub(crate) fn client(&self) -> Client {
        let mut client = Client::connect_to(self.endpoint()).unwrap();
        client.set_timeout(Duration::from_secs(20));
        client
    }

    /// Requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.try_iter().collect()
    }

    /// Waits for the next request.
    pub(crate) fn next(&self) -> Seen {
        self.seen.recv_timeout(Duration::from_secs(20)).expect("the client sends a request")
    }
}

/// What the serving thread and the owner share: whether to stop, and the connection that is being served.
#[derive(Default)]
struct State(Mutex<(bool, Option<UnixStream>)>);

impl State {
    /// Whether the connection is to be served.
    fn begin(&self, stream: &UnixStream) -> bool {
        let mut state = self.0.lock().unwrap();
        state.1 = Some(stream.try_clone().unwrap());
        !state.0
    }

    /// Lets the thread finish what it is saying and hear no more.
    fn stop(&self) {
        let mut state = self.0.lock().unwrap();
        state.0 = true;
        if let Some(stream) = state.1.take() {
            let _ = stream.shutdown(Shutdown::Read);
        }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.state.stop();
        // Ends the wait for a connection.
        let _ = UnixStream::connect(self.directory.path().join("socket"));
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            if !std::thread::panicking() {
                result.unwrap();
            }
        }
    }
}

/// Serves until either side has had enough.
fn serve(stream: &mut UnixStream, connection: usize, script: &mut impl FnMut(&Seen) -> Vec<Act>) {
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        let n = match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let mut input = &buffer[..n];
        while let Some(Frame { header, payload }) = decoder.next(&mut input).unwrap() {
            let Payload::Whole(payload) = payload else { panic!("a request over the limit was sent") };
            for act in script(&Seen { connection, header, payload }) {
                if !perform(stream, header, act) {
                    return;
                }
            }
        }
    }
}

/// Whether the connection goes on.
fn perform(stream: &mut UnixStream, header: Header, act: Act) -> bool {
    let bytes = match act {
        Act::Reply(payload) => message(header, &payload),
        Act::Refuse(errno) => {
            message(Header { kind: Kind::Error, ..header }, format!("{errno}\0").as_bytes())
        }
        Act::Raw(bytes) => bytes,
        Act::Drip(bytes) => return bytes.iter().all(|byte| stream.write_all(&[*byte]).is_ok()),
        Act::Close => {
            // The state holds another descriptor of it.
            let _ = stream.shutdown(Shutdown::Both);
            return false;
        }
        Act::Ignore => return true,
    };
    stream.write_all(&bytes).is_ok()
}

pub(crate) fn message(header: Header, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    header.append_message(payload, &mut out);
    out
}

pub(crate) fn event(path: &str, token: &[u8]) -> Vec<u8> {
    let header = Header { kind: Kind::WatchEvent, req_id: 0, tx_id: TxId::NONE };
    message(header, &[path.as_bytes(), b"\0", token, b"\0"].concat())
}

/// What a daemon that agrees to everything says.
pub(crate) fn agree(request: &Seen) -> Vec<Act> {
    vec![Act::Reply(match request.header.kind {
        Kind::TransactionStart => b"7\0".to_vec(),
        _ => b"OK\0".to_vec(),
    })]
}

pub(crate) fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}
