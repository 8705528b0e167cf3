//! Every file system, made by the distribution's tools, read back byte for byte.

mod common;

use common::*;
use guest_installer::{
    Error,
    fs::{Kind, Mounted},
    output::{Check, Output},
    partition,
};
use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::Path,
};

/// Larger than one chunk, and no multiple of any block size.
const KERNEL: usize = 3_000_123;

/// A `/boot` with what real ones have: big files, links of all kinds, many names, an empty file.
fn boot_tree(scratch: &Scratch, links: bool) -> std::path::PathBuf {
    let kernel = noise(KERNEL);
    let tree = scratch.tree(
        "tree",
        &[
            ("boot/vmlinuz-6.1.0-13-amd64", &kernel),
            ("boot/empty", b""),
            ("boot/grub/grub.cfg", b"set x=1\n"),
        ],
    );
    for n in 0..300 {
        fs::write(tree.join(format!("boot/grub/module-with-a-long-name-{n}.mod")), n.to_string()).unwrap();
    }
    if links {
        link(&tree, "vmlinuz", "boot/vmlinuz-6.1.0-13-amd64");
        link(&tree, "boot/absolute", "/boot/../boot/./vmlinuz-6.1.0-13-amd64");
        link(&tree, "boot/up", "../boot/grub");
        link(&tree, "boot/long", &format!("{}/grub.cfg", "grub/../".repeat(60) + "grub"));
        link(&tree, "boot/loop", "loop");
        link(&tree, "boot/nowhere", "/etc/passwd");
    }
    tree
}

fn content(fs: &mut Mounted, path: &str) -> Vec<u8> {
    fs.read(path.as_bytes(), 32 << 20)
        .unwrap_or_else(|e| panic!("{path}: {e}"))
        .unwrap_or_else(|| panic!("{path}"))
}

/// An output that takes from the disk itself, and counts how much.
#[derive(Default)]
struct Taker {
    content: Vec<u8>,
    taken: usize,
}

