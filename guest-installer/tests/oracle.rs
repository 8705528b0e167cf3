//! Our `pygrub` beside Debian's on the same disks: where Debian's is right ours says the same, and where it is not the
//! table in `docs/boot.md` says so. The table is printed from the cases here; `BLESS=1` writes it anew.

mod common;

use common::*;
use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Where `xen-utils-4.17` has it.
const DEBIANS: &str = "/usr/lib/xen-4.17/bin/pygrub";

const ID: &str = "0f0e0d0c-0b0a-4908-8706-050403020100";

/// What Debian's makes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Debians {
    /// What ours does.
    Same,
    /// An error, although there is something to boot.
    Fails,
    /// It boots something, and not what the guest's own boot loader would.
    Wrong,
}

struct Case {
    /// For the table.
    what: &'static str,
    make: fn(&Scratch) -> PathBuf,
    debians: Debians,
    /// The kernel that is right, `a` or `b`; none when there is none.
    right: Option<&'static str>,
}

const fn case(
    what: &'static str,
    debians: Debians,
    right: &'static str,
    make: fn(&Scratch) -> PathBuf,
) -> Case {
    Case { what, make, debians, right: Some(right) }
}

fn kernel(name: &str) -> Vec<u8> {
    [b"\x7fELF", name.as_bytes(), &noise(20_000)].concat()
}

/// A tree with kernels `a` and `b` in a directory, and more files.
fn tree(scratch: &Scratch, boot: &str, files: &[(&str, &str)]) -> PathBuf {
    let named = |what: &str, name: &str| format!("{boot}/{what}-{name}").trim_start_matches('/').to_owned();
    let mut all = Vec::new();
    for name in ["a", "b"] {
        all.push((named("vmlinuz", name), kernel(name)));
        all.push((named("initrd", name), format!("ramdisk {name}").into_bytes()));
    }
    all.extend(files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())));
    let all: Vec<(&str, &[u8])> = all.iter().map(|(name, text)| (&**name, &**text)).collect();
    scratch.tree("tree", &all)
}

fn ext4(scratch: &Scratch, files: &[(&str, &str)]) -> PathBuf {
    let image = scratch.empty("ext4", 16 << 20);
    ext(&image, &tree(scratch, "boot", files), &["-t", "ext4", "-U", ID]);
    image
}

fn grub(scratch: &Scratch, text: &str) -> PathBuf {
    ext4(scratch, &[("boot/grub/grub.cfg", text)])
}

/// Debian's shape with a default.
fn debian(default: &str) -> String {
    format!(
        "set default=\"{default}\"\nif [ x$feature_menuentry_id = xy ]; then\n  menuentry_id_option=\"--id\"\nelse\n  \
         menuentry_id_option=\"\"\nfi\nexport menuentry_id_option\nfunction load_video {{\n  insmod all_video\n}}\n\
         menuentry 'Debian' --class debian $menuentry_id_option 'simple' {{\n\tload_video\n\tif [ x$grub_platform = xxen ]; \
         then insmod xzio; fi\n\tlinux\t/boot/vmlinuz-a root=UUID=1 ro quiet\n\tinitrd\t/boot/initrd-a\n}}\n\
         submenu 'Advanced' $menuentry_id_option 'advanced' {{\n\tmenuentry 'Debian, new' --class debian \
         $menuentry_id_option 'new' {{\n\t\tlinux\t/boot/vmlinuz-a root=UUID=1 ro\n\t\tinitrd\t/boot/initrd-a\n\t}}\n\t\
         menuentry 'Debian, old' --class debian $menuentry_id_option 'old' {{\n\t\tlinux\t/boot/vmlinuz-b root=UUID=1 ro\n\
         \t\tinitrd\t/boot/initrd-b\n\t}}\n}}\n"
    )
}

const ONE: &str = "menuentry 'One' {\n linux /boot/vmlinuz-a ro\n initrd /boot/initrd-a\n}\n";

/// A disk with a partition table and the ext4 image of [`ONE`] at an offset.
fn partitioned(scratch: &Scratch, script: &str, offset: u64) -> PathBuf {
    let disk = scratch.empty("disk", 40 << 20);
    partition(&disk, script);
    place(&grub(scratch, ONE), &disk, offset);
    disk
}

fn fedora(scratch: &Scratch) -> PathBuf {
    let entry = |name: &str| {
        format!("title F {name}\nversion {name}\nlinux /vmlinuz-{name}\ninitrd /initrd-{name}\noptions ro\n")
    };
    let files = [
        ("boot/grub2/grub.cfg", "load_env\ninsmod blscfg\nblscfg\n"),
        ("boot/loader/entries/a.conf", &entry("a")),
        ("boot/loader/entries/b.conf", &entry("b")),
    ];
    ext4(scratch, &files)
}

