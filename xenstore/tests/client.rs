//! The client against a stand-in that misbehaves in each way a daemon can.

mod common;

use common::{Act, Fake, agree, event, message, path};
use std::cell::Cell;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use xenstore::transport::{MAX_IN_FLIGHT, StreamTransport, Transport, Violation};
use xenstore::wire::{EncodeError, Header, Kind, MAX_REPLY};
use xenstore::{
    Batch, Client, DomId, Endpoint, Errno, Error, MAX_ATTEMPTS, MAX_DIRECTORY_RESTARTS, Operations, Perms,
    Request, TransportError, TxId,
};

#[test]
fn a_conflict_is_tried_again_a_bounded_number_of_times() {
    let fake = Fake::start(|r| match r.header.kind {
        Kind::TransactionEnd => vec![Act::Refuse("EAGAIN")],
        _ => agree(r),
    });
    let runs = Cell::new(0);
    let result = fake.client().transaction(|t| {
        runs.set(runs.get() + 1);
        t.write(&path("/a"), "1")
    });
    assert!(matches!(result, Err(Error::Conflict { attempts: MAX_ATTEMPTS })));
    assert_eq!(runs.get(), MAX_ATTEMPTS);
    assert_eq!(fake.seen().iter().filter(|r| r.is(Kind::TransactionStart)).count(), MAX_ATTEMPTS);
}

#[test]
fn a_transaction_that_gets_through_in_the_end_yields_its_last_result() {
    let mut ends = 0;
    let fake = Fake::start(move |r| {
        ends += usize::from(r.is(Kind::TransactionEnd));
        if r.is(Kind::TransactionEnd) && ends < 3 { vec![Act::Refuse("EAGAIN")] } else { agree(r) }
    });
    let mut runs = 0;
    let result = fake.client().transaction::<_, Error>(|t| {
        runs += 1;
        assert_eq!(t.tx_id(), TxId(7));
        Ok(runs)
    });
    assert_eq!(result.unwrap(), 3);
    assert!(fake.seen().iter().all(|r| r.is(Kind::TransactionStart) || r.text() == "T|"));
}

#[test]
fn an_error_and_a_panic_abort() {
    let fake = Fake::start(agree);
    let mut client = fake.client();
    let refused = client.transaction::<(), Error>(|t| {
        t.write(&path("/a"), "1")?;
        Err(Error::NotText { path: path("/a") })
    });
    assert!(matches!(refused, Err(Error::NotText { .. })));
    let panicked =
        catch_unwind(AssertUnwindSafe(|| client.transaction::<(), Error>(|_| panic!("on purpose"))));
    assert!(panicked.is_err());
    // The connection is as good as before.
    client.write(&path("/b"), "2").unwrap();
    assert_eq!(client.generation(), 1);
    let ends: Vec<_> =
        fake.seen().iter().filter(|r| r.is(Kind::TransactionEnd)).map(common::Seen::text).collect();
    assert_eq!(ends, ["F|", "F|"]);
}

#[test]
fn a_batch_is_three_round_trips_and_a_refusal_names_the_node() {
    let fake = Fake::start(|r| {
        if r.is(Kind::SetPerms) && r.text().starts_with("/d3") {
            vec![Act::Refuse("EACCES")]
        } else {
            agree(r)
        }
    });
    let mut batch = Batch::new();
    for i in 0..5 {
        batch.mkdir_with(path(&format!("/d{i}")), Perms::ro(DomId(1)));
    }
    let error = fake.client().commit(&batch).unwrap_err();
    assert_eq!(error.to_string(), "xenstore set-perms /d3: EACCES");
    assert_eq!(error.errno(), Some(&Errno::Acces));
    let seen = fake.seen();
    assert_eq!(seen.len(), 12);
    assert!(seen[1..].iter().all(|r| r.header.tx_id == TxId(7)));
    assert_eq!(seen[11].text(), "F|");
}

