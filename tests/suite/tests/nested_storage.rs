//! Disks whose files are in trouble, on real Xen.

use suite::{Dom0, Guest};
use xenopsd::api::{DeviceId, Error, VbdMode, VbdPlug, VbdUnplug};

fn dbg() -> String {
    "test".to_owned()
}

fn plug(dom0: &Dom0, id: &DeviceId) -> Result<(), Error> {
    dom0.task(&VbdPlug { debug_info: dbg(), id: id.clone() })
}

fn unplug(dom0: &Dom0, id: &DeviceId) -> Result<(), Error> {
    dom0.task(&VbdUnplug { debug_info: dbg(), id: id.clone(), force: false })
}

/// Waits in the guest until its second disk has so many sectors of 512 bytes.
fn has_sectors(dom0: &Dom0, guest: &Guest, sectors: u64) {
    let wait = format!(
        "n=0; while [ \"$(cat /sys/block/xvdb/size 2>/dev/null)\" != {sectors} ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done; cat /sys/block/xvdb/size"
    );
    assert_eq!(dom0.type_into(guest, &wait), sectors.to_string());
}

/// What happens to a disk's file is its guest's trouble and nobody else's.
#[test]
fn a_disk_whose_file_is_deleted_or_full_is_unplugged_like_any_other() {
    let dom0 = Dom0::start();
    dom0.sh("mkdir /root/small; mount -t tmpfs -o size=4M tmpfs /root/small
        truncate -s 8M /root/small/full.img /root/gone.img");
    let guest = Guest::new("trouble").disk("xvdb", "/root/small/full.img", VbdMode::ReadWrite).disk(
        "xvdc",
        "/root/gone.img",
        VbdMode::ReadWrite,
    );
    dom0.boot(&guest);
    let wrote = dom0.type_into(
        &guest,
        "dd if=/dev/zero bs=65536 count=128 2>/dev/null | tr '\\0' x | dd of=/dev/xvdb bs=65536 conv=fsync 2>/dev/null && echo all of it",
    );
    assert_eq!(wrote, "", "there is no room for it");
    dom0.sh("rm /root/gone.img");
    let wrote = dom0.type_into(&guest, "printf x | dd of=/dev/xvdc conv=fsync 2>/dev/null && echo written");
    assert_eq!(wrote, "written", "the file is there for as long as somebody has it");
    for vbd in &guest.vbds {
        unplug(&dom0, &vbd.id).unwrap_or_else(|error| panic!("{}: {error}", vbd.id));
    }
    assert_eq!(dom0.sh("losetup -ln").trim(), "");
    assert_eq!(plug(&dom0, &guest.vbds[1].id), Err(Error::does_not_exist("disk", "/root/gone.img")));
    // Once there is room again, so is the disk.
    dom0.sh("mount -o remount,size=16M /root/small");
    plug(&dom0, &guest.vbds[0].id).expect("is plugged");
    has_sectors(&dom0, &guest, 16384);
    // No loop device is to be had: an error, and nothing taken.
    unplug(&dom0, &guest.vbds[0].id).expect("goes");
    let before = dom0.snapshot();
    dom0.sh("mv /dev/loop-control /dev/loop-control.away");
    let refused = plug(&dom0, &guest.vbds[0].id);
    assert!(refused.as_ref().is_err_and(|e| e.to_string().contains("no loop devices")), "{refused:?}");
    dom0.sh("mv /dev/loop-control.away /dev/loop-control");
    before.must_be_left(&dom0);
    plug(&dom0, &guest.vbds[0].id).expect("is plugged");
    dom0.shutdown(&guest, 60.0).expect("goes down");
}
