//! PVH guests on real Xen: a kernel in a hardware container, without a device model.

use suite::{Dom0, Guest};
use xenopsd::api::{
    BuilderInfo, Disk, DomainType, Error, PowerState, VbdMode, VbdPlug, VbdUnplug, VifPlug, VifUnplug,
    VmResume, VmSuspend,
};

const IMAGE: &str = "/root/image";

fn dbg() -> String {
    "test".to_owned()
}

/// A PVH guest with a disk, an interface and two vcpus, of which one is there at the start.
fn guest(dom0: &Dom0) -> Guest {
    dom0.sh("printf 'a disk' >/root/disk.img; truncate -s 8M /root/disk.img");
    Guest::new("pvh")
        .kind(BuilderInfo::Pvh)
        .cmdline("gip=10.9.0.51")
        .disk("xvda", "/root/disk.img", VbdMode::ReadWrite)
        .vif("xenbr0")
}

/// What it sees from inside: a map with all its memory and with its tables, and the hypervisor's leaves of `cpuid`.
fn has_its_map_and_processor(dom0: &Dom0, guest: &Guest) {
    let list = "for r in /sys/firmware/memmap/*; do echo $(cat $r/start $r/end $r/type); done";
    let map = dom0.type_into(guest, list);
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("a number");
    let bytes = |line: &str| {
        let mut words = line.split(' ');
        let (start, end) = (words.next().expect("start"), words.next().expect("end"));
        number(end) - number(start) + 1
    };
    let ram: u64 = map.lines().filter(|line| line.ends_with("System RAM")).map(bytes).sum();
    assert!((127 << 20..=129 << 20).contains(&ram), "{ram} bytes in {map}");
    assert!(map.lines().any(|line| line.contains("ACPI")), "{map}");
    // Linux looks for the leaves itself, and says what it has found: the same for both kinds.
    let found = dom0.type_into(guest, "dmesg | grep -o 'Hypervisor detected: .*'");
    assert_eq!(found, "Hypervisor detected: Xen HVM");
    assert_eq!(dom0.type_into(guest, "grep -c '^flags.* hypervisor' /proc/cpuinfo"), "1");
}

#[test]
fn a_pvh_guest_boots_pauses_reboots_suspends_and_goes() {
    let dom0 = Dom0::on_one_processor();
    let before = dom0.snapshot();
    let guest = guest(&dom0).with(|vm| vm.vcpu_max = 2);
    dom0.boot(&guest);
    dom0.said(&guest, "GUEST: net up 10.9.0.51");
    dom0.type_into(&guest, "mkdir -p /tmp; echo in memory >/tmp/kept");
    dom0.has_kept(&guest, "after the boot");
    let state = dom0.state(&guest);
    assert!(state.hvm && state.domain_type == DomainType::Pvh, "{state:?}");
    let domid = dom0.domid(&guest);
    assert_eq!(dom0.read(&format!("/libxl/{domid}/type")).as_deref(), Some("pvh"));
    assert_eq!(dom0.type_into(&guest, "cat /sys/hypervisor/guest_type"), "PVH");
    // Its memory is what it was given, and its ballooning driver keeps it.
    let held = state.memory_actual;
    assert!((128 << 20..129 << 20).contains(&held), "{held}");
    has_its_map_and_processor(&dom0, &guest);
    // The kernel takes the tables as they are, and sees both processors, one of them in use.
    let acpi =
        dom0.type_into(&guest, "dmesg | grep -E 'ACPI.*(Error|Warning|BUG|Invalid|failed)'; echo none");
    assert_eq!(acpi, "none");
    assert_eq!(dom0.type_into(&guest, "cat /sys/devices/system/cpu/possible"), "0-1");
    let online = "n=0; while [ \"$(cat /sys/devices/system/cpu/online)\" != 0 ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done; \
                  cat /sys/devices/system/cpu/online";
    assert_eq!(dom0.type_into(&guest, online), "0");

    dom0.pause(&guest).expect("pauses");
    // Paused, and perhaps blocked as well.
    assert!(dom0.sh("xl list pvh").contains("p---"));
    dom0.unpause(&guest).expect("goes on");
    dom0.has_kept(&guest, "after a pause");

    let image = Disk::Local(IMAGE.to_owned());
    let id = guest.id().to_owned();
    dom0.task(&VmSuspend { debug_info: dbg(), id: id.clone(), suspend_vdi: image.clone() })
        .expect("suspends");
    assert_eq!(dom0.state(&guest).power_state, PowerState::Suspended);
    dom0.task(&VmResume { debug_info: dbg(), id, suspend_vdi: image }).expect("resumes");
    dom0.unpause(&guest).expect("runs");
    dom0.has_kept(&guest, "after a resume");

    dom0.forget_output(&guest);
    dom0.reboot(&guest, Some(60.0)).expect("reboots");
    dom0.is_up(&guest);
    dom0.shutdown(&guest, 60.0).expect("shuts down");
    dom0.said(&guest, "GUEST: poweroff");
    dom0.sh(&format!("rm -f {IMAGE}"));
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(&dom0);
}

