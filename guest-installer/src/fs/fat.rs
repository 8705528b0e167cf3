//! FAT12, FAT16 and FAT32 with long names (Microsoft, "FAT: General Overview of On-Disk Format", 1.03).

use super::{FileSystem, Kind, Sink, Stat, probe::has_boot_signature};
use crate::{
    bytes::{le16, le32, text, utf16le},
    disk::Volume,
    error::{Error, Result},
    limits,
};

const ENTRY: usize = 32;
const LONG_NAME: u8 = 0x0f;
const VOLUME_LABEL: u8 = 0x08;
const DIRECTORY: u8 = 0x10;
const DELETED: u8 = 0xe5;
/// Code units of a name in one long-name entry: where they are.
const LONG_NAME_PARTS: [std::ops::Range<usize>; 3] = [1..11, 14..26, 28..32];

/// How wide an entry of the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// Where things are, in bytes.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    width: Width,
    cluster: u32,
    clusters: u32,
    table: u64,
    data: u64,
    root: Root,
    id: u32,
    label: String,
}

/// Where the root directory is.
#[derive(Clone, Copy, Debug)]
enum Root {
    Fixed { start: u64, len: u32 },
    Cluster(u32),
}

impl Geometry {
    /// Reads a boot sector; `None` when it is not one of FAT.
    pub(super) fn parse(sector: &[u8]) -> Option<Self> {
        if !has_boot_signature(sector) || !matches!(sector.first()?, 0xeb | 0xe9) {
            return None;
        }
        let bytes = le16(sector, 11)?;
        let per_cluster = *sector.get(13)?;
        let (reserved, tables) = (le16(sector, 14)?, *sector.get(16)?);
        if ![512, 1024, 2048, 4096].contains(&bytes) || !per_cluster.is_power_of_two() || reserved == 0 {
            return None;
        }
        if tables == 0 || tables > 4 {
            return None;
        }
        let root_entries = le16(sector, 17)?;
        let small = u32::from(le16(sector, 19)?);
        let total = if small == 0 { le32(sector, 32)? } else { small };
        let small = u32::from(le16(sector, 22)?);
        let wide = small == 0;
        let table_sectors = if wide { le32(sector, 36)? } else { small };
        let root_sectors = (u32::from(root_entries) * 32).div_ceil(u32::from(bytes));
        let tables_sectors = table_sectors.checked_mul(tables.into())?;
        let first_root = u32::from(reserved).checked_add(tables_sectors)?;
        let first_data = first_root.checked_add(root_sectors)?;
        let clusters = total.checked_sub(first_data)? / u32::from(per_cluster);
        let width = match clusters {
            _ if wide => Width::ThirtyTwo,
            0 => return None,
            1..4085 => Width::Twelve,
            _ => Width::Sixteen,
        };
        let start = |sectors: u32| u64::from(sectors) * u64::from(bytes);
        let extra = if wide { 64 } else { 36 };
        let root = if wide {
            Root::Cluster(le32(sector, 44)?)
        } else {
            Root::Fixed { start: start(first_root), len: u32::from(root_entries) * 32 }
        };
        Some(Self {
            width,
            cluster: u32::from(bytes) * u32::from(per_cluster),
            clusters,
            table: start(reserved.into()),
            data: start(first_data),
            root,
            id: le32(sector, extra + 3)?,
            label: text(sector.get(extra + 7..extra + 18)?),
        })
    }
}

/// A file or directory.
#[derive(Clone, Debug)]
struct Node {
    name: String,
    short: String,
    directory: bool,
    cluster: u32,
    size: u32,
}

pub(super) struct Fat {
    volume: Volume,
    geometry: Geometry,
}

fn corrupt(why: &str) -> Error {
    Error::corrupt("FAT file system", why)
}

