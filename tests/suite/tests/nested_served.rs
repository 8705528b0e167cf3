//! Disks in qcow2 and VHD images, served by a jailed process through the kernel's network block devices, on real Xen.

use suite::{Dom0, Guest};
use xenopsd::api::{DeviceId, Error, Qos, QosClass, QosScheduler, VbdMode, VbdPlug, VbdStat, VbdUnplug};
use xenopsd::edge::ImageFormat;

/// Sectors of the disks: 8 MiB.
const SECTORS: u64 = 16384;

/// Lists what is there of disk servers: processes, devices, sockets, control groups.
const LEFT: &str = "{ pgrep -fa '^disk-server'; cat /sys/block/nbd*/backend; ls /run/xenopsd /sys/fs/cgroup/xenopsd | grep disk; } 2>/dev/null || true";

fn dbg() -> String {
    "test".to_owned()
}

fn plug(dom0: &Dom0, id: &DeviceId) -> Result<(), Error> {
    dom0.task(&VbdPlug { debug_info: dbg(), id: id.clone() })
}

fn unplug(dom0: &Dom0, id: &DeviceId) -> Result<(), Error> {
    dom0.task(&VbdUnplug { debug_info: dbg(), id: id.clone(), force: false })
}

fn is_active(dom0: &Dom0, id: &DeviceId) -> bool {
    dom0.call(&VbdStat { debug_info: dbg(), id: id.clone() }).expect("is known").1.active
}

/// Waits in the guest until a disk is there.
fn appears(dom0: &Dom0, guest: &Guest, disk: &str) {
    let wait = format!(
        "n=0; while [ \"$(cat /sys/block/{disk}/size 2>/dev/null || echo 0)\" = 0 ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done; cat /sys/block/{disk}/size"
    );
    assert_eq!(dom0.type_into(guest, &wait), SECTORS.to_string(), "{disk}");
}

/// What Debian's own tool finds in an image, as the checksum of a raw one.
fn contents(dom0: &Dom0, format: &str, path: &str) -> String {
    let convert =
        format!("qemu-img convert -f {format} -O raw {path} /root/raw && md5sum </root/raw; rm -f /root/raw");
    dom0.sh(&convert).split_whitespace().next().unwrap_or_default().to_owned()
}

