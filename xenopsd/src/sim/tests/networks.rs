//! Interfaces in other ways than the daemon's own: in an Open vSwitch, by hotplug script; and what their guests are asked.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::api::{DeviceId, Dict, Ipv4Configuration, Ipv6Configuration, Vif};
use crate::core::{VifWish, Wish};
use crate::ops::plan::{Device, Unplugging};
use crate::state::journal::Resource;

fn interface() -> Device {
    Device::Vif("0".to_owned())
}

fn wish(wish: VifWish) -> Operation {
    Operation::Change(Wish::Interface("0".to_owned(), wish))
}

fn to_bridge(name: &str) -> Operation {
    wish(VifWish::Network(Network::Local(name.to_owned())))
}

fn change_record(rig: &Rig, vm: &str, change: impl FnOnce(&mut Vif)) {
    let mut vif: Vif = rig.core.records.device(&DeviceId::new(vm, "0")).unwrap();
    change(&mut vif);
    rig.core.records.put(&vif).unwrap();
}

fn node(rig: &Rig, path: &str) -> Option<String> {
    use xenstore::Operations;
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    let value = store.read(&xenstore::Path::new(path).unwrap()).unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}

fn has_port(rig: &Rig, vm: &str) -> bool {
    rig.core.journal.of(vm).iter().any(|(_, resource)| matches!(resource, Resource::SwitchPort(_)))
}

#[test]
fn a_port_of_an_open_vswitch_is_in_the_journal_for_as_long_as_it_is_there() {
    let mut rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    change_record(&rig, &vm, |vif| {
        (vif.backend, vif.trunks) = (Network::Local("ovs0".to_owned()), vec![7, 5]);
    });
    rig.start_connected(&vm);
    assert!(has_port(&rig, &vm));
    let settings = rig.machine.interface(&format!("vif{}.0", rig.domid(&vm).unwrap())).unwrap();
    assert_eq!(settings.trunks, [5, 7]);
    // A Linux bridge has no trunks.
    let refused = rig.run(&vm, to_bridge("br0"));
    assert!(matches!(refused, Err(Error::Unimplemented(_))), "{refused:?}");
    rig.run(&vm, wish(VifWish::Trunks(Vec::new()))).unwrap();
    for bridge in ["br0", "ovs1"] {
        rig.run(&vm, to_bridge(bridge)).unwrap();
    }
    // The next daemon knows of it as well.
    rig = rig.restart();
    rig.run(&vm, Operation::Unplug(interface(), Unplugging::Clean)).unwrap();
    assert!(!has_port(&rig, &vm));
    rig.run(&vm, Operation::Plug(interface())).unwrap();
    assert!(has_port(&rig, &vm));
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(rig.core.journal.of(&vm).len(), 0);
}

#[test]
fn the_agent_is_asked_for_addresses_and_not_troubled_otherwise() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start_connected(&vm);
    let domid = rig.domid(&vm).unwrap();
    let asked = |name: &str| {
        node(&rig, &format!("/local/domain/{domid}/xenserver/device/vif/0/static-ip-setting/{name}"))
    };
    rig.run(&vm, wish(VifWish::Ipv4(Ipv4Configuration::Unspecified))).unwrap();
    assert_eq!(asked("enabled"), None);
    let fixed = Ipv4Configuration::Static {
        addresses: vec!["10.0.0.2/24".to_owned()],
        gateway: Some("10.0.0.1".to_owned()),
    };
    rig.run(&vm, wish(VifWish::Ipv4(fixed))).unwrap();
    rig.run(&vm, wish(VifWish::Ipv6(Ipv6Configuration::Autoconf))).unwrap();
    let values = ["mac", "enabled", "address", "gateway", "enabled6", "error-code"]
        .map(|n| asked(n).unwrap_or_default());
    assert_eq!(values, ["00:16:3e:00:00:01", "1", "10.0.0.2/24", "10.0.0.1", "2", "0"]);
    let bad = Ipv4Configuration::Static { addresses: vec!["10.0.0.2".to_owned()], gateway: None };
    rig.run(&vm, wish(VifWish::Ipv4(bad))).unwrap_err();
    assert_eq!(asked("enabled").as_deref(), Some("1"));
    // Plugged again, it is asked again.
    rig.run(&vm, Operation::Unplug(interface(), Unplugging::Clean)).unwrap();
    assert_eq!(asked("enabled"), None);
    rig.run(&vm, Operation::Plug(interface())).unwrap();
    assert_eq!(asked("address").as_deref(), Some("10.0.0.2/24"));
    rig.run(&vm, wish(VifWish::Ipv4(Ipv4Configuration::Unspecified))).unwrap();
    assert_eq!((asked("enabled").as_deref(), asked("address")), (Some("0"), None));
}

