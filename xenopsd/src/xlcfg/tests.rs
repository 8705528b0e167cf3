//! Whole files: what people have in /etc/xen, and every kind of mistake in them.

use super::*;
use crate::api;
use proptest::prelude::*;

const PV: &str = include_str!("tests/debian-pv.cfg");
const PVH: &str = include_str!("tests/pvh.cfg");
const HVM: &str = include_str!("tests/windows-hvm.cfg");
const PYGRUB: &str = include_str!("tests/pygrub.cfg");
const BROKEN: &str = include_str!("tests/broken.cfg");

fn good(file: &str) -> (XlConfig, Vec<Warning>) {
    parse(file.as_bytes()).unwrap_or_else(|errors| panic!("{errors}"))
}

fn errors(file: &str) -> Vec<String> {
    match parse(file.as_bytes()) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

/// A file with nothing but what is needed, and `more`.
fn with(more: &str) -> String {
    format!("name='vm'\nkernel='/k'\nmemory=64\n{more}\n")
}

#[test]
fn a_debian_pv_guest() {
    let (config, warnings) = good(PV);
    assert_eq!(warnings, []);
    let (vm, vbds, vifs) = config.into_api();
    assert_eq!(vm.name, "web.example.org");
    assert_eq!(vm.id.len(), 36);
    assert_eq!((vm.memory_static_max, vm.memory_dynamic_max), (1 << 30, 512 << 20));
    assert_eq!((vm.vcpu_max, vm.vcpus), (2, 2));
    assert_eq!(vm.on_reboot, [api::Action::Start]);
    assert_eq!(vm.on_shutdown, [api::Action::Shutdown]);
    assert_eq!(vm.on_crash, [api::Action::Coredump, api::Action::Start]);
    assert_eq!(vm.on_softreboot, [api::Action::Softreboot]);
    let api::BuilderInfo::Pv(info) = &vm.ty else { panic!("{:?}", vm.ty) };
    let expected = api::DirectBoot {
        kernel: "/boot/vmlinuz-6.1.0-18-amd64".to_owned(),
        cmdline: "root=/dev/xvda2 ro elevator=noop".to_owned(),
        ramdisk: Some("/boot/initrd.img-6.1.0-18-amd64".to_owned()),
    };
    assert_eq!(info.boot, api::Boot::Direct(expected));
    let places: Vec<(&str, Option<api::Disk>)> =
        vbds.iter().map(|vbd| (vbd.id.device.as_str(), vbd.backend.clone())).collect();
    let local = |path: &str| Some(api::Disk::Local(path.to_owned()));
    assert_eq!(
        places,
        [
            ("xvda2", local("/dev/vg0/web.example.org-disk")),
            ("xvda1", local("/srv/xen/web.example.org-swap.img")),
        ]
    );
    assert!(vbds.iter().all(|vbd| vbd.id.vm == vm.id && vbd.mode == api::VbdMode::ReadWrite));
    assert_eq!(vifs.len(), 1);
    assert_eq!((vifs[0].mac.as_str(), vifs[0].id.device.as_str()), ("00:16:3e:5d:7a:01", "0"));
    assert_eq!(vifs[0].backend, api::Network::Local("xenbr0".to_owned()));
}

#[test]
fn a_pvh_guest_with_limits() {
    let (config, warnings) = good(PVH);
    assert_eq!(warnings, []);
    assert_eq!(
        config.uuid.map(|uuid| uuid.to_string()).as_deref(),
        Some("6b1e7d2a-6c1f-4a55-9a0e-4a6c1c1f0a01")
    );
    let (vm, vbds, vifs) = config.into_api();
    assert_eq!(vm.id, "6b1e7d2a-6c1f-4a55-9a0e-4a6c1c1f0a01");
    assert!(matches!(vm.ty, api::BuilderInfo::Pvh(_)));
    assert_eq!((vm.vcpus, vm.vcpu_max), (1, 4));
    assert_eq!(vm.scheduler_params.priority, Some((512, 150)));
    assert_eq!(vbds[0].extra_backend_keys.get("discard-enable").map(String::as_str), Some("0"));
    assert_eq!(vbds[1].mode, api::VbdMode::ReadOnly);
    // 10 Mbit/s is 1 250 000 bytes, rounded up to units of 1024.
    assert_eq!((vifs[0].rate, vifs[0].mtu), (Some((1221, 50_000)), 1500));
    assert_eq!((vifs[1].mac.as_str(), vifs[1].mtu, vifs[1].position), ("", 9000, 1));
}

#[test]
fn text_guests_have_a_screen_unless_they_are_to_have_none() {
    let guest =
        |kind: &str, vnc: &str| good(&format!("name='a'\ntype='{kind}'\nkernel='/k'\nmemory=64\n{vnc}"));
    for (kind, vnc, wanted) in
        [("pv", "vnc=1", true), ("pvh", "vnc=1", true), ("pv", "vnc=0", false), ("pv", "", true)]
    {
        let (config, warnings) = guest(kind, vnc);
        assert_eq!(warnings, []);
        let (vm, ..) = config.into_api();
        assert_eq!(crate::ops::plan::has_terminal(&vm), wanted, "{kind} {vnc}");
    }
    let (_, warnings) = good("name='a'\ntype='hvm'\nmemory=64\nvnc=0");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].to_string().contains("vga = 'none'"), "{}", warnings[0]);
}

