//! The client against servers that end their connections at the worst moments.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::api::value::ToValue as _;
use crate::api::{Error, TaskDestroy, TaskStat, UpdatesLastId, VmExists};
use crate::rpc::http::{Progress, Request, frame_reply};
use crate::rpc::{Client, ClientError, Codec};

const PATIENCE: Duration = Duration::from_secs(30);

const CODEC: Codec = Codec::Json;

/// What the server does with a connection, one after the other.
enum Act {
    /// Reads a request and answers it; the connection stays.
    Answer,
    /// Reads a request and answers it as the last one. What follows is not looked at.
    AnswerLast,
    /// Answers as if the connection stayed, with something behind that is no reply.
    AnswerWithRubbish,
    /// Reads the request and closes.
    Swallow,
    /// Waits for the request, reads some bytes of it and closes.
    Nibble,
    /// Closes once the client has been told to go on.
    Close,
}

/// Serves the connections of `script` in their order, and says what was asked of each. `VM.exists` is true on the first
/// connection only.
fn serve(listener: &UnixListener, script: &[&[Act]]) -> Vec<Vec<String>> {
    let mut asked = Vec::new();
    for (index, acts) in script.iter().enumerate() {
        let (mut stream, _) = listener.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
        let (mut names, mut rest) = (Vec::new(), Vec::new());
        for act in *acts {
            match act {
                Act::Close => break,
                Act::Nibble => stream.read_exact(&mut [0; 10]).expect("some of a request"),
                _ => names.push(request(&mut stream, &mut rest)),
            }
            let value = match names.last().map(String::as_str) {
                Some("UPDATES.last_id") => 7_i64.to_value(),
                _ => (index == 0).to_value(),
            };
            let body = CODEC.encode_reply(Ok(value));
            let reply = match act {
                Act::Answer => frame_reply(CODEC, "test", true, &body),
                Act::AnswerLast => frame_reply(CODEC, "test", false, &body),
                Act::AnswerWithRubbish => {
                    [frame_reply(CODEC, "test", true, &body), b"HTTP".to_vec()].concat()
                }
                Act::Swallow | Act::Nibble | Act::Close => continue,
            };
            stream.write_all(&reply).expect("write");
        }
        asked.push(names);
    }
    asked
}

/// Reads a request, from `rest` and then from the stream, and says what it asks for.
fn request(stream: &mut UnixStream, rest: &mut Vec<u8>) -> String {
    let mut request = Request::default();
    let mut bytes = std::mem::take(rest);
    while request.feed(&bytes).expect("a request") != Progress::Complete {
        bytes = vec![0; 4096];
        let count = stream.read(&mut bytes).expect("read");
        assert!(count > 0, "the client closed");
        bytes.truncate(count);
    }
    assert!(request.keeps());
    *rest = request.take_rest();
    CODEC.decode_call(request.body()).expect("a call").name().to_owned()
}

/// Makes calls of a server of this script; what it was asked. There is nobody any more after the script's end.
fn with(script: &[&[Act]], calls: impl FnOnce(&Client)) -> Vec<Vec<String>> {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    let client = Client::new(&path, CODEC).with_timeout(Some(PATIENCE));
    std::thread::scope(|scope| {
        let server = scope.spawn(move || serve(&listener, script));
        calls(&client);
        server.join().expect("no panic")
    })
}

fn exists() -> VmExists {
    VmExists { debug_info: "test".to_owned(), id: "x".to_owned() }
}

/// On which connection a call is answered: the first, or another.
fn on_the_first(client: &Client) -> bool {
    client.call(&exists()).expect("an answer")
}

fn forget() -> TaskDestroy {
    TaskDestroy { debug_info: "test".to_owned(), id: "1".to_owned() }
}

#[test]
fn one_connection_is_enough() {
    let asked = with(&[&[Act::Answer, Act::Answer, Act::Answer, Act::Answer]], |client| {
        assert!(on_the_first(client) && on_the_first(client));
        // Its answer is dropped when the next one is waited for.
        client.tell(&forget()).expect("sent");
        assert!(on_the_first(client));
    });
    assert_eq!(asked, [["VM.exists", "VM.exists", "Task.destroy", "VM.exists"]]);
}

#[test]
fn a_connection_that_was_idle_for_long_is_not_used() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    let mut client = Client::new(&path, CODEC).with_timeout(Some(PATIENCE));
    let asked = std::thread::scope(|scope| {
        let server = scope.spawn(move || serve(&listener, &[&[Act::Answer], &[Act::Answer, Act::Answer]]));
        assert!(on_the_first(&client));
        // Long for one that keeps it for no time at all.
        client.keep_for = Duration::from_nanos(1);
        assert!(!on_the_first(&client));
        client.keep_for = PATIENCE;
        assert!(!on_the_first(&client));
        server.join().expect("no panic")
    });
    assert_eq!(asked, [vec!["VM.exists"], vec!["VM.exists", "VM.exists"]]);
}

#[test]
fn a_server_that_keeps_nothing_is_spoken_to_all_the_same() {
    let asked =
        with(&[&[Act::AnswerLast], &[Act::AnswerLast], &[Act::AnswerLast], &[Act::AnswerLast]], |client| {
            assert!(on_the_first(client));
            assert!(!on_the_first(client));
            // It is not known yet whether this connection stays, and then that it does not.
            client.tell(&forget()).expect("sent");
            assert!(!on_the_first(client));
        });
    assert_eq!(asked, [["VM.exists"], ["VM.exists"], ["Task.destroy"], ["VM.exists"]]);
    let position = UpdatesLastId { debug_info: "test".to_owned() };
    let asked = with(&[&[Act::AnswerLast], &[Act::AnswerLast], &[Act::AnswerLast]], |client| {
        assert_eq!(client.look_twice(&position, &exists(), None).expect("answers"), (7, false));
    });
    assert_eq!(asked, [["UPDATES.last_id"], ["UPDATES.last_id"], ["VM.exists"]]);
}

