//! Changes of running VMs and of their devices.

use super::*;
use crate::api::{DeviceId, LockedAddresses, LockingMode, Vbd, VbdMode, VbdType};
use crate::core::{VifWish, Wish};
use crate::sim::When;

const DRIVE: &str = "xvdd";

fn medium(name: &str) -> Disk {
    Disk::Local(format!("/srv/{name}.iso"))
}

fn insert(name: &str) -> Operation {
    Operation::Change(Wish::Insert(DRIVE.to_owned(), medium(name)))
}

fn eject() -> Operation {
    Operation::Change(Wish::Eject(DRIVE.to_owned()))
}

/// Stores a VM with a drive that has nothing in it.
fn with_drive(rig: &Rig, number: u32, script: &[(&str, &str)]) -> String {
    let vm = rig.add(number, script, |_| ());
    let drive = Vbd {
        id: DeviceId::new(&*vm, DRIVE),
        position: Some(DRIVE.parse().unwrap()),
        mode: VbdMode::ReadOnly,
        ty: VbdType::Cdrom,
        ..Vbd::default()
    };
    rig.core.records.put(&drive).unwrap();
    vm
}

fn in_drive(rig: &Rig, vm: &str) -> (Option<Disk>, bool) {
    let drive: Vbd = rig.core.records.device(&DeviceId::new(vm, DRIVE)).unwrap();
    let state = crate::device::vbd::state(&rig.core, &drive).unwrap();
    assert_eq!(state.backend_present, drive.backend.clone().filter(|_| state.plugged));
    (drive.backend, state.plugged)
}

#[test]
fn media_come_and_go() {
    let rig = Rig::new(&quick());
    let vm = with_drive(&rig, 1, &[]);
    assert!(matches!(rig.run(&vm, insert("one")), Err(Error::BadPowerState { .. })));
    rig.start_connected(&vm);
    assert_eq!(in_drive(&rig, &vm), (None, false));
    let before = rig.remains(&vm);
    assert_eq!(rig.run(&vm, eject()), Err(Error::MediaNotPresent));
    for name in ["one", "two"] {
        rig.run(&vm, insert(name)).unwrap();
        assert_eq!(in_drive(&rig, &vm), (Some(medium(name)), true));
        assert_eq!(rig.run(&vm, insert("other")), Err(Error::MediaPresent));
        rig.run(&vm, eject()).unwrap();
        assert_eq!(in_drive(&rig, &vm), (None, false));
        rig.until_remains(&vm, &before, "a medium came and went");
    }
    let disk = Operation::Change(Wish::Eject("xvda".to_owned()));
    assert_eq!(rig.run(&vm, disk), Err(Error::MediaNotEjectable));
    // It is in the drive when the VM starts the next time.
    rig.run(&vm, insert("one")).unwrap();
    rig.run(&vm, Operation::Reboot(None)).unwrap();
    assert_eq!(in_drive(&rig, &vm), (Some(medium("one")), true));
}

#[test]
fn a_guest_that_keeps_its_medium_is_not_robbed_of_it() {
    let rig = Rig::new(&quick());
    let vm = with_drive(&rig, 1, &[("devices", "refuse")]);
    rig.start(&vm).unwrap();
    rig.run(&vm, insert("one")).unwrap();
    rig.until("the guest has its drive", || {
        rig.device(&vm, DeviceKind::Vbd, 51760).frontend == Some(xenstore::layout::XenbusState::Connected)
    });
    let refused = rig.run(&vm, eject());
    assert!(matches!(refused, Err(Error::DeviceDetachRejected { .. })), "{refused:?}");
    assert_eq!(in_drive(&rig, &vm), (Some(medium("one")), true));
}

/// A medium that is missing, in use, or that some call fails for: the drive is as empty as before.
#[test]
fn an_insert_that_fails_leaves_the_drive_empty() {
    let rig = Rig::new(&quick());
    let vm = with_drive(&rig, 1, &[]);
    rig.start_connected(&vm);
    let before = rig.remains(&vm);
    rig.machine.faults.record();
    rig.run(&vm, insert("one")).unwrap();
    let calls = rig.machine.faults.recorded();
    rig.run(&vm, eject()).unwrap();
    let mut failed = 0;
    for nth in 0..u64::try_from(calls.len()).unwrap() {
        rig.machine.faults.arm(Fault::Nth { site: None, nth, when: When::Before });
        let outcome = rig.run(&vm, insert("one"));
        rig.machine.faults.disarm();
        if outcome.is_ok() {
            rig.run(&vm, eject()).unwrap();
        } else {
            failed += 1;
        }
        assert_eq!(in_drive(&rig, &vm), (None, false), "call {nth}: {outcome:?}");
        rig.until_remains(&vm, &before, &format!("call {nth} of an insert: {outcome:?}"));
    }
    assert!(failed > 4, "only {failed} failures");
}

