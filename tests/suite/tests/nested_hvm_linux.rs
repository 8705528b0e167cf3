//! Real operating systems in HVM guests on real Xen, which take emulated devices away and use their PV twins.
//!
//! ```text
//!   Debian, from its disk on AHCI       SeaBIOS ─► GRUB ─► Linux ─► login on console and serial port ─► a second vcpu
//!   our Linux, from a kernel of dom0's  SeaBIOS ─► QEMU's option ROM ─► Linux: unplug of IDE disk and e1000 ─► what it sees
//! ```
//!
//! Firmware reads an emulated IDE disk word by word, which takes minutes for a kernel on an emulated processor: only AHCI is
//! booted from, which it reads into memory at once.

use std::time::Duration;

use suite::{Dom0, Guest};
use xen_host::{DebianDisk, Host, quote};
use xenopsd::api::{ConsoleProtocol, Error, VbdMode, VmSetVcpus};

/// Until Linux is up. A minute on a quiet machine.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// What the guest's clock is ahead of dom0's, in seconds.
const AHEAD: i64 = 86_400;

/// How far the two may be apart besides: a command takes seconds on a busy machine.
const CLOCK_TOLERANCE: i64 = 60;

/// Waits until a guest has printed this while it boots.
#[track_caller]
fn booted(dom0: &Dom0, guest: &Guest, says: &str) {
    dom0.host.wait_for_guest(guest.name(), says, BOOT_LIMIT).unwrap_or_else(|error| panic!("{error}"));
}

/// GRUB has started the kernel that Debian's own `grub-mkconfig` found, and root is logged in on the serial port, too.
fn has_booted_through_grub(dom0: &Dom0, guest: &Guest, release: &str) {
    let cmdline = dom0.type_into(guest, "cat /proc/cmdline");
    assert!(cmdline.starts_with(&format!("BOOT_IMAGE=/boot/vmlinuz-{release} root=UUID=")), "{cmdline}");
    dom0.listen_to_serial(guest);
    dom0.type_on_serial(guest, "echo on $(tty)\r");
    dom0.serial_said(guest, "on /dev/ttyS0");
    assert_eq!(dom0.type_into(guest, "id -un; tty"), "root\n/dev/hvc0");
}

/// QEMU takes no disk on AHCI away when it is asked to: it stays beside the PV disk, which is the one that is in use.
fn has_its_disk_twice(dom0: &Dom0, guest: &Guest) {
    assert_eq!(dom0.type_into(guest, "findmnt -n -o SOURCE /"), "/dev/xvda1");
    // Linux finds the disks of a controller in the background, and says so.
    let find = "modprobe ahci; grep -q -m1 'ATA  *QEMU HARDDISK' < <(dmesg --follow); \
                cat /sys/bus/scsi/devices/0:0:0:0/model; grep -h 0x010601 /sys/bus/pci/devices/*/class";
    let found = dom0.type_into(guest, find);
    let words: Vec<_> = found.split_whitespace().collect();
    assert_eq!(words, ["QEMU", "HARDDISK", "0x010601"]);
}

/// A vcpu that is given to it while it runs is there for Linux, which uses it once it is told to.
fn takes_a_second_vcpu(dom0: &Dom0, guest: &Guest) {
    assert_eq!(dom0.type_into(guest, "nproc"), "1");
    let set = VmSetVcpus { debug_info: "test".to_owned(), id: guest.id().to_owned(), vcpus: 2 };
    dom0.task(&set).expect("is given");
    let wait = "grep -q -m1 'CPU1 has been hot-added' < <(dmesg --follow)";
    let online = "echo 1 >/sys/devices/system/cpu/cpu1/online; nproc";
    assert_eq!(dom0.type_into(guest, &format!("{wait}; {online}")), "2");
}

