//! Partition tables and logical volumes, made by the distribution's tools.

mod common;

use common::*;
use guest_installer::{
    fs::Mounted,
    partition::{Layout, layout},
};
use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::Path,
};

const MIB: u64 = 1 << 20;

fn small_ext4(scratch: &Scratch, name: &str, content: &str) -> std::path::PathBuf {
    let tree = scratch.tree(&format!("{name}.tree"), &[("name", content.as_bytes())]);
    let image = scratch.empty(name, 8 * MIB);
    ext(&image, &tree, &["-t", "ext4"]);
    image
}

/// What the file `name` on each volume says, by the volume's name.
fn names(layout: &Layout) -> Vec<(String, String)> {
    let name = |p: &guest_installer::partition::Partition| {
        let mut fs = Mounted::open(&p.volume).ok()??;
        let content = fs.read(b"/name", 100).ok()??;
        Some((p.table.to_string(), String::from_utf8(content).unwrap()))
    };
    layout.partitions.iter().filter_map(name).collect()
}

fn layout_of(disk: &Path) -> Layout {
    layout(&open(disk)).unwrap()
}

fn pair(a: &str, b: &str) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

#[test]
fn mbr_with_logical_partitions_and_an_active_one() {
    let scratch = Scratch::new();
    let disk = scratch.empty("disk", 80 * MIB);
    partition(
        &disk,
        "label: dos\nlabel-id: 0x12345678\nstart=2048, size=16384, type=83\nstart=20480, size=16384, type=83, bootable\n\
         start=40960, type=5\nstart=43008, size=16384, type=83\nstart=61440, size=16384, type=83\n",
    );
    for (start, name) in [(2048, "first"), (20480, "active"), (43008, "five"), (61440, "six")] {
        place(&small_ext4(&scratch, name, name), &disk, start * 512);
    }
    let layout = layout_of(&disk);
    let expected = [
        pair("partition 2", "active"),
        pair("partition 1", "first"),
        pair("partition 5", "five"),
        pair("partition 6", "six"),
    ];
    assert_eq!(names(&layout), expected);
    assert_eq!(layout.partitions[2].partuuid.as_deref(), Some("12345678-05"));
    assert_eq!(layout.notes, Vec::<String>::new());
}

#[test]
fn an_extended_chain_that_goes_in_a_circle_ends() {
    let scratch = Scratch::new();
    let disk = scratch.empty("disk", 80 * MIB);
    partition(
        &disk,
        "label: dos\nstart=2048, type=5\nstart=4096, size=16384, type=83\nstart=22528, size=16384, type=83\n",
    );
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    // The second table's next table is the first one again.
    let second = layout_of(&disk).partitions.len();
    assert_eq!(second, 2);
    let mut table = [0; 512];
    file.read_exact_at(&mut table, 2048 * 512).unwrap();
    let next = u32::from_le_bytes(table[446 + 16 + 8..446 + 16 + 12].try_into().unwrap());
    let at = (2048 + u64::from(next)) * 512;
    file.read_exact_at(&mut table, at).unwrap();
    table[446 + 16 + 4] = 5;
    table[446 + 16 + 8..446 + 16 + 12].copy_from_slice(&next.to_le_bytes());
    file.write_all_at(&table, at).unwrap();
    let layout = layout_of(&disk);
    assert!(layout.notes.iter().any(|n| n.contains("more than 128")), "{:?}", layout.notes);
}

#[test]
fn gpt_and_its_backup() {
    let scratch = Scratch::new();
    let disk = scratch.empty("disk", 40 * MIB);
    let id = "0f0e0d0c-0b0a-4908-8706-050403020100";
    partition(
        &disk,
        &format!(
            "label: gpt\nstart=2048, size=16384, name=a\nstart=20480, size=16384, uuid={id}, attrs=LegacyBIOSBootable\n"
        ),
    );
    place(&small_ext4(&scratch, "a", "one"), &disk, MIB);
    place(&small_ext4(&scratch, "b", "two"), &disk, 10 * MIB);
    let expected = [pair("partition 2", "two"), pair("partition 1", "one")];
    let sound = layout_of(&disk);
    assert_eq!(names(&sound), expected);
    assert_eq!((sound.partitions[0].partuuid.as_deref(), sound.notes.len()), (Some(id), 0));
    let file = File::options().read(true).write(true).open(&disk).unwrap();
    for damage in [512 + 20, 1024 + 5] {
        file.write_all_at(b"\x55", damage).unwrap();
        let layout = layout_of(&disk);
        assert_eq!(names(&layout), expected);
        assert!(layout.notes[0].contains("backup"), "{:?}", layout.notes);
    }
    file.write_all_at(b"\x55", 40 * MIB - 512 + 20).unwrap();
    let layout = layout_of(&disk);
    assert_eq!(names(&layout), []);
    assert!(layout.notes.iter().any(|n| n.contains("both copies")), "{:?}", layout.notes);
}

#[test]
fn whole_disk_and_hybrid_iso() {
    let scratch = Scratch::new();
    let plain = small_ext4(&scratch, "plain", "whole");
    assert_eq!(names(&layout_of(&plain)), [pair("whole disk", "whole")]);
    // A FAT file system has a boot sector's signature and no partitions.
    let tree = scratch.tree("fat.tree", &[("name", b"fat")]);
    let image = scratch.empty("fat", 8 * MIB);
    fat(&image, &tree, &[]);
    assert_eq!(names(&layout_of(&image)), [pair("whole disk", "fat")]);
    // An ISO with a partition table for USB sticks is read as the ISO it is.
    let disc = scratch.path("iso");
    iso(&disc, &tree, &["-R", "-J", "-partition_offset", "16"]);
    assert_eq!(names(&layout_of(&disc))[0], pair("whole disk", "fat"));
}

#[test]
fn fixture_of_lvm_itself() {
    // Made by vgcreate and lvcreate on a loop device: see tests/fixtures/make.sh.
    let disk = fixture("lvm.img");
    let layout = layout_of(disk.path());
    assert_eq!(
        names(&layout),
        [
            pair("logical volume guest-vg/boot", "boot, in two pieces"),
            pair("logical volume guest-vg/root", "root"),
        ]
    );
    assert!(
        layout.notes.iter().any(|n| n.contains("guest-vg/striped") && n.contains("linear")),
        "{:?}",
        layout.notes
    );
}

#[test]
fn damaged_lvm_is_an_error_and_never_a_wrong_volume() {
    let disk = fixture("lvm.img");
    let bytes = fs::read(disk.path()).unwrap();
    // Every byte of label and metadata: either the same volumes are found, or none.
    let sound = names(&layout_of(disk.path()));
    for at in (512..1024).chain(4096..4096 + 512).step_by(31) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        fs::write(disk.path(), &damaged).unwrap();
        let found = names(&layout_of(disk.path()));
        assert!(found == sound || found.is_empty(), "byte {at}: {found:?}");
    }
}
