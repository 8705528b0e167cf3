//! The server over real sockets.

mod kept;

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::{Limits, Responder, Server, Service, StopHandle};
use crate::api::value::{ToValue as _, Value};
use crate::api::{Call, Error, Method as _, Task, TaskState, UpdatesGet, UpdatesLastId, VmExists, VmStart};
use crate::rpc::http::{BODY_MAX, HEAD_MAX, frame_request};
use crate::rpc::socket::BoundSocket;
use crate::rpc::{Client, ClientError, Codec};

/// Long enough for a loaded machine, short enough for a test that hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Answers by method: `VM.exists` with whether the id is `yes`, `VM.start` with an error, `VM.delay` by dropping
/// the responder, `VM.remove` by panicking; hands the responders of `UPDATES.get` to the test.
struct Dummy {
    held: Sender<Responder>,
    gone: Sender<()>,
}

impl Service for Dummy {
    fn call(&self, call: Call, reply: Responder) {
        match call {
            Call::VmExists(call) => reply.finish::<VmExists>(Ok(call.id == "yes")),
            Call::VmStart(call) => reply.finish::<VmStart>(Err(Error::does_not_exist("VM", call.id))),
            Call::ObserverInit(_) => reply.send(Err(Error::DomainNotBuilt)),
            Call::VmExportMetadata(_) => reply.send(Ok(Value::string("x".repeat(8 << 20)))),
            Call::VmRemove(_) => panic!("on purpose"),
            Call::UpdatesGet(_) => {
                let gone = self.gone.clone();
                reply.when_client_gone(move || {
                    let _ = gone.send(());
                });
                let _ = self.held.send(reply);
            }
            _ => drop(reply),
        }
    }
}

struct Running {
    socket: BoundSocket,
    json: BoundSocket,
    held: Receiver<Responder>,
    gone: Receiver<()>,
    stop: StopHandle,
    thread: Option<std::thread::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Running {
    fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let socket = BoundSocket::bind(&dir.path().join("xml")).expect("bind");
        let json = BoundSocket::bind(&dir.path().join("json")).expect("bind");
        let listeners = vec![
            (socket.try_clone_listener().expect("dup"), Codec::Xml),
            (json.try_clone_listener().expect("dup"), Codec::Json),
        ];
        let (held_sender, held) = unbounded();
        let (gone_sender, gone) = unbounded();
        let dummy = Dummy { held: held_sender, gone: gone_sender };
        let server = Server::with_limits(listeners, Arc::new(dummy), limits).expect("server");
        let stop = server.stop_handle();
        let thread = std::thread::spawn(move || server.run().expect("serves"));
        Self { socket, json, held, gone, stop, thread: Some(thread), _dir: dir }
    }

    fn client(&self, codec: Codec) -> Client {
        Client::new(self.path(codec), codec).with_timeout(Some(PATIENCE))
    }

    fn path(&self, codec: Codec) -> PathBuf {
        match codec {
            Codec::Xml => self.socket.path().to_path_buf(),
            Codec::Json => self.json.path().to_path_buf(),
        }
    }

    fn open(&self, codec: Codec) -> UnixStream {
        let stream = UnixStream::connect(self.path(codec)).expect("connect");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("timeout");
        stream
    }

