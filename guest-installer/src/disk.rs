//! The disk: an open descriptor, read at offsets, within a budget.
//!
//! ```text
//!   File ── Disk (size, budget) ──► Volume (a partition, a logical volume: runs of the disk in order)
//! ```
//! Nothing here seeks, so the descriptor may be shared; nothing writes.

use crate::{
    error::{Error, Result},
    fs::CHUNK,
    limits,
    output::Output,
};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::{
    cell::Cell,
    fs::File,
    io::{self, Seek, SeekFrom},
    os::unix::fs::FileExt,
    rc::Rc,
};

/// An open raw disk or image.
#[derive(Debug)]
pub struct Disk {
    file: File,
    size: u64,
    /// Bytes that may still be read.
    budget: Cell<u64>,
    /// What the budget was.
    total: u64,
}

impl Disk {
    /// Takes over a descriptor of a raw image or block device, open for reading.
    ///
    /// `file_bytes` is how much the files that will be copied may have, which is added to
    /// [`limits::METADATA_BYTES`] to form the budget of the run.
    ///
    /// # Errors
    /// [`Error::Io`] when the size cannot be found out.
    pub fn new(mut file: File, file_bytes: u64) -> Result<Rc<Self>> {
        // Works for block devices too, whose metadata says 0.
        let size = file.seek(SeekFrom::End(0)).map_err(Error::io("size of the disk"))?;
        let total = file_bytes.saturating_add(limits::METADATA_BYTES);
        Ok(Rc::new(Self { file, size, budget: Cell::new(total), total }))
    }

    /// A disk in memory with these bytes; for fuzzing.
    pub(crate) fn of_bytes(bytes: &[u8]) -> Result<Rc<Self>> {
        Self::of_parts(u64::try_from(bytes.len()).unwrap_or(u64::MAX), &[(0, bytes)])
    }

    /// One of a size with bytes here and there, of which those beyond its end are left out; for fuzzing.
    pub(crate) fn of_parts(size: u64, parts: &[(u64, &[u8])]) -> Result<Rc<Self>> {
        let made = memfd_create("disk", MFdFlags::MFD_CLOEXEC)
            .map_err(|e| Error::io("a disk in memory")(e.into()))?;
        let file = File::from(made);
        for (at, bytes) in parts {
            file.write_all_at(bytes, *at).map_err(Error::io("a disk in memory"))?;
        }
        file.set_len(size).map_err(Error::io("a disk in memory"))?;
        Self::new(file, limits::KERNEL_BYTES)
    }

    /// The size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.spend(offset, u64::try_from(buf.len()).unwrap_or(u64::MAX))?;
        self.file.read_exact_at(buf, offset).map_err(Error::io("reading the disk"))
    }

    /// Passes bytes on, which are read here only if the output cannot take them from the disk itself.
    fn deliver(&self, to: &mut dyn Output, mut offset: u64, mut len: u64) -> Result<()> {
        self.spend(offset, len)?;
        let mut buffer = Vec::new();
        while len > 0 {
            let mut passed =
                to.take(&self.file, offset, len).map_err(Error::io("copying from the disk"))?.min(len);
            if passed == 0 {
                buffer.resize(usize::try_from(len).unwrap_or(usize::MAX).min(CHUNK), 0);
                self.file.read_exact_at(&mut buffer, offset).map_err(Error::io("reading the disk"))?;
                to.write_all(&buffer).map_err(Error::io("writing what was found"))?;
                passed = u64::try_from(buffer.len()).unwrap_or(len);
            }
            (offset, len) = (offset + passed, len - passed);
        }
        Ok(())
    }

    /// Checks that bytes are on the disk, and takes them from the budget.
    fn spend(&self, offset: u64, len: u64) -> Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.size) {
            return Err(Error::OutOfRange { offset, len, size: self.size });
        }
        let left = self.budget.get().checked_sub(len);
        self.budget.set(left.ok_or_else(|| Error::too_large("bytes read from the disk", self.total))?);
        Ok(())
    }
}

/// A run of bytes of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Where it starts on the disk.
    pub start: u64,
    /// How long it is; not 0.
    pub len: u64,
}

/// A partition, a logical volume or the whole disk: runs of the disk, one after the other.
#[derive(Clone, Debug)]
pub struct Volume {
    disk: Rc<Disk>,
    /// Each run with the offset within the volume at which it ends.
    runs: Rc<[(u64, Run)]>,
}

impl Volume {
    /// The whole disk.
    #[must_use]
    pub fn whole(disk: &Rc<Disk>) -> Self {
        let run = Run { start: 0, len: disk.size };
        Self { disk: Rc::clone(disk), runs: Rc::new([(disk.size, run)]) }
    }

    /// A part of this volume; `None` when it is empty or not within.
    pub(crate) fn part(&self, start: u64, len: u64) -> Option<Self> {
        self.parts(&[Run { start, len }])
    }

