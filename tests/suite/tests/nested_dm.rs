//! A device model's jail on real Xen: what the kernel says of it, and what a hostile program in QEMU's place achieves.

use suite::{Dom0, Guest};
use xenopsd::api::{Int, VbdMode};

const DISK: &str = "/root/sector.img";

/// The first of the domains' users, as the daemon's settings have it by default.
const UID_BASE: u32 = 0x2000_0000;

fn model_of(dom0: &Dom0, domid: Int) -> u32 {
    let pid = dom0.read(&format!("/local/domain/{domid}/image/device-model-pid")).expect("a device model");
    pid.parse().expect("a number")
}

fn uid_of(domid: Int) -> u32 {
    UID_BASE + u32::try_from(domid).expect("a small number")
}

#[test]
fn a_running_device_model_has_what_it_needs_and_nothing_else() {
    let dom0 = Dom0::start();
    dom0.make_sector_disk(DISK, "from the disk");
    let guest = Guest::hvm("jailed").disk("xvda", DISK, VbdMode::ReadWrite).vif("xenbr0");
    dom0.add(&guest);
    dom0.start_paused(&guest).expect("starts");
    let domid = dom0.domid(&guest);
    let view = dom0.look_at(model_of(&dom0, domid));
    println!("{view:#?}");
    view.must_be_jailed(uid_of(domid));
}
