//! Against Debian's own ovsdb-server with the tables that are used here; the test plays ovs-vswitchd.

use std::process::{Child, Command, Stdio};
use std::thread;

use super::*;

/// What `vswitch.ovsschema` has, of what is used.
const SCHEMA: &str = r#"{"name":"Open_vSwitch","version":"8.3.1","tables":{
  "Open_vSwitch":{"isRoot":true,"maxRows":1,"columns":{
    "bridges":{"type":{"key":{"type":"uuid","refTable":"Bridge"},"min":0,"max":"unlimited"}},
    "next_cfg":{"type":"integer"},"cur_cfg":{"type":"integer"}}},
  "Bridge":{"indexes":[["name"]],"columns":{"name":{"type":"string","mutable":false},
    "ports":{"type":{"key":{"type":"uuid","refTable":"Port"},"min":0,"max":"unlimited"}}}},
  "Port":{"indexes":[["name"]],"columns":{"name":{"type":"string","mutable":false},
    "interfaces":{"type":{"key":{"type":"uuid","refTable":"Interface"},"min":1,"max":"unlimited"}},
    "tag":{"type":{"key":{"type":"integer","minInteger":0,"maxInteger":4095},"min":0,"max":1}},
    "trunks":{"type":{"key":{"type":"integer","minInteger":0,"maxInteger":4095},"min":0,"max":4096}}}},
  "Interface":{"indexes":[["name"]],"columns":{"name":{"type":"string","mutable":false},
    "ofport":{"type":{"key":"integer","min":0,"max":1}},"error":{"type":{"key":"string","min":0,"max":1}},
    "external_ids":{"type":{"key":"string","value":"string","min":0,"max":"unlimited"}}}}}}"#;

/// A database server that ends with the test.
struct Server {
    child: Child,
    directory: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// With two bridges without ports.
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("schema"), SCHEMA).unwrap();
        let made = Command::new("ovsdb-tool").arg("create").args([at("db"), at("schema")]).status().unwrap();
        assert!(made.success());
        let mut listen = std::ffi::OsString::from("--remote=punix:");
        listen.push(at("socket"));
        // What it prints is read for the moment from which on it listens.
        let mut child = Command::new("/usr/sbin/ovsdb-server")
            .args([listen, "--unixctl=none".into(), "-vconsole:info".into(), at("db").into()])
            .env("OVS_RUNDIR", directory.path())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = io::BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while io::BufRead::read_line(&mut said, &mut line).unwrap() > 0 && !line.contains("(Open vSwitch)") {}
        thread::spawn(move || io::copy(&mut said, &mut io::sink()));
        let server = Self { child, directory };
        let bridge = |name: &'static str| {
            operation(
                "insert",
                "Bridge",
                [("row", object([("name", text(name))])), ("uuid-name", text(name))],
            )
        };
        let named = |name| list([text("named-uuid"), text(name)]);
        let row = object([("bridges", set(vec![named("ovs0"), named("ovs1")]))]);
        let root = operation("insert", DATABASE, [("row", row)]);
        server.ask(vec![bridge("ovs0"), bridge("ovs1"), root]);
        server
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn ask(&self, operations: Vec<Value>) -> Vec<Value> {
        Client::connect(&self.socket()).unwrap().transact("the test", operations).unwrap()
    }

    /// Plays ovs-vswitchd for `changes` changes: each interface without a number gets one, or an error.
    fn play(&self, changes: usize, error: Option<&'static str>) -> thread::JoinHandle<()> {
        let socket = self.socket();
        let ready = crossbeam::channel::bounded(1);
        let tell = ready.0;
        let player = thread::spawn(move || {
            let mut client = Client::connect(&socket).unwrap();
            let columns = object([("columns", list([text("next_cfg")]))]);
            let parameters = list([text(DATABASE), Value::Null, object([(DATABASE, columns)])]);
            client.call("monitor", parameters, "the test").unwrap();
            tell.send(()).unwrap();
            for _ in 0..changes {
                let update = client.receive("told of a change").unwrap();
                let printed = String::from_utf8(json::print(&update)).unwrap();
                let next =
                    printed.split("next_cfg\":").nth(1).unwrap().split('}').next().unwrap().parse().unwrap();
                let found = match error {
                    None => object([("ofport", Value::Int(7))]),
                    Some(why) => object([("ofport", Value::Int(-1)), ("error", text(why))]),
                };
                let all = || list([]);
                let taken = object([("cur_cfg", Value::Int(next))]);
                let mut other = Client::connect(&socket).unwrap();
                let update = |table, row| operation("update", table, [("where", all()), ("row", row)]);
                other
                    .transact("the test", vec![update("Interface", found), update(DATABASE, taken)])
                    .unwrap();
            }
        });
        ready.1.recv().unwrap();
        player
    }

    /// Ports of a bridge, as JSON.
    fn ports(&self, bridge: &str) -> usize {
        let results = self.ask(vec![select("Bridge", is("name", text(bridge)), ["ports"])]);
        elements(rows(&results[0]).unwrap()[0].get("ports").unwrap()).len()
    }

    fn rows_of(&self, table: &str, column: &str) -> String {
        let results = self.ask(vec![select(table, list([]), [column])]);
        String::from_utf8(json::print(&results[0])).unwrap()
    }
}

