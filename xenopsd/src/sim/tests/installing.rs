//! Guests that are installed from a repository: their rounds, and what their records say after each.

use super::*;
use crate::api::{Boot, BuilderInfo, Disk, DynamicId, IndirectBoot, Vbd};
use crate::sim::When;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use xenstore::Operations as _;

const KEYS: [(&str, &str); 4] = [
    ("install-repository", "http://mirror.example/os"),
    ("install-distro", "rhlike"),
    ("install-vncpasswd", "secret"),
    ("pv-postinstall-kernel-max-size", "16777216"),
];

/// A VM that is not installed yet.
fn blank(vm: &mut Vm) {
    let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
    pv.boot = Boot::Indirect(IndirectBoot {
        bootloader: "eliloader".to_owned(),
        devices: vec![Disk::Local("/srv/1-xvda.img".to_owned())],
        ..IndirectBoot::default()
    });
    for (key, value) in KEYS {
        vm.platformdata.insert(key, value.to_owned());
    }
}

/// One of RHEL 4 whose installer has done its part; xvdb was for that, and its owner names it by its number.
fn installed(vm: &mut Vm) {
    blank(vm);
    for (key, value) in [("install-distro", "rhel44"), ("install-round", "2"), ("install-updates-disk", "1")]
    {
        vm.platformdata.insert(key, value.to_owned());
    }
}

fn record(rig: &Rig, vm: &str) -> Vm {
    rig.core.records.vm(vm).unwrap()
}

fn disks(rig: &Rig, vm: &str) -> Vec<Vbd> {
    rig.core.records.devices(vm).unwrap()
}

/// What is stored of a VM.
type Stored = (Vm, Vec<Vbd>);

fn stored(rig: &Rig, vm: &str) -> Stored {
    (record(rig, vm), disks(rig, vm))
}

fn store(rig: &Rig, (vm, disks): &Stored) {
    rig.core.records.put_vm(vm).unwrap();
    for disk in disks {
        rig.core.records.put(disk).unwrap();
    }
}

/// Both rounds.
const ROUNDS: [fn(&mut Vm); 2] = [blank, installed];

fn key(vm: &Vm, key: &str) -> Option<String> {
    vm.platformdata.get(key).cloned()
}

fn loader(vm: &Vm) -> &str {
    &vm.indirect_boot().unwrap().bootloader
}

#[test]
fn two_rounds_and_then_it_is_pygrubs() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], blank);
    rig.start(&vm).unwrap();
    let first = record(&rig, &vm);
    assert_eq!((loader(&first), key(&first, "install-round").as_deref()), ("eliloader", Some("2")));
    let domid = rig.core.domain_of(&vm).unwrap().unwrap().domid;
    let platform = xenstore::Path::new(&format!("/local/domain/{domid}/platform")).unwrap();
    let names = rig.core.edges.store().unwrap().directory(&platform).unwrap().unwrap();
    assert!(!names.iter().any(|name| name.starts_with("install")), "{names:?}");

    rig.run(&vm, Operation::Reboot(Some(LONG))).unwrap();
    let second = record(&rig, &vm);
    assert_eq!(loader(&second), "pygrub");
    for gone in ["install-round", "install-distro", "pv-postinstall-kernel-max-size"] {
        assert_eq!(key(&second, gone), None, "{gone}");
    }
    assert_eq!(key(&second, "pv-kernel-max-size").as_deref(), Some("16777216"));

    rig.run(&vm, Operation::Reboot(Some(LONG))).unwrap();
    assert_eq!(record(&rig, &vm), second, "from now on nothing changes");
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
}

#[test]
fn clients_are_told_of_the_changed_record() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], blank);
    let last = rig.core.updates.last_id();
    rig.start(&vm).unwrap();
    let objects = rig.changes(last, LIMIT);
    assert!(objects.contains(&DynamicId::Vm(vm.clone())), "{objects:?}");
}

