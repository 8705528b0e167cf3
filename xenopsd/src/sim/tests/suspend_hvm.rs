//! HVM guests to an image and back, with their device models' state; every way in which a device model does not play along.

use std::fs;

use super::suspend::running_as;
use super::*;
use crate::api::HvmInfo;
use crate::core::Wish;
use crate::edge::ShutdownReason;
use crate::sim::{Doing, Vcpus};

pub(super) fn hvm(vm: &mut Vm) {
    vm.ty = BuilderInfo::Hvm(HvmInfo::default());
    (vm.vcpu_max, vm.vcpus) = (4, 1);
}

fn running(patience: Patience, script: &[(&str, &str)]) -> (Rig, String, DomId) {
    running_as(hvm, &quick(), patience, script)
}

fn doing(rig: &Rig, vm: &str) -> Option<Doing> {
    rig.machine.device_model(rig.domid(vm).unwrap())
}

#[test]
fn a_device_model_is_in_the_image_with_all_the_processors_it_has() {
    let (rig, vm, _) = running(long(), &[]);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let before = rig.remains(&vm);
    rig.start(&vm).unwrap();
    let domain = rig.core.domain_of(&vm).unwrap().unwrap();
    // It has three from now on, although the guest is to use two.
    for vcpus in [3, 2] {
        rig.run(&vm, Operation::Change(Wish::Vcpus(vcpus))).unwrap();
    }
    for _ in 0..2 {
        rig.suspend(&vm).unwrap();
        assert_eq!(rig.state(&vm), PowerState::Suspended);
        assert!(rig.machine.device_models().is_empty());
        rig.until_remains(&vm, &before, "a suspend");
        rig.run(&vm, Operation::Resume(rig.image())).unwrap();
        assert_eq!(doing(&rig, &vm), Some(Doing::Stopped));
        rig.run(&vm, Operation::Unpause).unwrap();
        assert_eq!(doing(&rig, &vm), Some(Doing::Emulating));
        let again = rig.core.domain_of(&vm).unwrap().unwrap();
        assert_eq!((again.hvm, again.tot_pages), (true, domain.tot_pages));
        let given = rig.machine.device_model_vcpus(again.domid);
        assert_eq!(given, Some(Vcpus { present: 3, max: 4 }));
        rig.until("its disk is connected", || rig.connected(&vm));
    }
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    rig.until_remains(&vm, &before, "a shutdown");
}

#[test]
fn a_checkpoint_leaves_the_device_model_running() {
    let (rig, vm, domid) = running(long(), &[]);
    for _ in 0..2 {
        rig.run(&vm, Operation::Checkpoint(rig.image())).unwrap();
        assert!(rig.executes(&vm) && !rig.noted());
        assert_eq!((rig.domid(&vm), doing(&rig, &vm)), (Some(domid), Some(Doing::Emulating)));
    }
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    rig.resume(&vm).unwrap();
    rig.until("its disk is connected", || rig.connected(&vm));
}

/// It does not answer: nothing in it listens.
#[test]
fn a_guest_without_drivers_is_stopped_without_being_asked() {
    let patience = Patience { suspend_ack: Duration::from_millis(1), ..long() };
    let (rig, vm, _) = running(patience, &[("drivers", "none")]);
    rig.suspend(&vm).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Suspended);
    rig.resume(&vm).unwrap();
    assert_eq!(doing(&rig, &vm), Some(Doing::Emulating));
    rig.run(&vm, Operation::Checkpoint(rig.image())).unwrap();
    assert!(rig.executes(&vm));
}

#[test]
fn one_that_does_not_give_its_state_goes_on_with_its_guest() {
    for (word, said) in [("refuse", "IO error"), ("empty", "nothing was written"), ("huge", "more than")] {
        let (rig, vm, domid) = running(long(), &[("device-model", word)]);
        let refused = rig.suspend(&vm);
        assert!(
            matches!(&refused, Err(Error::InternalError(text)) if text.contains(said)),
            "{word}: {refused:?}"
        );
        rig.runs_on(&vm, domid, word);
        assert_eq!(doing(&rig, &vm), Some(Doing::Emulating), "{word}");
    }
}

