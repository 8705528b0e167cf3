//! Vendors' ramdisks that lack what a PV guest needs, by their checksums, and what is added to them.
//!
//! A table is a file `NAME.map` in the directory of installers' files, one line for a ramdisk, `#` before comments:
//!
//! ```text
//!   # checksum                          type  overlay          which ramdisk it is
//!   0cc175b9c0f1b6a831c399e269772661    cpio  el5.0.cpio.gz    CentOS 5.0 i386
//! ```
//! The checksum is MD5 (32 digits, as in XenServer's tables) or SHA-256 (64 digits) of the ramdisk as it is in the
//! repository. The only type is `cpio`: the overlay, a file of the same directory, is a newc archive, packed or not, and
//! is added at the end, where Linux unpacks it over what came before. `ext2`, of RHEL 4's time, would take a mount in
//! dom0 of what a server sent: a table may have such lines, as XenServer's have, and only those ramdisks are refused. There are
//! no tables as it comes: the overlays are parts of the vendors' systems.

use super::{Error, Result, plan};
use md5::Md5;
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// Largest table.
const TABLE_BYTES: u64 = 1 << 20;

/// Most tables.
const TABLES: usize = 100;

/// A checksum of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checksum {
    /// MD5, as hexadecimal digits.
    Md5(String),
    /// SHA-256, likewise.
    Sha256(String),
}

impl Checksum {
    /// Reads `md5:HEX`, `sha256:HEX`, or digits only, whose number says which it is.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        let (name, digits) = text.split_once(':').unwrap_or(("", text));
        let digits = digits.to_ascii_lowercase();
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("{text:?} is no checksum"));
        }
        match (name, digits.len()) {
            ("" | "md5", 32) => Ok(Self::Md5(digits)),
            ("" | "sha256", 64) => Ok(Self::Sha256(digits)),
            _ => Err(format!("{text:?} is no checksum by MD5 or SHA-256")),
        }
    }
}

/// Both checksums of one file.
#[derive(Debug)]
pub struct Checksums {
    md5: String,
    sha256: String,
}

impl Checksums {
    /// Of a file, from its beginning.
    ///
    /// # Errors
    /// [`Error::Internal`] when it cannot be read.
    pub fn of(mut file: &File) -> Result<Self> {
        let (mut md5, mut sha256) = (Md5::new(), Sha256::new());
        let mut buffer = vec![0; 64 << 10];
        file.rewind().map_err(internal)?;
        loop {
            match file.read(&mut buffer).map_err(internal)? {
                0 => break,
                read => {
                    md5.update(&buffer[..read]);
                    sha256.update(&buffer[..read]);
                }
            }
        }
        Ok(Self { md5: hex(&md5.finalize()), sha256: hex(&sha256.finalize()) })
    }

