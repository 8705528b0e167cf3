//! Terminal servers: what a client sees of them, and what becomes of them when they, their guest or the daemon end.

use super::*;
use crate::api::ConsoleProtocol;
use crate::state::journal::Resource;
use xenstore::Operations;

/// Protocols and ports of the consoles that clients are told of.
fn consoles(rig: &Rig, vm: &str) -> Vec<(ConsoleProtocol, Int)> {
    let state = observe::state(&rig.core, &rig.core.records.vm(vm).unwrap()).unwrap();
    state.consoles.into_iter().map(|console| (console.protocol, console.port)).collect()
}

fn node(rig: &Rig, domid: DomId, name: &str) -> Option<String> {
    let path = xenstore::Path::new(&format!("/local/domain/{domid}/{name}")).unwrap();
    rig.machine.store.client(xenstore::DomId::DOM0).read_str(&path).unwrap()
}

fn journalled(rig: &Rig, vm: &str) -> Vec<Int> {
    let entries = rig.core.journal.of(vm).into_iter();
    entries.filter_map(|(_, r)| if let Resource::Process(p) = r { Some(p.pid) } else { None }).collect()
}

#[test]
fn a_started_guest_has_one_and_clients_are_told_where() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let domid = rig.domid(&vm).unwrap();
    let processes = rig.machine.processes();
    assert_eq!(processes.len(), 1);
    assert_eq!(consoles(&rig, &vm), [(ConsoleProtocol::Rfb, 61_001), (ConsoleProtocol::Vt100, 63_001)]);
    assert_eq!(node(&rig, domid, "console/vnc-port").as_deref(), Some("61001"));
    assert_eq!(node(&rig, domid, "console/tc-port").as_deref(), Some("63001"));
    assert_eq!(node(&rig, domid, "vncterm-pid"), Some(processes[0].to_string()));
    assert_eq!(journalled(&rig, &vm), processes);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.machine.processes().is_empty() && rig.core.journal.of(&vm).is_empty());
}

#[test]
fn one_that_is_not_wanted_is_not_started() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| {
        let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
        pv.vncterm = false;
    });
    rig.start(&vm).unwrap();
    assert!(rig.machine.processes().is_empty());
    // The pseudo-terminal itself, then.
    assert_eq!(consoles(&rig, &vm), [(ConsoleProtocol::Vt100, 0)]);
}

#[test]
fn it_listens_on_this_host_only() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| {
        let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
        pv.vncterm_ip = Some("0.0.0.0".to_owned());
    });
    let before = rig.remains(&vm);
    let error = rig.start(&vm).unwrap_err();
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn one_that_ends_is_followed_by_another_on_the_same_ports() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let before = consoles(&rig, &vm);
    let first = rig.machine.processes();
    rig.machine.end_process(first[0]);
    rig.until("there is another", || !rig.machine.processes().is_empty() && consoles(&rig, &vm) == before);
    let second = rig.machine.processes();
    assert_ne!(second, first);
    rig.settle(&vm);
    assert_eq!(journalled(&rig, &vm), second);
    assert_eq!(node(&rig, rig.domid(&vm).unwrap(), "vncterm-pid"), Some(second[0].to_string()));
}

/// After every look that a guest's writes ask for, and before the one that a missing terminal server does.
fn later() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

#[test]
fn one_that_keeps_ending_is_left_alone_for_a_while() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let later = later();
    let timers = rig.core.timer.pending_from(later);
    let mut starts = 0;
    while let [process] = rig.machine.processes()[..] {
        starts += 1;
        rig.machine.end_process(process);
        rig.settle(&vm);
    }
    assert_eq!(starts, 1 + 5);
    assert!(consoles(&rig, &vm).iter().all(|(protocol, _)| *protocol == ConsoleProtocol::Vt100));
    assert!(journalled(&rig, &vm).is_empty());
    assert!(rig.core.timer.pending_from(later) > timers, "it is looked at again later");
}

#[test]
fn the_next_daemon_finds_it_and_follows_it() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let (before, process) = (consoles(&rig, &vm), rig.machine.processes());
    let rig = rig.restart();
    rig.until("it is found", || consoles(&rig, &vm) == before);
    assert_eq!(rig.machine.processes(), process);
    rig.machine.end_process(process[0]);
    rig.until("there is another", || {
        !rig.machine.processes().is_empty()
            && consoles(&rig, &vm).first().is_some_and(|(protocol, _)| *protocol == ConsoleProtocol::Rfb)
    });
    // An earlier daemon's sockets went with it.
    assert_ne!(consoles(&rig, &vm), before);
}