#[test]
fn debian_boots_from_its_disk_through_its_boot_loader_to_a_login() {
    let disk = DebianDisk::get().unwrap_or_else(|error| panic!("{error}"));
    let release = disk.release().unwrap_or_else(|error| panic!("{error}"));
    let dom0 = Dom0::on_one_processor();
    let device = dom0.host.plug_disk("debian", &disk.image()).unwrap_or_else(|error| panic!("{error}"));
    let guest = Guest::hvm("debian")
        .memory(256)
        .with(|vm| {
            vm.platformdata.insert("hdtype", "ahci".to_owned());
            vm.vcpu_max = 2;
        })
        .disk("xvda", &device, VbdMode::ReadWrite);
    dom0.add(&guest);
    let before = dom0.snapshot();
    dom0.run_guest(&guest);
    booted(&dom0, &guest, &format!("DEBIAN: up {release}\r"));
    has_booted_through_grub(&dom0, &guest, &release);
    has_its_disk_twice(&dom0, &guest);
    takes_a_second_vcpu(&dom0, &guest);
    dom0.hard_shutdown(&guest).expect("goes down");
    before.must_be_left(&dom0);
}

/// A guest that is started with a kernel, as `xenops create` is told of it.
const DIRECT: &str = r#"
name = "direct"
uuid = "UUID"
type = "hvm"
memory = 256
kernel = "/root/boot/vmlinuz"
ramdisk = "/root/boot/initramfs.zst"
extra = "console=hvc0 quiet gip=10.9.0.62"
serial = "pty"
vga = "none"
rtc_timeoffset = "86400"
disk = ["format=raw,vdev=xvda,access=rw,target=/root/disk.img"]
vif = ["bridge=xenbr0,mac=00:16:3e:00:00:62,model=e1000"]
"#;

/// What its firmware says of its machine; a configuration has no words for it.
fn with_names(dom0: &Dom0, guest: &Guest) -> Guest {
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    let mut vm = dom0.record(guest);
    vm.bios_strings.0 = vec![
        pair("bios-vendor", "Our Firmware"),
        pair("system-manufacturer", "Our Makers"),
        pair("system-product-name", "Our Machine"),
        pair("system-serial-number", "0815"),
    ];
    Guest { vm, ..guest.clone() }
}

/// What cannot be started is found before anything is taken.
fn refuses_what_is_no_kernel(dom0: &Dom0, guest: &Guest) {
    let before = dom0.snapshot();
    let refused = |change: &str, back: &str| {
        dom0.sh(change);
        let error = dom0.start_paused(guest).expect_err(change);
        before.must_be_left(dom0);
        dom0.sh(back);
        error
    };
    let missing = refused("mv /root/boot/vmlinuz /root/kept", "mv /root/kept /root/boot/vmlinuz");
    assert_eq!(missing, Error::does_not_exist("kernel", "/root/boot/vmlinuz"));
    let large = refused("truncate -s 129M /root/boot/initramfs.zst", "cp /guests/initramfs.zst /root/boot");
    assert!(matches!(&large, Error::BootloaderError { message, .. } if message.contains("above the limit")));
    let other = refused("head -c 1M /guests/vmlinux >/root/boot/vmlinuz", "cp /guests/vmlinuz /root/boot");
    let is_said = |message: &str| message.contains("not a packed Linux kernel");
    assert!(matches!(&other, Error::BootloaderError { message, .. } if is_said(message)), "{other:?}");
    // Only the device model finds out that most of it is not there.
    let cut = refused("head -c 600 /guests/vmlinuz >/root/boot/vmlinuz", "cp /guests/vmlinuz /root/boot");
    let is_said = |message: &str| message.contains("invalid kernel header");
    assert!(matches!(&cut, Error::FailedToStartEmulator { message, .. } if is_said(message)), "{cut:?}");
}

