//! Disk images made with the distribution's own tools.

#![allow(dead_code, reason = "each test program uses a part of this")]

use guest_installer::disk::{Disk, Volume};
use std::{
    fmt::Write as _,
    fs::{self, File},
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

/// A directory that is removed with its images.
pub(crate) struct Scratch(tempfile::TempDir);

impl Scratch {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A sparse file.
    pub(crate) fn empty(&self, name: &str, size: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(size).unwrap();
        path
    }

    /// A file tree: contents by path.
    pub(crate) fn tree(&self, name: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let root = self.path(name);
        fs::create_dir_all(&root).unwrap();
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        root
    }
}

/// Runs a tool of the distribution; its output, when it succeeds.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    // mkfs and friends are in sbin, which is not in every PATH.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {}{text}", String::from_utf8_lossy(&output.stderr));
    text
}

pub(crate) fn str(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Opens an image as the daemon opens a guest's disk.
pub(crate) fn open(image: &Path) -> Volume {
    Volume::whole(&Disk::new(File::open(image).unwrap(), 1 << 30).unwrap())
}

/// Makes an ext2, ext3 or ext4 image of a tree.
pub(crate) fn ext(image: &Path, tree: &Path, options: &[&str]) {
    let args = [&["-q", "-F", "-d", str(tree)], options, &[str(image)]].concat();
    run("mke2fs", &args);
}

/// Makes an XFS image of a tree.
pub(crate) fn xfs(image: &Path, tree: &Path, options: &[&str]) {
    let proto = image.with_extension("proto");
    fs::write(&proto, format!("/\n0 0\n{}$\n", proto_of(tree, "d--755 0 0\n"))).unwrap();
    let args = [&["-q", "-f", "-p", str(&proto)], options, &[str(image)]].concat();
    run("mkfs.xfs", &args);
}

/// A directory in mkfs.xfs' prototype language.
fn proto_of(dir: &Path, head: &str) -> String {
    let mut text = head.to_owned();
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap();
        let kind = path.symlink_metadata().unwrap().file_type();
        if kind.is_symlink() {
            let _ = writeln!(text, "{name} l--777 0 0 {}", fs::read_link(&path).unwrap().display());
        } else if kind.is_dir() {
            let _ = writeln!(text, "{name} {}$", proto_of(&path, "d--755 0 0\n"));
        } else {
            let _ = writeln!(text, "{name} ---644 0 0 {}", path.display());
        }
    }
    text
}

/// Makes a btrfs image of a tree.
pub(crate) fn btrfs(image: &Path, tree: &Path, options: &[&str]) {
    run("mkfs.btrfs", &[&["-q", "-f", "--rootdir", str(tree)], options, &[str(image)]].concat());
}

/// Makes a FAT image and copies a tree into it.
pub(crate) fn fat(image: &Path, tree: &Path, options: &[&str]) {
    run("mkfs.vfat", &[options, &[str(image)]].concat());
    for entry in fs::read_dir(tree).unwrap() {
        run("mcopy", &["-s", "-i", str(image), str(&entry.unwrap().path()), "::/"]);
    }
}

/// Makes an ISO image of a tree.
pub(crate) fn iso(image: &Path, tree: &Path, options: &[&str]) {
    run("xorriso", &[&["-as", "mkisofs", "-quiet", "-o", str(image)], options, &[str(tree)]].concat());
}

/// Copies an image into another at an offset, leaving holes.
pub(crate) fn place(part: &Path, disk: &Path, offset: u64) {
    let (from, to) = (File::open(part).unwrap(), File::options().write(true).open(disk).unwrap());
    let size = from.metadata().unwrap().len();
    let mut buf = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let n = from.read_at(&mut buf, at).unwrap();
        if buf[..n].iter().any(|&b| b != 0) {
            to.write_all_at(&buf[..n], offset + at).unwrap();
        }
        at += n as u64;
    }
}

/// Partitions a disk as sfdisk(8) is told.
pub(crate) fn partition(disk: &Path, script: &str) {
    let file = disk.with_extension("sfdisk");
    fs::write(&file, script).unwrap();
    run(
        "sh",
        &["-c", &format!("sfdisk --quiet --no-reread --no-tell-kernel {} < {}", str(disk), str(&file))],
    );
}

/// A symbolic link in a tree.
pub(crate) fn link(tree: &Path, name: &str, target: &str) {
    let path = tree.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    symlink(target, path).unwrap();
}

/// Bytes that compress badly and differ everywhere, the same in every run.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A fixture (see `tests/fixtures/make.sh`), unpacked.
pub(crate) fn fixture(name: &str) -> tempfile::NamedTempFile {
    let out = tempfile::NamedTempFile::new().unwrap();
    let packed = format!("{}/tests/fixtures/{name}.zst", env!("CARGO_MANIFEST_DIR"));
    run("zstd", &["-q", "-d", "-f", "--sparse", &packed, "-o", str(out.path())]);
    out
}
