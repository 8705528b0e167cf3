//! A small message switch: its HTTP protocol on a socket, queues in memory, faults on demand; and a client of it.
//!
//! The frames are taken apart by the same code as in the daemon, which the recorded vectors check. Everything else is
//! independent of it.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use xenopsd::api::{Error, FromValue, Method, Text};
use xenopsd::rpc::Codec;
use xenopsd::rpc::switch::protocol::{
    Command, Kind, Message, MessageId, Transferred, decode_sent, encode_names, encode_sent,
};

use super::PATIENCE;

/// What the switch does instead of answering a transfer.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Says this and closes the connection.
    Bytes(Vec<u8>),
    /// Says nothing until the client has closed.
    Stall,
}

#[derive(Default)]
struct Queue {
    /// The session of a transient queue.
    owner: Option<String>,
    next: i64,
    messages: BTreeMap<i64, Message>,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<String, Queue>,
    /// Connections by session.
    sessions: HashMap<String, usize>,
    streams: HashMap<usize, UnixStream>,
    next_stream: usize,
    stopping: bool,
    faults: VecDeque<Fault>,
    logins: Vec<String>,
}

/// What outlives a switch that keeps its queues on disk.
#[derive(Clone, Default)]
pub(crate) struct Queues {
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Queues {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap()
    }

    /// Waits until the queues are as wanted.
    fn wait(&self, wanted: impl Fn(&State) -> bool) {
        let (state, timeout) =
            self.state.1.wait_timeout_while(self.lock(), PATIENCE, |state| !wanted(state)).unwrap();
        let late = timeout.timed_out();
        drop(state);
        assert!(!late, "the queues do not become what they should");
    }

    /// Waits until a queue is there and holds so many messages.
    pub(crate) fn wait_held(&self, queue: &str, messages: usize) {
        self.wait(|state| state.queues.get(queue).is_some_and(|queue| queue.messages.len() == messages));
    }

    /// Waits until everything in a queue was acknowledged.
    pub(crate) fn wait_empty(&self, queue: &str) {
        self.wait_held(queue, 0);
    }

    /// Waits until all these faults were met.
    pub(crate) fn wait_faults(&self) {
        self.wait(|state| state.faults.is_empty());
    }

    /// What the coming transfers meet, in this order.
    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.extend(faults);
    }

    /// Every token that logged in, in order.
    pub(crate) fn logins(&self) -> Vec<String> {
        self.lock().logins.clone()
    }

    /// Waits until a session has this many connections.
    pub(crate) fn wait_connections(&self, wanted: usize) {
        self.wait(|state| state.sessions.values().any(|connections| *connections == wanted));
    }
}

/// A running switch, stopped when dropped.
pub(crate) struct SwitchServer {
    path: PathBuf,
    queues: Queues,
    listener: UnixListener,
    accepting: Option<JoinHandle<()>>,
}

