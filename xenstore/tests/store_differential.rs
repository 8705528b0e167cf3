//! The store in this crate against Debian's xenstored and oxenstored: the same requests, the same answers.
//!
//! Random sequences of requests by dom0 (in and outside transactions) and by a guest go to both. What may differ is
//! listed in [`same`]; after a transaction that only one of the two refuses for a conflict, there is nothing left to
//! compare.

#[path = "common/oracle.rs"]
#[allow(dead_code, reason = "each test program uses its own part")]
mod oracle;

use oracle::{Daemon, Guest, with_each};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;
use xenstore::store::{SharedStore, StoreTransport, serve};
use xenstore::transport::{Answer, StreamTransport};
use xenstore::wire::{self, Decoder, Frame, Kind, Payload};
use xenstore::{DomId, Errno, Path, Perms, Reply, Request, Transport, TxId};

const D: DomId = DomId(5);

/// Random sequences for each daemon.
const CASES: u32 = 96;

/// Who asks, in which of two transactions (0: none), for what.
type Ask = (bool, usize, Request);

fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

fn any_path() -> impl Strategy<Value = Path> {
    let home = "/local/domain/5";
    let paths = [
        "/t".to_owned(),
        "/t/a".to_owned(),
        "/t/a/b".to_owned(),
        "/t/c".to_owned(),
        "/t/c/d/e".to_owned(),
        format!("{home}/data"),
        format!("{home}/data/x"),
        format!("{home}/data/x/y/z"),
        format!("{home}/name"),
    ];
    proptest::sample::select(paths.to_vec()).prop_map(|p| path(&p))
}

fn any_perms() -> impl Strategy<Value = Perms> {
    let lists = ["n0", "r0", "b0", "n0 r5", "n0 w5", "n0 b5", "n5", "n5 r0", "r5 n0", "n6 b5", "n0 r6 w5"];
    proptest::sample::select(lists.to_vec()).prop_map(|list| list.parse().unwrap())
}

fn any_request() -> impl Strategy<Value = Request> {
    let value = proptest::collection::vec(any::<u8>(), 0..6);
    prop_oneof![
        4 => (any_path(), value).prop_map(|(path, value)| Request::Write { path, value }),
        3 => any_path().prop_map(Request::Read),
        2 => any_path().prop_map(Request::Mkdir),
        2 => any_path().prop_map(Request::Rm),
        2 => any_path().prop_map(Request::Directory),
        2 => any_path().prop_map(Request::GetPerms),
        2 => (any_path(), any_perms()).prop_map(|(path, perms)| Request::SetPerms { path, perms }),
        1 => Just(Request::TransactionStart),
        1 => Just(Request::TransactionEnd { commit: true }),
        1 => Just(Request::TransactionEnd { commit: false }),
    ]
}

fn any_ask() -> impl Strategy<Value = Ask> {
    (any::<bool>(), 0usize..3, any_request()).prop_map(|(guest, slot, request)| match request {
        // A guest's transactions would need a ring of their own.
        Request::TransactionStart | Request::TransactionEnd { .. } => (false, slot.max(1), request),
        request => (guest, if guest { 0 } else { slot }, request),
    })
}

/// One of the two sides.
struct Side<T> {
    dom0: T,
    transactions: [TxId; 3],
}

impl<T: Transport> Side<T> {
    fn new(dom0: T) -> Self {
        Self { dom0, transactions: [TxId::NONE; 3] }
    }

    fn ask(&mut self, slot: usize, request: &Request) -> Answer {
        let tx = if *request == Request::TransactionStart { TxId::NONE } else { self.transactions[slot] };
        let answer = self.dom0.exchange(&[(tx, request.clone())]).unwrap().remove(0);
        match request {
            Request::TransactionStart => {
                self.transactions[slot] = answer.unwrap().number().map(TxId).unwrap();
                Ok(Reply::default())
            }
            Request::TransactionEnd { .. } => {
                self.transactions[slot] = TxId::NONE;
                answer
            }
            _ => answer,
        }
    }
}

fn ask_guest(guest: &RefCell<Guest<'_>>, ours: &mut StoreTransport, request: &Request) -> (Answer, Answer) {
    let theirs = guest.borrow_mut().request(request).map(Reply);
    (ours.exchange(&[(TxId::NONE, request.clone())]).unwrap().remove(0), theirs)
}