impl Fat {
    pub(super) fn open(volume: &Volume) -> Result<Self> {
        let sector = volume.read(0, 512)?;
        let geometry =
            Geometry::parse(&sector).ok_or_else(|| corrupt("its boot sector contradicts itself"))?;
        Ok(Self { volume: volume.clone(), geometry })
    }

    /// The cluster after a cluster; `None` at the end of a chain.
    fn next(&self, cluster: u32) -> Result<Option<u32>> {
        let read =
            |offset: u64, len: usize| self.volume.read(self.geometry.table.saturating_add(offset), len);
        let n = u64::from(cluster);
        let (value, end) = match self.geometry.width {
            Width::Twelve => {
                let pair = le16(&read(n + n / 2, 2)?, 0).unwrap_or(0);
                (u32::from(if n % 2 == 0 { pair & 0xfff } else { pair >> 4 }), 0xff8)
            }
            Width::Sixteen => (le16(&read(n * 2, 2)?, 0).unwrap_or(0).into(), 0xfff8),
            Width::ThirtyTwo => (le32(&read(n * 4, 4)?, 0).unwrap_or(0) & 0x0fff_ffff, 0x0fff_fff8),
        };
        Ok((value < end).then_some(value))
    }

    /// Passes on the bytes of a chain, at most `limit`.
    fn chain(&self, first: u32, limit: u64, sink: &mut Sink) -> Result<()> {
        let (mut left, mut at) = (limit, Some(first));
        let mut steps = 0;
        while let Some(cluster) = at.filter(|_| left > 0) {
            // A chain that visits more clusters than there are goes in a circle.
            steps += 1;
            let Some(index) = cluster.checked_sub(2).filter(|&i| i < self.geometry.clusters) else {
                return Err(corrupt("a chain leaves the disk"));
            };
            if steps > self.geometry.clusters {
                return Err(corrupt("a chain goes in a circle"));
            }
            let size = u64::from(self.geometry.cluster);
            let len = size.min(left);
            let start = self.geometry.data + u64::from(index) * size;
            sink(&self.volume.read(start, usize::try_from(len).unwrap_or(0))?)?;
            left -= len;
            at = self.next(cluster)?;
        }
        Ok(())
    }

    /// The bytes of a directory; `None` for the root.
    fn directory(&self, cluster: Option<u32>) -> Result<Vec<u8>> {
        const LIMIT: u64 = (limits::DIRECTORY_ENTRIES * ENTRY) as u64;
        let first = match (cluster, self.geometry.root) {
            (None, Root::Fixed { start, len }) => {
                return self.volume.read(start, usize::try_from(len).unwrap_or(0));
            }
            (None, Root::Cluster(first)) | (Some(first), _) => first,
        };
        let mut bytes = Vec::new();
        self.chain(first, LIMIT, &mut |part| {
            bytes.extend_from_slice(part);
            Ok(())
        })?;
        Ok(bytes)
    }

    fn entries(&self, cluster: Option<u32>) -> Result<Vec<Node>> {
        let bytes = self.directory(cluster)?;
        let mut found = Vec::new();
        // The parts of a long name precede their entry, last part first.
        let mut long: Vec<u8> = Vec::new();
        for entry in bytes.chunks_exact(ENTRY) {
            let attributes = entry[11];
            match entry[0] {
                0 => break,
                DELETED => long.clear(),
                _ if attributes & 0x3f == LONG_NAME => {
                    let part = LONG_NAME_PARTS.into_iter().flat_map(|r| entry[r].iter().copied());
                    long.splice(0..0, part);
                    // 20 entries hold the longest name there is.
                    long.truncate(20 * 26);
                }
                _ if attributes & VOLUME_LABEL != 0 => long.clear(),
                _ => {
                    let short = short_name(entry);
                    // An unused tail of a long name is filled with 0xffff after its NUL.
                    let name = if long.is_empty() { short.clone() } else { utf16le(&long) };
                    long.clear();
                    let high = if self.geometry.width == Width::ThirtyTwo { le16(entry, 20) } else { None };
                    let low = le16(entry, 26).unwrap_or(0);
                    found.push(Node {
                        name,
                        short,
                        directory: attributes & DIRECTORY != 0,
                        cluster: u32::from(high.unwrap_or(0)) << 16 | u32::from(low),
                        size: le32(entry, 28).unwrap_or(0),
                    });
                }
            }
        }
        Ok(found)
    }

