//! btrfs on one device through `lambutter`.
//!
//! Paths start at the top-level subvolume, as GRUB has them, and when their first name is not there, at the default
//! subvolume, as SUSE's GRUB has them (`btrfs_relative_path`).

use super::{
    CHUNK, FileSystem, Kind, Sink, Stat,
    source::{Failure, Source},
};
use crate::{
    bytes,
    disk::Volume,
    error::{Error, Result},
    limits,
};
use lambutter::{Inode, Path};

/// The id of the top-level subvolume.
const TOP: u64 = 5;
/// Where the first superblock is; the others are copies.
const SUPERBLOCK: u64 = 0x1_0000;

pub(super) struct Btrfs {
    top: lambutter::Btrfs<Source>,
    /// `None` when the top level is the default.
    default: Option<lambutter::Btrfs<Source>>,
    failure: Failure,
    uuid: Option<String>,
    label: Option<String>,
}

type Tree = lambutter::Btrfs<Source>;

impl Btrfs {
    pub(super) fn open(volume: &Volume) -> Result<Self> {
        let failure = Failure::default();
        let source = || Source::new(volume, &failure);
        let top = Tree::open_subvol_id(source(), volume.size(), TOP).map_err(|e| failure.or(convert(&e)))?;
        let default = Tree::open(source(), volume.size()).map_err(|e| failure.or(convert(&e)))?;
        let superblock = volume.read(SUPERBLOCK, 0x22b)?;
        Ok(Self {
            top,
            default: (default.subvolume() != TOP).then_some(default),
            failure,
            uuid: bytes::array(&superblock, 32).map(bytes::uuid),
            label: superblock.get(0x12b..).map(bytes::text),
        })
    }

    /// The tree a path is in, and its inode.
    fn find(&mut self, path: &[u8]) -> Result<Option<(&mut Tree, Inode)>> {
        let corrupt = || Error::corrupt("btrfs file system", "a path is not absolute");
        let first = path.split(|&b| b == b'/').find(|name| !name.is_empty()).unwrap_or_default();
        let head = [b"/".as_slice(), first].concat();
        let in_top = resolve(&mut self.top, Path::new(&head).ok_or_else(corrupt)?, &self.failure)?.is_some();
        let tree = match &mut self.default {
            Some(default) if !in_top => default,
            _ => &mut self.top,
        };
        let inode = resolve(tree, Path::new(path).ok_or_else(corrupt)?, &self.failure)?;
        Ok(inode.map(|inode| (tree, inode)))
    }

    fn found(&mut self, path: &[u8]) -> Result<(&mut Tree, Inode)> {
        self.find(path)?.ok_or_else(|| Error::NotFound(String::from_utf8_lossy(path).into_owned()))
    }
}

fn resolve(tree: &mut Tree, path: Path<'_>, failure: &Failure) -> Result<Option<Inode>> {
    match tree.resolve(path) {
        Ok(inode) => Ok(Some(inode)),
        Err(lambutter::Error::NotFound) => Ok(None),
        Err(e) => Err(failure.or(convert(&e))),
    }
}

fn convert(error: &lambutter::Error) -> Error {
    match error {
        lambutter::Error::UnsupportedFeature(_)
        | lambutter::Error::UnsupportedProfile(_)
        | lambutter::Error::UnsupportedChecksum(_)
        | lambutter::Error::BadSuperblock(
            lambutter::SuperblockReason::UnsupportedCsumType
            | lambutter::SuperblockReason::UnsupportedIncompat,
        ) => Error::Unsupported(format!("this btrfs ({error})")),
        lambutter::Error::NotFound => Error::NotFound("file".to_owned()),
        other => Error::corrupt("btrfs file system", other.to_string()),
    }
}

impl FileSystem for Btrfs {
    fn kind(&self) -> &'static str {
        "btrfs"
    }

    fn uuid(&self) -> Option<String> {
        self.uuid.clone()
    }

    fn label(&self) -> Option<String> {
        self.label.clone()
    }

    fn stat(&mut self, path: &[u8]) -> Result<Option<Stat>> {
        let failure = self.failure.clone();
        let Some((tree, inode)) = self.find(path)? else { return Ok(None) };
        let metadata = tree.metadata(&inode).map_err(|e| failure.or(convert(&e)))?;
        let kind = match () {
            () if metadata.is_file() => Kind::File,
            () if metadata.is_dir() => Kind::Directory,
            () if metadata.is_symlink() => Kind::Symlink,
            () => Kind::Other,
        };
        Ok(Some(Stat { kind, size: metadata.size }))
    }

    fn read_link(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        let failure = self.failure.clone();
        let (tree, _) = self.found(path)?;
        let absolute =
            Path::new(path).ok_or_else(|| Error::corrupt("btrfs file system", "a path is not absolute"))?;
        tree.read_link(absolute).map_err(|e| failure.or(convert(&e)))
    }

    fn read_dir(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let failure = self.failure.clone();
        let (tree, _) = self.found(path)?;
        let absolute =
            Path::new(path).ok_or_else(|| Error::corrupt("btrfs file system", "a path is not absolute"))?;
        let entries = tree.read_dir(absolute).map_err(|e| failure.or(convert(&e)))?;
        if entries.len() > limits::DIRECTORY_ENTRIES {
            return Err(Error::too_large("directory entries", limits::DIRECTORY_ENTRIES));
        }
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    fn copy(&mut self, path: &[u8], sink: &mut Sink) -> Result<()> {
        let failure = self.failure.clone();
        let (tree, inode) = self.found(path)?;
        let (mut buf, mut offset) = (vec![0; CHUNK], 0u64);
        loop {
            let n = tree.read_file_at(&inode, offset, &mut buf).map_err(|e| failure.or(convert(&e)))?;
            if n == 0 {
                return Ok(());
            }
            sink(&buf[..n])?;
            offset += u64::try_from(n).unwrap_or(u64::MAX);
        }
    }
}
