//! ext2, ext3 and ext4 through `ext4-view`, which also replays the journal of a guest that was not shut down.

mod plain;

use super::{
    CHUNK, FileSystem, Kind, Sink, Stat,
    source::{Failure, Source},
};
use crate::{
    bytes::{le16, le32},
    disk::{Run, Volume},
    error::{Error, Result},
    limits,
};
use ext4_view::{Ext4, Ext4Error, FileType, Metadata};
use plain::Plain;

/// Where the superblock is.
const SUPERBLOCK: u64 = 1024;
/// The read-only-compatible feature that adds checksums to inodes.
const METADATA_CSUM: u32 = 0x400;
/// Smallest size of an inode that holds a whole checksum.
const SMALLEST_INODE: u16 = 132;

pub(super) struct Ext {
    fs: Ext4,
    failure: Failure,
    plain: Option<Plain>,
}

impl Ext {
    pub(super) fn open(volume: &Volume) -> Result<Self> {
        let superblock = volume.read(SUPERBLOCK, 128)?;
        // ext4-view looks for the whole checksum in inodes too small for it, and takes them for truncated ones.
        let checksums = le32(&superblock, 100).is_some_and(|features| features & METADATA_CSUM != 0);
        if checksums && le16(&superblock, 88) < Some(SMALLEST_INODE) {
            return Err(Error::Unsupported("ext4 with metadata checksums in 128-byte inodes".to_owned()));
        }
        let failure = Failure::default();
        let source = Source::new(volume, &failure);
        let fs = Ext4::load(Box::new(source)).map_err(|e| failure.or(convert(e)))?;
        Ok(Self { fs, failure, plain: Plain::open(volume)? })
    }

    fn error(&self, error: Ext4Error) -> Error {
        self.failure.or(convert(error))
    }
}

fn convert(error: Ext4Error) -> Error {
    match error {
        Ext4Error::Incompatible(why) => Error::Unsupported(format!("this ext4 ({why})")),
        Ext4Error::Encrypted => Error::Unsupported("ext4 encryption".to_owned()),
        Ext4Error::NotFound => Error::NotFound("file".to_owned()),
        other => Error::corrupt("ext4 file system", other.to_string()),
    }
}

fn stat_of(metadata: &Metadata) -> Stat {
    let kind = match metadata.file_type() {
        FileType::Regular => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    };
    Stat { kind, size: metadata.len() }
}

impl FileSystem for Ext {
    fn kind(&self) -> &'static str {
        "ext4"
    }

    fn uuid(&self) -> Option<String> {
        Some(crate::bytes::uuid(*self.fs.uuid().as_bytes()))
    }

    fn label(&self) -> Option<String> {
        Some(crate::bytes::text(self.fs.label().as_bytes()))
    }

    fn stat(&mut self, path: &[u8]) -> Result<Option<Stat>> {
        match self.fs.symlink_metadata(path) {
            Ok(metadata) => Ok(Some(stat_of(&metadata))),
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory | Ext4Error::MalformedPath) => Ok(None),
            Err(e) => Err(self.error(e)),
        }
    }

    fn read_link(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        Ok(self.fs.read_link(path).map_err(|e| self.error(e))?.as_ref().to_vec())
    }

    fn read_dir(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let entries = self.fs.read_dir(path).map_err(|e| self.error(e))?;
        let mut names = Vec::new();
        for entry in entries {
            if names.len() == limits::DIRECTORY_ENTRIES {
                return Err(Error::too_large("directory entries", limits::DIRECTORY_ENTRIES));
            }
            names.push(entry.map_err(|e| self.error(e))?.file_name().as_ref().to_vec());
        }
        Ok(names)
    }

    fn runs(&mut self, path: &[u8], size: u64) -> Result<Option<Vec<Run>>> {
        self.plain.as_ref().map_or(Ok(None), |plain| plain.runs(path, size))
    }

    fn copy(&mut self, path: &[u8], sink: &mut Sink) -> Result<()> {
        let mut file = self.fs.open(path).map_err(|e| self.error(e))?;
        let mut buf = vec![0; CHUNK];
        loop {
            // One read is at most one block: gather a chunk.
            let mut filled = 0;
            while filled < CHUNK {
                match file.read_bytes(&mut buf[filled..]).map_err(|e| self.error(e))? {
                    0 => break,
                    n => filled += n,
                }
            }
            if filled == 0 {
                return Ok(());
            }
            sink(&buf[..filled])?;
        }
    }
}