#[test]
fn a_frame_buffer_is_the_contracts_flag() {
    let guest =
        |kind: &str, vfb: &str| format!("name='a'\ntype='{kind}'\nkernel='/k'\nmemory=64\nvfb=[{vfb}]");
    for (kind, vfb, wanted, remarks) in [
        ("pv", "'vnc=1,vnclisten=127.0.0.1,vncunused=1'", true, 0),
        ("pvh", "'vnc=1,vnclisten=127.0.0.1:3,sdl=0'", true, 0),
        ("pv", "'vncdisplay=4,vncpasswd=x,keymap=de,vnc=0,sdl=1'", true, 5),
        ("pv", "", false, 0),
    ] {
        let (config, warnings) = good(&guest(kind, vfb));
        let (vm, ..) = config.into_api();
        assert_eq!(crate::ops::plan::has_frame_buffer(&vm), wanted, "{kind} {vfb}");
        assert_eq!(warnings.len(), remarks, "{warnings:?}");
    }
    let (config, warnings) = good("name='a'\ntype='hvm'\nmemory=64\nvfb=['vnc=1']");
    assert!(!crate::ops::plan::has_frame_buffer(&config.into_api().0) && warnings.len() == 1, "{warnings:?}");
    for bad in ["'vnclisten=0.0.0.0'", "'vnclisten='", "'vnc=1','vnc=1'", "'nothing=1'", "'vnc=2'", "1"] {
        assert!(!errors(&guest("pv", bad)).is_empty(), "{bad}");
    }
}

#[test]
fn a_windows_guest_with_what_is_not_supported() {
    let (config, warnings) = good(HVM);
    let lines: Vec<String> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "line 17: `usbdevice` is not supported and is ignored",
            "line 18: unknown key `memmory` is ignored; did you mean `memory`?",
            "line 20: `on_watchdog`: \"preserve\" is ignored: a watchdog timeout is handled like a crash, by on_crash",
        ]
    );
    let (vm, vbds, _) = config.into_api();
    let api::BuilderInfo::Hvm(info) = &vm.ty else { panic!("{:?}", vm.ty) };
    assert_eq!(
        (info.boot_order.as_str(), info.video_mib, info.video),
        ("dc", 16, api::VideoCard::StandardVga)
    );
    assert!(matches!(info.firmware, api::FirmwareType::Uefi(_)));
    assert_eq!(info.vnc_ip.as_deref(), Some("127.0.0.1"));
    assert_eq!(vm.platformdata.get("nic_type").map(String::as_str), Some("e1000"));
    let kinds: Vec<api::VbdType> = vbds.iter().map(|vbd| vbd.ty).collect();
    assert_eq!(kinds, [api::VbdType::Disk, api::VbdType::Cdrom, api::VbdType::Cdrom]);
    assert_eq!(vbds[2].backend, None);
}