#[test]
fn the_installers_disk_goes_with_the_second_round_and_the_next_domain_does_not_have_it() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| {
        installed(vm);
        vm.platformdata.insert("install-round", "1".to_owned());
    });
    let id = disks(&rig, &vm)[1].id.clone();
    let disk = crate::ops::plan::Device::Vbd(id.device.clone());
    rig.start(&vm).unwrap();
    assert!(crate::device::is_plugged(&rig.core, &vm, &disk).unwrap(), "the installer has it");
    assert_eq!(key(&record(&rig, &vm), "install-remove-disk"), None);

    let last = rig.core.updates.last_id();
    rig.run(&vm, Operation::Reboot(Some(LONG))).unwrap();
    assert_eq!(disks(&rig, &vm).iter().map(|disk| &*disk.id.device).collect::<Vec<_>>(), ["xvda"]);
    let now = record(&rig, &vm);
    assert_eq!((loader(&now), key(&now, "install-remove-disk").as_deref()), ("pygrub", Some("1")));
    let objects = rig.changes(last, LIMIT);
    for object in [DynamicId::Vm(vm.clone()), DynamicId::Vbd(id)] {
        assert!(objects.contains(&object), "{objects:?}");
    }
    let domid = rig.core.domain_of(&vm).unwrap().unwrap().domid;
    let devices = xenstore::Path::new(&format!("/local/domain/{domid}/device/vbd")).unwrap();
    let plugged = rig.core.edges.store().unwrap().directory(&devices).unwrap().unwrap();
    assert_eq!(plugged, ["51712"], "and the guest has only xvda");
    rig.run(&vm, Operation::Reboot(Some(LONG))).unwrap();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
}

#[test]
fn a_disk_that_is_booted_from_or_plugged_does_not_go() {
    let rig = Rig::new(&quick());
    let booted = rig.add(1, &[], |vm| {
        installed(vm);
        vm.platformdata.insert("install-updates-disk", "xvda".to_owned());
    });
    rig.start(&booted).unwrap();
    assert_eq!(disks(&rig, &booted).len(), 2);
    let plugged = rig.add(2, &[], |vm| {
        installed(vm);
        vm.indirect_boot_mut().unwrap().devices = vec![Disk::Local("/srv/2-xvda.img".to_owned())];
    });
    rig.run(&plugged, Operation::CreateDomain).unwrap();
    rig.run(&plugged, Operation::Plug(crate::ops::plan::Device::Vbd("xvdb".to_owned()))).unwrap();
    rig.run(&plugged, Operation::BuildDomain).unwrap();
    assert_eq!((loader(&record(&rig, &plugged)), disks(&rig, &plugged).len()), ("pygrub", 2));
    for vm in [booted, plugged] {
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
    }
}

