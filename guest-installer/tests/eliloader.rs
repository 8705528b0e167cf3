//! The program `eliloader`: rounds from a server, a CD and a disk, and the record as each leaves it.

mod common;
mod servers;

use common::{Scratch, ext, run, str};
use servers::{Http, answer, ok};
use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

/// An ELF file, as far as anybody here looks.
const KERNEL: &[u8] = b"\x7fELF kernel of the installer";

fn eliloader(record: &Path, directory: &Path, image: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_eliloader"))
        .args(["-q", "--vm", "11111111-2222-3333-4444-555555555555", "--output-format=simple"])
        .arg(format!("--record={}", str(record)))
        .arg(format!("--output-directory={}", str(directory)))
        .arg(image)
        .output()
        .unwrap()
}

/// A scratch directory with a record, one for results, and what is done with them.
struct Vm {
    scratch: Scratch,
}

impl Vm {
    fn new(record: &str) -> Self {
        let scratch = Scratch::new();
        fs::write(scratch.path("record"), record).unwrap();
        fs::create_dir(scratch.path("out")).unwrap();
        Self { scratch }
    }

    fn boot(&self, image: &Path) -> Output {
        eliloader(&self.scratch.path("record"), &self.scratch.path("out"), image)
    }

    /// What a round that succeeds prints, with the contents of its files.
    fn boots(&self, image: &Path) -> (Vec<u8>, Option<Vec<u8>>, String) {
        let output = self.boot(image);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let content = |path: &str| fs::read(path).unwrap();
        let args = field("args").unwrap_or_default().to_owned();
        (content(field("kernel").unwrap()), field("ramdisk").map(content), args)
    }

    /// Why a round does not, which leaves the record and no files.
    fn fails(&self, image: &Path) -> String {
        let before = self.record();
        let output = self.boot(image);
        assert!(!output.status.success() && output.stdout.is_empty());
        assert_eq!(self.record(), before, "all of it or none");
        assert_eq!(fs::read_dir(self.scratch.path("out")).unwrap().count(), 0, "nothing is left");
        let text = String::from_utf8(output.stderr).unwrap();
        text.trim_end().strip_prefix("RuntimeError: ").expect(&text).to_owned()
    }

    fn record(&self) -> String {
        fs::read_to_string(self.scratch.path("record")).unwrap()
    }

    /// A disk with an installed system.
    fn installed(&self) -> std::path::PathBuf {
        let grub = b"menuentry 'Installed' {\n linux /boot/vmlinux root=/dev/xvda ro\n}\n".as_slice();
        let files = [("boot/vmlinux", b"\x7fELF installed".as_slice()), ("boot/grub2/grub.cfg", grub)];
        let (tree, image) = (self.scratch.tree("tree", &files), self.scratch.empty("disk", 16 << 20));
        ext(&image, &tree, &[]);
        image
    }
}

#[test]
fn both_rounds_from_a_server() {
    let server = Http::new(|_, head| match head.split(' ').nth(1).unwrap_or_default() {
        "/os/isolinux/vmlinuz" => ok(KERNEL),
        "/os/isolinux/initrd.img" => ok(b"ramdisk of the installer"),
        _ => answer(404, "", b""),
    });
    // Loopback is the administrator's own here.
    let repository = server.url("/os");
    let vm = Vm::new(&format!("install-repository={repository}\ninstall-vnc=1\nname=kept\n"));
    let blank = vm.scratch.empty("blank", 1 << 20);
    let (kernel, ramdisk, args) = vm.boots(&blank);
    assert_eq!((&*kernel, ramdisk.as_deref()), (KERNEL, Some(b"ramdisk of the installer".as_slice())));
    assert_eq!(args, format!("method={repository}/ vnc"));
    assert_eq!(
        vm.record(),
        format!("install-repository={repository}\ninstall-vnc=1\nname=kept\ninstall-round=2\n")
    );

    let (kernel, ramdisk, args) = vm.boots(&vm.installed());
    assert_eq!((&*kernel, ramdisk, &*args), (b"\x7fELF installed".as_slice(), None, "root=/dev/xvda ro"));
    let left = format!("install-repository={repository}\ninstall-vnc=1\nname=kept\nPV-bootloader=pygrub\n");
    assert_eq!(vm.record(), left);
}

#[test]
fn from_a_cd() {
    let vm = Vm::new("install-repository=cdrom\ninstall-distro=debianlike\ninstall-arch=amd64\n");
    let files = [("install.amd/vmlinuz", KERNEL), ("install.amd/initrd.gz", b"ramdisk")];
    let (tree, iso) = (vm.scratch.tree("cd", &files), vm.scratch.path("cd.iso"));
    run("xorriso", &["-as", "mkisofs", "-quiet", "-R", "-o", str(&iso), str(&tree)]);
    let (kernel, ramdisk, args) = vm.boots(&iso);
    assert_eq!((&*kernel, ramdisk.as_deref(), &*args), (KERNEL, Some(b"ramdisk".as_slice()), ""));
    let record = vm.record();
    assert!(record.contains("PV-bootloader=pygrub\n") && record.contains("PV-boot-disk=0\n"), "{record}");
}

#[test]
fn what_a_server_gives_must_be_what_it_should_be() {
    let server =
        Http::new(
            |_, head| {
                if head.contains("/garbage") { ok(b"<html>no kernel</html>") } else { ok(KERNEL) }
            },
        );
    let record = |keys: &str| {
        Vm::new(&format!("install-distro=pygrub\ninstall-repository={}\n{keys}", server.url("/")))
    };
    let blank = Scratch::new();
    let image = blank.empty("blank", 1 << 20);
    let garbage = record("install-kernel=garbage\n").fails(&image);
    assert!(
        garbage.starts_with("INVALID_SOURCE: http://") && garbage.contains("neither a bzImage"),
        "{garbage}"
    );
    let wrong =
        record(&format!("install-kernel=k\ninstall-kernel-checksum={}\n", "0".repeat(64))).fails(&image);
    assert!(wrong.contains("its checksum is not"), "{wrong}");
    let ramdisk = record(&format!(
        "install-kernel=k\ninstall-ramdisk=r\ninstall-ramdisk-checksum={}\n",
        "0".repeat(32)
    ));
    assert!(ramdisk.fails(&image).contains("its checksum is not"));
    let nobody = Vm::new("install-repository=http://repository.invalid/\n").fails(&image);
    assert!(nobody.starts_with("INVALID_SOURCE: http://repository.invalid/images"), "{nobody}");
    let none = Vm::new("install-repository=cdrom\n").fails(&image);
    assert!(none.starts_with("INVALID_SOURCE: cdrom"), "{none}");
}