#[test]
fn processors_clocks_and_chipset_become_platformdata() {
    let platform = |file: &str| {
        let (vm, _, _) = good(file).0.into_api();
        let pairs: Vec<_> = vm.platformdata.iter().map(|(key, value)| format!("{key}={value}")).collect();
        (vm, pairs.join(" "))
    };
    let (vm, pairs) = platform(
        "name='a'\ntype='hvm'\nmemory=64\npae=0\nhap=0\nnestedhvm=1\ntsc_mode='native'\ntimer_mode=2\nmmio_hole=512\n\
         rtc_timeoffset='-60'\nms_vm_genid='generate'\nviridian=['defaults','!crash_ctl','stimer']\nacpi_s3=0",
    );
    assert_eq!(
        pairs,
        "hap=false nested-virt=true pae=false acpi_s3=false tsc_mode=2 timer_mode=2 mmio_hole_size=536870912 viridian=true \
         viridian_time_ref_count=true viridian_apic_assist=true viridian_stimer=true"
    );
    let api::BuilderInfo::Hvm(info) = &vm.ty else { panic!("{:?}", vm.ty) };
    assert_eq!(info.timeoffset, "-60");
    let id = vm.generation_id.expect("made");
    assert!(id.split(':').all(|half| half.parse::<u64>().is_ok()) && id.matches(':').count() == 1, "{id}");

    let (vm, pairs) = platform(&with("type='pvh'\npvshim=1\nhap=1\nmax_grant_frames=128\ntsc_mode=1"));
    assert_eq!(pairs, "hap=true tsc_mode=1 max_grant_frames=128");
    assert!(matches!(vm.ty, api::BuilderInfo::PvInPvh(_)));
    assert_eq!(platform(&with("viridian=1")).1, "");
    let (_, warnings) = good(&with("pvshim=1\nhap=0\nviridian=1"));
    let said: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|line| line.contains("`pvshim`") && line.contains("type pvh")), "{said:?}");
    assert_eq!(said.iter().filter(|line| line.contains("only hvm")).count(), 2, "{said:?}");
    for (key, value) in [
        ("tsc_mode", "'native_paravirt'"),
        ("timer_mode", "4"),
        ("viridian", "['nonsense']"),
        ("mmio_hole", "100"),
        ("rtc_timeoffset", "'noon'"),
        ("ms_vm_genid", "'often'"),
    ] {
        let errors = errors(&format!("name='a'\ntype='hvm'\nmemory=64\n{key}={value}"));
        assert!(matches!(&errors[..], [error] if error.contains(&format!("line 4: `{key}`"))), "{errors:?}");
    }
}

#[test]
fn the_disk_controller_of_an_hvm_guest_is_ide_or_ahci() {
    let key = |file: &str| good(file).0.into_api().0.platformdata.get("hdtype").cloned();
    assert_eq!(key(&hvm("")), None);
    for word in ["ide", "ahci"] {
        assert_eq!(key(&hvm(&format!("hdtype='{word}'"))).as_deref(), Some(word));
    }
    assert!(errors(&hvm("hdtype='scsi'"))[0].contains("ide or ahci"));
    assert_eq!(key(&with("hdtype='ahci'")), None);
    assert!(good(&with("hdtype='ahci'")).1[0].to_string().contains("only hvm guests"));
}

fn hvm(more: &str) -> String {
    format!("name='a'\ntype='hvm'\nmemory=64\n{more}")
}

