//! `xenops vbd`, `vif`, `vcpus` and `memory` against the simulated machine.

mod common;

use common::{Daemon, configuration};
use xenstore::Operations as _;

/// A daemon with a VM called web, and a guest that deals with its devices as the word says.
fn with_guest(devices: &str) -> Daemon {
    let arguments = [format!("--simulate-guest=devices={devices}"), "--hotplug-timeout=1".to_owned()];
    let daemon = Daemon::start(tempfile::TempDir::new().unwrap(), &arguments);
    daemon.xenops(&["create", &configuration(daemon.directory.path(), "web")]);
    daemon
}

fn fails(daemon: &Daemon, args: &[&str], code: i32, says: &str) {
    let output = daemon.output(args);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "xenops {args:?}: {said}");
    assert!(said.contains(says), "xenops {args:?}: {said}");
}

fn rows(listing: &str) -> Vec<Vec<&str>> {
    listing.lines().skip(1).map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn disks_come_and_go_while_the_guest_runs_and_while_it_does_not() {
    let daemon = with_guest("connect");
    let disk = "/srv/data.img,raw,xvdb,ro";
    assert_eq!(daemon.xenops(&["vbd", "attach", "web", disk]), "xvdb\n");
    assert_eq!(
        rows(&daemon.xenops(&["vbd", "list", "web"]))[1],
        ["xvdb", "ro", "disk", "no", "/srv/data.img"]
    );
    fails(&daemon, &["vbd", "attach", "web", "/srv/other.img,raw,xvdb,w"], 1, "xenops vbd detach web xvdb");
    daemon.xenops(&["start", "web"]);
    assert_eq!(rows(&daemon.xenops(&["vbd", "list", "web"]))[1][3], "yes");
    // In another spelling of the place.
    let place = (202 << 8 | 16).to_string();
    daemon.xenops(&["vbd", "refresh", "web", &place]);
    daemon.xenops(&["vbd", "detach", "web", &place]);
    assert_eq!(rows(&daemon.xenops(&["vbd", "ls", "web"])).len(), 1);
    let attached = daemon.xenops(&["--json", "vbd", "attach", "web", "/srv/data.img,raw,xvdc,rw"]);
    assert!(attached.starts_with("{\"id\":[") && attached.contains("xvdc"), "{attached}");
    let frontends = xenstore::Path::new("/local/domain/1/device/vbd").unwrap();
    assert_eq!(daemon.store().directory(&frontends).unwrap().unwrap().len(), 2);
    daemon.xenops(&["vbd", "detach", "web", "xvdc"]);
    fails(&daemon, &["vbd", "detach", "web", "xvdc"], 1, "it has xvda");
}

#[test]
fn media_are_changed() {
    let daemon = with_guest("connect");
    daemon.xenops(&["start", "web"]);
    assert_eq!(daemon.xenops(&["vbd", "attach", "web", ",raw,xvdd,cdrom"]), "xvdd\n");
    daemon.xenops(&["vbd", "insert", "web", "xvdd", "/srv/tools.iso"]);
    assert_eq!(rows(&daemon.xenops(&["vbd", "list", "web"]))[1][4], "/srv/tools.iso");
    daemon.xenops(&["vbd", "eject", "web", "xvdd"]);
    assert_eq!(rows(&daemon.xenops(&["vbd", "list", "web"]))[1][4], "(empty)");
    fails(&daemon, &["vbd", "insert", "web", "xvde", "/srv/tools.iso"], 1, "it has xvda, xvdd");
}

#[test]
fn interfaces_come_go_and_move() {
    let daemon = with_guest("connect");
    daemon.xenops(&["start", "web"]);
    let spec = "mac=00:16:3e:00:00:07,bridge=br0,model=e1000";
    let output = daemon.output(&["vif", "attach", "web", spec]);
    assert_eq!(output.stdout, b"1\n", "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("model=e1000"), "{output:?}");
    fails(&daemon, &["vif", "attach", "web", spec], 1, "in this place already");
    let row = |index: usize| {
        let listing = daemon.xenops(&["vif", "list", "web"]);
        rows(&listing)[index].iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(row(1), ["1", "00:16:3e:00:00:07", "br0", "1500", "yes", "vif1.1"]);
    daemon.xenops(&["vif", "move", "web", "00:16:3E:00:00:07", "br1"]);
    assert_eq!(row(1)[2], "br1");
    daemon.xenops(&["vif", "carrier", "web", "1", "down"]);
    daemon.xenops(&["vif", "detach", "web", "0"]);
    assert_eq!(row(0)[0], "1");
    // The number that has become free.
    assert_eq!(daemon.xenops(&["vif", "attach", "web", "bridge=br0"]), "0\n");
    fails(&daemon, &["vif", "detach", "web", "9"], 1, "has no vif \"9\"");
    assert_eq!(daemon.xenops(&["--json", "vif", "list", "web"]).lines().count(), 1);
}

#[test]
fn a_guest_that_uses_its_disk_keeps_it_unless_it_is_not_asked() {
    let daemon = with_guest("refuse");
    daemon.xenops(&["start", "web"]);
    fails(&daemon, &["vbd", "detach", "web", "xvda"], 1, "xvda");
    assert_eq!(rows(&daemon.xenops(&["vbd", "list", "web"]))[0][3], "yes");
    daemon.xenops(&["vbd", "detach", "web", "xvda", "--force"]);
    assert_eq!(daemon.xenops(&["vbd", "list", "web"]), "");
}

#[test]
fn the_machine_changes_under_the_guest() {
    let daemon = with_guest("connect");
    daemon.xenops(&["start", "web"]);
    daemon.xenops(&["vcpus", "web", "1"]);
    daemon.xenops(&["memory", "web", "96", "128"]);
    let listing = daemon.xenops(&["list"]);
    assert_eq!(rows(&listing)[0].last(), Some(&"1"), "{listing}");
    assert!(daemon.xenops(&["show", "web"]).contains("96 MiB to 128 MiB"));
    fails(&daemon, &["vcpus", "web", "3"], 1, "its maximum is 2");
    fails(&daemon, &["memory", "web", "4000"], 1, "static_max");
    fails(&daemon, &["man", "vbd", "frob"], 2, "vbd frob");
    assert!(daemon.xenops(&["man", "vbd", "attach"]).contains("xl.cfg"));
}
