//! What an HVM guest on real Xen sees of the machine that its record asks for, looked at from inside; and that it is the same
//! machine after a checkpoint, and after a suspend and a resume.

use suite::{Ask, Dom0, Guest};
use xenopsd::api::{Disk, HvmInfo, PowerState, VbdMode, VideoCard, VmAdd, VmCheckpoint, VmResume, VmSuspend};

const DISK: &str = "/root/probe.img";

/// The BIOS area, where firmware puts what operating systems look for.
const BIOS: (u32, u32) = (0xf_0000, 0xf_fff0);

/// Port of the clock, and its registers in the order of a date: years first.
const CLOCK: u32 = 0x70;
const DATE: [u32; 6] = [9, 8, 7, 4, 2, 0];

/// What the guest's clock is ahead of dom0's, in seconds, and how far it may be off besides.
const AHEAD: i64 = 86_400;
const TOLERANCE: i64 = 60;

/// The years of the date that the guest sets its clock to, of which Xen takes the century from the host's.
const YEARS: u32 = 0x37;

/// Registers that QEMU's firmware configuration has in the clock's memory: which devices are to be booted from, first to
/// third, half a byte each.
const BOOT_ORDER: [u32; 2] = [0x3d, 0x38];

/// What the halves say there.
const FROM_DISK: u32 = 2;
const FROM_CD: u32 = 3;
const FROM_NETWORK: u32 = 4;

/// The first lines of the screen's text, of 80 columns: a letter and its colours each.
const SCREEN: (u32, u32) = (0xb_8000, 80 * 12 / 2);

/// Where hvmloader tells the ACPI tables' code where the generation id is: `ACPI_INFO_PHYSICAL_ADDRESS`, and the offset of
/// `vm_gid_addr` in `struct acpi_info` (Xen's `tools/libacpi/build.c`).
const GENERATION_ID: u32 = 0xfc00_0000 + 20;

/// Where its state is kept while it is suspended.
const IMAGE: &str = "/root/image";

/// In memory that firmware leaves alone; and a register of the serial port that its device model keeps and nothing reads.
const SPOT: u32 = 0x0020_0000;
const SCRATCH: u32 = 0x3ff;

fn guest(dom0: &Dom0, name: &str, keys: &[(&str, &str)], machine: impl FnOnce(&mut HvmInfo)) -> Guest {
    let disk = format!("/root/{name}.img");
    dom0.sh(&format!("cp {DISK} {disk}"));
    Guest::hvm(name)
        .memory(64)
        .machine(machine)
        .with(|vm| {
            for (key, value) in keys {
                vm.platformdata.insert(*key, (*value).to_owned());
            }
        })
        .disk("xvda", &disk, VbdMode::ReadWrite)
        .vif("xenbr0")
}

fn run(dom0: &Dom0, guest: &Guest) {
    dom0.add(guest);
    dom0.start_paused(guest).expect("starts");
    dom0.run_probe(guest);
}

/// Bytes of a leaf of `cpuid`, without eax: a name of twelve letters in leaves that name something.
fn name(leaf: &[u32]) -> String {
    leaf[1..].iter().flat_map(|word| word.to_le_bytes()).map(char::from).collect()
}

/// Vendor and device of all on the first PCI bus.
fn cards(dom0: &Dom0, guest: &Guest) -> Vec<u32> {
    dom0.probe(guest, &[Ask::Bus]).concat()
}

/// MiB of RAM, rounded up.
fn ram(map: &[u32]) -> u32 {
    let ranges = map.chunks(5).filter(|range| range[4] == 1);
    ranges.map(|range| range[2]).sum::<u32>().div_ceil(1 << 20)
}

fn smbios(dom0: &Dom0, guest: &Guest) -> String {
    let entry = dom0.probe(guest, &[Ask::Find(BIOS.0, BIOS.1, *b"_SM_")])[0][0];
    let head = dom0.probe(guest, &[Ask::Read(entry, 8)]).concat();
    let (length, table) = (head[5] >> 16, head[6]);
    let words = dom0.probe(guest, &[Ask::Read(table, length.div_ceil(4))]).concat();
    words.iter().flat_map(|word| word.to_le_bytes()).map(char::from).collect()
}

/// The guest's clock, in seconds as dom0 counts them.
fn clock(dom0: &Dom0, guest: &Guest) -> i64 {
    let asks = DATE.map(|register| [Ask::Out8(CLOCK, register), Ask::In8(CLOCK + 1)]).concat();
    let parts = dom0.probe(guest, &asks).concat();
    let [year, month, day, hour, minute, second] = parts[..] else { panic!("{parts:?}") };
    // Two decimal digits each.
    let text = format!("20{year:02x}-{month:02x}-{day:02x} {hour:02x}:{minute:02x}:{second:02x}");
    dom0.sh(&format!("date -u -d '{text}' +%s")).trim().parse().expect("seconds")
}

