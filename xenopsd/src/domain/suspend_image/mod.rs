//! The suspend image: what a suspended VM is kept in, in the model's format.
//!
//! ```text
//!   "XenSavedDomv2-\n"                                    15 bytes; zeroes until the image is whole
//!   Xenops   length  S-expression: time, word size, VM    each record: type, length (two little-endian 64-bit
//!   Libxc    0       libxenguest's stream, which knows      numbers), then as many bytes
//!                    its own end
//!   Qemu_trad length device model's state                 HVM only; the model's own name for it, whichever QEMU
//!   End      0
//! ```
//!
//! The signature is written last, after everything else has reached the disk: an image that was cut short by a crash
//! is never taken for a whole one.

mod sexp;

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::time::SystemTime;

use crate::api::Vm;
use crate::api::value::ToValue;
use crate::edge::linux::suspend_file::{SIGNATURE, SIGNATURE_BYTES};
pub use sexp::SexpError;

use sexp::Sexp;

/// First bytes of an image from before the format had a version.
const OLD_SIGNATURE: &[u8] = b"XenSavedDomain\n";

/// Longest Xenops record read. Ours is about 2 KiB; a VM with every string of its record full has a few hundred.
const MAX_XENOPS: u64 = 1 << 20;

/// Longest record of another kind: the model limits a device model's state to 1 MiB; firmware variables are smaller.
const MAX_RECORD: u64 = 16 << 20;

/// Most records after the memory: the format has eight kinds.
const MAX_RECORDS: usize = 16;

/// The field of the first record that is there when a guest has asked for its pointer's place.
const ABSOLUTE_POINTER: &str = "absolute_pointer";

/// What a record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum RecordKind {
    /// About the VM.
    Xenops = 0x000f,
    /// Memory and processors.
    Libxc = 0x00f0,
    /// The same from libxl.
    Libxl = 0x00f1,
    /// The same in the format before version 2.
    LibxcLegacy = 0x00f2,
    /// State of the device model. The model calls it that for every QEMU.
    QemuTrad = 0x0f00,
    /// The same under its newer name.
    QemuXen = 0x0f01,
    /// State of a mediated GPU.
    Demu = 0x0f10,
    /// UEFI variables.
    Varstored = 0x0f11,
    /// State of a TPM, in the first form.
    Swtpm0 = 0x0f12,
    /// State of a TPM.
    Swtpm = 0x0f13,
    /// Nothing more.
    End = 0xffff,
}

impl RecordKind {
    const ALL: [Self; 11] = [
        Self::Xenops,
        Self::Libxc,
        Self::Libxl,
        Self::LibxcLegacy,
        Self::QemuTrad,
        Self::QemuXen,
        Self::Demu,
        Self::Varstored,
        Self::Swtpm0,
        Self::Swtpm,
        Self::End,
    ];

    fn of(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u64 == number)
    }
}

