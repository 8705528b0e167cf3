//! Disks that somebody made with care: each aims at one way to keep a parser busy, make it allocate, or lead it astray, and
//! each ends in an error that the jailed reader gives by itself, before its limits of time and memory stop it.
//!
//! What is damaged at random is in `hostile.rs`.

mod common;

use common::*;
use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
};

const GRUB: &str = "menuentry a {\n linux /boot/vmlinuz\n}\n";

/// What pygrub says of an image. It has to say it: neither a signal nor the limit of time is the end of its reader.
fn verdict(image: &Path) -> String {
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pygrub"));
    command.arg(format!("--output-directory={}", out.path().display())).arg("-q").arg(image);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}: {said}{}",
        image.display(),
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(!said.contains("took longer") && !said.contains("worker:"), "{}: {said}", image.display());
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0, "nothing is left");
    said
}

/// An image of the boot directory's usual files, and what `more` adds to the tree.
fn ext_with(scratch: &Scratch, more: impl FnOnce(&Path)) -> PathBuf {
    let files: [(&str, &[u8]); 2] = [
        ("boot/vmlinuz", &[b"\x7fELF".to_vec(), noise(60_000)].concat()),
        ("boot/grub/grub.cfg", GRUB.as_bytes()),
    ];
    let tree = scratch.tree("tree", &files);
    more(&tree);
    let image = scratch.empty("disk", 16 << 20);
    // Without checksums, which would tell damage from structure.
    ext(&image, &tree, &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum"]);
    image
}

fn with_grub(text: &str) -> String {
    let scratch = Scratch::new();
    verdict(&ext_with(&scratch, |tree| fs::write(tree.join("boot/grub/grub.cfg"), text).unwrap()))
}

fn writer(image: &Path) -> File {
    File::options().read(true).write(true).open(image).unwrap()
}

fn poke(image: &Path, at: u64, bytes: &[u8]) {
    writer(image).write_all_at(bytes, at).unwrap();
}

/// Looks into an ext image, or changes it.
fn debugfs(image: &Path, request: &str) -> String {
    run("debugfs", &["-w", "-R", request, str(image)])
}

#[test]
fn ext_superblocks_with_impossible_numbers() {
    // Offsets in the superblock, which is at 1024: `fs/ext4/ext4.h`.
    for (name, at, bytes) in [
        ("log_block_size", 24, &u32::MAX.to_le_bytes()[..]),
        ("blocks_per_group", 32, &[0; 4]),
        ("inodes_per_group", 40, &[0; 4]),
        ("inode_size", 88, &u16::MAX.to_le_bytes()),
        ("inode_size", 88, &[1, 0]),
        ("blocks_count", 4, &u32::MAX.to_le_bytes()),
        ("first_data_block", 20, &u32::MAX.to_le_bytes()),
        ("feature_incompat", 96, &u32::MAX.to_le_bytes()),
    ] {
        let scratch = Scratch::new();
        let image = ext_with(&scratch, |_| ());
        poke(&image, 1024 + at, bytes);
        assert!(!verdict(&image).is_empty(), "{name}");
    }
}

/// An index block of an extent tree that is its own child, at every depth that can be written.
#[test]
fn an_extent_tree_that_contains_itself() {
    for depth in [1_u16, 5, u16::MAX] {
        let scratch = Scratch::new();
        let image = ext_with(&scratch, |_| ());
        let block: u32 = debugfs(&image, "bmap /boot/vmlinuz 0").trim().parse().unwrap();
        let header = |depth: u16| {
            let mut node = [0; 24];
            node[..2].copy_from_slice(&0xf30a_u16.to_le_bytes());
            node[2..4].copy_from_slice(&1_u16.to_le_bytes());
            node[4..6].copy_from_slice(&4_u16.to_le_bytes());
            node[6..8].copy_from_slice(&depth.to_le_bytes());
            node[16..20].copy_from_slice(&block.to_le_bytes());
            node
        };
        for (index, word) in header(depth).chunks(4).enumerate() {
            let word = u32::from_le_bytes(word.try_into().unwrap());
            debugfs(&image, &format!("set_inode_field /boot/vmlinuz block[{index}] {word}"));
        }
        poke(&image, u64::from(block) * 1024, &header(depth));
        verdict(&image);
    }
}

#[test]
fn a_file_larger_than_any_disk() {
    let scratch = Scratch::new();
    let image = ext_with(&scratch, |_| ());
    for size in ["0xffffffffffff", "0x7fffffffffffffff", "34000000"] {
        debugfs(&image, &format!("set_inode_field /boot/vmlinuz size {size}"));
        let said = verdict(&image);
        assert!(said.contains("limit") || said.contains("too many blocks"), "{size}: {said}");
    }
}

#[test]
fn links_that_lead_in_circles() {
    for (name, target) in [
        ("boot/vmlinuz", "vmlinuz"),
        ("boot/vmlinuz", "../boot/./vmlinuz"),
        ("boot/grub/grub.cfg", "grub.cfg"),
    ] {
        let scratch = Scratch::new();
        let image = ext_with(&scratch, |tree| {
            fs::remove_file(tree.join(name)).unwrap();
            link(tree, name, target);
        });
        verdict(&image);
    }
    // A chain of more links than Linux follows.
    let scratch = Scratch::new();
    let image = ext_with(&scratch, |tree| {
        fs::rename(tree.join("boot/vmlinuz"), tree.join("boot/l60")).unwrap();
        for number in 0..60 {
            link(tree, &format!("boot/l{number}"), &format!("l{}", number + 1));
        }
        link(tree, "boot/vmlinuz", "l0");
    });
    verdict(&image);
}

#[test]
fn directories_with_entries_of_no_length_and_too_much() {
    for length in [0_u16, 3, u16::MAX] {
        let scratch = Scratch::new();
        let image = ext_with(&scratch, |_| ());
        let block: u64 = debugfs(&image, "bmap /boot 0").trim().parse().unwrap();
        // The length of the first entry, `.`.
        poke(&image, block * 1024 + 4, &length.to_le_bytes());
        verdict(&image);
    }
}

#[test]
fn scripts_that_grow_repeat_and_nest() {
    let laughs = (0..40).fold("set a=haha\n".to_owned(), |all, _| all + "set a=$a$a$a$a\n") + GRUB;
    let nested = "if true; then ".repeat(20_000) + &"fi; ".repeat(20_000);
    let submenus = "submenu a {\n".repeat(10_000) + &"}\n".repeat(10_000);
    let entries = "menuentry a { linux /boot/vmlinuz }\n".repeat(5000);
    for (name, text) in [
        ("a variable that doubles", laughs.as_str()),
        ("a configuration that reads itself", "configfile /boot/grub/grub.cfg\n"),
        ("one that includes itself", "source /boot/grub/grub.cfg\n"),
        ("a function that calls itself", "function f { f; }\nf\n"),
        ("two that call each other", "function f { g; }\nfunction g { f; f; }\nf\n"),
        ("conditions in conditions", &nested),
        ("menus in menus", &submenus),
        ("a menu without end", &entries),
        ("a loop without end", "while true; do\nset a=b\ndone\n"),
        ("braces without end", &"{".repeat(100_000)),
        ("quotes without end", &"\"$".repeat(100_000)),
        ("a line without end", &"a ".repeat(500_000)),
    ] {
        assert!(!with_grub(text).is_empty(), "{name}");
    }
    assert!(with_grub(&"#".repeat(2 << 20)).contains("limit"));
}

#[test]
fn other_configurations_that_repeat() {
    let scratch = Scratch::new();
    let image = ext_with(&scratch, |tree| {
        fs::remove_dir_all(tree.join("boot/grub")).unwrap();
        fs::create_dir_all(tree.join("boot/syslinux")).unwrap();
        fs::write(
            tree.join("boot/syslinux/syslinux.cfg"),
            "INCLUDE /boot/syslinux/syslinux.cfg\n".repeat(50),
        )
        .unwrap();
    });
    verdict(&image);
    let scratch = Scratch::new();
    let image = ext_with(&scratch, |tree| {
        let entries = tree.join("boot/loader/entries");
        fs::create_dir_all(&entries).unwrap();
        for number in 0..1500 {
            fs::write(entries.join(format!("{number}.conf")), "title a\nlinux /boot/vmlinuz\n").unwrap();
        }
        fs::write(tree.join("boot/grub/grub.cfg"), "blscfg\n").unwrap();
    });
    assert!(verdict(&image).contains("limit"));
}

#[test]
fn partitions_that_overlap_go_beyond_the_disk_and_are_too_many() {
    let scratch = Scratch::new();
    let disk = scratch.empty("disk", 8 << 20);
    let entry = |start: u32, sectors: u32| {
        let mut entry = [0; 16];
        entry[4] = 0x83;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..].copy_from_slice(&sectors.to_le_bytes());
        entry
    };
    let table = [entry(1, u32::MAX), entry(1, 16_000), entry(2, 16_000), entry(u32::MAX, u32::MAX)].concat();
    poke(&disk, 446, &table);
    poke(&disk, 510, b"\x55\xaa");
    verdict(&disk);

    // GPT: the count and the size of its entries, with the checksum that makes them believed.
    for (count, size) in [(u32::MAX, 128), (128, u32::MAX), (u32::MAX, u32::MAX), (128, 0)] {
        let disk = scratch.empty("gpt", 8 << 20);
        partition(&disk, "label: gpt\nstart=2048, size=4096\n");
        let mut header = [0; 92];
        writer(&disk).read_exact_at(&mut header, 512).unwrap();
        header[80..84].copy_from_slice(&u32::to_le_bytes(count));
        header[84..88].copy_from_slice(&u32::to_le_bytes(size));
        header[16..20].fill(0);
        let mut sum = flate2::Crc::new();
        sum.update(&header);
        header[16..20].copy_from_slice(&sum.sum().to_le_bytes());
        poke(&disk, 512, &header);
        verdict(&disk);
    }
}

