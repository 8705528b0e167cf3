//! Where disks are, how large they are, and what is in emulated drives.

use super::*;
use crate::api::{DeviceId, HvmInfo, Qos, QosClass, QosScheduler, Vbd, VbdMode, VbdType};
use crate::core::Wish;
use crate::device::vbd;
use crate::edge::IoPriority;
use crate::sim::When;
use xenstore::Operations;

fn node(rig: &Rig, vm: &str, vdev: u32, name: &str) -> Option<String> {
    let path = format!("/local/domain/0/backend/vbd/{}/{vdev}/{name}", rig.domid(vm).unwrap());
    rig.machine.store.client(xenstore::DomId::DOM0).read_str(&xenstore::Path::new(&path).unwrap()).unwrap()
}

#[test]
fn a_disk_without_a_place_gets_the_first_that_is_free() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let place = |name: &str| {
        let vbd = Vbd { id: DeviceId::new(&*vm, name), ..Vbd::default() };
        let position = vbd::chosen_position(&rig.core, &vbd).unwrap().unwrap();
        rig.core.records.put(&Vbd { position: Some(position), ..vbd }).unwrap();
        position.to_string()
    };
    // The VM has xvda and xvdb.
    assert_eq!(place("third"), "xvdc");
    assert_eq!(place("fourth"), "xvdd");
    assert_eq!(place("third"), "xvdc", "the one it has");
    rig.core.records.remove::<Vbd>(&DeviceId::new(&*vm, "xvdb")).unwrap();
    assert_eq!(place("fifth"), "xvdb");
    let vm = rig.add(2, &[], |vm| vm.ty = BuilderInfo::Hvm(HvmInfo::default()));
    let vbd = |n: u32| Vbd { id: DeviceId::new(&*vm, n.to_string()), ..Vbd::default() };
    let mut placed = Vec::new();
    for n in 0..3 {
        let position = vbd::chosen_position(&rig.core, &vbd(n)).unwrap();
        rig.core.records.put(&Vbd { position, ..vbd(n) }).unwrap();
        placed.push(position.unwrap().to_string());
    }
    assert_eq!(placed, ["hdc", "hdd", "xvde"]);
    let unknown = Vbd { id: DeviceId::new("33333333-0000-4000-8000-000000000000", "x"), ..Vbd::default() };
    assert_eq!(vbd::chosen_position(&rig.core, &unknown), Ok(None));
}

#[test]
fn a_disk_that_has_grown_is_told_to_its_guest() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let refresh = |name: &str| rig.run(&vm, Operation::RefreshDisk(name.to_owned()));
    assert_eq!(refresh("xvda"), Err(Error::DeviceNotConnected));
    rig.start_connected(&vm);
    assert_eq!(node(&rig, &vm, 51712, "sectors").as_deref(), Some("2097152"));
    rig.machine.resize_disks(3 << 30);
    refresh("xvda").unwrap();
    assert_eq!(node(&rig, &vm, 51712, "sectors").as_deref(), Some("6291456"));
    assert_eq!(node(&rig, &vm, 51712, "state").as_deref(), Some("4"));
    // The other one was not asked about.
    assert_eq!(node(&rig, &vm, 51728, "sectors").as_deref(), Some("2097152"));
    assert!(matches!(refresh("xvdz"), Err(Error::DeviceNotConnected | Error::DoesNotExist { .. })));
    let before = rig.remains(&vm);
    rig.machine.faults.record();
    refresh("xvda").unwrap();
    for nth in 0..u64::try_from(rig.machine.faults.recorded().len()).unwrap() {
        rig.machine.faults.arm(Fault::Nth { site: None, nth, when: When::Before });
        let outcome = refresh("xvda");
        rig.machine.faults.disarm();
        rig.until_remains(&vm, &before, &format!("call {nth} of a refresh: {outcome:?}"));
    }
}

