//! ISO 9660 (ECMA-119) with Rock Ridge names and links (IEEE P1282) or Joliet names.
//!
//! Rock Ridge is taken where it is, then Joliet, then the plain names, which are compared without case and version.

mod rock_ridge;

use super::{CHUNK, FileSystem, Kind, Sink, Stat};
use crate::{
    bytes::{le16, le32, text, utf16be},
    disk::Volume,
    error::{Error, Result},
    limits,
};
use rock_ridge::Extension;

const SECTOR: u64 = 2048;
/// The first volume descriptor.
const FIRST_DESCRIPTOR: u64 = 16;
/// Most volume descriptors looked at; discs have two to four.
const DESCRIPTORS: u64 = 32;
/// Largest directory read.
const DIRECTORY_BYTES: u32 = 4 << 20;
/// Shortest directory record.
const RECORD: usize = 34;
const FLAG_DIRECTORY: u8 = 0x02;
const FLAG_ASSOCIATED: u8 = 0x04;
const FLAG_MORE: u8 = 0x80;

/// Which names are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Plain,
    Joliet,
    /// With the bytes to skip at the start of each system use area.
    RockRidge(usize),
}

/// A part of a file.
#[derive(Clone, Copy, Debug)]
struct Extent {
    block: u32,
    len: u32,
}

/// A file, directory or link.
#[derive(Clone, Debug)]
struct Node {
    name: Vec<u8>,
    kind: Kind,
    extents: Vec<Extent>,
    link: Option<Vec<u8>>,
}

impl Node {
    fn size(&self) -> u64 {
        self.extents.iter().map(|e| u64::from(e.len)).sum()
    }
}

pub(super) struct Iso {
    volume: Volume,
    block: u64,
    names: Names,
    root: Extent,
    label: String,
    uuid: Option<String>,
}

fn corrupt(why: &str) -> Error {
    Error::corrupt("ISO 9660 file system", why)
}

/// The extent of a directory record.
fn extent(record: &[u8]) -> Option<Extent> {
    // Extended attributes precede the file in its extent.
    let attributes = u32::from(*record.get(1)?);
    Some(Extent { block: le32(record, 2)?.checked_add(attributes)?, len: le32(record, 10)? })
}

impl Iso {
    pub(super) fn open(volume: &Volume) -> Result<Self> {
        let (mut primary, mut joliet) = (None, None);
        for number in FIRST_DESCRIPTOR..FIRST_DESCRIPTOR + DESCRIPTORS {
            let Some(descriptor) = volume.peek(number * SECTOR, 2048)? else { break };
            if &descriptor[1..6] != b"CD001" {
                break;
            }
            match descriptor[0] {
                1 => primary = primary.or(Some(descriptor)),
                2 if [b"%/@", b"%/C", b"%/E"].contains(&&[
                    descriptor[88],
                    descriptor[89],
                    descriptor[90],
                ]) =>
                {
                    joliet = joliet.or(Some(descriptor));
                }
                255 => break,
                _ => {}
            }
        }
        let primary = primary.ok_or_else(|| corrupt("it has no primary descriptor"))?;
        let block = u64::from(le16(&primary, 128).unwrap_or(0));
        if ![512, 1024, 2048].contains(&block) {
            return Err(corrupt("its block size is none that exists"));
        }
        let root_of = |d: &[u8]| extent(&d[156..190]).ok_or_else(|| corrupt("its root is out of range"));
        let mut iso = Self {
            volume: volume.clone(),
            block,
            names: Names::Plain,
            root: root_of(&primary)?,
            label: text(&primary[40..72]),
            uuid: uuid(&primary[813..830], &primary[830..847]),
        };
        let start = iso.bytes(iso.root, SECTOR.try_into().unwrap_or(0))?;
        if let Some(skip) = rock_ridge::skip(&start) {
            iso.names = Names::RockRidge(skip);
        } else if let Some(joliet) = joliet {
            iso.root = root_of(&joliet)?;
            iso.names = Names::Joliet;
        }
        Ok(iso)
    }

