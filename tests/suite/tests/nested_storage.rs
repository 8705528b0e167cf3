//! Disks of a storage layer, disks that grow, and other media in emulated drives, on real Xen.

use suite::{Dom0, Guest};
use xen_host::Options;
use xen_host::boot_sector::UP;
use xenopsd::api::{
    DeviceId, DeviceNumber, Disk, Error, PowerState, Qos, QosClass, QosScheduler, VbdEject, VbdInsert,
    VbdMode, VbdPlug, VbdRefresh, VbdStat, VbdUnplug, VmResume, VmSuspend,
};

/// The storage program that comes with the daemon.
const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../xenopsd/examples/storage-files");

/// Where it is in dom0, and its disks.
const PROGRAM: &str = "/usr/local/sbin/storage-files";
const DISKS: &str = "/srv/xenopsd/sr";

fn dbg() -> String {
    "test".to_owned()
}

/// A dom0 whose daemon has the sample program, with these disks.
fn with_storage(disks: &[&str]) -> Dom0 {
    let dom0 = Dom0::without_daemon(Options::default());
    dom0.host.put(SAMPLE.as_ref(), PROGRAM).unwrap_or_else(|error| panic!("{error}"));
    dom0.sh(&format!(
        "chmod 755 {PROGRAM}; mkdir -p {DISKS}; printf 'storage-program = {PROGRAM}\\n' >/etc/xenopsd.conf"
    ));
    for disk in disks {
        dom0.sh(&format!("truncate -s 8M {DISKS}/{disk}.img"));
    }
    dom0.start_daemon("");
    dom0
}

