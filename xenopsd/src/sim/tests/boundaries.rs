//! The daemon is killed before and after every step of every operation, the steps of its undo included: what its
//! successor makes of it is a state that the operation passes through, and nothing is left of a VM that is down.
//!
//! A new operation is a line of [`CASES`].

use super::*;
use crate::api::{Action, DeviceId, IndirectBoot, Vbd};
use crate::edge::{GuestKind, NewDomain, ShutdownReason};
use crate::ops::plan::{Device, Unplugging};
use crate::state::journal::Resource;
use PowerState::{Halted, Paused, Running, Suspended};
use std::sync::atomic::{AtomicUsize, Ordering};
use xenstore::Operations;

/// One operation, where it begins, and where its VM may be found after a kill.
struct Case {
    name: &'static str,
    operation: fn(&Rig) -> Operation,
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
    operation: |_| Operation::Check,
    prepare: nothing,
    trigger: None,
    fails: false,
    ends: &[],
};

fn nothing(_: &Rig, _: &str) {}

fn started(rig: &Rig, vm: &str) {
    rig.start(vm).unwrap();
}

fn connected(rig: &Rig, vm: &str) {
    started(rig, vm);
    rig.until("its disk is connected", || rig.connected(vm));
}

fn suspended(rig: &Rig, vm: &str) {
    connected(rig, vm);
    rig.suspend(vm).unwrap();
}

/// What it is to be resumed from is cut short: found when its memory is read.
fn with_half_an_image(rig: &Rig, vm: &str) {
    suspended(rig, vm);
    let image = std::fs::read(rig.image_path()).unwrap();
    std::fs::write(rig.image_path(), &image[..image.len() / 2]).unwrap();
}

/// Its guest crashes when it is asked, and is left for a look.
fn unable_to_suspend(rig: &Rig, vm: &str) {
    let mut record = rig.core.records.vm(vm).unwrap();
    record.xsdata.0.retain(|(key, _)| key != "vm-data/sim/suspend");
    record.xsdata.0.push(("vm-data/sim/suspend".to_owned(), "crash".to_owned()));
    record.on_crash = vec![Action::Pause];
    rig.core.records.put_vm(&record).unwrap();
    connected(rig, vm);
}

fn paused(rig: &Rig, vm: &str) {
    rig.run(vm, Operation::Start).unwrap();
}

fn created(rig: &Rig, vm: &str) {
    rig.run(vm, Operation::CreateDomain).unwrap();
}

fn created_without_kernel(rig: &Rig, vm: &str) {
    created(rig, vm);
    without_kernel(rig, vm);
}

fn without_disk(rig: &Rig, vm: &str) {
    started(rig, vm);
    rig.run(vm, Operation::Unplug(disk(), Unplugging::Forced)).unwrap();
}

fn without_interface(rig: &Rig, vm: &str) {
    started(rig, vm);
    rig.run(vm, Operation::Unplug(interface(), Unplugging::Forced)).unwrap();
}

fn put_disk(rig: &Rig, vm: &str, disk: Disk) {
    let mut record: Vbd = rig.core.records.device(&DeviceId::new(vm, "xvda")).unwrap();
    record.backend = Some(disk);
    rig.core.records.put(&record).unwrap();
}

/// And it is nowhere, which is found out when it is attached.
fn without_usable_disk(rig: &Rig, vm: &str) {
    put_disk(rig, vm, Disk::Local("/srv/1-xvda.img".to_owned()));
    without_disk(rig, vm);
    put_disk(rig, vm, Disk::Local("nowhere".to_owned()));
}

/// A storage layer has it.
fn on_storage(rig: &Rig, vm: &str) {
    put_disk(rig, vm, Disk::Vdi("sr/vdi".to_owned()));
}

fn started_on_storage(rig: &Rig, vm: &str) {
    on_storage(rig, vm);
    started(rig, vm);
}

