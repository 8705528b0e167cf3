//! Suspend and resume with a failure at each call, and with the daemon killed at each, of guests with and without a device
//! model.

use std::fs;

use super::suspend::running_as;
use super::suspend_hvm::hvm;
use super::*;

const KINDS: [fn(&mut Vm); 2] = [|_| (), hvm];

#[test]
fn each_failing_call_of_a_suspend_leaves_it_running_or_suspended() {
    let _ = KINDS.map(each_failing_call_of_a_suspend_leaves_it_running_or_suspended_of);
}

fn each_failing_call_of_a_suspend_leaves_it_running_or_suspended_of(kind: fn(&mut Vm)) {
    let (rig, vm, _) = running_as(kind, &quick(), long(), &[]);
    let calls = rig.calls_of(&vm, Operation::Suspend(rig.image()));
    rig.resume(&vm).unwrap();
    let (mut ran, mut suspended) = (0, 0);
    for nth in 0..calls.len() {
        let nth = u64::try_from(nth).unwrap();
        fs::remove_file(rig.image_path()).unwrap_or_default();
        rig.until("its disk is connected", || rig.connected(&vm));
        let domid = rig.domid(&vm).unwrap();
        rig.machine.faults.arm(Fault::Nth { site: None, nth, when: crate::sim::When::Before });
        let outcome = rig.suspend(&vm);
        rig.machine.faults.disarm();
        let what = format!("call {nth}: {outcome:?}");
        // What failed in the end of the domain is finished when it is looked at.
        if rig.core.records.extra(&vm).unwrap().is_suspended() {
            if rig.domid(&vm).is_some() {
                assert!(outcome.is_err(), "{what}");
                rig.run(&vm, Operation::Check).unwrap();
            }
            assert_eq!(rig.state(&vm), PowerState::Suspended, "{what}");
            rig.resume(&vm).unwrap_or_else(|e| panic!("{what}: {e}"));
            suspended += 1;
        } else {
            assert!(outcome.is_err(), "{what}");
            rig.until(&format!("{what}: it runs on"), || rig.executes(&vm));
            let gone = || !rig.image_path().exists();
            eventually(&format!("{what}: the image is gone"), gone);
            eventually(&format!("{what}: the note is gone"), || !rig.noted());
            rig.until(&format!("{what}: it runs on"), || rig.executes(&vm));
            rig.runs_on(&vm, domid, &what);
            ran += 1;
        }
    }
    assert!(ran > 10 && suspended > 10, "{ran} {suspended}");
}

#[test]
fn each_failing_call_of_a_resume_leaves_it_suspended() {
    let _ = KINDS.map(each_failing_call_of_a_resume_leaves_it_suspended_of);
}

fn each_failing_call_of_a_resume_leaves_it_suspended_of(kind: fn(&mut Vm)) {
    let (rig, vm, _) = running_as(kind, &quick(), long(), &[]);
    rig.suspend(&vm).unwrap();
    let before = rig.remains(&vm);
    let calls = rig.calls_of(&vm, Operation::Resume(rig.image()));
    rig.run(&vm, Operation::Unpause).unwrap();
    rig.suspend(&vm).unwrap();
    let mut failed = 0;
    for nth in 0..calls.len() {
        let nth = u64::try_from(nth).unwrap();
        rig.machine.faults.arm(Fault::Nth { site: None, nth, when: crate::sim::When::Before });
        let outcome = rig.run(&vm, Operation::Resume(rig.image()));
        rig.machine.faults.disarm();
        let what = format!("call {nth}: {outcome:?}");
        if outcome.is_ok() || rig.state(&vm) == PowerState::Paused {
            rig.run(&vm, Operation::Unpause).unwrap();
            rig.suspend(&vm).unwrap_or_else(|e| panic!("{what}: {e}"));
        } else {
            assert_eq!(rig.state(&vm), PowerState::Suspended, "{what}");
            failed += 1;
        }
        rig.until_remains(&vm, &before, &what);
    }
    assert!(failed > 25, "only {failed} failures");
}

#[test]
fn a_daemon_killed_in_a_suspend_lets_the_guest_run_on_or_has_suspended_it() {
    let _ = KINDS.map(a_daemon_killed_in_a_suspend_lets_the_guest_run_on_or_has_suspended_it_of);
}

fn a_daemon_killed_in_a_suspend_lets_the_guest_run_on_or_has_suspended_it_of(kind: fn(&mut Vm)) {
    let (mut rig, vm, _) = running_as(kind, &quick(), long(), &[]);
    let calls = rig.calls_of(&vm, Operation::Suspend(rig.image()));
    rig.resume(&vm).unwrap();
    let (mut ran, mut suspended) = (0, 0);
    for (nth, site) in (0..).zip(&calls) {
        fs::remove_file(rig.image_path()).unwrap_or_default();
        rig.until("its disk is connected", || rig.connected(&vm));
        rig.machine.faults.arm(Fault::From { nth });
        let outcome = rig.suspend(&vm);
        rig = rig.restart();
        let what = format!("a kill at {nth} {site}: {outcome:?}");
        rig.until(&format!("{what}: it is one or the other"), || match rig.state(&vm) {
            PowerState::Suspended => true,
            PowerState::Running => rig.executes(&vm) && !rig.core.records.extra(&vm).unwrap().is_suspended(),
            _ => false,
        });
        if rig.state(&vm) == PowerState::Suspended {
            rig.resume(&vm).unwrap_or_else(|e| panic!("{what}: {e}"));
            suspended += 1;
        } else {
            eventually(&format!("{what}: the image is gone"), || !rig.image_path().exists());
            ran += 1;
        }
    }
    assert!(ran > 5 && suspended > 3, "{ran} {suspended}");
    rig.suspend(&vm).unwrap();
    rig.resume(&vm).unwrap();
}

#[test]
fn a_daemon_killed_in_a_resume_leaves_it_suspended_or_resumed() {
    let _ = KINDS.map(a_daemon_killed_in_a_resume_leaves_it_suspended_or_resumed_of);
}

fn a_daemon_killed_in_a_resume_leaves_it_suspended_or_resumed_of(kind: fn(&mut Vm)) {
    let (mut rig, vm, _) = running_as(kind, &quick(), long(), &[]);
    rig.suspend(&vm).unwrap();
    let calls = rig.calls_of(&vm, Operation::Resume(rig.image()));
    rig.run(&vm, Operation::Unpause).unwrap();
    rig.suspend(&vm).unwrap();
    let before = rig.remains(&vm);
    for (nth, site) in (0..).zip(&calls) {
        rig.machine.faults.arm(Fault::From { nth });
        let outcome = rig.run(&vm, Operation::Resume(rig.image()));
        rig = rig.restart();
        let what = format!("a kill at {nth} {site}: {outcome:?}");
        // Behind the check that follows the restart.
        rig.until(&format!("{what}: it is one or the other"), || match rig.domid(&vm) {
            None => rig.state(&vm) == PowerState::Suspended,
            Some(domid) => {
                let settled = !rig.core.pending(domid).unwrap();
                settled && !rig.core.records.extra(&vm).unwrap().is_suspended()
            }
        });
        if rig.state(&vm) != PowerState::Suspended {
            rig.run(&vm, Operation::Unpause).unwrap();
            rig.suspend(&vm).unwrap_or_else(|e| panic!("{what}: {e}"));
        }
        rig.until_remains(&vm, &before, &what);
    }
    rig.resume(&vm).unwrap();
}
