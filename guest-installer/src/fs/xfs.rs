//! XFS, versions 4 and 5, through `lamxfs`, which also replays the log of a guest that was not shut down.

use super::{
    CHUNK, FileSystem, Kind, Sink, Stat,
    source::{Failure, Source},
};
use crate::{
    disk::Volume,
    error::{Error, Result},
    limits,
};
use lamxfs::{Path, SuperblockReason};

pub(super) struct Xfs {
    fs: lamxfs::Xfs<Source>,
    failure: Failure,
}

impl Xfs {
    pub(super) fn open(volume: &Volume) -> Result<Self> {
        let failure = Failure::default();
        let source = Source::new(volume, &failure);
        let fs = lamxfs::Xfs::open(source, volume.size()).map_err(|e| failure.or(convert(&e)))?;
        Ok(Self { fs, failure })
    }

    fn error(&self, error: &lamxfs::Error) -> Error {
        self.failure.or(convert(error))
    }
}

fn convert(error: &lamxfs::Error) -> Error {
    match error {
        lamxfs::Error::BadSuperblock(SuperblockReason::DirtyLog) => {
            Error::Unsupported("an XFS log that only the guest's own kernel can replay".to_owned())
        }
        lamxfs::Error::BadSuperblock(
            SuperblockReason::ExternalLog
            | SuperblockReason::RealtimeDevice
            | SuperblockReason::UnsupportedVersion,
        )
        | lamxfs::Error::UnsupportedFeature(_) => Error::Unsupported(format!("this XFS ({})", error.token())),
        lamxfs::Error::NotFound { component } => Error::NotFound((*component).to_owned()),
        other => Error::corrupt("XFS file system", other.token()),
    }
}

impl FileSystem for Xfs {
    fn kind(&self) -> &'static str {
        "xfs"
    }

    fn uuid(&self) -> Option<String> {
        Some(crate::bytes::uuid(self.fs.uuid()))
    }

    fn label(&self) -> Option<String> {
        self.fs.label().map(str::to_owned)
    }

    fn stat(&mut self, path: &[u8]) -> Result<Option<Stat>> {
        let inode = match self.fs.resolve(Path::new(path)) {
            Ok(inode) => inode,
            Err(lamxfs::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(self.error(&e)),
        };
        let metadata = self.fs.metadata(&inode).map_err(|e| self.error(&e))?;
        let kind = match () {
            () if metadata.is_file() => Kind::File,
            () if metadata.is_dir() => Kind::Directory,
            () if metadata.is_symlink() => Kind::Symlink,
            () => Kind::Other,
        };
        Ok(Some(Stat { kind, size: metadata.size() }))
    }

    fn read_link(&mut self, path: &[u8]) -> Result<Vec<u8>> {
        self.fs.read_link(Path::new(path)).map_err(|e| self.failure.or(convert(&e)))
    }

    fn read_dir(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let entries = self.fs.read_dir(Path::new(path)).map_err(|e| self.failure.or(convert(&e)))?;
        if entries.len() > limits::DIRECTORY_ENTRIES {
            return Err(Error::too_large("directory entries", limits::DIRECTORY_ENTRIES));
        }
        Ok(entries.into_iter().map(|entry| entry.name).collect())
    }

    fn copy(&mut self, path: &[u8], sink: &mut Sink) -> Result<()> {
        let inode = self.fs.resolve(Path::new(path)).map_err(|e| self.failure.or(convert(&e)))?;
        let (mut buf, mut offset) = (vec![0; CHUNK], 0u64);
        loop {
            let read = self.fs.read_file_at(&inode, offset, &mut buf);
            let n = read.map_err(|e| self.failure.or(convert(&e)))?;
            if n == 0 {
                return Ok(());
            }
            sink(&buf[..n])?;
            offset += u64::try_from(n).unwrap_or(u64::MAX);
        }
    }
}
