use super::limits::{
    MAX_EVENTS, MAX_NODE_SIZE, MAX_NODES, MAX_TRANSACTION_REQUESTS, MAX_TRANSACTIONS, MAX_WATCHES,
};
use super::*;
use crate::batch::Batch;
use crate::client::Client;
use crate::operations::Operations;
use crate::perms::Access;
use crate::transport::Transport;
use crate::watch::{Event, WatchStream};
use mio::{Events, Interest, Poll, Token};
use std::time::Duration;

const D: DomId = DomId(5);

fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

/// A store with a guest's home in it.
fn store() -> SharedStore {
    let store = SharedStore::new();
    let mut dom0 = store.client(DomId::DOM0);
    let mut batch = Batch::new();
    batch.mkdir_with(path("/local/domain/5"), Perms::ro(D));
    batch.mkdir_with(path("/local/domain/5/data"), Perms::rw(D));
    dom0.commit(&batch).unwrap();
    dom0.introduce(D, 1, 1).unwrap();
    store
}

fn events(store: &SharedStore, connection: ConnectionId) -> Vec<(String, String)> {
    let mut store = store.lock();
    let text = |e: WatchEvent| (e.path.to_string(), String::from_utf8(e.token.to_vec()).unwrap());
    std::iter::from_fn(|| store.take_event(connection)).map(text).collect()
}

fn watch(transport: &mut StoreTransport, at: &str, token: &str) -> Answer {
    let watch = Request::Watch { path: path(at), token: token.as_bytes().to_vec() };
    transport.exchange(&[(TxId::NONE, watch)]).unwrap().remove(0)
}

fn pair(path: &str, token: &str) -> (String, String) {
    (path.to_owned(), token.to_owned())
}

#[test]
fn a_guest_has_its_own_and_nothing_else() {
    let store = store();
    let mut guest = store.client(D);
    guest.write(&path("data/x/y"), "1").unwrap();
    assert_eq!(guest.get_perms(&path("data/x/y")).unwrap(), Some(Perms::rw(D)));
    assert_eq!(guest.read(&path("/local/domain/5/data/x/y")).unwrap().unwrap(), b"1");
    let refused = |r: Result<(), crate::Error>| r.unwrap_err().errno().cloned();
    assert_eq!(refused(guest.write(&path("name"), "x")), Some(Errno::Acces));
    assert_eq!(refused(guest.write(&path("/vm/x"), "x")), Some(Errno::Acces));
    assert_eq!(refused(guest.read(&path("/tool/none")).map(drop)), Some(Errno::Acces));
    assert_eq!(refused(guest.rm(&path("/local/domain/5"))), Some(Errno::Acces));
    assert_eq!(refused(guest.set_perms(&path("data"), &Perms::rw(DomId(6)))), Some(Errno::Perm));
    assert_eq!(refused(guest.introduce(DomId(6), 1, 1)), Some(Errno::Acces));
    assert_eq!(refused(guest.is_introduced(D).map(drop)), Some(Errno::Acces));
    guest.set_perms(&path("data"), &Perms::fe(D, DomId(6))).unwrap();
    let mut other = store.client(DomId(6));
    assert_eq!(other.directory(&path("/local/domain/5/data")).unwrap().unwrap(), ["x"]);
    assert!(other.write(&path("/local/domain/5/data"), "x").is_err());
}

