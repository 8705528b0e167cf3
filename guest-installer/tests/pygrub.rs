//! The program `pygrub`: its output in every form, its exit codes, and what it leaves.

mod common;

use common::*;
use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output},
};

const GRUB: &str = "set default=1\n\
    menuentry 'First' --id one {\n linux /boot/vmlinuz-a root=a\n}\n\
    menuentry 'Second' --id two {\n linux /boot/vmlinuz-b root=b it='s \"so\"'\n initrd /boot/initrd-b\n}\n";

fn kernel(name: &str) -> Vec<u8> {
    [b"\x7fELF", name.as_bytes(), &[0; 2000]].concat()
}

/// A directory for the output beside a disk with two kernels and one ramdisk.
fn disk(scratch: &Scratch, grub: &str) -> (PathBuf, PathBuf) {
    let (a, b) = (kernel("a"), kernel("b"));
    let files: [(&str, &[u8]); 4] = [
        ("boot/vmlinuz-a", &a),
        ("boot/vmlinuz-b", &b),
        ("boot/initrd-b", b"ramdisk b"),
        ("boot/grub/grub.cfg", grub.as_bytes()),
    ];
    let image = scratch.empty("disk", 16 << 20);
    ext(&image, &scratch.tree("tree", &files), &["-t", "ext4"]);
    let out = scratch.path("out");
    fs::create_dir_all(&out).unwrap();
    (image, out)
}