fn locks(dom0: &Dom0) -> String {
    dom0.sh(&format!("cd {DISKS}; ls *.lock 2>/dev/null || true")).trim().to_owned()
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

#[test]
fn a_storage_programs_disks_are_plugged_written_grown_and_suspended_to() {
    let dom0 = with_storage(&["hot", "image"]);
    let mut guest = Guest::new("stored").disk("xvdb", "/nowhere", VbdMode::ReadWrite);
    guest.vbds[0].backend = Some(Disk::Vdi("sr/hot".to_owned()));
    guest.vbds[0].qos = Some(Qos::Ionice(QosScheduler::BestEffort(QosClass::Lowest)));
    dom0.boot(&guest);
    has_sectors(&dom0, &guest, 16384);
    let priority = format!(
        "for n in $(seq 100); do ionice -p $(pgrep -f '^.?{}.xvdb-0') | tee /tmp/priority; grep -q 'prio 7' /tmp/priority && exit 0; sleep 0.1; done; exit 1",
        dom0.domid(&guest)
    );
    assert!(dom0.sh(&priority).contains("best-effort: prio 7"));
    let disk = guest.vbds[0].id.clone();
    assert_eq!(locks(&dom0), "hot.img.lock");
    unplug(&dom0, &disk).expect("a disk nobody uses");
    assert_eq!(locks(&dom0), "");
    let before = dom0.snapshot();

    plug(&dom0, &disk).expect("is plugged");
    has_sectors(&dom0, &guest, 16384);
    let made = dom0.type_into(&guest, "/bin/busybox mke2fs -F /dev/xvdb >/dev/null 2>&1 && echo made; sync");
    assert_eq!(made, "made");
    let sum = dom0.type_into(&guest, "md5sum </dev/xvdb");

    // The daemon is killed; the next one knows what the disk is.
    dom0.stop_daemon("KILL");
    dom0.start_daemon("");
    assert_eq!(locks(&dom0), "hot.img.lock");
    assert!(dom0.call(&VbdStat { debug_info: dbg(), id: disk.clone() }).expect("is known").1.plugged);
    unplug(&dom0, &disk).expect("goes");
    assert_eq!(locks(&dom0), "");
    let written = dom0
        .sh(&format!("md5sum <{DISKS}/hot.img; e2fsck -fn {DISKS}/hot.img >/dev/null 2>&1 && echo sound"));
    assert_eq!(written.lines().collect::<Vec<_>>(), [&*sum, "sound"]);

    // It grows while the guest has it, and what is written beyond its former end is there.
    plug(&dom0, &disk).expect("is plugged");
    has_sectors(&dom0, &guest, 16384);
    dom0.sh(&format!("truncate -s 16M {DISKS}/hot.img"));
    dom0.task(&VbdRefresh { debug_info: dbg(), id: disk.clone() }).expect("is looked at");
    has_sectors(&dom0, &guest, 32768);
    dom0.type_into(&guest, "printf beyond | dd of=/dev/xvdb bs=512 seek=32000 conv=fsync 2>/dev/null");
    unplug(&dom0, &disk).expect("goes");
    assert_eq!(
        dom0.sh(&format!("dd if={DISKS}/hot.img bs=512 skip=32000 count=1 2>/dev/null | head -c 6")),
        "beyond"
    );

    // A refusal is the program's own, and leaves nothing.
    dom0.sh(&format!("printf somebody >{DISKS}/hot.img.lock"));
    let refused = plug(&dom0, &disk);
    let Err(Error::StorageBackendError { code, params }) = refused else { panic!("{refused:?}") };
    assert_eq!((&*code, &*params[1]), ("VDI_IN_USE", "somebody"));
    dom0.sh(&format!("rm {DISKS}/hot.img.lock"));

    plug(&dom0, &disk).expect("is plugged");
    let image = Disk::Vdi("sr/image".to_owned());
    let id = guest.id().to_owned();
    dom0.task(&VmSuspend { debug_info: dbg(), id: id.clone(), suspend_vdi: image.clone() })
        .expect("suspends");
    assert_eq!((dom0.state(&guest).power_state, &*locks(&dom0)), (PowerState::Suspended, ""));
    dom0.task(&VmResume { debug_info: dbg(), id, suspend_vdi: image }).expect("resumes");
    dom0.unpause(&guest).expect("runs");
    assert_eq!(locks(&dom0), "hot.img.lock");
    has_sectors(&dom0, &guest, 32768);
    unplug(&dom0, &disk).expect("goes");
    drop(before);
    dom0.shutdown(&guest, 60.0).expect("goes down");
    assert_eq!(dom0.sh("losetup -ln").trim(), "");
}

/// The last disk of those that Linux numbers, and the last of the interface's, which Linux does not take.
const LAST_OF_LINUX: &str = "d4095";
const LAST: &str = "d1048575";

/// Disks with settings of their own: large blocks, no discarding, read-only, at the ends of the numbers.
fn with_settings(guest: Guest) -> Guest {
    guest
        .disk("xvdd", "/root/large.img", VbdMode::ReadWrite)
        .keys(&[("sector-size", "4096"), ("mine", "kept")])
        .disk("xvde", "/root/read.img", VbdMode::ReadOnly)
        .keys(&[("discard-enable", "0")])
        .disk(LAST_OF_LINUX, "/root/last.img", VbdMode::ReadWrite)
        .disk(LAST, "/root/none.img", VbdMode::ReadWrite)
}

fn settings_are_what_the_guest_sees(dom0: &Dom0, guest: &Guest) {
    let last: DeviceNumber = LAST_OF_LINUX.parse().expect("a number");
    let last = last.linux_name().expect("a name");
    let there = format!(
        "n=0; while [ ! -e /sys/block/{last}/queue ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done"
    );
    dom0.type_into(guest, &there);
    let show = |disk: &str| {
        let files = ["ro", "queue/logical_block_size", "queue/discard_max_bytes"];
        let files = files.map(|file| format!("/sys/block/{disk}/{file}")).join(" ");
        let shown = dom0.type_into(guest, &format!("cat {files} | tr '\\n' ' '"));
        let numbers: Vec<u64> =
            shown.split_whitespace().map(|word| word.parse().expect("a number")).collect();
        (numbers[0], numbers[1], numbers[2] > 0)
    };
    assert_eq!(["xvdd", "xvde", &last].map(show), [(0, 4096, true), (1, 512, false), (0, 512, true)]);
    let backend = format!("/local/domain/0/backend/vbd/{}", dom0.domid(guest));
    let large = guest.vbds[2].position.expect("a place").to_xenstore().expect("a number");
    assert_eq!(dom0.read(&format!("{backend}/{large}/mine")).as_deref(), Some("kept"));
    assert_eq!(
        dom0.read(&format!("{backend}/{}/sector-size", (1u32 << 28) + (1_048_575 << 8))).as_deref(),
        Some("512")
    );

    // Nobody in dom0 has the read-only one open to write, and the guest cannot.
    assert_eq!(dom0.sh("losetup -nO RO -j /root/read.img").trim(), "1");
    let touched = dom0.sh("stat -c %y%z /root/read.img; md5sum /root/read.img");
    let wrote = dom0
        .type_into(guest, "printf x | dd of=/dev/xvde bs=512 conv=sync,fsync 2>/dev/null && echo written");
    assert_eq!(wrote, "");
    assert_eq!(dom0.sh("stat -c %y%z /root/read.img; md5sum /root/read.img"), touched);

    // What is discarded is given back.
    let blocks = || dom0.sh("stat -c %b /root/large.img").trim().parse::<u64>().expect("a number");
    dom0.type_into(guest, "head -c 8388608 /dev/urandom | dd of=/dev/xvdd bs=65536 conv=fsync 2>/dev/null");
    let full = blocks();
    assert_eq!(dom0.type_into(guest, "/bin/busybox blkdiscard /dev/xvdd && echo discarded"), "discarded");
    assert_eq!((full, blocks()), (16384, 0));
}

/// What happens to a disk's file is its guest's trouble and nobody else's.
#[test]
fn a_disk_is_what_its_record_says_and_goes_when_its_file_is_deleted_or_full() {
    let dom0 = Dom0::start();
    dom0.sh("mkdir /root/small; mount -t tmpfs -o size=4M tmpfs /root/small
        truncate -s 8M /root/small/full.img /root/{gone,large,read,last,none}.img");
    let guest =
        with_settings(Guest::new("trouble").disk("xvdb", "/root/small/full.img", VbdMode::ReadWrite).disk(
            "xvdc",
            "/root/gone.img",
            VbdMode::ReadWrite,
        ));
    dom0.boot(&guest);
    settings_are_what_the_guest_sees(&dom0, &guest);
    // Linux' driver has given the last one up and does not answer for it any more.
    let last = VbdUnplug { debug_info: dbg(), id: guest.vbds[5].id.clone(), force: true };
    dom0.task(&last).expect("goes by force");
    let wrote = dom0.type_into(
        &guest,
        "dd if=/dev/zero bs=65536 count=128 2>/dev/null | tr '\\0' x | dd of=/dev/xvdb bs=65536 conv=fsync 2>/dev/null && echo all of it",
    );
    assert_eq!(wrote, "", "there is no room for it");
    dom0.sh("rm /root/gone.img");
    let wrote = dom0.type_into(&guest, "printf x | dd of=/dev/xvdc conv=fsync 2>/dev/null && echo written");
    assert_eq!(wrote, "written", "the file is there for as long as somebody has it");
    for vbd in &guest.vbds[..5] {
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

/// What the firmware says of the drive: it reads the floppy on the CD from it each time. Of another medium than it has seen
/// it says that there is an error: the drive reports the change, and nobody but a driver asks what it is.
fn reads(dom0: &Dom0, guest: &Guest, text: &str) {
    dom0.type_on_serial(guest, "d");
    let said = dom0.serial_line(guest);
    assert!(said.contains(text), "{said:?} and not {text:?}");
}

/// Which of the loop devices' files the device model has open.
fn has_open(dom0: &Dom0, guest: &Guest) -> String {
    let pid = format!("$(xenstore-read /local/domain/{}/image/device-model-pid)", dom0.domid(guest));
    let open = "readlink /proc/PID/fd/* | grep '^/dev/loop' | sort -u | while read -r d; do losetup -nO BACK-FILE $d; done";
    dom0.sh(&open.replace("PID", &pid)).trim().to_owned()
}

#[test]
fn the_cd_of_a_running_hvm_guest_is_changed_in_its_device_model() {
    let dom0 = Dom0::on_one_processor();
    for name in ["one", "two"] {
        dom0.host
            .put_floppy_cd(&format!("/root/{name}.iso"), &format!("medium {name}"))
            .unwrap_or_else(|error| panic!("{error}"));
    }
    let guest =
        Guest::hvm("changer").machine(|hvm| hvm.boot_order = "d".to_owned()).cd("hdc", "/root/one.iso");
    dom0.add(&guest);
    let before = dom0.snapshot();
    dom0.start_paused(&guest).expect("starts");
    dom0.listen_to_serial(&guest);
    dom0.unpause(&guest).expect("runs");
    dom0.serial_said(&guest, UP);
    reads(&dom0, &guest, "medium one");
    let id = guest.vbds[0].id.clone();
    let insert = |name: &str| {
        let disk = Disk::Local(format!("/root/{name}.iso"));
        dom0.task(&VbdInsert { debug_info: dbg(), id: id.clone(), disk })
    };
    let eject = || dom0.task(&VbdEject { debug_info: dbg(), id: id.clone() });
    assert_eq!(insert("two"), Err(Error::MediaPresent));
    for name in ["two", "one", "two"] {
        eject().expect("comes out");
        assert_eq!(dom0.sh("losetup -ln").trim(), "", "nobody has it any more");
        assert_eq!(has_open(&dom0, &guest), "");
        assert_eq!(eject(), Err(Error::MediaNotPresent));
        insert(name).expect("goes in");
        assert_eq!(has_open(&dom0, &guest), format!("/root/{name}.iso"));
        reads(&dom0, &guest, "disk error");
    }
    // Nothing can be written to it from the device model either.
    assert_eq!(dom0.sh("losetup -lnO RO | sort -u").trim(), "1");
    dom0.hard_shutdown(&guest).expect("goes down");
    before.must_be_left(&dom0);
}
