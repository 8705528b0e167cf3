//! What is on a volume, by its magic numbers.

use super::fat;
use crate::{
    bytes::{le16, le32},
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
    // Software RAID of the old kinds has its superblock at the end; what is before may be readable as it is.
    if let Some(name) = raid_at_the_end(volume)? {
        return Ok(Some(Signature::Refused(name)));
    }
    Ok(None)
}

fn raid_at_the_end(volume: &Volume) -> Result<Option<&'static str>> {
    const MAGIC: u32 = 0xa92b_4efc;
    let size = volume.size();
    let version_1 = (size / 512).saturating_sub(16) / 8 * 8 * 512;
    let version_0 = (size / 65_536).saturating_sub(1) * 65_536;
    for (offset, name) in [
        (version_1, "Linux software RAID (metadata 1.0)"),
        (version_0, "Linux software RAID (metadata 0.90)"),
    ] {
        let found = volume.peek(offset, 4)?;
        if offset > 0 && found.is_some_and(|bytes| le32(&bytes, 0) == Some(MAGIC)) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// The boot signature of a PC boot sector.
pub(super) fn has_boot_signature(sector: &[u8]) -> bool {
    le16(sector, 510) == Some(0xaa55)
}