#[test]
fn a_change_that_is_alone_needs_no_transaction() {
    let requests = |fill: fn(&mut Batch)| {
        let fake = Fake::start(|r| match (r.header.kind, r.text().as_str()) {
            (Kind::Rm, "/gone|") => vec![Act::Refuse("ENOENT")],
            (Kind::Directory, _) => vec![Act::Reply(Vec::new())],
            _ => agree(r),
        });
        let mut batch = Batch::new();
        fill(&mut batch);
        fake.client().commit(&batch).unwrap();
        fake.seen().iter().map(|r| (r.header.kind, r.header.tx_id)).collect::<Vec<_>>()
    };
    assert_eq!(requests(|b| _ = b.write(path("/a"), "1")), [(Kind::Write, TxId::NONE)]);
    assert_eq!(requests(|b| _ = b.rm(path("/gone"))), [(Kind::Rm, TxId::NONE)]);
    // What looks before it acts does.
    assert_eq!(requests(|b| _ = b.prune(path("/a")))[1], (Kind::Directory, TxId(7)));
    assert_eq!(requests(|_| ()), []);
}

#[test]
fn pruning_spares_directories_with_children() {
    let fake = Fake::start(|r| match (r.header.kind, r.text().as_str()) {
        (Kind::Directory, "/full|") => vec![Act::Reply(b"child\0".to_vec())],
        (Kind::Directory, "/huge|") => vec![Act::Refuse("E2BIG")],
        (Kind::Directory, "/empty|") => vec![Act::Reply(Vec::new())],
        (Kind::Directory, _) | (Kind::Rm, "/gone|") => vec![Act::Refuse("ENOENT")],
        _ => agree(r),
    });
    let mut batch = Batch::new();
    batch.rm(path("/gone"));
    for node in ["/full", "/empty", "/huge", "/absent"] {
        batch.prune(path(node));
    }
    fake.client().commit(&batch).unwrap();
    let removed: Vec<_> = fake.seen().iter().filter(|r| r.is(Kind::Rm)).map(common::Seen::text).collect();
    assert_eq!(removed, ["/gone|", "/empty|"]);
}

#[test]
fn uprooting_takes_a_directory_that_it_leaves_empty_in_one_removal() {
    let fake = Fake::start(|r| match (r.header.kind, r.text().as_str()) {
        (Kind::Directory, "/full|") => vec![Act::Reply(b"child\0other\0".to_vec())],
        (Kind::Directory, "/last|" | "/other|") => vec![Act::Reply(b"child\0".to_vec())],
        (Kind::Directory, "/two|") => vec![Act::Reply(b"child\0more\0".to_vec())],
        (Kind::Directory, "/huge|") => vec![Act::Refuse("E2BIG")],
        (Kind::Directory, _) | (Kind::Rm, "/huge/child|") => vec![Act::Refuse("ENOENT")],
        _ => agree(r),
    });
    let mut batch = Batch::new();
    for node in ["/full/child", "/last/child", "/two/child", "/two/more", "/huge/child", "/absent/child"] {
        batch.uproot(path(node));
    }
    // It is not there, and something else is.
    batch.uproot(path("/other/no"));
    fake.client().commit(&batch).unwrap();
    let removed: Vec<_> = fake.seen().iter().filter(|r| r.is(Kind::Rm)).map(common::Seen::text).collect();
    assert_eq!(removed, ["/full/child|", "/huge/child|", "/last|", "/two|"]);
}

#[test]
fn a_long_directory_comes_in_parts_and_starts_anew_when_it_changes() {
    let mut parts = 0;
    let fake = Fake::start(move |r| {
        if r.is(Kind::Directory) {
            vec![Act::Refuse("E2BIG")]
        } else {
            parts += 1;
            vec![Act::Reply(match (parts, r.text().as_str()) {
                (1, "/d|0|") => b"5\0old\0stale\0".to_vec(),
                (2, "/d|10|") | (3, "/d|0|") => b"6\0a\0bc\0".to_vec(),
                (4, "/d|5|") => b"6\0d\0\0".to_vec(),
                other => panic!("{other:?}"),
            })]
        }
    });
    assert_eq!(fake.client().directory(&path("/d")).unwrap().unwrap(), ["a", "bc", "d"]);
}

#[test]
fn an_empty_last_part_ends_a_directory() {
    let fake = Fake::start(|r| match (r.header.kind, r.text().as_str()) {
        (Kind::Directory, _) => vec![Act::Refuse("E2BIG")],
        (_, "/d|0|") => vec![Act::Reply(b"1\0a\0".to_vec())],
        _ => vec![Act::Reply(b"1\0\0".to_vec())],
    });
    assert_eq!(fake.client().directory(&path("/d")).unwrap().unwrap(), ["a"]);
}

