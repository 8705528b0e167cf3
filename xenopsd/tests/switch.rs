//! The message switch's transport against a small switch: in a daemon of its own, and in this process where a test
//! has to hold the calls.

mod common;

use std::time::Duration;

use common::switch::{Fault, Queues, SwitchClient, SwitchServer};
use common::{Daemon, PATIENCE, guest};
use crossbeam::channel::{Receiver, Sender, unbounded};
use tempfile::TempDir;
use xenopsd::api::{
    Call, DynamicId, Error, PowerState, QueryService, TaskStat, TaskState, UpdatesGet, UpdatesLastId, VmAdd,
    VmExists, VmStart, VmStat,
};
use xenopsd::rpc::switch::{Limits, Settings, Switch};
use xenopsd::rpc::{Responder, Service};

const QUEUE: &str = "org.xen.xapi.xenops.classic";

fn dbg() -> String {
    "test".to_owned()
}

fn exists(id: &str) -> VmExists {
    VmExists { debug_info: dbg(), id: id.to_owned() }
}

/// A daemon that takes calls from the switch in its directory.
fn daemon(directory: TempDir) -> Daemon {
    let switch = directory.path().join("switch");
    Daemon::start(directory, &["--use-switch".to_owned(), format!("--switch-path={}", switch.display())])
}

#[test]
fn a_vm_is_added_and_started_through_the_switch() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("switch");
    let queues = Queues::default();
    let _server = SwitchServer::start(&path, &queues);
    let daemon = daemon(directory);
    let mut client = SwitchClient::new(&path, "one", QUEUE);
    let query = client.call(&QueryService { debug_info: dbg(), unit: () }).unwrap();
    assert_eq!(query.vendor, "xenopsd");
    let (vm, ..) = guest(daemon.directory.path(), "one");
    let id = client.call(&VmAdd { debug_info: dbg(), vm }).unwrap();
    let last_id = Some(client.call(&UpdatesLastId { debug_info: dbg() }).unwrap());
    // Waits in the daemon while the start goes past it.
    let news = client.send(&UpdatesGet { debug_info: dbg(), last_id, timeout: None });
    let task = client.call(&VmStart { debug_info: dbg(), id: id.clone(), paused: true }).unwrap();
    let (_, changed, mut next) = client.result::<UpdatesGet>(&news).unwrap();
    assert!(!changed.is_empty());
    loop {
        let stat = client.call(&TaskStat { debug_info: dbg(), id: task.clone() }).unwrap();
        match stat.state {
            TaskState::Completed(_) => break,
            TaskState::Failed(error) => panic!("{error:?}"),
            TaskState::Pending(_) => {
                let get = UpdatesGet { debug_info: dbg(), last_id: Some(next), timeout: Some(30) };
                next = client.call(&get).unwrap().2;
            }
        }
    }
    let (_, state) = client.call(&VmStat { debug_info: dbg(), id: id.clone() }).unwrap();
    assert_eq!(state.power_state, PowerState::Paused);
    let barrier = client.call(&UpdatesGet { debug_info: dbg(), last_id: None, timeout: Some(0) }).unwrap();
    assert!(barrier.1.contains(&DynamicId::Vm(id)));
    queues.wait_empty(QUEUE);
    // Both connections are one session, named after the program and its process.
    let ours: Vec<_> = queues.logins().into_iter().filter(|token| !token.starts_with("client")).collect();
    assert_eq!(ours, vec![format!("xenopsd:{}", daemon.pid()); 2]);
}

#[test]
fn requests_wait_for_the_daemon_and_survive_it() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("switch");
    let queues = Queues::default();
    let _server = SwitchServer::start(&path, &queues);
    let mut client = SwitchClient::new(&path, "one", QUEUE);
    let early = client.send(&exists("x"));
    let running = daemon(directory);
    assert_eq!(client.result::<VmExists>(&early), Ok(false));
    // One that the daemon holds when it is killed is its successor's.
    let last_id = Some(client.call(&UpdatesLastId { debug_info: dbg() }).unwrap());
    let held = client.send(&UpdatesGet { debug_info: dbg(), last_id, timeout: None });
    assert_eq!(client.call(&exists("y")), Ok(false));
    queues.wait_held(QUEUE, 1);
    let directory = running.kill();
    let meanwhile = client.send(&exists("z"));
    let (vm, ..) = guest(directory.path(), "one");
    let add = client.send(&VmAdd { debug_info: dbg(), vm: vm.clone() });
    let running = daemon(directory);
    assert_eq!(client.result::<VmExists>(&meanwhile), Ok(false));
    assert_eq!(client.result::<VmAdd>(&add), Ok(vm.id.clone()));
    assert!(client.result::<UpdatesGet>(&held).is_ok());
    queues.wait_empty(QUEUE);
    // A daemon that is asked to end leaves the switch alone.
    let directory = running.stop();
    let later = client.send(&exists(&vm.id));
    let _running = daemon(directory);
    assert_eq!(client.result::<VmExists>(&later), Ok(true));
}

