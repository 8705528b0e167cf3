//! The watch stream in a mio loop, against a stand-in that misbehaves.

mod common;

use common::{Act, Fake, Seen, agree, event, message, path};
use mio::{Events, Interest, Poll, Token};
use nix::unistd::gettid;
use std::io::ErrorKind;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};
use std::{fs, thread};
use xenstore::watch::{Event, MAX_DRAIN, MAX_PATHS_PER_WATCH};
use xenstore::wire::{Errno, Header, Kind};
use xenstore::{Endpoint, TransportError, TxId, WatchStream, WatchToken};

const PATIENCE: Duration = Duration::from_secs(20);

/// A loop with nothing but the stream in it.
struct Loop {
    poll: Poll,
    stream: WatchStream,
}

impl Loop {
    fn new(fake: &Fake) -> Self {
        let mut this =
            Self { poll: Poll::new().unwrap(), stream: WatchStream::connect(fake.endpoint()).unwrap() };
        this.register();
        this
    }

    fn register(&mut self) {
        let interests = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut self.stream, Token(0), interests).unwrap();
    }

    /// Goes round until `enough` of what was delivered, or until the connection is lost.
    fn run(&mut self, enough: impl Fn(&[Event]) -> bool) -> Result<Vec<Event>, TransportError> {
        let deadline = Instant::now() + PATIENCE;
        let mut delivered = Vec::new();
        let mut ready = Events::with_capacity(4);
        while !enough(&delivered) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing more comes after {delivered:?}");
            self.poll.poll(&mut ready, Some(left)).unwrap();
            self.stream.drain(|event| delivered.push(event))?;
        }
        Ok(delivered)
    }

    fn next(&mut self, count: usize) -> Vec<Event> {
        self.run(|events| events.len() >= count).unwrap()
    }
}

fn changed(token: WatchToken, at: &str) -> Event {
    Event::Changed { token, path: path(at) }
}

/// Path and token of a WATCH or UNWATCH.
fn arguments(request: &Seen) -> (String, Vec<u8>) {
    let mut parts = request.payload.split(|&b| b == 0);
    (String::from_utf8(parts.next().unwrap().to_vec()).unwrap(), parts.next().unwrap().to_vec())
}

/// Agrees and sends the first event of each watch, as every daemon does.
fn daemon(request: &Seen) -> Vec<Act> {
    let mut acts = agree(request);
    if request.is(Kind::Watch) {
        let (at, token) = arguments(request);
        acts.push(Act::Raw(event(&at, &token)));
    }
    acts
}

#[test]
fn each_watch_has_a_token_of_its_own_and_reports_once_at_first() {
    let fake = Fake::start(daemon);
    let mut it = Loop::new(&fake);
    let first = it.stream.watch(&path("/a"));
    let second = it.stream.watch(&path("/a"));
    assert_ne!(first, second);
    assert_eq!(it.next(2), [changed(first, "/a"), changed(second, "/a")]);
    assert_eq!(it.stream.stalled_since(), None);
    assert_eq!(it.stream.path(first), Some(&path("/a")));
}

#[test]
fn events_of_a_watch_that_was_given_up_end_at_the_stream() {
    let mut given_up = Vec::new();
    let fake = Fake::start(move |r| match r.header.kind {
        Kind::Unwatch => {
            given_up = arguments(r).1;
            agree(r)
        }
        // Late events of the old watch, then the first one of the new.
        Kind::Watch if !given_up.is_empty() => {
            let late = Act::Raw(event("/a/late", &given_up));
            std::iter::once(late).chain(daemon(r)).collect()
        }
        _ => daemon(r),
    });
    let mut it = Loop::new(&fake);
    let old = it.stream.watch(&path("/a"));
    assert_eq!(it.next(1), [changed(old, "/a")]);
    it.stream.unwatch(old);
    it.stream.unwatch(old);
    let new = it.stream.watch(&path("/b"));
    assert_eq!(it.next(1), [changed(new, "/b")]);
    let seen = fake.seen();
    let kinds: Vec<_> = seen.iter().map(|r| r.header.kind).collect();
    assert_eq!(kinds, [Kind::Watch, Kind::Unwatch, Kind::Watch]);
    assert_eq!(arguments(&seen[0]), arguments(&seen[1]));
}

