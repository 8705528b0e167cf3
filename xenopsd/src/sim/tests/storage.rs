//! Disks of a storage layer.

use super::*;
use crate::api::{DeviceId, IndirectBoot, Vbd, VbdMode, VbdType};
use crate::core::Wish;
use crate::ops::plan::{Device, Unplugging};
use crate::sim::When;
use std::fs;

fn on_storage(rig: &Rig, vm: &str, name: &str, mode: VbdMode) {
    let mut disk: Vbd = rig.core.records.device(&DeviceId::new(vm, name)).unwrap();
    (disk.mode, disk.backend) = (mode, Some(Disk::Vdi(format!("sr/{name}"))));
    rig.core.records.put(&disk).unwrap();
}

/// A VM of whose two disks a storage layer has one to write and one to read; it boots from the first.
fn stored(rig: &Rig) -> String {
    let vm = rig.add(1, &[], |vm| {
        let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
        let devices = vec![Disk::Vdi("sr/xvda".to_owned())];
        pv.boot = Boot::Indirect(IndirectBoot { devices, ..IndirectBoot::default() });
    });
    on_storage(rig, &vm, "xvda", VbdMode::ReadWrite);
    on_storage(rig, &vm, "xvdb", VbdMode::ReadOnly);
    vm
}

fn second() -> Device {
    Device::Vbd("xvdb".to_owned())
}

fn image() -> Disk {
    Disk::Vdi("sr/image".to_owned())
}

fn verbs(calls: &[String]) -> Vec<&str> {
    calls.iter().filter_map(|call| call.strip_prefix("host.storage_")).collect()
}

#[test]
fn disks_are_attached_before_they_are_used_and_detached_after() {
    let rig = Rig::new(&quick());
    let vm = stored(&rig);
    rig.machine.faults.record();
    rig.start_connected(&vm);
    let calls = rig.machine.faults.recorded();
    assert_eq!(verbs(&calls), ["attach", "activate", "attach", "activate"]);
    let at = |name: &str| calls.iter().position(|call| call == name).unwrap();
    assert!(at("host.storage_activate") < at("host.find_kernel"));
    assert!(at("host.find_kernel") < at("host.attach_disk"));
    let paths = [51712, 51728].map(|vdev| format!("vbd/{vm}/{vdev}"));
    assert_eq!(rig.machine.datapaths(), paths);
    let domid = rig.domid(&vm).unwrap();
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    let mut node = |name: &str| {
        use xenstore::Operations;
        let path = format!("/local/domain/0/backend/vbd/{domid}/51712/{name}");
        store.read_str(&xenstore::Path::new(&path).unwrap()).unwrap()
    };
    assert_eq!(node("params").as_deref(), Some("/sim/sr/xvda"));
    assert_eq!(node("sm-data/sr").as_deref(), Some("sr"));
    rig.run(&vm, Operation::Unplug(second(), Unplugging::Clean)).unwrap();
    assert_eq!(rig.machine.datapaths(), paths[..1]);
    rig.run(&vm, Operation::Plug(second())).unwrap();
    assert_eq!(rig.machine.datapaths(), paths);
    rig.run(&vm, Operation::Reboot(None)).unwrap();
    assert_eq!(rig.machine.datapaths(), paths);
    rig.machine.faults.record();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(verbs(&rig.machine.faults.recorded()), ["deactivate", "detach", "deactivate", "detach"]);
    assert!(rig.machine.datapaths().is_empty());
}

#[test]
fn a_medium_and_an_image_may_be_on_it() {
    let rig = Rig::new(&quick());
    let vm = stored(&rig);
    let drive = Vbd {
        id: DeviceId::new(&*vm, "xvdd"),
        position: Some("xvdd".parse().unwrap()),
        mode: VbdMode::ReadOnly,
        ty: VbdType::Cdrom,
        ..Vbd::default()
    };
    rig.core.records.put(&drive).unwrap();
    rig.start_connected(&vm);
    let before = rig.remains(&vm);
    let insert = Wish::Insert("xvdd".to_owned(), Disk::Vdi("isos/one".to_owned()));
    rig.run(&vm, Operation::Change(insert)).unwrap();
    assert!(rig.machine.datapaths().contains(&format!("vbd/{vm}/51760")));
    rig.run(&vm, Operation::Change(Wish::Eject("xvdd".to_owned()))).unwrap();
    rig.until_remains(&vm, &before, "a medium came and went");
}

