//! The disk that HVM guests boot through their firmware, with GRUB and the test guest's kernel and initramfs.
//!
//! It is made without root and without loop devices: mke2fs fills the file system, and the rest are sectors. SeaBIOS reads
//! an emulated disk word by word, which takes minutes for a kernel on an emulated processor: what is on it is as small as
//! it can be.

use super::{grub, recipe};
use crate::{
    error::{Context as _, Result},
    process,
};
use std::{fs, path::Path, process::Command, time::Duration};

/// Longest run of one program here.
const LIMIT: Duration = Duration::from_secs(60);

/// KiB of the partition: twice what is on it today, and it costs nothing while it is empty.
const PARTITION: u32 = 24 << 10;

/// What GRUB needs to show this configuration and start a kernel.
const MODULES: &[&str] = &["part_msdos", "ext2", "biosdisk", "normal", "linux", "configfile"];

/// Puts it beside the guests' kernels; `scratch` is an empty directory.
pub(super) fn add(root: &Path, scratch: &Path, vmlinuz: &Path) -> Result<()> {
    let guests = root.join("guests");
    let tree = scratch.join("tree");
    let grub = tree.join("grub");
    fs::create_dir_all(&grub).at("create", &grub)?;
    let kernel = tree.join("vmlinuz");
    fs::copy(vmlinuz, &kernel).at("write", kernel)?;
    let config = grub.join("grub.cfg");
    fs::write(&config, recipe::DISK_GRUB).at("write", config)?;
    let mut zstd = Command::new("zstd");
    zstd.args(["-q", "-19"]).arg(guests.join("initramfs")).arg("-o").arg(tree.join("initramfs"));
    process::check(&mut zstd, LIMIT)?;
    let image = guests.join("hvm-disk.img");
    grub::disk(&image, PARTITION, "/grub", MODULES, scratch)?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-d"]).arg(&tree);
    mke2fs.args(["-E", &format!("offset={}", grub::PARTITION_OFFSET)]).arg(&image);
    mke2fs.arg(format!("{PARTITION}k")).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    process::check(&mut mke2fs, LIMIT).map(drop)
}