#[test]
fn quotas_of_guests() {
    let store = store();
    let mut guest = store.client(D);
    let full = |r: Result<(), crate::Error>| assert_eq!(r.unwrap_err().errno(), Some(&Errno::NoSpc));
    full(guest.write(&path("data/big"), vec![0; MAX_NODE_SIZE]));
    assert!(!guest.exists(&path("data/big")).unwrap());
    guest.write(&path("data/big"), vec![0; MAX_NODE_SIZE - 100]).unwrap();
    full(guest.write(&path("data/big"), vec![0; MAX_NODE_SIZE]));
    let mut made = store.lock().nodes_of(D);
    while made < MAX_NODES {
        guest.write(&path(&format!("data/{}/{}", made % 100, made / 100)), "").unwrap();
        made = store.lock().nodes_of(D);
    }
    full(guest.write(&path("data/one-more"), ""));
    guest.rm(&path("data/1")).unwrap();
    guest.write(&path("data/one-more"), "").unwrap();
    let list: Vec<_> = (0..5).map(|n| (DomId(n), Access::Read)).collect();
    full(guest.set_perms(&path("data"), &Perms { acl: list, ..Perms::rw(D) }));

    let mut transport = store.transport(D);
    for n in 0..MAX_WATCHES {
        assert!(watch(&mut transport, "data", &n.to_string()).is_ok());
    }
    assert_eq!(watch(&mut transport, "data", "more"), Err(Errno::NoSpc));
    let start = vec![(TxId::NONE, Request::TransactionStart); MAX_TRANSACTIONS + 1];
    let answers = transport.exchange(&start).unwrap();
    assert!(answers[..MAX_TRANSACTIONS].iter().all(Result::is_ok));
    assert_eq!(answers[MAX_TRANSACTIONS], Err(Errno::NoSpc));
    let reads = vec![(TxId(1), Request::Read(path("data"))); MAX_TRANSACTION_REQUESTS + 1];
    assert_eq!(transport.exchange(&reads).unwrap()[MAX_TRANSACTION_REQUESTS], Err(Errno::NoSpc));
}

#[test]
fn transactions_conflict_only_over_what_they_saw() {
    let store = store();
    let (mut one, mut two) = (store.client(DomId::DOM0), store.client(DomId::DOM0));
    let mut runs = 0;
    one.transaction::<_, crate::Error>(|t| {
        runs += 1;
        two.write(&path(&format!("/a/elsewhere-{runs}")), "x")?;
        assert!(!t.exists(&path("/a/elsewhere-1"))? || runs > 1);
        t.write(&path("/a/here"), "1")
    })
    .unwrap();
    // It looked at what was made meanwhile.
    assert_eq!(runs, 2);
    runs = 0;
    one.transaction::<_, crate::Error>(|t| {
        runs += 1;
        two.write(&path("/a/other"), "x")?;
        assert_eq!(t.read(&path("/a/other"))?, (runs > 1).then(|| b"x".to_vec()));
        t.write(&path("/a/there"), "1")
    })
    .unwrap();
    assert_eq!(runs, 2);
    runs = 0;
    one.transaction::<_, crate::Error>(|t| {
        runs += 1;
        two.write(&path("/a/unseen"), "x")?;
        t.write(&path("/a/again"), "1")
    })
    .unwrap();
    assert_eq!(runs, 1);
    assert!(two.exists(&path("/a/unseen")).unwrap() && two.exists(&path("/a/again")).unwrap());
}