/// Why a file is not an image that can be resumed from.
#[derive(Debug, thiserror::Error)]
pub enum SuspendImageError {
    /// It does not begin as one.
    #[error("it is not a suspend image")]
    NotAnImage,
    /// From before the format had a version.
    #[error("it is a suspend image in the old format, which has to be converted first")]
    OldFormat,
    /// Its signature was never written.
    #[error("it was never completed: the daemon or the host stopped while it was being written")]
    Incomplete,
    /// It ends too early.
    #[error("it is cut short: it ends within {0}")]
    Truncated(&'static str),
    /// A record type that this format does not have.
    #[error("it is damaged: a record of the unknown type {0:#x}")]
    UnknownRecord(u64),
    /// A record where it cannot be.
    #[error("it is damaged, or not from this toolstack: a record {found:?} where {wanted} is expected")]
    UnexpectedRecord {
        /// What is there.
        found: RecordKind,
        /// What should be.
        wanted: &'static str,
    },
    /// A record is longer than it can be.
    #[error("it is damaged: a record {kind:?} of {length} bytes, more than {limit}")]
    TooLong {
        /// The record.
        kind: RecordKind,
        /// Its length as it says.
        length: u64,
        /// The limit.
        limit: u64,
    },
    /// There are more records than the format has kinds.
    #[error("it is damaged: more than {MAX_RECORDS} records after the memory")]
    TooMany,
    /// The record about the VM cannot be read.
    #[error("its record about the VM is damaged: {0}")]
    Xenops(#[from] SexpError),
    /// The disk refused.
    #[error("it cannot be read: {0}")]
    Io(#[source] io::Error),
}

/// What the first record tells. Unknown fields are left out, missing ones are `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XenopsRecord {
    /// When it was written, as `20240131T10:20:30Z`.
    pub time: Option<String>,
    /// The VM's id when it was suspended. A copy of the image may be another VM's by now.
    pub vm: Option<String>,
    /// Memory of the domain in bytes; only in our own images.
    pub memory_bytes: Option<u64>,
    /// Processors that the device model emulated for; only in our own images of HVM guests.
    pub emulated_vcpus: Option<usize>,
    /// Whether the guest has asked for its pointer's place, not its moves; only in our own images.
    pub absolute_pointer: bool,
}

/// What a domain has that only its image says later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspended {
    /// Its memory.
    pub memory_bytes: u64,
    /// Processors that its device model emulates for, if it has one.
    pub emulated_vcpus: Option<usize>,
    /// Whether it has asked for its pointer's place.
    pub absolute_pointer: bool,
}

/// The first record's text for a VM.
pub fn xenops_record(vm: &Vm, suspended: &Suspended, now: SystemTime) -> String {
    let Suspended { memory_bytes, emulated_vcpus, absolute_pointer } = suspended;
    let mut fields = vec![
        Sexp::field("time", Sexp::atom(compact_time(now))),
        Sexp::field("word_size", Sexp::atom(usize::BITS.to_string())),
        Sexp::field("vm_str", Sexp::atom(Sexp::of_value(&vm.to_value()).print())),
        Sexp::field("xs_subtree", Sexp::List(Vec::new())),
        Sexp::field("memory_bytes", Sexp::atom(memory_bytes.to_string())),
    ];
    fields.extend(emulated_vcpus.map(|n| Sexp::field("emulated_vcpus", Sexp::atom(n.to_string()))));
    fields.extend(absolute_pointer.then(|| Sexp::field(ABSOLUTE_POINTER, Sexp::atom("1"))));
    Sexp::List(fields).print()
}

impl XenopsRecord {
    fn parse(text: &[u8]) -> Result<Self, SexpError> {
        let sexp = Sexp::parse(text)?;
        let field = |name: &str| sexp.get(name).and_then(Sexp::as_str);
        let vm = field("vm_str").and_then(|vm| Sexp::parse(vm.as_bytes()).ok());
        Ok(Self {
            time: field("time").map(str::to_owned),
            vm: vm.as_ref().and_then(|vm| vm.get("id")?.as_str()).map(str::to_owned),
            memory_bytes: field("memory_bytes").and_then(|n| n.parse().ok()),
            emulated_vcpus: field("emulated_vcpus").and_then(|n| n.parse().ok()),
            absolute_pointer: field(ABSOLUTE_POINTER) == Some("1"),
        })
    }
}

/// An image being written.
#[derive(Debug)]
pub struct ImageWriter<W>(W);

impl<W: Write + Seek> ImageWriter<W> {
    /// Begins an image at the start of `out`, up to where the memory stream goes.
    ///
    /// # Errors
    /// As the disk's.
    pub fn begin(mut out: W, xenops: &str) -> io::Result<Self> {
        out.seek(SeekFrom::Start(0))?;
        out.write_all(&[0; SIGNATURE_BYTES])?;
        let mut writer = Self(out);
        writer.record(RecordKind::Xenops, xenops.as_bytes())?;
        writer.header(RecordKind::Libxc, 0)?;
        Ok(writer)
    }

    /// Adds a record after the memory.
    ///
    /// # Errors
    /// As the disk's.
    pub fn record(&mut self, kind: RecordKind, body: &[u8]) -> io::Result<()> {
        self.header(kind, body.len() as u64)?;
        self.0.write_all(body)
    }

    /// Writes the end record and returns the disk, to be flushed and then given to [`seal`].
    ///
    /// # Errors
    /// As the disk's.
    pub fn end(mut self) -> io::Result<W> {
        self.header(RecordKind::End, 0)?;
        Ok(self.0)
    }

