//! What a new daemon makes of what an old one left.

use super::*;

#[test]
fn the_time_of_the_start_is_known_to_the_next_daemon() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let stat = |rig: &Rig| observe::state(&rig.core, &rig.core.records.vm(&vm).unwrap()).unwrap();
    assert!(stat(&rig).last_start_time.abs() < f64::EPSILON);
    rig.start(&vm).unwrap();
    let started = stat(&rig).last_start_time;
    assert!(started > 1e9, "{started}");
    let rig = rig.restart();
    assert!((stat(&rig).last_start_time - started).abs() < f64::EPSILON);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!((stat(&rig).last_start_time - started).abs() < f64::EPSILON);
}

#[test]
fn a_guest_that_crashes_after_its_daemon_was_replaced_is_not_started_for_ever() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let rig = rig.restart();
    let domid = rig.domid(&vm).unwrap();
    rig.machine.stop_guest(domid, crate::edge::ShutdownReason::Crash);
    rig.until("it is halted", || rig.state(&vm) == PowerState::Halted);
    // Asked behind whatever was done about the crash.
    let halted = Error::BadPowerState { found: PowerState::Halted, expected: PowerState::Running };
    assert_eq!(rig.run(&vm, Operation::Pause), Err(halted));
}
