//! Where a file's bytes are, on an ext4 volume that has nothing special about it.
//!
//! ```text
//!   superblock ─► group descriptor ─► inode of `/` ─► directory ─► inode ─► … ─► the file's extents ─► runs
//! ```
//! `ext4-view` says what is at a path, and whether checksums are right; it passes a file on in blocks, each of which it has
//! copied twice. What is here only finds out where those blocks are, so that they can be copied in one go. Anything that
//! is not as Debian's installer and mke2fs leave it is `None`: then `ext4-view` passes it on.

use crate::{
    bytes::{le16, le32},
    disk::{Run, Volume},
    error::Result,
};

/// Incompatible features with which everything here is where it is without them: names' kinds in directories, extents, 64
/// bits, groups' metadata together, the checksums' seed.
const FEATURES: u32 = FILETYPE | EXTENTS | 0x80 | FLEX_BG | 0x2000;
const FILETYPE: u32 = 0x2;
const EXTENTS: u32 = 0x40;
const FLEX_BG: u32 = 0x200;

/// Flag of an inode whose extents are known by an extent tree.
const INODE_EXTENTS: u32 = 0x8_0000;
/// Flags that change what is in an inode or its blocks: compressed (three of them), encrypted, no data of its own, inline.
const INODE_SPECIAL: u32 = 0x4 | 0x200 | 0x400 | 0x800 | 0x20_0000 | 0x1000_0000;

/// Number of the root directory's inode.
const ROOT: u32 = 2;

/// Where the superblock is, and how long it is.
const SUPERBLOCK: (u64, usize) = (1024, 1024);

/// Largest directory that is looked through, in bytes: `/boot` has one block.
const DIRECTORY: u64 = 256 << 10;

/// What is needed of the superblock.
#[derive(Debug)]
pub(super) struct Plain {
    volume: Volume,
    block: u64,
    groups_at: u64,
    descriptor: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode: u64,
}

/// What is needed of an inode.
struct Inode {
    mode: u16,
    size: u64,
    /// The root of the extent tree.
    tree: [u8; 60],
}

const DIRECTORY_MODE: u16 = 0o040_000;
const FILE_MODE: u16 = 0o100_000;

impl Plain {
    /// Reads the superblock; `None` for a file system that is special.
    pub(super) fn open(volume: &Volume) -> Result<Option<Self>> {
        let Some(superblock) = volume.peek(SUPERBLOCK.0, SUPERBLOCK.1)? else { return Ok(None) };
        Ok(Self::parse(volume, &superblock))
    }

    fn parse(volume: &Volume, superblock: &[u8]) -> Option<Self> {
        let field = |at| le32(superblock, at);
        let features = field(0x60)?;
        if features & !FEATURES != 0 || features & EXTENTS == 0 || features & FILETYPE == 0 {
            return None;
        }
        // 1, 2 or 4 KiB: larger ones write a directory's lengths in another way.
        let block = 1024_u64 << field(0x18).filter(|&log| log <= 2)?;
        let descriptor =
            if features & 0x80 == 0 { 32 } else { le16(superblock, 0xfe).filter(|&size| size >= 64)? };
        Some(Self {
            volume: volume.clone(),
            block,
            groups_at: (u64::from(field(0x14)?) + 1) * block,
            descriptor: descriptor.into(),
            inodes: field(0x0)?,
            inodes_per_group: field(0x28).filter(|&n| n > 0)?,
            inode: le16(superblock, 0x58).filter(|&size| size >= 128)?.into(),
        })
    }

