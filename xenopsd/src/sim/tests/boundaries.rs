//! The daemon is killed before and after every step of every operation, the steps of its undo included: what its
//! successor makes of it is a state that the operation passes through, and nothing is left of a VM that is down.
//!
//! A new operation is a line of [`CASES`].

use super::*;
use crate::api::IndirectBoot;
use crate::edge::{GuestKind, NewDomain, ShutdownReason};
use crate::ops::plan::{Device, Unplugging};
use PowerState::{Halted, Paused, Running};
use std::sync::atomic::{AtomicUsize, Ordering};
use xenstore::Operations;

/// One operation, where it begins, and where its VM may be found after a kill.
struct Case {
    name: &'static str,
    operation: fn() -> Operation,
    /// Brings the VM, which is halted, to where the operation is wanted.
    prepare: fn(&Rig, &str),
    /// Happens just before the operation.
    trigger: Option<ShutdownReason>,
    /// Whether it fails by itself, and is undone.
    fails: bool,
    ends: &'static [PowerState],
}

const CASE: Case = Case {
    name: "",
    operation: || Operation::Check,
    prepare: nothing,
    trigger: None,
    fails: false,
    ends: &[],
};

fn nothing(_: &Rig, _: &str) {}

fn started(rig: &Rig, vm: &str) {
    rig.start(vm).unwrap();
}

fn paused(rig: &Rig, vm: &str) {
    rig.run(vm, Operation::Start).unwrap();
}

fn created(rig: &Rig, vm: &str) {
    rig.run(vm, Operation::CreateDomain).unwrap();
}

fn without_disk(rig: &Rig, vm: &str) {
    started(rig, vm);
    rig.run(vm, Operation::Unplug(disk(), Unplugging::Forced)).unwrap();
}

fn without_interface(rig: &Rig, vm: &str) {
    started(rig, vm);
    rig.run(vm, Operation::Unplug(interface(), Unplugging::Forced)).unwrap();
}

/// What it is to boot is no kernel: found when the domain is built.
fn without_kernel(rig: &Rig, _: &str) {
    std::fs::write(rig.kernel(), "#!/bin/sh").unwrap();
}

/// It boots from its own disk.
fn indirect(rig: &Rig, vm: &str) {
    let mut record = rig.core.records.vm(vm).unwrap();
    let BuilderInfo::Pv(pv) = &mut record.ty else { unreachable!() };
    let devices = vec![Disk::Local("/srv/1-xvda.img".to_owned())];
    pv.boot = Boot::Indirect(IndirectBoot { devices, ..IndirectBoot::default() });
    rig.core.records.put_vm(&record).unwrap();
}

fn disk() -> Device {
    Device::Vbd("xvda".to_owned())
}

fn interface() -> Device {
    Device::Vif("0".to_owned())
}

const CASES: &[Case] = &[
    Case { name: "start", operation: || Operation::Start, ends: &[Halted, Paused], ..CASE },
    Case {
        name: "start from its own disk",
        operation: || Operation::Start,
        prepare: indirect,
        ends: &[Halted, Paused],
        ..CASE
    },
    Case {
        name: "failing start",
        operation: || Operation::Start,
        prepare: without_kernel,
        fails: true,
        ends: &[Halted],
        ..CASE
    },
    Case {
        name: "hard shutdown",
        operation: || Operation::Shutdown(None),
        prepare: started,
        ends: &[Running, Halted],
        ..CASE
    },
    Case {
        name: "clean shutdown",
        operation: || Operation::Shutdown(Some(LONG)),
        prepare: started,
        ends: &[Running, Halted],
        ..CASE
    },
    Case {
        name: "hard reboot",
        operation: || Operation::Reboot(None),
        prepare: started,
        ends: &[Running, Halted, Paused],
        ..CASE
    },
    Case {
        name: "clean reboot",
        operation: || Operation::Reboot(Some(LONG)),
        prepare: started,
        ends: &[Running, Halted, Paused],
        ..CASE
    },
    Case {
        name: "pause",
        operation: || Operation::Pause,
        prepare: started,
        ends: &[Running, Paused],
        ..CASE
    },
    Case {
        name: "unpause",
        operation: || Operation::Unpause,
        prepare: paused,
        ends: &[Paused, Running],
        ..CASE
    },
    Case { name: "create", operation: || Operation::CreateDomain, ends: &[Halted, Paused], ..CASE },
    Case { name: "build", operation: || Operation::BuildDomain, prepare: created, ends: &[Paused], ..CASE },
    Case {
        name: "destroy",
        operation: || Operation::DestroyDomain,
        prepare: started,
        ends: &[Running, Halted],
        ..CASE
    },
    Case {
        name: "plug of a disk",
        operation: || Operation::Plug(disk()),
        prepare: without_disk,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "plug of an interface",
        operation: || Operation::Plug(interface()),
        prepare: without_interface,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "unplug of a disk",
        operation: || Operation::Unplug(disk(), Unplugging::Clean),
        prepare: started,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "unplug of an interface",
        operation: || Operation::Unplug(interface(), Unplugging::Clean),
        prepare: started,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "unplug by force",
        operation: || Operation::Unplug(disk(), Unplugging::Forced),
        prepare: started,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "delay",
        operation: || Operation::Delay(Duration::from_millis(1)),
        prepare: started,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "the guest's own poweroff",
        prepare: started,
        trigger: Some(ShutdownReason::PowerOff),
        ends: &[Halted],
        ..CASE
    },
    Case {
        name: "the guest's own reboot",
        prepare: started,
        trigger: Some(ShutdownReason::Reboot),
        ends: &[Running, Halted, Paused],
        ..CASE
    },
    Case {
        name: "the guest's crash",
        prepare: started,
        trigger: Some(ShutdownReason::Crash),
        ends: &[Halted],
        ..CASE
    },
];