    /// What is at a path.
    fn find(&self, path: &[u8]) -> Result<Option<Place>> {
        let mut at = Place::Root;
        for name in path.split(|&b| b == b'/').filter(|n| !n.is_empty()) {
            if !at.is_directory() {
                return Ok(None);
            }
            let wanted = String::from_utf8_lossy(name).to_lowercase();
            let same =
                |node: &Node| node.name.to_lowercase() == wanted || node.short.to_lowercase() == wanted;
            match self.entries(at.cluster())?.into_iter().find(same) {
                Some(node) => at = Place::Node(node),
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }
}

/// Where a path leads: the root directory has no entry of its own.
enum Place {
    Root,
    Node(Node),
}

impl Place {
    fn is_directory(&self) -> bool {
        if let Self::Node(node) = self { node.directory } else { true }
    }

    /// Where its directory starts; `None` for the root.
    fn cluster(&self) -> Option<u32> {
        if let Self::Node(node) = self { Some(node.cluster) } else { None }
    }
}

/// The 8.3 name of an entry.
fn short_name(entry: &[u8]) -> String {
    let part = |range: std::ops::Range<usize>| {
        let bytes: String =
            entry[range].iter().map(|&b| if b.is_ascii() { char::from(b) } else { '_' }).collect();
        bytes.trim_end().to_owned()
    };
    let (mut base, mut extension) = (part(0..8), part(8..11));
    // Windows and Linux mark names that are all lower case here.
    if entry[12] & 0x08 != 0 {
        base.make_ascii_lowercase();
    }
    if entry[12] & 0x10 != 0 {
        extension.make_ascii_lowercase();
    }
    if extension.is_empty() { base } else { format!("{base}.{extension}") }
}

impl FileSystem for Fat {
    fn kind(&self) -> &'static str {
        "vfat"
    }

    fn uuid(&self) -> Option<String> {
        let id = self.geometry.id;
        Some(format!("{:04X}-{:04X}", id >> 16, id & 0xffff))
    }

    fn label(&self) -> Option<String> {
        Some(self.geometry.label.clone()).filter(|l| l != "NO NAME")
    }

    fn stat(&mut self, path: &[u8]) -> Result<Option<Stat>> {
        Ok(self.find(path)?.map(|node| match node {
            Place::Node(node) if !node.directory => Stat { kind: Kind::File, size: node.size.into() },
            _ => Stat { kind: Kind::Directory, size: 0 },
        }))
    }

    fn read_link(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        Err(Error::WrongKind { path: String::from_utf8_lossy(path).into_owned(), wanted: "symbolic link" })
    }

    fn read_dir(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let place =
            self.find(path)?.ok_or_else(|| Error::NotFound(String::from_utf8_lossy(path).into_owned()))?;
        let entries = self.entries(place.cluster())?;
        Ok(entries.into_iter().map(|n| n.name.into_bytes()).collect())
    }

    fn copy(&mut self, path: &[u8], sink: &mut Sink) -> Result<()> {
        let shown = || String::from_utf8_lossy(path).into_owned();
        let Some(Place::Node(node)) = self.find(path)? else { return Err(Error::NotFound(shown())) };
        if node.size == 0 {
            return Ok(());
        }
        let mut copied = 0;
        self.chain(node.cluster, node.size.into(), &mut |bytes| {
            copied += bytes.len();
            sink(bytes)
        })?;
        if copied == usize::try_from(node.size).unwrap_or(usize::MAX) {
            Ok(())
        } else {
            Err(corrupt("a file is shorter than its directory entry says"))
        }
    }
}
