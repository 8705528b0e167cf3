//! Disks whose images a process serves.

use super::*;
use crate::api::{DeviceId, HvmInfo, IndirectBoot, Qos, QosClass, QosScheduler, Vbd, VbdMode, VbdType};
use crate::core::Wish;
use crate::device::vbd;
use crate::edge::{IMAGE_FORMAT, ImageFormat, IoPriority};
use crate::ops::plan::{Device, Unplugging};
use crate::sim::When;
use crate::state::journal::Resource;

fn serve(rig: &Rig, vm: &str, name: &str, format: ImageFormat) {
    let mut disk: Vbd = rig.core.records.device(&DeviceId::new(vm, name)).unwrap();
    disk.extra_backend_keys.0.push((IMAGE_FORMAT.to_owned(), format.name().to_owned()));
    rig.core.records.put(&disk).unwrap();
}

/// A VM that boots from a qcow2 disk and has another in VHD.
fn served(rig: &Rig) -> String {
    let vm = rig.add(1, &[], |vm| {
        let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
        pv.vncterm = false;
        let devices = vec![Disk::Local("/srv/1-xvda.img".to_owned())];
        pv.boot = Boot::Indirect(IndirectBoot { devices, ..IndirectBoot::default() });
    });
    serve(rig, &vm, "xvda", ImageFormat::Qcow2);
    serve(rig, &vm, "xvdb", ImageFormat::Vhd);
    vm
}

fn second() -> Device {
    Device::Vbd("xvdb".to_owned())
}

/// The process that serves the second disk: the two are started side by side.
fn server_of_second(rig: &Rig, vm: &str) -> crate::api::Int {
    let found = rig.core.journal.of(vm).into_iter().find_map(|(_, resource)| match resource {
        Resource::DiskServer(server) if server.vdev == 51_728 => server.process,
        _ => None,
    });
    found.expect("it is served").pid
}

fn node(rig: &Rig, vm: &str, name: &str) -> Option<String> {
    use xenstore::Operations;
    let path = format!("/local/domain/0/backend/vbd/{}/51728/{name}", rig.domid(vm).unwrap());
    rig.machine.store.client(xenstore::DomId::DOM0).read_str(&xenstore::Path::new(&path).unwrap()).unwrap()
}

fn state(rig: &Rig, vm: &str) -> (bool, bool) {
    let disk: Vbd = rig.core.records.device(&DeviceId::new(vm, "xvdb")).unwrap();
    let state = vbd::state(&rig.core, &disk).unwrap();
    (state.plugged, state.active)
}

#[test]
fn servers_start_before_their_disks_are_used_and_end_after() {
    let rig = Rig::new(&quick());
    let vm = served(&rig);
    rig.machine.faults.record();
    rig.start_connected(&vm);
    let calls = rig.machine.faults.recorded();
    let at = |name: &str| calls.iter().rposition(|call| call == name).unwrap();
    assert!(at("host.serve_disk.connect") < at("host.find_kernel"));
    assert!(rig.machine.loops().is_empty(), "a disk that is served has no loop device");
    assert_eq!((rig.machine.network_disks().len(), rig.machine.processes().len()), (2, 2));
    assert_eq!(node(&rig, &vm, "params").as_deref(), Some("/srv/1-xvdb.img"));
    assert_eq!(node(&rig, &vm, IMAGE_FORMAT), None);
    let number = node(&rig, &vm, "physical-device").unwrap();
    assert!(number.starts_with("2b:"), "{number}");
    assert_eq!(state(&rig, &vm), (true, true));
    let before = rig.remains(&vm);
    rig.run(&vm, Operation::Unplug(second(), Unplugging::Clean)).unwrap();
    assert_eq!((rig.machine.network_disks().len(), rig.machine.processes().len()), (1, 1));
    rig.run(&vm, Operation::Plug(second())).unwrap();
    assert_eq!(rig.machine.network_disks(), before.network_disks);
    rig.run(&vm, Operation::Reboot(None)).unwrap();
    assert_eq!(rig.machine.network_disks(), before.network_disks);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.machine.network_disks().is_empty() && rig.machine.processes().is_empty());
    assert_eq!(rig.core.journal.counts().0, 0);
}