    /// The runs of a regular file of this size, all of which hold bytes of it.
    pub(super) fn runs(&self, path: &[u8], size: u64) -> Result<Option<Vec<Run>>> {
        let mut number = ROOT;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
            match self.entry(number, name)? {
                Some(found) => number = found,
                None => return Ok(None),
            }
        }
        let inode =
            self.inode(number)?.filter(|inode| inode.mode & 0o170_000 == FILE_MODE && inode.size == size);
        Ok(inode.and_then(|inode| self.extents(&inode)))
    }

    /// The inode that a directory has by a name.
    fn entry(&self, directory: u32, name: &[u8]) -> Result<Option<u32>> {
        let inode = self.inode(directory)?;
        let inode = inode.filter(|i| i.mode & 0o170_000 == DIRECTORY_MODE && i.size <= DIRECTORY);
        let Some(runs) = inode.and_then(|inode| self.extents(&inode)) else { return Ok(None) };
        let Some(content) = self.volume.parts(&runs) else { return Ok(None) };
        let block = usize::try_from(self.block).unwrap_or(0);
        for at in (0..content.size()).step_by(block) {
            let Some(entries) = content.peek(at, block)? else { return Ok(None) };
            if let Some(found) = in_block(&entries, name) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn inode(&self, number: u32) -> Result<Option<Inode>> {
        let Some(index) = number.checked_sub(1).filter(|_| number <= self.inodes) else { return Ok(None) };
        let (group, index) =
            (u64::from(index / self.inodes_per_group), u64::from(index % self.inodes_per_group));
        let at = self.groups_at + group * self.descriptor;
        let length = usize::try_from(self.descriptor).unwrap_or(0);
        let Some(descriptor) = self.volume.peek(at, length)? else { return Ok(None) };
        let table = le32(&descriptor, 0x8).map(|low| wide(low, le32(&descriptor, 0x28).unwrap_or(0)));
        let at = table.and_then(|block| block.checked_mul(self.block)?.checked_add(index * self.inode));
        let Some(at) = at else { return Ok(None) };
        Ok(self.volume.peek(at, 128)?.and_then(|bytes| Inode::parse(&bytes)))
    }

    /// The runs of an inode's bytes, if all of it is in the extents that it names itself, without holes.
    fn extents(&self, inode: &Inode) -> Option<Vec<Run>> {
        /// What a header begins with.
        const MAGIC: u16 = 0xf30a;
        /// Longest extent in blocks; a longer one is only reserved.
        const LONGEST: u16 = 32_768;
        let field = |at| le16(&inode.tree, at);
        // A tree of depth 0.
        if field(0)? != MAGIC || field(6)? != 0 {
            return None;
        }
        let (mut runs, mut blocks, mut left) = (Vec::new(), 0_u64, inode.size);
        for extent in inode.tree[12..].chunks_exact(12).take(field(2)?.into()) {
            let (first, length) = (u64::from(le32(extent, 0)?), le16(extent, 4)?);
            if first != blocks || !(1..=LONGEST).contains(&length) || left == 0 {
                return None;
            }
            let start = wide(le32(extent, 8)?, le16(extent, 6)?.into()).checked_mul(self.block)?;
            let len = left.min(u64::from(length) * self.block);
            runs.push(Run { start, len });
            (blocks, left) = (blocks + u64::from(length), left - len);
        }
        (left == 0).then_some(runs)
    }
}

impl Inode {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let flags = le32(bytes, 0x20)?;
        if flags & INODE_EXTENTS == 0 || flags & INODE_SPECIAL != 0 {
            return None;
        }
        Some(Self {
            mode: le16(bytes, 0)?,
            size: wide(le32(bytes, 0x4)?, le32(bytes, 0x6c)?),
            tree: crate::bytes::array(bytes, 0x28)?,
        })
    }
}

fn wide(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

/// The inode of a name in a directory's block.
fn in_block(mut entries: &[u8], name: &[u8]) -> Option<u32> {
    loop {
        let (inode, length) = (le32(entries, 0)?, usize::from(le16(entries, 4)?));
        let long = usize::from(*entries.get(6)?);
        if inode != 0 && entries.get(8..8 + long)? == name {
            return Some(inode);
        }
        // An entry without even a head would be looked at again and again.
        entries = entries.get(length.max(8)..)?;
    }
}
