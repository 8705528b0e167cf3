//! What can be checked without a hypervisor: the description, the parser, libxenguest's parsing on a dummy handle.

use proptest::prelude::*;

use super::*;

/// A one-segment ELF64 file with these Xen notes.
fn elf_with_notes(notes: &[(u32, &[u8])]) -> Vec<u8> {
    let mut area = Vec::new();
    for (kind, value) in notes {
        let size = u32::try_from(value.len()).unwrap();
        area.extend([4u32.to_le_bytes(), size.to_le_bytes(), kind.to_le_bytes()].concat());
        area.extend(b"Xen\0");
        area.extend(*value);
        area.resize(area.len().next_multiple_of(4), 0);
    }
    let load_at: u64 = 0x1000;
    let mut file = vec![0u8; 0x1000];
    let mut put =
        |at: usize, bytes: &[u8]| file.get_mut(at..at + bytes.len()).unwrap().copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes()); // ET_EXEC
    put(18, &62u16.to_le_bytes()); // EM_X86_64
    put(20, &1u32.to_le_bytes());
    put(24, &0x10_0000u64.to_le_bytes()); // entry
    put(32, &64u64.to_le_bytes()); // program headers
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let mut header = |at: usize, kind: u32, offset: u64, size: u64| {
        put(at, &kind.to_le_bytes());
        put(at + 4, &7u32.to_le_bytes()); // rwx
        put(at + 8, &offset.to_le_bytes());
        for (field, value) in [(16, 0x10_0000u64), (24, 0x10_0000), (32, size), (40, size), (48, 0x1000)] {
            put(at + field, &value.to_le_bytes());
        }
    };
    header(64, 1, load_at, 0x1000);
    header(120, 4, 0x2000, area.len() as u64);
    file.resize(0x2000, 0x90);
    file.extend(area);
    file
}

const PV_LINUX: &[(u32, &[u8])] = &[
    (6, b"linux\0"),
    (5, b"xen-3.0\0"),
    (8, b"generic\0"),
    (1, &0x10_0000u64.to_le_bytes()),
    (3, &0u64.to_le_bytes()),
    (2, &0x10_1000u64.to_le_bytes()),
];
const PVH_LINUX: &[(u32, &[u8])] = &[(6, b"linux\0"), (5, b"xen-3.0\0"), (18, &0x10_0000u32.to_le_bytes())];

fn image(kernel: &[u8]) -> PvImage<'_> {
    PvImage {
        kernel: Kernel::Bytes(kernel),
        ramdisk: None,
        cmdline: "console=hvc0",
        features: None,
        memory_mib: 64,
        max_vcpus: 1,
        console_evtchn: Port::new(2),
        console_domid: DomId::DOM0,
        store_evtchn: Port::new(1),
        store_domid: DomId::DOM0,
        claim: false,
    }
}

fn dummy() -> Xenctrl {
    Xenctrl::open_dummy().unwrap()
}

fn guest() -> DomId {
    DomId::new(1).unwrap()
}

#[test]
fn notes_tell_what_a_kernel_can_be() {
    let kind = |notes: &[(u32, &[u8])]| match probe_kernel(&elf_with_notes(notes)) {
        KernelKind::Elf(elf) => elf,
        other => panic!("{other:?}"),
    };
    let pv = kind(PV_LINUX);
    assert!(pv.pv && !pv.pvh && pv.linux && pv.is_64bit && pv.xen_notes, "{pv:?}");
    let pvh = kind(PVH_LINUX);
    assert!(!pvh.pv && pvh.pvh && pvh.linux, "{pvh:?}");
    let both = kind(&[PV_LINUX, PVH_LINUX].concat());
    assert!(both.pv && both.pvh, "{both:?}");
    let mini_os = kind(&[(6, b"Mini-OS\0"), (5, b"xen-3.0\0")]);
    assert!(mini_os.pv && !mini_os.linux, "starts at its ELF entry point: {mini_os:?}");
    let plain = kind(&[]);
    assert!(!plain.pv && !plain.pvh && !plain.xen_notes, "{plain:?}");
}

#[test]
fn files_that_are_no_kernel_are_told_apart() {
    assert_eq!(probe_kernel(b""), KernelKind::Empty);
    assert_eq!(probe_kernel(b"#!/bin/sh\n"), KernelKind::Unknown);
    assert_eq!(probe_kernel(&[0x1f, 0x8b, 8, 0]), KernelKind::Gzip);
    assert_eq!(probe_kernel(b"\x7fELF"), KernelKind::Unknown, "cut off");
    let mut bzimage = vec![0u8; 0x300];
    bzimage.get_mut(0x202..0x206).unwrap().copy_from_slice(b"HdrS");
    assert_eq!(probe_kernel(&bzimage), KernelKind::BzImage);
}

#[test]
fn libxenguest_accepts_a_pv_kernel_without_a_hypervisor() {
    let elf = check_pv_kernel(&dummy(), &elf_with_notes(PV_LINUX)).unwrap();
    assert!(elf.pv);
}

#[test]
fn a_pvh_only_kernel_is_not_pv_capable() {
    let error = check_pv_kernel(&dummy(), &elf_with_notes(PVH_LINUX)).unwrap_err();
    assert!(matches!(error, BuildError::NotCapable { kind: GuestKind::Pv, .. }), "{error}");
}

#[test]
fn libxenguest_accepts_a_pvh_kernel_without_a_hypervisor() {
    let elf = check_pvh_kernel(&dummy(), &elf_with_notes(PVH_LINUX)).unwrap();
    assert!(elf.pvh && !elf.rsdp_anywhere);
    let error = check_pvh_kernel(&dummy(), &elf_with_notes(PV_LINUX)).unwrap_err();
    assert!(matches!(error, BuildError::NotCapable { kind: GuestKind::Pvh, .. }), "{error}");
}