#[test]
fn a_disk_s_priority_is_its_server_s_too() {
    let rig = Rig::new(&quick());
    let vm = served(&rig);
    let mut disk: Vbd = rig.core.records.device(&DeviceId::new(&*vm, "xvdb")).unwrap();
    disk.qos = Some(Qos::Ionice(QosScheduler::BestEffort(QosClass::Low)));
    rig.core.records.put(&disk).unwrap();
    rig.start_connected(&vm);
    let low = Some(IoPriority { class: 2, level: 6 });
    let has = || rig.machine.process_priority(server_of_second(&rig, &vm));
    rig.until("its server has the priority", || has() == low);
    assert_eq!(rig.machine.disk_priority(rig.domid(&vm).unwrap(), "xvdb"), low);
    let others = rig.machine.processes().into_iter().filter(|pid| *pid != server_of_second(&rig, &vm));
    assert_eq!(others.map(|pid| rig.machine.process_priority(pid)).collect::<Vec<_>>(), [None]);
    // The next server has it, too; and one that cannot be given it serves all the same.
    rig.run(&vm, Operation::Unplug(second(), Unplugging::Clean)).unwrap();
    rig.run(&vm, Operation::Plug(second())).unwrap();
    rig.until("its server has the priority", || has() == low);
    rig.run(&vm, Operation::Unplug(second(), Unplugging::Clean)).unwrap();
    let site = Some("host.prioritise_process".to_owned());
    rig.machine.faults.arm(Fault::Nth { site, nth: 0, when: When::Before });
    rig.run(&vm, Operation::Plug(second())).unwrap();
    rig.until("it was tried", || rig.machine.disk_priority(rig.domid(&vm).unwrap(), "xvdb") == low);
    assert_eq!(state(&rig, &vm), (true, true));
    rig.machine.faults.disarm();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
}

/// Of a PV guest and of one whose device model emulates the drive.
#[test]
fn a_medium_that_is_served_comes_and_goes_with_its_server() {
    for (word, drive, hvm) in [("", "xvdd", false), ("work", "hdc", true)] {
        let rig = Rig::new(&quick());
        let script = [("device-model", word)];
        let vm = rig.add(1, if hvm { &script } else { &[] }, |vm| {
            if hvm {
                vm.ty = BuilderInfo::Hvm(HvmInfo::default());
            }
        });
        let empty = Vbd {
            id: DeviceId::new(&*vm, drive),
            position: Some(drive.parse().unwrap()),
            mode: VbdMode::ReadOnly,
            ty: VbdType::Cdrom,
            ..Vbd::default()
        };
        rig.core.records.put(&empty).unwrap();
        serve(&rig, &vm, drive, ImageFormat::Qcow2);
        rig.start(&vm).unwrap();
        rig.run(&vm, Operation::Unpause).unwrap();
        assert!(rig.machine.network_disks().is_empty(), "there is nothing in it");
        let insert =
            || Operation::Change(Wish::Insert(drive.to_owned(), Disk::Local("/srv/two.qcow2".to_owned())));
        let eject = || Operation::Change(Wish::Eject(drive.to_owned()));
        let medium = || rig.core.records.device::<Vbd>(&empty.id).unwrap().backend;
        // The store keeps the directories above a device.
        rig.run(&vm, insert()).unwrap();
        rig.run(&vm, eject()).unwrap();
        let before = rig.remains(&vm);
        rig.run(&vm, insert()).unwrap();
        assert_eq!(rig.machine.network_disks().len(), 1, "{drive}");
        assert!(
            rig.core
                .records
                .device::<Vbd>(&empty.id)
                .is_ok_and(|vbd| vbd::state(&rig.core, &vbd).unwrap().active)
        );
        if hvm {
            let (media, _) = rig.machine.device_model_media(rig.domid(&vm).unwrap()).unwrap();
            assert!(media.iter().any(|id| id == "ide-5632"), "{media:?}");
        }
        rig.run(&vm, eject()).unwrap();
        rig.until_remains(&vm, &before, "an eject");
        assert_eq!(medium(), None);
        let site = Some("host.serve_disk.export".to_owned());
        rig.machine.faults.arm(Fault::Nth { site, nth: 0, when: When::Before });
        rig.run(&vm, insert()).unwrap_err();
        rig.machine.faults.disarm();
        rig.until_remains(&vm, &before, "an insert without a server");
        assert_eq!(medium(), None, "{drive}");
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        assert!(rig.machine.network_disks().is_empty() && rig.core.journal.counts().0 == 0);
    }
}