#[test]
fn a_connection_that_was_closed_in_the_meantime_is_replaced() {
    let asked = with(&[&[Act::Answer, Act::Close], &[Act::Answer, Act::Answer]], |client| {
        assert!(on_the_first(client));
        assert!(!on_the_first(client) && !on_the_first(client));
    });
    assert_eq!(asked, [vec!["VM.exists"], vec!["VM.exists", "VM.exists"]]);
    // Between the last look at it and the whole request, too: only part of it was read, or an answer before it.
    let asked = with(&[&[Act::Answer, Act::Nibble], &[Act::Answer]], |client| {
        assert!(on_the_first(client));
        assert!(!on_the_first(client));
    });
    assert_eq!(asked, [["VM.exists"], ["VM.exists"]]);
}

#[test]
fn what_may_have_been_done_is_not_asked_for_again() {
    // Nobody listens any more: a second attempt would say so.
    for script in [&[&[Act::Answer, Act::Swallow] as &[Act]], &[&[Act::Swallow] as &[Act]]] {
        let asked = with(script, |client| {
            if script[0].len() > 1 {
                assert!(on_the_first(client));
            }
            let error = client.call(&exists()).expect_err("no answer");
            assert!(matches!(error, ClientError::Http { method: "VM.exists", .. }), "{error:?}");
            assert!(error.to_string().contains("closed the connection before its reply"), "{error}");
        });
        assert_eq!(asked[0].len(), script[0].len());
    }
    // The first attempt on a new connection is the only one, whatever comes of it.
    with(&[&[Act::Nibble]], |client| {
        let error = client.call(&exists()).expect_err("no answer");
        assert!(matches!(error, ClientError::Io { doing: "send the request to", .. }), "{error:?}");
    });
}

#[test]
fn a_server_that_has_ended_is_said_to_have_ended() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    let client = Client::new(&path, CODEC).with_timeout(Some(PATIENCE));
    std::thread::scope(|scope| {
        let server = scope.spawn(move || serve(&listener, &[&[Act::Answer]]));
        assert!(on_the_first(&client));
        server.join().expect("no panic");
    });
    let error = client.call(&exists()).expect_err("nobody");
    assert!(matches!(error, ClientError::NotRunning { .. }), "{error:?}");
    // Another that has come in its place is spoken to.
    std::fs::remove_file(&path).expect("remove");
    let listener = UnixListener::bind(&path).expect("bind");
    std::thread::scope(|scope| {
        scope.spawn(move || serve(&listener, &[&[Act::Close], &[Act::Answer]]));
        assert!(client.call(&exists()).is_err(), "it closes a new connection, which is not tried twice");
        assert!(!on_the_first(&client));
    });
}

#[test]
fn rubbish_behind_a_reply_is_the_end_of_its_connection() {
    let asked = with(&[&[Act::AnswerWithRubbish], &[Act::Answer]], |client| {
        assert!(on_the_first(client));
        assert!(!on_the_first(client));
    });
    assert_eq!(asked, [["VM.exists"], ["VM.exists"]]);
}

#[test]
fn two_looks_are_one_round_trip_and_fail_as_two() {
    let position = UpdatesLastId { debug_info: "test".to_owned() };
    let asked = with(&[&[Act::Answer, Act::Answer, Act::Answer]], |client| {
        assert_eq!(client.look_twice(&position, &exists(), None).expect("answers"), (7, true));
        assert!(on_the_first(client));
    });
    assert_eq!(asked, [["UPDATES.last_id", "VM.exists", "VM.exists"]]);
    // The first succeeds, and the second is what was not expected.
    with(&[&[Act::Answer, Act::Answer]], |client| {
        let stat = TaskStat { debug_info: "test".to_owned(), id: "1".to_owned() };
        let error = client.look_twice(&position, &stat, None).expect_err("no task");
        assert!(matches!(error, ClientError::Result { method: "Task.stat", .. }), "{error:?}");
    });
    with(&[&[Act::Answer, Act::Close], &[Act::Answer, Act::Answer]], |client| {
        assert!(on_the_first(client));
        assert_eq!(client.look_twice(&position, &exists(), None).expect("answers"), (7, false));
    });
    let error = with_error(&position);
    assert!(matches!(error, ClientError::Remote(Error::DomainNotBuilt)), "{error:?}");
}

/// A server whose first answer is an error: the second is not taken for the answer of the next call.
fn with_error(position: &UpdatesLastId) -> ClientError {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    let client = Client::new(&path, CODEC).with_timeout(Some(PATIENCE));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (mut stream, _) = listener.accept().expect("a connection");
            let mut rest = Vec::new();
            for outcome in [Err(Error::DomainNotBuilt.to_value()), Ok(true.to_value()), Ok(false.to_value())]
            {
                request(&mut stream, &mut rest);
                let reply = frame_reply(CODEC, "test", true, &CODEC.encode_reply(outcome));
                stream.write_all(&reply).expect("write");
            }
        });
        let error = client.look_twice(position, &exists(), None).expect_err("an error");
        assert!(!on_the_first(&client));
        error
    })
}
