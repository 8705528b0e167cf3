//! Connections that stay for another request.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{BODY_MAX, PATIENCE, Running, exists, request, rest, updates};
use crate::api::{Call, UpdatesGet, VmExportMetadata};
use crate::rpc::Codec;
use crate::rpc::http::frame_kept_request;
use crate::rpc::server::Limits;

const YES: &str = "<boolean>1</boolean>";
const NO: &str = "<boolean>0</boolean>";

fn kept(codec: Codec, call: impl Into<Call>) -> Vec<u8> {
    let call = call.into();
    frame_kept_request(codec, "/", "test", &codec.encode_request(call.name(), call.to_params(), 7))
}

/// Head and body of the next reply.
fn next(stream: &mut BufReader<UnixStream>) -> (String, String) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).expect("a line") > 0, "closed after {head:?}");
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    stream.read_exact(&mut body).expect("a body");
    (head, String::from_utf8(body).expect("UTF-8"))
}

fn open(server: &Running, codec: Codec) -> BufReader<UnixStream> {
    BufReader::new(server.open(codec))
}

fn say(stream: &mut BufReader<UnixStream>, bytes: &[u8]) {
    stream.get_mut().write_all(bytes).expect("write");
}

/// What comes until the server closes.
fn end(mut stream: BufReader<UnixStream>) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("read");
    text
}

#[test]
fn a_connection_stays_if_the_request_asks_for_it() {
    let server = Running::new(Limits::default());
    for codec in [Codec::Xml, Codec::Json] {
        let mut stream = open(&server, codec);
        for _ in 0..3 {
            say(&mut stream, &kept(codec, exists("yes")));
            let (head, body) = next(&mut stream);
            assert!(head.starts_with("HTTP/1.1 200 OK\r\ncontent-length: "), "{head}");
            assert!(head.contains("\r\nconnection: keep-alive\r\n"), "{head}");
            assert!(body.contains(YES) || body.contains("\"result\":true"), "{body}");
        }
        say(&mut stream, &request(codec, exists("yes")));
        let (head, _) = next(&mut stream);
        assert!(!head.contains("keep-alive"), "{head}");
        assert_eq!(end(stream), "");
    }
}

#[test]
fn a_client_that_wants_it_closed_as_well_has_it_closed() {
    let server = Running::new(Limits::default());
    let text = String::from_utf8(kept(Codec::Xml, exists("yes"))).expect("UTF-8");
    for words in
        ["Keep-Alive, close", "close\r\nconnection: keep-alive", "keep-alive\r\nCONNECTION: Close", "kept"]
    {
        let twice = text.replace("connection: keep-alive", &format!("connection: {words}")).repeat(2);
        let reply = server.raw(Codec::Xml, twice.as_bytes());
        assert_eq!(reply.matches("HTTP/1.1 200 OK").count(), 1, "{words}: {reply}");
        assert!(!reply.contains("keep-alive"), "{words}: {reply}");
    }
    let mut stream = open(&server, Codec::Xml);
    for words in ["Keep-Alive", "upgrade, KEEP-ALIVE", "upgrade\r\nconnection: keep-alive"] {
        let again = text.replace("connection: keep-alive", &format!("connection: {words}"));
        say(&mut stream, again.as_bytes());
        assert!(next(&mut stream).1.contains(YES), "{words}");
    }
}

#[test]
fn requests_written_at_once_are_answered_in_their_order() {
    let server = Running::new(Limits::default());
    let mut stream = open(&server, Codec::Xml);
    let ids = ["yes", "no", "no", "yes", "no"];
    let all: Vec<u8> = ids.iter().flat_map(|id| kept(Codec::Xml, exists(id))).collect();
    let (first, second) = all.split_at(all.len() / 2);
    say(&mut stream, first);
    say(&mut stream, second);
    for id in ids {
        assert!(next(&mut stream).1.contains(if id == "yes" { YES } else { NO }));
    }
    // One that makes no sense is answered like the others; the last has the connection closed.
    let nonsense = frame_kept_request(Codec::Xml, "/", "test", b"hello");
    let last = [nonsense, kept(Codec::Xml, exists("no")), request(Codec::Xml, exists("yes"))].concat();
    say(&mut stream, &[last, kept(Codec::Xml, exists("yes"))].concat());
    assert!(next(&mut stream).1.contains("Internal_error"));
    assert!(next(&mut stream).1.contains(NO));
    assert!(next(&mut stream).1.contains(YES));
    assert_eq!(end(stream), "");
}