    /// The first bytes of an extent, at most `limit`.
    fn bytes(&self, extent: Extent, limit: u32) -> Result<Vec<u8>> {
        let len = usize::try_from(extent.len.min(limit)).unwrap_or(0);
        self.volume.read(u64::from(extent.block) * self.block, len)
    }

    fn entries(&self, directory: Extent) -> Result<Vec<Node>> {
        if directory.len > DIRECTORY_BYTES {
            return Err(Error::too_large("bytes of a directory", DIRECTORY_BYTES));
        }
        let bytes = self.bytes(directory, DIRECTORY_BYTES)?;
        let mut found: Vec<Node> = Vec::new();
        let mut continues = false;
        for block in bytes.chunks(usize::try_from(SECTOR).unwrap_or(2048)) {
            let mut at = 0;
            // Records do not cross sectors; a zero length ends a sector.
            while let Some(record) = record(block, at) {
                at += record.len();
                let (node, more) = self.node(record)?;
                match (found.last_mut(), node) {
                    (Some(last), Some(node)) if continues && last.name == node.name => {
                        last.extents.extend(node.extents);
                    }
                    (_, node) => found.extend(node),
                }
                continues = more;
            }
            if found.len() > limits::DIRECTORY_ENTRIES {
                return Err(Error::too_large("directory entries", limits::DIRECTORY_ENTRIES));
            }
        }
        Ok(found)
    }

    /// A record's node, and whether the next record goes on with the same file; `None` for `.`, `..` and such.
    fn node(&self, record: &[u8]) -> Result<(Option<Node>, bool)> {
        let long = usize::from(record[32]);
        let flags = record[25];
        let raw = record.get(33..33 + long).ok_or_else(|| corrupt("a name is longer than its record"))?;
        if matches!(raw, [0 | 1]) || flags & FLAG_ASSOCIATED != 0 {
            return Ok((None, false));
        }
        if record[26] != 0 || record[27] != 0 {
            return Err(Error::Unsupported("an interleaved file on an ISO 9660 file system".to_owned()));
        }
        let extent = extent(record).ok_or_else(|| corrupt("an extent is out of range"))?;
        let kind = if flags & FLAG_DIRECTORY == 0 { Kind::File } else { Kind::Directory };
        let mut node = Node { name: Vec::new(), kind, extents: vec![extent], link: None };
        match self.names {
            Names::Plain => node.name = plain_name(raw),
            Names::Joliet => node.name = strip_version(&utf16be(raw)).as_bytes().to_vec(),
            Names::RockRidge(skip) => {
                // The name is padded to an even offset.
                let area = record.get(33 + long + (1 - long % 2)..).unwrap_or_default();
                let more = rock_ridge::read(self, area.get(skip..).unwrap_or_default())?;
                if more.iter().any(|e| matches!(e, Extension::Relocated)) {
                    return Ok((None, false));
                }
                self.apply(&mut node, more, raw)?;
            }
        }
        Ok((Some(node), flags & FLAG_MORE != 0))
    }

    fn apply(&self, node: &mut Node, extensions: Vec<Extension>, raw: &[u8]) -> Result<()> {
        for extension in extensions {
            match extension {
                Extension::Name(part) => node.name.extend(part),
                Extension::Mode(mode) => {
                    node.kind = match mode & 0o170_000 {
                        0o100_000 => Kind::File,
                        0o040_000 => Kind::Directory,
                        0o120_000 => Kind::Symlink,
                        _ => Kind::Other,
                    };
                }
                Extension::Link(target) => node.link.get_or_insert_default().extend(target),
                Extension::Child(block) => {
                    // A directory too deep for ISO 9660 is elsewhere; its own first record says how long it is.
                    let own = self.bytes(Extent { block, len: 64 }, 64)?;
                    let extent =
                        extent(&own).ok_or_else(|| corrupt("a relocated directory is out of range"))?;
                    *node = Node { kind: Kind::Directory, extents: vec![extent], ..node.clone() };
                }
                Extension::Relocated => {}
            }
            if node.name.len() > 1024 || node.link.as_ref().is_some_and(|l| l.len() > limits::PATH_BYTES) {
                return Err(corrupt("a name or link is too long"));
            }
        }
        if node.name.is_empty() {
            node.name = plain_name(raw);
        }
        Ok(())
    }

