//! Damaged images end in an error or in other bytes, never in a panic, an endless loop or more memory than the limits.

mod common;

use common::*;
use guest_installer::{disk, fs as guest_fs, partition};
use proptest::prelude::*;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// Small images of every kind, made once.
fn images() -> &'static [(Scratch, PathBuf)] {
    static IMAGES: OnceLock<Vec<(Scratch, PathBuf)>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let make = |size: u64, mkfs: &dyn Fn(&Path, &Path)| {
            let scratch = Scratch::new();
            let tree = scratch
                .tree("t", &[("boot/vmlinuz", &noise(20_000)), ("boot/grub/grub.cfg", b"x"), ("a", b"b")]);
            let image = if size == 0 { scratch.path("i") } else { scratch.empty("i", size << 20) };
            mkfs(&image, &tree);
            (scratch, image)
        };
        vec![
            make(4, &|i, t| ext(i, t, &["-t", "ext4"])),
            make(4, &|i, t| ext(i, t, &["-t", "ext3"])),
            make(32, &|i, t| fat(i, t, &["-F", "16"])),
            make(0, &|i, t| iso(i, t, &["-R", "-J"])),
            make(320, &|i, t| xfs(i, t, &["-m", "crc=0"])),
            make(128, &|i, t| btrfs(i, t, &["-M"])),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    /// Metadata is near the start of every one of these, so that is where most of the damage goes.
    #[test]
    fn damaged_images(which in 0usize..6, hits in proptest::collection::vec((0u64..200_000, any::<[u8; 4]>()), 1..12)) {
        let (scratch, image) = &images()[which];
        let copy = scratch.path("damaged");
        run("cp", &["--sparse=always", "--reflink=auto", str(image), str(&copy)]);
        let file = File::options().write(true).open(&copy).unwrap();
        for (at, bytes) in hits {
            std::os::unix::fs::FileExt::write_all_at(&file, &bytes, at).unwrap();
        }
        let volume = open(&copy);
        let _ = partition::fuzz(&volume);
        let _ = guest_fs::fuzz(&volume);
    }

    #[test]
    fn truncated_images(which in 0usize..6, size in 0u64..4_000_000) {
        let (scratch, image) = &images()[which];
        let copy = scratch.path("short");
        run("cp", &["--sparse=always", "--reflink=auto", str(image), str(&copy)]);
        let file = File::options().write(true).open(&copy).unwrap();
        file.set_len(size.min(fs::metadata(image).unwrap().len())).unwrap();
        let _ = partition::fuzz(&open(&copy));
        let _ = guest_fs::fuzz(&open(&copy));
    }

    #[test]
    fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..3000), magic in 0usize..7) {
        let mut bytes = bytes;
        let (at, text): (usize, &[u8]) = [
            (0, &b"XFSB"[..]), (1080, b"\x53\xef"), (510, b"\x55\xaa"), (512, b"EFI PART"), (512, b"LABELONE"), (536, b"LVM2 001"), (0, b""),
        ][magic];
        if bytes.len() >= at + text.len() {
            bytes[at..at + text.len()].copy_from_slice(text);
        }
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &bytes).unwrap();
        let volume = disk::Volume::whole(&disk::Disk::new(file, 0).unwrap());
        let _ = partition::fuzz(&volume);
        let _ = guest_fs::fuzz(&volume);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_scripts(text in "[a-z0-9{}\\[\\]();$\"'=> \n#/-]{0,200}") {
        let _ = guest_installer::config::grub2::fuzz(&text);
    }
}
