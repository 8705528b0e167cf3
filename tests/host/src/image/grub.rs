//! Disks with GRUB for BIOS firmware in front of their one partition, as `grub-install` lays them out.
//!
//! ```text
//!   sector 0: boot.img and the partition table ─► sectors 1..: core.img ─► /boot/grub on the partition
//! ```

use crate::{
    error::{Context as _, Error, Result},
    process,
};
use std::{fs, os::unix::fs::FileExt as _, path::Path, process::Command, time::Duration};

/// Longest making of a core image.
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

/// Where the partition starts, in bytes.
pub(super) const PARTITION_OFFSET: usize = ROOM;

/// Makes a disk with a partition of so many KiB, in which nothing is yet, and GRUB, whose files are in `directory` there.
/// `scratch` is a directory for files of this.
pub(super) fn disk(
    to: &Path,
    partition_kib: u32,
    directory: &str,
    modules: &[&str],
    scratch: &Path,
) -> Result<()> {
    let boot = Path::new(BOOT);
    let boot = fs::read(boot).at("read", boot)?;
    let core = core(directory, modules, scratch)?;
    let disk = fs::File::create(to).at("create", to)?;
    disk.set_len(PARTITION_OFFSET as u64 + u64::from(partition_kib) * 1024).at("enlarge", to)?;
    disk.write_all_at(&first_sector(&boot, partition_kib * 2), 0).at("write", to)?;
    // Where boot.img, as it comes, looks for it.
    disk.write_all_at(&core, SECTOR as u64).at("write", to)
}

/// GRUB's core image, which fits before the first partition.
fn core(directory: &str, modules: &[&str], scratch: &Path) -> Result<Vec<u8>> {
    let path = scratch.join("core.img");
    let mut mkimage = Command::new("grub-mkimage");
    mkimage.args(["-O", "i386-pc", "-p", &format!("(hd0,msdos1){directory}"), "-o"]).arg(&path);
    process::check(mkimage.args(modules), LIMIT)?;
    let core = fs::read(&path).at("read", path)?;
    if SECTOR + core.len() > ROOM {
        return Err(Error::Image("GRUB's core image does not fit before the first partition".to_owned()));
    }
    Ok(core)
}

/// GRUB's boot sector and a table of one active Linux partition. Its places in cylinders are those that mean "beyond".
fn first_sector(boot: &[u8], sectors: u32) -> [u8; SECTOR] {
    let mut sector = [0; SECTOR];
    let code = boot.len().min(BOOT_CODE);
    sector[..code].copy_from_slice(&boot[..code]);
    sector[TABLE..TABLE + 8].copy_from_slice(&[0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    sector[TABLE + 8..TABLE + 12].copy_from_slice(&GAP.to_le_bytes());
    sector[TABLE + 12..TABLE + 16].copy_from_slice(&sectors.to_le_bytes());
    sector[SECTOR - 2..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_sector_has_code_and_one_partition() {
        let sector = first_sector(&[7; SECTOR], 0x1_0203);
        assert_eq!(sector[..BOOT_CODE], [7; BOOT_CODE]);
        assert_eq!(sector[BOOT_CODE..TABLE], [0; TABLE - BOOT_CODE]);
        assert_eq!((sector[TABLE], sector[TABLE + 4]), (0x80, 0x83));
        assert_eq!(sector[TABLE + 8..TABLE + 16], [0, 8, 0, 0, 3, 2, 1, 0]);
        assert_eq!(sector[TABLE + 16..SECTOR - 2], [0; 48]);
        assert_eq!(first_sector(&[1, 2], 1)[..3], [1, 2, 0]);
    }
}