#[test]
fn a_repository_that_does_not_give_is_a_boot_loaders_error_and_changes_nothing() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], blank);
    let stored = record(&rig, &vm);
    // The directories that the first guest of a host leaves.
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    rig.core.records.put_vm(&stored).unwrap();
    let before = rig.remains(&vm);
    let fault = Fault::Nth { site: Some("host.download".to_owned()), nth: 1, when: When::Before };
    rig.machine.faults.arm(fault);
    match rig.run(&vm, Operation::Start) {
        Err(Error::BootloaderError { id, message }) => {
            assert_eq!(id, vm);
            assert!(message.starts_with("INVALID_SOURCE: http://mirror.example/os/"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!((rig.machine.faults.disarm(), record(&rig, &vm)), (1, stored));
    rig.until_remains(&vm, &before, "a download that failed");
}

#[test]
fn a_start_that_fails_is_no_round() {
    side_by_side(&ROUNDS, |round| {
        let rig = Rig::new(&quick());
        let vm = rig.add(1, &[], *round);
        let before = stored(&rig, &vm);
        rig.machine.faults.record();
        rig.run(&vm, Operation::Start).unwrap();
        let calls = rig.machine.faults.recorded();
        let after = stored(&rig, &vm);
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        let mut failed = 0;
        for nth in 0..u64::try_from(calls.len()).unwrap() {
            store(&rig, &before);
            rig.machine.faults.arm(Fault::Nth { site: None, nth, when: When::Before });
            let outcome = rig.run(&vm, Operation::Start);
            rig.machine.faults.disarm();
            let now = stored(&rig, &vm);
            if outcome.is_ok() {
                assert_eq!(now, after, "{nth}");
                rig.run(&vm, Operation::Shutdown(None)).unwrap();
            } else {
                failed += 1;
                assert_eq!(now, before, "{nth} {outcome:?}");
            }
        }
        assert!(failed > 25, "only {failed} failures");
    });
}

/// The files in which the records that a round changes are, and its own.
fn files(rig: &Rig, vm: &str) -> [std::path::PathBuf; 3] {
    let root = rig.directory.path().join("db");
    let home = root.join("VM").join(vm);
    [home.join("config"), root.join("round").join(vm), home.join("vbd.xvdb")]
}

/// What is in the files of [`files`], where they are there.
type Contents = [Option<Vec<u8>>; 3];

/// A daemon on `rig` is killed at the boundary `at` of a start: what its files held then. None if there is no such boundary.
fn killed_start(rig: &Rig, vm: &str, at: usize) -> (Result<(), Error>, Option<Contents>) {
    let seen = AtomicUsize::new(0);
    let at_kill = Arc::new(Mutex::new(None));
    let (copy, faults, of, paths) =
        (at_kill.clone(), rig.machine.faults.clone(), vm.to_owned(), files(rig, vm));
    rig.core.traces.observe(Some(Arc::new(move |whose: &str, _: &_, _| {
        if whose == of && seen.fetch_add(1, Ordering::SeqCst) == at {
            *copy.lock().unwrap() = Some(paths.clone().map(|path| std::fs::read(path).ok()));
            faults.arm(Fault::From { nth: 0 });
        }
    })));
    let outcome = rig.run(vm, Operation::Start);
    rig.core.traces.observe(None);
    let contents = at_kill.lock().unwrap().take();
    (outcome, contents)
}

/// Unlike its calls, the files that a killed daemon writes while it undoes what it can are written. So they are put back as
/// they were when it was killed.
#[test]
fn a_daemon_killed_at_any_boundary_of_a_rounds_start_has_done_the_round_or_not_begun_it() {
    side_by_side(&ROUNDS, |round| {
        let mut rig = Rig::new(&quick());
        let vm = rig.add(1, &[], *round);
        let before = stored(&rig, &vm);
        rig.start(&vm).unwrap();
        let after = stored(&rig, &vm);
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        let (mut done, mut not_begun, mut kept) = (0, 0, 0);
        for kill_at in 0.. {
            store(&rig, &before);
            let (outcome, contents) = killed_start(&rig, &vm, kill_at);
            let Some(contents) = contents else {
                assert!(outcome.is_ok(), "no boundary is left: {outcome:?}");
                break;
            };
            kept += usize::from(contents[1].is_some());
            let paths = files(&rig, &vm);
            rig = rig.restart_with(|_| {
                for (path, content) in paths.iter().zip(&contents) {
                    match content {
                        Some(bytes) => std::fs::write(path, bytes).unwrap(),
                        None => std::fs::remove_file(path).unwrap_or_default(),
                    }
                }
            });
            // Behind the look that the new daemon takes by itself.
            rig.settle(&vm);
            let what = format!("killed at {kill_at}: {outcome:?}");
            if rig.state(&vm) == PowerState::Halted {
                assert_eq!(stored(&rig, &vm), before, "{what}");
                not_begun += 1;
            } else {
                assert_eq!(stored(&rig, &vm), after, "{what}");
                done += 1;
            }
            assert!(!files(&rig, &vm)[1].exists(), "{what}");
            rig.run(&vm, Operation::Shutdown(None)).unwrap();
        }
        assert!(done > 0 && not_begun > 10 && kept > 0, "{done} {not_begun} {kept}");
    });
}