fn has_acpi(dom0: &Dom0, guest: &Guest) -> bool {
    dom0.probe(guest, &[Ask::Find(BIOS.0, BIOS.1, *b"RSD ")])[0][0] < BIOS.1
}

/// Fails unless the guest's clock is as far ahead as its record asks for.
#[track_caller]
fn has_its_time(dom0: &Dom0, guest: &Guest) {
    let ours: i64 = dom0.sh("date +%s").trim().parse().expect("seconds");
    let theirs = clock(dom0, guest);
    assert!((theirs - ours - AHEAD).abs() < TOLERANCE, "dom0 {ours}, guest {theirs}");
}

/// A register of the clock's chip; those above 13 are the device model's.
fn register(dom0: &Dom0, guest: &Guest, number: u32) -> u32 {
    dom0.probe(guest, &[Ask::Out8(CLOCK, number), Ask::In8(CLOCK + 1)])[1][0]
}

/// First to third of what it is to be booted from.
fn boot_order(dom0: &Dom0, guest: &Guest) -> [u32; 3] {
    let [low, high] = BOOT_ORDER.map(|number| register(dom0, guest, number));
    [low & 0xf, low >> 4, high >> 4]
}

/// What firmware and the cards' own programs have written on the screen.
fn screen(dom0: &Dom0, guest: &Guest) -> String {
    let words = dom0.probe(guest, &[Ask::Read(SCREEN.0, SCREEN.1)]).concat();
    let letters = words.iter().flat_map(|word| word.to_le_bytes()).step_by(2);
    letters.map(|letter| if letter.is_ascii_graphic() { char::from(letter) } else { ' ' }).collect()
}

/// The numbers of its generation id, as Windows' driver finds them.
fn generation_id(dom0: &Dom0, guest: &Guest) -> Vec<u32> {
    let place = dom0.probe(guest, &[Ask::Read(GENERATION_ID, 1)])[0][0];
    dom0.probe(guest, &[Ask::Read(place, 4)]).concat()
}

/// The guest sees the clock that it has set, and nobody else hears of it: Xen tells the device model, which drops it.
fn sets_its_clock(dom0: &Dom0, guest: &Guest) {
    dom0.probe(guest, &[Ask::Out8(CLOCK, DATE[0]), Ask::Out8(CLOCK + 1, YEARS)]);
    assert_eq!(register(dom0, guest, DATE[0]), YEARS);
    assert_eq!(dom0.state(guest).rtc_timeoffset, AHEAD.to_string());
    assert_eq!(dom0.read(&format!("/vm/{}/rtc/timeoffset", guest.id())), Some(AHEAD.to_string()));
}

/// It has no drivers: it is stopped where it is, and never learns of it.
fn goes_on_after_checkpoint_suspend_and_resume(dom0: &Dom0, guest: &Guest, cards_before: &[u32]) {
    let (dbg, id, image) = (|| "test".to_owned(), || guest.vm.id.clone(), || Disk::Local(IMAGE.to_owned()));
    let kept = [Ask::Read(SPOT, 1), Ask::In8(SCRATCH)];
    let (first, in_memory, in_model) = (dom0.domid(guest), 0xdead_beef, 0x5a);
    dom0.probe(guest, &[Ask::Write(SPOT, in_memory), Ask::Out8(SCRATCH, in_model)]);
    dom0.task(&VmCheckpoint { debug_info: dbg(), id: id(), suspend_vdi: image() }).expect("is saved");
    assert_eq!(dom0.domid(guest), first);
    assert_eq!(dom0.probe(guest, &kept), [[in_memory], [in_model]]);

    dom0.task(&VmSuspend { debug_info: dbg(), id: id(), suspend_vdi: image() }).expect("suspends");
    assert_eq!(dom0.state(guest).power_state, PowerState::Suspended);
    // As a management layer changes it when an image is resumed a second time.
    let mut record = dom0.record(guest);
    record.generation_id = Some("7:8".to_owned());
    dom0.call(&VmAdd { debug_info: dbg(), vm: record }).expect("is changed");
    dom0.task(&VmResume { debug_info: dbg(), id: id(), suspend_vdi: image() }).expect("resumes");
    dom0.listen_to_serial(guest);
    dom0.unpause(guest).expect("runs");
    assert_ne!(dom0.domid(guest), first);
    assert_eq!(dom0.probe(guest, &kept), [[in_memory], [in_model]]);
    assert_eq!(cards(dom0, guest), cards_before);
    assert_eq!(generation_id(dom0, guest), [7, 0, 8, 0]);
    has_its_time(dom0, guest);
    let state = dom0.state(guest);
    assert_eq!((state.power_state, state.memory_target), (PowerState::Running, 64 << 20));
    dom0.sh(&format!("rm -f {IMAGE}"));
}

