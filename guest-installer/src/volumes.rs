//! The file systems of a disk, as boot configurations name them.

use crate::{
    disk::Volume,
    error::{Error, Result},
    fs::{Kind, Mounted, Sink},
    limits,
    output::{Check, Output},
    partition::{self, Partition, Table},
};

/// A volume with its file system.
#[derive(Debug)]
struct Opened {
    partition: Partition,
    fs: Mounted,
}

/// All file systems of a disk that can be read.
#[derive(Debug)]
pub struct Volumes {
    list: Vec<Opened>,
    /// What was left out, and why.
    pub notes: Vec<String>,
    /// Bytes of configuration that may still be read.
    left: u64,
}

impl Volumes {
    /// Opens everything on a disk.
    ///
    /// # Errors
    /// [`Error::NoFileSystem`] when nothing can be read; read errors and limits.
    pub fn open(disk: &Volume) -> Result<Self> {
        let layout = partition::layout(disk)?;
        let mut volumes = Self { list: Vec::new(), notes: layout.notes, left: limits::ALL_CONFIG_BYTES };
        for partition in layout.partitions {
            match Mounted::open(&partition.volume) {
                Ok(Some(fs)) => volumes.list.push(Opened { partition, fs }),
                Ok(None) => volumes.notes.push(format!("{}: no file system", partition.table)),
                Err(e) if e.is_final() => return Err(e),
                Err(e) => volumes.notes.push(format!("{}: {e}", partition.table)),
            }
        }
        if volumes.list.is_empty() {
            return Err(Error::NoFileSystem(volumes.notes));
        }
        Ok(volumes)
    }

    /// A disk with nothing on it: for a configuration that is read without its disk. There is no file anywhere.
    pub(crate) fn none() -> Self {
        Self { list: Vec::new(), notes: Vec::new(), left: limits::ALL_CONFIG_BYTES }
    }

    /// Whether it is [`Volumes::none`].
    pub(crate) fn is_none(&self) -> bool {
        self.list.is_empty()
    }

    /// The volumes' indices, in the order in which configurations are looked for.
    pub fn indices(&self) -> std::ops::Range<usize> {
        0..self.list.len()
    }

    /// A volume's name for people.
    pub fn name(&self, volume: usize) -> String {
        self.list.get(volume).map_or_else(String::new, |o| format!("{} ({})", o.partition.table, o.fs.kind()))
    }

    /// A whole configuration file; `None` when there is none. What is not UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// When it is too large, all of them together are, or the file system is damaged.
    pub fn text(&mut self, volume: usize, path: &str) -> Result<Option<String>> {
        let limit = limits::CONFIG_BYTES.min(self.left);
        let Some(opened) = self.list.get_mut(volume) else { return Ok(None) };
        let Some(bytes) = opened.fs.read(path.as_bytes(), limit)? else { return Ok(None) };
        self.left -= u64::try_from(bytes.len()).unwrap_or(self.left);
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The names in a directory, sorted; those that are not UTF-8 are left out.
    ///
    /// # Errors
    /// When the file system is damaged.
    pub fn list(&mut self, volume: usize, dir: &str) -> Result<Vec<String>> {
        let Some(opened) = self.list.get_mut(volume) else { return Ok(Vec::new()) };
        let names = opened.fs.list(dir.as_bytes())?;
        Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect())
    }

    /// What is at a path.
    ///
    /// # Errors
    /// When the file system is damaged.
    pub fn kind(&mut self, volume: usize, path: &str) -> Result<Option<(Kind, u64)>> {
        let Some(opened) = self.list.get_mut(volume) else { return Ok(None) };
        Ok(opened.fs.lookup(path.as_bytes())?.map(|(_, stat)| (stat.kind, stat.size)))
    }

    /// Whether a path leads to a regular file.
    ///
    /// # Errors
    /// When the file system is damaged.
    pub fn is_file(&mut self, volume: usize, path: &str) -> Result<bool> {
        Ok(self.kind(volume, path)?.is_some_and(|(kind, _)| kind == Kind::File))
    }

    /// Passes a file's bytes on, at most `limit`.
    ///
    /// # Errors
    /// As [`Mounted::copy`].
    pub fn copy(&mut self, volume: usize, path: &str, limit: u64, sink: &mut Sink) -> Result<u64> {
        self.opened(volume)?.fs.copy(path.as_bytes(), limit, sink)
    }

    /// Writes a file of at most `limit` bytes to an output, once its beginning was checked.
    ///
    /// # Errors
    /// As [`Mounted::copy`], that of the check, and of writing.
    pub(crate) fn deliver(
        &mut self,
        volume: usize,
        path: &str,
        limit: u64,
        check: Check,
        to: &mut dyn Output,
    ) -> Result<u64> {
        self.opened(volume)?.fs.deliver(path.as_bytes(), limit, check, to)
    }

    fn opened(&mut self, volume: usize) -> Result<&mut Opened> {
        self.list.get_mut(volume).ok_or_else(|| Error::NotFound(format!("volume {volume}")))
    }

    /// The partition of a number, counted from 1.
    pub fn by_number(&self, number: u32) -> Option<usize> {
        self.list
            .iter()
            .position(|o| matches!(o.partition.table, Table::Msdos(n) | Table::Gpt(n) if n == number))
    }

    /// The file system on the disk itself.
    pub fn whole(&self) -> Option<usize> {
        self.list.iter().position(|o| o.partition.table == Table::Whole)
    }

    /// GRUB's name of a volume.
    pub fn grub_name(&self, volume: usize) -> String {
        match self.list.get(volume).map(|o| &o.partition.table) {
            Some(Table::Msdos(number)) => format!("hd0,msdos{number}"),
            Some(Table::Gpt(number)) => format!("hd0,gpt{number}"),
            Some(Table::Lvm { group, volume }) => {
                format!("lvm/{}-{}", group.replace('-', "--"), volume.replace('-', "--"))
            }
            Some(Table::Whole) | None => "hd0".to_owned(),
        }
    }

    /// The volume GRUB means by a name. Which number a disk has is up to the firmware, and only one disk is read here:
    /// every disk's name stands for it.
    pub fn by_grub_name(&self, name: &str) -> Option<usize> {
        if name.starts_with("lvm/") {
            return self.indices().find(|&i| self.grub_name(i) == name);
        }
        match name.split_once(',') {
            Some((_, part)) => {
                self.by_number(part.trim_start_matches(|c: char| c.is_ascii_alphabetic()).parse().ok()?)
            }
            None => self.whole(),
        }
    }

    /// The volume whose file system has an id.
    pub fn by_uuid(&self, uuid: &str) -> Option<usize> {
        self.list.iter().position(|o| o.fs.uuid().is_some_and(|id| id.eq_ignore_ascii_case(uuid)))
    }

    /// The volume whose file system has a label.
    pub fn by_label(&self, label: &str) -> Option<usize> {
        self.list.iter().position(|o| o.fs.label().is_some_and(|l| l == label))
    }

    /// A volume's file system id.
    pub fn uuid(&self, volume: usize) -> Option<String> {
        self.list.get(volume).and_then(|o| o.fs.uuid())
    }
}