    /// Sends bytes and returns everything that comes back until the server closes.
    fn raw(&self, codec: Codec, bytes: &[u8]) -> String {
        let mut stream = self.open(codec);
        stream.write_all(bytes).expect("write");
        rest(stream)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

fn rest(mut stream: UnixStream) -> String {
    let mut reply = Vec::new();
    stream.read_to_end(&mut reply).expect("read");
    String::from_utf8(reply).expect("UTF-8")
}

fn exists(id: &str) -> VmExists {
    VmExists { debug_info: "test".to_owned(), id: id.to_owned() }
}

fn updates() -> UpdatesGet {
    UpdatesGet { debug_info: "test".to_owned(), last_id: None, timeout: None }
}

fn request(codec: Codec, call: impl Into<Call>) -> Vec<u8> {
    let call = call.into();
    frame_request(codec, "/", "test", &codec.encode_request(call.name(), call.to_params(), 7))
}

fn post(body: &[u8]) -> Vec<u8> {
    frame_request(Codec::Xml, "/", "test", body)
}

#[test]
fn calls_and_errors_in_both_encodings() {
    let server = Running::new(Limits::default());
    for codec in [Codec::Xml, Codec::Json] {
        let client = server.client(codec);
        assert!(client.call(&exists("yes")).expect("answer"));
        assert!(!client.call(&exists("no")).expect("answer"));
        let start = VmStart { debug_info: String::new(), id: "x".to_owned(), paused: true };
        match client.call(&start) {
            Err(ClientError::Remote(error)) => assert_eq!(error, Error::does_not_exist("VM", "x")),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_reply_is_framed_as_the_reference_does() {
    let server = Running::new(Limits::default());
    let reply = server.raw(Codec::Xml, &request(Codec::Xml, exists("yes")));
    let (head, body) = reply.split_once("\r\n\r\n").expect("head");
    let lines: Vec<_> = head.split("\r\n").collect();
    assert_eq!(lines[0], "HTTP/1.1 200 OK");
    assert_eq!(lines[1], format!("content-length: {}", body.len()));
    assert!(lines[2].starts_with("user-agent: "), "{head}");
    assert_eq!(
        body,
        "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct><member><name>Status</name>\
         <value>Success</value></member><member><name>Value</name><value><boolean>1</boolean></value></member>\
         </struct></value></param></params></methodResponse>"
    );
    let reply = server.raw(Codec::Json, &request(Codec::Json, exists("yes")));
    assert!(reply.ends_with("\r\n\r\n{\"result\":true,\"error\":null,\"id\":0}"), "{reply}");
}

#[test]
fn nonsense_is_answered_with_its_reason() {
    let server = Running::new(Limits::default());
    for (codec, body, reason) in [
        (Codec::Xml, "<methodCall>", "XML: "),
        (Codec::Xml, "hello", "XML: "),
        (
            Codec::Xml,
            "<methodCall><methodName>VM.nope</methodName><params/></methodCall>",
            "Idl.UnknownMethod(&quot;VM.nope&quot;)",
        ),
        (
            Codec::Xml,
            "<methodCall><methodName>VM.list</methodName><params/></methodCall>",
            "Idl.MarshalError(&quot;Marshalling error: Expecting dict as first argument",
        ),
        (Codec::Json, "{", "JSON: unexpected end of text at byte 1"),
        (
            Codec::Json,
            r#"{"method":"VM.nope","params":[],"id":1}"#,
            r#"["Internal_error","Idl.UnknownMethod(\"VM.nope\")"]"#,
        ),
    ] {
        let reply = server.raw(codec, &post(body.as_bytes()));
        assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "{reply}");
        assert!(reply.contains("Internal_error"), "{reply}");
        assert!(reply.contains(reason), "{reply}");
    }
}

#[test]
fn what_is_not_a_request_is_refused_as_tabled() {
    let server = Running::new(Limits::default());
    let huge = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n", BODY_MAX + 1);
    let long = format!("POST / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(HEAD_MAX));
    for (text, xml, json) in [
        ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404 ", "HTTP/1.1 404 "),
        ("POST / HTTP/1.1\r\n\r\n", "", "HTTP/1.1 411 "),
        ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", "", "HTTP/1.1 501 "),
        ("\u{1}\u{2}\u{3}", "", "HTTP/1.1 400 "),
        (huge.as_str(), "HTTP/1.1 413 ", "HTTP/1.1 413 "),
        (long.as_str(), "HTTP/1.1 431 ", "HTTP/1.1 431 "),
    ] {
        for (codec, expected) in [(Codec::Xml, xml), (Codec::Json, json)] {
            let mut stream = server.open(codec);
            stream.write_all(text.as_bytes()).expect("write");
            stream.shutdown(Shutdown::Write).expect("shutdown");
            let reply = rest(stream);
            assert!(reply.starts_with(expected), "{text:.60}: {reply}");
            assert_eq!(reply.is_empty(), expected.is_empty(), "{text:.60}: {reply}");
        }
    }
    // A short body and the end.
    let mut stream = server.open(Codec::Xml);
    stream.write_all(b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nab").expect("write");
    stream.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(rest(stream), "");
    assert!(server.client(Codec::Xml).call(&exists("yes")).expect("still serves"));
}

#[test]
fn a_client_that_sends_too_much_before_reading_sees_why() {
    let server = Running::new(Limits::default());
    let body = vec![b'x'; BODY_MAX + 1];
    let reply = server.raw(Codec::Xml, &post(&body));
    assert!(reply.starts_with("HTTP/1.1 413 "), "{reply}");
    let limits = Limits { request_bytes: 1000, ..Limits::default() };
    let server = Running::new(limits);
    let reply = server.raw(Codec::Xml, &post(&vec![b'x'; 1 << 20]));
    assert!(reply.starts_with("HTTP/1.1 503 "), "{reply}");
    assert!(server.client(Codec::Xml).call(&exists("yes")).expect("the room is given back"));
}

#[test]
fn a_request_may_come_in_pieces() {
    let server = Running::new(Limits::default());
    let mut stream = server.open(Codec::Xml);
    for byte in request(Codec::Xml, exists("yes")) {
        stream.write_all(&[byte]).expect("write");
    }
    assert!(rest(stream).contains("<boolean>1</boolean>"));
}

#[test]
fn a_second_request_on_the_connection_is_ignored() {
    let server = Running::new(Limits::default());
    let twice = [request(Codec::Xml, exists("yes")), request(Codec::Xml, exists("yes"))].concat();
    assert_eq!(server.raw(Codec::Xml, &twice).matches("HTTP/1.1 200 OK").count(), 1);
}

#[test]
fn a_client_that_only_stops_sending_is_answered() {
    let server = Running::new(Limits::default());
    let mut stream = server.open(Codec::Xml);
    stream.write_all(&request(Codec::Xml, updates())).expect("write");
    stream.shutdown(Shutdown::Write).expect("shutdown");
    let responder = server.held.recv_timeout(PATIENCE).expect("call");
    assert!(!responder.client_gone());
    responder.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 5)));
    assert!(rest(stream).contains("<value>5</value>"));
}

#[test]
fn a_slow_client_is_closed() {
    let limits = Limits { request_time: Duration::from_millis(50), ..Limits::default() };
    let server = Running::new(limits);
    let started = Instant::now();
    assert_eq!(server.raw(Codec::Xml, b"POST / HTTP/1.1\r\ncontent-"), "");
    assert!(started.elapsed() >= Duration::from_millis(50));
    // One that does not take its reply.
    let limits = Limits { reply_time: Duration::from_millis(50), ..Limits::default() };
    let server = Running::new(limits);
    let mut stream = server.open(Codec::Xml);
    let export = crate::api::VmExportMetadata { debug_info: String::new(), id: String::new() };
    stream.write_all(&request(Codec::Xml, export)).expect("write");
    let mut first = [0; 1];
    stream.read_exact(&mut first).expect("the reply begins");
    std::thread::park_timeout(Duration::from_millis(500));
    assert!(rest(stream).len() < 8 << 20, "the reply was cut off");
}

#[test]
fn a_large_reply_arrives_whole() {
    let server = Running::new(Limits::default());
    let export = crate::api::VmExportMetadata { debug_info: String::new(), id: String::new() };
    for codec in [Codec::Xml, Codec::Json] {
        assert_eq!(server.client(codec).call(&export).expect("answer").len(), 8 << 20);
    }
}

#[test]
fn a_vanished_client_is_noticed_and_its_reply_discarded() {
    let server = Running::new(Limits::default());
    let mut stream = server.open(Codec::Xml);
    stream.write_all(&request(Codec::Xml, updates())).expect("write");
    let responder = server.held.recv_timeout(PATIENCE).expect("call");
    assert!(!responder.client_gone());
    drop(stream);
    server.gone.recv_timeout(PATIENCE).expect("noticed");
    assert!(responder.client_gone());
    responder.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 5)));
    // One that vanishes before its request is even read.
    let mut stream = server.open(Codec::Xml);
    stream.write_all(&request(Codec::Xml, updates())).expect("write");
    drop(stream);
    server.gone.recv_timeout(PATIENCE).expect("noticed");
    let called = Arc::new(Mutex::new(false));
    let seen = called.clone();
    let late = server.held.recv_timeout(PATIENCE).expect("served all the same");
    late.when_client_gone(move || *seen.lock().expect("lock") = true);
    assert!(*called.lock().expect("lock"), "a hook set too late runs at once");
    assert!(server.client(Codec::Xml).call(&exists("yes")).expect("still serves"));
}