#[test]
fn discs_with_directories_of_impossible_sizes_and_records_that_continue_in_themselves() {
    let make = |scratch: &Scratch| {
        let tree = scratch.tree("t", &[("boot/grub/grub.cfg", GRUB.as_bytes())]);
        // Long enough for a Rock Ridge record to go on elsewhere.
        fs::write(tree.join("n".repeat(200)), "x").unwrap();
        link(&tree, &"l".repeat(200), &"t/".repeat(100));
        let disc = scratch.path("disc");
        iso(&disc, &tree, &["-R"]);
        disc
    };
    // The root directory's record in the primary volume descriptor is at 156: its extent and its size.
    for (at, value) in [(156 + 2, u32::MAX), (156 + 10, u32::MAX), (156 + 10, 0), (128, 0)] {
        let scratch = Scratch::new();
        let disc = make(&scratch);
        poke(&disc, 0x8000 + at, &value.to_le_bytes());
        poke(&disc, 0x8000 + at + 4, &value.to_be_bytes());
        verdict(&disc);
    }
    let scratch = Scratch::new();
    let disc = make(&scratch);
    let bytes = fs::read(&disc).unwrap();
    let mut circles = 0;
    for at in 0..bytes.len() - 28 {
        // A CE field of version 1: block, offset and length of where the record goes on, in both byte orders.
        if bytes[at..].starts_with(b"CE\x1c\x01") {
            let block = u32::try_from(at / 2048).unwrap();
            let offset = u32::try_from(at % 2048).unwrap();
            let both = |value: u32| [value.to_le_bytes(), value.to_be_bytes()].concat();
            poke(&disc, at as u64 + 4, &[both(block), both(offset), both(28)].concat());
            circles += 1;
        }
    }
    assert!(circles > 0, "the disc has no record that continues");
    verdict(&disc);
}

