//! A real operating system in an HVM guest on real Xen: Linux from its own disk, through SeaBIOS and GRUB. Its PV drivers
//! take the emulated disk and card away and use their PV twins.
//!
//! Everything is one boot: the firmware reads a disk word by word, and takes minutes for it on an emulated processor. Another
//! boot is from a kernel of dom0's.

use std::time::Duration;

use suite::{Dom0, Guest};
use xen_host::{Host, quote};
use xenopsd::api::{ConsoleProtocol, Error, VbdMode};

const DISK: &str = "/root/linux.img";

/// Until Linux is up. Two minutes on a quiet machine.
const BOOT_LIMIT: Duration = Duration::from_secs(900);

/// What the guest's clock is ahead of dom0's, in seconds.
const AHEAD: i64 = 86_400;

/// How far the two may be apart besides: a command takes seconds on a busy machine.
const CLOCK_TOLERANCE: i64 = 60;

fn guest(dom0: &Dom0) -> Guest {
    dom0.make_linux_disk(DISK);
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    Guest::hvm("linux")
        .memory(256)
        .machine(|hvm| hvm.timeoffset = AHEAD.to_string())
        .with(|vm| {
            vm.bios_strings.0 = vec![
                pair("bios-vendor", "Our Firmware"),
                pair("system-manufacturer", "Our Makers"),
                pair("system-product-name", "Our Machine"),
                pair("system-serial-number", "0815"),
            ];
            vm.platformdata.0.push(pair("nic_type", "e1000"));
        })
        .disk("xvda", DISK, VbdMode::ReadWrite)
        .vif("xenbr0")
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

#[test]
fn linux_boots_from_its_disk_with_pv_devices_and_sees_its_machine() {
    let dom0 = Dom0::start();
    let guest = guest(&dom0);
    dom0.add(&guest);
    let before = dom0.snapshot();
    dom0.start_paused(&guest).expect("starts");
    let domid = dom0.domid(&guest);
    let ports = dom0.sh("ls /sys/class/net/xenbr0/brif");
    assert!(
        ports.contains(&format!("tap{domid}.0")),
        "the emulated card's tap is not in the bridge: {ports}"
    );
    dom0.unpause(&guest).expect("runs");
    dom0.host
        .wait_for_guest(guest.name(), "GUEST: ready", BOOT_LIMIT)
        .unwrap_or_else(|error| panic!("{error}"));
    let said = dom0.sh(&format!("cat {}", Host::guest_log(guest.name())));
    assert!(said.contains("GUEST: net up 10.9.0.61"), "{said}");
    has_pv_devices_only(&dom0, &guest);
    sees_its_machine(&dom0, &guest);

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
ramdisk = "/root/boot/initramfs"
extra = "console=hvc0 quiet gip=10.9.0.62"
serial = "pty"
vga = "none"
vif = ["bridge=xenbr0,mac=00:16:3e:00:00:62,model=e1000"]
"#;

#[test]
fn linux_is_started_with_a_kernel_that_only_root_may_read() {
    let dom0 = Dom0::start();
    dom0.sh("mkdir -m 700 /root/boot; install -m 600 /guests/vmlinuz /guests/initramfs /root/boot");
    let guest = Guest::hvm("direct");
    let config = DIRECT.replace("UUID", guest.id());
    dom0.sh(&format!("printf %s {} >/root/direct.cfg; xenops create /root/direct.cfg", quote(&config)));
    let before = dom0.snapshot();

    // What cannot be started is found before anything is taken.
    let refused = |change: &str, back: &str| {
        dom0.sh(change);
        let error = dom0.start_paused(&guest).expect_err(change);
        before.must_be_left(&dom0);
        dom0.sh(back);
        error
    };
    let missing = refused("mv /root/boot/vmlinuz /root/kept", "mv /root/kept /root/boot/vmlinuz");
    assert_eq!(missing, Error::does_not_exist("kernel", "/root/boot/vmlinuz"));
    let large = refused("truncate -s 129M /root/boot/initramfs", "cp /guests/initramfs /root/boot");
    assert!(matches!(&large, Error::BootloaderError { message, .. } if message.contains("above the limit")));
    let other = refused("head -c 1M /guests/vmlinux >/root/boot/vmlinuz", "cp /guests/vmlinuz /root/boot");
    let is_said = |message: &str| message.contains("not a packed Linux kernel");
    assert!(matches!(&other, Error::BootloaderError { message, .. } if is_said(message)), "{other:?}");
    // Only the device model finds out that most of it is not there.
    let cut = refused("head -c 600 /guests/vmlinuz >/root/boot/vmlinuz", "cp /guests/vmlinuz /root/boot");
    let is_said = |message: &str| message.contains("invalid kernel header");
    assert!(matches!(&cut, Error::FailedToStartEmulator { message, .. } if is_said(message)), "{cut:?}");

    dom0.run_guest(&guest);
    let domid = dom0.domid(&guest);
    let model = dom0.read(&format!("/local/domain/{domid}/image/device-model-pid")).expect("a device model");
    let paths =
        dom0.sh(&format!("tr '\\0' '\\n' </proc/{model}/cmdline | grep /root; ls /proc/{model}/root; true"));
    assert_eq!(paths, "", "the device model knows or reaches a file of dom0's");
    assert_eq!(dom0.read(&format!("/local/domain/{domid}/platform/kernel")), None);
    let consoles = dom0.state(&guest).consoles;
    assert!(!consoles.iter().any(|console| console.protocol == ConsoleProtocol::Rfb), "{consoles:?}");
    dom0.host
        .wait_for_guest(guest.name(), "GUEST: ready", BOOT_LIMIT)
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(dom0.type_into(&guest, "cat /proc/cmdline"), "console=hvc0 quiet gip=10.9.0.62");
    assert_eq!(dom0.type_into(&guest, "ls /sys/block; echo done"), "done");
    dom0.hard_shutdown(&guest).expect("goes down");
    before.must_be_left(&dom0);
}