/// A guest that has not connected reads the size when it does.
#[test]
fn a_guest_that_has_not_connected_is_not_told() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[("devices", "ignore")], |_| ());
    rig.start(&vm).unwrap();
    rig.machine.resize_disks(3 << 30);
    rig.run(&vm, Operation::RefreshDisk("xvda".to_owned())).unwrap();
    assert_eq!(node(&rig, &vm, 51712, "sectors").as_deref(), Some("2097152"));
}

#[test]
fn settings_of_a_disk_reach_its_nodes() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let mut disk: Vbd = rig.core.records.device(&DeviceId::new(&*vm, "xvda")).unwrap();
    let keys = [("sector-size", "4096"), ("discard-enable", "0"), ("mine", "x")];
    disk.extra_backend_keys = keys.map(|(k, v)| (k.to_owned(), v.to_owned())).into_iter().collect();
    disk.ty = VbdType::Floppy;
    rig.core.records.put(&disk).unwrap();
    rig.start_connected(&vm);
    let nodes =
        ["discard-enable", "mine", "device-type", "sector-size"].map(|name| node(&rig, &vm, 51712, name));
    // The last is what the simulated driver has found.
    assert_eq!(nodes.map(Option::unwrap), ["0", "x", "floppy", "512"]);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    disk.extra_backend_keys.insert("sector-size", "520".to_owned());
    rig.core.records.put(&disk).unwrap();
    let refused = rig.start(&vm).unwrap_err().to_string();
    assert!(refused.contains("512 or 4096"), "{refused}");
}

#[test]
fn the_threads_of_a_disk_get_its_priority_whenever_its_guest_connects() {
    let mut rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let mut disk: Vbd = rig.core.records.device(&DeviceId::new(&*vm, "xvda")).unwrap();
    disk.qos = Some(Qos::Ionice(QosScheduler::BestEffort(QosClass::Lowest)));
    rig.core.records.put(&disk).unwrap();
    let has = |rig: &Rig, domid: DomId| rig.machine.disk_priority(domid, "xvda");
    let low = Some(IoPriority { class: 2, level: 7 });
    rig.run(&vm, Operation::Start).unwrap();
    let domid = rig.domid(&vm).unwrap();
    assert_eq!(has(&rig, domid), None, "nobody serves it before the guest runs");
    rig.run(&vm, Operation::Unpause).unwrap();
    rig.until("its threads have the priority", || has(&rig, domid) == low);
    assert_eq!(rig.machine.disk_priority(domid, "xvdb"), None);
    // The next daemon knows, and the next domain has it, too.
    rig = rig.restart();
    rig.settle(&vm);
    rig.run(&vm, Operation::Reboot(None)).unwrap();
    let domid = rig.domid(&vm).unwrap();
    rig.until("its threads have the priority", || has(&rig, domid) == low);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.core.runtimes.with(&vm, |r| r.followed_disks.is_empty()));
    disk.qos = Some(Qos::Ionice(QosScheduler::RealTime(QosClass::Other(8))));
    rig.core.records.put(&disk).unwrap();
    let refused = rig.start(&vm).unwrap_err().to_string();
    assert!(refused.contains("0 to 7"), "{refused}");
}

const DRIVE: &str = "hdc";

/// An HVM guest with a CD-ROM drive that has something in it or not.
fn with_drive(rig: &Rig, word: &str, medium: Option<&str>) -> String {
    let vm = rig.add(1, &[("device-model", word)], |vm| vm.ty = BuilderInfo::Hvm(HvmInfo::default()));
    let drive = Vbd {
        id: DeviceId::new(&*vm, DRIVE),
        position: Some(DRIVE.parse().unwrap()),
        mode: VbdMode::ReadOnly,
        backend: medium.map(|name| Disk::Local(name.to_owned())),
        ty: VbdType::Cdrom,
        ..Vbd::default()
    };
    rig.core.records.put(&drive).unwrap();
    rig.start(&vm).unwrap();
    vm
}

fn insert() -> Operation {
    Operation::Change(Wish::Insert(DRIVE.to_owned(), Disk::Local("/srv/two.iso".to_owned())))
}