/// Whether two answers say the same.
fn same(daemon: Daemon, guest: bool, request: &Request, ours: &Answer, theirs: &Answer) -> bool {
    match (request, ours, theirs) {
        // Children come in any order.
        (Request::Directory(_), Ok(ours), Ok(theirs)) => {
            let sorted = |reply: &Reply| {
                let mut names: Vec<_> = reply.strings().map(<[u8]>::to_vec).collect();
                names.sort();
                names
            };
            sorted(ours) == sorted(theirs)
        }
        // oxenstored tells a guest that a node is not there, whatever the guest may see, or says nothing at all.
        (_, Err(Errno::Acces), Err(Errno::NoEnt)) | (Request::Rm(_), Err(Errno::Acces), Ok(_)) => {
            guest && daemon == Daemon::Ocaml
        }
        // And has one errno for whatever is not allowed.
        (Request::SetPerms { .. }, Err(Errno::Perm), Err(Errno::Acces)) => daemon == Daemon::Ocaml,
        _ => ours == theirs,
    }
}

/// A transaction that only one side refuses: oxenstored repeats only the requests that changed something, and some
/// conflicts it can merge; both results are those of some order of the requests.
fn diverged(request: &Request, ours: &Answer, theirs: &Answer) -> bool {
    let refused = |answer: &Answer| *answer == Err(Errno::Again);
    matches!(request, Request::TransactionEnd { commit: true }) && refused(ours) != refused(theirs)
}

/// What a guest makes below another's node belongs to the guest in the C daemon and here, and to the other in
/// oxenstored: there, no guest is let into another's node.
fn inherits_otherwise(daemon: Daemon, request: &Request) -> bool {
    let Request::SetPerms { perms, .. } = request else { return false };
    daemon == Daemon::Ocaml && perms.owner != D && perms.access_of(D).may_write()
}

/// Both sides empty, with a home for the guest.
fn prepare(daemon: Daemon, both: &mut impl FnMut(&Request) -> (Answer, Answer)) {
    let shared = if daemon == Daemon::Ocaml { "n0 r5" } else { "n0 b5" };
    let set = |p: &str, perms: &str| Request::SetPerms { path: path(p), perms: perms.parse().unwrap() };
    for request in [
        Request::Mkdir(path("/t")),
        Request::Rm(path("/t")),
        Request::Mkdir(path("/local/domain/5")),
        Request::Rm(path("/local/domain/5")),
        Request::Mkdir(path("/t")),
        set("/t", shared),
        Request::Mkdir(path("/local/domain/5/data")),
        set("/local/domain/5", "n0 r5"),
        set("/local/domain/5/data", "n5"),
    ] {
        let (ours, theirs) = both(&request);
        assert!(ours.is_ok() && theirs.is_ok(), "{request:?}: {ours:?}, {theirs:?}");
    }
}

#[test]
fn random_requests_have_the_same_answers() {
    with_each(|oracle| {
        let daemon = oracle.daemon;
        let endpoint = oracle.endpoint();
        let guest = RefCell::new(oracle.guest(D));
        let runner =
            Config { failure_persistence: None, max_shrink_iters: 2000, ..Config::with_cases(CASES) };
        let sequences = proptest::collection::vec(any_ask(), 1..60);
        let result = TestRunner::new(runner).run(&sequences, |asks| {
            let store = SharedStore::new();
            let mut our_guest = store.transport(D);
            let mut ours = Side::new(store.transport(DomId::DOM0));
            let mut theirs = Side::new(StreamTransport::new(endpoint.clone()));
            prepare(daemon, &mut |request| (ours.ask(0, request), theirs.ask(0, request)));
            for (number, (is_guest, slot, request)) in asks.iter().enumerate() {
                let starts = *request == Request::TransactionStart;
                let ends = matches!(request, Request::TransactionEnd { .. });
                let open = ours.transactions[*slot] != TxId::NONE;
                // The C daemon takes its snapshot node by node, when each is first touched: what comes between is
                // seen or not. There, one transaction at a time with nothing in between.
                let busy = ours.transactions.iter().any(|tx| *tx != TxId::NONE);
                let between = daemon == Daemon::C && busy && !open;
                // oxenstored forgets a removal that removed nothing in the snapshot, though it might by the end.
                let idle = matches!(request, Request::Rm(_) | Request::Mkdir(_));
                let forgotten = daemon == Daemon::Ocaml && open && idle;
                let skip = between || forgotten || inherits_otherwise(daemon, request);
                if starts && open || ends && !open || skip {
                    continue;
                }
                let (us, them) = if *is_guest {
                    ask_guest(&guest, &mut our_guest, request)
                } else {
                    (ours.ask(*slot, request), theirs.ask(*slot, request))
                };
                if diverged(request, &us, &them) {
                    break;
                }
                prop_assert!(
                    same(daemon, *is_guest, request, &us, &them),
                    "{daemon:?}, request {number} (guest: {is_guest}, transaction {slot}) {request:?}:\nours   {us:?}\ntheirs {them:?}"
                );
            }
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    });
}

/// A connection of dom0's that registers watches, and then only collects their events.
struct Watcher {
    stream: UnixStream,
    decoder: Decoder,
}

impl Watcher {
    fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, decoder: Decoder::default() }
    }

    /// Asks, and gathers the events that come before the answer.
    fn ask(&mut self, request: &Request) -> BTreeSet<(String, String)> {
        let mut message = Vec::new();
        request.append(TxId::NONE, 1, &mut message).unwrap();
        self.stream.write_all(&message).unwrap();
        let mut events = BTreeSet::new();
        loop {
            let mut byte = [0; 1];
            self.stream.read_exact(&mut byte).unwrap();
            let frame = self.decoder.next(&mut &byte[..]).unwrap();
            let Some(Frame { header, payload: Payload::Whole(payload) }) = frame else { continue };
            if header.kind != Kind::WatchEvent {
                return events;
            }
            let (path, token) = wire::watch_event(&payload).unwrap();
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            events.insert((text(path), text(token)));
        }
    }

    /// The events so far.
    fn events(&mut self) -> BTreeSet<(String, String)> {
        self.ask(&Request::GetDomainPath(DomId::DOM0))
    }
}