#[test]
fn the_daemon_starts_without_the_switch() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("switch");
    let running = daemon(directory);
    running.xenops(&["list"]);
    let _server = SwitchServer::start(&path, &Queues::default());
    let mut client = SwitchClient::new(&path, "one", QUEUE);
    assert_eq!(client.call(&exists("x")), Ok(false));
    drop(client);
    running.stop();
}

/// Answers `VM.exists` with whether the id is `yes`, and hands every other call to the test.
struct Held {
    calls: Sender<(Call, Responder)>,
}

impl Service for Held {
    fn call(&self, call: Call, reply: Responder) {
        match call {
            Call::VmExists(exists) => reply.finish::<VmExists>(Ok(exists.id == "yes")),
            Call::VmStart(_) => panic!("on purpose"),
            call => self.calls.send((call, reply)).unwrap(),
        }
    }
}

/// A transport in this process, with short times.
struct Bench {
    directory: TempDir,
    queues: Queues,
    calls: Receiver<(Call, Responder)>,
    _switch: Switch,
}

impl Bench {
    fn new(in_flight: usize) -> Self {
        let directory = TempDir::new().unwrap();
        let (sender, calls) = unbounded();
        let settings = Settings { path: directory.path().join("switch"), queue: "q".to_owned() };
        let limits = Limits {
            in_flight,
            poll: Duration::from_secs(2),
            reply: Duration::from_millis(500),
            min_pause: Duration::from_millis(1),
            max_pause: Duration::from_millis(20),
        };
        let switch = Switch::start(settings, limits, Held { calls: sender }).unwrap();
        Self { directory, queues: Queues::default(), calls, _switch: switch }
    }

    fn serve(&self) -> SwitchServer {
        SwitchServer::start(&self.directory.path().join("switch"), &self.queues)
    }

    fn client(&self, name: &str) -> SwitchClient {
        SwitchClient::new(&self.directory.path().join("switch"), name, "q")
    }

    fn held(&self) -> Responder {
        self.calls.recv_timeout(PATIENCE).unwrap().1
    }
}

fn updates() -> UpdatesGet {
    UpdatesGet { debug_info: dbg(), last_id: None, timeout: None }
}

#[test]
fn a_switch_that_is_restarted_is_found_again() {
    let bench = Bench::new(8);
    let server = bench.serve();
    let mut client = bench.client("one");
    client.send(&updates());
    let responder = bench.held();
    drop(server);
    // Its queues are on disk, except those of sessions that ended.
    let server = bench.serve();
    let mut client = bench.client("one");
    bench.queues.wait_connections(2);
    // The request is offered again; it is being worked on and is not handed over twice.
    assert_eq!(client.call(&exists("yes")), Ok(true));
    assert!(bench.calls.is_empty());
    responder.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 7)));
    bench.queues.wait_empty("q");
    drop(server);
    // One answered while the switch is away.
    let server = bench.serve();
    let mut client = bench.client("two");
    client.send(&updates());
    let responder = bench.held();
    drop(server);
    responder.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 8)));
    let _server = bench.serve();
    bench.queues.wait_empty("q");
    assert!(bench.calls.is_empty());
}

#[test]
fn a_switch_that_lost_its_queues_gives_numbers_out_again() {
    let mut bench = Bench::new(8);
    let server = bench.serve();
    let mut client = bench.client("one");
    let old = client.send(&updates());
    let stale = bench.held();
    drop(server);
    bench.queues = Queues::default();
    let _server = bench.serve();
    let mut client = bench.client("two");
    let new = client.send(&UpdatesGet { debug_info: "another".to_owned(), last_id: None, timeout: None });
    assert_eq!(old, new, "the number is the same");
    let responder = bench.held();
    stale.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 1)));
    responder.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 2)));
    assert_eq!(client.result::<UpdatesGet>(&new).unwrap().2, 2);
    bench.queues.wait_empty("q");
}