/// Counts the boundaries of a VM's steps, and kills the daemon at one.
fn watch(rig: &Rig, vm: &str, kill_at: Option<usize>) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let (seen, faults, vm) = (Arc::clone(&count), rig.machine.faults.clone(), vm.to_owned());
    rig.core.traces.observe(Some(Arc::new(move |of: &str, _: &_, _| {
        if of == vm && Some(seen.fetch_add(1, Ordering::SeqCst)) == kill_at {
            faults.arm(Fault::From { nth: 0 });
        }
    })));
    count
}

/// Runs the operation of a case; how many boundaries it had.
fn act(case: &Case, rig: &Rig, vm: &str, kill_at: Option<usize>) -> (usize, Result<(), Error>) {
    (case.prepare)(rig, vm);
    let count = watch(rig, vm, kill_at);
    if let Some(reason) = case.trigger {
        rig.machine.stop_guest(rig.domid(vm).unwrap(), reason);
    }
    // Also behind the look that the daemon takes by itself after a trigger.
    let outcome = rig.run(vm, (case.operation)());
    rig.core.traces.observe(None);
    (count.load(Ordering::SeqCst), outcome)
}

/// Devices are whole or not there.
fn assert_whole(rig: &Rig, vm: &str, after: &str) {
    let Some(domid) = rig.domid(vm) else { return };
    let nodes = rig.remains(vm).nodes;
    let half = |node: &&String| {
        node.starts_with(&format!("/libxl/{domid}/xenopsd-p")) || node.ends_with("/xenopsd-pending")
    };
    assert_eq!(nodes.iter().find(half), None, "{after}");
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    for device in xenstore::layout::devices_of(&mut store, xenstore::DomId(domid.get())).unwrap() {
        if device.kind != DeviceKind::Console {
            let status = device.status(&mut store).unwrap();
            assert!(status.backend.is_some() && status.frontend.is_some(), "{after}: {device}: {status:?}");
            assert!(store.exists(&device.private()).unwrap(), "{after}: {device}");
        }
    }
}

fn kill_everywhere(case: &Case) {
    let mut rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    // Somebody else's.
    let foreign = NewDomain::new(GuestKind::Pv, [0xee; 16], 1);
    rig.core.edges.hypervisor().unwrap().create(&foreign).unwrap();
    let before = rig.remains(&vm);
    let (boundaries, outcome) = act(case, &rig, &vm, None);
    assert_eq!(outcome.is_err(), case.fails, "{}: {outcome:?}", case.name);
    assert!(boundaries > 0 && boundaries.is_multiple_of(2), "{}: {boundaries}", case.name);
    for kill_at in 0..boundaries {
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        rig.until_remains(&vm, &before, "the round before");
        let (_, outcome) = act(case, &rig, &vm, Some(kill_at));
        rig = rig.restart();
        // Behind the look that the new daemon takes by itself.
        rig.run(&vm, Operation::Delay(Duration::ZERO)).unwrap();
        let after = format!("{} killed at {kill_at} of {boundaries}: {outcome:?}", case.name);
        let state = rig.state(&vm);
        assert!(case.ends.contains(&state), "{after}: {state:?}");
        if state == Halted {
            rig.until_remains(&vm, &before, &after);
        } else {
            assert_whole(&rig, &vm, &after);
        }
    }
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    rig.until_remains(&vm, &before, case.name);
}

#[test]
fn a_daemon_killed_at_any_boundary_of_any_step_leaves_nothing_half_done() {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = CASES.get(next.fetch_add(1, Ordering::Relaxed)) {
                    kill_everywhere(case);
                }
            });
        }
    });
}
