//! File systems on volumes, read-only, behind one trait.
//!
//! ```text
//!   Volume ── probe ──► Signature ── Mounted::open ──► ext (ext4-view)  xfs (lamxfs)  btrfs (lambutter)  fat  iso9660
//!                                         │
//!                                         └ lookup: symbolic links, `.` and `..` are resolved here, once for all kinds
//! ```

mod btrfs;
mod ext;
mod fat;
mod iso9660;
mod probe;
mod source;
mod xfs;

use crate::{
    disk::{Run, Volume},
    error::{Error, Result},
    limits,
    output::{Check, Checked, Output},
};
pub(crate) use probe::RAID_1_0;
pub use probe::{Signature, probe};

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, a socket, a pipe.
    Other,
}

/// What is known of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Its size in bytes, as the file system says; a guest can say anything.
    pub size: u64,
}

/// Where a file's bytes go, in order; its error ends the copy.
pub type Sink<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// A file system of one kind.
///
/// Paths here are absolute and canonical: `/` between names, no empty name, no `.`, no `..`, and no component but the
/// last is a symbolic link. [`Mounted`] sees to that.
pub trait FileSystem {
    /// The usual name of the kind, as blkid(8) has it.
    fn kind(&self) -> &'static str;
    /// The id that `search --fs-uuid` compares with.
    fn uuid(&self) -> Option<String>;
    /// The label.
    fn label(&self) -> Option<String>;
    /// What is at a path; `None` when nothing is. Links are not followed.
    ///
    /// # Errors
    /// When the file system is damaged or cannot be read.
    fn stat(&mut self, path: &[u8]) -> Result<Option<Stat>>;
    /// The target of a symbolic link.
    ///
    /// # Errors
    /// As [`FileSystem::stat`].
    fn read_link(&mut self, path: &[u8]) -> Result<Vec<u8>>;
    /// The names in a directory, without `.` and `..`, at most [`limits::DIRECTORY_ENTRIES`].
    ///
    /// # Errors
    /// As [`FileSystem::stat`].
    fn read_dir(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>>;
    /// The parts of the volume that are a regular file's bytes one after the other, when it is known to be of this size and
    /// to be there as it is; `None` when only [`FileSystem::copy`] knows.
    ///
    /// # Errors
    /// When it cannot be read.
    fn runs(&mut self, path: &[u8], size: u64) -> Result<Option<Vec<Run>>> {
        let _ = (path, size);
        Ok(None)
    }

    /// Passes a regular file's bytes on.
    ///
    /// # Errors
    /// As [`FileSystem::stat`], and those of the sink.
    fn copy(&mut self, path: &[u8], sink: &mut Sink) -> Result<()>;
}

/// An opened file system.
pub struct Mounted {
    fs: Box<dyn FileSystem>,
    volume: Volume,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Mounted").field(&self.fs.kind()).finish()
    }
}

impl Mounted {
    /// Opens the file system of a volume; `None` when there is none known.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for what is known and refused, and when the file system is damaged.
    pub fn open(volume: &Volume) -> Result<Option<Self>> {
        let fs: Box<dyn FileSystem> = match probe(volume)? {
            Some(Signature::Ext) => Box::new(ext::Ext::open(volume)?),
            Some(Signature::Xfs) => Box::new(xfs::Xfs::open(volume)?),
            Some(Signature::Btrfs) => Box::new(btrfs::Btrfs::open(volume)?),
            Some(Signature::Fat) => Box::new(fat::Fat::open(volume)?),
            Some(Signature::Iso9660) => Box::new(iso9660::Iso::open(volume)?),
            Some(Signature::LvmPhysicalVolume) => {
                return Err(Error::Unsupported("an LVM physical volume inside of a volume".to_owned()));
            }
            Some(Signature::Refused(name)) => return Err(Error::Unsupported(name.to_owned())),
            Some(Signature::Ignored(_)) | None => return Ok(None),
        };
        Ok(Some(Self { fs, volume: volume.clone() }))
    }

