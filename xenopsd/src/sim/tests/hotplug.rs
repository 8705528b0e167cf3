//! Devices that come and go while the guest runs.

use super::*;
use crate::api::StepState;
use crate::ops::plan::{Device, Unplugging};

fn disk_device() -> Device {
    Device::Vbd("xvda".to_owned())
}

fn interface_device() -> Device {
    Device::Vif("0".to_owned())
}

fn plugged(rig: &Rig, vm: &str, device: &Device) -> bool {
    crate::device::is_plugged(&rig.core, vm, device).unwrap()
}

/// A running VM with its devices unplugged, and what is there then.
fn bare(rig: &Rig, script: &[(&str, &str)]) -> (String, Remains) {
    let vm = rig.add(1, script, |_| ());
    rig.start(&vm).unwrap();
    let before = without_devices(rig, &vm);
    (vm, before)
}

/// Unplugs the devices of a running VM; what is there then.
pub(super) fn without_devices(rig: &Rig, vm: &str) -> Remains {
    for device in [disk_device(), Device::Vbd("xvdb".to_owned()), interface_device()] {
        rig.run(vm, Operation::Unplug(device, Unplugging::Forced)).unwrap();
    }
    rig.remains(vm)
}

#[test]
fn devices_come_and_go_and_leave_nothing() {
    let rig = Rig::new(&quick());
    let (vm, before) = bare(&rig, &[]);
    assert_eq!(before.kept, 0);
    for device in [disk_device(), interface_device()] {
        for how in [Unplugging::Clean, Unplugging::Forced] {
            rig.run(&vm, Operation::Plug(device.clone())).unwrap();
            assert!(plugged(&rig, &vm, &device));
            // Twice is once.
            rig.run(&vm, Operation::Plug(device.clone())).unwrap();
            rig.run(&vm, Operation::Unplug(device.clone(), how)).unwrap();
            assert!(!plugged(&rig, &vm, &device));
            let again = rig.run(&vm, Operation::Unplug(device.clone(), how));
            assert_eq!(again, Err(Error::DeviceNotConnected));
        }
        rig.until_remains(&vm, &before, &format!("{device} came and went"));
    }
}

#[test]
fn a_halted_vm_has_no_devices_to_plug() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let state = Error::BadPowerState { found: PowerState::Halted, expected: PowerState::Running };
    assert_eq!(rig.run(&vm, Operation::Plug(disk_device())), Err(state));
    let unplug = Operation::Unplug(disk_device(), Unplugging::Clean);
    assert_eq!(rig.run(&vm, unplug), Err(Error::DeviceNotConnected));
    let missing = rig.start(&vm).and_then(|()| rig.run(&vm, Operation::Plug(Device::Vif("7".to_owned()))));
    assert!(matches!(missing, Err(Error::DoesNotExist { .. })), "{missing:?}");
}

fn connected(rig: &Rig, vm: &str) {
    use xenstore::layout::XenbusState::Connected;
    rig.until("the guest has its disk", || {
        let disk = rig.disk(vm);
        (disk.backend, disk.frontend) == (Some(Connected), Some(Connected))
    });
}

#[test]
fn a_guest_that_keeps_a_device_is_not_forced_unless_asked() {
    for (manners, patience, says) in
        [("keep", Duration::from_millis(300), "not released in time"), ("refuse", LONG, "Device in use")]
    {
        let rig = Rig::with_patience(&quick(), Patience { hotplug: patience, ..long() });
        let vm = rig.add(1, &[("devices", manners)], |_| ());
        rig.start(&vm).unwrap();
        connected(&rig, &vm);
        let refused = rig.run(&vm, Operation::Unplug(disk_device(), Unplugging::Clean));
        let Err(Error::DeviceDetachRejected { class, id, message }) = refused else { panic!("{refused:?}") };
        assert_eq!((class.as_str(), id.as_str()), ("VBD", format!("{vm}.xvda").as_str()));
        assert!(message.contains(says) && message.contains("by force"), "{message}");
        assert!(plugged(&rig, &vm, &disk_device()));
        rig.run(&vm, Operation::Unplug(disk_device(), Unplugging::Forced)).unwrap();
        assert!(!plugged(&rig, &vm, &disk_device()));
    }
}