    fn header(&mut self, kind: RecordKind, length: u64) -> io::Result<()> {
        let mut header = [0; 16];
        header[..8].copy_from_slice(&(kind as u64).to_le_bytes());
        header[8..].copy_from_slice(&length.to_le_bytes());
        self.0.write_all(&header)
    }
}

/// Makes a complete image valid; everything else has reached the disk before.
///
/// # Errors
/// As the disk's.
pub fn seal<W: Write + Seek>(mut out: W) -> io::Result<()> {
    out.seek(SeekFrom::Start(0))?;
    out.write_all(SIGNATURE)
}

/// Takes [`seal`] back.
///
/// # Errors
/// As the disk's.
pub fn unseal<W: Write + Seek>(mut out: W) -> io::Result<()> {
    out.seek(SeekFrom::Start(0))?;
    out.write_all(&[0; SIGNATURE_BYTES])
}

/// An image being read.
#[derive(Debug)]
pub struct ImageReader<R>(R);

impl<R: Read> ImageReader<R> {
    /// Reads up to where the memory stream begins, and not a byte further.
    ///
    /// # Errors
    /// [`SuspendImageError`].
    pub fn open(source: R) -> Result<(Self, XenopsRecord), SuspendImageError> {
        let mut reader = Self(source);
        let mut signature = [0; SIGNATURE_BYTES];
        reader.exact(&mut signature, "its first bytes").map_err(|error| match error {
            SuspendImageError::Truncated(_) => SuspendImageError::NotAnImage,
            other => other,
        })?;
        match &signature {
            SIGNATURE => {}
            other if &other[..] == OLD_SIGNATURE => return Err(SuspendImageError::OldFormat),
            [0, ..] if signature.iter().all(|b| *b == 0) => return Err(SuspendImageError::Incomplete),
            _ => return Err(SuspendImageError::NotAnImage),
        }
        let xenops = match reader.header()? {
            (RecordKind::Xenops, length) => reader.body(RecordKind::Xenops, length, MAX_XENOPS)?,
            (found, _) => {
                return Err(SuspendImageError::UnexpectedRecord { found, wanted: "the record about the VM" });
            }
        };
        let xenops = XenopsRecord::parse(&xenops)?;
        match reader.header()? {
            (RecordKind::Libxc, _) => Ok((reader, xenops)),
            (found, _) => Err(SuspendImageError::UnexpectedRecord { found, wanted: "the memory" }),
        }
    }

    /// Reads the records after the memory stream, to the end.
    ///
    /// # Errors
    /// [`SuspendImageError`].
    pub fn rest(&mut self) -> Result<Vec<(RecordKind, Vec<u8>)>, SuspendImageError> {
        let mut records = Vec::new();
        loop {
            match self.header()? {
                (RecordKind::End, _) => return Ok(records),
                (found @ (RecordKind::Xenops | RecordKind::Libxc | RecordKind::Libxl), _) => {
                    return Err(SuspendImageError::UnexpectedRecord { found, wanted: "a device's state" });
                }
                _ if records.len() == MAX_RECORDS => return Err(SuspendImageError::TooMany),
                (kind, length) => records.push((kind, self.body(kind, length, MAX_RECORD)?)),
            }
        }
    }

    fn header(&mut self) -> Result<(RecordKind, u64), SuspendImageError> {
        let mut number = || {
            let mut bytes = [0; 8];
            self.exact(&mut bytes, "a record's header").map(|()| u64::from_le_bytes(bytes))
        };
        let (kind, length) = (number()?, number()?);
        let kind = RecordKind::of(kind).ok_or(SuspendImageError::UnknownRecord(kind))?;
        Ok((kind, length))
    }

    fn body(&mut self, kind: RecordKind, length: u64, limit: u64) -> Result<Vec<u8>, SuspendImageError> {
        let too_long = || SuspendImageError::TooLong { kind, length, limit };
        if length > limit {
            return Err(too_long());
        }
        // As much as is there, not as much as it says.
        let mut body = Vec::new();
        let read = (&mut self.0).take(length).read_to_end(&mut body).map_err(SuspendImageError::Io)?;
        if read as u64 == length { Ok(body) } else { Err(SuspendImageError::Truncated("a record")) }
    }

    fn exact(&mut self, bytes: &mut [u8], within: &'static str) -> Result<(), SuspendImageError> {
        self.0.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => SuspendImageError::Truncated(within),
            _ => SuspendImageError::Io(error),
        })
    }
}

/// `20240131T10:20:30Z`.
fn compact_time(time: SystemTime) -> String {
    const DAY: u64 = 86_400;
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (year, month, day) = date(seconds / DAY);
    let (hour, minute, second) = (seconds % DAY / 3600, seconds % 3600 / 60, seconds % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// The Gregorian date of a day counted from 1970-01-01, in years that begin in March so that the leap day is the last.
fn date(days: u64) -> (u64, u64, u64) {
    const DAYS_TO_1970: u64 = 719_468; // from 0000-03-01
    const CYCLE: u64 = 146_097; // days of 400 years
    let days = days + DAYS_TO_1970;
    let (cycle, day) = (days / CYCLE, days % CYCLE);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = cycle * 400 + year + u64::from(month >= 10);
    (year, if month < 10 { month + 3 } else { month - 9 }, day)
}

#[cfg(test)]
mod tests;