/// The simulated storage layer's images are at paths that are not there; the sample program's are.
#[test]
fn a_vm_is_suspended_to_the_sample_programs_disk() {
    let sample = Sample::new();
    for name in ["xvda", "xvdb", "image", "cd"] {
        sample.disk(name);
    }
    let rig = Rig::new(&SimOptions { storage: Some(sample.program()), ..quick() });
    let vm = stored(&rig);
    rig.start_connected(&vm);
    assert!(sample.locked("xvda") && !sample.locked("xvdb"));
    let before = rig.remains(&vm);
    rig.run(&vm, Operation::Checkpoint(image())).unwrap();
    rig.until_remains(&vm, &before, "a checkpoint");
    assert!(!sample.locked("image"));
    let refused = rig.run(&vm, Operation::Suspend(Disk::Vdi("sr/xvda".to_owned())));
    assert!(refused.unwrap_err().to_string().contains("disk of the VM itself"));
    rig.run(&vm, Operation::Suspend(image())).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Suspended);
    assert!(!sample.locked("xvda") && !sample.locked("image") && rig.machine.loops().is_empty());
    let missing = rig.run(&vm, Operation::Resume(Disk::Vdi("sr/none".to_owned())));
    let Err(Error::StorageBackendError { code, .. }) = missing else { panic!("{missing:?}") };
    assert_eq!(code, "VDI_NOT_FOUND");
    rig.run(&vm, Operation::Resume(image())).unwrap();
    rig.run(&vm, Operation::Unpause).unwrap();
    assert!(sample.locked("xvda") && !sample.locked("image"));
    // Another VM cannot write to what this one writes to.
    let other = rig.add(2, &[], |_| ());
    on_storage(&rig, &other, "xvda", VbdMode::ReadWrite);
    let outcome = rig.start(&other);
    let Err(Error::StorageBackendError { code, .. }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(code, "VDI_IN_USE");
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(!sample.locked("xvda"));
    rig.start(&other).unwrap();
}

/// The program that comes with the daemon, with a directory of its own.
struct Sample {
    directory: tempfile::TempDir,
}

impl Sample {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("root/sr")).unwrap();
        let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/storage-files");
        let text = format!("exec {sample} --root {}/root \"$@\"", directory.path().display());
        crate::test_script(&directory.path().join("program"), &text);
        Self { directory }
    }

    fn program(&self) -> PathBuf {
        self.directory.path().join("program")
    }

    fn disk(&self, name: &str) {
        let path = self.directory.path().join(format!("root/sr/{name}.img"));
        fs::File::create(path).unwrap().set_len(4 << 20).unwrap();
    }

    fn locked(&self, name: &str) -> bool {
        self.directory.path().join(format!("root/sr/{name}.img.lock")).exists()
    }
}

#[test]
fn without_a_program_or_a_name_nothing_is_taken() {
    let nowhere = Some(PathBuf::from("/nonexistent/program"));
    for (options, name, part) in [
        (SimOptions { storage: nowhere, ..quick() }, "sr/vdi", "/nonexistent/program"),
        (quick(), "no-slash", "SR/VDI"),
        (quick(), "sr/a/b", "SR/VDI"),
    ] {
        let rig = Rig::new(&options);
        let vm = rig.add(1, &[], |_| ());
        let mut disk: Vbd = rig.core.records.device(&DeviceId::new(&*vm, "xvda")).unwrap();
        disk.backend = Some(Disk::Vdi(name.to_owned()));
        rig.core.records.put(&disk).unwrap();
        let before = rig.remains(&vm);
        let Err(error @ Error::StorageBackendError { .. }) = rig.start(&vm) else { panic!("{name}") };
        assert!(error.to_string().contains(part), "{error}");
        rig.until_remains(&vm, &before, "a start that is refused");
    }
    // A disk to boot from that the VM does not have.
    let rig = Rig::new(&quick());
    let vm = stored(&rig);
    rig.core.records.remove::<Vbd>(&DeviceId::new(&*vm, "xvda")).unwrap();
    let outcome = rig.start(&vm);
    assert!(
        matches!(&outcome, Err(Error::BootloaderError { message, .. }) if message.contains("sr/xvda")),
        "{outcome:?}"
    );
    assert!(rig.machine.datapaths().is_empty());
}

