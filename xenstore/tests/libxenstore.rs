//! Our own client and libxenstore side by side on one daemon, asked the same.
//!
//! libxenstore takes its socket from the environment only, which a test must not change for its neighbours: the work
//! is done by a child process, this same program with one test chosen.
#![cfg(feature = "libxenstore")]

#[path = "common/oracle.rs"]
#[allow(dead_code, reason = "guests and other tools are for the other tests")]
mod oracle;

use oracle::{Daemon, with_each};
use std::process::Command;
use xenstore::transport::LibTransport;
use xenstore::{Access, Batch, Client, DomId, Error, Operations, Path, Perms, Request, TransportError};

fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

#[test]
fn both_transports_agree() {
    with_each(|oracle| {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["child_of_both_transports_agree", "--exact", "--ignored", "--nocapture"])
            .env("XENSTORED_PATH", oracle.socket())
            .env("IS_OXENSTORED", u8::from(oracle.daemon == Daemon::Ocaml).to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        let complained = String::from_utf8_lossy(&child.stderr);
        assert!(child.status.success() && said.contains("1 passed"), "{said}{complained}");
    });
}

/// What the daemon answers over this transport to one of everything.
fn interview(client: &mut Client, home: &str) -> Vec<String> {
    let at = |name: &str| path(&format!("{home}/{name}"));
    let d = DomId(9);
    let perms = Perms::fe(DomId::DOM0, DomId::DOM0).with(DomId::DOM0, Access::Both);
    let requests = vec![
        Request::Read(at("a")),
        Request::Directory(at("a")),
        Request::GetPerms(at("a")),
        Request::Rm(at("a")),
        Request::Rm(at("x/y/z")),
        Request::Write { path: at("a/b"), value: b"1\0\xff".to_vec() },
        Request::Read(at("a/b")),
        Request::Mkdir(at("a/c")),
        Request::Mkdir(at("a/c")),
        Request::SetPerms { path: at("a/c"), perms },
        Request::GetPerms(at("a/c")),
        Request::Read(at("a/c")),
        Request::Directory(at("a/c")),
        Request::Rm(at("a/b")),
        Request::Directory(at("a")),
        Request::SetPerms { path: at("missing"), perms: Perms::no() },
        Request::GetDomainPath(d),
        Request::IsDomainIntroduced(d),
        Request::Introduce { domid: d, gfn: 1, port: 1 },
        Request::IsDomainIntroduced(d),
        Request::Release(d),
        Request::Release(d),
    ];
    let names: Vec<_> = requests.iter().map(Request::name).collect();
    let answers = client.pipeline(requests).unwrap();
    // The daemons say OK in several ways, and end texts with a NUL or not.
    let plain =
        |reply: xenstore::Reply| String::from_utf8_lossy(&reply.0).trim_end_matches('\0').replace("OK", "");
    names.iter().zip(answers).map(|(name, answer)| format!("{name}: {:?}", answer.map(plain))).collect()
}

#[test]
#[ignore = "run by both_transports_agree with a daemon of its own"]
fn child_of_both_transports_agree() {
    let mut ours = Client::connect().unwrap();
    let mut theirs = Client::new(Box::new(LibTransport::open().unwrap()));
    assert_eq!(interview(&mut theirs, "/theirs"), interview(&mut ours, "/ours"));

    // Transactions: seen by nobody before their end, tried again after a conflict, gone when aborted.
    let counter = path("/counter");
    ours.write(&counter, "0").unwrap();
    let mut runs = 0;
    theirs
        .transaction::<_, Error>(|t| {
            runs += 1;
            let value: u32 = t.read_str(&counter)?.unwrap().parse().unwrap();
            t.write(&counter, (value + 1).to_string())?;
            if runs == 1 {
                ours.write(&counter, "41").unwrap();
            }
            Ok(())
        })
        .unwrap();
    assert_eq!((runs, ours.read_str(&counter).unwrap().unwrap().as_str()), (2, "42"));
    let aborted = theirs.transaction::<(), Error>(|t| {
        t.write(&counter, "lost")?;
        Err(Error::NotText { path: counter.clone() })
    });
    assert!(aborted.is_err());
    let mut batch = Batch::new();
    batch.mkdir_with(path("/batch"), Perms::no()).rm(path("/nothing/at/all")).prune(path("/batch"));
    theirs.commit(&batch).unwrap();
    assert_eq!(ours.read_str(&counter).unwrap().unwrap(), "42");

    let long = theirs.write(&path("/long"), vec![0; 4096]).unwrap_err();
    assert!(matches!(long, Error::Transport(TransportError::Encode(_))), "{long}");

    // A directory that fits no message: oxenstored sends it all the same, and the library then gives up its
    // connection. The transport opens another.
    let mut batch = Batch::new();
    for i in 0..300 {
        batch.mkdir(path(&format!("/many/a-rather-long-name-for-a-child-{i}")));
    }
    ours.commit(&batch).unwrap();
    let listed = theirs.directory(&path("/many"));
    if std::env::var("IS_OXENSTORED").is_ok_and(|v| v == "1") {
        assert!(listed.is_err());
        let _ = theirs.read(&counter);
    } else {
        assert_eq!(listed.unwrap().unwrap().len(), 300);
    }
    assert_eq!(theirs.read(&counter).unwrap().unwrap(), b"42");
}
