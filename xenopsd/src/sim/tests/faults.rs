//! Every call of a start fails once: the start fails, and nothing is left.

use super::*;
use crate::sim::When;
use std::collections::BTreeMap;

/// The calls of a start by name, and how often each is made.
fn calls_of_a_start(rig: &Rig, vm: &str) -> BTreeMap<String, u64> {
    rig.machine.faults.record();
    rig.run(vm, Operation::Start).unwrap();
    let mut calls = BTreeMap::new();
    for site in rig.machine.faults.recorded() {
        *calls.entry(site).or_default() += 1;
    }
    rig.run(vm, Operation::Shutdown(None)).unwrap();
    calls
}

fn fail_each(when: When, chosen: impl Fn(&str) -> bool) -> usize {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let calls = calls_of_a_start(&rig, &vm);
    let before = rig.remains(&vm);
    let mut failed = 0;
    for (site, times) in calls.iter().filter(|(site, _)| chosen(site)) {
        for nth in 0..*times {
            rig.machine.faults.arm(Fault::Nth { site: Some(site.clone()), nth, when });
            let outcome = rig.run(&vm, Operation::Start);
            let fired = rig.machine.faults.disarm();
            // Conditions are looked at as often as something changes: the last calls may not be made this time. And
            // the thread that follows domains may have met the failure.
            if outcome.is_ok() {
                rig.run(&vm, Operation::Shutdown(None)).unwrap();
            } else {
                assert_eq!(fired, 1, "{site} {nth}: {outcome:?}");
                failed += 1;
            }
            rig.until(&format!("nothing is left after {site} {nth}: {outcome:?}"), || {
                rig.remains(&vm) == before
            });
        }
    }
    rig.start(&vm).unwrap();
    failed
}

#[test]
fn no_failing_call_of_a_start_leaves_anything() {
    let failed = fail_each(When::Before, |_| true);
    assert!(failed > 25, "only {failed} failures");
}

#[test]
fn no_lost_answer_of_the_store_leaves_anything() {
    let failed = fail_each(When::After, |site| site.starts_with("store.") && site != "store.open");
    assert!(failed > 10, "only {failed} failures");
}

#[test]
fn a_machine_that_fails_at_random_can_be_tidied_when_it_recovers() {
    for seed in 0..20 {
        // A backend that could not be told to close is waited for in vain.
        let patience = Patience { hotplug: Duration::from_secs(2), ..Patience::default() };
        let rig = Rig::with_patience(&SimOptions { seed, ..quick() }, patience);
        let vm = rig.add(1, &[], |_| ());
        rig.start(&vm).unwrap();
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        let before = rig.remains(&vm);
        rig.machine.faults.arm(Fault::Random { seed, one_in: 20 });
        for operation in
            [Operation::Start, Operation::Unpause, Operation::Reboot(None), Operation::Shutdown(None)]
        {
            let _ = rig.run(&vm, operation);
        }
        rig.machine.faults.disarm();
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        rig.until_remains(&vm, &before, &format!("recovery, seed {seed}"));
    }
}

/// Kills the daemon at each call of an operation on a VM that `prepare` has brought where it is wanted.
fn kill_at_each_call(operation: &Operation, prepare: impl Fn(&Rig, &str)) {
    let mut rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let before = rig.remains(&vm);
    prepare(&rig, &vm);
    rig.machine.faults.record();
    rig.run(&vm, operation.clone()).unwrap();
    let calls = rig.machine.faults.recorded();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    for (nth, site) in (0..).zip(&calls) {
        prepare(&rig, &vm);
        rig.machine.faults.arm(Fault::From { nth });
        let outcome = rig.run(&vm, operation.clone());
        rig = rig.restart();
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        rig.until_remains(&vm, &before, &format!("a kill at {nth} {site}: {outcome:?}"));
    }
}

#[test]
fn a_daemon_killed_in_a_start_leaves_what_the_next_one_can_remove() {
    kill_at_each_call(&Operation::Start, |_, _| ());
}

#[test]
fn a_daemon_killed_in_a_shutdown_leaves_what_the_next_one_can_remove() {
    kill_at_each_call(&Operation::Shutdown(None), |rig, vm| rig.start(vm).unwrap());
}