fn without_disk_on_storage(rig: &Rig, vm: &str) {
    without_disk(rig, vm);
    on_storage(rig, vm);
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
    Case { name: "start", operation: |_| Operation::Start, ends: &[Halted, Paused], ..CASE },
    Case {
        name: "start from its own disk",
        operation: |_| Operation::Start,
        prepare: indirect,
        ends: &[Halted, Paused],
        ..CASE
    },
    Case {
        name: "failing start",
        operation: |_| Operation::Start,
        prepare: without_kernel,
        fails: true,
        ends: &[Halted],
        ..CASE
    },
    Case {
        name: "hard shutdown",
        operation: |_| Operation::Shutdown(None),
        prepare: started,
        ends: &[Running, Halted],
        ..CASE
    },
    Case {
        name: "clean shutdown",
        operation: |_| Operation::Shutdown(Some(LONG)),
        prepare: started,
        ends: &[Running, Halted],
        ..CASE
    },
    Case {
        name: "hard reboot",
        operation: |_| Operation::Reboot(None),
        prepare: started,
        ends: &[Running, Halted, Paused],
        ..CASE
    },
    Case {
        name: "clean reboot",
        operation: |_| Operation::Reboot(Some(LONG)),
        prepare: started,
        ends: &[Running, Halted, Paused],
        ..CASE
    },
    Case {
        name: "pause",
        operation: |_| Operation::Pause,
        prepare: started,
        ends: &[Running, Paused],
        ..CASE
    },
    Case {
        name: "unpause",
        operation: |_| Operation::Unpause,
        prepare: paused,
        ends: &[Paused, Running],
        ..CASE
    },
    Case { name: "create", operation: |_| Operation::CreateDomain, ends: &[Halted, Paused], ..CASE },
    Case {
        name: "build",
        operation: |_| Operation::BuildDomain,
        prepare: created,
        ends: &[Paused, Halted],
        ..CASE
    },
    Case {
        name: "failing build",
        operation: |_| Operation::BuildDomain,
        prepare: created_without_kernel,
        fails: true,
        ends: &[Paused, Halted],
        ..CASE
    },
    Case {
        name: "destroy",
        operation: |_| Operation::DestroyDomain,
        prepare: started,
        ends: &[Running, Halted],
        ..CASE
    },
    Case {
        name: "plug of a disk",
        operation: |_| Operation::Plug(disk()),
        prepare: without_disk,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "plug of an interface",
        operation: |_| Operation::Plug(interface()),
        prepare: without_interface,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "start with a disk of a storage layer",
        operation: |_| Operation::Start,
        prepare: on_storage,
        ends: &[Halted, Paused],
        ..CASE
    },
    Case {
        name: "plug of a disk of a storage layer",
        operation: |_| Operation::Plug(disk()),
        prepare: without_disk_on_storage,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "unplug of a disk of a storage layer",
        operation: |_| Operation::Unplug(disk(), Unplugging::Clean),
        prepare: started_on_storage,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "failing plug",
        operation: |_| Operation::Plug(disk()),
        prepare: without_usable_disk,
        fails: true,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "refresh of a disk",
        operation: |_| Operation::RefreshDisk("xvda".to_owned()),
        prepare: connected,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "unplug of a disk",
        operation: |_| Operation::Unplug(disk(), Unplugging::Clean),
        prepare: started,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "unplug of an interface",
        operation: |_| Operation::Unplug(interface(), Unplugging::Clean),
        prepare: started,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "unplug by force",
        operation: |_| Operation::Unplug(disk(), Unplugging::Forced),
        prepare: started,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "suspend",
        operation: |rig| Operation::Suspend(rig.image()),
        prepare: connected,
        ends: &[Running, Suspended],
        ..CASE
    },
    Case {
        name: "failing suspend",
        operation: |rig| Operation::Suspend(rig.image()),
        prepare: unable_to_suspend,
        fails: true,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "resume",
        operation: |rig| Operation::Resume(rig.image()),
        prepare: suspended,
        ends: &[Suspended, Paused],
        ..CASE
    },
    Case {
        name: "failing resume",
        operation: |rig| Operation::Resume(rig.image()),
        prepare: with_half_an_image,
        fails: true,
        ends: &[Suspended],
        ..CASE
    },
    Case {
        name: "checkpoint",
        operation: |rig| Operation::Checkpoint(rig.image()),
        prepare: connected,
        ends: &[Running],
        ..CASE
    },
    Case {
        name: "hard shutdown of a suspended VM",
        operation: |_| Operation::Shutdown(None),
        prepare: suspended,
        ends: &[Suspended, Halted],
        ..CASE
    },
    Case {
        name: "delay",
        operation: |_| Operation::Delay(Duration::from_millis(1)),
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
    let outcome = rig.run(vm, (case.operation)(rig));
    rig.core.traces.observe(None);
    (count.load(Ordering::SeqCst), outcome)
}

/// Devices are whole or not there, and no suspend is under way.
fn assert_whole(rig: &Rig, vm: &str, after: &str) {
    let Some(domid) = rig.domid(vm) else { return };
    // A guest that was asked to suspend and has not done so yet does, and then runs on.
    rig.until(&format!("no suspend is under way after {after}"), || !rig.noted());
    let nodes = rig.remains(vm).nodes;
    let half = |node: &&String| {
        node.starts_with(&format!("/libxl/{domid}/xenopsd-p")) || node.ends_with("/xenopsd-pending")
    };
    assert_eq!(nodes.iter().find(half), None, "{after}");
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    let devices = xenstore::layout::devices_of(&mut store, xenstore::DomId(domid.get())).unwrap();
    let disks = devices.iter().filter(|device| device.kind == DeviceKind::Vbd).count();
    let noted = rig.core.journal.of(vm).into_iter().filter(|(_, taken)| matches!(taken, Resource::Loop(_)));
    assert_eq!((rig.machine.loops().len(), noted.count()), (disks, disks), "loop devices after {after}");
    let attached = rig.machine.datapaths().len();
    let noted =
        rig.core.journal.of(vm).into_iter().filter(|(_, taken)| matches!(taken, Resource::Storage(_)));
    assert_eq!(attached, noted.count(), "storage after {after}");
    assert!(attached <= disks, "storage after {after}");
    for device in devices {
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
        rig.settle(&vm);
        let after = format!("{} killed at {kill_at} of {boundaries}: {outcome:?}", case.name);
        let state = rig.state(&vm);
        assert!(case.ends.contains(&state), "{after}: {state:?}");
        if matches!(state, Halted | Suspended) {
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
    side_by_side(CASES, kill_everywhere);
}
