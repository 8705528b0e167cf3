//! The boot loader of the real host: this crate's daemon as its own worker, on a real disk image.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crossbeam::channel::{Receiver, bounded};
use guest_installer::boot::Request;
use guest_installer::worker::{self, Worker};
use xenopsd::edge::{BootLoader, DomId, FoundKernel, KernelLimits, KernelSearch, KernelSearchError};

/// An ELF file, as far as anybody here looks.
fn kernel() -> Vec<u8> {
    [b"\x7fELF".as_slice(), &[7; 10_000]].concat()
}

fn disk(directory: &Path, grub: &str) -> PathBuf {
    let (tree, image) = (directory.join("tree"), directory.join("disk"));
    fs::create_dir_all(tree.join("boot/grub")).unwrap();
    fs::write(tree.join("boot/vmlinux"), kernel()).unwrap();
    fs::write(tree.join("boot/grub/grub.cfg"), grub).unwrap();
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    // Packed as distributions have it.
    assert!(Command::new("gzip").arg(tree.join("boot/vmlinux")).status().unwrap().success());
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).arg(&tree).arg(&image).status();
    assert!(made.unwrap().success());
    image
}

fn search(
    image: &Path,
    limits: KernelLimits,
    cancelled: &Receiver<Infallible>,
) -> Result<FoundKernel, KernelSearchError> {
    let worker =
        Worker { program: env!("CARGO_BIN_EXE_xenopsd").into(), arguments: Worker::default().arguments };
    let loader = BootLoader {
        worker,
        uid_base: 0x2000_0000,
        kernel_limit: 1 << 20,
        ramdisk_limit: 1 << 20,
        wall: worker::WALL,
    };
    let request = Request::default();
    let domid = DomId::new(7).unwrap();
    loader.search(
        &File::open(image).unwrap(),
        &KernelSearch { disk: image, request: &request, limits, domid, cancelled },
    )
}

const GRUB: &str = "menuentry 'Linux' {\n linux /boot/vmlinux.gz root=/dev/xvda ro\n}\n";

#[test]
fn the_daemon_is_its_own_worker() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a jail takes root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = disk(directory.path(), GRUB);
    let (_keep, cancelled) = bounded(0);
    let found = search(&image, KernelLimits::default(), &cancelled).unwrap();
    assert_eq!((&*found.title, &*found.args), ("Linux", "root=/dev/xvda ro"));
    assert!(found.ramdisk.is_none() && found.kernel.read().unwrap().bytes() == kernel(), "it is unpacked");
    let small = KernelLimits { kernel: Some(10), ramdisk: None };
    let refused = search(&image, small, &cancelled).unwrap_err();
    assert!(
        matches!(&refused, KernelSearchError::None(why) if why.contains("exceeds the limit of 10")),
        "{refused}"
    );
}

#[test]
fn a_cancelled_search_and_one_in_vain_say_so() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a jail takes root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let image = disk(directory.path(), "menuentry 'Other' {\n chainloader +1\n}\n");
    let (keep, cancelled) = bounded(0);
    let none = search(&image, KernelLimits::default(), &cancelled).unwrap_err();
    assert!(matches!(&none, KernelSearchError::None(why) if why.contains("Other")), "{none}");
    drop(keep);
    // It may be faster than the cancel.
    let outcome = search(&image, KernelLimits::default(), &cancelled).unwrap_err();
    assert!(matches!(outcome, KernelSearchError::Cancelled | KernelSearchError::None(_)), "{outcome}");
}
