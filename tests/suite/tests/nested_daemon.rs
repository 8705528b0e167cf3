//! The daemon as a service of dom0: what it tells, who may ask, and that its end is not its guests' end.

use std::time::{Duration, Instant};

use suite::{Dom0, Guest, LIMIT};
use xen_host::Options;
use xen_host::programs::SOCKET;
use xenopsd::api::{
    DynamicId, PowerState, QueryService, Updates, UpdatesGet, UpdatesInjectBarrier, UpdatesLastId,
    UpdatesRefreshVm, UpdatesRemoveBarrier, VbdMode, VmAdd,
};
use xenopsd::rpc::Codec;
use xenopsd::rpc::client::Client;

fn dbg() -> String {
    "test".to_owned()
}

/// What `UPDATES.get` returns, in the order barriers, objects, token.
fn updates(dom0: &Dom0, last_id: isize, seconds: isize) -> Updates {
    let get = UpdatesGet { debug_info: dbg(), last_id: Some(last_id), timeout: Some(seconds) };
    dom0.call(&get).expect("UPDATES.get")
}

#[test]
fn changes_are_told_as_they_happen() {
    let dom0 = Dom0::start();
    dom0.sh("setsid xenops events --follow </dev/null >/root/events 2>&1 &");
    let guest = Guest::new("told");
    let vm = DynamicId::Vm(guest.id().to_owned());
    let last_id = dom0.call(&UpdatesLastId { debug_info: dbg() }).expect("UPDATES.last_id");
    let begin = Instant::now();
    assert_eq!(updates(&dom0, last_id, 1), (Vec::new(), Vec::new(), last_id), "nothing new");
    assert!(begin.elapsed() >= Duration::from_millis(900), "{:?}", begin.elapsed());

    // Somebody waits, in the other encoding, while somebody else acts.
    let news = std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let client = Client::new(dom0.socket(Codec::Json), Codec::Json).without_keeping();
            let get = UpdatesGet { debug_info: dbg(), last_id: Some(last_id), timeout: Some(60) };
            let begin = Instant::now();
            (client.call(&get).expect("UPDATES.get"), begin.elapsed())
        });
        dom0.call(&VmAdd { debug_info: dbg(), vm: guest.vm.clone() }).expect("adds");
        waiter.join().expect("no panic")
    });
    let ((_, changed, last_id), waited) = news;
    assert_eq!(changed, std::slice::from_ref(&vm));
    assert!(waited < Duration::from_secs(30), "{waited:?}");

    dom0.start_paused(&guest).expect("starts");
    dom0.host.wait_for_text("/root/events", "Paused  told", LIMIT).expect("is told");
    let (_, changed, last_id) = updates(&dom0, last_id, 60);
    assert!(changed.contains(&vm), "{changed:?}");
    dom0.call(&UpdatesRefreshVm { debug_info: dbg(), id: guest.id().to_owned() }).expect("refreshes");
    let barrier = UpdatesInjectBarrier { debug_info: dbg(), vm_id: guest.id().to_owned(), id: 7 };
    dom0.call(&barrier).expect("injects");
    let (barriers, _, _) = updates(&dom0, last_id, 60);
    assert_eq!(barriers, [(7, vec![vm])]);
    dom0.call(&UpdatesRemoveBarrier { debug_info: dbg(), id: 7 }).expect("removes");
    assert!(updates(&dom0, last_id, 60).0.is_empty());

    dom0.unpause(&guest).expect("runs");
    dom0.host.wait_for_text("/root/events", "Running  told", LIMIT).expect("is told");
    dom0.said(&guest, "GUEST: ready");
    // Not the daemon's doing.
    dom0.sh("xl destroy told");
    dom0.host.wait_for_text("/root/events", "Halted  told", LIMIT).expect("is told");
    dom0.remove(&guest).expect("is forgotten");
    dom0.host.wait_for_text("/root/events", "gone", LIMIT).expect("is told");
}

#[test]
fn killed_and_stopped_daemons_leave_guests_running() {
    let dom0 = Dom0::start();
    dom0.sh("truncate -s 8M /root/disk.img");
    let guest = Guest::new("stays")
        .disk("xvda", "/root/disk.img", VbdMode::ReadWrite)
        .vif("xenbr0")
        .cmdline("gip=10.9.0.41");
    let gone = Guest::new("goes");
    let before = dom0.snapshot();
    dom0.boot(&guest);
    dom0.boot(&gone);
    let (domid, tty) =
        (dom0.domid(&guest), dom0.read(&format!("/local/domain/{}/console/tty", dom0.domid(&gone))));
    let instance = || dom0.call(&QueryService { debug_info: dbg(), unit: () }).expect("query").instance_id;
    let first = instance();

    dom0.stop_daemon("KILL");
    assert_eq!(dom0.run("test -S /var/lib/xcp/xenopsd").status, 0, "a killed daemon cannot clean up");
    dom0.sh("ping -c 1 -W 10 10.9.0.41");
    // Meanwhile one guest ends by itself.
    dom0.sh(&format!("printf '/sbin/poweroff\\r' >{}", tty.expect("a console")));
    dom0.said(&gone, "GUEST: poweroff");
    dom0.start_daemon("");
    assert_ne!(instance(), first);
    let state = dom0.state(&guest);
    assert_eq!((state.power_state, state.domids), (PowerState::Running, vec![domid]));
    assert!(dom0.sh("xenops show stays").contains("/root/disk.img"));
    dom0.wait_for_power(&gone, PowerState::Halted);
    assert_eq!(dom0.type_into(&guest, "echo alive"), "alive");

    dom0.stop_daemon("TERM");
    assert_eq!(dom0.run("ls /var/lib/xcp/xenopsd /var/lib/xcp/xenopsd.json /run/xenopsd.pid").text(), "");
    dom0.sh("ping -c 1 -W 10 10.9.0.41");
    let output = dom0.run("xenops list");
    assert_eq!(output.status, 3);
    assert!(output.error_text().contains("no xenopsd is listening"), "{}", output.error_text());

    dom0.start_daemon("");
    dom0.shutdown(&guest, 60.0).expect("goes down");
    for guest in [&guest, &gone] {
        dom0.remove(guest).expect("is forgotten");
    }
    before.must_be_left(&dom0);
}