    /// The kind of file system.
    pub fn kind(&self) -> &'static str {
        self.fs.kind()
    }

    /// The file system's id.
    pub fn uuid(&self) -> Option<String> {
        self.fs.uuid()
    }

    /// The file system's label.
    pub fn label(&self) -> Option<String> {
        self.fs.label()
    }

    /// What a path leads to once all links are followed, and its canonical path; `None` when it leads nowhere.
    ///
    /// # Errors
    /// When the file system is damaged, or the path goes through more than [`limits::SYMLINKS`] links.
    pub fn lookup(&mut self, path: &[u8]) -> Result<Option<(Vec<u8>, Stat)>> {
        let mut links = 0;
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut todo = components(path);
        let mut at = Stat { kind: Kind::Directory, size: 0 };
        while let Some(name) = todo.pop() {
            if name == b".." {
                done.pop();
                at = Stat { kind: Kind::Directory, size: 0 };
                continue;
            }
            if at.kind != Kind::Directory {
                return Ok(None);
            }
            done.push(name);
            let here = joined(&done);
            if here.len() > limits::PATH_BYTES {
                return Err(Error::too_large("path", limits::PATH_BYTES));
            }
            let Some(stat) = self.fs.stat(&here)? else { return Ok(None) };
            at = stat;
            if stat.kind == Kind::Symlink {
                links += 1;
                if links > limits::SYMLINKS {
                    return Err(Error::too_large("symbolic links in one path", limits::SYMLINKS));
                }
                let target = self.fs.read_link(&here)?;
                if target.len() > limits::PATH_BYTES {
                    return Err(Error::too_large("symbolic link", limits::PATH_BYTES));
                }
                if target.first() == Some(&b'/') {
                    done.clear();
                } else {
                    done.pop();
                }
                todo.extend(components(&target));
                at = Stat { kind: Kind::Directory, size: 0 };
            }
        }
        Ok(Some((joined(&done), at)))
    }

    /// The canonical path of a regular file; `None` when there is none at that path.
    ///
    /// # Errors
    /// As [`Mounted::lookup`].
    pub fn file(&mut self, path: &[u8]) -> Result<Option<(Vec<u8>, u64)>> {
        Ok(self
            .lookup(path)?
            .filter(|(_, stat)| stat.kind == Kind::File)
            .map(|(path, stat)| (path, stat.size)))
    }

    /// Passes a file's bytes on, at most `limit`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::TooLarge`], those of the file system and of the sink.
    pub fn copy(&mut self, path: &[u8], limit: u64, sink: &mut Sink) -> Result<u64> {
        let (canonical, _) = self.limited(path, limit)?;
        self.copy_canonical(&canonical, limit, sink)
    }

    /// The same into an output, once the file's beginning was checked.
    ///
    /// # Errors
    /// As [`Mounted::copy`], that of the check, and of writing.
    pub fn deliver(&mut self, path: &[u8], limit: u64, check: Check, to: &mut dyn Output) -> Result<u64> {
        let (canonical, size) = self.limited(path, limit)?;
        let runs = self.fs.runs(&canonical, size)?;
        let Some(content) = runs.and_then(|runs| self.volume.parts(&runs)).filter(|v| v.size() == size)
        else {
            let mut checked = Checked::new(to, check);
            let copied = self.copy_canonical(&canonical, limit, &mut |bytes| checked.write(bytes))?;
            return checked.finish().map(|()| copied);
        };
        let head = usize::try_from(size).unwrap_or(usize::MAX).min(check.bytes);
        (check.refuse)(&content.read(0, head)?)?;
        content.deliver(to)?;
        Ok(size)
    }

    /// A file of at most `limit` bytes, as it says itself: its canonical path and size.
    fn limited(&mut self, path: &[u8], limit: u64) -> Result<(Vec<u8>, u64)> {
        let shown = || String::from_utf8_lossy(path).into_owned();
        match self.lookup(path)? {
            None => Err(Error::NotFound(shown())),
            Some((_, stat)) if stat.kind != Kind::File => {
                Err(Error::WrongKind { path: shown(), wanted: "regular file" })
            }
            Some((_, stat)) if stat.size > limit => Err(Error::too_large(shown(), limit)),
            Some((canonical, stat)) => Ok((canonical, stat.size)),
        }
    }

    /// What the file system says of the size is one thing, what it delivers is another.
    fn copy_canonical(&mut self, path: &[u8], limit: u64, sink: &mut Sink) -> Result<u64> {
        let mut copied = 0u64;
        self.fs.copy(path, &mut |bytes| {
            copied = copied.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
            if copied > limit {
                return Err(Error::too_large(String::from_utf8_lossy(path).into_owned(), limit));
            }
            sink(bytes)
        })?;
        Ok(copied)
    }

    /// A whole small file; `None` when there is none.
    ///
    /// # Errors
    /// As [`Mounted::copy`].
    pub fn read(&mut self, path: &[u8], limit: u64) -> Result<Option<Vec<u8>>> {
        if self.file(path)?.is_none() {
            return Ok(None);
        }
        let mut content = Vec::new();
        self.copy(path, limit, &mut |bytes| {
            content.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(Some(content))
    }

    /// The names in a directory, sorted; empty when there is no such directory.
    ///
    /// # Errors
    /// When the file system is damaged.
    pub fn list(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let mut names = match self.lookup(path)? {
            Some((canonical, stat)) if stat.kind == Kind::Directory => self.fs.read_dir(&canonical)?,
            _ => return Ok(Vec::new()),
        };
        // A name with a separator in it would lead elsewhere.
        names.retain(|name| !name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/'));
        names.sort_unstable();
        Ok(names)
    }
}

/// The names of a path, last one first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|&b| b == b'/').rev().filter(|c| !c.is_empty() && *c != b".").map(<[u8]>::to_vec).collect()
}

fn joined(names: &[Vec<u8>]) -> Vec<u8> {
    if names.is_empty() {
        return b"/".to_vec();
    }
    names.iter().flat_map(|name| [b"/", name.as_slice()]).flatten().copied().collect()
}

/// How many bytes of a file are read at a time.
pub(crate) const CHUNK: usize = 256 << 10;

/// Opens whatever is on a volume, walks some of it and reads what it finds; for fuzzing.
///
/// # Errors
/// Whatever is wrong with it.
pub fn fuzz(volume: &Volume) -> Result<()> {
    const VISITED: usize = 200;
    let Some(mut fs) = Mounted::open(volume)? else { return Ok(()) };
    let mut todo = vec![b"/".to_vec()];
    let mut seen = 0;
    while let Some(dir) = todo.pop() {
        for name in fs.list(&dir)? {
            seen += 1;
            if seen > VISITED {
                return Ok(());
            }
            let path = [dir.as_slice(), b"/", &name].concat();
            match fs.lookup(&path)? {
                Some((_, Stat { kind: Kind::Directory, .. })) => todo.push(path),
                Some((_, Stat { kind: Kind::File, .. })) => {
                    drop(fs.copy(&path, 1 << 20, &mut |_| Ok(())));
                    drop(fs.deliver(&path, 1 << 20, Check::NONE, &mut Vec::new()));
                }
                _ => {}
            }
        }
    }
    Ok(())
}