#[test]
fn a_daemon_killed_in_an_insert_or_eject_leaves_a_drive_that_works() {
    let mut rig = Rig::new(&quick());
    let vm = with_drive(&rig, 1, &[]);
    rig.start_connected(&vm);
    // What an earlier daemon plugged keeps nothing open in this one.
    rig = rig.restart();
    rig.settle(&vm);
    let before = rig.remains(&vm);
    rig.machine.faults.record();
    rig.run(&vm, insert("one")).unwrap();
    rig.run(&vm, eject()).unwrap();
    let calls = rig.machine.faults.recorded();
    for nth in 0..u64::try_from(calls.len()).unwrap() {
        rig.machine.faults.arm(Fault::From { nth });
        let _ = rig.run(&vm, insert("one")).and_then(|()| rig.run(&vm, eject()));
        rig = rig.restart();
        rig.settle(&vm);
        if !in_drive(&rig, &vm).1 {
            rig.run(&vm, insert("two")).unwrap();
        }
        rig.run(&vm, eject()).unwrap();
        assert_eq!(in_drive(&rig, &vm), (None, false), "kill at {nth}");
        rig.until_remains(&vm, &before, &format!("a kill at call {nth}"));
    }
}

fn interface(wish: VifWish) -> Operation {
    Operation::Change(Wish::Interface("0".to_owned(), wish))
}

fn to_bridge(name: &str) -> Operation {
    interface(VifWish::Network(Network::Local(name.to_owned())))
}

fn node(rig: &Rig, path: &str) -> Option<String> {
    use xenstore::Operations;
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    let value = store.read(&xenstore::Path::new(path).unwrap()).unwrap();
    value.map(|value| String::from_utf8(value).unwrap())
}

/// The bridge that the record, the store and the host's side say, and whether the cable is in.
fn network(rig: &Rig, vm: &str) -> (String, bool) {
    let vif: crate::api::Vif = rig.core.records.device(&DeviceId::new(vm, "0")).unwrap();
    let Network::Local(bridge) = vif.backend else { panic!("{vif:?}") };
    if let Some(domid) = rig.domid(vm) {
        let told = node(rig, &format!("/local/domain/0/backend/vif/{domid}/0/bridge"));
        assert_eq!(told.as_ref(), Some(&bridge));
        let unplugged = node(rig, &format!("/local/domain/{domid}/device/vif/0/disconnect"));
        assert_eq!(unplugged.as_deref() == Some("1"), !vif.carrier);
        let host = rig.machine.interface(&format!("vif{domid}.0")).expect("it was connected");
        assert_eq!((&host.bridge, host.carrier), (&bridge, vif.carrier));
    }
    (bridge, vif.carrier)
}

#[test]
fn an_interface_moves_and_loses_its_carrier_running_or_not() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.run(&vm, to_bridge("br1")).unwrap();
    assert_eq!(network(&rig, &vm), ("br1".to_owned(), true));
    rig.start_connected(&vm);
    for (bridge, carrier) in [("br2", true), ("br2", false), ("br0", false), ("br0", true)] {
        rig.run(&vm, to_bridge(bridge)).unwrap();
        rig.run(&vm, interface(VifWish::Carrier(carrier))).unwrap();
        assert_eq!(network(&rig, &vm), (bridge.to_owned(), carrier));
    }
}

#[test]
fn a_move_that_fails_leaves_the_interface_where_it_was() {
    let bridges = ["br0", "br1"].map(str::to_owned).into_iter().collect();
    let rig = Rig::new(&SimOptions { bridges: crate::sim::Present::Only(bridges), ..quick() });
    let vm = rig.add(1, &[], |_| ());
    rig.start_connected(&vm);
    let before = rig.remains(&vm);
    let missing = rig.run(&vm, to_bridge("br9"));
    assert_eq!(missing, Err(Error::does_not_exist("network", "br9")));
    assert_eq!(network(&rig, &vm).0, "br0");
    rig.machine.faults.record();
    rig.run(&vm, to_bridge("br1")).unwrap();
    let calls = rig.machine.faults.recorded();
    rig.run(&vm, to_bridge("br0")).unwrap();
    let mut failed = 0;
    for nth in 0..u64::try_from(calls.len()).unwrap() {
        rig.machine.faults.arm(Fault::Nth { site: None, nth, when: When::Before });
        let outcome = rig.run(&vm, to_bridge("br1"));
        rig.machine.faults.disarm();
        assert_eq!(network(&rig, &vm).0, if outcome.is_ok() { "br1" } else { "br0" }, "{nth}: {outcome:?}");
        failed += u32::from(outcome.is_err());
        rig.run(&vm, to_bridge("br0")).unwrap();
        rig.until_remains(&vm, &before, &format!("call {nth} of a move: {outcome:?}"));
    }
    assert!(failed > 3, "only {failed} failures");
}

