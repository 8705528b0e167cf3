//! Heads, bodies and replies however they arrive.

use super::{
    BODY_MAX, HEAD_MAX, Progress, Refusal, Reply, ReplyError, Request, frame_kept_request, frame_reply,
    frame_request,
};
use crate::rpc::Codec;
use proptest::prelude::*;

fn feed(text: &str) -> Result<Progress, Refusal> {
    Request::default().feed(text.as_bytes())
}

#[test]
fn heads() {
    for (text, expected) in [
        ("", Ok(Progress::Head)),
        ("POST / HTTP/1.1\r\ncontent-le", Ok(Progress::Head)),
        ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", Ok(Progress::Body(3))),
        ("POST /any HTTP/1.0\r\ncontent-length: 3\r\n\r\nabc", Ok(Progress::Complete)),
        ("POST / HTTP/1.1\ncontent-length: 0\n\n", Ok(Progress::Complete)),
        ("POST / HTTP/1.1\r\ncontent-length: 0\r\nexpect: 100-continue\r\n\r\n", Ok(Progress::Complete)),
        ("POST / HTTP/1.1\r\n\r\n", Err(Refusal::NoLength)),
        ("POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", Err(Refusal::TransferEncoding)),
        ("GET / HTTP/1.1\r\ncontent-length: 3\r\n\r\n", Err(Refusal::NotPost)),
        ("hello\r\n\r\n", Err(Refusal::Malformed)),
        ("\0\0\0\0", Err(Refusal::Malformed)),
        ("POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n", Err(Refusal::Malformed)),
        ("POST / HTTP/1.1\r\ncontent-length: +1\r\n\r\n", Err(Refusal::Malformed)),
        ("POST / HTTP/1.1\r\ncontent-length: \r\n\r\n", Err(Refusal::Malformed)),
        ("POST / HTTP/1.1\r\ncontent-length: 99999999999999999999999\r\n\r\n", Err(Refusal::BodyTooLarge)),
    ] {
        assert_eq!(feed(text), expected, "{text:?}");
    }
    let long = format!("POST / HTTP/1.1\r\nx: {}", "x".repeat(HEAD_MAX));
    assert_eq!(feed(&long), Err(Refusal::HeadTooLarge));
    let many = format!("POST / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100));
    assert_eq!(feed(&many), Err(Refusal::HeadTooLarge));
    let large = format!("POST / HTTP/1.1\r\ncontent-length: {}\r\n\r\n", BODY_MAX + 1);
    assert_eq!(feed(&large), Err(Refusal::BodyTooLarge));
}

#[test]
fn a_request_may_come_byte_by_byte_and_have_a_tail() {
    let mut request = Request::default();
    let text = frame_request(Codec::Xml, "/a b\r\nx: y", "agent", b"hello");
    for (index, byte) in text.iter().enumerate() {
        let progress = request.feed(&[*byte]).expect("fits");
        assert_eq!(progress == Progress::Complete, index + 1 == text.len());
    }
    assert_eq!(request.feed(b"POST"), Ok(Progress::Complete));
    assert_eq!(request.body(), b"hello");
    let mut request = Request::default();
    let both = [text.clone(), text].concat();
    assert_eq!(request.feed(&both), Ok(Progress::Complete));
    assert_eq!(request.body(), b"hello");
}

#[test]
fn what_follows_a_request_is_kept_with_its_connection() {
    let kept = frame_kept_request(Codec::Xml, "/", "agent", b"hello");
    let both = [kept.clone(), b"POST".to_vec()].concat();
    for cut in 0..=both.len() {
        let mut request = Request::default();
        let mut progress = request.feed(&both[..cut]).expect("fits");
        if progress != Progress::Complete {
            progress = request.feed(&both[cut..]).expect("fits");
        }
        assert_eq!((progress, request.keeps()), (Progress::Complete, true), "{cut}");
        assert_eq!(request.body(), b"hello", "{cut}");
        // What comes once it is complete is not fed to it, but to the next one.
        let rest = if (kept.len()..both.len()).contains(&cut) { &both[kept.len()..cut] } else { b"POST" };
        assert_eq!(request.take_rest(), rest, "{cut}");
    }
    let mut last = Request::default();
    last.feed(&[frame_request(Codec::Xml, "/", "agent", b"hello"), b"POST".to_vec()].concat()).expect("fits");
    assert!(!last.keeps() && last.take_rest().is_empty());
}

#[test]
fn the_xml_socket_is_silent_where_the_reference_is() {
    for refusal in [Refusal::Malformed, Refusal::NoLength, Refusal::TransferEncoding] {
        assert_eq!(refusal.answer(Codec::Xml), None);
        assert!(refusal.answer(Codec::Json).is_some());
    }
    let not_found = Refusal::NotPost.answer(Codec::Xml).unwrap_or_default();
    assert!(not_found.starts_with(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n"));
}

#[test]
fn replies() {
    let body = |text: &[u8]| {
        let mut reply = Reply::default();
        reply.feed(text).and_then(|_| reply.into_body())
    };
    let framed = frame_reply(Codec::Xml, "xenopsd", false, b"hello");
    assert_eq!(framed, b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nuser-agent: xenopsd\r\n\r\nhello");
    assert_eq!(body(&framed), Ok(b"hello".to_vec()));
    let mut reply = Reply::default();
    let kept = [frame_reply(Codec::Json, "xenopsd", true, b"hello"), b"HTTP".to_vec()].concat();
    assert_eq!((reply.feed(&kept), reply.keeps()), (Ok(true), true));
    assert_eq!(reply.into_parts(), Ok((b"hello".to_vec(), b"HTTP".to_vec())));
    for text in ["connection: keep-alive", "connection: close\r\ncontent-length: 0", "x: y"] {
        let mut reply = Reply::default();
        reply.feed(format!("HTTP/1.1 200 OK\r\n{text}\r\n\r\n").as_bytes()).expect("a head");
        assert!(!reply.keeps(), "{text}");
    }
    assert_eq!(body(b"HTTP/1.0 200 OK\n\nhello"), Ok(b"hello".to_vec()));
    assert_eq!(body(&framed[..framed.len() - 1]), Err(ReplyError::Truncated));
    assert_eq!(body(b""), Err(ReplyError::Truncated));
    assert_eq!(body(b"HTTP/1.1 404 Not Found\r\n\r\n"), Err(ReplyError::Status(404)));
    assert_eq!(body(b"hello"), Err(ReplyError::Malformed));
    assert_eq!(body(b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n"), Err(ReplyError::TooLarge));
}

proptest! {
    #[test]
    fn any_split_gives_the_same_body(body in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..400) {
        let text = frame_request(Codec::Json, "/", "a", &body);
        let (first, second) = text.split_at(cut.min(text.len()));
        let mut request = Request::default();
        let _ = request.feed(first);
        prop_assert_eq!(request.feed(second), Ok(Progress::Complete));
        prop_assert_eq!(request.body(), &body[..]);
    }

    #[test]
    fn never_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..5)) {
        let mut request = Request::default();
        let mut reply = Reply::default();
        for chunk in &chunks {
            let _ = request.feed(chunk);
            let _ = reply.feed(chunk);
        }
        let _ = (request.body().len(), reply.into_body());
    }
}
