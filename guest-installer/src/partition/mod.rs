//! Which volumes a disk has: partition tables, and logical volumes in them.
//!
//! ```text
//!   disk ─┬─ file system on the whole disk
//!         ├─ GPT (checked; its backup when the first copy is damaged)
//!         ├─ MBR with logical partitions
//!         └─ each of these may be an LVM2 physical volume ──► linear logical volumes
//! ```

mod gpt;
mod lvm;
mod mbr;

pub(crate) use lvm::is_label as is_lvm_label;

use crate::{disk::Volume, error::Result, fs, limits};

/// The kind of table a volume was found in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Table {
    /// None: the file system is on the disk itself.
    Whole,
    /// MBR, with the partition's number; logical ones start at 5.
    Msdos(u32),
    /// GPT, with the partition's number.
    Gpt(u32),
    /// LVM2: volume group and logical volume.
    Lvm {
        /// The volume group's name.
        group: String,
        /// The logical volume's name.
        volume: String,
    },
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole => f.write_str("whole disk"),
            Self::Msdos(number) | Self::Gpt(number) => write!(f, "partition {number}"),
            Self::Lvm { group, volume } => write!(f, "logical volume {group}/{volume}"),
        }
    }
}

/// One volume of the disk.
#[derive(Clone, Debug)]
pub struct Partition {
    /// Where it was found.
    pub table: Table,
    /// MBR's active flag, GPT's legacy boot attribute.
    pub active: bool,
    /// GPT's unique partition id, or an MBR disk's signature and number, as Linux' PARTUUID spells them.
    pub partuuid: Option<String>,
    /// Its bytes.
    pub volume: Volume,
}

/// What was found on a disk.
#[derive(Debug, Default)]
pub struct Layout {
    /// In the order of their numbers, active ones first.
    pub partitions: Vec<Partition>,
    /// What was left out and why, for messages.
    pub notes: Vec<String>,
}

/// Finds the volumes of a disk.
///
/// # Errors
/// When the disk cannot be read or a limit is reached. Damaged tables are no errors but notes.
pub fn layout(disk: &Volume) -> Result<Layout> {
    let mut layout = Layout::default();
    let found = fs::probe(disk)?;
    if found == Some(fs::Signature::Refused(fs::RAID_1_0)) {
        layout.partitions.push(whole(disk));
        return Ok(layout);
    }
    // A FAT boot sector ends in the MBR's signature too; an ISO may carry a table for USB sticks.
    let table = match gpt::read(disk, &mut layout.notes)? {
        Some(partitions) => Some(partitions),
        None => mbr::read(disk, &mut layout.notes)?,
    };
    let is_table = table.as_ref().is_some_and(|t| !t.is_empty());
    if found.is_some_and(|f| f != fs::Signature::Fat || !is_table) || !is_table {
        layout.partitions.push(whole(disk));
    }
    let mut table = table.unwrap_or_default();
    table.sort_by_key(|p| !p.active);
    layout.partitions.extend(table);
    layout.partitions.truncate(limits::VOLUMES);
    logical_volumes(&mut layout)?;
    Ok(layout)
}

fn whole(disk: &Volume) -> Partition {
    Partition { table: Table::Whole, active: false, partuuid: None, volume: disk.clone() }
}

/// Replaces physical volumes by the logical ones on them.
fn logical_volumes(layout: &mut Layout) -> Result<()> {
    let mut all = Vec::new();
    for partition in std::mem::take(&mut layout.partitions) {
        if fs::probe(&partition.volume)? != Some(fs::Signature::LvmPhysicalVolume) {
            all.push(partition);
            continue;
        }
        match lvm::read(&partition.volume) {
            Ok(group) => {
                layout.notes.extend(group.refused.iter().map(|why| format!("{}: {why}", partition.table)));
                all.extend(group.volumes);
            }
            Err(e) if e.is_final() => return Err(e),
            Err(e) => layout.notes.push(format!("{}: {e}", partition.table)),
        }
        all.truncate(limits::VOLUMES);
    }
    layout.partitions = all;
    Ok(())
}

/// Reads partition tables and logical volumes; for fuzzing.
///
/// # Errors
/// As [`layout`].
pub fn fuzz(disk: &Volume) -> Result<usize> {
    layout(disk).map(|l| l.partitions.len())
}
