//! The PC partition table: four primary partitions and a chain of logical ones.

use super::{Partition, Table};
use crate::{
    bytes::{le16, le32},
    disk::Volume,
    error::Result,
    limits,
};

const SECTOR: u64 = 512;
const SIGNATURE: u16 = 0xaa55;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// The type that says: there is a GPT.
const PROTECTIVE: u8 = 0xee;

/// An entry of a table, in sectors.
struct Entry {
    active: bool,
    kind: u8,
    start: u64,
    sectors: u64,
}

/// The four entries of a sector; `None` when it is no partition table.
fn entries(sector: &[u8]) -> Option<Vec<Entry>> {
    if le16(sector, 510)? != SIGNATURE {
        return None;
    }
    let mut found = Vec::new();
    for slot in 0..4 {
        let at = 446 + slot * 16;
        let status = *sector.get(at)?;
        // Anything else is boot code or a file system's boot sector, not a table.
        if status != 0 && status != 0x80 {
            return None;
        }
        let entry = Entry {
            active: status == 0x80,
            kind: *sector.get(at + 4)?,
            start: le32(sector, at + 8)?.into(),
            sectors: le32(sector, at + 12)?.into(),
        };
        found.push(entry);
    }
    Some(found)
}

/// A partition as a volume; one that reaches past the end of the disk is cut there, as Linux does.
fn volume(disk: &Volume, start: u64, sectors: u64) -> Option<Volume> {
    let start = start.checked_mul(SECTOR)?;
    let len = sectors.checked_mul(SECTOR)?.min(disk.size().checked_sub(start)?);
    disk.part(start, len)
}

/// The partitions of an MBR; `None` when there is no table.
pub(super) fn read(disk: &Volume, notes: &mut Vec<String>) -> Result<Option<Vec<Partition>>> {
    let Some(sector) = disk.peek(0, 512)? else { return Ok(None) };
    let Some(primary) = entries(&sector) else { return Ok(None) };
    let signature = le32(&sector, 440).unwrap_or(0);
    let partition = |number: u32, entry: &Entry, base: u64| {
        let volume = volume(disk, base.checked_add(entry.start)?, entry.sectors)?;
        let partuuid = Some(format!("{signature:08x}-{number:02x}"));
        Some(Partition { table: Table::Msdos(number), active: entry.active, partuuid, volume })
    };
    let mut found = Vec::new();
    let mut extended = None;
    for (number, entry) in (1..).zip(&primary) {
        if EXTENDED.contains(&entry.kind) {
            extended = extended.or(Some(entry.start));
        } else if entry.kind != 0 && entry.kind != PROTECTIVE && entry.sectors != 0 && entry.start != 0 {
            match partition(number, entry, 0) {
                Some(p) => found.push(p),
                None => notes.push(format!("partition {number} is not within the disk")),
            }
        }
    }
    let Some(first) = extended else { return Ok(Some(found)) };
    // Each logical partition has a table of its own: entry 0 is the partition, entry 1 the next table.
    let mut base = first;
    for number in 5..5 + u32::try_from(limits::LOGICAL_PARTITIONS).unwrap_or(0) {
        let at = base.checked_mul(SECTOR);
        let sector = at.map(|at| disk.peek(at, 512)).transpose()?.flatten();
        let Some(table) = sector.as_deref().and_then(entries) else {
            notes.push(format!("the table of logical partition {number} is damaged"));
            return Ok(Some(found));
        };
        if table[0].kind != 0 && table[0].sectors != 0 {
            match partition(number, &table[0], base) {
                Some(p) => found.push(p),
                None => notes.push(format!("partition {number} is not within the disk")),
            }
        }
        if !EXTENDED.contains(&table[1].kind) || table[1].start == 0 {
            return Ok(Some(found));
        }
        base = first + table[1].start;
    }
    notes.push(format!("more than {} logical partitions", limits::LOGICAL_PARTITIONS));
    Ok(Some(found))
}