impl SwitchServer {
    /// Listens on a path; what `queues` hold is there from the start.
    pub(crate) fn start(path: &Path, queues: &Queues) -> Self {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let accepted = listener.try_clone().unwrap();
        queues.lock().stopping = false;
        let serving = queues.clone();
        let accepting = std::thread::spawn(move || {
            let mut threads = Vec::new();
            while let Ok((stream, _)) = accepted.accept() {
                let queues = serving.clone();
                threads.push(std::thread::spawn(move || serve(&queues, stream)));
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
        Self { path: path.to_owned(), queues: queues.clone(), listener, accepting: Some(accepting) }
    }
}

impl Drop for SwitchServer {
    fn drop(&mut self) {
        let mut state = self.queues.lock();
        state.stopping = true;
        state.streams.values().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        drop(state);
        self.queues.state.1.notify_all();
        nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both).unwrap();
        self.accepting.take().unwrap().join().unwrap();
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(queues: &Queues, mut stream: UnixStream) {
    let number = {
        let mut state = queues.lock();
        // One that was still in the listener's queue: nobody would close it.
        if state.stopping {
            return;
        }
        state.next_stream += 1;
        let number = state.next_stream;
        state.streams.insert(number, stream.try_clone().unwrap());
        number
    };
    let mut session = None;
    while let Some((method, path, body)) = read_request(&mut stream) {
        let answer = match (Command::decode(&method, &path, &body), &session) {
            (Err(_), _) => Some((404, b"no such command".to_vec())),
            (Ok(Command::Login(token)), _) => {
                let mut state = queues.lock();
                *state.sessions.entry(token.clone()).or_default() += 1;
                state.logins.push(token.clone());
                session = Some(token);
                Some((200, Vec::new()))
            }
            (Ok(_), None) => Some((404, b"Please log in.".to_vec())),
            (Ok(command), Some(session)) => obey(queues, session, command, &mut stream),
        };
        queues.state.1.notify_all();
        let Some((status, body)) = answer else { break };
        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
        if stream.write_all(&[head.into_bytes(), body].concat()).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    let mut state = queues.lock();
    state.streams.remove(&number);
    if let Some(session) = session {
        let left = state.sessions.entry(session.clone()).or_default();
        *left -= 1;
        if *left == 0 {
            state.sessions.remove(&session);
            state.queues.retain(|_, queue| queue.owner.as_ref() != Some(&session));
        }
    }
    drop(state);
    queues.state.1.notify_all();
}

/// None ends the connection.
fn obey(queues: &Queues, session: &str, command: Command, stream: &mut UnixStream) -> Option<(u16, Vec<u8>)> {
    let create = |name: String, owner: Option<String>| {
        queues.lock().queues.entry(name.clone()).or_insert_with(|| Queue { owner, ..Queue::default() });
        name.into_bytes()
    };
    let body = match command {
        Command::Login(_) => unreachable!(),
        Command::CreatePersistent(name) => create(name, None),
        Command::CreateTransient(name) => create(name, Some(session.to_owned())),
        Command::Destroy(name) => {
            queues.lock().queues.remove(&name);
            Vec::new()
        }
        Command::Send(name, message) => {
            let mut state = queues.lock();
            let id = state.queues.get_mut(&name).map(|queue| {
                queue.messages.insert(queue.next, message);
                queue.next += 1;
                MessageId { queue: name, number: queue.next - 1 }
            });
            encode_sent(id.as_ref())
        }
        Command::Ack(id) => {
            if let Some(queue) = queues.lock().queues.get_mut(&id.queue) {
                queue.messages.remove(&id.number);
            }
            Vec::new()
        }
        Command::List { prefix, .. } => {
            let names: Vec<_> =
                queues.lock().queues.keys().filter(|name| name.starts_with(&prefix)).cloned().collect();
            encode_names(&names)
        }
        Command::Transfer { from, timeout, queues: wanted } => {
            // Clients of tests are not to meet the faults that are meant for the daemon.
            let fault = if session.starts_with("client") { None } else { queues.lock().faults.pop_front() };
            match fault {
                Some(Fault::Bytes(bytes)) => {
                    let _ = stream.write_all(&bytes);
                    return None;
                }
                Some(Fault::Stall) => {
                    queues.state.1.notify_all();
                    let _ = stream.read(&mut [0]);
                    return None;
                }
                None => transfer(queues, from.as_deref(), timeout, &wanted)?.encode(),
            }
        }
    };
    Some((200, body))
}

fn transfer(queues: &Queues, from: Option<&str>, timeout: f64, wanted: &[String]) -> Option<Transferred> {
    let from: i64 = from.map_or(-1, |from| from.parse().unwrap());
    let until = Instant::now() + Duration::from_secs_f64(timeout);
    let mut state = queues.lock();
    loop {
        if state.stopping {
            return None;
        }
        let mut messages = Vec::new();
        for name in wanted {
            for (number, message) in state.queues.get(name).into_iter().flat_map(|q| &q.messages) {
                if *number > from {
                    messages.push((MessageId { queue: name.clone(), number: *number }, message.clone()));
                }
            }
        }
        let left = until.saturating_duration_since(Instant::now());
        if !messages.is_empty() || left.is_zero() {
            let next = messages.iter().map(|(id, _)| id.number).max().unwrap_or(from);
            return Some(Transferred { messages, next: next.to_string() });
        }
        state = queues.state.1.wait_timeout(state, left).unwrap().0;
    }
}

/// Method, path and body; none at the end of the connection.
fn read_request(stream: &mut UnixStream) -> Option<(String, String, Vec<u8>)> {
    let (head, body) = read_message(stream)?;
    let mut words = head.split(' ');
    Some((words.next()?.to_owned(), words.next()?.to_owned(), body))
}

fn read_message(stream: &mut UnixStream) -> Option<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.extend(byte);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).ok()?;
    Some((head, body))
}

/// A management layer as the switch sees it.
pub(crate) struct SwitchClient {
    stream: UnixStream,
    /// Keeps the session, as the second connection of a real client does.
    _second: UnixStream,
    reply_queue: String,
    queue: String,
    from: Option<String>,
    next_id: i64,
    early: HashMap<MessageId, Vec<u8>>,
}

impl SwitchClient {
    /// A client with a name of its own, calling through a queue.
    pub(crate) fn new(switch: &Path, name: &str, queue: &str) -> Self {
        let token = format!("client-{name}");
        let connect = || {
            let mut stream = UnixStream::connect(switch).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            command(&mut stream, &Command::Login(token.clone()));
            stream
        };
        let (mut stream, second) = (connect(), connect());
        let reply_queue = command(&mut stream, &Command::CreateTransient(token.clone()));
        let reply_queue = String::from_utf8(reply_queue).unwrap();
        Self {
            stream,
            _second: second,
            reply_queue,
            queue: queue.to_owned(),
            from: None,
            next_id: 0,
            early: HashMap::new(),
        }
    }

    /// Queues a call, whether or not somebody is there to answer.
    pub(crate) fn send<M: Method>(&mut self, call: &M) -> MessageId {
        self.next_id += 1;
        self.post(&Codec::Json.encode_request(M::NAME, call.to_params(), self.next_id))
    }

    /// Queues any bytes.
    pub(crate) fn post(&mut self, payload: &[u8]) -> MessageId {
        command(&mut self.stream, &Command::CreatePersistent(self.queue.clone()));
        let message = Message { payload: Text::from(payload), kind: Kind::Request(self.reply_queue.clone()) };
        let sent = command(&mut self.stream, &Command::Send(self.queue.clone(), message));
        decode_sent(&sent).unwrap().expect("the queue is there")
    }

    /// Waits for the response to a message; its body.
    pub(crate) fn response(&mut self, to: &MessageId) -> Vec<u8> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(body) = self.early.remove(to) {
                return body;
            }
            assert!(Instant::now() < until, "no response");
            let wait = Command::Transfer {
                from: self.from.clone(),
                timeout: 30.0,
                queues: vec![self.reply_queue.clone()],
            };
            let reply = Transferred::decode(&command(&mut self.stream, &wait)).unwrap();
            self.from = Some(reply.next);
            for (id, message) in reply.messages {
                let Kind::Response(to) = message.kind else { panic!("a request in a reply queue") };
                assert!(self.early.insert(to, message.payload.into_bytes()).is_none(), "answered twice");
                command(&mut self.stream, &Command::Ack(id));
            }
        }
    }

    /// Waits for the result of a method.
    pub(crate) fn result<M: Method>(&mut self, to: &MessageId) -> Result<M::Result, Error> {
        match Codec::Json.decode_reply(&self.response(to)).unwrap() {
            Ok(value) => Ok(M::Result::from_value(&value).unwrap()),
            Err(value) => Err(Error::from_value(&value).unwrap()),
        }
    }

    /// Calls a method.
    pub(crate) fn call<M: Method>(&mut self, call: &M) -> Result<M::Result, Error> {
        let id = self.send(call);
        self.result::<M>(&id)
    }
}

fn command(stream: &mut UnixStream, command: &Command) -> Vec<u8> {
    let frame = command.encode();
    let body = frame.body.unwrap_or_default();
    let head = format!("{} {} HTTP/1.1\r\ncontent-length: {}\r\n\r\n", frame.method, frame.path, body.len());
    stream.write_all(&[head.into_bytes(), body].concat()).unwrap();
    let (head, body) = read_message(stream).expect("the switch answers");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    body
}
