//! A real HVM guest that UEFI firmware starts, from a disk as installers lay it out.
//!
//! ```text
//!   hvmloader ─► OVMF ─► EFI system partition: GRUB ─► kernel and ramdisk on it ─► Linux: EFI's variables, the PV disk
//! ```

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use suite::{Dom0, Guest};
use xenopsd::api::{FirmwareType, NvramUefiVariables, VbdMode};

/// Until Linux is up. Two minutes on a quiet machine.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// Debian's firmware, here and, as its package would have it, in dom0.
const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";

/// What GRUB does.
const GRUB: &str = "search --file --set=root /vmlinuz
linux /vmlinuz grub=$grub_platform console=hvc0 quiet
initrd /initramfs.zst
boot
";

/// What it needs for that.
const MODULES: &[&str] = &["part_gpt", "fat", "normal", "search", "search_fs_file", "linux", "boot"];

/// A table with one partition, of the type that firmware looks for.
const TABLE: &str = "label: gpt\nstart=1MiB, type=uefi\n";

/// Where that is, as mtools are told.
const PARTITION: &str = "disk@@1M";

/// Makes the disk, with the kernel and ramdisk that are in dom0.
fn make_disk(dom0: &Dom0, scratch: &Path) {
    let write = |name: &str, text: &str| std::fs::write(scratch.join(name), text).expect("is written");
    let shell = |script: &str| {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let status = Command::new("sh").args(["-ec", script]).current_dir(scratch).env("PATH", path).status();
        assert!(status.expect("runs").success(), "{script}");
    };
    write("grub.cfg", GRUB);
    write("table", TABLE);
    for name in ["vmlinuz", "initramfs.zst"] {
        dom0.host.get(&format!("/guests/{name}"), &scratch.join(name)).expect("is copied");
    }
    shell(&format!("grub-mkimage -O x86_64-efi -p / -c grub.cfg -o BOOTX64.EFI {}", MODULES.join(" ")));
    shell("truncate -s 128M disk; sfdisk -q disk <table");
    shell(&format!("mformat -i {PARTITION} -F -T 258048 -h 64 -s 32 ::"));
    shell(&format!("mmd -i {PARTITION} ::/EFI ::/EFI/BOOT; mcopy -i {PARTITION} BOOTX64.EFI ::/EFI/BOOT"));
    shell(&format!("mcopy -i {PARTITION} vmlinuz initramfs.zst ::/"));
}

#[test]
fn linux_boots_from_its_disk_by_uefi_firmware() {
    let dom0 = Dom0::start();
    let scratch = tempfile::tempdir().expect("a directory");
    make_disk(&dom0, scratch.path());
    let device = dom0.host.plug_disk("uefi", &scratch.path().join("disk")).unwrap_or_else(|e| panic!("{e}"));
    let guest = Guest::hvm("uefi")
        .memory(256)
        .machine(|machine| machine.firmware = FirmwareType::Uefi(NvramUefiVariables::default()))
        .disk("xvda", &device, VbdMode::ReadWrite);
    dom0.add(&guest);
    let before = dom0.snapshot();
    let missing = dom0.start_paused(&guest).expect_err("has no firmware");
    assert!(missing.to_string().contains("OVMF"), "{missing}");
    before.must_be_left(&dom0);

    dom0.host.put(FIRMWARE.as_ref(), "/root/OVMF.fd").expect("is copied");
    dom0.sh(&format!("install -D /root/OVMF.fd {FIRMWARE}"));
    dom0.start_paused(&guest).expect("starts");
    dom0.unpause(&guest).expect("runs");
    let up = dom0.host.wait_for_guest(guest.name(), "GUEST: ready", BOOT_LIMIT);
    up.unwrap_or_else(|error| panic!("{error}"));
    let cmdline = dom0.type_into(&guest, "cat /proc/cmdline");
    assert_eq!(cmdline, "BOOT_IMAGE=/vmlinuz grub=efi console=hvc0 quiet");
    assert_eq!(dom0.type_into(&guest, "cat /sys/firmware/efi/fw_platform_size"), "64");
    assert_eq!(dom0.type_into(&guest, "ls /sys/block"), "xvda");
    dom0.hard_shutdown(&guest).expect("goes down");
    before.must_be_left(&dom0);
}