#[test]
fn an_unanswered_call_is_answered_with_an_error() {
    let server = Running::new(Limits::default());
    let client = server.client(Codec::Xml);
    let delay = crate::api::VmDelay { debug_info: String::new(), id: String::new(), delay: 0.0 };
    match client.call(&delay) {
        Err(ClientError::Remote(Error::InternalError(text))) => {
            assert_eq!(text, "VM.delay: the call was dropped without an answer");
        }
        other => panic!("{other:?}"),
    }
    let remove = crate::api::VmRemove { debug_info: String::new(), id: String::new() };
    assert!(matches!(client.call(&remove), Err(ClientError::Remote(Error::InternalError(_)))));
    assert!(client.call(&exists("yes")).expect("survives a panicking handler"));
}

#[test]
fn observer_methods_have_their_own_errors() {
    let server = Running::new(Limits::default());
    let init = crate::api::ObserverInit { debug_info: String::new() };
    let reply = server.raw(Codec::Json, &request(Codec::Json, init));
    let text = r#"["Internal_error","the domain has not been built yet"]"#;
    assert!(reply.contains(text), "{reply}");
}

#[test]
fn connections_over_the_bound_wait_their_turn() {
    let server = Running::new(Limits { connections: 2, ..Limits::default() });
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut stream = server.open(Codec::Xml);
        stream.write_all(&request(Codec::Xml, updates())).expect("write");
        waiting.push((stream, server.held.recv_timeout(PATIENCE).expect("call")));
    }
    let mut third = server.open(Codec::Xml);
    third.write_all(&request(Codec::Xml, updates())).expect("write");
    assert!(server.held.recv_timeout(Duration::from_millis(100)).is_err(), "the third is served too early");
    let (_, responder) = waiting.remove(0);
    responder.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 1)));
    let responder = server.held.recv_timeout(PATIENCE).expect("its turn");
    responder.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 3)));
    assert!(rest(third).contains("<value>3</value>"));
}