#[test]
fn a_directory_without_end_or_rest_is_given_up() {
    let mut generation = 0;
    let changing = Fake::start(move |r| {
        if r.is(Kind::Directory) {
            vec![Act::Refuse("E2BIG")]
        } else {
            generation += 1;
            vec![Act::Reply(format!("{generation}\0a\0").into_bytes())]
        }
    });
    assert!(matches!(changing.client().directory(&path("/d")), Err(Error::BadReply { .. })));
    assert_eq!(changing.seen().len(), 1 + 2 * (MAX_DIRECTORY_RESTARTS + 1));

    for nonsense in [&b""[..], b"1", b"1\0", b"1\0a b\0\0"] {
        let fake = Fake::start(move |r| match r.header.kind {
            Kind::Directory => vec![Act::Refuse("E2BIG")],
            _ => vec![Act::Reply(nonsense.to_vec())],
        });
        assert!(matches!(fake.client().directory(&path("/d")), Err(Error::BadReply { .. })), "{nonsense:?}");
    }
}

#[test]
fn a_daemon_that_does_not_know_parts_is_named() {
    let fake = Fake::start(|r| vec![Act::Refuse(if r.is(Kind::Directory) { "E2BIG" } else { "ENOSYS" })]);
    let error = fake.client().directory(&path("/d")).unwrap_err();
    assert_eq!(error.to_string(), "xenstore directory-part /d: ENOSYS");
}

#[test]
fn silence_is_timed_out_and_the_next_request_connects_again() {
    let fake = Fake::start(|r| if r.connection == 0 { vec![Act::Ignore] } else { agree(r) });
    let mut client = fake.client();
    client.set_timeout(Duration::from_millis(50));
    let started = Instant::now();
    let error = client.read(&path("/slow")).unwrap_err();
    let Error::Transport(TransportError::TimedOut { operation, .. }) = &error else { panic!("{error}") };
    assert_eq!(operation, "read /slow");
    assert!(started.elapsed() >= Duration::from_millis(50));
    client.set_timeout(Duration::from_secs(20));
    assert_eq!(client.read(&path("/slow")).unwrap().unwrap(), b"OK\0");
    assert_eq!(client.generation(), 2);
}

#[test]
fn a_transaction_does_not_go_on_over_another_connection() {
    let fake = Fake::start(|r| if r.is(Kind::Read) { vec![Act::Close] } else { agree(r) });
    let mut client = fake.client();
    let result = client.transaction::<_, Error>(|t| {
        assert!(matches!(t.read(&path("/a")), Err(Error::Transport(TransportError::Closed { .. }))));
        // A body that ignores the failure gets no further.
        let lost = t.write(&path("/a"), "1").unwrap_err();
        assert!(matches!(lost, Error::Transport(TransportError::TransactionLost { .. })));
        Ok(())
    });
    assert!(matches!(result, Err(Error::Transport(TransportError::TransactionLost { .. }))));
    client.write(&path("/b"), "1").unwrap();
    let seen = fake.seen();
    assert!(seen.iter().filter(|r| r.connection == 1).all(|r| r.header.tx_id == TxId::NONE));
}

#[test]
fn a_daemon_that_went_away_while_idle_costs_no_request() {
    let fake = Fake::start(|r| match r.connection {
        0 => agree(r).into_iter().chain([Act::Close]).collect(),
        _ => agree(r),
    });
    let mut client = fake.client();
    client.write(&path("/a"), "1").unwrap();
    // The stand-in closes after its reply; that is seen once it serves the next connection.
    let mut other = fake.client();
    other.write(&path("/x"), "1").unwrap();
    drop(other);
    client.write(&path("/b"), "2").unwrap();
    assert_eq!(client.generation(), 2);
}