    /// Several parts of this volume in a row; `None` when one is empty or not within.
    pub(crate) fn parts(&self, parts: &[Run]) -> Option<Self> {
        let mut runs = Vec::with_capacity(parts.len());
        let mut end = 0u64;
        for part in parts {
            if part.len == 0 || part.start.checked_add(part.len)? > self.size() {
                return None;
            }
            let (mut at, mut left) = (part.start, part.len);
            while left > 0 {
                let (start, room) = self.place(at)?;
                let len = room.min(left);
                end = end.checked_add(len)?;
                runs.push((end, Run { start, len }));
                at += len;
                left -= len;
            }
        }
        Some(Self { disk: Rc::clone(&self.disk), runs: runs.into() })
    }

    /// The size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.runs.last().map_or(0, |(end, _)| *end)
    }

    /// The disk's offset of this volume's `offset`, and how many bytes follow in a row.
    fn place(&self, offset: u64) -> Option<(u64, u64)> {
        let index = self.runs.partition_point(|(end, _)| *end <= offset);
        let (end, run) = self.runs.get(index)?;
        let room = end - offset;
        Some((run.start + (run.len - room), room))
    }

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Io`], and [`Error::TooLarge`] when the budget is spent.
    pub fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> Result<()> {
        let len = u64::try_from(buf.len()).unwrap_or(u64::MAX);
        if offset.checked_add(len).is_none_or(|end| end > self.size()) {
            return Err(Error::OutOfRange { offset, len, size: self.size() });
        }
        while !buf.is_empty() {
            let outside = || Error::OutOfRange { offset, len, size: self.size() };
            let (start, room) = self.place(offset).ok_or_else(outside)?;
            let now = usize::try_from(room).unwrap_or(usize::MAX).min(buf.len());
            let (head, tail) = buf.split_at_mut(now);
            self.disk.read_exact_at(head, start)?;
            buf = tail;
            offset += u64::try_from(now).unwrap_or(u64::MAX);
        }
        Ok(())
    }

    /// Passes all of it on.
    ///
    /// # Errors
    /// As [`Volume::read_exact_at`], and that of writing.
    pub(crate) fn deliver(&self, to: &mut dyn Output) -> Result<()> {
        self.runs.iter().try_for_each(|(_, run)| self.disk.deliver(to, run.start, run.len))
    }

    /// `len` bytes at `offset`.
    ///
    /// # Errors
    /// As [`Volume::read_exact_at`]; the range is checked before anything is allocated.
    pub(crate) fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let long = u64::try_from(len).unwrap_or(u64::MAX);
        if offset.checked_add(long).is_none_or(|end| end > self.size()) {
            return Err(Error::OutOfRange { offset, len: long, size: self.size() });
        }
        let mut buf = vec![0; len];
        self.read_exact_at(&mut buf, offset)?;
        Ok(buf)
    }

    /// Like [`Volume::read`], with `None` for what is outside of the volume: for looking whether something is there.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::TooLarge`].
    pub(crate) fn peek(&self, offset: u64, len: usize) -> Result<Option<Vec<u8>>> {
        match self.read(offset, len) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::OutOfRange { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// What the file system crates take as a read error; the real one is kept aside by [`crate::fs::Source`].
pub(crate) fn as_io(error: &Error) -> io::Error {
    match error {
        Error::Io { source, .. } => io::Error::new(source.kind(), source.to_string()),
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::disk_of;

    #[test]
    fn parts_of_parts_read_the_right_bytes() {
        let disk = disk_of(&(0..=255).collect::<Vec<u8>>());
        let whole = Volume::whole(&disk);
        let mixed = whole.parts(&[Run { start: 100, len: 4 }, Run { start: 10, len: 3 }]).unwrap();
        assert_eq!(mixed.read(0, 7).unwrap(), [100, 101, 102, 103, 10, 11, 12]);
        let again = mixed.part(2, 4).unwrap();
        assert_eq!((again.size(), again.read(1, 3).unwrap()), (4, vec![103, 10, 11]));
    }

    #[test]
    fn nothing_outside_is_read() {
        let disk = disk_of(&[7; 64]);
        let volume = Volume::whole(&disk).part(16, 16).unwrap();
        for (offset, len) in [(16, 1), (0, 17), (15, 2), (u64::MAX, 1), (u64::MAX - 3, 8)] {
            assert!(matches!(volume.read(offset, len), Err(Error::OutOfRange { .. })), "{offset} {len}");
            assert_eq!(volume.peek(offset, len).unwrap(), None);
        }
        for (start, len) in [(0, 65), (64, 1), (0, 0), (u64::MAX, 2)] {
            assert!(Volume::whole(&disk).part(start, len).is_none(), "{start} {len}");
        }
        assert!(Volume::whole(&disk_of(&[])).read(0, 1).is_err());
    }

    #[test]
    fn the_budget_ends_a_run() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let disk = Disk::new(file, 0).unwrap();
        let whole = Volume::whole(&disk);
        let mut reads = 0u64;
        let mut buf = vec![0; 1 << 20];
        let end = loop {
            match whole.read_exact_at(&mut buf, 0) {
                Ok(()) => reads += 1,
                Err(e) => break e,
            }
        };
        assert_eq!(reads, limits::METADATA_BYTES >> 20);
        assert!(end.is_final() && end.code() == "TOO_LARGE", "{end}");
    }
}
