//! A disk with Debian 12 on it, as its installer leaves one: packages configured by their own scripts, GRUB in the gap before
//! the partition, its configuration written by Debian's own `grub-mkconfig`. The package of a second kernel is in root's home.
//! What only costs time on an emulated processor is left out, as the files under `assets/debian` say: udev in the initial
//! ramdisk, boot scripts, and drivers for other machines.
//!
//! ```text
//!   apt-get ──▶ packages ──▶ assets/debian/build: mount, unpack, chroot dpkg, mkinitramfs, update-grub ──▶ disk
//! ```
//!
//! The product is `target/nested/debian-KEY`, where KEY is the hash of what makes it. It is made once, in about a minute, by
//! root: the packages' scripts run in a chroot.

use super::{apt::Apt, grub, product, recipe};
use crate::{
    error::{Context as _, Error, Result},
    hash::Key,
    paths::Building,
    process,
    progress::step,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// Longest installation of all packages: a minute on a quiet machine.
const LIMIT: Duration = Duration::from_secs(600);

/// Longest making of the empty file system.
const MKFS_LIMIT: Duration = Duration::from_secs(60);

/// KiB of the partition. A quarter is in use, and what is not takes no room.
const PARTITION: u32 = 1 << 20;

/// What GRUB has in its core. More is in `/boot/grub/i386-pc`, which it would read sector by sector.
const GRUB_MODULES: &[&str] = &[
    "part_msdos",
    "ext2",
    "biosdisk",
    "normal",
    "linux",
    "configfile",
    "search",
    "search_fs_uuid",
    "echo",
    "test",
    "loadenv",
    "minicmd",
    "all_video",
    "gzio",
];

/// The beginning of the file name of a kernel's package; the one that brings it has no version in its name.
const KERNEL_FILE: &str = "linux-image-6";

/// A disk with Debian 12.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebianDisk {
    dir: PathBuf,
}

impl DebianDisk {
    /// The disk of the current recipe, made when it is not there. Several processes may ask at once; one makes it.
    ///
    /// # Errors
    /// When this is not root, a package cannot be fetched or installed, a program is missing, or the file system is full.
    pub fn get() -> Result<Self> {
        Ok(Self { dir: product("Debian's disk", "debian-", &key()?.to_string(), build)? })
    }

    /// The image of the whole disk: an MBR, and ext4 on its first partition. Never to be written to.
    pub fn image(&self) -> PathBuf {
        self.dir.join("disk")
    }

    /// What `grub-mkconfig` wrote.
    pub fn grub_config(&self) -> PathBuf {
        self.dir.join("grub.cfg")
    }

    /// The installed kernel's release, as `uname -r` says it.
    ///
    /// # Errors
    /// When GRUB's configuration cannot be read or has no kernel.
    pub fn release(&self) -> Result<String> {
        let path = self.grub_config();
        let config = fs::read_to_string(&path).at("read", &path)?;
        let named = config.split_once("linux\t/boot/vmlinuz-").and_then(|(_, rest)| rest.split_once(' '));
        let damaged = || Error::Damaged { path, reason: "it has no kernel".to_owned() };
        named.map(|(release, _)| release.to_owned()).ok_or_else(damaged)
    }
}

fn assets() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/debian")
}

fn key() -> Result<Key> {
    let mut key = Key::new("debian");
    key.field(recipe::RELEASE.as_bytes());
    for list in [recipe::DEBIAN_PACKAGES, GRUB_MODULES] {
        key.field(list.join("\n").as_bytes());
    }
    key.field(recipe::DEBIAN_KERNEL.as_bytes());
    key.field(&PARTITION.to_le_bytes());
    let assets = assets();
    add(&mut key, &assets, &assets)?;
    Ok(key)
}

/// Adds names and contents of all files below a directory.
fn add(key: &mut Key, root: &Path, dir: &Path) -> Result<()> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        paths.push(entry.at("list", dir)?.path());
    }
    paths.sort();
    for path in paths {
        if path.is_dir() {
            add(key, root, &path)?;
        } else {
            let name = path.strip_prefix(root).unwrap_or(&path);
            key.field(name.as_os_str().as_encoded_bytes());
            key.file(&path)?;
        }
    }
    Ok(())
}

fn build(name: &str, to: &Path) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::Image("Debian's packages are installed in a chroot: run as root".to_owned()));
    }
    let building = Building::new(name)?;
    let disk = building.path().join("disk");
    let (packages, kernel) = step("  fetch packages", fetch)?;
    grub::disk(&disk, PARTITION, "/boot/grub", GRUB_MODULES, building.path())?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-E", &format!("offset={}", grub::PARTITION_OFFSET)]);
    mke2fs.arg(&disk).arg(format!("{PARTITION}k")).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    process::check(&mut mke2fs, MKFS_LIMIT)?;
    step("  install packages", || {
        let mut script = Command::new("unshare");
        script
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"])
            .arg(assets().join("build"));
        script.arg(&disk).arg(grub::PARTITION_OFFSET.to_string()).arg(&kernel).args(&packages);
        process::check(&mut script, LIMIT)
    })?;
    building.finish(to)
}

/// The packages to be installed, and the one of the second kernel.
fn fetch() -> Result<(Vec<PathBuf>, PathBuf)> {
    let apt = Apt::new()?;
    let packages = apt.fetch(recipe::DEBIAN_PACKAGES)?;
    let named = |path: &&PathBuf| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(KERNEL_FILE.as_bytes()))
    };
    let kernel = apt.fetch(&[recipe::DEBIAN_KERNEL])?.iter().find(named).cloned();
    let kernel =
        kernel.ok_or_else(|| Error::Image(format!("{} brings no {KERNEL_FILE}*", recipe::DEBIAN_KERNEL)))?;
    Ok((packages, kernel))
}
