//! GUID partition tables (UEFI specification, chapter 5): both copies, checked.

use super::{Partition, Table};
use crate::{
    bytes::{array, crc32, le32, le64},
    disk::Volume,
    error::Result,
    limits,
};

const SIGNATURE: &[u8; 8] = b"EFI PART";
/// Smallest header the specification allows.
const HEADER: usize = 92;
/// Largest entry array read: 1,024 entries of 128 bytes. Usual are 128.
const ARRAY_BYTES: u64 = 128 << 10;
/// The attribute "legacy BIOS bootable".
const LEGACY_BOOT: u64 = 1 << 2;

/// A header whose checksum is right.
struct Header {
    entries_at: u64,
    count: u64,
    entry_size: u64,
    entries_crc: u32,
}

fn header(sector: &[u8], lba: u64) -> Option<Header> {
    if sector.get(..8)? != SIGNATURE {
        return None;
    }
    let size = usize::try_from(le32(sector, 12)?).ok()?;
    let mut copy = sector.get(..size)?.to_vec();
    if size < HEADER {
        return None;
    }
    copy[16..20].fill(0);
    if crc32(&copy) != le32(sector, 16)? || le64(sector, 24)? != lba {
        return None;
    }
    Some(Header {
        entries_at: le64(sector, 72)?,
        count: le32(sector, 80)?.into(),
        entry_size: le32(sector, 84)?.into(),
        entries_crc: le32(sector, 88)?,
    })
}

/// The entry array of a header, when it is within limits and its checksum is right.
fn entries(disk: &Volume, sector: u64, header: &Header) -> Result<Option<Vec<u8>>> {
    let bytes = header.count.saturating_mul(header.entry_size);
    if header.entry_size < 128 || !header.entry_size.is_multiple_of(8) || bytes > ARRAY_BYTES {
        return Ok(None);
    }
    let (Some(at), Ok(len)) = (header.entries_at.checked_mul(sector), usize::try_from(bytes)) else {
        return Ok(None);
    };
    Ok(disk.peek(at, len)?.filter(|array| crc32(array) == header.entries_crc))
}

/// One copy of the table, at a sector.
fn copy(disk: &Volume, sector: u64, lba: u64) -> Result<Option<(Header, Vec<u8>)>> {
    let Some(at) = lba.checked_mul(sector) else { return Ok(None) };
    let Some(bytes) = disk.peek(at, 512)? else { return Ok(None) };
    let Some(header) = header(&bytes, lba) else { return Ok(None) };
    Ok(entries(disk, sector, &header)?.map(|array| (header, array)))
}

/// The partitions of a GPT; `None` when there is none, or neither copy is sound.
pub(super) fn read(disk: &Volume, notes: &mut Vec<String>) -> Result<Option<Vec<Partition>>> {
    for sector in [512, 4096] {
        let mut table = copy(disk, sector, 1)?;
        if table.is_none() {
            let last = (disk.size() / sector).saturating_sub(1);
            table = copy(disk, sector, last)?;
            if table.is_some() {
                notes.push("the first copy of the GPT is damaged; its backup is used".to_owned());
            }
        }
        if let Some((header, array)) = table {
            return Ok(Some(partitions(disk, sector, &header, &array, notes)));
        }
    }
    if disk.peek(512, 8)?.is_some_and(|bytes| bytes == SIGNATURE) {
        notes.push("both copies of the GPT are damaged".to_owned());
    }
    Ok(None)
}

fn partitions(
    disk: &Volume,
    sector: u64,
    header: &Header,
    array: &[u8],
    notes: &mut Vec<String>,
) -> Vec<Partition> {
    let size = usize::try_from(header.entry_size).unwrap_or(array.len().max(1));
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(array.chunks_exact(size)) {
        if entry[..16].iter().all(|&b| b == 0) || found.len() == limits::VOLUMES {
            continue;
        }
        match partition(disk, sector, number, entry) {
            Some(p) => found.push(p),
            None => notes.push(format!("partition {number} is not within the disk")),
        }
    }
    found
}

fn partition(disk: &Volume, sector: u64, number: u32, entry: &[u8]) -> Option<Partition> {
    let (first, last) = (le64(entry, 32)?, le64(entry, 40)?);
    let sectors = last.checked_sub(first)?.checked_add(1)?;
    let volume = disk.part(first.checked_mul(sector)?, sectors.checked_mul(sector)?)?;
    // The first three groups of a GUID are little-endian.
    let mut id: [u8; 16] = array(entry, 16)?;
    id[..4].reverse();
    id[4..6].reverse();
    id[6..8].reverse();
    Some(Partition {
        table: Table::Gpt(number),
        active: le64(entry, 48)? & LEGACY_BOOT != 0,
        partuuid: Some(crate::bytes::uuid(id)),
        volume,
    })
}
