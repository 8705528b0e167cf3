//! The client, the watches and the layouts against Debian's xenstored and oxenstored, checked with Debian's own
//! tools and from a guest's side.

mod layouts;
#[path = "../common/oracle.rs"]
mod oracle;

use mio::{Events, Interest, Poll, Token};
use oracle::{Daemon, with_each};
use std::collections::BTreeSet;
use std::time::Duration;
use xenstore::watch::Event;
use xenstore::{Batch, DomId, Errno, Error, Operations, Path, Perms, Request, WatchStream};

const D: DomId = DomId(5);

fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

#[test]
fn single_requests() {
    with_each(|oracle| {
        let mut client = oracle.client();
        let node = path("/test/a");
        assert_eq!(client.read(&node).unwrap(), None);
        assert_eq!(client.directory(&node).unwrap(), None);
        assert_eq!(client.get_perms(&node).unwrap(), None);
        assert!(!client.exists(&node).unwrap());
        client.rm(&node).unwrap();
        client.mkdir(&node).unwrap();
        client.mkdir(&node).unwrap();
        assert_eq!(client.read(&node).unwrap().unwrap(), b"");
        let value: Vec<u8> = (0..=255).collect();
        client.write(&node, value.clone()).unwrap();
        assert_eq!(client.read(&node).unwrap().unwrap(), value);
        client.write(&node, "").unwrap();
        assert_eq!(client.read(&node).unwrap().unwrap(), b"");
        let perms = Perms::fe(DomId::DOM0, DomId::DOM0);
        client.set_perms(&node, &perms).unwrap();
        assert_eq!(client.get_perms(&node).unwrap(), Some(perms));
        assert_eq!(client.directory(&path("/test")).unwrap().unwrap(), ["a"]);
        assert_eq!(client.directory(&node).unwrap().unwrap(), [""; 0]);
        assert_eq!(client.domain_path(D).unwrap(), path("/local/domain/5"));
        assert!(!client.is_introduced(D).unwrap());
        client.introduce(D, 1, 1).unwrap();
        assert!(client.is_introduced(D).unwrap());
        client.release(D).unwrap();
        assert!(!client.is_introduced(D).unwrap());
        assert_eq!(
            client.set_perms(&path("/nothing"), &Perms::no()).unwrap_err().errno(),
            Some(&Errno::NoEnt)
        );
        client.rm(&path("/test")).unwrap();
        assert!(!client.exists(&node).unwrap());
    });
}

#[test]
fn directories_of_any_length() {
    with_each(|oracle| {
        let mut client = oracle.client();
        let names: BTreeSet<_> =
            (0..3000).map(|i| format!("a-rather-long-name-for-a-child-number-{i}")).collect();
        let dir = path("/many");
        let mut batch = Batch::new();
        for name in &names {
            batch.mkdir(dir.join(name).unwrap());
        }
        client.commit(&batch).unwrap();
        let listed: BTreeSet<_> = client.directory(&dir).unwrap().unwrap().into_iter().collect();
        assert_eq!(listed, names);
        let within = client.transaction(|t| t.directory(&dir)).unwrap().unwrap();
        assert_eq!(within.len(), 3000);
    });
}

#[test]
fn real_conflicts_are_resolved_by_trying_again() {
    with_each(|oracle| {
        let (mut one, mut two) = (oracle.client(), oracle.client());
        let counter = path("/counter");
        one.write(&counter, "0").unwrap();
        let mut runs = 0;
        one.transaction::<_, Error>(|t| {
            runs += 1;
            let value: u32 = t.read_str(&counter)?.unwrap().parse().unwrap();
            if runs == 1 {
                two.write(&counter, "41").unwrap();
            }
            t.write(&counter, (value + 1).to_string())
        })
        .unwrap();
        assert_eq!(runs, 2);
        assert_eq!(one.read_str(&counter).unwrap().unwrap(), "42");
    });
}

#[test]
fn an_aborted_transaction_and_a_refused_batch_leave_nothing() {
    with_each(|oracle| {
        let mut client = oracle.client();
        let result = client.transaction::<(), Error>(|t| {
            t.write(&path("/aborted"), "1")?;
            assert!(t.exists(&path("/aborted"))?);
            Err(Error::NotText { path: path("/aborted") })
        });
        assert!(result.is_err());
        let mut batch = Batch::new();
        batch.write(path("/refused"), "1").set_perms(path("/missing"), Perms::no());
        assert_eq!(client.commit(&batch).unwrap_err().errno(), Some(&Errno::NoEnt));
        assert!(!client.exists(&path("/aborted")).unwrap());
        assert!(!client.exists(&path("/refused")).unwrap());
    });
}

#[test]
fn pruning_in_a_real_store() {
    with_each(|oracle| {
        let mut client = oracle.client();
        let mut batch = Batch::new();
        batch.write(path("/p/vbd/1"), "x").write(path("/p/vif/1"), "x").write(path("/p/vif/2"), "x");
        client.commit(&batch).unwrap();
        let mut batch = Batch::new();
        batch
            .rm(path("/p/vbd/1"))
            .prune(path("/p/vbd"))
            .rm(path("/p/vif/1"))
            .prune(path("/p/vif"))
            .prune(path("/p/no"));
        client.commit(&batch).unwrap();
        assert!(!client.exists(&path("/p/vbd")).unwrap());
        assert!(client.exists(&path("/p/vif/2")).unwrap());
    });
}