const NESTED: &str = "if [ -f /boot/vmlinuz-a ]; then\n  submenu 'SLES' {\n    menuentry 'SLES' {\n      linux /boot/vmlinuz-a ro\n      \
                    initrd /boot/initrd-a\n    }\n  }\nfi\n";

/// Alpine's shape.
const ALPINE: &str = "DEFAULT virt\nLABEL virt\n  LINUX vmlinuz-a\n  INITRD initrd-a\n  APPEND ro\n";

const LEGACY: &str = "default 1\ntitle B\nroot (hd0,0)\nkernel /boot/vmlinuz-b ro\ninitrd /boot/initrd-b\ntitle A\nroot (hd0,0)\n\
                      kernel /boot/vmlinuz-a ro\ninitrd /boot/initrd-a\n";

const CASES: &[Case] = &[
    case("ext4, GRUB 2 as Debian 12 has it", Debians::Same, "a", |s| grub(s, &debian("0"))),
    case("the default is an id in a submenu", Debians::Wrong, "b", |s| grub(s, &debian("advanced>old"))),
    case("the default is a title in a submenu", Debians::Wrong, "b", |s| {
        grub(s, &debian("Advanced>Debian, old"))
    }),
    case("the default is `1>1`", Debians::Wrong, "b", |s| grub(s, &debian("1>1"))),
    case("the default is `saved_entry` of grubenv", Debians::Wrong, "b", |s| {
        let text = format!("load_env\n{}", debian("${saved_entry}"));
        let env = "# GRUB Environment Block\nsaved_entry=advanced>old\n####";
        ext4(s, &[("boot/grub/grub.cfg", &text), ("boot/grub/grubenv", env)])
    }),
    Case {
        what: "the default names no entry: an error that lists the entries",
        debians: Debians::Wrong,
        right: None,
        make: |s| grub(s, &debian("gone")),
    },
    case("`linuxefi` and `initrdefi`", Debians::Fails, "a", |s| {
        grub(s, &ONE.replace("linux ", "linuxefi ").replace("initrd ", "initrdefi "))
    }),
    case("the kernel's name in a variable", Debians::Fails, "a", |s| {
        grub(s, &format!("k=vmlinuz-a\n{}", ONE.replace("vmlinuz-a", "$k")))
    }),
    case("two ramdisks in one line", Debians::Fails, "a", |s| {
        grub(s, &ONE.replace("/boot/initrd-a", "/boot/initrd-b /boot/initrd-a"))
    }),
    case("entries below `if` and in a submenu", Debians::Same, "a", |s| {
        ext4(s, &[("boot/grub2/grub.cfg", NESTED)])
    }),
    case("boot loader entries (`blscfg`), as Fedora and RHEL have them", Debians::Fails, "b", fedora),
    case("systemd-boot on FAT", Debians::Fails, "a", |s| {
        let entry = "title A\nlinux /vmlinuz-a\ninitrd /initrd-a\noptions ro\n";
        let files = [("loader/entries/a.conf", entry), ("loader/loader.conf", "default a.conf\n")];
        let (image, tree) = (s.empty("fat", 16 << 20), tree(s, "", &files));
        fat(&image, &tree, &["-F", "16"]);
        image
    }),
    case("GRUB legacy", Debians::Same, "a", |s| ext4(s, &[("boot/grub/menu.lst", LEGACY)])),
    case("extlinux with `KERNEL` and whole paths", Debians::Same, "a", |s| {
        let text = "default a\nlabel a\n kernel /boot/vmlinuz-a\n append initrd=/boot/initrd-a ro\n";
        ext4(s, &[("extlinux.conf", text)])
    }),
    case("extlinux with `LINUX`, `INITRD` and relative paths, as Alpine has it", Debians::Fails, "a", |s| {
        ext4(s, &[("boot/extlinux.conf", ALPINE)])
    }),
    case("XFS, version 5", Debians::Fails, "a", |s| {
        let image = s.empty("xfs", 320 << 20);
        xfs(&image, &tree(s, "boot", &[("boot/grub/grub.cfg", ONE)]), &[]);
        image
    }),
    case("btrfs", Debians::Fails, "a", |s| {
        let image = s.empty("btrfs", 128 << 20);
        btrfs(&image, &tree(s, "boot", &[("boot/grub/grub.cfg", ONE)]), &[]);
        image
    }),
    case("FAT with GRUB 2", Debians::Same, "a", |s| {
        let (image, tree) = (s.empty("fat", 16 << 20), tree(s, "boot", &[("boot/grub/grub.cfg", ONE)]));
        fat(&image, &tree, &["-F", "16"]);
        image
    }),
    case("ISO 9660 with Rock Ridge", Debians::Same, "a", |s| {
        let image = s.path("iso");
        iso(&image, &tree(s, "boot", &[("boot/grub/grub.cfg", ONE)]), &["-R"]);
        image
    }),
    case("a primary partition", Debians::Same, "a", |s| {
        partitioned(s, "label: dos\nstart=2048, type=83, bootable\n", 1 << 20)
    }),
    case("a logical partition", Debians::Fails, "a", |s| {
        let script = "label: dos\nstart=2048, size=2048, type=82\nstart=4096, type=5\nstart=6144, size=40960, type=83\n";
        partitioned(s, script, 6144 * 512)
    }),
    case("GPT", Debians::Same, "a", |s| partitioned(s, "label: gpt\nstart=2048, size=40960\n", 1 << 20)),
];