#[test]
fn shadow_memory_becomes_the_shadow_multiplier() {
    let of = |more: &str| {
        let (config, warnings) = good(&hvm(more));
        let (vm, ..) = config.into_api();
        let api::BuilderInfo::Hvm(info) = &vm.ty else { panic!("{:?}", vm.ty) };
        (info.shadow_multiplier, warnings.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    // One vcpu and 64 MiB have 1280 KiB; four and 1 GiB 8 MiB.
    for (more, multiplier) in [
        ("", 1.0),
        ("shadow_memory=5", 4.0),
        ("shadow_memory=3", 2.4),
        ("maxvcpus=4\nmaxmem=1024\nshadow_memory=12", 1.5),
    ] {
        assert_eq!(of(more), (multiplier, Vec::new()), "{more}");
    }
    let (multiplier, said) = of("shadow_memory=1");
    assert!((multiplier - 1.0).abs() < f64::EPSILON, "{multiplier}");
    assert!(said[0].contains("`shadow_memory`: \"1\" is ignored: the guest has 1280 KiB"), "{said:?}");
    for (bad, why) in [("1000", "at most 100 times the 1280 KiB"), ("'much'", "a number from 0")] {
        let errors = errors(&hvm(&format!("shadow_memory={bad}")));
        assert!(matches!(&errors[..], [error] if error.contains(why)), "{errors:?}");
    }
    let (_, warnings) = good(&with("type='pvh'\nshadow_memory=64"));
    assert!(warnings[0].to_string().contains("only hvm guests"), "{warnings:?}");
}

#[test]
fn an_hvm_guest_can_be_started_with_a_kernel() {
    let pairs = |more: &str| {
        let (config, warnings) = good(&hvm(more));
        let platform = config.into_api().0.platformdata;
        let pairs: Vec<_> = platform.iter().map(|(key, value)| format!("{key}={value}")).collect();
        (pairs, warnings.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    let (direct, none) = pairs("kernel='/boot/k'\nramdisk='/boot/r'\nroot='/dev/xvda1'\nextra='quiet'");
    assert_eq!(direct, ["kernel=/boot/k", "ramdisk=/boot/r", "cmdline=root=/dev/xvda1 quiet"]);
    assert_eq!(none, [""; 0]);
    assert_eq!(pairs("kernel='/boot/k'").0, ["kernel=/boot/k"]);
    let (disk, warnings) = pairs("ramdisk='/boot/r'\ncmdline='x'\nbootloader='pygrub'");
    assert_eq!((disk.len(), warnings.len()), (0, 3), "{warnings:?}");
    for relative in ["kernel='k'", "kernel='/k'\nramdisk='r'"] {
        assert!(errors(&hvm(relative))[0].contains("whole path"), "{relative}");
    }
}

#[test]
fn emulated_cards_are_of_one_model_and_a_screen_can_be_left_out() {
    let model = |vifs: &str| good(&hvm(&format!("vif=[{vifs}]"))).0.into_api().0.platformdata;
    assert_eq!(model("'model=e1000','model=e1000'").get("nic_type").map(String::as_str), Some("e1000"));
    assert_eq!(model("'bridge=xenbr0'").get("nic_type"), None);
    for (vifs, text) in [
        ("'model=e1000',''", "one model"),
        ("'','model=rtl8139'", "one model"),
        ("'model=e1000','model=rtl8139'", "one model"),
        ("'model=virtio-net'", "rtl8139 and e1000"),
    ] {
        let errors = errors(&hvm(&format!("vif=[{vifs}]")));
        assert!(matches!(&errors[..], [error] if error.contains(text)), "{vifs}: {errors:?}");
    }
    let (config, warnings) = good(&with("vif=['model=virtio-net']"));
    assert!(warnings[0].to_string().contains("only hvm guests"), "{warnings:?}");
    assert_eq!(config.into_api().0.platformdata.get("nic_type"), None);
    let (vm, ..) = good(&hvm("vga='none'\nvideoram=16")).0.into_api();
    let api::BuilderInfo::Hvm(info) = &vm.ty else { panic!("{:?}", vm.ty) };
    assert_eq!(info.video_mib, 0);
    assert!(errors(&hvm("vga='voodoo'"))[0].contains("cirrus or none"));
}

#[test]
fn a_boot_loader_gets_the_first_disk() {
    let (vm, _, _) = good(PYGRUB).0.into_api();
    let api::BuilderInfo::Pv(api::PvInfo { boot: api::Boot::Indirect(boot), .. }) = &vm.ty else {
        panic!("{:?}", vm.ty)
    };
    assert_eq!((boot.bootloader.as_str(), boot.bootloader_args.as_str()), ("pygrub", "--entry 1"));
    assert_eq!(boot.devices, [api::Disk::Local("/dev/vg0/db".to_owned())]);
}

#[test]
fn all_mistakes_are_reported_at_once() {
    assert_eq!(
        errors(BROKEN),
        [
            "line 2: `name`: \"a/b\" is not accepted: a name has 1 to 200 bytes, without `/` and control characters",
            "line 3: `uuid`: \"1234\" is not accepted: a uuid is 32 hexadecimal digits in groups of 8-4-4-4-12, not all \
         zero; make one with `uuidgen`, or leave the key out",
            "line 4: `memory`: \"0\" is not accepted: a number from 1 to 16777216",
            "line 5: `vcpus`: \"0\" is not accepted: a number from 1 to 8192",
            "line 8: `disk`: vdev xvda is already used on line 7: give each device its own",
            "line 9: `disk`: \"format qed\" is not supported: convert the image with `qemu-img convert -O qcow2 IMAGE \
         IMAGE.qcow2` and name that",
            "line 11: `vif`: \"00:16:3e:zz:00:01\" is not accepted: \"00:16:3e:zz:00:01\" is not a MAC address: write \
         six two-digit hexadecimal bytes, like 00:16:3e:12:34:56",
            "line 12: `on_crash`: \"explode\" is not accepted: the actions are destroy, restart, rename-restart, \
         preserve, coredump-destroy, coredump-restart, soft-reset",
            "`kernel` is missing: pv and pvh guests need kernel = '/path' or bootloader = 'pygrub'; for a guest with \
         BIOS or UEFI add type = 'hvm'",
        ]
    );
}

#[test]
fn each_mistake_alone() {
    assert_eq!(errors(&with("")), [""; 0]);
    for (more, part) in [
        ("maxmem=32", "at least memory"),
        ("vcpus=4\nmaxvcpus=2", "at least vcpus"),
        ("type='pvh'\nvcpus=129", "1 to 128"),
        ("vcpus=8193", "1 to 8192"),
        ("memory=16777217", "1 to 16777216"),
        ("memory=['a']", "a list"),
        ("memory='lots'", "lots"),
        ("uuid='00000000-0000-0000-0000-000000000000'", "not all zero"),
        ("uuid='{6b1e7d2a-6c1f-4a55-9a0e-4a6c1c1f0a01}'", "hexadecimal digits"),
        ("type='xen'", "pv, pvh or hvm"),
        ("builder='qemu'", "generic or hvm"),
        ("kernel='vmlinuz'", "whole path"),
        ("ramdisk='initrd'", "whole path"),
        ("cpu_weight=0", "1 to 65535"),
        ("disk=[1]", "quoted texts"),
        ("vif=['mac=00:16:3e:00:00:01','mac=00:16:3e:00:00:01']", "already used"),
        ("name=['x']", "a quoted text"),
        ("type='hvm'\nboot='hd'", "three letters"),
        ("type='hvm'\nfirmware='coreboot'", "bios or uefi"),
        ("type='hvm'\nhap=2", "0 to 1"),
    ] {
        let found = errors(&with(more));
        assert!(found.len() == 1 && found[0].contains(part), "{more}: {found:?}");
    }
    assert!(errors("").iter().any(|error| error.contains("`name` is missing")));
    assert!(errors("memory 1").iter().any(|error| error.contains("line 1")));
}

#[test]
fn the_later_setting_wins_with_a_remark() {
    let (config, warnings) = good(&with("memory=128"));
    assert_eq!(config.memory_mib, 128);
    assert_eq!(warnings, [Warning::Repeated { line: 4, key: "memory".to_owned(), first: 3 }]);
}

#[test]
fn a_command_line_takes_precedence_over_its_parts() {
    let (config, warnings) = good(&with("root='/dev/xvda'\nextra='quiet'\ncmdline='console=hvc0'"));
    let Guest::Pv(Kernel::Direct { cmdline, .. }) = config.guest else { panic!() };
    assert_eq!((cmdline.as_str(), warnings.len()), ("console=hvc0", 2));
}

#[test]
fn each_action_has_its_counterpart() {
    use api::Action::{Coredump, Pause, Shutdown, Softreboot, Start};
    for (word, expected) in [
        ("destroy", vec![Shutdown]),
        ("restart", vec![Start]),
        ("rename-restart", vec![Start]),
        ("preserve", vec![Pause]),
        ("coredump-destroy", vec![Coredump, Shutdown]),
        ("coredump-restart", vec![Coredump, Start]),
        ("soft-reset", vec![Softreboot]),
    ] {
        let (vm, _, _) = good(&with(&format!("on_poweroff='{word}'"))).0.into_api();
        assert_eq!(vm.on_shutdown, expected, "{word}");
    }
}

/// A value no key takes draws a remark, whatever the kind of guest that has the key.
#[test]
fn every_supported_key_is_read() {
    for key in keys::SUPPORTED {
        let named = |kind: &str| match parse(format!("type='{kind}'\n{key}=[[1]]").as_bytes()) {
            Ok((_, warnings)) => {
                warnings.iter().any(|warning| warning.to_string().contains(&format!("`{key}`")))
            }
            Err(errors) => errors.to_string().contains(&format!("`{key}`")),
        };
        assert!(named("pv") || named("hvm"), "{key}");
    }
}

proptest! {
    #[test]
    fn never_panics(file: Vec<u8>) {
        let _ = parse(&file);
    }

    #[test]
    fn never_panics_on_damaged_files(at in 0usize..2000, byte: u8) {
        for file in [PV, PVH, HVM, PYGRUB, BROKEN] {
            let mut bytes = file.as_bytes().to_vec();
            if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
            if let Ok((config, _)) = parse(&bytes) {
                config.into_api();
            }
        }
    }

    #[test]
    fn sizes_arrive(memory in 1u32..=1 << 20, more in 0u32..=1 << 20, vcpus in 1u16..=64, more_vcpus in 0u16..=64) {
        let (maxmem, maxvcpus) = (memory + more, vcpus + more_vcpus);
        let file = format!("name='x'\ntype='pvh'\nkernel='/k'\nmemory={memory}\nmaxmem={maxmem}\nvcpus={vcpus}\nmaxvcpus={maxvcpus}");
        let (vm, _, _) = good(&file).0.into_api();
        prop_assert_eq!(vm.memory_dynamic_min, i64::from(memory) << 20);
        prop_assert_eq!(vm.memory_static_max, i64::from(maxmem) << 20);
        prop_assert_eq!((vm.vcpus, vm.vcpu_max), (isize::try_from(vcpus)?, isize::try_from(maxvcpus)?));
    }
}