#[test]
fn whatever_the_switch_says_calls_go_on() {
    let bench = Bench::new(8);
    let ok =
        |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    bench.queues.fail([
        Fault::Bytes(Vec::new()),
        Fault::Bytes(b"\0\xff garbage\r\n\r\n".to_vec()),
        Fault::Bytes(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n".to_vec()),
        Fault::Bytes(b"HTTP/1.1 404 Not Found\r\ncontent-length: 14\r\n\r\nPlease log in.".to_vec()),
        Fault::Bytes(b"HTTP/1.1 200 OK\r\ncontent-le".to_vec()),
        Fault::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{\"messages\":".to_vec()),
        Fault::Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n".to_vec()),
        Fault::Bytes(ok("")),
        Fault::Bytes(ok("{")),
        Fault::Bytes(ok("{\"messages\":[],\"next\":5}")),
        Fault::Bytes(ok(
            "{\"messages\":[[[\"q\",0],{\"payload\":\"\",\"kind\":[\"Request\"]}]],\"next\":\"5\"}",
        )),
        Fault::Bytes(ok(&"[".repeat(10_000))),
        // Answers that come at once and bring nothing.
        Fault::Bytes(ok("{\"messages\":[],\"next\":\"5\"}")),
        Fault::Stall,
    ]);
    let _server = bench.serve();
    bench.queues.wait_faults();
    let mut client = bench.client("one");
    assert_eq!(client.call(&exists("yes")), Ok(true));
    assert_eq!(client.call(&exists("no")), Ok(false));
    bench.queues.wait_empty("q");
}

#[test]
fn nonsense_is_answered_and_does_not_come_again() {
    let bench = Bench::new(8);
    let _server = bench.serve();
    let mut client = bench.client("one");
    for (payload, reason) in [
        (&b"hello"[..], "JSON: unexpected character"),
        (b"", "JSON: unexpected end of text"),
        (b"\xff\xfe", "JSON: unexpected character"),
        (br#"{"method":"VM.nope","params":[{}],"id":1}"#, r#"Idl.UnknownMethod(\"VM.nope\")"#),
        (br#"{"method":"VM.exists","params":[{}],"id":1}"#, "Expecting named argument 'debug_info'"),
        (br#"{"method":"VM.exists","params":[{}]}"#, "JSON-RPC: a request needs an integer or string"),
    ] {
        let id = client.post(payload);
        let reply = String::from_utf8(client.response(&id)).unwrap();
        assert!(reply.starts_with(r#"{"result":null,"error":["Internal_error","#), "{reply}");
        assert!(reply.ends_with(r#"],"id":0}"#), "{reply}");
        assert!(reply.contains(reason), "{reply}");
    }
    // A handler that panics, and one that forgets the call.
    let start = VmStart { debug_info: dbg(), id: "x".to_owned(), paused: true };
    assert!(matches!(client.call(&start), Err(Error::InternalError(_))));
    let forgotten = client.send(&updates());
    drop(bench.held());
    assert!(matches!(client.result::<UpdatesGet>(&forgotten), Err(Error::InternalError(_))));
    bench.queues.wait_empty("q");
}

#[test]
fn no_more_calls_are_taken_than_can_be_worked_on() {
    let bench = Bench::new(2);
    let _server = bench.serve();
    let mut client = bench.client("one");
    let ids: Vec<_> = (0..5).map(|_| client.send(&updates())).collect();
    let mut held: Vec<_> = (0..2).map(|_| bench.held()).collect();
    for answered in 0..5 {
        assert!(bench.calls.recv_timeout(Duration::from_millis(20)).is_err(), "too many are taken");
        held.remove(0).finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), answered)));
        if answered < 3 {
            held.push(bench.held());
        }
    }
    for (answered, id) in ids.iter().enumerate() {
        assert_eq!(client.result::<UpdatesGet>(id).unwrap().2, isize::try_from(answered).unwrap());
    }
    bench.queues.wait_empty("q");
}

#[test]
fn a_reply_whose_queue_has_gone_is_dropped() {
    let bench = Bench::new(8);
    let _server = bench.serve();
    let mut client = bench.client("one");
    client.send(&updates());
    let responder = bench.held();
    drop(client);
    responder.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 1)));
    bench.queues.wait_empty("q");
    assert_eq!(bench.client("two").call(&exists("yes")), Ok(true));
}