#[test]
fn allocation_tables_that_go_in_circles() {
    for width in ["12", "16", "32"] {
        let scratch = Scratch::new();
        let tree =
            scratch.tree("t", &[("boot/grub/grub.cfg", GRUB.as_bytes()), ("boot/vmlinuz", &noise(90_000))]);
        let image = scratch.empty("fat", if width == "32" { 64 << 20 } else { 8 << 20 });
        fat(&image, &tree, &["-F", width, "-s", if width == "12" { "8" } else { "1" }]);
        let mut sector = [0; 512];
        writer(&image).read_exact_at(&mut sector, 0).unwrap();
        let reserved = u64::from(u16::from_le_bytes([sector[14], sector[15]]));
        // Every cluster but the first two is followed by the third, which is followed by itself.
        let entries: Vec<u8> = match width {
            "12" => [3_u8, 0x30, 0].repeat(120),
            "16" => 3_u16.to_le_bytes().repeat(200),
            _ => 3_u32.to_le_bytes().repeat(100),
        };
        let skip = match width {
            "12" => 3,
            "16" => 4,
            _ => 8,
        };
        poke(&image, reserved * 512 + skip, &entries);
        verdict(&image);
        for (at, bytes) in [(11, &[0, 0][..]), (13, &[0]), (16, &[0]), (11, &[255, 255])] {
            poke(&image, at, bytes);
            verdict(&image);
        }
    }
}

#[test]
fn xfs_with_impossible_geometry() {
    // Offsets in the superblock, big-endian: `xfs_dsb` of `fs/xfs/libxfs/xfs_format.h`; version 4 has no checksum.
    for (name, at, bytes) in [
        ("blocksize", 4, &u32::MAX.to_be_bytes()[..]),
        ("blocksize", 4, &[0; 4]),
        ("rootino", 56, &u64::MAX.to_be_bytes()),
        ("agblocks", 84, &[0; 4]),
        ("agcount", 88, &u32::MAX.to_be_bytes()),
        ("inodesize", 104, &u16::MAX.to_be_bytes()),
        ("blocklog", 120, &[255]),
        ("inopblog", 123, &[255]),
        ("agblklog", 124, &[255]),
        ("dirblklog", 192, &[255]),
    ] {
        let scratch = Scratch::new();
        let tree = scratch.tree("t", &[("boot/grub/grub.cfg", GRUB.as_bytes())]);
        let image = scratch.empty("xfs", 320 << 20);
        xfs(&image, &tree, &["-m", "crc=0"]);
        poke(&image, at, bytes);
        assert!(!verdict(&image).is_empty(), "{name}");
    }
}

