//! What a real Debian disk boots, with Debian's pygrub as the judge: packages installed by their own scripts, `grub.cfg` by
//! `grub-mkconfig`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use xen_host::{DebianDisk, target};

/// Where `xen-utils-4.17` has it.
const DEBIANS: &str = "/usr/lib/xen-4.17/bin/pygrub";

/// Where the partition is in the disk's image.
const PARTITION: &str = "1048576";

fn disk() -> (DebianDisk, String) {
    let disk = DebianDisk::get().unwrap_or_else(|error| panic!("{error}"));
    let release = disk.release().unwrap_or_else(|error| panic!("{error}"));
    (disk, release)
}

fn ours() -> PathBuf {
    let program = target().join("release/pygrub");
    assert!(
        program.is_file(),
        "{} is not built: cargo build --release -p guest-installer",
        program.display()
    );
    program
}

/// What a program prints, without the names of the files that it made, and those files.
fn boot(program: &Path, words: &[&str], image: &Path) -> (String, Vec<Vec<u8>>) {
    let out = TempDir::new().expect("a directory");
    let directory = format!("--output-directory={}", out.path().display());
    let mut command = Command::new(program);
    let output = command.args(["-q", "--output-format=simple", &directory]).args(words).arg(image).output();
    let output = output.expect("runs");
    assert!(output.status.success(), "{}: {output:?}", program.display());
    let mut files = Vec::new();
    let mut printed = String::new();
    for line in String::from_utf8(output.stdout).expect("is text").lines() {
        match line.split_once(' ') {
            Some((what @ ("kernel" | "ramdisk"), path))
                if path.starts_with(&*out.path().to_string_lossy()) =>
            {
                printed.push_str(what);
                files.push(fs::read(path).expect("is read"));
            }
            _ => printed.push_str(line),
        }
        printed.push('\n');
    }
    (printed, files)
}

/// A file of the disk, as e2fsprogs reads it.
fn file(disk: &DebianDisk, path: &str) -> Vec<u8> {
    let place = format!("{}?offset={PARTITION}", disk.image().display());
    let output = Command::new("/usr/sbin/debugfs").args(["-R", &format!("cat {path}"), &place]).output();
    output.expect("debugfs runs").stdout
}

#[test]
fn both_boot_the_kernel_that_update_grub_has_found() {
    let (disk, release) = disk();
    let (ours, theirs) = (boot(&ours(), &[], &disk.image()), boot(Path::new(DEBIANS), &[], &disk.image()));
    assert_eq!(ours.0, theirs.0);
    assert!(ours.0.contains(" ro console=hvc0 console=ttyS0 quiet\n"), "{}", ours.0);
    let real = ["vmlinuz", "initrd.img"].map(|name| file(&disk, &format!("/boot/{name}-{release}")));
    assert!(real.iter().all(|file| file.len() > 1 << 20), "debugfs reads the disk");
    assert!(ours.1 == real && theirs.1 == real, "files differ from those on the disk");
}

/// The default that a `GRUB_DEFAULT` of another entry's id makes: ours takes that entry, Debian's the first.
#[test]
fn an_entry_of_the_submenu_is_found_by_its_id() {
    let (disk, release) = disk();
    let config = fs::read_to_string(disk.grub_config()).expect("is read");
    let ids: Vec<_> = config
        .lines()
        .filter_map(|line| line.split_once("$menuentry_id_option '")?.1.split_once('\'').map(|(id, _)| id))
        .collect();
    let id = |part: &str| {
        *ids.iter().find(|id| id.contains(part)).unwrap_or_else(|| panic!("no {part}: {config}"))
    };
    let default = format!("set default=\"{}>{}\"", id("gnulinux-advanced-"), id("-recovery-"));
    let changed = config.replace("set default=\"0\"", &default);
    assert_ne!(changed, config);
    let scratch = TempDir::new().expect("a directory");
    let path = scratch.path().join("grub.cfg");
    fs::write(&path, changed).expect("is written");
    let kernel = format!("kernel: /boot/vmlinuz-{release}\n");
    for (program, single) in [(&*ours(), true), (Path::new(DEBIANS), false)] {
        let (printed, _) = boot(program, &["--isconfig"], &path);
        assert!(printed.contains(&kernel), "{}: {printed}", program.display());
        assert_eq!(printed.contains(" ro single "), single, "{}: {printed}", program.display());
    }
}
