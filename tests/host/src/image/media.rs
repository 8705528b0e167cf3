//! The disk that HVM guests boot through their firmware, with GRUB and the test guest's kernel and initramfs.
//!
//! ```text
//!   sector 0: GRUB's boot.img and the partition table ─► sectors 1..: its core.img ─► /grub, kernel, initramfs (ext4)
//! ```
//!
//! It is made without root and without loop devices: mke2fs fills the file system, and the rest are sectors. SeaBIOS reads
//! an emulated disk word by word, which takes minutes for a kernel on an emulated processor: what is on it is as small as
//! it can be.

use super::recipe;
use crate::{
    error::{Context as _, Error, Result},
    process,
};
use std::{fs, os::unix::fs::FileExt as _, path::Path, process::Command, time::Duration};

/// Longest run of one program here.
const LIMIT: Duration = Duration::from_secs(60);

/// GRUB's boot sector, as its package has it.
const BOOT: &str = "/usr/lib/grub/i386-pc/boot.img";

/// Bytes of a sector.
const SECTOR: usize = 512;

/// Bytes of the boot sector that are code; a disk's identifier and its partition table follow.
const BOOT_CODE: usize = 440;

/// Where the partition table is in the first sector.
const TABLE: usize = 446;

/// Sectors before the first partition: fdisk's alignment, in which GRUB has its place.
const GAP: u32 = 2048;

/// The same in bytes.
const ROOM: usize = GAP as usize * SECTOR;

/// Sectors of the partition: twice what is on it today, and it costs nothing while it is empty.
const PARTITION: u32 = 48 << 10;

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
    disk(&core(scratch)?, &tree, &guests.join("hvm-disk.img"))
}

/// GRUB's core image, which fits before the first partition.
fn core(scratch: &Path) -> Result<Vec<u8>> {
    let path = scratch.join("core.img");
    let mut mkimage = Command::new("grub-mkimage");
    mkimage.args(["-O", "i386-pc", "-p", "(hd0,msdos1)/grub", "-o"]).arg(&path);
    mkimage.args(["part_msdos", "ext2", "biosdisk", "normal", "linux", "configfile"]);
    process::check(&mut mkimage, LIMIT)?;
    let core = fs::read(&path).at("read", path)?;
    if SECTOR + core.len() > ROOM {
        return Err(Error::Image("GRUB's core image does not fit before the first partition".to_owned()));
    }
    Ok(core)
}

fn disk(core: &[u8], tree: &Path, to: &Path) -> Result<()> {
    let boot = Path::new(BOOT);
    let boot = fs::read(boot).at("read", boot)?;
    let disk = fs::File::create(to).at("create", to)?;
    let start = u64::from(GAP) * SECTOR as u64;
    disk.set_len(start + u64::from(PARTITION) * SECTOR as u64).at("enlarge", to)?;
    disk.write_all_at(&first_sector(&boot), 0).at("write", to)?;
    // Where boot.img, as it comes, looks for it.
    disk.write_all_at(core, SECTOR as u64).at("write", to)?;
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-d"]).arg(tree);
    mke2fs.args(["-E", &format!("offset={start}")]).arg(to).arg(format!("{}k", PARTITION / 2));
    mke2fs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    process::check(&mut mke2fs, LIMIT).map(drop)
}

/// GRUB's boot sector and a table of one active Linux partition. Its places in cylinders are those that mean "beyond".
fn first_sector(boot: &[u8]) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let code = boot.len().min(BOOT_CODE);
    sector[..code].copy_from_slice(&boot[..code]);
    sector[TABLE..TABLE + 8].copy_from_slice(&[0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    sector[TABLE + 8..TABLE + 12].copy_from_slice(&GAP.to_le_bytes());
    sector[TABLE + 12..TABLE + 16].copy_from_slice(&PARTITION.to_le_bytes());
    sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sector_has_code_and_one_partition() {
        let sector = first_sector(&[7; SECTOR]);
        assert_eq!(sector[..BOOT_CODE], [7; BOOT_CODE]);
        assert_eq!(sector[BOOT_CODE..TABLE], [0; TABLE - BOOT_CODE]);
        assert_eq!((sector[TABLE], sector[TABLE + 4]), (0x80, 0x83));
        assert_eq!(sector[TABLE + 8..TABLE + 12], [0, 8, 0, 0]);
        assert_eq!(sector[TABLE + 16..SECTOR - 2], [0; 48]);
        assert_eq!(first_sector(&[1, 2])[..3], [1, 2, 0]);
    }
}