#[test]
fn idle_connections_make_room_for_others() {
    let server = Running::new(Limits { connections: 3, ..Limits::default() });
    let mut waiting = server.open(Codec::Xml);
    waiting.write_all(&request(Codec::Xml, updates())).expect("write");
    let responder = server.held.recv_timeout(PATIENCE).expect("call");
    let idle = server.open(Codec::Xml);
    let whole = request(Codec::Xml, exists("yes"));
    let mut slow = server.open(Codec::Xml);
    slow.write_all(&whole[..10]).expect("write");
    // Nobody's time is up, and the longest idle one goes.
    assert!(server.client(Codec::Xml).call(&exists("yes")).expect("there is room"));
    assert_eq!(rest(idle), "");
    slow.write_all(&whole[10..]).expect("still there");
    assert!(rest(slow).contains("<boolean>1</boolean>"));
    responder.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 4)));
    assert!(rest(waiting).contains("<value>4</value>"));
}

#[test]
fn a_thousand_clients_at_once() {
    const CLIENTS: usize = 1000;
    // Both ends of every connection are in this process.
    let (_, hard) =
        nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).expect("limit");
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, hard, hard).expect("limit");
    let server = Running::new(Limits::default());
    let mut streams = Vec::new();
    let mut responders = Vec::new();
    for _ in 0..CLIENTS {
        let mut stream = server.open(Codec::Json);
        stream.write_all(&request(Codec::Json, updates())).expect("write");
        streams.push(stream);
    }
    for _ in 0..CLIENTS {
        responders.push(server.held.recv_timeout(PATIENCE).expect("call"));
    }
    let others = responders.split_off(CLIENTS / 2);
    std::thread::scope(|scope| {
        for half in [responders, others] {
            scope.spawn(move || {
                for responder in half {
                    responder.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 9)));
                }
            });
        }
    });
    for stream in streams {
        assert!(rest(stream).contains("[[],[],9]"));
    }
}

/// Set for the child process of the test below: the socket it tries.
const PROBE: &str = "XENOPSD_TEST_PROBE_SOCKET";