/// A running VM whose interface is set up by a script that logs its calls and does `what` besides.
fn scripted(rig: &Rig, what: &str) -> (String, PathBuf) {
    let script = rig.directory.path().join("script");
    let log = rig.directory.path().join("log");
    let text = format!(
        "#!/bin/sh\necho $1 $XENBUS_PATH $vif $type_if $XENBUS_TYPE $XENBUS_BASE_PATH >>{}\n{what}\n",
        log.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let vm = rig.add(1, &[], |_| ());
    let key = script.display().to_string();
    change_record(rig, &vm, |vif| vif.other_config = Dict::from_iter([("hotplug-script", key)]));
    (vm, log)
}

/// Says what a script would, once it has been called; each time.
fn answer(rig: &Rig, log: &std::path::Path, calls: usize, (name, value): (&str, &str)) {
    use xenstore::Operations;
    rig.until("the script is called", || {
        std::fs::read_to_string(log).unwrap_or_default().lines().count() >= calls
    });
    let call = std::fs::read_to_string(log).unwrap();
    let path = call.lines().last().unwrap().split(' ').nth(1).unwrap().to_owned();
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    let node = xenstore::Path::new(&format!("/local/domain/0/{path}/{name}")).unwrap();
    store.write(&node, value).unwrap();
}

#[test]
fn a_script_is_waited_for_and_told_of_the_end() {
    let rig = Rig::new(&quick());
    let (vm, log) = scripted(&rig, "");
    let connected = ("hotplug-status", "connected");
    let (done, outcome) = bounded(1);
    let run = |operation| {
        let done = done.clone();
        rig.core.submit_then(&vm, "test", operation, move |result| done.send(result).unwrap());
    };
    run(Operation::Start);
    answer(&rig, &log, 1, connected);
    outcome.recv_timeout(LIMIT).unwrap().unwrap();
    rig.run(&vm, Operation::Unpause).unwrap();
    // Out of one bridge, into the other.
    run(to_bridge("br1"));
    answer(&rig, &log, 3, connected);
    outcome.recv_timeout(LIMIT).unwrap().unwrap();
    rig.run(&vm, wish(VifWish::Carrier(false))).unwrap();
    let domid = rig.domid(&vm).unwrap();
    assert!(!rig.machine.interface(&format!("vif{domid}.0")).unwrap().carrier);
    rig.run(&vm, Operation::Unplug(interface(), Unplugging::Clean)).unwrap();
    let rest = format!("backend/vif/{domid}/0 vif{domid}.0 vif vif backend");
    let calls = ["online", "offline", "online", "offline"].map(|what| format!("{what} {rest}"));
    assert_eq!(std::fs::read_to_string(&log).unwrap().lines().collect::<Vec<_>>(), calls);
}

#[test]
fn a_script_that_fails_or_says_nothing_is_named() {
    let patience = Patience { hotplug: Duration::from_millis(500), ..long() };
    for (what, says) in [
        ("exit 3", "`online` ended with 3"),
        ("exit 0", "not written \"connected\""),
        ("sleep 60", "was killed"),
    ] {
        let rig = Rig::with_patience(&quick(), patience);
        let (vm, log) = scripted(&rig, &format!("[ $1 = offline ] || {what}"));
        let refused = rig.run(&vm, Operation::Start).unwrap_err().to_string();
        assert!(refused.contains(says) && refused.contains("hotplug script"), "{what}: {refused}");
        // It is told of the end all the same, and nothing is left.
        assert!(std::fs::read_to_string(&log).unwrap().lines().last().unwrap().starts_with("offline "));
        assert_eq!((rig.domid(&vm), rig.core.journal.of(&vm).len()), (None, 0));
    }
    let rig = Rig::new(&quick());
    let (vm, log) = scripted(&rig, "");
    let (done, outcome) = bounded(1);
    rig.core.submit_then(&vm, "test", Operation::Start, move |result| done.send(result).unwrap());
    answer(&rig, &log, 1, ("hotplug-error", "no such bridge\n"));
    let refused = outcome.recv_timeout(LIMIT).unwrap().unwrap_err().to_string();
    assert!(refused.contains("no such bridge"), "{refused}");
    let missing = DeviceId::new(&*vm, "0");
    change_record(&rig, &vm, |vif| {
        vif.other_config = Dict::from_iter([("hotplug-script", "/no/script".to_owned())]);
    });
    let refused = rig.run(&vm, Operation::Start);
    assert_eq!(refused, Err(Error::does_not_exist("script", "/no/script")), "{missing}");
}

/// A script that sets up whatever it is called for: it answers as soon as what it said before is forgotten.
fn answering(rig: &Rig) -> crate::edge::Following {
    use xenstore::Operations;
    let class = xenstore::Path::new("/local/domain/0/backend/vif").unwrap();
    let (store, directory) = (rig.machine.store.clone(), class.clone());
    let answer = move || {
        let mut store = store.client(xenstore::DomId::DOM0);
        for domid in store.directory(&directory).unwrap().unwrap_or_default() {
            let device = directory.join(&domid).unwrap().join("0").unwrap();
            let status = device.join("hotplug-status").unwrap();
            let answered = store.transaction::<(), xenstore::Error>(|t| {
                let asked = t.read(&status)?.is_some_and(|said| said.is_empty());
                if asked { t.write(&status, "connected") } else { Ok(()) }
            });
            answered.unwrap();
        }
    };
    rig.machine.events.follow(&[class], answer).unwrap()
}

/// The daemon is killed between any two steps of a plug, or an unplug, with a hotplug script: nothing is left, and the script
/// that was told of a beginning is told of the end.
#[test]
fn a_daemon_killed_around_a_hotplug_script_leaves_nothing_and_tells_it_of_the_end() {
    for plugging in [true, false] {
        let rig = Rig::new(&quick());
        let (vm, log) = scripted(&rig, "");
        let answers = answering(&rig);
        rig.start(&vm).unwrap();
        let before = super::hotplug::without_devices(&rig, &vm);
        let rig = super::hotplug::killed_at_each_call(rig, &vm, &before, &interface(), plugging);
        drop(answers);
        let calls = std::fs::read_to_string(&log).unwrap();
        drop(rig);
        let calls: Vec<_> = calls.lines().map(|line| line.split(' ').next().unwrap()).collect();
        let begun_twice = calls.windows(2).find(|pair| *pair == ["online", "online"]);
        assert_eq!((begun_twice, calls.last()), (None, Some(&"offline")), "{calls:?}");
    }
}

fn lock_record(rig: &Rig, vm: &str) {
    let addresses = crate::api::LockedAddresses { ipv4: vec!["10.0.0.1".to_owned()], ipv6: Vec::new() };
    change_record(rig, vm, |vif| vif.locking_mode = crate::api::LockingMode::Locked(addresses));
}

/// Somebody else removes the bridge: the guest runs on, another plug says which bridge is missing, and when it is there
/// again the interface is in it. Who is in other bridges is left alone.
#[test]
fn a_bridge_that_somebody_removes_and_makes_again_has_its_ports_again() {
    let rig = Rig::new(&quick());
    let (vm, other) = (rig.add(1, &[], |_| ()), rig.add(2, &[], |_| ()));
    change_record(&rig, &other, |vif| vif.backend = Network::Local("br1".to_owned()));
    rig.start_connected(&vm);
    rig.start_connected(&other);
    let name = |vm: &str| format!("vif{}.0", rig.domid(vm).unwrap());
    let [ours, others] = [&vm, &other].map(|vm| rig.machine.interface(&name(vm)));
    rig.machine.remove_bridge("br0");
    assert_eq!(rig.machine.interface(&name(&vm)), None);
    rig.run(&vm, Operation::Unplug(interface(), Unplugging::Clean)).unwrap();
    let refused = rig.run(&vm, Operation::Plug(interface()));
    assert_eq!(refused, Err(Error::does_not_exist("network", "br0")));
    rig.machine.make_bridge("br0");
    rig.run(&vm, Operation::Plug(interface())).unwrap();
    assert_eq!(rig.machine.interface(&name(&vm)), ours);
    // Nobody asks for anything now.
    rig.machine.remove_bridge("br0");
    rig.machine.make_bridge("br0");
    rig.until("it is in the new one", || rig.machine.interface(&name(&vm)) == ours);
    assert_eq!(rig.machine.interface(&name(&other)), others);
    assert_eq!(rig.state(&vm), PowerState::Running);
}

#[test]
fn rules_that_somebody_removes_are_made_again() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    lock_record(&rig, &vm);
    rig.start_connected(&vm);
    let rig = rig.restart();
    let name = format!("vif{}.0", rig.domid(&vm).unwrap());
    let locked = || rig.machine.interface(&name).unwrap().locked;
    let before = locked();
    assert!(before.is_some());
    rig.machine.remove_rules();
    rig.until("it is locked again", || locked() == before);
    // A failure is told of in the log, and the next news is another chance.
    rig.settle(&vm);
    let site = Some("host.connect_vif".to_owned());
    rig.machine.faults.arm(Fault::Nth { site, nth: 0, when: crate::sim::When::Before });
    rig.machine.remove_rules();
    rig.settle(&vm);
    rig.machine.faults.disarm();
    assert_eq!(locked(), None);
    rig.machine.remove_rules();
    rig.until("it is locked again", || locked() == before);
}

