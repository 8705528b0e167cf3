//! Guests that do in their part of the store what no driver does: the device goes when it is to go, nothing of it is left,
//! and no other VM's is touched. The tests play the guest, with its rights.

use super::*;
use crate::ops::plan::{Device, Unplugging};
use xenstore::layout::XenbusState::Connected;
use xenstore::{Client, Operations, Path};

fn disk_device() -> Device {
    Device::Vbd("xvda".to_owned())
}

fn path(text: &str) -> Path {
    Path::new(text).unwrap()
}

/// The guest's own connection.
fn guest(rig: &Rig, vm: &str) -> Client {
    rig.machine.store.client(xenstore::DomId(rig.domid(vm).unwrap().get()))
}

const FRONTEND: &str = "device/vbd/51712";

/// What a guest does with its disk.
type Deed = fn(&mut Client, &str);

fn write(store: &mut Client, node: &str, value: &str) {
    store.write(&path(&format!("{FRONTEND}/{node}")), value).unwrap();
}

const DEEDS: [(&str, Deed); 7] = [
    ("closes by itself", |store, _| write(store, "state", "6")),
    ("jumps states", |store, _| {
        for state in ["3", "1", "8", "5", "2", "4", "0", "3"] {
            write(store, "state", state);
        }
    }),
    ("says nonsense", |store, _| write(store, "state", "\u{fffd}44")),
    ("points elsewhere", |store, other| {
        let backend = path(&format!("{FRONTEND}/backend"));
        assert!(store.write(&backend, other).is_err(), "which backend it has is dom0's to say");
        assert!(store.rm(&backend).is_err(), "it could be made anew");
        write(store, "backend-id", "77");
    }),
    ("removes its device", |store, _| store.rm(&path(FRONTEND)).unwrap()),
    ("puts another in its place", |store, other| {
        store.rm(&path(FRONTEND)).unwrap();
        let refused = store.write(&path(&format!("{FRONTEND}/backend")), other);
        assert!(refused.is_err(), "the class's directory is dom0's");
    }),
    ("keeps its nodes from dom0", |store, _| {
        let domid = store.read_str(&path("domid")).unwrap().unwrap().parse().unwrap();
        let own = xenstore::Perms::owned_by(xenstore::DomId(domid))
            .with(xenstore::DomId::DOM0, xenstore::Access::None);
        store.set_perms(&path(&format!("{FRONTEND}/state")), &own).unwrap();
    }),
];

#[test]
fn whatever_a_guest_does_with_a_device_it_goes_and_no_other_vms_does() {
    // It does nothing by itself any more once it is connected but what the test does.
    let rig = Rig::with_patience(&quick(), Patience { hotplug: Duration::from_secs(2), ..long() });
    let other = rig.add(2, &[], |_| ());
    rig.start_connected(&other);
    let others = format!("/local/domain/0/backend/vbd/{}/51712", rig.domid(&other).unwrap());
    for (what, deed) in DEEDS {
        for how in [Unplugging::Clean, Unplugging::Forced] {
            let vm = rig.add(1, &[("devices", "keep")], |_| ());
            let halted = rig.remains(&vm);
            rig.start_connected(&vm);
            deed(&mut guest(&rig, &vm), &others);
            let outcome = rig.run(&vm, Operation::Unplug(disk_device(), how));
            // A guest may keep what it is asked for, and then it is said that it was the guest.
            let rejected =
                matches!(&outcome, Err(Error::DeviceDetachRejected { .. })) && how == Unplugging::Clean;
            assert!(outcome.is_ok() || rejected, "{what}, {how:?}: {outcome:?}");
            if rejected {
                rig.run(&vm, Operation::Unplug(disk_device(), Unplugging::Forced)).unwrap();
            }
            assert_eq!(rig.disk(&vm).backend, None, "{what}");
            rig.run(&vm, Operation::Plug(disk_device())).unwrap();
            rig.run(&vm, Operation::Shutdown(None)).unwrap();
            rig.until_remains(&vm, &halted, &format!("a guest that {what}, {how:?}"));
            let disk = rig.disk(&other);
            assert_eq!((disk.backend, disk.frontend), (Some(Connected), Some(Connected)), "{what}");
        }
    }
}

/// What is there after a VM was up once: the directories of all domains stay.
fn once(rig: &Rig, vm: &str) -> Remains {
    rig.start_connected(vm);
    rig.run(vm, Operation::Shutdown(None)).unwrap();
    rig.remains(vm)
}

#[test]
fn a_whole_vm_goes_with_devices_that_are_not_as_they_were() {
    for (what, deed) in DEEDS {
        let rig = Rig::new(&quick());
        let vm = rig.add(1, &[("shutdown", "ignore")], |_| ());
        let before = once(&rig, &vm);
        rig.start_connected(&vm);
        deed(&mut guest(&rig, &vm), "/local/domain/0");
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        rig.until_remains(&vm, &before, what);
    }
}

/// A daemon that is started anew finds such a guest and goes on with it.
#[test]
fn the_next_daemon_copes_with_them_as_well() {
    for (what, deed) in DEEDS {
        let mut rig = Rig::new(&quick());
        let vm = rig.add(1, &[("devices", "keep")], |_| ());
        let before = once(&rig, &vm);
        rig.start_connected(&vm);
        deed(&mut guest(&rig, &vm), "/local/domain/0");
        rig = rig.restart();
        rig.settle(&vm);
        assert_eq!(rig.state(&vm), PowerState::Running, "{what}");
        rig.run(&vm, Operation::Unplug(disk_device(), Unplugging::Forced)).unwrap();
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        rig.until_remains(&vm, &before, what);
    }
}

/// Not the backend, and not dom0: a program may tell.
#[test]
fn a_guest_that_keeps_a_device_is_named_as_the_one() {
    let rig = Rig::with_patience(&quick(), Patience { hotplug: Duration::from_millis(500), ..long() });
    let vm = rig.add(1, &[("devices", "keep")], |_| ());
    rig.start_connected(&vm);
    let write = |text: &[u8]| {
        let node = path(&format!("error/{FRONTEND}/error"));
        guest(&rig, &vm).write(&node, text).unwrap();
    };
    // Said before it was asked, it is no answer.
    write(b"old");
    let kept = rig.run(&vm, Operation::Unplug(disk_device(), Unplugging::Clean)).unwrap_err();
    let Error::DeviceDetachRejected { class, message, .. } = &kept else { panic!("{kept:?}") };
    assert!(class == "VBD" && message.contains("was not released in time"), "{message}");
    let (told, hears) = bounded(1);
    let closing = path(&format!("/local/domain/0/backend/vbd/{}/51712/online", rig.domid(&vm).unwrap()));
    let watch = rig.core.events.follow(&[closing], move || {
        let _ = told.try_send(());
    });
    let watch = watch.unwrap();
    hears.recv_timeout(LIMIT).unwrap();
    std::thread::scope(|scope| {
        // It is asked again, and answers with what a terminal would obey.
        scope.spawn(|| {
            hears.recv_timeout(LIMIT).unwrap();
            write(b"in use\x1b[2J\xff");
        });
        let kept = rig.run(&vm, Operation::Unplug(disk_device(), Unplugging::Clean)).unwrap_err().to_string();
        assert!(kept.contains("the guest says: in use") && !kept.contains('\u{1b}'), "{kept:?}");
    });
    drop(watch);
}