    /// Whether it is this one.
    pub fn matches(&self, checksum: &Checksum) -> bool {
        match checksum {
            Checksum::Md5(digits) => self.md5 == *digits,
            Checksum::Sha256(digits) => self.sha256 == *digits,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn internal(error: std::io::Error) -> Error {
    Error::Internal(error.to_string())
}

/// What is added to which ramdisks.
#[derive(Debug, Clone, Default)]
pub struct Fixups {
    known: Vec<(Checksum, PathBuf, Kind)>,
}

/// How something is added to a ramdisk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// At its end.
    Cpio,
    /// Into a file system, which is not done.
    Ext2,
}

/// A line of a table: of which ramdisk, what is added, and how.
type Entry = (Checksum, String, Kind);

impl Fixups {
    /// The tables of this host, which may have none.
    ///
    /// # Errors
    /// As [`Fixups::read`].
    pub fn of_host() -> Result<Self> {
        Self::read(Path::new(plan::SUPPORT))
    }

    /// The tables in a directory, which need not be there.
    ///
    /// # Errors
    /// [`Error::SupportMissing`] for a table that cannot be read, with the line that is wrong.
    pub fn read(directory: &Path) -> Result<Self> {
        let missing = |what: &Path, why: &dyn std::fmt::Display| {
            Error::SupportMissing(format!("{}: {why}", what.display()))
        };
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(missing(directory, &error)),
        };
        let mut tables = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| missing(directory, &error))?.path();
            if path.extension().is_some_and(|e| e == "map") {
                tables.push(path);
            }
        }
        if tables.len() > TABLES {
            return Err(missing(directory, &format_args!("more than {TABLES} tables")));
        }
        tables.sort();
        let mut known = Vec::new();
        for path in tables {
            let mut text = String::new();
            let file = File::open(&path).map_err(|error| missing(&path, &error))?;
            file.take(TABLE_BYTES).read_to_string(&mut text).map_err(|error| missing(&path, &error))?;
            let entries = table(&text).map_err(|why| missing(&path, &why))?;
            let whole = |(checksum, overlay, kind)| (checksum, directory.join::<String>(overlay), kind);
            known.extend(entries.into_iter().map(whole));
        }
        Ok(Self { known })
    }

    /// Whether there is nothing in any.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Adds to a ramdisk what it lacks, if it is one of those; at most `limit` bytes then.
    ///
    /// # Errors
    /// [`Error::SupportMissing`], [`Error::Limits`].
    pub fn apply(&self, mut ramdisk: &File, checksums: &Checksums, limit: u64) -> Result<()> {
        let Some((_, overlay, kind)) = self.known.iter().find(|(checksum, ..)| checksums.matches(checksum))
        else {
            return Ok(());
        };
        if *kind == Kind::Ext2 {
            let why = "is for a ramdisk of type ext2, which would have to be mounted in dom0";
            return Err(Error::SupportMissing(format!("{}: {why}", overlay.display())));
        }
        let missing =
            |error: std::io::Error| Error::SupportMissing(format!("{}: {error}", overlay.display()));
        let mut added = File::open(overlay).map_err(missing)?;
        let length = ramdisk.seek(SeekFrom::End(0)).map_err(internal)?;
        // Linux looks for the next archive at a multiple of four.
        let padding = length.next_multiple_of(4) - length;
        let whole = length.saturating_add(padding).saturating_add(added.metadata().map_err(missing)?.len());
        if whole > limit {
            return Err(Error::Limits { place: format!("ramdisk with {}", overlay.display()), limit });
        }
        ramdisk.write_all(&[0; 4][..usize::try_from(padding).unwrap_or(0)]).map_err(internal)?;
        std::io::copy(&mut added, &mut ramdisk).map_err(internal)?;
        Ok(())
    }
}

/// The lines of a table.
fn table(text: &str) -> std::result::Result<Vec<Entry>, String> {
    let mut known = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        known.extend(entry(line).map_err(|why| format!("line {number}: {why}"))?);
    }
    Ok(known)
}

/// A table is refused with a line that exists, or names files beside it by checksums that are some; for fuzzing.
pub fn fuzz(text: &str) {
    match table(text) {
        Ok(known) => {
            for (checksum, overlay, _) in known {
                assert!(!overlay.contains('/') && !overlay.starts_with('.') && !overlay.is_empty());
                let (name, digits) = match &checksum {
                    Checksum::Md5(digits) => ("md5", digits),
                    Checksum::Sha256(digits) => ("sha256", digits),
                };
                assert_eq!(Checksum::parse(&format!("{name}:{digits}")), Ok(checksum.clone()));
            }
        }
        Err(why) => {
            let number = why.strip_prefix("line ").and_then(|rest| rest.split(':').next()?.parse().ok());
            assert!(number.is_some_and(|n: usize| (1..=text.lines().count()).contains(&n)), "{why}");
        }
    }
}

/// A line of a table.
fn entry(line: &str) -> std::result::Result<Option<Entry>, String> {
    let line = line.split('#').next().unwrap_or_default();
    let words: Vec<&str> = line.split_whitespace().collect();
    match words.as_slice() {
        [] => Ok(None),
        [_, _, overlay, _, ..] if overlay.contains('/') || overlay.starts_with('.') => {
            Err(format!("{overlay:?} is no name of a file beside the table"))
        }
        [checksum, kind, overlay, _, ..] => {
            let kind = match *kind {
                "cpio" => Kind::Cpio,
                "ext2" => Kind::Ext2,
                other => return Err(format!("type {other:?} is none: they are cpio and ext2")),
            };
            Ok(Some((Checksum::parse(checksum)?, (*overlay).to_owned(), kind)))
        }
        _ => Err("it has not four fields: checksum, type, overlay, ramdisk".to_owned()),
    }
}