fn eject() -> Operation {
    Operation::Change(Wish::Eject(DRIVE.to_owned()))
}

fn in_drive(rig: &Rig, vm: &str) -> (Option<Disk>, bool, usize) {
    let drive: Vbd = rig.core.records.device(&DeviceId::new(vm, DRIVE)).unwrap();
    let (media, sets) = rig.machine.device_model_media(rig.domid(vm).unwrap()).unwrap();
    (drive.backend, media.iter().any(|id| id == "ide-5632"), sets)
}

#[test]
fn media_of_emulated_drives_come_and_go() {
    let rig = Rig::new(&quick());
    let vm = with_drive(&rig, "work", Some("/srv/one.iso"));
    let one = Disk::Local("/srv/one.iso".to_owned());
    let (medium, inserted, others) = in_drive(&rig, &vm);
    assert_eq!((medium, inserted), (Some(one), true));
    assert_eq!(rig.run(&vm, insert()), Err(Error::MediaPresent));
    rig.run(&vm, eject()).unwrap();
    assert_eq!(in_drive(&rig, &vm), (None, false, others - 1));
    assert_eq!(rig.run(&vm, eject()), Err(Error::MediaNotPresent));
    let before = rig.remains(&vm);
    for _ in 0..3 {
        rig.run(&vm, insert()).unwrap();
        assert_eq!(in_drive(&rig, &vm), (Some(Disk::Local("/srv/two.iso".to_owned())), true, others));
        rig.run(&vm, eject()).unwrap();
        assert_eq!(in_drive(&rig, &vm), (None, false, others - 1));
        rig.until_remains(&vm, &before, "a medium came and went");
    }
}

#[test]
fn a_guest_that_keeps_its_drive_closed_keeps_the_medium() {
    let rig = Rig::new(&quick());
    let vm = with_drive(&rig, "lock", Some("/srv/one.iso"));
    let before = in_drive(&rig, &vm);
    let refused = rig.run(&vm, eject());
    let Err(Error::DeviceDetachRejected { message, .. }) = refused else { panic!("{refused:?}") };
    assert!(message.contains("locked"), "{message}");
    assert_eq!(in_drive(&rig, &vm), before);
}

/// Every call of an insert fails once, and the daemon is killed at each: the drive is empty, or as it was to be.
#[test]
fn an_insert_that_fails_leaves_an_emulated_drive_empty() {
    let mut rig = Rig::new(&quick());
    let vm = with_drive(&rig, "work", None);
    rig.run(&vm, insert()).unwrap();
    rig.run(&vm, eject()).unwrap();
    let before = (rig.remains(&vm), in_drive(&rig, &vm));
    rig.machine.faults.record();
    rig.run(&vm, insert()).unwrap();
    let calls = rig.machine.faults.recorded();
    rig.run(&vm, eject()).unwrap();
    for (nth, site) in (0..).zip(&calls) {
        rig.machine.faults.arm(Fault::Nth { site: None, nth, when: When::Before });
        let outcome = rig.run(&vm, insert());
        rig.machine.faults.disarm();
        if outcome.is_ok() {
            rig.run(&vm, eject()).unwrap();
        }
        assert_eq!(in_drive(&rig, &vm), before.1, "call {nth} {site}: {outcome:?}");
        rig.until_remains(&vm, &before.0, &format!("call {nth} {site} of an insert: {outcome:?}"));
    }
    for (nth, site) in (0..).zip(&calls) {
        rig.machine.faults.arm(Fault::From { nth });
        let outcome = rig.run(&vm, insert());
        rig = rig.restart();
        rig.settle(&vm);
        // The record may have been stored by then: it is put right by the owner's eject.
        if rig.run(&vm, eject()) != Err(Error::MediaNotPresent) {
            rig.run(&vm, insert()).unwrap();
            rig.run(&vm, eject()).unwrap();
        }
        assert_eq!(in_drive(&rig, &vm), before.1, "a kill at {nth} {site}: {outcome:?}");
    }
}