/// Its server cannot be told, and the tables of an image that something else resized would be written over.
#[test]
fn the_size_of_an_image_is_fixed_while_it_is_plugged() {
    let rig = Rig::new(&quick());
    let vm = served(&rig);
    rig.start_connected(&vm);
    let before = rig.remains(&vm);
    let sectors = node(&rig, &vm, "sectors");
    let refused = rig.run(&vm, Operation::RefreshDisk("xvdb".to_owned()));
    let Err(Error::StorageBackendError { code, params }) = refused else { panic!("{refused:?}") };
    assert_eq!(code, "DISK_SIZE_FIXED");
    assert!(params[0].contains("vhd image") && params[0].contains("unplug it"), "{params:?}");
    assert_eq!((node(&rig, &vm, "sectors"), state(&rig, &vm)), (sectors, (true, true)));
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn what_is_no_format_is_refused_before_anything_is_taken() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let mut disk: Vbd = rig.core.records.device(&DeviceId::new(&*vm, "xvda")).unwrap();
    disk.extra_backend_keys.0.push((IMAGE_FORMAT.to_owned(), "vdi".to_owned()));
    rig.core.records.put(&disk).unwrap();
    let before = rig.remains(&vm);
    let refused = rig.start(&vm).unwrap_err().to_string();
    assert!(refused.contains("image-format") && refused.contains("qcow2"), "{refused}");
    rig.until_remains(&vm, &before, "a start that is refused");
}

/// The same image under another VM, served or on a loop device.
#[test]
fn an_image_has_one_writer_however_it_is_shown() {
    let rig = Rig::new(&quick());
    let vm = served(&rig);
    rig.start_connected(&vm);
    for format in [None, Some(ImageFormat::Qcow2)] {
        let other = rig.add(2, &[], |_| ());
        let mut disk: Vbd = rig.core.records.device(&DeviceId::new(&*other, "xvda")).unwrap();
        disk.backend = Some(Disk::Local("/srv/1-xvda.img".to_owned()));
        rig.core.records.put(&disk).unwrap();
        if let Some(format) = format {
            serve(&rig, &other, "xvda", format);
        }
        let refused = rig.start(&other);
        assert!(
            matches!(&refused, Err(Error::StorageBackendError { code, .. }) if code == "DISK_IN_USE"),
            "{refused:?}"
        );
    }
    // A new daemon knows the disk by what the kernel says of its device.
    let rig = rig.restart();
    rig.settle(&vm);
    let other = rig.add(3, &[], |_| ());
    let mut disk: Vbd = rig.core.records.device(&DeviceId::new(&*other, "xvda")).unwrap();
    disk.backend = Some(Disk::Local("/srv/1-xvda.img".to_owned()));
    rig.core.records.put(&disk).unwrap();
    assert!(rig.start(&other).unwrap_err().to_string().contains("DISK_IN_USE"));
}