const NX: u32 = 1 << 20;
const PAE: u32 = 1 << 6;

#[test]
fn a_guest_sees_the_machine_that_its_record_asks_for() {
    let dom0 = Dom0::on_one_processor();
    dom0.make_probe_disk(DISK);
    let before = dom0.snapshot();
    let rich = guest(&dom0, "rich", &[("viridian", "true"), ("nic_type", "e1000")], |hvm| {
        (hvm.video, hvm.video_mib, hvm.timeoffset) = (VideoCard::StandardVga, 16, AHEAD.to_string());
        hvm.boot_order = "cnd".to_owned();
    });
    let rich = rich.with(|vm| {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        vm.bios_strings.0 =
            vec![pair("bios-vendor", "Our Firmware"), pair("system-product-name", "Our Machine")];
        vm.generation_id = Some("5:6".to_owned());
    });
    run(&dom0, &rich);
    let seen =
        dom0.probe(&rich, &[Ask::Cpuid(0x4000_0000), Ask::Cpuid(0x4000_0100), Ask::Cpuid(1), Ask::Map]);
    assert_eq!([name(&seen[0]), name(&seen[1])], ["Microsoft Hv", "XenVMMXenVMM"]);
    assert_ne!(seen[2][3] & PAE, 0);
    assert_eq!(ram(&seen[3]), 48);
    assert_ne!(dom0.probe(&rich, &[Ask::Cpuid(0x8000_0001)])[0][3] & NX, 0);
    assert!(has_acpi(&dom0, &rich));
    let cards_of_rich = cards(&dom0, &rich);
    assert!([0x1111_1234, 0x100e_8086].iter().all(|card| cards_of_rich.contains(card)), "{cards_of_rich:x?}");
    let texts = smbios(&dom0, &rich);
    assert!(texts.contains("Our Firmware") && texts.contains("Our Machine"), "{texts:?}");
    assert_eq!(boot_order(&dom0, &rich), [FROM_DISK, FROM_NETWORK, FROM_CD]);
    let shown = screen(&dom0, &rich);
    assert!(shown.contains("iPXE (http://ipxe.org)"), "the card's program for booting has not run: {shown}");
    assert_eq!(generation_id(&dom0, &rich), [5, 0, 6, 0]);
    // hvmloader says where that is in a parameter of the domain, and not where it did before Xen 4.5.
    let domid = dom0.domid(&rich);
    let old = dom0.read(&format!("/local/domain/{domid}/hvmloader/generation-id-address"));
    assert_eq!(old.as_deref(), Some(""));
    has_its_time(&dom0, &rich);
    sets_its_clock(&dom0, &rich);
    goes_on_after_checkpoint_suspend_and_resume(&dom0, &rich, &cards_of_rich);
    dom0.hard_shutdown(&rich).expect("goes down");

    let poor = guest(&dom0, "poor", &[("nx", "false"), ("pae", "false"), ("nic_type", "rtl8139")], |hvm| {
        (hvm.video, hvm.video_mib, hvm.acpi) = (VideoCard::Cirrus, 4, false);
    });
    run(&dom0, &poor);
    let seen =
        dom0.probe(&poor, &[Ask::Cpuid(0x4000_0000), Ask::Cpuid(0x8000_0001), Ask::Cpuid(1), Ask::Map]);
    assert_eq!(name(&seen[0]), "XenVMMXenVMM");
    assert_eq!((seen[1][3] & NX, seen[2][3] & PAE), (0, 0));
    assert_eq!(ram(&seen[3]), 60);
    assert!(!has_acpi(&dom0, &poor));
    let cards_of_poor = cards(&dom0, &poor);
    assert!([0x00b8_1013, 0x8139_10ec].iter().all(|card| cards_of_poor.contains(card)), "{cards_of_poor:x?}");
    dom0.hard_shutdown(&poor).expect("goes down");
    for guest in [&rich, &poor] {
        dom0.remove(guest).expect("is forgotten");
    }
    before.must_be_left(&dom0);
}