#[test]
fn after_a_lost_connection_all_watches_are_registered_again_and_everything_is_looked_at() {
    let fake = Fake::start(|r| {
        let mut acts = daemon(r);
        if r.connection == 0 && arguments(r).0 == "/c" {
            acts.push(Act::Close);
        }
        acts
    });
    let mut it = Loop::new(&fake);
    let tokens = ["/a", "/b", "/c"].map(|p| it.stream.watch(&path(p)));
    it.stream.unwatch(tokens[1]);
    let lost = it.run(|_| false).unwrap_err();
    // The UNWATCH in between may reach a socket that is closed already.
    assert!(matches!(lost, TransportError::Closed { .. } | TransportError::Io { .. }), "{lost}");
    assert!(!it.stream.is_connected());

    // Meanwhile the owner's life goes on.
    let added = it.stream.watch(&path("/d"));
    assert!(it.stream.drain(|_| panic!("nothing to deliver")).is_err());

    it.stream.reconnect().unwrap();
    it.register();
    let delivered = it.next(4);
    let expected = [Event::Resync, changed(tokens[0], "/a"), changed(tokens[2], "/c"), changed(added, "/d")];
    assert_eq!(delivered, expected);
    let again: Vec<_> = fake.seen().iter().filter(|r| r.connection == 1).map(|r| arguments(r).0).collect();
    assert_eq!(again, ["/a", "/c", "/d"]);
}

#[test]
fn a_first_connection_waits_in_a_full_queue_and_another_attempt_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = Endpoint::Socket(directory.path().join("socket"));
    let Endpoint::Socket(path) = &endpoint else { unreachable!("it is one") };
    let listener = UnixListener::bind(path).unwrap();
    let mut queue = Vec::new();
    while let Ok(link) = endpoint.open(Duration::ZERO) {
        queue.push(link);
        assert!(queue.len() < 100_000, "the queue never fills up");
    }
    let waiting = gettid();
    thread::scope(|scope| {
        let daemon = scope.spawn(move || {
            // Room is made only once the other thread is in connect(2) (proc_pid_syscall(5)).
            let call = format!("{} ", nix::libc::SYS_connect);
            let syscall = format!("/proc/self/task/{waiting}/syscall");
            while !fs::read_to_string(&syscall).unwrap().starts_with(&call) {
                thread::yield_now();
            }
            drop(listener.accept().unwrap());
            listener
        });
        let mut stream = WatchStream::connect(endpoint.clone()).expect("it has waited");
        // It took the only place.
        let refused = stream.reconnect();
        let Err(TransportError::Connect { source, .. }) = refused else { panic!("{refused:?}") };
        assert_eq!(source.kind(), ErrorKind::WouldBlock);
        daemon.join().unwrap();
    });
}

#[test]
fn a_daemon_that_is_away_can_be_tried_again() {
    let fake = Fake::start(daemon);
    let mut it = Loop::new(&fake);
    drop(fake);
    assert!(it.run(|_| false).is_err());
    assert!(matches!(it.stream.reconnect(), Err(TransportError::Connect { .. })));
    assert!(!it.stream.is_connected());
}

#[test]
fn malformed_events_do_no_harm() {
    let header = Header { kind: Kind::WatchEvent, req_id: 0, tx_id: TxId::NONE };
    let fake = Fake::start(move |r| {
        let token = arguments(r).1;
        let mut acts = agree(r);
        let payloads = [
            &b""[..],
            b"\0",
            b"/a",
            b"/a\0not a number\0",
            b"/a\0ffffffffffffffffffff\0",
            b"/a\x0077\0",
            b"/a\0\xff\0",
        ];
        acts.extend(payloads.map(|payload| Act::Raw(message(header, payload))));
        acts.push(Act::Raw(message(header, &vec![b'x'; 2 << 20])));
        acts.push(Act::Raw(message(Header { kind: Kind::Error, req_id: 999, ..header }, b"EIO\0")));
        // A path that is none still says that something happened.
        acts.push(Act::Raw(event("//\u{1b}[31m", &token)));
        acts
    });
    let mut it = Loop::new(&fake);
    let token = it.stream.watch(&path("/watched"));
    assert_eq!(it.next(1), [changed(token, "/watched")]);
    assert!(it.stream.is_connected());
}

#[test]
fn a_stream_that_makes_no_sense_is_given_up() {
    let fake = Fake::start(|_| vec![Act::Raw(vec![0xff; 64])]);
    let mut it = Loop::new(&fake);
    it.stream.watch(&path("/a"));
    assert!(matches!(it.run(|_| false), Err(TransportError::Protocol { .. })));
}

#[test]
fn a_refused_watch_is_reported_and_gone() {
    let fake = Fake::start(|r| if arguments(r).0 == "/no" { vec![Act::Refuse("ENOSPC")] } else { daemon(r) });
    let mut it = Loop::new(&fake);
    let no = it.stream.watch(&path("/no"));
    let yes = it.stream.watch(&path("/yes"));
    let refused = Event::Refused { token: no, path: path("/no"), errno: Errno::NoSpc };
    assert_eq!(it.next(2), [refused, changed(yes, "/yes")]);
    assert_eq!(it.stream.path(no), None);
}