fn name(text: &str) -> IfName {
    text.parse().unwrap()
}

#[test]
fn a_port_comes_moves_and_goes() {
    let server = Server::start();
    let (interface, first, second) = (name("vif1.0"), name("ovs0"), name("ovs1"));
    let ids = [("attached-mac".to_owned(), "00:16:3e:00:00:01".to_owned())];
    let mut port =
        Port { interface: &interface, bridge: &first, vlan: Some(5), trunks: &[], external_ids: &ids };
    let player = server.play(4, None);
    add_port(&server.socket(), &port).unwrap();
    assert_eq!((server.ports("ovs0"), server.ports("ovs1")), (1, 0));
    assert!(server.rows_of("Port", "tag").contains("\"tag\":5"));
    assert!(server.rows_of("Interface", "external_ids").contains("00:16:3e:00:00:01"));
    (port.bridge, port.vlan, port.trunks) = (&second, None, &[1, 2]);
    for _ in 0..2 {
        add_port(&server.socket(), &port).unwrap();
        assert_eq!((server.ports("ovs0"), server.ports("ovs1")), (0, 1));
        assert!(server.rows_of("Port", "trunks").contains("[1,2]"));
    }
    assert!(remove_port(&server.socket(), &interface).unwrap());
    player.join().unwrap();
    assert_eq!((server.ports("ovs0"), server.ports("ovs1")), (0, 0));
    // Rows that nothing refers to are gone.
    assert!(server.rows_of("Interface", "name").contains("\"rows\":[]"));
    assert!(!remove_port(&server.socket(), &interface).unwrap());
}

#[test]
fn what_is_refused_leaves_nothing() {
    let server = Server::start();
    let (interface, bridge, none) = (name("vif1.0"), name("ovs0"), name("ovs9"));
    let port = |bridge| Port { interface: &interface, bridge, vlan: None, trunks: &[], external_ids: &[] };
    let missing = add_port(&server.socket(), &port(&none)).unwrap_err();
    assert!(matches!(missing, OvsError::NoBridge { .. }), "{missing}");
    let player = server.play(2, Some("could not open network device vif1.0 (No such device)"));
    let refused = add_port(&server.socket(), &port(&bridge)).unwrap_err();
    player.join().unwrap();
    assert!(refused.to_string().contains("vif1.0 as a port of ovs0: could not open"), "{refused}");
    assert_eq!(server.ports("ovs0"), 0);
    let too_large = Port { vlan: Some(4096), ..port(&bridge) };
    let refused = add_port(&server.socket(), &too_large).unwrap_err();
    assert!(matches!(refused, OvsError::Refused { .. }), "{refused}");
    let nobody = add_port(&server.directory.path().join("nobody"), &port(&bridge)).unwrap_err();
    assert!(nobody.to_string().contains("is openvswitch-switch running"), "{nobody}");
}

/// A server that says what it likes.
fn against(answer: &[u8]) -> OvsError {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let answer = answer.to_vec();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut question = [0; 4096];
        stream.read(&mut question).and_then(|_| stream.write_all(&answer)).unwrap();
    });
    let refused = remove_port(&path, &name("vif1.0")).unwrap_err();
    server.join().unwrap();
    refused
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    assert!(matches!(against(b"hello"), OvsError::Message(MessageError::NoObject)));
    assert!(matches!(against(b"{\"id\":77,\"result\":[]}"), OvsError::Answer { .. }));
    assert!(matches!(against(b""), OvsError::Socket { .. }));
    assert!(matches!(against(b"{\"id\":1}"), OvsError::Answer { .. }));
    let refused = against(b"{\"id\":1,\"error\":\"unknown database\",\"result\":null}");
    assert!(refused.to_string().contains("unknown database"), "{refused}");
    // It never comes to the point.
    let chatter = b"{\"method\":\"locked\",\"params\":[],\"id\":null}".repeat(MAX_MESSAGES + 1);
    assert!(matches!(against(&chatter), OvsError::Answer { .. }));
}
