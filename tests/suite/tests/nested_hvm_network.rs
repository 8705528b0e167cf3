//! An HVM guest that boots from the network, by the program of an emulated card (iPXE), from a server in dom0.
//!
//! ```text
//!   card's program ── DHCP ──► tapD.N ─► xenbr0 ─► server      its address, and the name of a file
//!        │         ── TFTP ──►                                 the file
//!        ▼
//!   the file runs, says so on the serial port and returns ──► firmware goes on to the next of the order, a disk
//! ```

use std::fs;
use std::time::Duration;

use suite::{Dom0, Guest};
use xen_host::boot_sector::UP;
use xenopsd::api::{LockedAddresses, LockingMode, VbdMode};

/// What the server has.
const DIRECTORY: &str = "/root/tftp";

/// A disk with a program to start and a text in its second sector.
const DISK: &str = "/root/sector.img";

/// A card, its address by the server's lease, and the file that is meant for it.
const MAC: &str = "00:16:3e:00:00:51";
const ADDRESS: &str = "10.9.0.81";
const FILE: &str = "boot-00163e000051";

/// What that says.
const SENT: &str = "NETWORK: up";

/// A program as PXE runs one, loaded at 0:0x7c00 and called there; its text and a zero byte follow. It has no use for more.
/// 0x3f8 is the first serial port.
#[rustfmt::skip]
const PROGRAM: [u8; 20] = [
    // pusha; mov si, 0x7c14
    0x60, 0xbe, 0x14, 0x7c,
    // next: cs lodsb; test al, al; jz end; mov dx, 0x3f8; out dx, al; jmp next
    0x2e, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf4,
    // end: popa; xor ax, ax; retf
    0x61, 0x31, 0xc0, 0xcb,
];

/// Longest wait for the program: iPXE changes between real and protected mode for each letter that it prints, which the
/// nested host, where each of them takes the hypervisor's help in an emulator, does some hundred times in a second.
const LIMIT: Duration = Duration::from_secs(300);

/// Puts the program where the server finds it.
fn put_program(dom0: &Dom0) {
    let scratch = tempfile::tempdir().expect("a directory");
    let program = scratch.path().join(FILE);
    fs::write(&program, [&PROGRAM[..], SENT.as_bytes(), b"\r\n\0"].concat()).expect("is written");
    dom0.sh(&format!("mkdir {DIRECTORY}"));
    dom0.host.put(&program, &format!("{DIRECTORY}/{FILE}")).expect("is copied");
}

/// Without a screen, which would take the device model's help for each letter; its interface is locked to its address, and it
/// may ask for that nevertheless.
#[test]
fn a_guest_runs_what_a_server_sends_it_and_goes_on_to_its_disk_when_that_returns() {
    let dom0 = Dom0::on_one_processor();
    dom0.make_sector_disk(DISK, "from the disk");
    put_program(&dom0);
    dom0.serve_boot(DIRECTORY);
    let before = dom0.snapshot();
    let mut guest = Guest::hvm("netboot")
        .memory(64)
        .machine(|hvm| (hvm.boot_order, hvm.video_mib) = ("nc".to_owned(), 0))
        .with(|vm| vm.platformdata.insert("nic_type", "e1000".to_owned()))
        .disk("xvda", DISK, VbdMode::ReadWrite)
        .vif("xenbr0");
    MAC.clone_into(&mut guest.vifs[0].mac);
    guest.vifs[0].locking_mode =
        LockingMode::Locked(LockedAddresses { ipv4: vec![ADDRESS.to_owned()], ipv6: Vec::new() });
    dom0.add(&guest);
    dom0.start_paused(&guest).expect("starts");
    dom0.listen_to_serial(&guest);
    dom0.unpause(&guest).expect("runs");
    dom0.serial_said_within(&guest, SENT, LIMIT);
    assert_eq!(dom0.asked_of_boot_server(), format!("discover {MAC}\nrequest {MAC}\nsent {FILE}"));
    dom0.serial_said(&guest, UP);
    dom0.type_on_serial(&guest, "d");
    dom0.serial_said(&guest, "from the disk");
    dom0.hard_shutdown(&guest).expect("goes down");
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(&dom0);
}