/// What a program delivers: the kernel's name, the ramdisk and the arguments.
fn boot(program: &Path, image: &Path, out: &Path) -> Result<(String, String, String), String> {
    fs::create_dir_all(out).unwrap();
    let directory = format!("--output-directory={}", out.display());
    let mut command = Command::new(program);
    let output = command.args(["-q", "--output-format=simple", &directory]).arg(image).output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).unwrap();
    let field =
        |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default().to_owned();
    let content = |path: String| fs::read(&path).unwrap_or_default();
    let delivered = content(field("kernel "));
    let name = ["a", "b"].into_iter().find(|name| delivered == kernel(name)).unwrap_or("something else");
    let ramdisk = String::from_utf8_lossy(&content(field("ramdisk "))).into_owned();
    Ok((name.to_owned(), ramdisk, field("args ")))
}

#[test]
fn debians_pygrub_and_ours() {
    if !Path::new(DEBIANS).exists() {
        eprintln!("skipped: xen-utils-4.17 is not installed");
        return;
    }
    let mut table = String::from("| disk | Debian's pygrub 4.17 | ours |\n|---|---|---|\n");
    for case in CASES {
        let scratch = Scratch::new();
        let image = (case.make)(&scratch);
        let ours = boot(Path::new(env!("CARGO_BIN_EXE_pygrub")), &image, &scratch.path("ours"));
        let debians = boot(Path::new(DEBIANS), &image, &scratch.path("debians"));
        match case.right {
            Some(right) => assert_eq!(ours.as_ref().map(|o| &*o.0), Ok(right), "{}", case.what),
            None => assert!(ours.as_ref().is_err_and(|e| e.contains("there are")), "{}: {ours:?}", case.what),
        }
        let seen = match (&debians, &ours) {
            (Ok(theirs), Ok(ours)) if theirs == ours => Debians::Same,
            (Ok(_), _) => Debians::Wrong,
            (Err(_), _) => Debians::Fails,
        };
        assert_eq!(seen, case.debians, "{}: {debians:?}, ours {ours:?}", case.what);
        let theirs = match case.debians {
            Debians::Same => "boots it",
            Debians::Fails => "fails",
            Debians::Wrong => "boots another entry without a word",
        };
        let ours = if case.right.is_some() { "boots it" } else { "refuses" };
        let _ = writeln!(table, "| {} | {theirs} | {ours} |", case.what);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/boot.md");
    let text = fs::read_to_string(path).unwrap();
    let (before, rest) = text.split_once("<!-- table -->\n").expect("the table's place");
    let (_, after) = rest.split_once("<!-- end -->\n").expect("the table's end");
    let wanted = format!("{before}<!-- table -->\n{table}<!-- end -->\n{after}");
    if std::env::var_os("BLESS").is_some() {
        fs::write(path, &wanted).unwrap();
    }
    assert!(
        text == wanted || std::env::var_os("BLESS").is_some(),
        "docs/boot.md is older than this test: BLESS=1"
    );
}

#[test]
fn both_print_the_same_of_a_configuration_without_its_disk() {
    if !Path::new(DEBIANS).exists() {
        eprintln!("skipped: xen-utils-4.17 is not installed");
        return;
    }
    let scratch = Scratch::new();
    let (config, out) = (scratch.path("config"), scratch.path("out"));
    fs::create_dir(&out).unwrap();
    let printed = |program: &str, options: &[&str]| {
        let directory = format!("--output-directory={}", out.display());
        let output =
            Command::new(program).args(["-q", "--isconfig", &directory]).args(options).arg(&config).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (text, options) in [
        (ONE, &[][..]),
        (ONE, &["--args=more"]),
        (&ONE.replace(" initrd /boot/initrd-a\n", ""), &[]),
        (&format!("set default=1\n{ONE}{}", ONE.replace("-a", "-b").replace("One", "Two")), &[]),
        (&format!("{ONE}{}", ONE.replace("-a", "-b").replace("One", "Two")), &["--entry=Two"]),
        (&format!("{ONE}{}", ONE.replace("-a", "-b").replace("One", "Two")), &["--entry=1"]),
    ] {
        fs::write(&config, text).unwrap();
        assert_eq!(
            printed(env!("CARGO_BIN_EXE_pygrub"), options),
            printed(DEBIANS, options),
            "{text} {options:?}"
        );
    }
}
