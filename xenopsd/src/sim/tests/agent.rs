//! What guests tell of themselves reaches clients, and what they write without end reaches nobody else.

use super::*;
use crate::api::{DynamicId, VmState};
use crate::cli::printable;
use crate::ops::plan::{Device, Unplugging};
use xenstore::Operations;

fn stat(rig: &Rig, vm: &str) -> VmState {
    observe::state(&rig.core, &rig.core.records.vm(vm).unwrap()).unwrap()
}

fn told(rig: &Rig, vm: &str, key: &str) -> Option<String> {
    stat(rig, vm).guest_agent.get(key).cloned()
}

/// Waits until clients are told to look at a VM again.
fn announced(rig: &Rig, vm: &str, from: Int) {
    let wanted = DynamicId::Vm(vm.to_owned());
    let deadline = Instant::now() + LIMIT;
    while !rig.changes(from, LIMIT).contains(&wanted) {
        assert!(Instant::now() < deadline, "{vm} is not announced");
    }
}

/// As the guest itself.
fn write(rig: &Rig, vm: &str, node: &str, value: &[u8]) {
    let mut guest = rig.machine.store.client(xenstore::DomId(rig.domid(vm).unwrap().get()));
    guest.write(&xenstore::Path::new(node).unwrap(), value).unwrap();
}

/// What a flooding guest wrote last.
fn stored(rig: &Rig, vm: &str) -> Option<Vec<u8>> {
    let node = format!("/local/domain/{}/data/flood-0", rig.domid(vm).unwrap());
    rig.machine.store.client(xenstore::DomId::DOM0).read(&xenstore::Path::new(&node).unwrap()).unwrap()
}

#[test]
fn what_an_agent_writes_is_seen_and_announced_without_being_asked_for() {
    let mut rig = Rig::new(&quick());
    let vm = rig.add(1, &[("agent", "linux")], |_| ());
    rig.start_connected(&vm);
    let uname = |rig: &Rig| told(rig, &vm, "data/os_uname");
    rig.until("its agent is heard", || uname(&rig).is_some());
    rig.until("its drivers are seen", || stat(&rig, &vm).pv_drivers_detected);
    for (key, value) in [
        ("attr/vif/0/ipv4/0", "10.0.0.2"),
        ("attr/PVAddons/MajorVersion", "7"),
        ("data/meminfo_free", "32768"),
        ("control/feature-balloon", "1"),
    ] {
        assert_eq!(told(&rig, &vm, key).as_deref(), Some(value), "{key}");
    }
    let (before, values) = (rig.core.updates.last_id(), ["10.0.0.3", "10.0.0.4"]);
    for value in values {
        write(&rig, &vm, "attr/vif/0/ipv4/0", value.as_bytes());
    }
    announced(&rig, &vm, before);
    rig.until("the last word is heard", || {
        told(&rig, &vm, "attr/vif/0/ipv4/0").as_deref() == Some("10.0.0.4")
    });
    // What is under `vm-data` as well, and another daemon sees the same.
    let before = rig.core.updates.last_id();
    write(&rig, &vm, "vm-data/answer", b"42");
    announced(&rig, &vm, before);
    assert_eq!(stat(&rig, &vm).xsdata_state.get("vm-data/answer").map(String::as_str), Some("42"));
    rig = rig.restart();
    assert_eq!(uname(&rig).as_deref(), Some("6.1.0-13-amd64"));
    let before = rig.core.updates.last_id();
    write(&rig, &vm, "data/os_uname", b"6.1.0-14-amd64");
    announced(&rig, &vm, before);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let halted = stat(&rig, &vm);
    assert!(halted.guest_agent.is_empty() && !halted.pv_drivers_detected);
}

/// A device that is gone before the follower looks: who takes it away has seen it connected.
#[test]
fn an_unplug_of_a_connected_device_tells_of_drivers() {
    let rig = Rig::new(&quick());
    let (vm, paused) = (rig.add(1, &[], |_| ()), rig.add(2, &[], |_| ()));
    rig.start_connected(&vm);
    rig.start(&paused).unwrap();
    let connected_in = |vm: &str| rig.core.runtimes.with(vm, |r| r.connected_in);
    let disk = || Device::Vbd("xvda".to_owned());
    rig.run(&vm, Operation::Unplug(disk(), Unplugging::Clean)).unwrap();
    assert_eq!(connected_in(&vm), rig.domid(&vm));
    rig.until("its drivers are seen", || stat(&rig, &vm).pv_drivers_detected);
    rig.run(&paused, Operation::Unplug(disk(), Unplugging::Forced)).unwrap();
    assert_eq!(connected_in(&paused), None);
}

#[test]
fn what_does_not_change_anything_is_not_announced() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[("agent", "linux")], |_| ());
    rig.start_connected(&vm);
    rig.until("its agent is heard", || told(&rig, &vm, "data/updated").is_some());
    let before = rig.core.updates.last_id();
    write(&rig, &vm, "data/os_uname", b"6.1.0-13-amd64");
    write(&rig, &vm, "data/volumes/0/free", b"1");
    // Heard after those.
    write(&rig, &vm, "data/updated", b"2");
    announced(&rig, &vm, before);
    let before = rig.core.updates.last_id();
    write(&rig, &vm, "data/os_uname", b"6.1.0-13-amd64");
    assert_eq!(rig.changes(before, Duration::from_millis(1500)), []);
}

#[test]
fn a_hostile_agent_is_bounded_and_harmless() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[("agent", "hostile")], |_| ());
    rig.start_connected(&vm);
    rig.until("its agent is heard", || told(&rig, &vm, "data/os_name").is_some());
    rig.until("all of it", || told(&rig, &vm, "data/x0").is_some());
    let state = stat(&rig, &vm);
    let bytes: usize = state.guest_agent.iter().map(|(key, value)| key.len() + value.len()).sum();
    // Bytes that are no text become three each.
    assert!(bytes <= 3 * (64 << 10), "{bytes}");
    let name = state.guest_agent.get("data/os_name").unwrap();
    assert!(!printable(name).chars().any(|c| c.is_control() || c == '\u{202e}'), "{name:?}");
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
}

#[test]
fn a_guest_that_floods_its_tree_is_looked_at_now_and_then_and_delays_nobody() {
    let rig = Rig::new(&quick());
    let flooding: Vec<_> = (1..3).map(|n| rig.add(n, &[("flood", "500000")], |_| ())).collect();
    for vm in &flooding {
        rig.start(vm).unwrap();
    }
    rig.until("they are heard", || flooding.iter().all(|vm| told(&rig, vm, "data/flood-0").is_some()));
    let before = rig.core.updates.last_id();
    let (began, written) = (Instant::now(), stored(&rig, &flooding[0]));
    let other = rig.add(9, &[("agent", "linux")], |_| ());
    rig.start_connected(&other);
    for _ in 0..10 {
        rig.run(&other, Operation::Unplug(Device::Vif("0".to_owned()), Unplugging::Clean)).unwrap();
        rig.run(&other, Operation::Plug(Device::Vif("0".to_owned()))).unwrap();
    }
    rig.until("the other's agent is heard", || told(&rig, &other, "data/updated").is_some());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert_ne!(stored(&rig, &flooding[0]), written, "the flood went on");
    // Each announcement has a number; those of the other VM are a few for each of its operations.
    let most = Int::try_from(flooding.len() * 30 + 500).unwrap();
    assert!(rig.core.updates.last_id() - before < most);
    for vm in &flooding {
        rig.run(vm, Operation::Shutdown(None)).unwrap();
    }
}