#[test]
fn a_device_that_no_driver_took_up_needs_nobodys_consent() {
    let rig = Rig::with_patience(&quick(), Patience { hotplug: Duration::from_millis(300), ..long() });
    let vm = rig.add(1, &[("devices", "ignore")], |_| ());
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Unplug(disk_device(), Unplugging::Clean)).unwrap();
    assert!(!plugged(&rig, &vm, &disk_device()));
}

#[test]
fn a_guest_that_dies_while_it_is_asked_does_not_delay_the_unplug() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[("devices", "keep")], |vm| vm.on_crash = vec![crate::api::Action::Pause]);
    rig.start(&vm).unwrap();
    connected(&rig, &vm);
    let (done, outcome) = bounded(1);
    let unplug = Operation::Unplug(disk_device(), Unplugging::Clean);
    rig.core.submit_then(&vm, "test", unplug, move |result| done.send(result).unwrap());
    let domid = rig.domid(&vm).unwrap();
    rig.until("the guest is asked", || rig.disk(&vm).backend == Some(xenstore::layout::XenbusState::Closing));
    rig.machine.stop_guest(domid, crate::edge::ShutdownReason::Crash);
    outcome.recv_timeout(LIMIT).unwrap().unwrap();
    assert!(!plugged(&rig, &vm, &disk_device()));
}

/// Clients that do not know of each other: what is done is done once.
#[test]
fn two_clients_that_plug_or_unplug_at_once_plug_and_unplug_once() {
    let rig = Rig::new(&quick());
    let (vm, before) = bare(&rig, &[]);
    let both = |operation: &Operation| {
        let (done, outcomes) = bounded(2);
        for client in ["one", "two"] {
            let done = done.clone();
            rig.core.submit_then(&vm, client, operation.clone(), move |result| done.send(result).unwrap());
        }
        [outcomes.recv_timeout(LIMIT).unwrap(), outcomes.recv_timeout(LIMIT).unwrap()]
    };
    for device in [disk_device(), interface_device()] {
        rig.machine.faults.record();
        assert_eq!(both(&Operation::Plug(device.clone())), [Ok(()), Ok(())]);
        let calls = rig.machine.faults.recorded();
        let attached = calls.iter().filter(|c| *c == "host.attach_disk" || *c == "host.connect_vif").count();
        assert_eq!(attached, 1, "{device}");
        let unplug = Operation::Unplug(device.clone(), Unplugging::Clean);
        assert_eq!(both(&unplug), [Ok(()), Err(Error::DeviceNotConnected)]);
        rig.until_remains(&vm, &before, &format!("two clients and {device}"));
    }
}

/// Every call of a plug fails once.
#[test]
fn no_failing_call_of_a_plug_leaves_anything() {
    for device in [disk_device(), interface_device()] {
        let rig = Rig::new(&quick());
        let (vm, before) = bare(&rig, &[]);
        rig.machine.faults.record();
        rig.run(&vm, Operation::Plug(device.clone())).unwrap();
        let calls = rig.machine.faults.recorded();
        rig.run(&vm, Operation::Unplug(device.clone(), Unplugging::Clean)).unwrap();
        let mut failed = 0;
        for nth in 0..u64::try_from(calls.len()).unwrap() {
            rig.machine.faults.arm(Fault::Nth { site: None, nth, when: crate::sim::When::Before });
            let outcome = rig.run(&vm, Operation::Plug(device.clone()));
            rig.machine.faults.disarm();
            if outcome.is_ok() {
                rig.run(&vm, Operation::Unplug(device.clone(), Unplugging::Clean)).unwrap();
            } else {
                failed += 1;
            }
            rig.until_remains(&vm, &before, &format!("call {nth} of a plug of {device}: {outcome:?}"));
        }
        assert!(failed > 4, "only {failed} failures for {device}");
    }
}

/// The daemon is killed at each call of a plug or an unplug: the next one makes it whole or takes it away.
#[test]
fn a_daemon_killed_in_a_plug_or_unplug_leaves_no_half_device() {
    for device in [disk_device(), interface_device()] {
        for plugging in [true, false] {
            let rig = Rig::new(&quick());
            let (vm, before) = bare(&rig, &[]);
            killed_at_each_call(rig, &vm, &before, &device, plugging);
        }
    }
}

