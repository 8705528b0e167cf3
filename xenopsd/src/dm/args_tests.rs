use super::*;
use crate::api::{DeviceNumber, Disk, VbdMode, VbdType};
use crate::{test_vbd, test_vif, test_vm};
use proptest::prelude::*;

const ID: &str = "11111111-2222-3333-4444-555555555555";
const MAC: &str = "00:16:3e:00:00:03";

fn hvm(change: impl FnOnce(&mut HvmInfo)) -> Vm {
    let mut info = HvmInfo::default();
    change(&mut info);
    let mut vm = test_vm(ID, "a, b");
    (vm.memory_static_max, vm.vcpus, vm.vcpu_max) = (256 << 20, 1, 2);
    vm.ty = BuilderInfo::Hvm(info);
    vm
}

fn disk(name: &str) -> Vbd {
    let position = Some(name.parse::<DeviceNumber>().unwrap());
    let backend = Some(Disk::Local("/dev/loop3".to_owned()));
    Vbd { position, backend, mode: VbdMode::ReadWrite, ty: VbdType::Disk, ..test_vbd(ID, name) }
}

fn cdrom(name: &str) -> Vbd {
    Vbd { ty: VbdType::Cdrom, mode: VbdMode::ReadOnly, backend: None, ..disk(name) }
}

fn refused(vm: &Vm, vbds: &[Vbd]) -> ArgsError {
    Machine::of(vm, vbds, &[]).unwrap_err()
}

#[test]
fn the_whole_command_line() {
    let vm = hvm(|info| {
        info.serial = Some("pty".to_owned());
        info.boot_order = "dcn".to_owned();
    });
    let vif = (test_vif(ID, "0"), MAC.to_owned());
    let machine = Machine::of(&vm, &[disk("xvda"), disk("xvde"), cdrom("hdc")], &[vif]).unwrap();
    let descriptors = Descriptors { monitor: 3, drives: vec![Some(4), None], taps: vec![5], serial: Some(6) };
    let expected = "-xen-domid|7|-xen-domid-restrict|-no-shutdown|-S|\
        -chardev|socket,id=monitor,fd=3,server=on,wait=off|-mon|chardev=monitor,mode=control|\
        -nodefaults|-no-user-config|\
        -name|guest=a,, b,process=qemu-dm-7|-vnc|none|-display|none|-device|cirrus-vga,vgamem_mb=4|\
        -add-fd|fd=6,set=6|-chardev|serial,id=serial0,path=/dev/fdset/6|-serial|chardev:serial0|\
        -boot|order=dcn|-usb|-device|usb-tablet|-smp|1,maxcpus=2|\
        -device|rtl8139,id=nic0,netdev=net0,mac=00:16:3e:00:00:03|-netdev|tap,id=net0,fd=5|\
        -machine|xenfv,suppress-vmdesc=on|-m|252|-add-fd|fd=4,set=0|\
        -drive|if=none,readonly=off,id=ide-51712,driver=raw,file.driver=host_device,\
        file.filename=/dev/fdset/0,file.auto-read-only=off,cache=writeback|\
        -device|ide-hd,id=ide-51712,drive=ide-51712,bus=ide.0,unit=0|\
        -drive|if=none,readonly=on,id=ide-5632|-device|ide-cd,id=ide-5632,drive=ide-5632,bus=ide.1,unit=0";
    assert_eq!(machine.arguments(7, &descriptors, Beginning::Fresh).join("|"), expected);
}

#[test]
fn a_kernel_is_a_path_in_the_jail() {
    let mut vm = hvm(|_| {});
    let plain = Machine::of(&vm, &[], &[]).unwrap();
    assert!(plain.kernel().is_none());
    for (key, value) in [("kernel", "/root/k"), ("ramdisk", "/root/r"), ("cmdline", "root=x")] {
        vm.platformdata.insert(key, value.to_owned());
    }
    let machine = Machine::of(&vm, &[], &[]).unwrap();
    assert!(machine.kernel().is_some());
    let [before, after] = [&plain, &machine]
        .map(|machine| machine.arguments(7, &Descriptors::default(), Beginning::Fresh).join(" "));
    let added = "-kernel /boot/kernel -initrd /boot/ramdisk -append root=x ";
    assert_eq!(after.replace(added, ""), before);
    vm.platformdata.0.retain(|(key, _)| key != "kernel");
    assert!(matches!(refused(&vm, &[]), ArgsError::Kernel(_)));
}