/// The tap of an emulated card is in the same bridge as its interface, and sends no more than that may.
#[test]
fn an_emulated_card_follows_its_interface() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| vm.ty = BuilderInfo::Hvm(crate::api::HvmInfo::default()));
    lock_record(&rig, &vm);
    rig.start(&vm).unwrap();
    let domid = rig.domid(&vm).unwrap();
    let tap = || rig.machine.interface(&format!("tap{domid}.0")).expect("there is one");
    let noted = || {
        let rules = |(_, resource): &(_, Resource)| matches!(resource, Resource::Rules(name) if name.starts_with("tap"));
        rig.core.journal.of(&vm).iter().any(rules)
    };
    assert!(tap().locked.is_some() && noted());
    rig.run(&vm, wish(VifWish::LockingMode(crate::api::LockingMode::Unlocked))).unwrap();
    assert!(tap().locked.is_none() && !noted());
    rig.run(&vm, wish(VifWish::Carrier(false))).unwrap();
    assert!(!tap().carrier);
    rig.run(&vm, to_bridge("br1")).unwrap();
    assert_eq!(tap().bridge, "br1");
    lock_record(&rig, &vm);
    rig.machine.make_bridge("br1");
    rig.until("it is locked again", || tap().locked.is_some());
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(rig.core.journal.of(&vm).len(), 0);
    assert_eq!(rig.core.records.interfaces().unwrap(), Vec::<String>::new());
}