#[test]
fn devices_and_vcpus_of_a_pvh_guest_come_and_go() {
    let dom0 = Dom0::on_one_processor();
    let guest = guest(&dom0).with(|vm| vm.vcpu_max = 2);
    dom0.boot(&guest);
    let (disk, vif) = (guest.vbds[0].id.clone(), guest.vifs[0].id.clone());
    dom0.task(&VbdUnplug { debug_info: dbg(), id: disk.clone(), force: false }).expect("the disk goes");
    dom0.task(&VifUnplug { debug_info: dbg(), id: vif.clone(), force: false }).expect("the interface goes");
    assert_eq!(dom0.type_into(&guest, "ls /sys/block | grep -c xvda"), "0");
    dom0.task(&VbdPlug { debug_info: dbg(), id: disk }).expect("the disk comes");
    dom0.task(&VifPlug { debug_info: dbg(), id: vif }).expect("the interface comes");
    let wait = |path: &str| {
        format!(
            "n=0; while [ ! -e {path} ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done; ls -d {path}"
        )
    };
    assert_eq!(dom0.type_into(&guest, &wait("/sys/block/xvda")), "/sys/block/xvda");
    assert_eq!(dom0.type_into(&guest, &wait("/sys/class/net/eth0")), "/sys/class/net/eth0");

    // The second vcpu, as the store tells the kernel of it.
    let domid = dom0.domid(&guest);
    dom0.sh(&format!("xenstore-write /local/domain/{domid}/cpu/1/availability online"));
    assert_eq!(
        dom0.type_into(&guest, &wait("/sys/devices/system/cpu/cpu1/online")),
        "/sys/devices/system/cpu/cpu1/online"
    );
    let both = dom0
        .type_into(&guest, "echo 1 >/sys/devices/system/cpu/cpu1/online; cat /sys/devices/system/cpu/online");
    assert_eq!(both.lines().last(), Some("0-1"), "{both}");
    dom0.hard_shutdown(&guest).expect("goes down");
}

#[test]
fn what_cannot_be_a_pvh_guest_is_refused_and_leaves_nothing() {
    let dom0 = Dom0::on_one_processor();
    dom0.sh("head -c 4096 /dev/zero >/root/zeros");
    let no_kernel =
        Guest::new("zeros").kind(BuilderInfo::Pvh).boot(|boot| boot.kernel = "/root/zeros".to_owned());
    let not_pvh = Guest::new("loader")
        .kind(BuilderInfo::Pvh)
        .boot(|boot| boot.kernel = "/usr/lib/xen-4.17/boot/hvmloader".to_owned());
    for guest in [&no_kernel, &not_pvh] {
        dom0.add(guest);
        let before = dom0.snapshot();
        let refused = dom0.start_paused(guest);
        assert!(matches!(refused, Err(Error::BootloaderError { .. })), "{}: {refused:?}", guest.name());
        before.must_be_left(&dom0);
    }
    let key = |key: &str, value: &str| {
        let pair = (key.to_owned(), value.to_owned());
        Guest::new(key).kind(BuilderInfo::Pvh).with(|vm| vm.platformdata.0 = vec![pair])
    };
    for (guest, said) in [
        (key("hap", "false"), "shadow paging"),
        (key("tsc_mode", "7"), "tsc_mode"),
        (key("featureset", "zz"), "featureset"),
    ] {
        dom0.add(&guest);
        let before = dom0.snapshot();
        let refused = dom0.start_paused(&guest);
        assert!(matches!(&refused, Err(Error::InternalError(text)) if text.contains(said)), "{refused:?}");
        before.must_be_left(&dom0);
    }
}
