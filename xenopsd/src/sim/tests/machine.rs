//! Shares of the host's processors, memory for page tables, and changes that a daemon is killed in.

use super::*;
use crate::api::HvmInfo;
use crate::core::Wish;
use xenstore::Operations;

const MIB: i64 = 1 << 20;

/// Makes it an HVM guest.
fn hvm(vm: &mut Vm) {
    vm.ty = BuilderInfo::Hvm(HvmInfo::default());
}

fn shadow(rig: &Rig, vm: &str, multiplier: f64) -> Result<(), Error> {
    rig.run(vm, Operation::Change(Wish::ShadowMultiplier(multiplier)))
}

/// What the record says and what the hypervisor has given.
fn paging(rig: &Rig, vm: &str) -> (f64, u64) {
    let state = observe::state(&rig.core, &rig.core.records.vm(vm).unwrap()).unwrap();
    let domid = rig.domid(vm).unwrap();
    (state.shadow_multiplier_target, rig.machine.hardware(|h| h.tuning(domid)).paging_kib)
}

#[test]
fn a_vm_has_its_share_of_the_processors() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| {
        (vm.vcpu_max, vm.vcpus) = (3, 1);
        vm.scheduler_params.priority = Some((512, 150));
        vm.scheduler_params.affinity = vec![vec![0, 1], vec![], vec![7, 64]];
    });
    for _ in 0..2 {
        rig.start(&vm).unwrap();
        let domid = rig.domid(&vm).unwrap();
        let tuning = rig.machine.hardware(|h| h.tuning(domid));
        assert_eq!(tuning.scheduler, Some((512, 150)));
        assert_eq!(tuning.affinity, [(0, vec![0, 1]), (2, vec![7])].into_iter().collect());
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
    }
    rig.start(&vm).unwrap();
    rig.suspend(&vm).unwrap();
    rig.resume(&vm).unwrap();
    let domid = rig.domid(&vm).unwrap();
    assert_eq!(rig.machine.hardware(|h| h.tuning(domid)).scheduler, Some((512, 150)), "after a resume, too");
}

#[test]
fn a_share_that_cannot_be_is_found_before_anything_is_taken() {
    let rig = Rig::new(&quick());
    let changes: [fn(&mut Vm); 3] = [
        |vm| vm.scheduler_params.priority = Some((0, 0)),
        |vm| vm.scheduler_params.affinity = vec![vec![64]],
        |vm| vm.scheduler_params.affinity = vec![vec![-1]],
    ];
    for (number, change) in (1..).zip(changes) {
        let vm = rig.add(number, &[], change);
        let before = rig.remains(&vm);
        let refused = rig.run(&vm, Operation::Start);
        assert!(matches!(refused, Err(Error::InternalError(_))), "{refused:?}");
        assert_eq!(rig.remains(&vm), before);
    }
}

#[test]
fn memory_for_page_tables_grows_and_shrinks() {
    let rig = Rig::new(&SimOptions { memory_mib: 2048, ..quick() });
    let vm = rig.add(1, &[], hvm);
    shadow(&rig, &vm, 2.0).unwrap();
    rig.start(&vm).unwrap();
    // 256 pages for its vcpu and one for each of its 64 MiB.
    let kib = |multiplier: u64| multiplier * 4 * (256 + 64);
    assert_eq!(paging(&rig, &vm), (2.0, kib(2)), "as it was set when it was halted");
    for (multiplier, times) in [(4.0, 4), (1.0, 1), (3.0, 3)] {
        shadow(&rig, &vm, multiplier).unwrap();
        assert_eq!(paging(&rig, &vm), (multiplier, kib(times)));
    }
    // What the rest of the memory is taken for.
    let free = i64::try_from(rig.machine.hardware(Hardware::free_pages) * 4096).unwrap();
    let other = rig.add(2, &[], |vm| {
        let most = free / MIB * MIB - 16 * MIB;
        (vm.memory_static_max, vm.memory_dynamic_max) = (most, most);
    });
    rig.run(&other, Operation::Start).unwrap();
    let refused = shadow(&rig, &vm, 100.0);
    assert!(matches!(refused, Err(Error::NotEnoughMemory(_))), "{refused:?}");
    assert_eq!(paging(&rig, &vm), (3.0, kib(3)), "and nothing of it is left");
    for bad in [0.5, f64::NAN, 1e9] {
        assert!(matches!(shadow(&rig, &vm, bad), Err(Error::InternalError(_))), "{bad}");
    }
    assert!(matches!(shadow(&rig, &other, 2.0), Err(Error::Unimplemented(_))), "a PV guest has none");
}