/// Kills the daemon at each call of a plug, or an unplug, of a device that a running VM does not have.
pub(super) fn killed_at_each_call(
    mut rig: Rig,
    vm: &str,
    before: &Remains,
    device: &Device,
    plugging: bool,
) -> Rig {
    let plug = Operation::Plug(device.clone());
    let unplug = Operation::Unplug(device.clone(), Unplugging::Clean);
    let (prepare, operation) = if plugging { (None, plug) } else { (Some(plug), unplug) };
    let run_prepared = |rig: &Rig| {
        if let Some(prepare) = &prepare {
            rig.run(vm, prepare.clone()).unwrap();
        }
    };
    run_prepared(&rig);
    rig.machine.faults.record();
    rig.run(vm, operation.clone()).unwrap();
    let calls = rig.machine.faults.recorded();
    let take_away = Operation::Unplug(device.clone(), Unplugging::Forced);
    let _ = rig.run(vm, take_away.clone());
    for (nth, site) in (0..).zip(&calls) {
        run_prepared(&rig);
        rig.machine.faults.arm(Fault::From { nth });
        let outcome = rig.run(vm, operation.clone());
        rig = rig.restart();
        // Behind the look that the new daemon takes by itself.
        rig.settle(vm);
        let marks = format!("/libxl/{}/xenopsd-plugging-", rig.domid(vm).unwrap());
        let nodes = rig.remains(vm).nodes;
        assert!(!nodes.iter().any(|n| n.starts_with(&marks)), "{nth} {site}: {nodes:?}");
        if plugged(&rig, vm, device) {
            rig.run(vm, take_away.clone()).unwrap();
        }
        rig.until_remains(vm, before, &format!("a kill at {nth} {site} of {operation}: {outcome:?}"));
    }
    rig
}

/// Nobody in dom0 takes a device up: it is said which modules do, and nobody is asked to let go of it.
#[test]
fn a_device_that_dom0_has_no_driver_for_is_said_and_taken_back_at_once() {
    let rig = Rig::with_patience(&quick(), Patience { hotplug: Duration::from_millis(300), ..long() });
    let (vm, before) = bare(&rig, &[]);
    let other = rig.add(2, &[], |_| ());
    rig.machine.set_drivers(false);
    for device in [disk_device(), interface_device()] {
        let refused = rig.run(&vm, Operation::Plug(device.clone())).unwrap_err().to_string();
        assert!(refused.contains("xen-blkback, xen-netback"), "{refused}");
        rig.until_remains(&vm, &before, &format!("{device} without a driver"));
    }
    let refused = rig.start(&other).unwrap_err().to_string();
    assert!(refused.contains("no backend driver took it up"), "{refused}");
    assert_eq!(rig.domid(&other), None);
    rig.machine.set_drivers(true);
    for device in [disk_device(), interface_device()] {
        rig.run(&vm, Operation::Plug(device.clone())).unwrap();
        rig.run(&vm, Operation::Unplug(device, Unplugging::Clean)).unwrap();
    }
    rig.start_connected(&other);
}

#[test]
fn a_plan_can_be_looked_at_step_by_step() {
    let rig = Rig::new(&quick());
    let (vm, _) = bare(&rig, &[]);
    rig.machine.faults.arm(Fault::Nth {
        site: Some("host.attach_disk".to_owned()),
        nth: 0,
        when: crate::sim::When::Before,
    });
    rig.run(&vm, Operation::Plug(disk_device())).unwrap_err();
    let explained = rig.core.traces.explain(&vm).unwrap();
    assert_eq!(explained.operation, "plug of disk xvda");
    let [begin, plug, end] = &explained.steps[..] else { panic!("{explained:?}") };
    assert_eq!(begin.state, StepState::Done);
    assert_eq!(begin.undo[0].what, "unplug disk xvda by force");
    assert!(matches!(plug.state, StepState::Failed(_)) && plug.took.is_some());
    assert_eq!((&end.state, end.began), (&StepState::Waiting, None));
    assert!(matches!(explained.state, crate::api::TaskState::Failed(_)));
    // One that was refused before it had a plan is explained too.
    rig.run(&vm, Operation::Start).unwrap();
    assert_eq!(rig.core.traces.explain(&vm).unwrap().operation, "plug of disk xvda");
    rig.run(&vm, Operation::Unplug(disk_device(), Unplugging::Clean)).unwrap_err();
    assert!(rig.core.traces.explain(&vm).unwrap().steps.is_empty());
}
