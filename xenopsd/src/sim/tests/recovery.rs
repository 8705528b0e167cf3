//! What a new daemon makes of what an old one left.

use super::*;
use crate::sim::When;
use crate::state::Interface;
use crate::state::journal::Resource;

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

fn socket(name: &str) -> Resource {
    Resource::Socket(format!("/run/xenopsd/{name}"))
}

/// Without the terminal server and loop devices.
fn taken(rig: &Rig, vm: &str) -> Vec<Resource> {
    let all = rig.core.journal.of(vm).into_iter().map(|(_, resource)| resource);
    all.filter(|resource| !matches!(resource, Resource::Process(_) | Resource::Loop(_))).collect()
}

#[test]
fn a_running_guest_is_picked_up_with_what_it_has() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let domid = rig.domid(&vm);
    rig.core.journal.take(&vm, socket("console")).unwrap();
    let rig = rig.restart();
    assert_eq!(rig.state(&vm), PowerState::Running);
    assert_eq!(rig.domid(&vm), domid);
    assert_eq!(taken(&rig, &vm), [Resource::Domain, socket("console")]);
    // Its events are followed again.
    rig.machine.stop_guest(domid.unwrap(), crate::edge::ShutdownReason::PowerOff);
    rig.until("it is gone", || rig.core.journal.of(&vm).is_empty());
    assert_eq!(rig.state(&vm), PowerState::Halted);
}

#[test]
fn a_guest_that_stopped_without_a_daemon_is_dealt_with_by_the_next_one() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let before = rig.remains(&vm);
    rig.start(&vm).unwrap();
    let domid = rig.domid(&vm).unwrap();
    rig.machine.faults.arm(Fault::From { nth: 0 });
    rig.machine.stop_guest(domid, crate::edge::ShutdownReason::PowerOff);
    let rig = rig.restart();
    rig.until_remains(&vm, &before, "the next daemon's start");
}

#[test]
fn what_has_no_domain_is_given_back() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let unknown = "99999999-0000-4000-8000-000000000000";
    rig.core.journal.take(&vm, Resource::Domain).unwrap();
    rig.core.journal.take(&vm, socket("console")).unwrap();
    rig.core.journal.take(unknown, socket("other")).unwrap();
    let rig = rig.restart();
    rig.until("the journal is empty", || rig.core.journal.vms().is_empty());
}

#[test]
fn what_cannot_be_given_back_stays_in_the_journal_until_it_can() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let taken_before = Resource::Directory("/run/xenopsd/root".to_owned());
    rig.core.journal.take(&vm, taken_before.clone()).unwrap();
    rig.machine.faults.arm(Fault::Nth { site: Some("host.release".to_owned()), nth: 0, when: When::Before });
    assert!(rig.run(&vm, Operation::Start).is_err());
    assert_eq!(rig.machine.faults.disarm(), 1);
    assert_eq!(taken(&rig, &vm), [taken_before]);
    rig.start(&vm).unwrap();
    assert_eq!(taken(&rig, &vm), [Resource::Domain]);
}

#[test]
fn a_domain_that_is_not_ours_is_left_alone() {
    use crate::edge::{GuestKind, NewDomain};
    let rig = Rig::new(&quick());
    let uuid = uuid::Uuid::new_v4();
    let uuid_bytes = *uuid.as_bytes();
    let new = NewDomain::new(GuestKind::Pv, uuid_bytes, 1);
    let domid = rig.core.edges.hypervisor().unwrap().create(&new).unwrap();
    // As if its record had been lost.
    rig.core.journal.take(&uuid.hyphenated().to_string(), Resource::Domain).unwrap();
    let rig = rig.restart();
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.machine.hardware(Hardware::domids).contains(&domid));
    assert_eq!(taken(&rig, &uuid.hyphenated().to_string()), [Resource::Domain]);
}

#[test]
fn every_object_is_announced_once_by_a_new_daemon() {
    let rig = Rig::new(&quick());
    let vms: Vec<_> = (1..4).map(|n| rig.add(n, &[], |_| ())).collect();
    rig.start(&vms[0]).unwrap();
    let first = rig.core.instance_id.clone();
    let rig = rig.restart();
    assert_ne!(rig.core.instance_id, first);
    let (tell, told) = bounded(1);
    let tell = move |batch: Result<_, _>| tell.send(batch.unwrap()).unwrap();
    rig.core.updates.get(None, Some(LIMIT), Box::new(tell));
    let (barriers, mut objects, _) = told.recv_timeout(LIMIT).unwrap();
    assert!(barriers.is_empty());
    objects.retain(|object| !matches!(object, crate::api::DynamicId::Task(_)));
    objects.sort();
    let mut expected: Vec<_> = vms.iter().flat_map(|vm| rig.core.records.objects(vm)).collect();
    expected.sort();
    assert_eq!(objects, expected);
    assert_eq!(expected.len(), 3 * 4);
}

#[test]
fn the_record_of_an_interface_goes_with_its_domain() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let domid = rig.domid(&vm).unwrap();
    let keep = format!("vif{domid}.0");
    assert_eq!(rig.core.records.interface(&keep).unwrap().unwrap().vif, crate::api::DeviceId::new(&vm, "0"));
    for name in ["vif4711.0", "tap4711.1"] {
        let interface = Interface { name: name.to_owned(), vif: crate::api::DeviceId::new(&vm, "0") };
        rig.core.records.put_interface(&interface).unwrap();
    }
    let rig = rig.restart();
    assert_eq!(rig.core.records.interfaces().unwrap(), [keep]);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.core.records.interfaces().unwrap().is_empty());
}