#[test]
fn one_daemon_for_root_alone() {
    let dom0 = Dom0::start();
    let refused = |script: &str, status: i32, parts: &[&str]| {
        let output = dom0.run(&format!("timeout 30 {script}"));
        let said = output.error_text();
        assert_eq!(output.status, status, "{script}: {said}");
        for part in parts {
            assert!(said.contains(part), "{script}: {part}: {said}");
        }
        assert!(!said.contains("panicked"), "{script}: {said}");
    };
    let pid = dom0.daemon().to_string();
    refused("xenopsd", 1, &["another xenopsd is listening on /var/lib/xcp/xenopsd", &pid, "stop it first"]);
    assert_eq!(dom0.daemon().to_string(), pid);
    dom0.sh("xenops list");

    assert_eq!(dom0.sh(&format!("stat -c %a:%U {SOCKET} {SOCKET}.json")), "600:root\n600:root\n");
    let nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    refused(&format!("{nobody} xenops list"), 3, &["Permission denied", "run xenops as root"]);
    refused(&format!("{nobody} socat - UNIX-CONNECT:{SOCKET}"), 1, &["Permission denied"]);
    refused(&format!("{nobody} xenopsd --sockets-path /tmp/nobody"), 1, &["as root"]);

    dom0.sh("mkdir /tmp/taken && echo precious >/tmp/taken/xenopsd");
    refused("xenopsd --sockets-path /tmp/taken", 1, &["/tmp/taken/xenopsd is not a socket"]);
    assert_eq!(dom0.sh("cat /tmp/taken/xenopsd"), "precious\n");
    refused(
        "env XENSTORED_PATH=/nowhere xenopsd --sockets-path /tmp/s",
        1,
        &["cannot reach xenstored", "/nowhere"],
    );
    refused("xenopsd --worker-pool-size 0", 2, &["--worker-pool-size", "between 1 and"]);
    refused("xenopsd --nonsense", 2, &["--nonsense"]);
    dom0.sh("printf 'log-level = info\\nworker-pool-size = many\\n' >/root/bad.conf");
    refused("xenopsd --config /root/bad.conf", 1, &["/root/bad.conf, line 2"]);
    refused("xenopsd --config /root/absent.conf", 1, &["/root/absent.conf"]);
    assert!(dom0.sh("xenopsd --help").contains("EXIT STATUS"));

    // A socket that a dead daemon left is no obstacle; a second daemon elsewhere is none either.
    dom0.sh("socat UNIX-LISTEN:/tmp/stale,fork /dev/null & pid=$!
        for _ in $(seq 100); do [ -S /tmp/stale ] && break; sleep 0.05; done
        kill -KILL $pid; mkdir -p /tmp/second; mv /tmp/stale /tmp/second/xenopsd; test -S /tmp/second/xenopsd");
    dom0.sh(
        "setsid xenopsd --sockets-path /tmp/second --database-path /tmp/second/db --pidfile /tmp/second/pid \
        --log-json </dev/null >/tmp/second/log 2>&1 &",
    );
    dom0.host.wait_for_text("/tmp/second/log", "\"message\":\"ready\"", LIMIT).expect("starts");
    assert_eq!(dom0.sh("xenops --socket /tmp/second/xenopsd list").lines().count(), 1);
    assert_eq!(dom0.sh("xenops --socket /tmp/second/xenopsd.json list").lines().count(), 1);
    dom0.sh("pid=$(cat /tmp/second/pid); kill $pid; timeout 30 tail --pid=$pid -s 0.05 -f /dev/null");
    assert_eq!(dom0.run("ls /tmp/second/xenopsd /tmp/second/xenopsd.json /tmp/second/pid").text(), "");
}

/// A dom0 where something essential is missing says so.
#[test]
fn check_finds_what_is_missing() {
    let dom0 = Dom0::without_daemon(Options::default());
    let output = dom0.run("xenops check");
    assert_eq!(output.status, 1, "{}", output.text());
    assert!(output.text().contains("xenopsd"), "{}", output.text());
    dom0.start_daemon("");
    let output = dom0.run("xenops check");
    assert_eq!(output.status, 0, "{}", output.text());
}
