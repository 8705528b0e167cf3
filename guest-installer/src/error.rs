//! What can go wrong between a disk and a kernel.

use std::io;

/// An error with a stable code for programs ([`Error::code`]) and a text for people.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk, or an output, could not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// A structure on the disk points outside of what holds it.
    #[error("read of {len} bytes at {offset} is outside of the {size} bytes of the volume")]
    OutOfRange {
        /// Where the read starts, in bytes.
        offset: u64,
        /// How long it is.
        len: u64,
        /// The size of the volume.
        size: u64,
    },
    /// A bound was reached; see [`crate::limits`].
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large, too many or too deep.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// A structure contradicts itself.
    #[error("corrupt {what}: {why}")]
    Corrupt {
        /// The structure.
        what: &'static str,
        /// The contradiction.
        why: String,
    },
    /// Something this reader refuses, by name.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// There is no such file.
    #[error("no such file: {0}")]
    NotFound(String),
    /// A path names something that is not what was asked for.
    #[error("{path} is not a {wanted}")]
    WrongKind {
        /// The path.
        path: String,
        /// "regular file" or "directory".
        wanted: &'static str,
    },
    /// A boot configuration cannot be read.
    #[error("{file}, line {line}: {why}")]
    Config {
        /// The file.
        file: String,
        /// The line, from 1; 0 where none applies.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// No partition of the disk has a file system that can be read.
    #[error("bootable disk has no valid file system; tried {}", list(.0))]
    NoFileSystem(Vec<String>),
    /// No file system has a boot configuration.
    #[error("no boot configuration found; looked at {}", list(.0))]
    NoBootConfig(Vec<String>),
    /// The wanted entry does not exist.
    #[error("no boot entry {wanted:?}; there are {}", list(.entries))]
    NoEntry {
        /// What was asked for, by the user or by the guest's configuration.
        wanted: String,
        /// The titles there are.
        entries: Vec<String>,
    },
    /// The entry names a file that does not exist.
    #[error("boot entry {entry:?} names {path}, which does not exist on {volume}")]
    FileMissing {
        /// The entry's title.
        entry: String,
        /// The path.
        path: String,
        /// Where it was looked for.
        volume: String,
    },
    /// The kernel is not one that can be started.
    #[error("kernel image: {0}")]
    Kernel(String),
    /// A returned string holds a character that could be taken for syntax.
    #[error("{what} holds the control character {byte:#04x}")]
    ControlCharacter {
        /// Which string.
        what: &'static str,
        /// The byte.
        byte: u8,
    },
    /// The worker did not finish in time.
    #[error("{what} took longer than {seconds} s")]
    Timeout {
        /// What it did.
        what: &'static str,
        /// How long it may take.
        seconds: u64,
    },
    /// The caller does not want it any more.
    #[error("{0} was stopped")]
    Stopped(&'static str),
    /// The worker died, or said something that is no answer.
    #[error("worker: {0}")]
    Worker(String),
    /// The answer of a worker in another process: its code and text.
    #[error("{text}")]
    Remote {
        /// [`Error::code`] of the worker's error.
        code: String,
        /// Its text.
        text: String,
    },
}

/// The result of everything here.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A stable name of the kind of error.
    #[must_use]
    pub fn code(&self) -> &str {
        match self {
            Self::Io { .. } => "IO",
            Self::OutOfRange { .. } | Self::Corrupt { .. } => "CORRUPT",
            Self::TooLarge { .. } => "TOO_LARGE",
            Self::Unsupported(_) => "UNSUPPORTED",
            Self::NotFound(_) | Self::WrongKind { .. } | Self::FileMissing { .. } => "FILE_MISSING",
            Self::Config { .. } => "BAD_BOOT_CONFIG",
            Self::NoFileSystem(_) => "NO_FILESYSTEM",
            Self::NoBootConfig(_) => "NO_BOOT_CONFIG",
            Self::NoEntry { .. } => "NO_ENTRY",
            Self::Kernel(_) => "BAD_KERNEL",
            Self::ControlCharacter { .. } => "CONTROL_CHARACTER",
            Self::Timeout { .. } => "TIMEOUT",
            Self::Stopped(_) => "STOPPED",
            Self::Worker(_) => "WORKER",
            Self::Remote { code, .. } => code,
        }
    }

    pub(crate) fn corrupt(what: &'static str, why: impl Into<String>) -> Self {
        Self::Corrupt { what, why: why.into() }
    }

    pub(crate) fn too_large(what: impl Into<String>, limit: impl TryInto<u64>) -> Self {
        Self::TooLarge { what: what.into(), limit: limit.try_into().unwrap_or(u64::MAX) }
    }

    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Whether the run is over, whatever else could still be tried: the disk failed or a budget is spent.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Io { .. } | Self::TooLarge { .. })
    }
}

/// Items for a message: bounded, because a guest chose them.
fn list(items: &[String]) -> String {
    const SHOWN: usize = 20;
    if items.is_empty() {
        return "none".to_owned();
    }
    let shown = items.iter().take(SHOWN).map(|s| printable(s)).collect::<Vec<_>>().join("; ");
    match items.len().checked_sub(SHOWN) {
        None | Some(0) => shown,
        Some(more) => format!("{shown}; and {more} more"),
    }
}

/// A guest's string as one printable line of bounded length.
pub(crate) fn printable(text: &str) -> String {
    const LONGEST: usize = 200;
    text.chars()
        .take(LONGEST)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_strings_cannot_break_a_line_or_flood_a_log() {
        let entries = (0..1000).map(|i| format!("evil\n{i}\x1b[2J{}", "x".repeat(10_000))).collect();
        let text = Error::NoEntry { wanted: "a\nb".to_owned(), entries }.to_string();
        assert!(!text.contains(['\n', '\x1b']), "{text}");
        assert!(text.len() < 6000 && text.contains("and 980 more"), "{}", text.len());
    }
}