impl Write for Taker {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.content.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Taker {
    fn take(&mut self, from: &File, offset: u64, length: u64) -> io::Result<u64> {
        // Not always all of it, as sendfile(2).
        let mut bytes = vec![0; usize::try_from(length.min(1_000_000)).unwrap()];
        from.read_exact_at(&mut bytes, offset)?;
        self.content.extend_from_slice(&bytes);
        self.taken += bytes.len();
        Ok(u64::try_from(bytes.len()).unwrap())
    }
}

/// A file as it is delivered, and how much of it its output took from the disk.
fn delivered(fs: &mut Mounted, path: &str) -> Taker {
    let mut taker = Taker::default();
    let size = fs
        .deliver(path.as_bytes(), 32 << 20, Check::NONE, &mut taker)
        .unwrap_or_else(|e| panic!("{path}: {e}"));
    assert_eq!(size, u64::try_from(taker.content.len()).unwrap(), "{path}");
    taker
}

/// Checks an image made of [`boot_tree`].
fn check(image: &Path, kind: &str, links: bool) {
    let mut fs = Mounted::open(&open(image)).unwrap().unwrap();
    assert_eq!(fs.kind(), kind);
    let kernel = noise(KERNEL);
    assert!(content(&mut fs, "/boot/vmlinuz-6.1.0-13-amd64") == kernel, "the kernel's bytes differ");
    assert_eq!(content(&mut fs, "//boot/./grub//grub.cfg"), b"set x=1\n");
    assert_eq!(content(&mut fs, "/boot/empty"), b"");
    assert_eq!(content(&mut fs, "/boot/grub/module-with-a-long-name-299.mod"), b"299");
    assert_eq!(fs.list(b"/boot/grub").unwrap().len(), 301);
    assert!(fs.read(b"/boot/missing", 1).unwrap().is_none());
    assert!(fs.read(b"/boot/grub", 1).unwrap().is_none(), "a directory is no file");
    assert!(fs.lookup(b"/boot/empty/x").unwrap().is_none(), "a file is no directory");
    for path in ["/boot/vmlinuz-6.1.0-13-amd64", "/boot/empty", "/boot/grub/module-with-a-long-name-7.mod"] {
        assert!(delivered(&mut fs, path).content == content(&mut fs, path), "{path} is delivered otherwise");
    }
    let small = fs.copy(b"/boot/vmlinuz-6.1.0-13-amd64", 1000, &mut |_| Ok(())).unwrap_err();
    assert_eq!(small.code(), "TOO_LARGE");
    if links {
        assert!(content(&mut fs, "/vmlinuz") == kernel && content(&mut fs, "/boot/absolute") == kernel);
        assert_eq!(content(&mut fs, "/boot/up/grub.cfg"), b"set x=1\n");
        assert_eq!(content(&mut fs, "/boot/long"), b"set x=1\n");
        assert_eq!(fs.lookup(b"/boot/loop").unwrap_err().code(), "TOO_LARGE");
        // It exists on this machine; the guest's link must not lead there.
        assert!(fs.lookup(b"/boot/nowhere").unwrap().is_none());
        assert!(fs.lookup(b"/../../etc/passwd").unwrap().is_none());
        assert_eq!(fs.lookup(b"/boot/up").unwrap().unwrap().1.kind, Kind::Directory);
    }
}

#[test]
fn ext_of_every_generation() {
    let scratch = Scratch::new();
    let tree = boot_tree(&scratch, true);
    for options in [
        &["-t", "ext4"][..],
        &["-t", "ext2"],
        &["-t", "ext3"],
        &["-t", "ext4", "-b", "1024"],
        &["-t", "ext4", "-O", "^has_journal,^64bit,^metadata_csum"],
        &["-t", "ext4", "-O", "64bit,metadata_csum,metadata_csum_seed,orphan_file"],
        &["-t", "ext4", "-O", "bigalloc,verity,quota,project"],
        &["-t", "ext4", "-O", "^extent,^64bit,^dir_index,^metadata_csum", "-I", "128"],
    ] {
        let image = scratch.empty("ext", 64 << 20);
        ext(&image, &tree, options);
        check(&image, "ext4", true);
    }
}

/// What an ext4 file system's usual files are is read by nobody in between; whatever is special is.
#[test]
fn ext_files_that_lie_there_plainly_are_taken_from_the_disk() {
    let scratch = Scratch::new();
    let tree = boot_tree(&scratch, true);
    let kernel = noise(KERNEL);
    let holes = [noise(5000), vec![0; 100_000], noise(5000)].concat();
    fs::write(tree.join("boot/small"), noise(60)).unwrap();
    fs::write(tree.join("boot/holes"), &holes).unwrap();
    for (options, plainly) in [
        (&["-t", "ext4"][..], true),
        (&["-t", "ext4", "-b", "1024"], true),
        (&["-t", "ext4", "-O", "^has_journal,^64bit,^metadata_csum"], true),
        (&["-t", "ext4", "-O", "64bit,metadata_csum,metadata_csum_seed,orphan_file"], true),
        (&["-t", "ext4", "-I", "1024", "-i", "4096", "-g", "8192"], true),
        (&["-t", "ext3"], false),
        (&["-t", "ext4", "-O", "bigalloc"], false),
    ] {
        let image = scratch.empty("ext", 64 << 20);
        ext(&image, &tree, options);
        let mut fs = Mounted::open(&open(&image)).unwrap().unwrap();
        for (path, whole) in
            [("/boot/vmlinuz-6.1.0-13-amd64", &kernel), ("/boot/up/../vmlinuz-6.1.0-13-amd64", &kernel)]
        {
            let got = delivered(&mut fs, path);
            assert!(&got.content == whole, "{options:?} {path}");
            assert_eq!(got.taken, if plainly { KERNEL } else { 0 }, "{options:?} {path}");
        }
        assert!(delivered(&mut fs, "/boot/small").content == noise(60), "{options:?}");
        let got = delivered(&mut fs, "/boot/holes");
        assert!(got.content == holes && got.taken == 0, "{options:?}: a hole is nowhere on the disk");
    }
}

/// A journal that is to be replayed has newer blocks than those in their places, of files, too.
#[test]
fn nothing_is_taken_past_a_journal() {
    let scratch = Scratch::new();
    let (old, new) = (noise(20_000), [b'n'; 4096]);
    let tree = scratch.tree("tree", &[("kernel", &old)]);
    let image = scratch.empty("ext", 16 << 20);
    ext(&image, &tree, &["-t", "ext4", "-b", "4096"]);
    let block = run("debugfs", &["-R", "bmap /kernel 1", str(&image)]);
    let (script, content) = (scratch.path("script"), scratch.path("block"));
    fs::write(&content, new).unwrap();
    let commands = format!("jo -c -v 3\njw -b {} {}\njc\n", block.trim(), str(&content));
    fs::write(&script, commands).unwrap();
    run("debugfs", &["-w", "-f", str(&script), str(&image)]);
    let features = run("debugfs", &["-R", "features", str(&image)]);
    assert!(features.contains("needs_recovery"), "{features}");
    let mut fs = Mounted::open(&open(&image)).unwrap().unwrap();
    let got = delivered(&mut fs, "/kernel");
    assert!(got.content == [&old[..4096], &new[..], &old[8192..]].concat() && got.taken == 0);
}

/// Files whose extents do not fit into the inode, in whichever way they were written.
#[test]
fn ext_files_in_many_pieces_are_delivered_as_they_are() {
    let scratch = Scratch::new();
    let pieces: Vec<(String, Vec<u8>)> = (0..200).map(|n| (format!("filler{n}"), noise(4096))).collect();
    let files: Vec<(&str, &[u8])> = pieces.iter().map(|(name, bytes)| (&**name, &**bytes)).collect();
    let tree = scratch.tree("tree", &files);
    let image = scratch.empty("ext", 2 << 20);
    ext(&image, &tree, &["-t", "ext4", "-O", "^has_journal", "-N", "256"]);
    let kernel = noise(390_000);
    let new = scratch.path("new");
    fs::write(&new, &kernel).unwrap();
    let removals = (0..200).step_by(2).map(|n| format!("rm filler{n}"));
    let script: Vec<_> = removals.chain([format!("write {} kernel\n", str(&new))]).collect();
    let commands = scratch.path("commands");
    fs::write(&commands, script.join("\n")).unwrap();
    run("debugfs", &["-w", "-f", str(&commands), str(&image)]);
    let extents = run("debugfs", &["-R", "ex kernel", str(&image)]);
    assert!(extents.lines().count() > 6, "{extents}");
    let mut fs = Mounted::open(&open(&image)).unwrap().unwrap();
    let got = delivered(&mut fs, "/kernel");
    assert!(got.content == kernel && got.taken == 0, "{extents}");
}

#[test]
fn xfs_of_both_versions() {
    let scratch = Scratch::new();
    let tree = boot_tree(&scratch, true);
    for options in [
        &[][..],
        &["-m", "crc=0"],
        &["-b", "size=1024"],
        &["-i", "nrext64=1"],
        &["-n", "size=8192", "-i", "size=1024"],
        &["-m", "bigtime=0,reflink=0,rmapbt=1,inobtcount=0"],
    ] {
        let image = scratch.empty("xfs", 320 << 20);
        xfs(&image, &tree, options);
        check(&image, "xfs", true);
    }
}

#[test]
fn btrfs_as_made_by_its_tools() {
    let scratch = Scratch::new();
    let tree = boot_tree(&scratch, true);
    for options in [&[][..], &["-m", "single"], &["-M"], &["-n", "4096"], &["-O", "^no-holes"]] {
        let image = scratch.empty("btrfs", 160 << 20);
        btrfs(&image, &tree, options);
        check(&image, "btrfs", true);
    }
}

#[test]
fn fat_of_every_width() {
    let scratch = Scratch::new();
    let tree = boot_tree(&scratch, false);
    for (options, size) in
        [(&["-F", "12"][..], 8), (&["-F", "16"], 32), (&["-F", "32"], 64), (&["-F", "32", "-s", "1"], 40)]
    {
        let image = scratch.empty("fat", size << 20);
        fat(&image, &tree, options);
        check(&image, "vfat", false);
        let mut fs = Mounted::open(&open(&image)).unwrap().unwrap();
        assert_eq!(content(&mut fs, "/BOOT/GRUB/Grub.Cfg"), b"set x=1\n", "names have no case here");
    }
}

#[test]
fn iso_with_every_kind_of_names() {
    let scratch = Scratch::new();
    let tree = boot_tree(&scratch, true);
    let image = scratch.path("iso");
    iso(&image, &tree, &["-R"]);
    check(&image, "iso9660", true);
    iso(&image, &tree, &["-R", "-J", "-joliet-long"]);
    check(&image, "iso9660", true);
    let plain = scratch.tree("plain", &[("BOOT/KERNEL.GZ", b"kernel"), ("a name with Case.cfg", b"cfg")]);
    iso(&image, &plain, &["-J", "-no-pad"]);
    let mut fs = Mounted::open(&open(&image)).unwrap().unwrap();
    // xorriso always writes Rock Ridge; with it made unreadable, Joliet remains, and without that the plain names.
    assert_eq!(content(&mut fs, "/a name with Case.cfg"), b"cfg");
    let mut bytes = fs::read(&image).unwrap();
    for at in 0..bytes.len() - 7 {
        if &bytes[at..at + 2] == b"SP" && bytes[at + 4..at + 6] == [0xbe, 0xef] {
            bytes[at] = b'X';
        }
    }
    fs::write(&image, &bytes).unwrap();
    let mut fs = Mounted::open(&open(&image)).unwrap().unwrap();
    assert_eq!(content(&mut fs, "/a name with Case.cfg"), b"cfg");
    let joliet = bytes.windows(3).position(|w| w == b"%/E").unwrap();
    bytes[joliet] = b'X';
    fs::write(&image, &bytes).unwrap();
    let mut fs = Mounted::open(&open(&image)).unwrap().unwrap();
    assert_eq!(content(&mut fs, "/boot/Kernel.gz"), b"kernel");
}

#[test]
fn ids_are_those_that_blkid_and_grub_use() {
    let scratch = Scratch::new();
    let tree = scratch.tree("t", &[("f", b"x")]);
    let id = "0f0e0d0c-0b0a-4908-8706-050403020100";
    let image = scratch.empty("i", 320 << 20);
    let ids = |image: &Path| {
        let fs = Mounted::open(&open(image)).unwrap().unwrap();
        (fs.uuid().unwrap(), fs.label().unwrap_or_default())
    };
    ext(&image, &tree, &["-t", "ext4", "-U", id, "-L", "root"]);
    assert_eq!(ids(&image), (id.to_owned(), "root".to_owned()));
    xfs(&image, &tree, &["-m", &format!("uuid={id}"), "-L", "root"]);
    assert_eq!(ids(&image), (id.to_owned(), "root".to_owned()));
    btrfs(&image, &tree, &["-U", id, "-L", "root"]);
    assert_eq!(ids(&image), (id.to_owned(), "root".to_owned()));
    fat(&image, &tree, &["-F", "32", "-i", "DEADBEEF", "-n", "ESP"]);
    assert_eq!(ids(&image), ("DEAD-BEEF".to_owned(), "ESP".to_owned()));
    let disc = scratch.path("iso");
    iso(&disc, &tree, &["-V", "DISC", "--modification-date=2024020304050607"]);
    assert_eq!(ids(&disc), ("2024-02-03-04-05-06-07".to_owned(), "DISC".to_owned()));
}

#[test]
fn what_is_refused_is_refused_by_name() {
    let scratch = Scratch::new();
    let image = scratch.empty("i", 64 << 20);
    let tree = scratch.tree("t", &[("f", b"x")]);
    let refusal = |image: &Path| match Mounted::open(&open(image)) {
        Err(Error::Unsupported(what)) => what,
        other => panic!("{other:?}"),
    };
    for (offset, magic, name) in [(0, &b"LUKS\xba\xbe\x00\x02"[..], "LUKS"), (3, b"NTFS    ", "NTFS")] {
        let image = scratch.empty("magic", 1 << 20);
        let file = fs::File::options().write(true).open(&image).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, magic, offset).unwrap();
        assert!(refusal(&image).contains(name), "{name}");
    }
    ext(&image, &tree, &["-t", "ext4", "-O", "inline_data"]);
    assert!(refusal(&image).contains("ext4"), "{}", refusal(&image));
    ext(&image, &tree, &["-t", "ext4", "-I", "128"]);
    assert!(refusal(&image).contains("128-byte inodes"), "{}", refusal(&image));
    btrfs(&scratch.empty("b", 160 << 20), &tree, &["--csum", "sha256"]);
    assert!(refusal(&scratch.path("b")).contains("btrfs"));
    assert!(Mounted::open(&open(&scratch.empty("zero", 1 << 20))).unwrap().is_none());
    run("mkswap", &[str(&scratch.empty("swap", 1 << 20))]);
    assert!(Mounted::open(&open(&scratch.path("swap"))).unwrap().is_none());
}

