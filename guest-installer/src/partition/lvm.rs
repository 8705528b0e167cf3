//! LVM2: the label and the text metadata of one physical volume, and its linear logical volumes.
//!
//! ```text
//!   sector 0..3  "LABELONE" ─► physical volume header: id, data areas, metadata areas
//!   metadata area: header ─► ring of texts, the newest one pointed at ─► volume group
//! ```
//! Layouts as in LVM2's own sources (`lib/format_text/layout.h`). Anything that is not linear and wholly on this one
//! physical volume is refused by its type's name.

mod text;

use super::{Partition, Table};
use crate::{
    bytes::{le32, le64},
    disk::{Run, Volume},
    error::{Error, Result},
    limits,
};
use text::{Section, Value};

const SECTOR: u64 = 512;
const METADATA_MAGIC: &[u8; 16] = b" LVM2 x[5A%r0N*>";
/// The physical volume's header is within the label's sector.
const DATA_AREAS: usize = 512 / 16;

/// The volumes of a group that can be read, and why the others cannot.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) volumes: Vec<Partition>,
    pub(super) refused: Vec<String>,
}

/// LVM's checksum: CRC-32 with its own start value and no final inversion.
fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0xf597_a6cf, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xedb8_8320 } else { c >> 1 })
    })
}

/// The label: this physical volume's id and its metadata areas (start, length).
struct Label {
    id: String,
    areas: Vec<(u64, u64)>,
}

/// Whether a sector is an LVM2 label.
pub(crate) fn is_label(sector: &[u8]) -> bool {
    sector.get(..8) == Some(b"LABELONE") && sector.get(24..32) == Some(b"LVM2 001")
}

fn label(volume: &Volume) -> Result<Label> {
    for number in 0..4 {
        let Some(sector) = volume.peek(number * SECTOR, 512)? else { break };
        if !is_label(&sector) {
            continue;
        }
        if le32(&sector, 16) != Some(checksum(&sector[20..])) || le64(&sector, 8) != Some(number) {
            return Err(Error::corrupt("LVM label", "its checksum does not match"));
        }
        return parse_label(&sector).ok_or_else(|| Error::corrupt("LVM label", "it does not fit its sector"));
    }
    Err(Error::corrupt("LVM label", "there is none"))
}

fn parse_label(sector: &[u8]) -> Option<Label> {
    let header = usize::try_from(le32(sector, 20)?).ok()?;
    let id = String::from_utf8_lossy(sector.get(header..header.checked_add(32)?)?).into_owned();
    // After id and size come two lists of (offset, size), each ended by a zero offset: data, then metadata areas.
    let mut at = header + 40;
    let mut lists = [Vec::new(), Vec::new()];
    for list in &mut lists {
        for _ in 0..DATA_AREAS {
            let area = (le64(sector, at)?, le64(sector, at + 8)?);
            at += 16;
            if area.0 == 0 {
                break;
            }
            list.push(area);
        }
    }
    let [_, areas] = lists;
    Some(Label { id, areas })
}

/// The newest text of a metadata area.
fn metadata(volume: &Volume, start: u64, len: u64) -> Result<Vec<u8>> {
    let corrupt = |why: &str| Error::corrupt("LVM metadata area", why);
    let header = volume.read(start, 512)?;
    if header.get(4..20) != Some(METADATA_MAGIC) || le32(&header, 0) != Some(checksum(&header[4..])) {
        return Err(corrupt("its header's checksum does not match"));
    }
    let field = |at| le64(&header, at).unwrap_or(0);
    let (offset, size, crc) = (field(40), field(48), le32(&header, 56));
    if size > limits::LVM_METADATA_BYTES {
        return Err(Error::too_large("LVM metadata", limits::LVM_METADATA_BYTES));
    }
    // Neither the header's sector nor more than the ring holds.
    if offset < SECTOR || offset >= len || size == 0 || size > len - SECTOR {
        return Err(corrupt("its text is outside of it"));
    }
    let first = size.min(len - offset);
    let bytes = |at: u64, n: u64| -> Result<Vec<u8>> {
        let at = start.checked_add(at).ok_or_else(|| corrupt("it ends beyond everything"))?;
        volume.read(at, usize::try_from(n).map_err(|_| corrupt("its text is too long"))?)
    };
    let mut text = bytes(offset, first)?;
    if size > first {
        // The text goes on at the ring's start, behind the header's sector.
        text.extend(bytes(SECTOR, size - first)?);
    }
    if Some(checksum(&text)) != crc {
        return Err(corrupt("its text's checksum does not match"));
    }
    Ok(text)
}