#[test]
fn ports_that_are_not_the_running_process_s_are_not_offered() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let domid = rig.domid(&vm).unwrap();
    let process = rig.machine.processes();
    // As after a daemon killed between starting a second one and writing where it listens.
    let pid = xenstore::Path::new(&format!("/local/domain/{domid}/vncterm-pid")).unwrap();
    rig.machine.store.client(xenstore::DomId::DOM0).write(&pid, "1").unwrap();
    let rig = rig.restart();
    rig.until("there is another", || rig.machine.processes().iter().any(|p| !process.contains(p)));
    rig.settle(&vm);
    let now = rig.machine.processes();
    assert_eq!((now.len(), journalled(&rig, &vm)), (1, now.clone()));
    assert_eq!(node(&rig, domid, "vncterm-pid"), Some(now[0].to_string()));
}

#[test]
fn its_end_without_a_daemon_is_noticed_by_the_next_one() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let process = rig.machine.processes();
    rig.machine.faults.arm(Fault::From { nth: 0 });
    rig.machine.end_process(process[0]);
    let rig = rig.restart();
    rig.until("there is another", || !rig.machine.processes().is_empty());
    rig.settle(&vm);
    assert_eq!(journalled(&rig, &vm), rig.machine.processes());
}

#[test]
fn a_restart_that_fails_leaves_nothing_and_is_tried_again_later() {
    // The second process that is followed: the first is the one that has ended.
    let sites = [
        ("host.listen_for_terminal", 0),
        ("host.start_terminal", 0),
        ("host.follow_process", 1),
        ("host.go", 0),
    ];
    for (site, nth) in sites {
        let rig = Rig::new(&quick());
        let vm = rig.add(1, &[], |_| ());
        rig.start(&vm).unwrap();
        let rig = rig.restart();
        rig.until("it is found", || consoles(&rig, &vm).len() == 2);
        let later = later();
        let timers = rig.core.timer.pending_from(later);
        rig.machine.faults.arm(Fault::Nth {
            site: Some(site.to_owned()),
            nth,
            when: crate::sim::When::Before,
        });
        rig.machine.end_process(rig.machine.processes()[0]);
        rig.settle(&vm);
        assert_eq!(rig.machine.faults.disarm(), 1, "{site}");
        assert!(rig.core.timer.pending_from(later) > timers, "it is tried again later");
        assert!(rig.machine.processes().is_empty() && journalled(&rig, &vm).is_empty(), "{site}");
        assert_eq!(rig.state(&vm), PowerState::Running);
        // The next look finds that there is none.
        rig.run(&vm, Operation::Check).unwrap();
        assert_eq!(journalled(&rig, &vm), rig.machine.processes());
        assert_eq!(consoles(&rig, &vm).len(), 2, "{site}");
    }
}

#[test]
fn the_screen_survives_a_suspend_and_no_start() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let image = Disk::Local(rig.directory.path().join("image").display().to_string());
    let screen = rig.core.records.screen(&vm);
    let lines = || std::fs::read_to_string(&screen).unwrap().lines().count();
    rig.start(&vm).unwrap();
    for suspends in 1..=2 {
        rig.run(&vm, Operation::Suspend(image.clone())).unwrap();
        assert!(rig.machine.processes().is_empty());
        assert_eq!(lines(), suspends);
        rig.run(&vm, Operation::Resume(image.clone())).unwrap();
        rig.run(&vm, Operation::Unpause).unwrap();
    }
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Suspend(image)).unwrap();
    assert_eq!(lines(), 1, "a start begins with an empty screen");
    rig.run(&vm, Operation::Remove).unwrap();
    assert!(!screen.exists());
}

#[test]
fn a_suspend_that_fails_keeps_it_running() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let (before, process) = (consoles(&rig, &vm), rig.machine.processes());
    let image = Disk::Local("/nonexistent/image".to_owned());
    rig.run(&vm, Operation::Suspend(image)).unwrap_err();
    assert_eq!((consoles(&rig, &vm), rig.machine.processes()), (before, process));
}