#[test]
fn uprooting_in_a_real_store() {
    with_each(|oracle| {
        let mut client = oracle.client();
        let uproot = |client: &mut xenstore::Client, nodes: &[&str]| {
            let mut batch = Batch::new();
            for node in nodes {
                batch.uproot(path(node)).write(path("/q/is"), "here");
            }
            client.commit(&batch).unwrap();
        };
        for node in ["/q/vbd/1/state", "/q/vbd/2/state", "/q/vif/1/state", "/q/vif/2/state"] {
            client.write(&path(node), "x").unwrap();
        }
        let there = |client: &mut xenstore::Client, node: &str| client.exists(&path(node)).unwrap();
        uproot(&mut client, &["/q/vbd/1", "/q/vif/no", "/q/no/1"]);
        assert!(!there(&mut client, "/q/vbd/1") && there(&mut client, "/q/vbd/2/state"));
        // The last one takes the directory along, and so do two that are the last together.
        uproot(&mut client, &["/q/vbd/2", "/q/vif/1", "/q/vif/2"]);
        let left = client.directory(&path("/q")).unwrap();
        assert_eq!(left, Some(vec!["is".to_owned()]));
    });
}

/// Collects events until `done`.
fn watch_until(poll: &mut Poll, stream: &mut WatchStream, done: impl Fn(&[Event]) -> bool) -> Vec<Event> {
    let mut delivered = Vec::new();
    let mut ready = Events::with_capacity(4);
    while !done(&delivered) {
        poll.poll(&mut ready, Some(Duration::from_secs(20))).unwrap();
        assert!(!ready.is_empty(), "no more than {delivered:?}");
        if stream.drain(|e| delivered.push(e)).is_err() {
            break;
        }
    }
    delivered
}

#[test]
fn watches_report_and_survive_the_daemon() {
    with_each(|oracle| {
        let mut client = oracle.client();
        let mut poll = Poll::new().unwrap();
        let mut stream = WatchStream::connect(oracle.endpoint()).unwrap();
        let interests = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(0), interests).unwrap();
        let node = stream.watch(&path("/w"));
        let special = stream.watch(&path("@introduceDomain"));
        let gone = stream.watch(&path("/w"));
        watch_until(&mut poll, &mut stream, |e| e.len() >= 3);

        stream.unwatch(gone);
        client.write(&path("/w/below"), "1").unwrap();
        let changed = |token, p: &str| Event::Changed { token, path: path(p) };
        let below = watch_until(&mut poll, &mut stream, |e| !e.is_empty());
        assert_eq!(below, [changed(node, "/w/below")]);
        client.introduce(D, 1, 1).unwrap();
        let introduced = watch_until(&mut poll, &mut stream, |e| !e.is_empty());
        assert_eq!(introduced, [changed(special, "@introduceDomain")]);

        oracle.restart();
        assert_eq!(watch_until(&mut poll, &mut stream, |_| false), []);
        assert!(!stream.is_connected());
        stream.reconnect().unwrap();
        poll.registry().register(&mut stream, Token(0), interests).unwrap();
        let again = watch_until(&mut poll, &mut stream, |e| e.len() >= 3);
        assert_eq!(again, [Event::Resync, changed(node, "/w"), changed(special, "@introduceDomain")]);
        // The client's next request finds the new daemon too; only the store is empty.
        assert_eq!(client.read(&path("/w/below")).unwrap(), None);
        assert_eq!(client.generation(), 2);
        client.write(&path("/w/below"), "2").unwrap();
        assert_eq!(watch_until(&mut poll, &mut stream, |e| !e.is_empty()), [changed(node, "/w/below")]);
    });
}

#[test]
fn debians_tools_see_what_we_write_and_we_see_what_they_write() {
    with_each(|oracle| {
        let mut client = oracle.client();
        client.write(&path("/x/y"), "ours").unwrap();
        let Some(read) = oracle.run("xenstore-read", &["/x/y"]) else { return };
        assert_eq!(read, "ours\n");
        oracle.run("xenstore-write", &["/x/z", "theirs"]);
        assert_eq!(client.read_str(&path("/x/z")).unwrap().unwrap(), "theirs");
        oracle.run("xenstore-chmod", &["/x/z", "n0", "b0"]);
        let perms = client.get_perms(&path("/x/z")).unwrap().unwrap();
        assert_eq!(perms, "n0 b0".parse().unwrap());
        oracle.run("xenstore-rm", &["/x"]);
        assert!(!client.exists(&path("/x")).unwrap());
    });
}

#[test]
fn the_daemons_differ_where_the_protocol_was_extended() {
    with_each(|oracle| {
        let answer = oracle.client().request(Request::DirectoryPart { path: path("/tool"), offset: 0 });
        match oracle.daemon {
            Daemon::C => assert!(answer.is_ok()),
            // Versions up to 4.17; later ones know it.
            Daemon::Ocaml => assert!(answer.is_ok() || answer.unwrap_err().errno() == Some(&Errno::NoSys)),
        }
    });
}