#[test]
fn a_move_that_a_daemon_is_killed_in_is_made_or_not_made() {
    let mut rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start_connected(&vm);
    rig.machine.faults.record();
    rig.run(&vm, to_bridge("br0")).unwrap();
    let calls = rig.machine.faults.recorded();
    for nth in 0..u64::try_from(calls.len()).unwrap() {
        rig.machine.faults.arm(Fault::From { nth });
        let _ = rig.run(&vm, to_bridge("br1"));
        rig = rig.restart();
        rig.settle(&vm);
        // Record, store and host agree; `network` looks at all of them.
        let (bridge, _) = network(&rig, &vm);
        assert!(bridge == "br0" || bridge == "br1");
        rig.run(&vm, to_bridge("br0")).unwrap();
    }
}

fn lock(addresses: &[&str]) -> Operation {
    let ipv4 = addresses.iter().map(|&a| a.to_owned()).collect();
    interface(VifWish::LockingMode(LockingMode::Locked(LockedAddresses { ipv4, ipv6: Vec::new() })))
}

/// Addresses that the host's side is locked to.
fn locked(rig: &Rig, vm: &str) -> Option<Vec<String>> {
    let settings = rig.machine.interface(&format!("vif{}.0", rig.domid(vm).unwrap())).unwrap();
    settings.locked.map(|locked| locked.ipv4.iter().map(ToString::to_string).collect())
}

#[test]
fn an_interface_is_locked_and_unlocked_and_its_rules_go_with_it() {
    let mut rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start_connected(&vm);
    let (before, entries) = (locked(&rig, &vm), |rig: &Rig| rig.core.journal.of(&vm).len());
    let unlocked = entries(&rig);
    assert_eq!(before, None);
    for addresses in [&["10.0.0.1"][..], &["10.0.0.1", "10.0.0.2"], &[]] {
        rig.run(&vm, lock(addresses)).unwrap();
        assert_eq!(locked(&rig, &vm).unwrap(), addresses);
        assert_eq!(entries(&rig), unlocked + 1);
    }
    let bad = rig.run(&vm, lock(&["10.0.0.1/24"])).unwrap_err().to_string();
    assert!(bad.contains("10.0.0.1/24"), "{bad}");
    // The next daemon knows of the rules as well.
    rig = rig.restart();
    rig.run(&vm, interface(VifWish::LockingMode(LockingMode::Unlocked))).unwrap();
    assert_eq!((locked(&rig, &vm), entries(&rig)), (None, unlocked));
    rig.run(&vm, interface(VifWish::LockingMode(LockingMode::Disabled))).unwrap();
    assert!(!rig.machine.interface(&format!("vif{}.0", rig.domid(&vm).unwrap())).unwrap().carrier);
    rig.run(&vm, lock(&["10.0.0.1"])).unwrap();
    let interface = crate::ops::plan::Device::Vif("0".to_owned());
    rig.run(&vm, Operation::Unplug(interface.clone(), crate::ops::plan::Unplugging::Clean)).unwrap();
    assert_eq!(entries(&rig), unlocked);
    rig.run(&vm, Operation::Plug(interface)).unwrap();
    assert_eq!(entries(&rig), unlocked + 1);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(rig.core.journal.of(&vm).len(), 0);
}

const MIB: i64 = 1 << 20;