#[test]
fn disks_in_qcow2_and_vhd_are_written_outlive_the_daemon_and_lose_their_server() {
    let dom0 = Dom0::start();
    dom0.sh("qemu-img create -q -f qcow2 /root/hot.qcow2 8M
        qemu-img create -q -f vpc -o force_size=on /root/cold.vhd 8M
        qemu-img create -q -f qcow2 -F raw -b /etc/passwd /root/based.qcow2 8M");
    let mut guest = Guest::new("served")
        .disk("xvdb", "/root/hot.qcow2", VbdMode::ReadWrite)
        .image(ImageFormat::Qcow2, &[("sector-size", "4096")])
        .disk("xvdc", "/root/cold.vhd", VbdMode::ReadWrite)
        .image(ImageFormat::Vhd, &[])
        .disk("xvdd", "/root/based.qcow2", VbdMode::ReadOnly)
        .image(ImageFormat::Qcow2, &[]);
    guest.vbds[0].qos = Some(Qos::Ionice(QosScheduler::BestEffort(QosClass::Lowest)));
    let guest = guest;
    let (disk, second, based) = (&guest.vbds[0].id, &guest.vbds[1].id, &guest.vbds[2].id);
    // A disk that is based on a file of dom0's is refused by name, and with it the start.
    dom0.add(&guest);
    let refused = dom0.start_paused(&guest).expect_err("a file of dom0's is named in it").to_string();
    assert!(refused.contains("/root/based.qcow2") && refused.contains("based on another"), "{refused}");
    assert_eq!(dom0.sh(LEFT), "");
    dom0.call(&xenopsd::api::VbdRemove { debug_info: dbg(), id: based.clone() }).expect("is forgotten");

    dom0.start_paused(&guest).expect("starts");
    dom0.unpause(&guest).expect("runs");
    dom0.said(&guest, "GUEST: ready");
    appears(&dom0, &guest, "xvdb");
    appears(&dom0, &guest, "xvdc");
    assert_eq!(
        dom0.type_into(&guest, "cat /sys/block/xvd?/queue/logical_block_size | tr '\\n' ' '").trim(),
        "4096 512"
    );
    let look = "for pid in $(pgrep -f '^disk-server'); do awk '/^Uid|^CapEff|^NoNewPrivs|^Seccomp:/ {printf \"%s \", $2}' /proc/$pid/status; ls -A /proc/$pid/root | wc -l; done";
    let jailed = dom0.sh(look);
    // The user of its domain's disk servers, no capabilities, no privileges, a filter, an empty root.
    let wanted = format!("{} 0000000000000000 1 2 0", 0x2000_7ff0 + dom0.domid(&guest));
    assert_eq!(jailed.lines().collect::<Vec<_>>(), [&*wanted, &*wanted]);
    // All threads of the one whose disk is to have it have the I/O priority, once the guest is connected.
    let priorities = "for n in $(seq 100); do
            for pid in $(pgrep -f '^disk-server'); do ls /proc/$pid/task | xargs -n1 ionice -p | sort -u | paste -sd,; done >/root/said
            grep -qx 'best-effort: prio 7' /root/said && break
            sleep 0.1
        done
        cat /root/said";
    let said = dom0.sh(priorities);
    assert_eq!(
        said.lines().filter(|line| line.contains("prio 7")).collect::<Vec<_>>(),
        ["best-effort: prio 7"]
    );
    let made = dom0.type_into(&guest, "/bin/busybox mke2fs -F /dev/xvdb >/dev/null 2>&1 && echo made; sync");
    assert_eq!(made, "made");

    // The next daemon knows what the disks are; a guest that writes meanwhile does not notice.
    let write = "head -c 8388608 /dev/urandom | dd of=/dev/xvdc bs=65536 conv=fsync 2>/dev/null";
    assert_eq!(
        dom0.type_into(&guest, &format!("{{ {write}; md5sum </dev/xvdc >/tmp/sum; }} & echo begun")),
        "begun"
    );
    dom0.stop_daemon("KILL");
    dom0.start_daemon("");
    let sums = dom0.type_into(&guest, "wait; cat /tmp/sum");
    assert!(is_active(&dom0, disk) && is_active(&dom0, second));
    let first = dom0.type_into(&guest, "md5sum </dev/xvdb");
    for id in [disk, second] {
        unplug(&dom0, id).unwrap_or_else(|error| panic!("{id}: {error}"));
    }
    assert_eq!(dom0.sh(LEFT), "");
    assert_eq!(dom0.sh("qemu-img check -q -f qcow2 /root/hot.qcow2 && echo sound").trim(), "sound");
    assert!(first.starts_with(&contents(&dom0, "qcow2", "/root/hot.qcow2")), "{first}");
    assert!(sums.starts_with(&contents(&dom0, "vpc", "/root/cold.vhd")), "{sums}");

    // What is discarded in the guest is given back in dom0.
    let unplugged = dom0.snapshot();
    plug(&dom0, disk).expect("is plugged");
    appears(&dom0, &guest, "xvdb");
    let blocks = || dom0.sh("stat -c %b /root/hot.qcow2").trim().parse::<u64>().expect("a number");
    dom0.type_into(&guest, "head -c 8388608 /dev/urandom | dd of=/dev/xvdb bs=65536 conv=fsync 2>/dev/null");
    let full = blocks();
    assert_eq!(dom0.type_into(&guest, "/bin/busybox blkdiscard /dev/xvdb && echo discarded"), "discarded");
    let left = blocks();
    assert!(full > SECTORS && left < full / 4, "{full} {left}");

    // Its server ends: the guest gets errors, a client is told, and what was flushed is there for the next.
    dom0.type_into(&guest, "printf kept | dd of=/dev/xvdb bs=4096 conv=fsync,sync 2>/dev/null");
    dom0.sh("kill -9 $(pgrep -f '^disk-server')");
    let wrote = dom0.type_into(
        &guest,
        "printf lost | dd of=/dev/xvdb bs=4096 conv=fsync,sync 2>/dev/null && echo written",
    );
    assert_eq!(wrote, "");
    assert!(!is_active(&dom0, disk));
    unplug(&dom0, disk).expect("goes");
    unplugged.must_be_left(&dom0);
    plug(&dom0, disk).expect("is plugged");
    appears(&dom0, &guest, "xvdb");
    assert_eq!(dom0.type_into(&guest, "head -c 4 /dev/xvdb"), "kept");
    assert!(is_active(&dom0, disk));
    dom0.shutdown(&guest, 60.0).expect("goes down");
    assert_eq!(dom0.sh(LEFT), "");
}
