//! The last of what the guest printed: in memory for whoever attaches, and on disk if asked.

use std::fs::File;
use std::io::{self, Write as _};

/// A bounded ring, and a file of at most twice its size.
#[derive(Debug)]
pub struct Log {
    ring: Vec<u8>,
    limit: usize,
    file: Option<(File, u64)>,
}

impl Log {
    /// Keeps `limit` bytes; appends to `file`, which is begun anew with the ring when it has twice as many.
    ///
    /// # Errors
    /// When the file's size cannot be learnt.
    pub fn new(limit: usize, file: Option<File>) -> io::Result<Self> {
        let file = file.map(|file| file.metadata().map(|meta| (file, meta.len()))).transpose()?;
        Ok(Self { ring: Vec::new(), limit, file })
    }

    /// The last bytes.
    pub fn ring(&self) -> &[u8] {
        &self.ring[self.ring.len().saturating_sub(self.limit)..]
    }

    /// Takes output.
    pub fn write(&mut self, bytes: &[u8]) {
        let bytes_kept = &bytes[bytes.len().saturating_sub(self.limit)..];
        // Moved down once for each full length, not for each byte.
        if self.ring.len() + bytes_kept.len() > 2 * self.limit {
            self.ring.drain(..self.ring.len().saturating_sub(self.limit));
        }
        self.ring.extend_from_slice(bytes_kept);
        self.write_file(bytes);
    }

    fn write_file(&mut self, bytes: &[u8]) {
        let most = u64::try_from(self.limit).unwrap_or(u64::MAX).saturating_mul(2);
        let Some((file, length)) = &mut self.file else { return };
        let added = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let written = if length.saturating_add(added) > most {
            let ring = &self.ring[self.ring.len().saturating_sub(self.limit)..];
            *length = u64::try_from(ring.len()).unwrap_or(0);
            file.set_len(0).and_then(|()| file.write_all(ring))
        } else {
            *length += added;
            file.write_all(bytes)
        };
        // A full disk loses the log, not the console.
        if written.is_err() {
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bytes_are_kept_and_no_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let file = File::options().append(true).create(true).open(&path).unwrap();
        let mut log = Log::new(10, Some(file)).unwrap();
        let mut all = Vec::new();
        for n in 0..200_u32 {
            let bytes = format!("{n}\n").repeat(usize::try_from(n % 7).unwrap());
            log.write(bytes.as_bytes());
            all.extend_from_slice(bytes.as_bytes());
            assert_eq!(log.ring(), &all[all.len().saturating_sub(10)..]);
            let file = std::fs::read(&path).unwrap();
            assert!(file.len() <= 20 && all.ends_with(&file));
        }
    }
}