fn pygrub(out: &Path, image: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pygrub"));
    command.arg(format!("--output-directory={}", out.display())).args(options).arg(image).output().unwrap()
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn left(out: &Path) -> Vec<PathBuf> {
    fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn the_guests_default_in_every_form() {
    let scratch = Scratch::new();
    let (image, out) = disk(&scratch, GRUB);
    let simple = printed(&pygrub(&out, &image, &["-q", "--output-format=simple", "--args=more"]));
    let lines: Vec<_> = simple.lines().collect();
    let path =
        |line: &str, key: &str| PathBuf::from(line.strip_prefix(key).unwrap_or_else(|| panic!("{simple}")));
    let (k, r) = (path(lines[0], "kernel "), path(lines[1], "ramdisk "));
    assert_eq!(lines[2..], ["args root=b it=s \"so\" more", ""]);
    assert!(fs::read(&k).unwrap() == kernel("b") && fs::read(&r).unwrap() == b"ramdisk b");
    for (file, prefix) in [(&k, "boot_kernel."), (&r, "boot_ramdisk.")] {
        assert_eq!(file.parent(), Some(&*out.canonicalize().unwrap()));
        assert!(file.file_name().unwrap().to_str().unwrap().starts_with(prefix));
        assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    }
    let simple0 = printed(&pygrub(&out, &image, &["-q", "--output-format=simple0", "--entry=one"]));
    let fields: Vec<_> = simple0.split('\0').collect();
    assert!(fields[0].starts_with("kernel /") && fields[1..] == ["args root=a", "", ""], "{simple0:?}");
    let to = scratch.path("result");
    fs::write(&to, "").unwrap();
    let to_option = format!("--output={}", to.display());
    assert_eq!(printed(&pygrub(&out, &image, &["-q", &to_option])), "");
    let sxp = fs::read_to_string(to).unwrap();
    assert!(sxp.starts_with("linux (kernel '/") && sxp.ends_with("(args 'root=b it=s \"so\"')"), "{sxp}");
    assert_eq!(left(&out).len(), 2 + 1 + 2, "without a ramdisk there is no file for one");
}

#[test]
fn listing_and_looking_leave_no_files() {
    let scratch = Scratch::new();
    let (image, out) = disk(&scratch, GRUB);
    let listed = printed(&pygrub(&out, &image, &["-l"]));
    let second = "title: Second\n  root: whole disk (ext4)\n  kernel: /boot/vmlinuz-b\n  \
                  args: root=b it=s \"so\"\n  initrd: /boot/initrd-b\n";
    assert!(listed.starts_with("title: First\n") && listed.ends_with(second), "{listed}");
    let dry = printed(&pygrub(&out, &image, &["-n", "-q", "--output-format=simple"]));
    assert_eq!(
        dry,
        "kernel <kernel:/boot/vmlinuz-b>\nramdisk <ramdisk:/boot/initrd-b>\nargs root=b it=s \"so\"\n\n"
    );
    let explicit = ["-n", "--kernel=/boot/vmlinuz-a", "--args=x", "--output-format=simple"];
    assert_eq!(printed(&pygrub(&out, &image, &explicit)), "kernel <kernel:/boot/vmlinuz-a>\nargs x\n\n");
    assert_eq!(left(&out), Vec::<PathBuf>::new());
}

#[test]
fn a_configuration_without_its_disk_is_read() {
    let scratch = Scratch::new();
    let out = scratch.path("out");
    fs::create_dir_all(&out).unwrap();
    let config = |name: &str, text: &str| {
        let path = scratch.path(name);
        fs::write(&path, text).unwrap();
        path
    };
    let grub =
        config("any-name", &format!("load_env\nsearch --set=root --fs-uuid 0123\nsource /more.cfg\n{GRUB}"));
    assert_eq!(
        printed(&pygrub(&out, &grub, &["-q", "--isconfig", "--args=x"])),
        "  kernel: /boot/vmlinuz-b\n  initrd: /boot/initrd-b\n  args: root=b it=s \"so\" x\n"
    );
    let first = printed(&pygrub(&out, &grub, &["--isconfig", "--entry=First"]));
    assert_eq!(first, "  kernel: /boot/vmlinuz-a\n  args: root=a\n");
    assert!(printed(&pygrub(&out, &grub, &["--isconfig", "-l"])).starts_with("title: First\n"));
    let legacy = config(
        "menu.lst",
        "default 1\ntitle a\nkernel /a\ntitle b\nroot (hd0,0)\nkernel /b c d\ninitrd /r\n",
    );
    let second = "  kernel: /b\n  initrd: /r\n  args: c d\n";
    assert_eq!(printed(&pygrub(&out, &legacy, &["-q", "--isconfig"])), second);
    let syslinux =
        config("extlinux.conf", "DEFAULT b\nLABEL a\nLINUX /a\nLABEL b\nLINUX /b\nINITRD /r\nAPPEND c d\n");
    assert_eq!(printed(&pygrub(&out, &syslinux, &["-q", "--isconfig"])), second);
    for nothing in ["", "# nothing\n", "\0\u{1}", "if"] {
        let output = pygrub(&out, &config("nothing", nothing), &["-q", "--isconfig"]);
        assert_eq!(output.status.code(), Some(1), "{nothing:?} {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).starts_with("RuntimeError: "));
    }
    let large = scratch.empty("large", (1 << 20) + 1);
    assert_eq!(pygrub(&out, &large, &["-q", "--isconfig"]).status.code(), Some(1));
    assert_eq!(left(&out), Vec::<PathBuf>::new());
}

#[test]
fn a_failure_exits_with_1_says_why_and_leaves_no_files() {
    let scratch = Scratch::new();
    let (image, out) = disk(&scratch, GRUB);
    let empty = scratch.empty("empty", 1 << 20);
    let absent = scratch.path("absent");
    for (image, options, why) in [
        (&image, &["-q", "--entry=9"][..], "RuntimeError: no boot entry \"9\"; there are First; Second"),
        (&image, &["-n", "--kernel=/gone"], "RuntimeError: "),
        (&image, &["-l", "--offset=99999999999"], "RuntimeError: "),
        (&empty, &["-q"], "RuntimeError: bootable disk has no valid file system"),
        (&absent, &["-q"], "RuntimeError: opening the disk: No such file"),
        (&image, &["--output=/nonexistent/x"], "RuntimeError: opening the --output file"),
        (&image, &["--runas=70000"], "in order to use --runas"),
        (&image, &["--bad"], "Usage: pygrub"),
    ] {
        let output = pygrub(&out, image, options);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(why), "{options:?}: {output:?}");
        assert!(output.stdout.is_empty());
    }
    let limited = Command::new(env!("CARGO_BIN_EXE_pygrub"))
        .args(["-q".as_ref(), image.as_os_str()])
        .env("PYGRUB_MAX_FILE_SIZE_MB", "none")
        .output()
        .unwrap();
    assert_eq!(limited.status.code(), Some(1));
    assert_eq!(left(&out), Vec::<PathBuf>::new());
    assert_eq!(pygrub(&out, &image, &["--help"]).status.code(), Some(0));
}

#[test]
fn an_ordinary_user_can_run_it() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: the other tests are run by an ordinary user");
        return;
    }
    let scratch = Scratch::new();
    let (image, out) = disk(&scratch, GRUB);
    fs::set_permissions(scratch.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    // The build directory may be closed to others.
    let program = scratch.path("pygrub");
    fs::copy(env!("CARGO_BIN_EXE_pygrub"), &program).unwrap();
    chown(&out, Some(65534), Some(65534)).unwrap();
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(program)
        .args(["-q".into(), "--output-format=simple".into(), format!("--output-directory={}", out.display())])
        .arg(image)
        .output()
        .unwrap();
    assert!(printed(&output).starts_with("kernel "), "{output:?}");
    assert_eq!(left(&out).len(), 2);
}