#[test]
fn events_reach_who_may_know() {
    let store = store();
    let mut dom0 = store.client(DomId::DOM0);
    let (mut tools, mut guest) = (store.transport(DomId::DOM0), store.transport(D));
    watch(&mut tools, "/local/domain/5", "t").unwrap();
    watch(&mut tools, "/local/domain/5/data/x/y", "deep").unwrap();
    watch(&mut guest, "data", "g").unwrap();
    watch(&mut guest, "/secret", "s").unwrap();
    watch(&mut guest, "@releaseDomain", "r").unwrap();
    assert_eq!(watch(&mut guest, "data", "g"), Err(Errno::Exist));
    assert_eq!(events(&store, tools.connection()).len(), 2);
    assert_eq!(
        events(&store, guest.connection()),
        [pair("data", "g"), pair("/secret", "s"), pair("@releaseDomain", "r")]
    );
    dom0.write(&path("/secret"), "x").unwrap();
    dom0.write(&path("/local/domain/5/data/x/y"), "x").unwrap();
    dom0.write(&path("/local/domain/5/data/x/y"), "y").unwrap();
    dom0.introduce(DomId(7), 1, 1).unwrap();
    dom0.release(DomId(7)).unwrap();
    assert_eq!(events(&store, guest.connection()), [pair("data/x/y", "g")]);
    let y = "/local/domain/5/data/x/y";
    assert_eq!(events(&store, tools.connection()), [pair(y, "t"), pair(y, "deep")]);
    dom0.rm(&path("/local/domain/5/data")).unwrap();
    let data = "/local/domain/5/data";
    assert_eq!(events(&store, tools.connection()), [pair(data, "t"), pair(y, "deep")]);
    assert_eq!(events(&store, guest.connection()), [pair("data", "g")]);
    let perms = Perms::no().with(D, Access::Read);
    dom0.set_perms(&path("@releaseDomain"), &perms).unwrap();
    assert_eq!(dom0.get_perms(&path("@releaseDomain")).unwrap(), Some(perms));
    dom0.introduce(DomId(7), 1, 1).unwrap();
    dom0.release(DomId(7)).unwrap();
    assert_eq!(events(&store, guest.connection()), [pair("@releaseDomain", "r")]);
}

#[test]
fn events_nobody_fetches_are_bounded() {
    let store = store();
    let mut dom0 = store.client(DomId::DOM0);
    let mut guest = store.transport(D);
    watch(&mut guest, "data", "1").unwrap();
    watch(&mut guest, "data", "2").unwrap();
    for n in 0..MAX_EVENTS * 2 {
        dom0.write(&path(&format!("/local/domain/5/data/{}", n % 700)), "x").unwrap();
    }
    let waiting = store.lock().events_waiting(guest.connection());
    assert!(waiting <= MAX_EVENTS + 2, "{waiting}");
}

#[test]
fn events_of_a_transaction_come_with_its_end() {
    let store = store();
    let mut tools = store.transport(DomId::DOM0);
    watch(&mut tools, "/a", "t").unwrap();
    events(&store, tools.connection());
    let mut dom0 = store.client(DomId::DOM0);
    let aborted = dom0.transaction::<(), crate::Error>(|t| {
        t.write(&path("/a"), "1")?;
        Err(crate::Error::NotText { path: path("/a") })
    });
    assert!(aborted.is_err());
    assert_eq!(events(&store, tools.connection()), []);
    dom0.transaction::<(), crate::Error>(|t| {
        t.write(&path("/a/b"), "1")?;
        t.write(&path("/a/b"), "2")?;
        assert_eq!(events(&store, tools.connection()), []);
        Ok(())
    })
    .unwrap();
    assert_eq!(events(&store, tools.connection()), [pair("/a/b", "t")]);
}

#[test]
fn a_dead_domain_leaves_nothing_and_its_successor_inherits_nothing() {
    let store = store();
    let mut dom0 = store.client(DomId::DOM0);
    let mut guest = store.client(D);
    guest.write(&path("data/x"), "1").unwrap();
    dom0.write(&path("/elsewhere/a"), "1").unwrap();
    dom0.set_perms(&path("/elsewhere/a"), &Perms::rw(D)).unwrap();
    dom0.write(&path("/elsewhere/b"), "1").unwrap();
    dom0.set_perms(&path("/elsewhere/b"), &Perms::ro(D)).unwrap();
    let released = {
        let mut tools = store.transport(DomId::DOM0);
        watch(&mut tools, "@releaseDomain", "r").unwrap();
        events(&store, tools.connection());
        store.lock().domain_shut_down(D);
        store.lock().domain_shut_down(D);
        assert_eq!(events(&store, tools.connection()).len(), 1);
        store.lock().domain_died(D);
        events(&store, tools.connection())
    };
    assert_eq!(released, [pair("@releaseDomain", "r")]);
    assert!(matches!(
        guest.read(&path("/elsewhere/b")),
        Err(crate::Error::Refused { errno: Errno::Acces, .. })
    ));
    assert_eq!(store.lock().nodes_of(D), 0);
    assert_eq!(dom0.directory(&path("/elsewhere")).unwrap().unwrap(), ["b"]);
    assert_eq!(dom0.get_perms(&path("/elsewhere/b")).unwrap(), Some(Perms::no()));
    assert_eq!(dom0.directory(&path("/local/domain/5")).unwrap().unwrap(), [""; 0]);
    dom0.set_perms(&path("/elsewhere/b"), &Perms::ro(D)).unwrap();
    assert_eq!(guest.read(&path("/elsewhere/b")).unwrap().unwrap(), b"1");
}