    fn find(&self, path: &[u8]) -> Result<Option<Node>> {
        let root = Node { name: Vec::new(), kind: Kind::Directory, extents: vec![self.root], link: None };
        let mut at = root;
        for name in path.split(|&b| b == b'/').filter(|n| !n.is_empty()) {
            let (Kind::Directory, Some(&directory)) = (at.kind, at.extents.first()) else { return Ok(None) };
            let same = |node: &Node| match self.names {
                Names::Plain => node.name.eq_ignore_ascii_case(name),
                Names::Joliet | Names::RockRidge(_) => node.name == name,
            };
            match self.entries(directory)?.into_iter().find(same) {
                Some(node) => at = node,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn found(&self, path: &[u8]) -> Result<Node> {
        self.find(path)?.ok_or_else(|| Error::NotFound(String::from_utf8_lossy(path).into_owned()))
    }
}

/// The record at an offset of a sector; `None` when there are no more.
fn record(sector: &[u8], at: usize) -> Option<&[u8]> {
    let len = usize::from(*sector.get(at)?);
    let record = sector.get(at..at + len)?;
    (len >= RECORD).then_some(record)
}

/// A plain name without version and with the case Linux shows.
fn plain_name(raw: &[u8]) -> Vec<u8> {
    let name = String::from_utf8_lossy(raw).to_lowercase();
    strip_version(&name).trim_end_matches('.').as_bytes().to_vec()
}

fn strip_version(name: &str) -> &str {
    match name.rsplit_once(';') {
        Some((base, version)) if version.bytes().all(|b| b.is_ascii_digit()) => base,
        _ => name,
    }
}

/// The id that GRUB and blkid(8) make of the volume's modification date, or else its creation date.
fn uuid(created: &[u8], modified: &[u8]) -> Option<String> {
    let set =
        |date: &[u8]| date[..16].iter().all(u8::is_ascii_digit) && date[..16].iter().any(|&b| b != b'0');
    let date = [modified, created].into_iter().find(|date| set(date))?;
    let date = std::str::from_utf8(&date[..16]).ok()?;
    let part = |range: std::ops::Range<usize>| date[range].to_owned();
    Some(
        [part(0..4), part(4..6), part(6..8), part(8..10), part(10..12), part(12..14), part(14..16)].join("-"),
    )
}

impl FileSystem for Iso {
    fn kind(&self) -> &'static str {
        "iso9660"
    }

    fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    fn label(&self) -> Option<String> {
        Some(self.label.clone())
    }

    fn stat(&mut self, path: &[u8]) -> Result<Option<Stat>> {
        Ok(self.find(path)?.map(|node| Stat { kind: node.kind, size: node.size() }))
    }

    fn read_link(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        self.found(path)?.link.ok_or_else(|| corrupt("a symbolic link has no target"))
    }

    fn read_dir(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let node = self.found(path)?;
        let Some(&directory) = node.extents.first() else { return Ok(Vec::new()) };
        Ok(self.entries(directory)?.into_iter().map(|n| n.name).collect())
    }

    fn copy(&mut self, path: &[u8], sink: &mut Sink) -> Result<()> {
        for extent in self.found(path)?.extents {
            let (mut at, mut left) =
                (u64::from(extent.block) * self.block, usize::try_from(extent.len).unwrap_or(0));
            while left > 0 {
                let len = left.min(CHUNK);
                sink(&self.volume.read(at, len)?)?;
                at += u64::try_from(len).unwrap_or(0);
                left -= len;
            }
        }
        Ok(())
    }
}