#[test]
fn a_hanging_daemon_can_be_noticed() {
    let fake = Fake::start(|_| vec![Act::Ignore]);
    let mut it = Loop::new(&fake);
    assert_eq!(it.stream.stalled_since(), None);
    let before = Instant::now();
    it.stream.watch(&path("/a"));
    assert!(it.stream.stalled_since().is_some_and(|since| since >= before));
    it.stream.reconnect().unwrap();
    assert!(it.stream.stalled_since().is_some());
}

#[test]
fn the_kernels_own_answers_carry_no_request_id() {
    // As /dev/xen/xenbus does it.
    let fake = Fake::start(|r| {
        let (at, token) = arguments(r);
        let ok = message(Header { req_id: 0, ..r.header }, b"OK\0");
        vec![Act::Raw(ok), Act::Raw(event(&at, &token))]
    });
    let mut it = Loop::new(&fake);
    let token = it.stream.watch(&path("/a"));
    assert_eq!(it.next(1), [changed(token, "/a")]);
    assert_eq!(it.stream.stalled_since(), None);
}

#[test]
fn a_storm_is_merged() {
    let storm = |token: &[u8]| {
        let one = event("/guest/attr/some-node-that-is-written-all-the-time", token);
        let mut bytes = one.repeat(50 * MAX_DRAIN / one.len());
        bytes.extend(event("/guest/last", token));
        bytes
    };
    let fake = Fake::start(move |r| {
        let mut acts = agree(r);
        acts.push(Act::Raw(storm(&arguments(r).1)));
        acts
    });
    let mut it = Loop::new(&fake);
    let token = it.stream.watch(&path("/guest"));
    let last = changed(token, "/guest/last");
    let delivered = it.run(|events| events.contains(&last)).unwrap();
    // At most one event for each visit; a visit may be as short as one read of what has arrived.
    let total = 50 * MAX_DRAIN / 64;
    assert!(delivered.len() < total / 4, "{} of {total} events were delivered", delivered.len());
}

#[test]
fn what_one_visit_leaves_brings_the_next_visit() {
    let fake = Fake::start(|r| {
        let (at, token) = arguments(r);
        if at == "/marker" {
            return vec![Act::Ignore];
        }
        let one = event("/guest/node", &token);
        let mut bytes = one.repeat(2 * MAX_DRAIN / one.len());
        bytes.extend(event("/guest/last", &token));
        vec![Act::Raw(bytes)]
    });
    let mut it = Loop::new(&fake);
    let token = it.stream.watch(&path("/guest"));
    it.stream.watch(&path("/marker"));
    // Once the second request has been read, all that will ever come is in the socket: mio reports that once, and the
    // rest of what is there is for the stream to ask for.
    fake.next();
    fake.next();
    let last = changed(token, "/guest/last");
    it.run(|events| events.contains(&last)).unwrap();
}

#[test]
fn a_storm_over_many_nodes_becomes_one_event_for_the_watched_path() {
    let fake = Fake::start(|r| {
        let (_, token) = arguments(r);
        let many = (0..MAX_PATHS_PER_WATCH * 4).flat_map(|i| event(&format!("/guest/{i}"), &token)).collect();
        let mut acts = agree(r);
        acts.push(Act::Raw(many));
        acts
    });
    let mut stream = WatchStream::connect(fake.endpoint()).unwrap();
    let token = stream.watch(&path("/guest"));
    let mut poll = Poll::new().unwrap();
    // All of it is in the socket before the first visit: the stand-in has closed its end by then.
    fake.next();
    drop(fake);
    poll.registry().register(&mut stream, Token(0), Interest::READABLE).unwrap();
    poll.poll(&mut Events::with_capacity(4), Some(PATIENCE)).unwrap();
    let mut delivered = Vec::new();
    let _ = stream.drain(|event| delivered.push(event));
    assert_eq!(delivered, [changed(token, "/guest")]);
}

#[test]
fn thousands_of_watches_go_out_without_blocking() {
    let fake = Fake::start(daemon);
    let mut it = Loop::new(&fake);
    let long = "x".repeat(500);
    let tokens: Vec<_> = (0..5000).map(|i| it.stream.watch(&path(&format!("/{long}/{i}")))).collect();
    let delivered = it.next(5000);
    assert_eq!(delivered.len(), 5000);
    assert_eq!(delivered[4999], changed(tokens[4999], &format!("/{long}/4999")));
}