#[test]
fn a_kernel_says_where_it_looks_for_the_root_pointer() {
    let anywhere = |note: (u32, &[u8])| match probe_kernel(&elf_with_notes(&[PVH_LINUX, &[note]].concat())) {
        KernelKind::Elf(elf) => elf.rsdp_anywhere,
        other => panic!("{other:?}"),
    };
    assert!(anywhere((17, &0x8801u32.to_le_bytes())));
    assert!(!anywhere((17, &0x0801u32.to_le_bytes())));
    assert!(anywhere((10, b"!writable_page_tables|linux_rsdp_unrestricted\0")));
    assert!(!anywhere((10, b"!writable_page_tables\0")));
}

#[test]
fn too_many_acpi_tables_are_refused() {
    let tables = vec![0; (MAX_ACPI_PAGES + 1) * 4096];
    let kernel = elf_with_notes(PVH_LINUX);
    let pv = image(&kernel);
    let wanted = PvhImage {
        kernel: Kernel::Bytes(&kernel),
        modules: &[],
        cmdline: "",
        acpi: PvhAcpi { rsdp: &[0; RSDP_SIZE], tables: &tables },
        memory_mib: 64,
        max_vcpus: 1,
        console_evtchn: pv.console_evtchn,
        console_domid: pv.console_domid,
        store_evtchn: pv.store_evtchn,
        store_domid: pv.store_domid,
        claim: false,
    };
    let error = build_pvh(&dummy(), guest(), &wanted).unwrap_err();
    assert!(matches!(error, BuildError::Invalid { field: "acpi", .. }), "{error}");
}

#[test]
fn an_elf_file_without_notes_is_not_pv_capable() {
    let error = check_pv_kernel(&dummy(), &elf_with_notes(&[])).unwrap_err();
    assert!(matches!(error, BuildError::NotCapable { .. }), "{error}");
}

#[test]
fn libxenguests_words_are_carried() {
    let wrong_version: &[(u32, &[u8])] =
        &[(6, b"linux\0"), (5, b"xen-9.9\0"), (8, b"generic\0"), (1, &0x10_0000u64.to_le_bytes())];
    let error = check_pv_kernel(&dummy(), &elf_with_notes(wrong_version)).unwrap_err();
    assert!(matches!(&error, BuildError::NotCapable { detail, .. } if detail.contains("xc_dom")), "{error}");
}

#[test]
fn damaged_packages_are_not_kernels() {
    let mut bzimage = vec![0u8; 0x1000];
    bzimage.get_mut(0x202..0x206).unwrap().copy_from_slice(b"HdrS");
    for file in [bzimage, vec![0x1f, 0x8b, 8, 0, 0, 0], b"hello".to_vec(), Vec::new()] {
        let error = check_pv_kernel(&dummy(), &file).unwrap_err();
        assert!(matches!(error, BuildError::NotAKernel { .. }), "{error}");
    }
}

#[test]
fn the_description_is_checked_before_any_call() {
    let xc = dummy();
    let kernel = elf_with_notes(PV_LINUX);
    let long = "x".repeat(MAX_COMMAND_LINE + 1);
    let build = |change: &dyn Fn(&mut PvImage<'_>)| {
        let mut wanted = image(&kernel);
        wanted.cmdline = "quiet";
        change(&mut wanted);
        build_pv(&xc, guest(), &wanted).unwrap_err()
    };
    let with_line =
        |line: &str| build_pv(&xc, guest(), &PvImage { cmdline: line, ..image(&kernel) }).unwrap_err();
    assert!(matches!(with_line(&long), BuildError::CommandLine { .. }));
    assert!(matches!(with_line("a\0b"), BuildError::CommandLine { .. }));
    assert!(matches!(build(&|i| i.features = Some("\0")), BuildError::Invalid { field: "features", .. }));
    for size in [0, MEMORY_MIB_LIMIT, u64::MAX] {
        assert!(matches!(build(&|i| i.memory_mib = size), BuildError::Invalid { field: "memory", .. }));
    }
    let longest = "x".repeat(MAX_COMMAND_LINE);
    let error = with_line(&longest);
    assert!(matches!(error, BuildError::Hypercall(Error::NoXen { .. })), "{error}");
}

/// A distribution's kernel, where there is one (`XEN_TEST_KERNEL` names it).
#[test]
fn a_real_kernel_is_pv_capable() {
    let Some(path) = std::env::var_os("XEN_TEST_KERNEL") else { return };
    let kernel = std::fs::read(path).unwrap();
    assert_eq!(probe_kernel(&kernel), KernelKind::BzImage);
    let elf = check_pv_kernel(&dummy(), &kernel).unwrap();
    assert!(elf.pv && elf.pvh && elf.linux, "{elf:?}");
    check_pvh_kernel(&dummy(), &kernel).unwrap();
}

proptest! {
    #[test]
    fn any_bytes_are_some_kind(bytes: Vec<u8>) {
        probe_kernel(&bytes);
    }

    #[test]
    fn a_damaged_elf_file_is_some_kind(at in 0usize..0x2080, byte: u8) {
        let mut file = elf_with_notes(PV_LINUX);
        if let Some(victim) = file.get_mut(at) {
            *victim = byte;
        }
        probe_kernel(&file);
    }

    #[test]
    fn a_cut_elf_file_is_some_kind(length in 0usize..0x2080) {
        let mut file = elf_with_notes(PV_LINUX);
        file.truncate(length);
        probe_kernel(&file);
    }
}
