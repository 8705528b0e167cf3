//! Our client behind the traits of xenstore-rs, and that crate's own client as an independent second opinion.
//!
//! That client takes its socket from the environment only, which a test must not change for its neighbours: the work
//! is done by a child process, this same program with one test chosen.
#![cfg(feature = "xenstore-rs")]

#[path = "common/oracle.rs"]
#[allow(dead_code, reason = "guests and other tools are for the other tests")]
mod oracle;

use oracle::with_each;
use std::io::ErrorKind;
use std::process::Command;
use std::sync::Arc;
use xenstore::compat::SharedClient;
use xenstore::{Client, Error, Operations, Path};
use xenstore_rs::unix::XsUnix;
use xenstore_rs::{Xs, XsTransaction, XsTransactionSpan};

#[test]
fn both_clients_agree() {
    with_each(|oracle| {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["child_of_both_clients_agree", "--exact", "--ignored", "--nocapture"])
            .env("XENSTORED_PATH", oracle.socket())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(
            child.status.success() && said.contains("1 passed"),
            "{said}{}",
            String::from_utf8_lossy(&child.stderr)
        );
    });
}

/// What a client says to the same questions, with kinds for errors.
fn interview(xs: &impl Xs, home: &str) -> Vec<String> {
    let at = |name: &str| format!("{home}/{name}");
    let mut said = Vec::new();
    let mut note = |what: &str, answer: Result<String, std::io::Error>| {
        said.push(format!("{what}: {:?}", answer.map_err(|e| e.kind())));
    };
    let list = |mut names: Vec<Box<str>>| {
        names.sort_unstable();
        names.join(",")
    };
    note("read nothing", xs.read(&at("a")).map(Into::into));
    note("list nothing", xs.directory(&at("a")).map(list));
    note("write", xs.write(&at("a/b/c"), "value").map(|()| String::new()));
    note("read", xs.read(&at("a/b/c")).map(Into::into));
    note("write again", xs.write(&at("a/b/c"), "grüße").map(|()| String::new()));
    note("read again", xs.read(&at("a/b/c")).map(Into::into));
    note("empty", xs.write(&at("a/d"), "").map(|()| String::new()));
    note("read empty", xs.read(&at("a/d")).map(Into::into));
    note("list", xs.directory(&at("a")).map(list));
    note("list leaf", xs.directory(&at("a/d")).map(list));
    note("bad path", xs.read(&at("a b")).map(Into::into));
    note("bad write", xs.write(&at("a//b"), "x").map(|()| String::new()));
    note("rm leaf", xs.rm(&at("a/d")).map(|()| String::new()));
    note("rm missing leaf", xs.rm(&at("a/d")).map(|()| String::new()));
    note("rm missing branch", xs.rm(&at("x/y/z")).map(|()| String::new()));
    note("rm", xs.rm(&at("a")).map(|()| String::new()));
    note("read after rm", xs.read(&at("a/b/c")).map(Into::into));
    said
}

#[test]
#[ignore = "run by both_clients_agree with a daemon of its own"]
fn child_of_both_clients_agree() {
    let theirs = XsUnix::new().unwrap();
    let ours = SharedClient::from(Client::connect().unwrap());
    let expected = interview(&theirs, "/theirs");
    assert_eq!(interview(&ours, "/ours"), expected);
    let span = ours.transaction().unwrap();
    assert_eq!(interview(&span, "/span"), expected);
    span.commit().unwrap();

    theirs.write("/x/by-them", "1").unwrap();
    assert_eq!(&*ours.read("/x/by-them").unwrap(), "1");
    ours.write("/x/by-us", "2").unwrap();
    assert_eq!(&*theirs.read("/x/by-us").unwrap(), "2");

    // Theirs sees nothing of a transaction before it is committed, and nothing at all of one that is dropped.
    let span = ours.transaction().unwrap();
    span.write("/x/later", "3").unwrap();
    assert_eq!(theirs.read("/x/later").unwrap_err().kind(), ErrorKind::NotFound);
    span.commit().unwrap();
    assert_eq!(&*theirs.read("/x/later").unwrap(), "3");
    let span = ours.transaction().unwrap();
    span.write("/x/never", "4").unwrap();
    drop(span);
    assert_eq!(theirs.read("/x/never").unwrap_err().kind(), ErrorKind::NotFound);

    // A conflict is the caller's to resolve.
    let span = ours.transaction().unwrap();
    span.write("/x/later", span.read("/x/later").unwrap().repeat(2).as_str()).unwrap();
    theirs.write("/x/later", "5").unwrap();
    assert_eq!(span.commit().unwrap_err().kind(), ErrorKind::WouldBlock);

    // Where ours is stricter, or says more.
    assert_eq!(ours.read("/x\0/y").unwrap_err().kind(), ErrorKind::InvalidInput);
    let refused = ours.read("/nothing").unwrap_err();
    let inside = refused.get_ref().and_then(|e| e.downcast_ref::<Error>()).and_then(Error::errno);
    assert_eq!(inside, Some(&xenstore::Errno::NoEnt));
    Client::connect().unwrap().write(&Path::new("/x/bytes").unwrap(), vec![0xff]).unwrap();
    assert_eq!(ours.read("/x/bytes").unwrap_err().kind(), ErrorKind::InvalidData);

    // One connection, many threads.
    let shared = Arc::new(ours);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let xs = Arc::clone(&shared);
            scope.spawn(move || {
                for i in 0..100 {
                    let (node, value) = (format!("/t/{thread}"), i.to_string());
                    xs.write(&node, &value).unwrap();
                    assert_eq!(&*xs.read(&node).unwrap(), value);
                }
            });
        }
    });
}

#[test]
fn a_span_does_not_outlive_its_connection() {
    with_each(|oracle| {
        let ours = SharedClient::from(oracle.client());
        let span = ours.transaction().unwrap();
        oracle.restart();
        // The client connects anew, and its next transaction may well have the same number.
        ours.write("/a", "1").unwrap();
        let other = ours.transaction().unwrap();
        assert_eq!(span.write("/b", "lost").unwrap_err().kind(), ErrorKind::ConnectionAborted);
        assert_eq!(span.commit().unwrap_err().kind(), ErrorKind::ConnectionAborted);
        other.commit().unwrap();
        assert_eq!(ours.read("/b").unwrap_err().kind(), ErrorKind::NotFound);
    });
}