#[test]
fn more_requests_at_once_than_are_read_at_once_are_answered() {
    const COUNT: usize = 2000;
    let server = Running::new(Limits::default());
    let mut stream = open(&server, Codec::Json);
    let mut sender = stream.get_ref().try_clone().expect("dup");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let all: Vec<u8> = (0..COUNT).flat_map(|_| kept(Codec::Json, exists("yes"))).collect();
            sender.write_all(&all).expect("write");
        });
        for _ in 0..COUNT {
            assert!(next(&mut stream).1.contains("true"));
        }
        // Others have their turn meanwhile and after.
        assert!(server.client(Codec::Xml).call(&exists("yes")).expect("still serves"));
    });
}

#[test]
fn a_request_waits_for_the_one_before_it() {
    let server = Running::new(Limits::default());
    let mut stream = open(&server, Codec::Xml);
    say(&mut stream, &[kept(Codec::Xml, updates()), kept(Codec::Xml, updates())].concat());
    let first = server.held.recv_timeout(PATIENCE).expect("call");
    // The second one is there, and another that comes while the first is served.
    say(&mut stream, &kept(Codec::Xml, exists("yes")));
    assert!(server.client(Codec::Xml).call(&exists("yes")).expect("others do not wait"));
    assert!(server.held.try_recv().is_err(), "the second is served too early");
    first.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 5)));
    assert!(next(&mut stream).1.contains("<value>5</value>"));
    let second = server.held.recv_timeout(PATIENCE).expect("call");
    assert!(!second.client_gone());
    second.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 6)));
    assert!(next(&mut stream).1.contains("<value>6</value>"));
    assert!(next(&mut stream).1.contains(YES));
}

#[test]
fn what_follows_is_not_served_when_the_client_has_gone() {
    let server = Running::new(Limits::default());
    let mut stream = open(&server, Codec::Xml);
    say(&mut stream, &[kept(Codec::Xml, updates()), kept(Codec::Xml, updates())].concat());
    let first = server.held.recv_timeout(PATIENCE).expect("call");
    drop(stream);
    server.gone.recv_timeout(PATIENCE).expect("noticed");
    first.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 5)));
    assert!(server.client(Codec::Xml).call(&exists("yes")).expect("still serves"));
    assert!(server.held.try_recv().is_err(), "the second was served for nobody");
    // One that a client leaves behind on an idle connection is served, as on a new one.
    let mut stream = open(&server, Codec::Xml);
    say(&mut stream, &kept(Codec::Xml, exists("yes")));
    next(&mut stream);
    say(&mut stream, &kept(Codec::Xml, updates()));
    drop(stream);
    server.held.recv_timeout(PATIENCE).expect("served");
    server.gone.recv_timeout(PATIENCE).expect("noticed");
}

#[test]
fn a_client_that_only_stops_sending_has_all_its_answers() {
    let server = Running::new(Limits::default());
    let mut stream = open(&server, Codec::Xml);
    say(&mut stream, &[kept(Codec::Xml, exists("yes")), kept(Codec::Xml, updates())].concat());
    stream.get_ref().shutdown(Shutdown::Write).expect("shutdown");
    assert!(next(&mut stream).1.contains(YES));
    let held = server.held.recv_timeout(PATIENCE).expect("call");
    assert!(!held.client_gone());
    held.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 5)));
    assert!(next(&mut stream).1.contains("<value>5</value>"));
    assert_eq!(end(stream), "");
    // And one that stops between two requests is let go.
    let mut stream = open(&server, Codec::Xml);
    say(&mut stream, &kept(Codec::Xml, exists("yes")));
    next(&mut stream);
    stream.get_ref().shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(end(stream), "");
}

#[test]
fn rubbish_behind_a_request_ends_the_connection() {
    let server = Running::new(Limits::default());
    for (rubbish, xml, json) in [
        ("\u{1}\u{2}\r\n\r\n".to_owned(), "", "HTTP/1.1 400 "),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), "HTTP/1.1 404 ", "HTTP/1.1 404 "),
        (
            format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n", BODY_MAX + 1),
            "HTTP/1.1 413 ",
            "HTTP/1.1 413 ",
        ),
    ] {
        for (codec, expected) in [(Codec::Xml, xml), (Codec::Json, json)] {
            let mut stream = open(&server, codec);
            say(&mut stream, &[kept(codec, exists("yes")), rubbish.clone().into_bytes()].concat());
            say(&mut stream, &kept(codec, exists("yes")));
            next(&mut stream);
            let reply = end(stream);
            assert!(
                reply.starts_with(expected) && reply.is_empty() == expected.is_empty(),
                "{rubbish}: {reply}"
            );
            assert!(!reply.contains("200 OK") && !reply.contains("keep-alive"), "{reply}");
        }
    }
}