#[test]
fn garbage_breaks_the_connection_and_no_more() {
    type Check = fn(&Violation) -> bool;
    let header = Header { kind: Kind::Read, req_id: 1, tx_id: TxId::NONE };
    let cases: [(Vec<u8>, Check); 6] = [
        (vec![0xff; 16], |v| matches!(v, Violation::Decode(_))),
        (message(Header { req_id: 99, ..header }, b""), |v| *v == Violation::UnknownRequest { req_id: 99 }),
        (message(Header { req_id: 0, ..header }, b""), |v| *v == Violation::UnknownRequest { req_id: 0 }),
        (message(header, b"").repeat(2), |v| *v == Violation::UnknownRequest { req_id: 1 }),
        (message(Header { kind: Kind::Write, ..header }, b""), |v| *v == Violation::Mismatch { req_id: 1 }),
        (message(Header { tx_id: TxId(3), ..header }, b""), |v| *v == Violation::Mismatch { req_id: 1 }),
    ];
    for (bytes, expected) in cases {
        let fake = Fake::start(move |r| {
            if r.connection == 0 { vec![Act::Raw(bytes.clone())] } else { vec![Act::Reply(b"fine".to_vec())] }
        });
        let mut client = fake.client();
        match client.read(&path("/a")) {
            Err(Error::Transport(TransportError::Protocol { violation, .. })) if expected(&violation) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(client.read(&path("/a")).unwrap().unwrap(), b"fine");
    }
}

#[test]
fn replies_may_come_in_any_order_and_in_single_bytes() {
    let mut waiting = Vec::new();
    let fake = Fake::start(move |r| {
        waiting.push((r.header, r.payload.clone()));
        if waiting.len() < 10 {
            return vec![];
        }
        let replies = waiting.drain(..).rev().map(|(header, payload)| Act::Drip(message(header, &payload)));
        replies.collect()
    });
    let paths: Vec<_> = (0..10).map(|i| path(&format!("/n/{i}"))).collect();
    let values = fake.client().read_all(&paths).unwrap();
    let expected: Vec<_> = paths.iter().map(|p| Some(format!("{p}\0").into_bytes())).collect();
    assert_eq!(values, expected);
}

#[test]
fn a_long_reply_is_taken_and_one_over_the_bound_is_refused_without_losing_the_connection() {
    let fake = Fake::start(|r| {
        vec![Act::Reply(match r.text().as_str() {
            "/long|" => vec![b'x'; MAX_REPLY],
            "/longer|" => vec![b'x'; MAX_REPLY + 1],
            _ => b"short".to_vec(),
        })]
    });
    let mut client = fake.client();
    assert_eq!(client.read(&path("/long")).unwrap().unwrap().len(), MAX_REPLY);
    assert_eq!(client.read(&path("/longer")).unwrap_err().errno(), Some(&Errno::TooBig));
    assert_eq!(client.read(&path("/short")).unwrap().unwrap(), b"short");
    assert_eq!(client.generation(), 1);
}

#[test]
fn a_length_that_is_a_lie_ends_at_the_deadline() {
    let fake = Fake::start(|r| {
        let mut bytes = message(r.header, b"");
        bytes[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        vec![Act::Raw(bytes)]
    });
    let mut client = fake.client();
    client.set_timeout(Duration::from_millis(50));
    assert!(matches!(client.read(&path("/a")), Err(Error::Transport(TransportError::TimedOut { .. }))));
}

#[test]
fn events_nobody_asked_for_are_passed_over() {
    let fake = Fake::start(|r| {
        let mut acts = vec![
            Act::Raw(event("/x", b"t")),
            Act::Raw(message(Header { kind: Kind::WatchEvent, req_id: 0, tx_id: TxId::NONE }, b"")),
        ];
        acts.extend(agree(r));
        acts
    });
    assert_eq!(fake.client().read(&path("/a")).unwrap().unwrap(), b"OK\0");
}

#[test]
fn many_large_requests_and_replies_do_not_jam() {
    // Each reply fills a message, and the stand-in does not read on before its reply is taken: with a client that
    // writes everything before it reads, both would wait for ever.
    let fake = Fake::start(|_| vec![Act::Reply(vec![b'r'; 4096])]);
    let mut client = fake.client();
    let write = |i| Request::Write { path: path(&format!("/n/{i}")), value: vec![b'w'; 4000] };
    let answers = client.pipeline((0..2000).map(write)).unwrap();
    assert_eq!(answers.len(), 2000);
    assert!(answers.iter().all(|a| a.as_ref().is_ok_and(|r| r.0.len() == 4096)));
}

#[test]
fn no_more_is_in_flight_than_the_bound() {
    let mut first = true;
    let fake = Fake::start_after(
        move |stream| {
            if !std::mem::take(&mut first) {
                return;
            }
            // Takes all that comes without an answer, until nothing has come for a while.
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let mut got = 0;
            let mut buffer = [0; 4096];
            while let Ok(n) = stream.read(&mut buffer)
                && n > 0
            {
                got += n;
            }
            let one = 16 + "/a\0".len();
            assert_eq!(got, MAX_IN_FLIGHT * one);
        },
        |_| vec![],
    );
    let mut client = fake.client();
    client.set_timeout(Duration::from_millis(100));
    let result = client.read_all(&vec![path("/a"); 1000]);
    assert!(matches!(result, Err(Error::Transport(TransportError::TimedOut { .. }))));
}

#[test]
fn what_cannot_be_sent_leaves_nothing_half_sent() {
    let fake = Fake::start(agree);
    let mut client = fake.client();
    let long = Request::Write { path: path("/a"), value: vec![0; 5000] };
    let result = client.pipeline([Request::Mkdir(path("/a")), long]);
    assert!(matches!(
        result,
        Err(Error::Transport(TransportError::Encode(EncodeError::TooLong { op: "write", .. })))
    ));
    client.mkdir(&path("/b")).unwrap();
    assert_eq!(fake.seen().iter().map(common::Seen::text).collect::<Vec<_>>(), ["/b|"]);
}

#[test]
fn values_are_bytes_and_text_is_checked() {
    let fake = Fake::start(|r| match r.text().as_str() {
        "/absent|" => vec![Act::Refuse("ENOENT")],
        _ => vec![Act::Reply(b"a\0\xff".to_vec())],
    });
    let mut client = fake.client();
    assert_eq!(client.read(&path("/guest")).unwrap().unwrap(), b"a\0\xff");
    assert!(matches!(client.read_str(&path("/guest")), Err(Error::NotText { .. })));
    assert_eq!(client.read_str(&path("/absent")).unwrap(), None);
    assert!(!client.exists(&path("/absent")).unwrap());
    assert!(client.directory(&path("/guest")).is_err());
    client.rm(&path("/absent")).unwrap();
}

#[test]
fn nobody_listening_is_an_error_that_names_the_place() {
    let mut transport = StreamTransport::new(Endpoint::Socket("/nonexistent/socket".into()));
    let error = transport.exchange(&[(TxId::NONE, Request::Read(path("/a")))]).unwrap_err();
    assert!(error.to_string().starts_with("cannot connect to xenstored at /nonexistent/socket: "), "{error}");
    assert!(Client::connect_to(Endpoint::Xenbus("/nonexistent/xenbus".into())).is_err());
}

#[test]
fn the_usual_questions() {
    let fake = Fake::start(|r| match r.header.kind {
        Kind::GetDomainPath => vec![Act::Reply(b"/local/domain/3\0".to_vec())],
        Kind::IsDomainIntroduced => vec![Act::Reply(b"T\0".to_vec())],
        Kind::GetPerms => vec![Act::Reply(b"n0\0r3\0".to_vec())],
        _ => agree(r),
    });
    let mut client = fake.client();
    let d = DomId(3);
    assert_eq!(client.domain_path(d).unwrap(), path("/local/domain/3"));
    assert!(client.is_introduced(d).unwrap());
    assert_eq!(client.get_perms(&path("/a")).unwrap(), Some(Perms::ro(d)));
    client.introduce(d, 1_044_476, 2).unwrap();
    client.set_target(d, DomId(4)).unwrap();
    client.resume(d).unwrap();
    client.release(d).unwrap();
    client.control(&[b"help"]).unwrap();
    let texts: Vec<_> = fake.seen().iter().map(|r| (r.header.kind, r.text())).collect();
    let expected = [
        (Kind::GetDomainPath, "3|"),
        (Kind::IsDomainIntroduced, "3|"),
        (Kind::GetPerms, "/a|"),
        (Kind::Introduce, "3|1044476|2|"),
        (Kind::SetTarget, "3|4|"),
        (Kind::Resume, "3|"),
        (Kind::Release, "3|"),
        (Kind::Control, "help|"),
    ];
    assert_eq!(texts, expected.map(|(kind, text)| (kind, text.to_owned())));
}