#[test]
fn somebody_else_is_turned_away() {
    const NOBODY: u32 = 65534;
    if let Some(path) = std::env::var_os(PROBE) {
        let mut stream = UnixStream::connect(path).expect("the mode lets anybody connect");
        let _ = stream.write_all(&request(Codec::Xml, exists("yes")));
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply);
        assert!(reply.is_empty(), "served: {}", String::from_utf8_lossy(&reply));
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        eprintln!("not root: cannot become somebody else");
        return;
    }
    let server = Running::new(Limits::default());
    let path = server.path(Codec::Xml);
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("chmod");
    };
    open(path.parent().expect("parent"), 0o755);
    open(&path, 0o666);
    // The test binary's own directory may be closed to others.
    let binary = path.with_file_name("probe");
    std::fs::copy(std::env::current_exe().expect("exe"), &binary).expect("copy");
    open(&binary, 0o755);
    let output = std::process::Command::new(&binary)
        .args(["--exact", "rpc::server::tests::somebody_else_is_turned_away", "--nocapture"])
        .env(PROBE, &path)
        .current_dir("/")
        .uid(NOBODY)
        .output()
        .expect("run");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_task_is_waited_for_as_the_contract_says() {
    struct Tasks(Mutex<Vec<&'static str>>);
    impl Service for Tasks {
        fn call(&self, call: Call, reply: Responder) {
            let mut log = self.0.lock().expect("lock");
            log.push(call.name());
            let stats = log.iter().filter(|name| **name == "Task.stat").count();
            match call {
                Call::UpdatesLastId(_) => reply.finish::<UpdatesLastId>(Ok(7)),
                Call::UpdatesGet(get) => {
                    assert_eq!((get.last_id, get.timeout), (Some(7), Some(30)));
                    let changed = vec![crate::api::DynamicId::Task("42".to_owned())];
                    reply.finish::<UpdatesGet>(Ok((Vec::new(), changed, 7)));
                }
                Call::TaskStat(stat) => {
                    let state = match stats {
                        1 => TaskState::Pending(0.0),
                        2 => TaskState::Pending(0.5),
                        _ => TaskState::Failed(Error::DomainNotBuilt.to_value()),
                    };
                    reply.send(Ok(Task {
                        id: stat.id,
                        dbg: String::new(),
                        ctime: 0.0,
                        state,
                        subtasks: crate::api::Dict::new(),
                        debug_info: crate::api::Dict::new(),
                        backtrace: "()".to_owned(),
                        cancellable: false,
                    }
                    .to_value()));
                }
                _ => reply.send(Ok(Value::Null)),
            }
        }
    }
    let dir = tempfile::tempdir().expect("tempdir");
    let socket = BoundSocket::bind(&dir.path().join("socket")).expect("bind");
    let service = Arc::new(Tasks(Mutex::new(Vec::new())));
    let listeners = vec![(socket.try_clone_listener().expect("dup"), Codec::Xml)];
    let server = Server::bind(listeners, service.clone()).expect("server");
    let stop = server.stop_handle();
    let thread = std::thread::spawn(move || server.run());
    let client = Client::new(socket.path(), Codec::Xml).with_timeout(Some(PATIENCE));
    let mut seen = 0;
    match client.wait_task("test", "42", |_| seen += 1) {
        Err(ClientError::Remote(error)) => assert_eq!(error, Error::DomainNotBuilt),
        other => panic!("{other:?}"),
    }
    assert_eq!(seen, 3);
    stop.stop();
    thread.join().expect("no panic").expect("serves");
    assert_eq!(
        *service.0.lock().expect("lock"),
        [
            "UPDATES.last_id",
            "Task.stat",
            "UPDATES.get",
            "Task.stat",
            "UPDATES.get",
            "Task.stat",
            "Task.destroy"
        ]
    );
}

#[test]
fn a_client_without_a_server_says_so() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("socket");
    let client = Client::new(&path, Codec::Xml);
    assert!(matches!(client.call(&updates()), Err(ClientError::NotRunning { .. })));
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    let error = client.call(&updates()).expect_err("stale");
    assert!(error.to_string().contains("is it running?"), "{error}");
    let server = Running::new(Limits::default());
    let hasty =
        Client::new(server.path(Codec::Xml), Codec::Xml).with_timeout(Some(Duration::from_millis(50)));
    let error = hasty.call(&updates()).expect_err("late");
    assert!(matches!(error, ClientError::Timeout { method: UpdatesGet::NAME, .. }), "{error}");
}

#[test]
fn connections_leave_descriptors_for_operations() {
    let connections = |files| Limits::within(files).connections;
    assert_eq!([0, 1, 256, 1024].map(connections), [1, 1, 128, 512]);
    assert_eq!([4096, 1 << 20, u64::MAX].map(connections), [Limits::default().connections; 3]);
}
