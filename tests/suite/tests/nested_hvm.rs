//! HVM guests on real Xen: firmware, an emulated machine by a device model in a jail, and its screen.

use suite::{Dom0, Guest, SECTOR, UP, WRITTEN};
use xenopsd::api::{Action, PowerState, VbdMode};

const DISK: &str = "/root/sector.img";

/// A guest that starts a boot sector from a disk of its own.
fn sector_guest(dom0: &Dom0, name: &str) -> Guest {
    dom0.make_sector_disk(DISK, "from the disk");
    Guest::hvm(name).disk("xvda", DISK, VbdMode::ReadWrite)
}

fn start(dom0: &Dom0, guest: &Guest) {
    dom0.start_paused(guest).expect("starts");
    dom0.listen_to_serial(guest);
    dom0.unpause(guest).expect("runs");
    dom0.serial_said(guest, UP);
}

#[test]
fn an_hvm_guest_starts_from_its_disk_reads_and_writes_it_reboots_and_switches_off() {
    let dom0 = Dom0::start();
    let guest = sector_guest(&dom0, "hvm").with(|vm| vm.on_reboot = vec![Action::Start]);
    dom0.add(&guest);
    let before = dom0.snapshot();
    start(&dom0, &guest);
    let first = dom0.domid(&guest);
    dom0.type_on_serial(&guest, "d");
    dom0.serial_said(&guest, "from the disk");
    dom0.type_on_serial(&guest, "w");
    dom0.serial_said(&guest, WRITTEN);

    // By itself: a domain of its own again, whose disk is as the first one left it.
    dom0.type_on_serial(&guest, "r");
    dom0.wait_until(&guest, "in another domain", |state| {
        state.power_state == PowerState::Running && state.domids.last() != Some(&first)
    });
    dom0.listen_to_serial(&guest);
    dom0.pause(&guest).expect("pauses");
    dom0.unpause(&guest).expect("goes on");
    dom0.type_on_serial(&guest, "o");
    dom0.wait_for_power(&guest, PowerState::Halted);
    before.must_be_left(&dom0);
    let copy = format!("cmp -n {SECTOR} -i 0:{SECTOR} {DISK} {DISK} && echo a copy of the first");
    assert_eq!(dom0.run(&copy).text().trim(), "a copy of the first");
}