#[test]
fn random_requests_cause_the_same_events() {
    with_each(|oracle| {
        let daemon = oracle.daemon;
        let (endpoint, socket) = (oracle.endpoint(), oracle.socket());
        let guest = RefCell::new(oracle.guest(D));
        let runner =
            Config { failure_persistence: None, max_shrink_iters: 2000, ..Config::with_cases(CASES) };
        let sequences = proptest::collection::vec(any_ask(), 1..40);
        let result = TestRunner::new(runner).run(&sequences, |asks| {
            let store = SharedStore::new();
            let (near, far) = UnixStream::pair().unwrap();
            let serving = serve(&store, far, DomId::DOM0).unwrap();
            let mut our_guest = store.transport(D);
            let mut ours = Side::new(store.transport(DomId::DOM0));
            let mut theirs = Side::new(StreamTransport::new(endpoint.clone()));
            prepare(daemon, &mut |request| (ours.ask(0, request), theirs.ask(0, request)));
            let mut watchers = [Watcher::new(near), Watcher::new(UnixStream::connect(&socket).unwrap())];
            for (number, watched) in
                ["/t", "/t/a/b", "/t/c/d", "/local/domain/5/data/x"].into_iter().enumerate()
            {
                for watcher in &mut watchers {
                    watcher
                        .ask(&Request::Watch { path: path(watched), token: number.to_string().into_bytes() });
                }
            }
            let [first, second] = watchers.each_mut().map(Watcher::events);
            prop_assert_eq!(first, second, "{:?} at registration", daemon);
            for (is_guest, _, request) in &asks {
                let in_transaction =
                    matches!(request, Request::TransactionStart | Request::TransactionEnd { .. });
                if in_transaction || inherits_otherwise(daemon, request) {
                    continue;
                }
                if *is_guest {
                    let _ = ask_guest(&guest, &mut our_guest, request);
                } else {
                    let _ = (ours.ask(0, request), theirs.ask(0, request));
                }
                let [us, them] = watchers.each_mut().map(Watcher::events);
                // oxenstored tells of every watch below a removed node, also of those for nodes that were not there.
                let more = daemon == Daemon::Ocaml && matches!(request, Request::Rm(_));
                let agreed = if more { us.is_subset(&them) } else { us == them };
                prop_assert!(
                    agreed,
                    "{daemon:?} (guest: {is_guest}): {request:?}\nours   {us:?}\ntheirs {them:?}"
                );
            }
            drop(watchers);
            serving.stop();
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    });
}

#[test]
fn guests_run_into_the_same_quotas() {
    with_each(|oracle| {
        let daemon = oracle.daemon;
        let mut theirs = Side::new(StreamTransport::new(oracle.endpoint()));
        let guest = RefCell::new(oracle.guest(D));
        let store = SharedStore::new();
        let mut our_guest = store.transport(D);
        let mut ours = Side::new(store.transport(DomId::DOM0));
        prepare(daemon, &mut |request| (ours.ask(0, request), theirs.ask(0, request)));
        let data = |below: String| path(&format!("/local/domain/5/data/{below}"));
        let mut refused = 0;
        for n in 0..1100 {
            let request = Request::Mkdir(data(format!("{}/{}", n / 40, n % 40)));
            let (us, them) = ask_guest(&guest, &mut our_guest, &request);
            assert_eq!(us.is_ok(), them.is_ok(), "{daemon:?}, {n}: {us:?}, {them:?}");
            refused +=
                usize::from(us == Err(Errno::NoSpc) && matches!(them, Err(Errno::NoSpc | Errno::Quota)));
        }
        assert!(refused > 100, "{refused}");
    });
}