#[test]
fn long_directories_come_in_parts() {
    let store = store();
    let mut dom0 = store.client(DomId::DOM0);
    let mut names: Vec<_> = (0..3000).map(|n| format!("a-rather-long-name-{n}")).collect();
    for name in &names {
        dom0.mkdir(&path(&format!("/many/{name}"))).unwrap();
    }
    names.sort();
    assert_eq!(dom0.directory(&path("/many")).unwrap().unwrap(), names);
    let part = dom0.request(Request::DirectoryPart { path: path("/many"), offset: u32::MAX }).unwrap();
    assert!(part.0.ends_with(b"\0\0"));
}

#[test]
fn the_deepest_path_is_no_danger() {
    let store = store();
    let mut dom0 = store.client(DomId::DOM0);
    let deep = "/a".repeat(crate::path::MAX_ABSOLUTE / 2);
    dom0.write(&path(&deep), "x").unwrap();
    let worker = std::thread::Builder::new().stack_size(128 * 1024);
    worker.spawn(move || dom0.rm(&path("/a")).unwrap()).unwrap().join().unwrap();
}

#[test]
fn clients_and_watches_work_over_the_wire() {
    let store = store();
    let directory = tempfile::tempdir().unwrap();
    let listening = listen(&store, &directory.path().join("socket")).unwrap();
    let endpoint = listening.endpoint();
    let mut client = Client::connect_to(endpoint.clone()).unwrap();
    let mut stream = WatchStream::connect(endpoint).unwrap();
    let mut poll = Poll::new().unwrap();
    poll.registry().register(&mut stream, Token(0), Interest::READABLE | Interest::WRITABLE).unwrap();
    let token = stream.watch(&path("/many"));
    let mut got = Vec::new();
    let mut ready = Events::with_capacity(4);
    let mut wait_for = |n: usize, stream: &mut WatchStream| {
        while got.len() < n {
            poll.poll(&mut ready, Some(Duration::from_secs(20))).unwrap();
            assert!(!ready.is_empty(), "{got:?}");
            stream.drain(|e| got.push(e)).unwrap();
        }
        std::mem::take(&mut got)
    };
    assert_eq!(wait_for(1, &mut stream), [Event::Changed { token, path: path("/many") }]);
    let mut batch = Batch::new();
    for n in 0..500 {
        batch.write(path(&format!("/many/{n}")), vec![b'x'; 2000]);
    }
    client.commit(&batch).unwrap();
    assert!(!wait_for(1, &mut stream).is_empty());
    let all: Vec<_> = (0..500).map(|n| path(&format!("/many/{n}"))).collect();
    assert!(client.read_all(&all).unwrap().iter().all(|v| v.as_ref().is_some_and(|v| v.len() == 2000)));
    assert_eq!(client.read(&path("/none")).unwrap(), None);
}

#[test]
fn a_served_guest_is_cut_off_when_its_domain_dies() {
    let store = store();
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let serving = serve(&store, theirs, D).unwrap();
    store.lock().domain_died(D);
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(std::io::Read::read(&mut &ours, &mut [0; 16]).unwrap(), 0);
    serving.stop();
}