/// A superblock of Linux' software RAID as `md_p.h` has it: a mirror of two, of which this is the first.
fn raid_superblock(version: &str, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; if version == "0.90" { 4096 } else { 260 }];
    let mut word = |at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    word(0, 0xa92b_4efc);
    if version == "0.90" {
        word(4, 0);
        word(8, 90);
    } else {
        word(4, 1);
        word(144, u32::try_from(offset / 512).unwrap());
        word(220, 2);
        let sum: u64 =
            bytes.chunks(4).map(|four| u64::from(u32::from_le_bytes(four.try_into().unwrap()))).sum();
        let folded = (sum & 0xffff_ffff) + (sum >> 32);
        bytes[216..220].copy_from_slice(&u32::try_from(folded & 0xffff_ffff).unwrap().to_le_bytes());
    }
    bytes
}

/// Each kind of superblock on a member with a file system that could be read as if it were alone; blkid, which mount and
/// udev ask, has to agree with the test that it is a member.
#[test]
fn members_of_raids_are_refused_by_name_whatever_they_hold() {
    let scratch = Scratch::new();
    let tree = scratch.tree("t", &[("f", b"x")]);
    // Not a whole number of 64 KiB.
    let size: u64 = (16 << 20) + 12_288;
    for (version, offset) in [
        ("0.90", (size / 65_536 - 1) * 65_536),
        ("1.0", (size / 512 - 16) / 8 * 8 * 512),
        ("1.1", 0),
        ("1.2", 4096),
    ] {
        let image = scratch.empty(version, size);
        ext(&image, &tree, &["-t", "ext4"]);
        let file = fs::File::options().write(true).open(&image).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &raid_superblock(version, offset), offset).unwrap();
        let blkid = run("blkid", &["-p", "-o", "value", "-s", "TYPE", str(&image)]);
        assert_eq!(blkid.trim(), "linux_raid_member", "{version}");
        match Mounted::open(&open(&image)) {
            Err(Error::Unsupported(what)) => {
                assert_eq!(what, format!("Linux software RAID (metadata {version})"));
            }
            other => panic!("{version}: {other:?}"),
        }
    }
}