#[test]
fn a_server_that_ends_is_told_of_and_its_disk_can_be_plugged_anew() {
    let rig = Rig::new(&quick());
    let vm = served(&rig);
    rig.start_connected(&vm);
    let before = rig.remains(&vm);
    for restarted in [false, true] {
        let last = server_of_second(&rig, &vm);
        rig.machine.end_process(last);
        rig.until("its end is known", || state(&rig, &vm) == (true, false));
        let refused = rig.run(&vm, Operation::Plug(second()));
        assert_eq!(refused, Ok(()), "it is plugged");
        rig.run(&vm, Operation::Unplug(second(), Unplugging::Clean)).unwrap();
        rig.run(&vm, Operation::Plug(second())).unwrap();
        assert_eq!(state(&rig, &vm), (true, true));
        assert_eq!(rig.machine.network_disks(), before.network_disks, "{restarted}");
    }
    // It ends while there is no daemon.
    let last = server_of_second(&rig, &vm);
    let rig = rig.restart_with(|machine| machine.end_process(last));
    rig.settle(&vm);
    assert_eq!(state(&rig, &vm), (true, false));
    rig.run(&vm, Operation::Unplug(second(), Unplugging::Clean)).unwrap();
    rig.run(&vm, Operation::Plug(second())).unwrap();
    assert_eq!(state(&rig, &vm), (true, true));
    // And one that does not is followed by the next daemon.
    let rig = rig.restart();
    rig.settle(&vm);
    let last = server_of_second(&rig, &vm);
    rig.machine.end_process(last);
    rig.until("its end is known", || state(&rig, &vm) == (true, false));
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.machine.network_disks().is_empty() && rig.machine.processes().is_empty());
}

/// Every call of a start and of a plug fails once.
#[test]
fn no_failing_call_leaves_a_server() {
    let rig = Rig::new(&quick());
    let vm = served(&rig);
    let calls = rig.calls_of(&vm, Operation::Start);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    rig.each_call_fails(&vm, &calls, &Operation::Start, &Operation::Shutdown(None));
    rig.start_connected(&vm);
    let unplug = Operation::Unplug(second(), Unplugging::Clean);
    rig.run(&vm, unplug.clone()).unwrap();
    let before = rig.remains(&vm);
    let calls = rig.calls_of(&vm, Operation::Plug(second()));
    for step in ["spawn", "export", "connect"] {
        assert!(calls.contains(&format!("host.serve_disk.{step}")), "{calls:?}");
    }
    rig.run(&vm, unplug.clone()).unwrap();
    rig.until_remains(&vm, &before, "a plug and an unplug");
    rig.each_call_fails(&vm, &calls, &Operation::Plug(second()), &unplug);
}

/// The daemon is killed at each call of a plug and of an unplug: the next one ends what no device has.
#[test]
fn a_killed_daemon_leaves_no_server() {
    let mut rig = Rig::new(&quick());
    let vm = served(&rig);
    rig.start_connected(&vm);
    rig.run(&vm, Operation::Unplug(second(), Unplugging::Clean)).unwrap();
    rig = rig.restart();
    rig.settle(&vm);
    let before = rig.remains(&vm);
    for (prepare, operation) in [
        (None, Operation::Plug(second())),
        (Some(Operation::Plug(second())), Operation::Unplug(second(), Unplugging::Clean)),
    ] {
        let run_prepared = |rig: &Rig| prepare.iter().for_each(|first| rig.run(&vm, first.clone()).unwrap());
        run_prepared(&rig);
        let calls = rig.calls_of(&vm, operation.clone());
        let _ = rig.run(&vm, Operation::Unplug(second(), Unplugging::Forced));
        for (nth, site) in (0..).zip(&calls) {
            run_prepared(&rig);
            rig.machine.faults.arm(Fault::From { nth });
            let outcome = rig.run(&vm, operation.clone());
            rig = rig.restart();
            rig.settle(&vm);
            if crate::device::is_plugged(&rig.core, &vm, &second()).unwrap() {
                assert_eq!(state(&rig, &vm), (true, true), "{nth} {site}");
                rig.run(&vm, Operation::Unplug(second(), Unplugging::Forced)).unwrap();
            }
            rig.until_remains(&vm, &before, &format!("a kill at {nth} {site} of {operation}: {outcome:?}"));
        }
    }
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.machine.network_disks().is_empty() && rig.machine.processes().is_empty());
}
