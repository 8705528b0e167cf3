//! Small files that survive a crash at any instant: written aside, flushed, renamed, directory flushed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Largest record read back. Ours are a few KiB; a larger file is not ours.
const MAX_RECORD: u64 = 16 * 1024 * 1024;

const ASIDE: &str = ".tmp";

/// What is kept is for hotplug scripts and support tools to read, too.
const DIR_MODE: u32 = 0o755;

/// The state directory refused.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}; check that the state directory is writable and not full", path.display())]
pub struct StateError {
    /// What was attempted: `create`, `find`, `read`, `write`, `list`, `remove`.
    pub action: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// What the kernel said.
    pub source: io::Error,
}

/// How long what is written must last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// Beyond a crash of the host: flushed to the disk, with the directory that names it.
    Host,
    /// Beyond the end of this process: the kernel has it. For what means nothing after the host's next boot.
    Process,
}

/// A directory of small files in sub-directories.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
}

impl Files {
    /// Opens `root`, creating it 0755 when missing.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let made = fs::DirBuilder::new().recursive(true).mode(DIR_MODE).create(root);
        made.map_err(|source| StateError { action: "create", path: root.to_owned(), source })?;
        Ok(Self { root: root.to_owned() })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where `dir/name` is.
    pub fn path(&self, dir: &str, name: &str) -> PathBuf {
        self.root.join(dir).join(name)
    }

    /// Whether `dir/name` is there.
    pub fn exists(&self, dir: &str, name: &str) -> bool {
        self.path(dir, name).exists()
    }

    /// The contents of `dir/name`; none when it does not exist.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn read(&self, dir: &str, name: &str) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.path(dir, name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if absent(&error) => return self.still_there().map(|()| None),
            Err(source) => return Err(StateError { action: "read", path, source }),
        };
        // Room for one byte more, so that its end is seen without another buffer.
        let length = file.metadata().map_or(0, |metadata| metadata.len().min(MAX_RECORD) + 1);
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
        match file.take(MAX_RECORD + 1).read_to_end(&mut bytes) {
            Ok(read) if read as u64 <= MAX_RECORD => Ok(Some(bytes)),
            Ok(_) => Err(StateError { action: "read", path, source: io::ErrorKind::FileTooLarge.into() }),
            Err(source) => Err(StateError { action: "read", path, source }),
        }
    }

    /// Replaces `dir/name` so that a crash leaves either the old contents or the new, never less.
    ///
    /// # Errors
    /// [`StateError`]; the old contents are then still there.
    pub fn write(&self, dir: &str, name: &str, bytes: &[u8], lasting: Lasting) -> Result<(), StateError> {
        let made = self.make(dir)?;
        let dir = self.root.join(dir);
        let path = dir.join(name);
        let aside = dir.join(format!("{name}{ASIDE}"));
        let written = (|| {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&aside)?;
            file.write_all(bytes)?;
            if lasting == Lasting::Process {
                return fs::rename(&aside, &path);
            }
            file.sync_all()?;
            fs::rename(&aside, &path)?;
            sync_dir(&dir)?;
            if made { dir.parent().map_or(Ok(()), sync_dir) } else { Ok(()) }
        })();
        written.map_err(|source| {
            // The half-written copy is of no use; a full disk is helped by removing it.
            let _ = fs::remove_file(&aside);
            if made {
                let _ = fs::remove_dir(&dir);
            }
            StateError { action: "write", path, source }
        })
    }

    /// Removes `dir/name`, and then `dir` if it is one object's own (a directory of a directory) and that was its last
    /// file. Absent is fine.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn remove(&self, dir: &str, name: &str, lasting: Lasting) -> Result<(), StateError> {
        // One that many objects share stays: another may be about to write into it.
        let own = dir.contains('/');
        let dir = self.root.join(dir);
        let path = dir.join(name);
        let failed = |source| StateError { action: "remove", path: path.clone(), source };
        match fs::remove_file(&path) {
            Err(error) if absent(&error) => return Ok(()),
            Err(source) => return Err(failed(source)),
            Ok(()) => {}
        }
        // Fails while other files are left, which is what is wanted.
        let gone = own && fs::remove_dir(&dir).is_ok();
        match lasting {
            Lasting::Process => Ok(()),
            Lasting::Host if gone => dir.parent().map_or(Ok(()), sync_dir).map_err(failed),
            Lasting::Host => sync_dir(&dir).map_err(failed),
        }
    }

    /// Removes every file of `dir`, half-written ones too, and `dir`. Absent is fine.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn clear(&self, dir: &str) -> Result<(), StateError> {
        for name in self.names(dir)? {
            self.remove(dir, &name, Lasting::Process)?;
        }
        Ok(())
    }

    /// Names in `dir`, sorted; none when it does not exist. Half-written files are not names.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn list(&self, dir: &str) -> Result<Vec<String>, StateError> {
        let mut names = self.names(dir)?;
        names.retain(|name| !name.ends_with(ASIDE));
        names.sort();
        Ok(names)
    }

    fn names(&self, dir: &str) -> Result<Vec<String>, StateError> {
        let path = self.root.join(dir);
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if absent(&error) => return self.still_there().map(|()| Vec::new()),
            Err(source) => return Err(StateError { action: "list", path, source }),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|source| StateError { action: "list", path: path.clone(), source })?;
            names.extend(entry.file_name().into_string());
        }
        Ok(names)
    }

    /// What is not there is only missing while the directory itself is there: one that was unmounted or removed under
    /// the daemon holds records all the same.
    fn still_there(&self) -> Result<(), StateError> {
        match fs::metadata(&self.root) {
            Ok(_) => Ok(()),
            Err(source) => Err(StateError { action: "find", path: self.root.clone(), source }),
        }
    }

    /// Makes `dir`, but never the root, which somebody has removed then; whether it was missing.
    fn make(&self, dir: &str) -> Result<bool, StateError> {
        let mut path = self.root.clone();
        let mut made = false;
        for name in Path::new(dir) {
            path.push(name);
            made = match fs::DirBuilder::new().mode(DIR_MODE).create(&path) {
                Ok(()) => true,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
                Err(source) => return Err(StateError { action: "create", path, source }),
            };
        }
        Ok(made)
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
