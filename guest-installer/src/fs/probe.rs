//! What is on a volume, by its magic numbers.

use super::fat;
use crate::{
    bytes::{le16, le32, le64},
    disk::Volume,
    error::Result,
    partition::is_lvm_label,
};

/// What a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signature {
    /// ext2, ext3 or ext4.
    Ext,
    /// XFS.
    Xfs,
    /// btrfs.
    Btrfs,
    /// FAT12, FAT16 or FAT32.
    Fat,
    /// ISO 9660.
    Iso9660,
    /// An LVM2 physical volume.
    LvmPhysicalVolume,
    /// Something a guest may well boot from, and that this reader does not read.
    Refused(&'static str),
    /// Something nothing boots from.
    Ignored(&'static str),
}

/// Magic numbers of what is refused or ignored: offset, bytes, what it is.
const OTHERS: &[(u64, &[u8], Signature)] = &[
    (0, b"LUKS\xba\xbe", Signature::Refused("LUKS encryption")),
    (4096, b"\xfc\x4e\x2b\xa9", Signature::Refused("Linux software RAID (metadata 1.2)")),
    (0, b"\xfc\x4e\x2b\xa9", Signature::Refused("Linux software RAID (metadata 1.1)")),
    (3, b"-FVE-FS-", Signature::Refused("BitLocker encryption")),
    (3, b"NTFS    ", Signature::Refused("NTFS")),
    (3, b"EXFAT   ", Signature::Refused("exFAT")),
    (1024, b"\x10\x20\xf5\xf2", Signature::Refused("F2FS")),
    (0x1_0034, b"ReIsEr", Signature::Refused("ReiserFS")),
    (0x8000, b"JFS1", Signature::Refused("JFS")),
    (0, b"hsqs", Signature::Refused("SquashFS")),
    (
        4096 + 24,
        b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81",
        Signature::Refused("bcachefs"),
    ),
    (4086, b"SWAPSPACE2", Signature::Ignored("swap")),
];

/// Software RAID of whole disks: what is in them, partitions too, is not on this disk alone.
pub(crate) const RAID_1_0: &str = "Linux software RAID (metadata 1.0)";

/// Looks at a volume's magic numbers.
///
/// # Errors
/// When the disk cannot be read.
pub fn probe(volume: &Volume) -> Result<Option<Signature>> {
    let at =
        |offset: u64, magic: &[u8]| Ok(volume.peek(offset, magic.len())?.is_some_and(|bytes| bytes == magic));
    for (offset, magic, signature) in OTHERS {
        if at(*offset, magic)? {
            return Ok(Some(*signature));
        }
    }
    // First of all: a mirror's half has a file system's magic numbers as well, and a stripe has them, too, with another
    // disk's blocks in between.
    if let Some(name) = raid_at_the_end(volume)? {
        return Ok(Some(Signature::Refused(name)));
    }
    for sector in 0..4 {
        if volume.peek(sector * 512, 512)?.is_some_and(|bytes| is_lvm_label(&bytes)) {
            return Ok(Some(Signature::LvmPhysicalVolume));
        }
    }
    let known: [(u64, &[u8], Signature); 4] = [
        (0x1_0040, b"_BHRfS_M", Signature::Btrfs),
        (0, b"XFSB", Signature::Xfs),
        (1024 + 56, b"\x53\xef", Signature::Ext),
        (0x8001, b"CD001", Signature::Iso9660),
    ];
    for (offset, magic, signature) in known {
        if at(offset, magic)? {
            return Ok(Some(signature));
        }
    }
    if volume.peek(0, 512)?.is_some_and(|sector| fat::Geometry::parse(&sector).is_some()) {
        return Ok(Some(Signature::Fat));
    }
    Ok(None)
}

/// Software RAID of the kinds with the superblock behind the data (Linux' `include/uapi/linux/raid/md_p.h`).
fn raid_at_the_end(volume: &Volume) -> Result<Option<&'static str>> {
    const MAGIC: u32 = 0xa92b_4efc;
    /// `super_offset` of version 1: the superblock's own place in sectors of the member.
    const SUPER_OFFSET: usize = 144;
    let size = volume.size();
    let version_1 = (size / 512).saturating_sub(16) / 8 * 8 * 512;
    let version_0 = (size / 65_536).saturating_sub(1) * 65_536;
    let at = |offset: u64| -> Result<Option<_>> {
        let bytes = if offset > 0 { volume.peek(offset, SUPER_OFFSET + 8)? } else { None };
        Ok(bytes.filter(|bytes| le32(bytes, 0) == Some(MAGIC)))
    };
    // A last partition's superblock is in the same place of the disk; that it is not the disk's own it says itself.
    let own = |bytes: &[u8]| le64(bytes, SUPER_OFFSET).and_then(|sector| sector.checked_mul(512));
    if at(version_1)?.is_some_and(|bytes| own(&bytes) == Some(version_1)) {
        return Ok(Some(RAID_1_0));
    }
    Ok(at(version_0)?.is_some().then_some("Linux software RAID (metadata 0.90)"))
}

/// The boot signature of a PC boot sector.
pub(super) fn has_boot_signature(sector: &[u8]) -> bool {
    le16(sector, 510) == Some(0xaa55)
}