#[test]
fn a_guest_with_nothing_has_no_screen_no_network_and_no_acpi() {
    let vm = hvm(|info| (info.video_mib, info.acpi) = (0, false));
    let line =
        Machine::of(&vm, &[], &[]).unwrap().arguments(7, &Descriptors::default(), Beginning::Fresh).join(" ");
    for part in ["-vnc none", "-net none", "-no-acpi", "-serial null", "-m 256", "order=cd"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert!(!line.contains("vga"), "{line}");
}

#[test]
fn a_boot_order_of_unknown_letters_is_refused() {
    for (order, letter) in [("x", 'x'), ("cdx", 'x'), ("cc", 'c'), ("c,splash=/etc/shadow", ',')] {
        let vm = hvm(|info| info.boot_order = order.to_owned());
        assert_eq!(refused(&vm, &[]), ArgsError::BootOrder { order: order.to_owned(), letter });
    }
}

/// The line of a machine whose drives have the descriptors from 4 on, from its disks on.
fn disks(machine: &Machine) -> String {
    let drives =
        machine.drives().iter().enumerate().map(|(index, drive)| (!drive.cdrom).then_some(4 + index));
    let descriptors = Descriptors { drives: drives.collect(), ..Descriptors::default() };
    let line = machine.arguments(7, &descriptors, Beginning::Fresh).join("|");
    line.split_once("-m|252|").unwrap().1.to_owned()
}

fn on_ahci() -> Vm {
    let mut vm = hvm(|_| {});
    vm.platformdata.insert("hdtype", "ahci".to_owned());
    vm
}

#[test]
fn hard_disks_can_be_on_ahci_and_cds_stay_on_ide() {
    let line = disks(&Machine::of(&on_ahci(), &[disk("xvdf"), cdrom("hdc"), disk("xvda")], &[]).unwrap());
    let expected = "-device|ahci,id=ahci0|-add-fd|fd=4,set=0|\
        -drive|if=none,readonly=off,id=ahcidisk-0,driver=raw,file.driver=host_device,\
        file.filename=/dev/fdset/0,file.auto-read-only=off,cache=writeback|\
        -device|ide-hd,bus=ahci0.0,unit=0,drive=ahcidisk-0|\
        -drive|if=none,readonly=on,id=ide-5632|-device|ide-cd,id=ide-5632,drive=ide-5632,bus=ide.1,unit=0|\
        -add-fd|fd=6,set=5|\
        -drive|if=none,readonly=off,id=ahcidisk-5,driver=raw,file.driver=host_device,\
        file.filename=/dev/fdset/5,file.auto-read-only=off,cache=writeback|\
        -device|ide-hd,bus=ahci0.5,unit=0,drive=ahcidisk-5";
    assert_eq!(line, expected);
    assert_eq!(disks(&Machine::of(&on_ahci(), &[], &[]).unwrap()), "-device|ahci,id=ahci0");
}

#[test]
fn the_controller_is_ide_or_ahci_and_ide_if_nothing_is_said() {
    let with = |word: &str| {
        let mut vm = hvm(|_| {});
        vm.platformdata.insert("hdtype", word.to_owned());
        vm
    };
    let line = |vm: &Vm| disks(&Machine::of(vm, &[disk("xvda")], &[]).unwrap());
    assert_eq!(line(&with("ide")), line(&hvm(|_| {})));
    for bad in ["", "scsi", "AHCI", "ahci,id=x"] {
        assert_eq!(refused(&with(bad), &[]), ArgsError::Controller(bad.to_owned()));
    }
}

#[test]
fn a_disk_beyond_the_controllers_drives_is_refused_or_not_emulated() {
    let no_drive = |vbd: &Vbd, controller| ArgsError::NoSuchDrive { disk: vbd.id.device.clone(), controller };
    let names =
        |letters: &str| letters.chars().map(|letter| disk(&format!("xvd{letter}"))).collect::<Vec<_>>();
    for (vm, controller, beyond, last) in
        [(hvm(|_| {}), Controller::Ide, "hde", "abcd"), (on_ahci(), Controller::Ahci, "hdg", "abcdef")]
    {
        assert_eq!(refused(&vm, &[disk(beyond)]), no_drive(&disk(beyond), controller));
        let emulated = Machine::of(&vm, &names("abcdefgh"), &[]).unwrap().drives().len();
        assert_eq!(emulated, last.len());
        assert_eq!(refused(&vm, &[disk("xvda"), disk("hda")]), ArgsError::DriveTaken("hda".to_owned()));
        // A CD-ROM drive is on IDE in any case.
        assert_eq!(refused(&vm, &[cdrom("hde")]), no_drive(&cdrom("hde"), Controller::Ide));
        assert!(Machine::of(&vm, &[cdrom("xvde")], &[]).unwrap().drives().is_empty());
    }
    assert_eq!(Machine::of(&on_ahci(), &[disk("hdf")], &[]).unwrap().drives()[0].index, 5);
    let text = refused(&on_ahci(), &[disk("hdg")]).to_string();
    let expected = "disk hdg: emulated AHCI has 6 drives (hda to hdf); name it xvdg or later to have it without emulation";
    assert_eq!(text, expected);
}

#[test]
fn a_read_only_disk_is_never_an_emulated_one() {
    let read_only = Vbd { mode: VbdMode::ReadOnly, ..disk("xvda") };
    assert!(Machine::of(&hvm(|_| {}), &[read_only], &[]).unwrap().drives().is_empty());
}

#[test]
fn the_screen_is_served_on_this_host_only() {
    for address in ["0.0.0.0", "::", "192.0.2.1", "", "127.0.0.1:1"] {
        let vm = hvm(|info| info.vnc_ip = Some(address.to_owned()));
        assert_eq!(refused(&vm, &[]), ArgsError::VncAddress(address.to_owned()));
    }
    let local = hvm(|info| info.vnc_ip = Some("127.0.0.1".to_owned()));
    assert!(Machine::of(&local, &[], &[]).is_ok());
}

#[test]
fn what_would_be_a_path_or_is_out_of_range_is_refused() {
    let changes: [fn(&mut HvmInfo); 7] = [
        |info| info.serial = Some("file:/etc/passwd".to_owned()),
        |info| info.keymap = Some("../../etc/passwd".to_owned()),
        |info| info.video_mib = 3,
        |info| info.video_mib = 512,
        |info| info.pci_passthrough = true,
        |info| info.qemu_stubdom = true,
        |info| info.video = VideoCard::Vgpu,
    ];
    for (index, change) in changes.into_iter().enumerate() {
        assert!(Machine::of(&hvm(change), &[], &[]).is_err(), "change {index}");
    }
    let mut tiny = hvm(|_| {});
    tiny.memory_static_max = 4 << 20;
    assert!(matches!(refused(&tiny, &[]), ArgsError::Range { what: "memory in MiB", .. }));
    assert_eq!(refused(&test_vm(ID, "pv"), &[]), ArgsError::NotHvm);
}

proptest! {
    /// Whatever the strings of a VM, none becomes an option of its own.
    #[test]
    fn no_string_of_a_vm_adds_an_option(name in "\\PC{0,80}", keymap in "\\PC{0,20}", mac in "\\PC{0,20}") {
        let mut vm = hvm(|info| info.keymap = Some(keymap));
        let plain = Machine::of(&hvm(|_| {}), &[], &[]).unwrap().arguments(7, &Descriptors::default(), Beginning::Fresh).len();
        vm.name = name;
        let vif = (test_vif(ID, "0"), mac);
        if let Ok(machine) = Machine::of(&vm, &[], &[vif]) {
            let line = machine.arguments(7, &Descriptors { taps: vec![5], ..Descriptors::default() }, Beginning::Fresh);
            // One card more (two pairs for "-net none"), and perhaps a keymap.
            prop_assert!(line.len() <= plain + 4);
            let name = line.iter().position(|a| a == "-name").map(|at| &line[at + 1]).unwrap();
            let unescaped = name.replace(",,", "");
            prop_assert_eq!(unescaped.matches(',').count(), 1);
        }
    }
}

#[test]
fn one_that_is_to_be_told_its_state_waits_for_it() {
    let machine = Machine::of(&hvm(|_| {}), &[], &[]).unwrap();
    let [fresh, kept] = [Beginning::Fresh, Beginning::Kept]
        .map(|beginning| machine.arguments(7, &Descriptors::default(), beginning).join(" "));
    assert_eq!(kept, format!("{fresh} -incoming defer"));
}