/// What is emulated is gone, and the PV twins work.
fn has_pv_devices_only(dom0: &Dom0, guest: &Guest) {
    assert_eq!(dom0.type_into(guest, "cat /sys/hypervisor/guest_type"), "HVM");
    // The controller stays, without a drive; the card goes altogether.
    let emulated = dom0.type_into(
        guest,
        "for m in /emulated/*.ko; do insmod $m; done; cat /sys/bus/pci/devices/*/class; ls /sys/block",
    );
    assert!(emulated.contains("0x010180"), "no IDE controller: {emulated}");
    assert!(!emulated.contains("0x0200"), "an emulated card: {emulated}");
    let disks: Vec<_> = emulated.lines().filter(|line| !line.starts_with("0x")).collect();
    assert_eq!(disks, ["xvda"]);
    assert_eq!(
        dom0.type_into(guest, "dd if=/dev/xvda bs=1 skip=510 count=2 2>/dev/null | od -An -tx1"),
        "55 aa"
    );
    assert_eq!(dom0.type_into(guest, "ping -c1 -W30 10.9.0.1 >/dev/null 2>&1 && echo answered"), "answered");
}

/// What firmware and hypervisor tell it about its machine.
fn sees_its_machine(dom0: &Dom0, guest: &Guest) {
    let names = dom0.type_into(
        guest,
        "cd /sys/class/dmi/id; cat bios_vendor sys_vendor product_name product_serial product_uuid; cd /",
    );
    let expected = ["Our Firmware", "Our Makers", "Our Machine", "0815", guest.id()];
    assert_eq!(names.to_lowercase(), expected.join("\n").to_lowercase());
    let seconds = |text: String| text.trim().parse::<i64>().expect("seconds");
    let (ours, theirs) = (seconds(dom0.sh("date +%s")), seconds(dom0.type_into(guest, "date +%s")));
    assert!((theirs - ours - AHEAD).abs() < CLOCK_TOLERANCE, "dom0 {ours}, guest {theirs}");
}

/// Its device model has the kernel, and no path of it.
fn has_no_path_of_dom0s(dom0: &Dom0, guest: &Guest) {
    let domid = dom0.domid(guest);
    let model = dom0.read(&format!("/local/domain/{domid}/image/device-model-pid")).expect("a device model");
    let paths =
        dom0.sh(&format!("tr '\\0' '\\n' </proc/{model}/cmdline | grep /root; ls /proc/{model}/root; true"));
    assert_eq!(paths, "", "the device model knows or reaches a file of dom0's");
    assert_eq!(dom0.read(&format!("/local/domain/{domid}/platform/kernel")), None);
    let consoles = dom0.state(guest).consoles;
    assert!(!consoles.iter().any(|console| console.protocol == ConsoleProtocol::Rfb), "{consoles:?}");
}

#[test]
fn linux_is_started_with_a_kernel_that_only_root_may_read_and_its_pv_drivers_take_over() {
    let dom0 = Dom0::on_one_processor();
    dom0.sh("mkdir -m 700 /root/boot; install -m 600 /guests/vmlinuz /guests/initramfs.zst /root/boot");
    // Its sector with a boot loader is not run: there is a kernel.
    dom0.make_sector_disk("/root/disk.img", "a disk");
    let guest = Guest::hvm("direct");
    let config = DIRECT.replace("UUID", guest.id());
    dom0.sh(&format!("printf %s {} >/root/direct.cfg; xenops create /root/direct.cfg", quote(&config)));
    let guest = with_names(&dom0, &guest);
    dom0.add(&guest);
    refuses_what_is_no_kernel(&dom0, &guest);

    let before = dom0.snapshot();
    dom0.start_paused(&guest).expect("starts");
    let tap = format!("tap{}.0", dom0.domid(&guest));
    let ports = dom0.sh("ls /sys/class/net/xenbr0/brif");
    assert!(ports.contains(&tap), "the emulated card's tap is not in the bridge: {ports}");
    dom0.unpause(&guest).expect("runs");
    has_no_path_of_dom0s(&dom0, &guest);
    booted(&dom0, &guest, "GUEST: ready");
    let said = dom0.sh(&format!("cat {}", Host::guest_log(guest.name())));
    assert!(said.contains("GUEST: net up 10.9.0.62"), "{said}");
    assert_eq!(dom0.type_into(&guest, "cat /proc/cmdline"), "console=hvc0 quiet gip=10.9.0.62");
    has_pv_devices_only(&dom0, &guest);
    sees_its_machine(&dom0, &guest);
    dom0.hard_shutdown(&guest).expect("goes down");
    before.must_be_left(&dom0);
}
