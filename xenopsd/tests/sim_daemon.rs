//! `xenopsd --simulate` as a management layer and an administrator meet it: the programs themselves, over sockets.

mod common;

use std::os::unix::net::UnixDatagram;
use std::process::Command;

use common::{Daemon, configuration};
use xenopsd::api::{VmShutdown, VmStart};
use xenopsd::rpc::Codec;
use xenstore::Operations as _;

fn line_of<'a>(list: &'a str, name: &str) -> &'a str {
    list.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} is not in {list}"))
}

#[test]
fn a_vm_lives_through_the_command_line() {
    let daemon = Daemon::new();
    let file = configuration(daemon.directory.path(), "one");
    daemon.xenops(&["create", &file]);
    assert!(line_of(&daemon.xenops(&["list"]), "one").contains("Halted"));
    daemon.xenops(&["start", "one"]);
    assert!(line_of(&daemon.xenops(&["list"]), "one").contains("Running"));
    let shown = daemon.xenops(&["show", "one"]);
    assert!(shown.contains("128 MiB") && shown.contains("vif1.0"), "{shown}");
    let name = xenstore::Path::new("/local/domain/1/name").unwrap();
    assert_eq!(daemon.store().read_str(&name).unwrap().unwrap(), "one");
    daemon.xenops(&["pause", "one"]);
    assert!(line_of(&daemon.xenops(&["list"]), "one").contains("Paused"));
    daemon.xenops(&["unpause", "one"]);
    daemon.xenops(&["reboot", "one"]);
    assert!(line_of(&daemon.xenops(&["list"]), "one").contains("Running"));
    daemon.xenops(&["shutdown", "one"]);
    assert!(line_of(&daemon.xenops(&["list"]), "one").contains("Halted"));
    let domains = daemon.store().directory(&xenstore::Path::new("/local/domain").unwrap()).unwrap().unwrap();
    assert_eq!(domains, ["0"]);
    daemon.xenops(&["remove", "one"]);
    assert!(!daemon.output(&["start", "one"]).status.success());
}

#[test]
fn records_survive_the_daemon_and_simulated_domains_do_not() {
    let daemon = Daemon::new();
    let file = configuration(daemon.directory.path(), "two");
    daemon.xenops(&["create", &file]);
    daemon.xenops(&["start", "two"]);
    let daemon = Daemon::start(daemon.stop(), &[]);
    assert!(line_of(&daemon.xenops(&["list"]), "two").contains("Halted"));
    daemon.xenops(&["start", "two"]);
    assert!(line_of(&daemon.xenops(&["list"]), "two").contains("Running"));
}

#[test]
fn the_service_manager_hears_when_the_daemon_is_ready_and_when_it_stops() {
    let directory = tempfile::TempDir::new().unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(common::PATIENCE)).unwrap();
    let heard = || {
        let mut buffer = [0; 64];
        let length = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_xenopsd"));
    command.env("NOTIFY_SOCKET", &path);
    let daemon = Daemon::run(command, tempfile::TempDir::new().unwrap(), &[]);
    assert_eq!(heard(), "READY=1");
    assert!(daemon.xenops(&["list"]).contains("NAME"));
    daemon.stop();
    assert_eq!(heard(), "STOPPING=1");
}

#[test]
fn a_second_simulator_in_the_same_place_is_refused() {
    let daemon = Daemon::new();
    let output = Command::new("timeout")
        .args(["20", env!("CARGO_BIN_EXE_xenopsd"), "--simulate"])
        .arg(format!("--sockets-path={}", daemon.path("sockets").display()))
        .arg(format!("--database-path={}", daemon.path("db").display()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(daemon.xenops(&["list"]).contains("NAME"));
}

#[test]
fn a_definition_is_exported_and_imported_and_the_daemon_says_what_it_does() {
    let daemon = Daemon::new();
    let file = configuration(daemon.directory.path(), "five");
    let id = daemon.xenops(&["create", &file]);
    let exported = daemon.path("five.json").display().to_string();
    daemon.xenops(&["export", "five", &exported]);
    assert_eq!(daemon.xenops(&["export", "five"]), std::fs::read_to_string(&exported).unwrap());
    daemon.xenops(&["remove", "five"]);
    assert_eq!(daemon.xenops(&["import", &exported]), id);
    daemon.xenops(&["start", "five"]);
    // Of a running VM too.
    assert_eq!(daemon.xenops(&["import", &exported]), id);
    assert!(line_of(&daemon.xenops(&["list"]), "five").contains("Running"));
    let diagnostics = daemon.xenops(&["diagnostics"]);
    for says in ["\"queues\":", "\"workers\":", "\"timers\":", "\"Running\"", "\"entries\":"] {
        assert!(diagnostics.contains(says), "{says} in {diagnostics}");
    }
    std::fs::write(&exported, "{}").unwrap();
    assert_eq!(daemon.output(&["import", &exported]).status.code(), Some(1));
    assert_eq!(daemon.output(&["import", "/nonexistent"]).status.code(), Some(2));
    assert_eq!(daemon.output(&["export", "five", "/nonexistent/x"]).status.code(), Some(1));
}

/// The numbers of updates begin anew with each daemon: who waits must not take them for those of the last one.
#[test]
fn a_client_waits_for_tasks_of_one_daemon_after_another() {
    let daemon = Daemon::new();
    let id = daemon.xenops(&["create", &configuration(daemon.directory.path(), "six")]).trim().to_owned();
    let client = daemon.client(Codec::Xml);
    let dbg = || "test".to_owned();
    let start_and_stop = || {
        let start = client.call(&VmStart { debug_info: dbg(), id: id.clone(), paused: false }).unwrap();
        client.wait_task("test", &start, |_| ()).unwrap();
        let stop = client.call(&VmShutdown { debug_info: dbg(), id: id.clone(), delay: None }).unwrap();
        client.wait_task("test", &stop, |_| ()).unwrap();
    };
    for _ in 0..3 {
        start_and_stop();
    }
    let _daemon = Daemon::start(daemon.stop(), &[]);
    start_and_stop();
}