/// A checksum of 32 bits, bit by bit, the lowest first.
fn crc(begin: u32, polynomial: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(begin, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (polynomial & 0_u32.wrapping_sub(sum & 1)))
    })
}

/// CRC-32C, as RFC 3720 has it.
fn crc32c(bytes: &[u8]) -> u32 {
    !crc(u32::MAX, 0x82f6_3b78, bytes)
}

#[test]
fn btrfs_with_trees_that_are_elsewhere_and_chunks_without_end() {
    const SUPERBLOCK: u64 = 0x1_0000;
    // Offsets in the superblock: `btrfs_super_block` of `include/uapi/linux/btrfs_tree.h`.
    for (name, at, bytes) in [
        ("root", 0x50, &u64::MAX.to_le_bytes()[..]),
        ("root", 0x50, &0_u64.to_le_bytes()),
        ("chunk_root", 0x58, &u64::MAX.to_le_bytes()),
        ("sectorsize", 0x90, &[0; 4]),
        ("nodesize", 0x94, &[0; 4]),
        ("nodesize", 0x94, &u32::MAX.to_le_bytes()),
        ("sys_chunk_array_size", 0xa0, &u32::MAX.to_le_bytes()),
        ("root_level", 0xc6, &[255]),
        ("chunk_root_level", 0xc7, &[255]),
    ] {
        let scratch = Scratch::new();
        let tree = scratch.tree("t", &[("boot/grub/grub.cfg", GRUB.as_bytes())]);
        let image = scratch.empty("btrfs", 128 << 20);
        btrfs(&image, &tree, &["-M"]);
        let mut block = vec![0; 4096];
        writer(&image).read_exact_at(&mut block, SUPERBLOCK).unwrap();
        assert_eq!(block[..4], crc32c(&block[32..]).to_le_bytes());
        block[at..at + bytes.len()].copy_from_slice(bytes);
        let sum = crc32c(&block[32..]).to_le_bytes();
        block[..4].copy_from_slice(&sum);
        poke(&image, SUPERBLOCK, &block);
        assert!(!verdict(&image).is_empty(), "{name}");
    }
}

#[test]
fn logical_volumes_with_impossible_extents() {
    for (from, to, says) in [
        ("extent_size = 8192", "extent_size = 0   ", "extents are out of range"),
        ("extent_count = 2\n", "extent_count = 0\n", "extents are out of range"),
        ("start_extent = 0\n", "start_extent = 9\n", "does not follow the one before"),
        ("pe_start = 2048", "pe_start = -204", "pe_start is missing"),
        ("\"pv0\", 0", "\"pv0\",-9", "names no extents"),
        ("stripe_count = 1", "stripe_count = 9", "striped volumes are not supported"),
        ("segment1 {", "segment1 {{", "a name is missing"),
        ("guest-vg {", "guest-vg  ", "a name has no value"),
    ] {
        let disk = fixture("lvm.img");
        let mut bytes = fs::read(disk.path()).unwrap();
        // The header of the metadata area follows the label's sector at 4096: a list of texts, and each one's checksum.
        let header = 4096;
        let number =
            |at: usize| usize::try_from(u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())).unwrap();
        let (offset, size) = (number(header + 40), number(header + 48));
        let text = header + offset..header + offset + size;
        let sound = String::from_utf8(bytes[text.clone()].to_vec()).unwrap();
        // What is longer has fewer empty lines instead.
        let changed = sound.replace(from, to);
        let changed = changed.replacen("\n\n", "\n", changed.len() - sound.len());
        assert_ne!(changed, sound, "{from} is not in the metadata");
        assert!(changed.len() <= size, "{from}: {sound}");
        let padded = format!("{changed:<size$}");
        bytes[text.clone()].copy_from_slice(padded.as_bytes());
        let sum = lvm_sum(&bytes[text]);
        bytes[header + 56..header + 60].copy_from_slice(&sum.to_le_bytes());
        let sum = lvm_sum(&bytes[header + 4..header + 512]);
        bytes[header..header + 4].copy_from_slice(&sum.to_le_bytes());
        fs::write(disk.path(), &bytes).unwrap();
        let said = verdict(disk.path());
        assert!(said.contains(says), "{from}: {said}");
    }
}

/// LVM's checksum: CRC-32 without the inversions, from a value of its own (`lib/misc/crc.h`).
fn lvm_sum(bytes: &[u8]) -> u32 {
    crc(0xf597_a6cf, 0xedb8_8320, bytes)
}
