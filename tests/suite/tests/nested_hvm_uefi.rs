//! A real HVM guest that UEFI firmware starts, from a disk as installers lay it out.
//!
//! ```text
//!   hvmloader ─► OVMF ─► EFI system partition: GRUB, as an EFI program ─► its line on the serial port ─► off, by the firmware
//! ```
//!
//! The firmware reads an emulated disk word by word, which takes minutes for a kernel on an emulated processor: GRUB is
//! all there is. Drawing text is slow, too, so that there is no card to draw on.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use suite::{Dom0, Guest};
use xenopsd::api::{FirmwareType, NvramUefiVariables, PowerState, VbdMode};

/// Until GRUB runs. Three quarters of a minute on a busy machine.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// Debian's firmware, here and, as its package would have it, in dom0.
const FIRMWARE: &str = "/usr/share/ovmf/OVMF.fd";

/// What GRUB does: its platform is that of the firmware it was started by.
const GRUB: &str = "serial --unit=0\nterminal_output serial\necho GRUB: $grub_platform\nhalt\n";

/// What it needs for that.
const MODULES: &[&str] = &["part_gpt", "fat", "normal", "echo", "serial", "terminal", "halt"];

/// A table with one partition, of the type that firmware looks for.
const TABLE: &str = "label: gpt\nstart=1MiB, type=uefi\n";

/// Where that is, as mtools are told.
const PARTITION: &str = "disk@@1M";

/// Makes the disk.
fn make_disk(scratch: &Path) {
    let write = |name: &str, text: &str| std::fs::write(scratch.join(name), text).expect("is written");
    let shell = |script: &str| {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let status = Command::new("sh").args(["-ec", script]).current_dir(scratch).env("PATH", path).status();
        assert!(status.expect("runs").success(), "{script}");
    };
    write("grub.cfg", GRUB);
    write("table", TABLE);
    shell(&format!("grub-mkimage -O x86_64-efi -p / -c grub.cfg -o BOOTX64.EFI {}", MODULES.join(" ")));
    shell("truncate -s 128M disk; sfdisk -q disk <table");
    shell(&format!("mformat -i {PARTITION} -F -T 258048 -h 64 -s 32 ::"));
    shell(&format!("mmd -i {PARTITION} ::/EFI ::/EFI/BOOT; mcopy -i {PARTITION} BOOTX64.EFI ::/EFI/BOOT"));
}

#[test]
fn a_guest_boots_from_its_disk_by_uefi_firmware() {
    let dom0 = Dom0::on_one_processor();
    let scratch = tempfile::tempdir().expect("a directory");
    make_disk(scratch.path());
    let device = dom0.host.plug_disk("uefi", &scratch.path().join("disk")).unwrap_or_else(|e| panic!("{e}"));
    let guest = Guest::hvm("uefi")
        .memory(256)
        .machine(|machine| {
            machine.firmware = FirmwareType::Uefi(NvramUefiVariables::default());
            machine.video_mib = 0;
        })
        .disk("xvda", &device, VbdMode::ReadWrite);
    dom0.add(&guest);
    let before = dom0.snapshot();
    let missing = dom0.start_paused(&guest).expect_err("has no firmware");
    assert!(missing.to_string().contains("OVMF"), "{missing}");
    before.must_be_left(&dom0);

    dom0.host.put(FIRMWARE.as_ref(), "/root/OVMF.fd").expect("is copied");
    dom0.sh(&format!("install -D /root/OVMF.fd {FIRMWARE}"));
    dom0.start_paused(&guest).expect("starts");
    dom0.listen_to_serial(&guest);
    dom0.unpause(&guest).expect("runs");
    dom0.serial_said_within(&guest, "GRUB: efi", BOOT_LIMIT);
    dom0.wait_for_power(&guest, PowerState::Halted);
    before.must_be_left(&dom0);
}