/// The superblock of a whole disk hides the table that is in its data; that of a last partition, in the same place, does not.
#[test]
fn a_partition_of_a_raid_is_told_from_a_raid_with_partitions() {
    let scratch = Scratch::new();
    let size: u64 = 24 << 20;
    let offset = (size / 512 - 16) / 8 * 8 * 512;
    let start: u64 = 12 << 20;
    let disk = scratch.empty("disk", size);
    common::partition(&disk, "label: dos\nstart=2048,size=20480,type=83\nstart=24576,type=fd\n");
    let boot = scratch.empty("boot", 10 << 20);
    ext(&boot, &scratch.tree("t", &[("f", b"x")]), &["-t", "ext4"]);
    place(&boot, &disk, 1 << 20);
    let file = fs::File::options().write(true).open(&disk).unwrap();
    let write = |own: u64| {
        let bytes = raid_superblock("1.0", own);
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, offset).unwrap();
        partition::layout(&open(&disk)).unwrap().partitions
    };
    let found = write(offset - start);
    assert_eq!(found.iter().map(|p| p.table.to_string()).collect::<Vec<_>>(), ["partition 1", "partition 2"]);
    assert!(Mounted::open(&found[0].volume).unwrap().is_some());
    assert!(matches!(Mounted::open(&found[1].volume), Err(Error::Unsupported(what)) if what.contains("1.0")));
    let found = write(offset);
    assert_eq!(found.iter().map(|p| p.table.to_string()).collect::<Vec<_>>(), ["whole disk"]);
}

#[test]
fn btrfs_with_subvolumes_and_compression() {
    let disk = fixture("btrfs.img");
    let mut fs = Mounted::open(&open(disk.path())).unwrap().unwrap();
    let numbers = (1..=100_000).map(|n| n.to_string()).collect::<Vec<_>>().join("\n") + "\n";
    for compression in ["zlib", "lzo", "zstd"] {
        // As GRUB names it, from the top level, and as SUSE's GRUB does, from the default subvolume.
        for path in [format!("/@/boot/{compression}/numbers"), format!("/boot/{compression}/numbers")] {
            assert!(content(&mut fs, &path) == numbers.as_bytes(), "{path}");
        }
    }
    assert_eq!(content(&mut fs, "/top"), b"top\n");
    assert_eq!(content(&mut fs, "/@/nested/file"), b"nested\n");
    assert_eq!(fs.list(b"/").unwrap(), [b"@".to_vec(), b"top".to_vec()]);
}