#[test]
fn vcpus_come_and_go() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| (vm.vcpu_max, vm.vcpus) = (4, 1));
    let set = |vcpus| rig.run(&vm, Operation::Change(Wish::Vcpus(vcpus)));
    set(2).unwrap();
    rig.start_connected(&vm);
    let domid = rig.domid(&vm).unwrap();
    for vcpus in [2, 4, 1, 3] {
        set(vcpus).unwrap();
        let online = u32::try_from(vcpus).unwrap();
        assert!(rig.machine.wait(LONG, |h| h.info(domid).is_some_and(|d| d.nr_online_vcpus == online)));
    }
    for bad in [0, 5, -1] {
        assert_eq!(set(bad), Err(Error::InvalidVcpus(4)));
    }
    // It has as many after its next start.
    rig.run(&vm, Operation::Reboot(None)).unwrap();
    let domid = rig.domid(&vm).unwrap();
    assert!(rig.machine.wait(LONG, |h| h.info(domid).is_some_and(|d| d.nr_online_vcpus == 3)));
}

#[test]
fn memory_is_given_and_taken_and_waited_for() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[("balloon", "slow")], |vm| vm.memory_static_max = 128 * MIB);
    rig.start_connected(&vm);
    for mib in [32, 128, 64] {
        rig.run(&vm, Operation::Change(Wish::Memory(16 * MIB, mib * MIB))).unwrap();
        let state = observe::state(&rig.core, &rig.core.records.vm(&vm).unwrap()).unwrap();
        assert!((state.memory_actual - mib * MIB).abs() <= 2 * MIB, "{} for {mib} MiB", state.memory_actual);
        assert_eq!(state.memory_target, mib * MIB);
    }
    let above = rig.run(&vm, Operation::Change(Wish::Memory(16 * MIB, 129 * MIB)));
    assert!(above.is_err(), "static_max is a limit");
}

#[test]
fn a_balloon_that_does_not_follow_is_said_and_its_range_stays() {
    let patience = Patience { balloon: Duration::from_millis(200), ..long() };
    let rig = Rig::with_patience(&quick(), patience);
    let vm = rig.add(1, &[("balloon", "refuse")], |_| ());
    rig.start_connected(&vm);
    let before = (rig.remains(&vm), rig.core.records.vm(&vm).unwrap());
    let refused = rig.run(&vm, Operation::Change(Wish::Memory(16 * MIB, 32 * MIB))).unwrap_err().to_string();
    assert!(refused.contains("balloon driver does not follow"), "{refused}");
    assert_eq!(rig.core.records.vm(&vm).unwrap(), before.1);
    let target = node(&rig, &format!("/local/domain/{}/memory/target", rig.domid(&vm).unwrap()));
    assert_eq!(target.as_deref(), Some("65536"));
    rig.until_remains(&vm, &before.0, "a range that was refused");
}

/// Nobody waits for the balloon of a guest that has stopped.
#[test]
fn a_guest_that_stops_while_its_balloon_moves_is_not_waited_for() {
    let rig = Rig::with_patience(&quick(), Patience { balloon: 2 * LIMIT, ..long() });
    let vm = rig.add(1, &[("balloon", "refuse")], |vm| vm.on_crash = vec![crate::api::Action::Pause]);
    rig.start_connected(&vm);
    let domid = rig.domid(&vm).unwrap();
    let change = Operation::Change(Wish::Memory(16 * MIB, 32 * MIB));
    let (done, outcome) = bounded(1);
    rig.core.submit_then(&vm, "test", change, move |result| done.send(result).unwrap());
    let target = format!("/local/domain/{domid}/memory/target");
    rig.until("the guest is asked", || node(&rig, &target).as_deref() == Some("32768"));
    rig.machine.stop_guest(domid, crate::edge::ShutdownReason::Crash);
    let refused = outcome.recv_timeout(LIMIT).unwrap().unwrap_err().to_string();
    assert!(refused.contains("stopped"), "{refused}");
}

#[test]
fn xsdata_is_replaced_and_what_the_guest_added_stays() {
    use xenstore::Operations;
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| {
        vm.xsdata = [("vm-data/old", "1"), ("vm-data/both", "1")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into_iter()
            .collect();
    });
    rig.start_connected(&vm);
    let home = format!("/local/domain/{}/vm-data", rig.domid(&vm).unwrap());
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    store.write(&xenstore::Path::new(&format!("{home}/guests")).unwrap(), "1").unwrap();
    let xsdata = [("vm-data/new", "2"), ("vm-data/both", "2"), ("device/vbd", "no")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()));
    rig.run(&vm, Operation::Change(Wish::Xsdata(xsdata.into_iter().collect()))).unwrap();
    let value = |name: &str| node(&rig, &format!("{home}/{name}"));
    assert_eq!(
        [value("old"), value("both"), value("new"), value("guests")].map(Option::unwrap_or_default),
        ["", "2", "2", "1"]
    );
}
