//! Where a kernel and a ramdisk go: a file takes what is on a disk as it is straight from there, in the kernel.

use crate::error::{Error, Result};
use nix::{errno::Errno, sys::sendfile::sendfile64};
use std::{
    fs::File,
    io::{self, Write},
};

/// What a guest's files are written to.
pub trait Output: Write {
    /// Takes bytes of a file without this process looking at them. How many it has taken; none if it cannot.
    ///
    /// # Errors
    /// That of reading or writing.
    fn take(&mut self, from: &File, offset: u64, length: u64) -> io::Result<u64>;
}

impl Output for Vec<u8> {
    fn take(&mut self, _: &File, _: u64, _: u64) -> io::Result<u64> {
        Ok(0)
    }
}

impl Output for File {
    fn take(&mut self, from: &File, offset: u64, length: u64) -> io::Result<u64> {
        let (Ok(mut at), Ok(count)) = (i64::try_from(offset), usize::try_from(length)) else { return Ok(0) };
        match sendfile64(&*self, from, Some(&mut at), count) {
            Ok(taken) => Ok(u64::try_from(taken).unwrap_or(0)),
            // What is behind one of the two descriptors has no such way.
            Err(Errno::EINVAL | Errno::ENOSYS) => Ok(0),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Looks at the beginning of what goes to an output before anything does.
pub(crate) struct Checked<'a> {
    output: &'a mut dyn Output,
    check: Check,
    /// What was held back so far; nothing any more once it was checked.
    held: Option<Vec<u8>>,
}

/// Says whether a file may begin like this. It is given the first [`Check::bytes`] bytes, or all of a shorter file.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    /// How much it wants to see.
    pub bytes: usize,
    /// What is wrong with it.
    pub refuse: fn(&[u8]) -> Result<()>,
}

impl Check {
    /// One that finds nothing wrong.
    pub const NONE: Self = Self { bytes: 0, refuse: |_| Ok(()) };
}

impl<'a> Checked<'a> {
    pub(crate) fn new(output: &'a mut dyn Output, check: Check) -> Self {
        Self { output, check, held: Some(Vec::new()) }
    }

    /// The next bytes.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(held) = &mut self.held {
            held.extend_from_slice(bytes);
            return if held.len() < self.check.bytes { Ok(()) } else { self.release() };
        }
        self.output.write_all(bytes).map_err(Error::io("writing what was found"))
    }

    /// There are no more.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.release()
    }

    /// Checks what was held back and lets it go.
    fn release(&mut self) -> Result<()> {
        let Some(held) = self.held.take() else { return Ok(()) };
        (self.check.refuse)(&held[..held.len().min(self.check.bytes)])?;
        self.output.write_all(&held).map_err(Error::io("writing what was found"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_from_another_and_a_pipe_gives_nothing() {
        let mut from = tempfile::tempfile().unwrap();
        from.write_all(b"0123456789").unwrap();
        let mut to = tempfile::tempfile().unwrap();
        assert_eq!(to.take(&from, 3, 4).unwrap(), 4);
        assert_eq!(to.take(&from, 8, 100).unwrap(), 2, "up to the end");
        let mut taken = String::new();
        io::Seek::rewind(&mut to).unwrap();
        io::Read::read_to_string(&mut to, &mut taken).unwrap();
        assert_eq!(taken, "345689");
        let (pipe, _write) = io::pipe().unwrap();
        let pipe = File::from(std::os::fd::OwnedFd::from(pipe));
        assert!(matches!(to.take(&pipe, 0, 1), Ok(0) | Err(_)));
        assert_eq!(Vec::new().take(&from, 0, 1).unwrap(), 0);
    }

    #[test]
    fn nothing_passes_before_the_beginning_was_seen() {
        let check = Check {
            bytes: 4,
            refuse: |head| if head == b"good" { Ok(()) } else { Err(Error::Kernel(String::new())) },
        };
        let written = |parts: &[&str]| {
            let mut output = Vec::new();
            let mut checked = Checked::new(&mut output, check);
            let outcome = parts.iter().try_for_each(|part| checked.write(part.as_bytes()));
            (outcome.and_then(|()| checked.finish()).is_ok(), String::from_utf8(output).unwrap())
        };
        assert_eq!(written(&["go", "od", "bye"]), (true, "goodbye".to_owned()));
        assert_eq!(written(&["goodbye"]), (true, "goodbye".to_owned()));
        assert_eq!(written(&["bad", "bye"]), (false, String::new()));
        assert_eq!(written(&["bad"]), (false, String::new()), "one that is shorter");
        assert_eq!(written(&[]), (false, String::new()));
    }
}
