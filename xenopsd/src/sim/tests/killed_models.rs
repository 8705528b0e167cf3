//! A device model that is killed at any moment of its VM's life, and HVM guests that cannot have one: errors of the contract,
//! and nothing is left.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::suspend_hvm::hvm;
use super::*;
use crate::api::{Action, HvmInfo, Vbd};
use crate::edge::ShutdownReason;
use PowerState::{Halted, Suspended};

/// One operation, and how its VM gets to where it is wanted.
struct Case {
    name: &'static str,
    prepare: fn(&Rig, &str),
    operation: fn(&Rig) -> Operation,
    /// Happens just before the operation.
    trigger: Option<ShutdownReason>,
}

fn paused(rig: &Rig, vm: &str) {
    rig.run(vm, Operation::Start).unwrap();
}

fn started(rig: &Rig, vm: &str) {
    rig.start(vm).unwrap();
}

fn suspended(rig: &Rig, vm: &str) {
    started(rig, vm);
    rig.suspend(vm).unwrap();
}

const CASES: [Case; 8] = [
    Case { name: "start", prepare: |_, _| (), operation: |_| Operation::Start, trigger: None },
    Case { name: "unpause", prepare: paused, operation: |_| Operation::Unpause, trigger: None },
    Case { name: "pull the plug", prepare: started, operation: |_| Operation::Shutdown(None), trigger: None },
    Case {
        name: "shutdown",
        prepare: started,
        operation: |_| Operation::Shutdown(Some(LONG)),
        trigger: None,
    },
    Case {
        name: "the guest's own shutdown",
        prepare: started,
        operation: |_| Operation::Check,
        trigger: Some(ShutdownReason::PowerOff),
    },
    Case { name: "reboot", prepare: started, operation: |_| Operation::Reboot(None), trigger: None },
    Case {
        name: "suspend",
        prepare: started,
        operation: |rig| Operation::Suspend(rig.image()),
        trigger: None,
    },
    Case {
        name: "resume",
        prepare: suspended,
        operation: |rig| Operation::Resume(rig.image()),
        trigger: None,
    },
];

/// What a case came to.
struct Outcome {
    boundaries: usize,
    /// There was a device model to kill.
    killed: bool,
    result: Result<(), Error>,
}

/// Runs the operation of a case, and kills what device models there are at one boundary of its steps.
fn act(case: &Case, rig: &Rig, vm: &str, kill_at: Option<usize>) -> Outcome {
    (case.prepare)(rig, vm);
    let (count, killed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (seen, victim, of_vm) = (Arc::clone(&count), Arc::clone(&killed), vm.to_owned());
    let machine = Arc::clone(&rig.machine.shared);
    rig.core.traces.observe(Some(Arc::new(move |of: &str, _: &_, _| {
        if of == of_vm && Some(seen.fetch_add(1, Ordering::SeqCst)) == kill_at {
            for domid in machine.device_models.domains() {
                let ended = machine.device_models.of(domid).is_some_and(|life| life.end());
                victim.fetch_or(ended, Ordering::SeqCst);
            }
        }
    })));
    if let Some(reason) = case.trigger {
        rig.machine.stop_guest(rig.domid(vm).unwrap(), reason);
    }
    let result = rig.run(vm, (case.operation)(rig));
    rig.core.traces.observe(None);
    Outcome { boundaries: count.load(Ordering::SeqCst), killed: killed.load(Ordering::SeqCst), result }
}

fn kill_everywhere(case: &Case) {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| {
        hvm(vm);
        vm.on_crash = vec![Action::Shutdown];
    });
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let before = rig.remains(&vm);
    let whole = act(case, &rig, &vm, None);
    assert!(whole.boundaries > 0 && whole.result.is_ok(), "{}: {:?}", case.name, whole.result);
    let mut kills = 0;
    for kill_at in 0..whole.boundaries {
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        rig.until_remains(&vm, &before, "the round before");
        let Outcome { killed, result, .. } = act(case, &rig, &vm, Some(kill_at));
        kills += usize::from(killed);
        let after = format!("{}, killed at {kill_at} of {}: {result:?}", case.name, whole.boundaries);
        assert!(killed || result.is_ok(), "{after}");
        if case.name == "start" {
            assert!(matches!(result, Ok(()) | Err(Error::FailedToStartEmulator { .. })), "{after}");
        }
        // A reboot has another one by the end, unless that was killed.
        if killed && case.name != "reboot" {
            rig.until(&after, || matches!(rig.state(&vm), Halted | Suspended));
            rig.until_remains(&vm, &before, &after);
        }
    }
    assert!(kills > 0, "{}: there was none to kill", case.name);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    rig.until_remains(&vm, &before, case.name);
}

#[test]
fn one_that_is_killed_at_any_boundary_of_any_step_leaves_nothing() {
    side_by_side(&CASES, kill_everywhere);
}

/// Its end is heard even when it came before anybody listened.
#[test]
fn one_that_ends_before_it_is_followed_is_noticed() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[("device-model", "vanish")], |vm| {
        hvm(vm);
        vm.on_crash = vec![Action::Shutdown];
    });
    let crash = || {
        rig.run(&vm, Operation::Start).unwrap();
        rig.until("the guest is taken for crashed", || rig.state(&vm) == Halted);
    };
    crash();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let before = rig.remains(&vm);
    for round in 0..20 {
        crash();
        rig.until_remains(&vm, &before, &format!("round {round}"));
    }
}

/// Found before a domain is made: as an error of the contract that says what to do.
#[test]
fn a_machine_that_cannot_be_is_refused_before_anything_is_taken() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], hvm);
    let before = rig.remains(&vm);
    let refused = |what: &str| {
        rig.machine.faults.record();
        let refused = rig.run(&vm, Operation::Start);
        match &refused {
            Err(Error::FailedToStartEmulator { id, message, .. }) => {
                assert!(*id == vm && message.contains(what), "{message}");
            }
            other => panic!("{what}: {other:?}"),
        }
        let calls = rig.machine.faults.recorded();
        assert!(!calls.iter().any(|call| call == "hypervisor.create"), "{what}: {calls:?}");
        assert_eq!(rig.state(&vm), Halted);
        rig.until_remains(&vm, &before, what);
    };
    let machine = |change: fn(&mut HvmInfo)| {
        rig.core
            .records
            .update_vm(&vm, |vm| {
                let mut info = HvmInfo::default();
                change(&mut info);
                vm.ty = BuilderInfo::Hvm(info);
            })
            .unwrap();
    };
    machine(|info| info.boot_order = "cdx".to_owned());
    refused("boot order \"cdx\": 'x' is unknown");
    machine(|info| info.vnc_ip = Some("0.0.0.0".to_owned()));
    refused("127.0.0.1");
    machine(|_| ());
    let fifth = Vbd {
        position: Some(crate::api::DeviceNumber { bus: crate::api::BusType::Ide, disk: 4, partition: 0 }),
        ..rig.core.records.devices::<Vbd>(&vm).unwrap()[0].clone()
    };
    let fifth = Vbd { id: crate::api::DeviceId::new(&*vm, "hde"), ..fifth };
    rig.core.records.put(&fifth).unwrap();
    refused("emulated IDE has 4 drives");
    rig.core.records.remove::<Vbd>(&fifth.id).unwrap();
    let controller = |word: &str| {
        rig.core.records.update_vm(&vm, |vm| vm.platformdata.insert("hdtype", word.to_owned())).unwrap();
    };
    controller("scsi");
    refused("hdtype is \"scsi\"; the emulated disk controller is ide or ahci");
    controller("ahci");
    rig.start(&vm).unwrap();
}