#[test]
fn one_that_ends_or_stays_stopped_is_as_a_crash_of_its_guest() {
    for word in ["die", "halt"] {
        let (rig, vm, _) = running(long(), &[("device-model", word)]);
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        let before = rig.remains(&vm);
        rig.start(&vm).unwrap();
        // That which stays stopped has given its state.
        let operation =
            if word == "die" { Operation::Suspend(rig.image()) } else { Operation::Checkpoint(rig.image()) };
        assert_eq!(rig.run(&vm, operation).is_err(), word == "die");
        // Too soon after its start for another one.
        rig.until("it is halted", || rig.state(&vm) == PowerState::Halted);
        assert_eq!(rig.image_path().exists(), word == "halt", "{word}");
        assert!(!rig.noted());
        rig.until_remains(&vm, &before, word);
    }
}

#[test]
fn one_that_does_not_take_the_state_leaves_the_vm_suspended() {
    for (word, said) in
        [("choke", "ended while it took its state"), ("chew", "no answer to migrate-incoming")]
    {
        let limit = if word == "chew" { Duration::from_millis(50) } else { LONG };
        let (rig, vm, _) = running(Patience { device_model: limit, ..long() }, &[("device-model", word)]);
        rig.suspend(&vm).unwrap();
        let before = rig.remains(&vm);
        match rig.run(&vm, Operation::Resume(rig.image())) {
            Err(Error::FailedToStartEmulator { message, .. }) if message.contains(said) => {}
            other => panic!("{word}: {other:?}"),
        }
        assert_eq!(rig.state(&vm), PowerState::Suspended, "{word}");
        rig.until_remains(&vm, &before, word);
    }
}

#[test]
fn an_image_without_a_device_model_s_state_is_no_hvm_guest_s() {
    for (kind, said) in
        [(None, "does not fit"), (Some(BuilderInfo::Pvh as fn(_) -> _), "no state of a device model")]
    {
        let rig = Rig::new(&quick());
        let vm = rig.add(1, &[], |vm| {
            let BuilderInfo::Pv(info) = &vm.ty else { unreachable!() };
            vm.ty = kind.map_or_else(|| vm.ty.clone(), |kind| kind(info.clone()));
        });
        rig.start(&vm).unwrap();
        rig.suspend(&vm).unwrap();
        let mut record = rig.core.records.vm(&vm).unwrap();
        record.ty = BuilderInfo::Hvm(HvmInfo::default());
        rig.core.records.put_vm(&record).unwrap();
        let before = rig.remains(&vm);
        let refused = rig.resume(&vm);
        assert!(matches!(&refused, Err(Error::InternalError(what)) if what.contains(said)), "{refused:?}");
        assert_eq!(rig.state(&vm), PowerState::Suspended);
        rig.until_remains(&vm, &before, said);
    }
}

/// Cut off within it, and with another's in its place.
#[test]
fn a_damaged_state_is_found_by_the_device_model_or_before() {
    let (rig, vm, _) = running(long(), &[]);
    rig.suspend(&vm).unwrap();
    let before = rig.remains(&vm);
    let whole = fs::read(rig.image_path()).unwrap();
    let text = b"state of a simulated device model";
    let at = whole.windows(text.len()).position(|part| part == text).expect("it is in the image");
    let mut other = whole.clone();
    other[at] ^= 1;
    for (what, bytes) in [("cut", &whole[..at + 3]), ("another's", &other[..])] {
        fs::write(rig.image_path(), bytes).unwrap();
        assert!(rig.run(&vm, Operation::Resume(rig.image())).is_err(), "{what}");
        assert_eq!(rig.state(&vm), PowerState::Suspended, "{what}");
        rig.until_remains(&vm, &before, what);
    }
    fs::write(rig.image_path(), whole).unwrap();
    rig.resume(&vm).unwrap();
}

/// A guest that was stopped late, when the suspend had been given up, runs on with its device model.
#[test]
fn a_fast_resume_lets_the_device_model_go_on_as_well() {
    let (rig, vm, domid) = running(long(), &[]);
    let busy = rig.core.submit(&vm, "test", Operation::Delay(LONG)).unwrap();
    let (done, outcome) = bounded(1);
    rig.core.submit_then(&vm, "test", Operation::FastResume, move |result| done.send(result).unwrap());
    rig.machine.stop_guest(domid, ShutdownReason::Suspend);
    rig.core.tasks.cancel(&busy).unwrap();
    assert_eq!(outcome.recv_timeout(LIMIT).expect("it ends"), Ok(()));
    rig.settle(&vm);
    rig.runs_on(&vm, domid, "a fast resume");
    assert_eq!(doing(&rig, &vm), Some(Doing::Emulating));
}
