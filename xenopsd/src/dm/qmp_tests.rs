use super::*;
use proptest::prelude::*;

const LIMIT: Duration = Duration::from_secs(10);
const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

/// A device model that answers these lines, one for each command it gets, after the greeting.
fn model(answers: &'static [&'static str]) -> (UnixStream, std::thread::JoinHandle<Vec<String>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = std::thread::spawn(move || {
        let mut commands = Vec::new();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(theirs.try_clone().unwrap()));
        (&theirs).write_all(GREETING.as_bytes()).unwrap();
        for answer in answers {
            let Some(Ok(command)) = lines.next() else { break };
            commands.push(command);
            if (&theirs).write_all(answer.as_bytes()).is_err() {
                break;
            }
        }
        commands
    });
    (ours, thread)
}

const CAPABLE: &str = "{\"return\": {}, \"id\": 1}\r\n";

#[test]
fn commands_are_answered_by_id_and_events_between_are_kept() {
    let (stream, model) = model(&[
        CAPABLE,
        "{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 3600}, \"timestamp\": {}}\n\n{\"return\": {\"status\": \"prelaunch\"}, \"id\": 2}\n",
    ]);
    let mut qmp = Qmp::start(stream, LIMIT).unwrap();
    let status = qmp.execute("query-status", None, LIMIT).unwrap();
    assert_eq!(RunState::of(&status), RunState::Prelaunch);
    let events = qmp.events().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!((&*events[0].name, events[0].data.get("offset")), ("RTC_CHANGE", Some(&Value::Int(3600))));
    assert_eq!(
        model.join().unwrap(),
        [r#"{"execute":"qmp_capabilities","id":1}"#, r#"{"execute":"query-status","id":2}"#]
    );
}

#[test]
fn a_refusal_leaves_the_connection_usable() {
    let (stream, _model) = model(&[
        CAPABLE,
        "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\\u001b[2J\"}, \"id\": 2}\n",
        "{\"return\": 7, \"id\": 3}\n",
    ]);
    let mut qmp = Qmp::start(stream, LIMIT).unwrap();
    let arguments = Value::Dict(vec![("id".into(), Value::string("ide-5632"))]);
    let refused = qmp.execute("eject", Some(arguments), LIMIT).unwrap_err();
    assert_eq!(refused.to_string(), "device model refuses eject: GenericError: no\u{fffd}[2J");
    assert_eq!(qmp.execute("cont", None, LIMIT).unwrap(), Value::Int(7));
}

#[test]
fn what_is_not_the_protocol_is_said_to_be() {
    for (answer, said) in [
        ("{\"return\": {}, \"id\": 9}\n", "something else than qmp_capabilities"),
        ("{\"return\": {}}\n", "something else than qmp_capabilities"),
        (GREETING, "second greeting"),
        ("{\"hello\": 1}\n", "neither greeting"),
        ("nonsense\n", "JSON"),
        ("[[[[\n", "JSON"),
        ("", "waiting for an answer"),
    ] {
        let answers: &'static [&'static str] = Box::leak(Box::new([answer]));
        let (stream, model) = model(answers);
        let error = Qmp::start(stream, LIMIT).unwrap_err().to_string();
        assert!(error.contains(said), "{answer:?}: {error}");
        model.join().unwrap();
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    (&theirs).write_all(b"{\"event\": \"X\"}\n").unwrap();
    assert!(Qmp::start(ours, LIMIT).unwrap_err().to_string().contains("an event in place of a greeting"));
}

#[test]
fn a_silent_device_model_is_not_waited_for_longer_than_told() {
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let limit = Duration::from_millis(10);
    let error = Qmp::start(ours, limit).unwrap_err();
    assert_eq!(error.to_string(), "device model: no answer to greeting within 0.01 s");
}

#[test]
fn a_line_without_end_is_not_kept() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let writer = std::thread::spawn(move || while (&theirs).write_all(&[b'x'; 4096]).is_ok() {});
    let error = Qmp::start(ours, LIMIT).unwrap_err();
    assert!(error.to_string().contains("a line of more than"), "{error}");
    writer.join().unwrap();
}

#[test]
fn a_flood_of_events_ends() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let writer = std::thread::spawn(move || {
        let greeted = (&theirs).write_all(GREETING.as_bytes());
        while greeted.is_ok() && (&theirs).write_all(b"{\"event\": \"X\"}\n").is_ok() {}
    });
    let error = Qmp::start(ours, LIMIT).unwrap_err();
    assert!(error.to_string().contains("messages before the answer to qmp_capabilities"), "{error}");
    writer.join().unwrap();
}

#[test]
fn a_descriptor_goes_with_its_command() {
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (_told, tell) = std::io::pipe().unwrap();
    let model = std::thread::spawn(move || {
        (&theirs).write_all(GREETING.as_bytes()).unwrap();
        let mut bytes = [0; 512];
        let _capabilities = (&theirs).read(&mut bytes).unwrap();
        (&theirs).write_all(CAPABLE.as_bytes()).unwrap();
        let mut space = nix::cmsg_space!(std::os::fd::RawFd);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        let got = recvmsg::<()>(theirs.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty()).unwrap();
        let given = got.cmsgs().unwrap().find_map(|message| match message {
            ControlMessageOwned::ScmRights(given) => given.first().copied(),
            _ => None,
        });
        (&theirs).write_all(b"{\"return\": {}, \"id\": 2}\n").unwrap();
        given
    });
    let mut qmp = Qmp::start(ours, LIMIT).unwrap();
    let name = Value::Dict(vec![("fdname".into(), Value::string("viewer"))]);
    qmp.execute_with("getfd", Some(name), Some(tell.as_fd()), LIMIT).unwrap();
    drop(tell);
    assert!(model.join().unwrap().is_some());
}

proptest! {
    #[test]
    fn no_input_panics_or_is_kept_beyond_the_bound(chunks in proptest::collection::vec(
        proptest::collection::vec(any::<u8>(), 0..200), 0..40,
    )) {
        let mut input = Input::default();
        for chunk in chunks {
            input.push(&chunk);
            while let Ok(Some(line)) = input.line() {
                prop_assert!(!line.is_empty() && !line.contains(&b'\n'));
                let _ = parse(&line);
            }
            prop_assert!(input.0.len() <= MAX_LINE);
        }
    }

    #[test]
    fn no_message_panics(text in "\\{\"(QMP|return|error|event|id)\": ?[\\{\\[\"0-9a-z:, \\}\\]]{0,40}") {
        if let Ok(Message::Error { class, text, .. }) = parse(text.as_bytes()) {
            prop_assert!(class.chars().count() <= MAX_QUOTED && text.chars().count() <= MAX_QUOTED);
        }
    }
}