/// Every call of a start, of a plug and of an unplug fails once.
#[test]
fn no_failing_call_leaves_a_disk_attached() {
    let rig = Rig::new(&quick());
    let vm = stored(&rig);
    let calls = rig.calls_of(&vm, Operation::Start);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    rig.each_call_fails(&vm, &calls, &Operation::Start, &Operation::Shutdown(None));
    rig.start_connected(&vm);
    let unplug = Operation::Unplug(second(), Unplugging::Clean);
    rig.run(&vm, unplug.clone()).unwrap();
    let before = rig.remains(&vm);
    let calls = rig.calls_of(&vm, Operation::Plug(second()));
    rig.run(&vm, unplug.clone()).unwrap();
    rig.until_remains(&vm, &before, "a plug and an unplug");
    rig.each_call_fails(&vm, &calls, &Operation::Plug(second()), &unplug);
}

/// A storage layer that does not let go fails the unplug; what it holds is in the journal until it does.
#[test]
fn what_is_not_given_back_is_asked_for_again() {
    let rig = Rig::new(&quick());
    let vm = stored(&rig);
    rig.start_connected(&vm);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let before = rig.remains(&vm);
    rig.start_connected(&vm);
    let fails = || Fault::Nth { site: Some("host.storage_detach".to_owned()), nth: 0, when: When::Before };
    rig.machine.faults.arm(fails());
    rig.run(&vm, Operation::Unplug(second(), Unplugging::Clean)).unwrap_err();
    rig.machine.faults.disarm();
    assert_eq!(rig.machine.datapaths().len(), 2);
    // It is attached anew, so that what is wrong with it does not stay.
    rig.run(&vm, Operation::Plug(second())).unwrap();
    rig.machine.faults.arm(fails());
    rig.run(&vm, Operation::Shutdown(None)).unwrap_err();
    rig.machine.faults.disarm();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    rig.until_remains(&vm, &before, "the second shutdown");
}

/// The daemon is killed at each call: the next one gives back what no device has.
#[test]
fn a_killed_daemon_leaves_no_disk_attached() {
    let mut rig = Rig::new(&quick());
    let vm = stored(&rig);
    rig.start_connected(&vm);
    rig.run(&vm, Operation::Unplug(second(), Unplugging::Clean)).unwrap();
    rig = rig.restart();
    rig.settle(&vm);
    let before = rig.remains(&vm);
    let unplug = Operation::Unplug(second(), Unplugging::Clean);
    for (prepare, operation) in [(None, Operation::Plug(second())), (Some(Operation::Plug(second())), unplug)]
    {
        let run_prepared = |rig: &Rig| prepare.iter().for_each(|first| rig.run(&vm, first.clone()).unwrap());
        run_prepared(&rig);
        rig.machine.faults.record();
        rig.run(&vm, operation.clone()).unwrap();
        let calls = rig.machine.faults.recorded();
        let _ = rig.run(&vm, Operation::Unplug(second(), Unplugging::Forced));
        for (nth, site) in (0..).zip(&calls) {
            run_prepared(&rig);
            rig.machine.faults.arm(Fault::From { nth });
            let outcome = rig.run(&vm, operation.clone());
            rig = rig.restart();
            rig.settle(&vm);
            if crate::device::is_plugged(&rig.core, &vm, &second()).unwrap() {
                rig.run(&vm, Operation::Unplug(second(), Unplugging::Forced)).unwrap();
            }
            rig.until_remains(&vm, &before, &format!("a kill at {nth} {site} of {operation}: {outcome:?}"));
        }
    }
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.machine.datapaths().is_empty());
    let before = rig.remains(&vm);
    for site in ["host.storage_attach", "host.storage_activate", "host.find_kernel"] {
        for until in [site, "store.transaction"] {
            rig.machine.faults.record();
            rig.run(&vm, Operation::Start).unwrap();
            let calls = rig.machine.faults.recorded();
            rig.run(&vm, Operation::Shutdown(None)).unwrap();
            let first = calls.iter().position(|call| call == site).unwrap();
            let after = calls[first..].iter().position(|call| call == until).unwrap_or_default();
            rig.machine.faults.arm(Fault::From { nth: u64::try_from(first + after).unwrap() });
            rig.run(&vm, Operation::Start).unwrap_err();
            rig = rig.restart();
            rig.settle(&vm);
            rig.until_remains(&vm, &before, &format!("a kill of a start at {site}"));
        }
    }
}