/// Reads a physical volume's group.
pub(super) fn read(volume: &Volume) -> Result<Group> {
    let label = label(volume)?;
    let mut last = Error::corrupt("LVM label", "it names no metadata area");
    // Areas are copies of each other: the first sound one counts.
    for &(start, len) in label.areas.iter().take(2) {
        match metadata(volume, start, len) {
            Ok(text) => return group(volume, &label.id, &text::parse(&text)?),
            Err(e) if e.is_final() => return Err(e),
            Err(e) => last = e,
        }
    }
    Err(last)
}

fn missing(what: &str) -> Error {
    Error::corrupt("LVM metadata", format!("{what} is missing"))
}

fn group(volume: &Volume, id: &str, root: &Section) -> Result<Group> {
    let (name, vg) = root.sections().next().ok_or_else(|| missing("the volume group"))?;
    let extent = vg.number("extent_size").ok_or_else(|| missing("extent_size"))?;
    let volumes = vg.section("physical_volumes").ok_or_else(|| missing("physical_volumes"))?;
    let same = |pv: &Section| pv.string("id").is_some_and(|text| text.replace('-', "") == id);
    let (pv_name, pv) =
        volumes.sections().find(|(_, pv)| same(pv)).ok_or_else(|| missing("this physical volume"))?;
    let base = pv.number("pe_start").ok_or_else(|| missing("pe_start"))?;
    let geometry = Geometry { pv: pv_name, base, extent };
    let mut group = Group::default();
    // A group without logical volumes has no such section.
    for (lv_name, lv) in vg.section("logical_volumes").into_iter().flat_map(Section::sections) {
        let table = Table::Lvm { group: name.to_owned(), volume: lv_name.to_owned() };
        match geometry.runs(lv).and_then(|runs| {
            volume.parts(&runs).ok_or_else(|| "its extents are not within the physical volume".to_owned())
        }) {
            Ok(volume) => group.volumes.push(Partition { table, active: false, partuuid: None, volume }),
            Err(why) => group.refused.push(format!("{table}: {why}")),
        }
        if group.volumes.len() == limits::VOLUMES {
            break;
        }
    }
    Ok(group)
}

/// Where extents are, in sectors.
struct Geometry<'a> {
    pv: &'a str,
    base: u64,
    extent: u64,
}

impl Geometry<'_> {
    /// The runs of a logical volume, or why it has none.
    fn runs(&self, lv: &Section) -> std::result::Result<Vec<Run>, String> {
        let count = lv.number("segment_count").unwrap_or(0);
        let count = usize::try_from(count).ok().filter(|&n| n > 0 && n <= limits::LVM_SEGMENTS);
        let count = count.ok_or("its segment count is out of range")?;
        let mut runs = Vec::new();
        let mut expected = 0;
        for index in 1..=count {
            let segment =
                lv.section(&format!("segment{index}")).ok_or(format!("segment {index} is missing"))?;
            if segment.number("start_extent") != Some(expected) {
                return Err(format!("segment {index} does not follow the one before"));
            }
            let extents = segment.number("extent_count").unwrap_or(0);
            runs.push(self.run(segment, extents)?);
            expected += extents;
        }
        Ok(runs)
    }

    fn run(&self, segment: &Section, extents: u64) -> std::result::Result<Run, String> {
        match segment.string("type") {
            Some("striped") => {}
            Some(other) => {
                return Err(format!("segments of type {other} are not supported, only linear ones"));
            }
            None => return Err("a segment has no type".to_owned()),
        }
        if segment.number("stripe_count") != Some(1) {
            return Err("striped volumes are not supported, only linear ones".to_owned());
        }
        let Some([Value::Text(pv), Value::Number(first)]) = segment.array("stripes") else {
            return Err("a segment names no extents".to_owned());
        };
        if pv != self.pv {
            return Err("a part of it is on another physical volume".to_owned());
        }
        let start = first.checked_mul(self.extent).and_then(|s| s.checked_add(self.base));
        let sectors = extents.checked_mul(self.extent);
        match (start.and_then(|s| s.checked_mul(SECTOR)), sectors.and_then(|s| s.checked_mul(SECTOR))) {
            (Some(start), Some(len)) if len > 0 => Ok(Run { start, len }),
            _ => Err("a segment's extents are out of range".to_owned()),
        }
    }
}