fn node(rig: &Rig, path: &str) -> Option<String> {
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    store.read_str(&xenstore::Path::new(path).unwrap()).unwrap()
}

/// What of a running VM has to agree with its record: vcpus, memory range, paging and the owner's data.
fn agrees(rig: &Rig, vm: &str) -> Vec<String> {
    let record = rig.core.records.vm(vm).unwrap();
    let home = format!("/local/domain/{}", rig.domid(vm).unwrap());
    let online = |n: i64| node(rig, &format!("{home}/cpu/{n}/availability")).as_deref() == Some("online");
    let vcpus = (0..3).filter(|n| online(*n)).count();
    let mut wrong = Vec::new();
    let mut check = |what: &str, is: String, should: String| {
        if is != should {
            wrong.push(format!("{what}: {is} for {should}"));
        }
    };
    check("vcpus", vcpus.to_string(), record.vcpus.to_string());
    let maximum = node(rig, &format!("{home}/memory/dynamic-max")).unwrap();
    check("memory", maximum, (record.memory_dynamic_max / 1024).to_string());
    let (multiplier, kib) = paging(rig, vm);
    let times = if multiplier > 1.5 { 2 } else { 1 };
    check("paging", kib.to_string(), (times * 4 * (3 * 256 + 64)).to_string());
    let keys = ["vm-data/old", "vm-data/new"];
    for key in keys {
        let should = record.xsdata.get(key).cloned().unwrap_or_default();
        check(key, node(rig, &format!("{home}/{key}")).unwrap_or_default(), should);
    }
    wrong
}

/// The daemon is killed at each call of each change: the next one makes it, or it was never begun.
#[test]
fn a_change_that_a_daemon_is_killed_in_is_made_or_not_made() {
    let xsdata = |key: &str| {
        let script = ("vm-data/sim/device-model".to_owned(), "work".to_owned());
        [(key.to_owned(), "1".to_owned()), script].into_iter().collect()
    };
    let changes = [
        (Wish::Vcpus(3), Wish::Vcpus(1)),
        (Wish::Memory(16 * MIB, 48 * MIB), Wish::Memory(16 * MIB, 64 * MIB)),
        (Wish::ShadowMultiplier(2.0), Wish::ShadowMultiplier(1.0)),
        (Wish::Xsdata(xsdata("vm-data/new")), Wish::Xsdata(xsdata("vm-data/old"))),
    ];
    let mut rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| {
        hvm(vm);
        (vm.vcpu_max, vm.vcpus, vm.memory_dynamic_min) = (3, 1, 16 * MIB);
        vm.xsdata = xsdata("vm-data/old");
    });
    rig.start(&vm).unwrap();
    for (change, back) in changes {
        rig.machine.faults.record();
        rig.run(&vm, Operation::Change(change.clone())).unwrap();
        let calls = rig.machine.faults.recorded();
        rig.run(&vm, Operation::Change(back.clone())).unwrap();
        for (nth, site) in (0..).zip(&calls) {
            rig.machine.faults.arm(Fault::From { nth });
            let outcome = rig.run(&vm, Operation::Change(change.clone()));
            rig = rig.restart();
            rig.settle(&vm);
            assert_eq!(agrees(&rig, &vm), [""; 0], "{change} killed at {nth} {site}: {outcome:?}");
            rig.run(&vm, Operation::Change(back.clone())).unwrap();
        }
        assert_eq!(agrees(&rig, &vm), [""; 0], "{back}");
    }
}

/// A guest may write over what its owner has for it: that is no change half made.
#[test]
fn what_a_guest_has_written_over_is_left_to_it() {
    let mut rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| vm.xsdata.insert("vm-data/shared/key", "owner's".to_owned()));
    rig.start_connected(&vm);
    let path = format!("/local/domain/{}/vm-data/shared/key", rig.domid(&vm).unwrap());
    let mut guest = rig.machine.store.client(xenstore::DomId(rig.domid(&vm).unwrap().get()));
    guest.write(&xenstore::Path::new("vm-data/shared/key").unwrap(), "guest's").unwrap();
    rig = rig.restart();
    rig.settle(&vm);
    assert_eq!(node(&rig, &path).as_deref(), Some("guest's"));
}