#[test]
fn an_idle_connection_is_closed_after_a_while() {
    let server = Running::new(Limits { idle_time: Duration::from_millis(50), ..Limits::default() });
    let mut stream = open(&server, Codec::Xml);
    say(&mut stream, &kept(Codec::Xml, exists("yes")));
    next(&mut stream);
    assert_eq!(end(stream), "");
    // The next request has the time that the first one had, not what is left of the idle time.
    let limits =
        Limits { request_time: Duration::from_millis(50), idle_time: PATIENCE * 10, ..Limits::default() };
    let server = Running::new(limits);
    let mut stream = open(&server, Codec::Xml);
    say(&mut stream, &kept(Codec::Xml, exists("yes")));
    next(&mut stream);
    say(&mut stream, b"POST / HTTP/1.1\r\ncontent-");
    assert_eq!(end(stream), "");
    let limits =
        Limits { request_time: PATIENCE * 10, idle_time: Duration::from_millis(200), ..Limits::default() };
    let server = Running::new(limits);
    let mut stream = open(&server, Codec::Xml);
    let whole = kept(Codec::Xml, exists("yes"));
    say(&mut stream, &whole);
    next(&mut stream);
    say(&mut stream, &whole[..10]);
    std::thread::park_timeout(Duration::from_millis(400));
    say(&mut stream, &whole[10..]);
    assert!(next(&mut stream).1.contains(YES), "it was closed as idle while its request was arriving");
}

#[test]
fn idle_connections_give_way_before_those_that_are_slow() {
    let server = Running::new(Limits { connections: 3, ..Limits::default() });
    let whole = request(Codec::Xml, exists("yes"));
    let mut slow = server.open(Codec::Xml);
    slow.write_all(&whole[..10]).expect("write");
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = open(&server, Codec::Xml);
        say(&mut stream, &kept(Codec::Xml, exists("yes")));
        next(&mut stream);
        idle.push(stream);
    }
    let mut first = idle.remove(0);
    // The one that has been idle for longer goes.
    assert!(server.client(Codec::Xml).call(&exists("yes")).expect("there is room"));
    let mut byte = [0];
    assert_eq!(first.read(&mut byte).expect("closed"), 0);
    say(&mut idle[0], &kept(Codec::Xml, exists("yes")));
    assert!(next(&mut idle[0]).1.contains(YES));
    slow.write_all(&whole[10..]).expect("still there");
    assert!(rest(slow).contains(YES));
}

#[test]
fn idle_connections_keep_nobody_out() {
    let server = Running::new(Limits { connections: 2, ..Limits::default() });
    let streams: Vec<_> = (0..50)
        .map(|_| {
            let mut stream = open(&server, Codec::Xml);
            say(&mut stream, &kept(Codec::Xml, exists("yes")));
            assert!(next(&mut stream).1.contains(YES));
            stream
        })
        .collect();
    let closed = streams.into_iter().take(48).map(end).all(|rest| rest.is_empty());
    assert!(closed);
}

#[test]
fn a_reply_that_is_taken_slowly_does_not_spoil_the_next() {
    let server = Running::new(Limits::default());
    let mut stream = open(&server, Codec::Xml);
    let export = VmExportMetadata { debug_info: String::new(), id: String::new() };
    for _ in 0..2 {
        say(&mut stream, &[kept(Codec::Xml, export.clone()), kept(Codec::Xml, exists("yes"))].concat());
        // It does not fit the socket, so that the server has to wait for room.
        assert!(server.client(Codec::Xml).call(&exists("yes")).expect("others do not wait"));
        assert!(next(&mut stream).1.len() > 8 << 20);
        assert!(next(&mut stream).1.contains(YES));
    }
}

#[test]
fn threads_share_a_client() {
    let server = Running::new(Limits::default());
    let client = server.client(Codec::Json);
    assert!(client.call(&exists("yes")).expect("answer"));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| client.call(&updates()));
        let held = server.held.recv_timeout(PATIENCE).expect("call");
        for id in ["yes", "no", "yes"] {
            assert_eq!(client.call(&exists(id)).expect("answer"), id == "yes");
        }
        held.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 8)));
        assert_eq!(waiting.join().expect("no panic").expect("answer").2, 8);
    });
}

#[test]
fn an_answer_that_comes_too_late_is_not_taken_for_the_next() {
    let server = Running::new(Limits::default());
    let client = server.client(Codec::Json);
    assert!(client.call(&exists("yes")).expect("answer"));
    client.call_within(&updates(), Some(Duration::from_millis(50))).expect_err("late");
    let held = server.held.recv_timeout(PATIENCE).expect("call");
    held.finish::<UpdatesGet>(Ok((Vec::new(), Vec::new(), 8)));
    assert!(!client.call(&exists("no")).expect("answer"));
}
