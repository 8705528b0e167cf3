//! Every request in the vectors, sent over a socket in the reference client's own frame; the reply is compared with
//! the reference server's, byte for byte.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use common::records;
use xenopsd::api::{Call, Error, FromValue, Value};
use xenopsd::rpc::socket::BoundSocket;
use xenopsd::rpc::{Codec, Responder, Server, Service};

/// Answers every method with what the vectors say.
struct Canned {
    results: HashMap<String, Value>,
    /// If there is one, every call fails with it.
    error: Option<Error>,
}

impl Service for Canned {
    fn call(&self, call: Call, reply: Responder) {
        reply.send(match &self.error {
            Some(error) => Err(error.clone()),
            None => Ok(self.results[call.name()].clone()),
        });
    }
}

fn exchange(path: &Path, body: &str) -> String {
    let mut stream = UnixStream::connect(path).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    let head = format!(
        "POST {} HTTP/1.1\r\ncontent-length: {}\r\nhost: localhost\r\nuser-agent: /opt/xensource/bin/xapi\r\n\r\n",
        path.display(),
        body.len()
    );
    stream.write_all(head.as_bytes()).expect("write");
    stream.write_all(body.as_bytes()).expect("write");
    let mut reply = String::new();
    stream.read_to_string(&mut reply).expect("read");
    let (head, body) = reply.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
    body.to_owned()
}

/// Runs `test` against a server with an XML and a JSON socket.
fn serving(service: Canned, test: impl FnOnce(&Path, &Path)) {
    let dir = tempfile::tempdir().expect("tempdir");
    let xml = BoundSocket::bind(&dir.path().join("xenopsd")).expect("bind");
    let json = BoundSocket::bind(&dir.path().join("xenopsd.json")).expect("bind");
    let listeners = vec![
        (xml.try_clone_listener().expect("dup"), Codec::Xml),
        (json.try_clone_listener().expect("dup"), Codec::Json),
    ];
    let server = Server::bind(listeners, service).expect("server");
    let stop = server.stop_handle();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.run());
        let outcome =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| test(xml.path(), json.path())));
        stop.stop();
        running.join().expect("no panic").expect("serves");
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
}

#[test]
fn results_over_the_socket() {
    // One result per method; the last one given is as good as any.
    let mut expected = HashMap::new();
    let mut results = HashMap::new();
    for record in records("response_ok") {
        let (json, xml) = (record.text("json").to_owned(), record.text("xml").to_owned());
        let value = Codec::Json.decode_reply(json.as_bytes()).expect("a reply").expect("a result");
        results.insert(record.subject().to_owned(), value);
        expected.insert(record.subject().to_owned(), (json, xml));
    }
    let mut answered = BTreeSet::new();
    serving(Canned { results, error: None }, |xml_path, json_path| {
        for record in records("call") {
            // The vectors have no reply for a few methods.
            let Some((json, xml)) = expected.get(record.subject()) else { continue };
            answered.insert(record.subject().to_owned());
            assert_eq!(&exchange(xml_path, record.text("xml")), xml, "{}", record.name());
            assert_eq!(&exchange(json_path, record.text("json")), json, "{}", record.name());
            // Answered in version 1 shape whatever was asked.
            assert_eq!(&exchange(json_path, record.text("json_v2")), json, "{}", record.name());
        }
    });
    assert!(answered.len() > 90, "only {} methods were called", answered.len());
}

#[test]
fn errors_over_the_socket() {
    let calls = records("call");
    let start = calls.iter().find(|record| record.subject() == "VM.start").expect("a call");
    for record in records("response_error") {
        let (json, xml) = (record.text("json"), record.text("xml"));
        let value = Codec::Json.decode_reply(json.as_bytes()).expect("a reply").expect_err("an error");
        let error = Error::from_value(&value).expect("an error of the contract");
        serving(Canned { results: HashMap::new(), error: Some(error) }, |xml_path, json_path| {
            assert_eq!(exchange(xml_path, start.text("xml")), xml, "{}", record.name());
            assert_eq!(exchange(json_path, start.text("json")), json, "{}", record.name());
        });
    }
}
