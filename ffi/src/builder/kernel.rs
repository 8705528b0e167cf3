//! What a file that should be a kernel is, by its headers alone: safe code over hostile bytes.
//!
//! A Xen kernel is an ELF file with notes named "Xen" (`xen/elfnote.h`); they say at which address it can be
//! entered as a PV and as a PVH guest. Linux's file is a bzImage: a real-mode stub with a packed ELF file inside.

use std::fmt;

/// ELF note types of `xen/elfnote.h`.
const NOTE_ENTRY: u32 = 1;
const NOTE_XEN_VERSION: u32 = 5;
const NOTE_GUEST_OS: u32 = 6;
const NOTE_FEATURES: u32 = 10;
const NOTE_SUPPORTED_FEATURES: u32 = 17;
const NOTE_PHYS32_ENTRY: u32 = 18;

/// `XENFEAT_linux_rsdp_unrestricted`, as a bit of the supported features and as a word of the features.
const RSDP_FEATURE_BIT: u8 = 1 << (15 - 8);
const RSDP_FEATURE_NAME: &[u8] = b"linux_rsdp_unrestricted";

/// `p_type` and `sh_type` of notes.
const PT_NOTE: u32 = 4;
const SHT_NOTE: u32 = 7;
/// Note areas looked at. Linux has two or three; the bound keeps overlapping ones from costing time.
const MAX_NOTE_AREAS: usize = 32;
/// Notes looked at in one area.
const MAX_NOTES: usize = 512;

/// Offset of "HdrS" in a bzImage (Linux boot protocol).
const BZIMAGE_MAGIC_AT: usize = 0x202;

/// What a kernel file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KernelKind {
    /// No bytes.
    Empty,
    /// An ELF file.
    Elf(ElfKernel),
    /// A Linux bzImage: what is packed in it shows only after unpacking.
    BzImage,
    /// Something compressed with gzip.
    Gzip,
    /// None of these.
    Unknown,
}

/// An ELF kernel and how it can be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ElfKernel {
    /// 64-bit code.
    pub is_64bit: bool,
    /// It carries Xen's notes at all.
    pub xen_notes: bool,
    /// It can start as a PV guest: it has a PV entry point, or it has notes and is not the sort of kernel that would
    /// have left the entry note out for lack of PV support (Linux, or any with only a PVH entry).
    pub pv: bool,
    /// It can start as a PVH guest.
    pub pvh: bool,
    /// Its notes name Linux as the guest's system.
    pub linux: bool,
    /// As a PVH guest it finds the ACPI root pointer anywhere; other Linux looks below 1 MiB only.
    pub rsdp_anywhere: bool,
}

impl fmt::Display for KernelKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty file",
            Self::Elf(ElfKernel { xen_notes: false, .. }) => "an ELF file without Xen notes",
            Self::Elf(_) => "an ELF file with Xen notes",
            Self::BzImage => "a Linux bzImage",
            Self::Gzip => "a gzip file",
            Self::Unknown => "neither an ELF file, nor a bzImage, nor compressed with gzip",
        })
    }
}

/// Looks at a kernel's headers. Never fails: what cannot be read is [`KernelKind::Unknown`].
pub fn probe_kernel(file: &[u8]) -> KernelKind {
    if file.is_empty() {
        KernelKind::Empty
    } else if file.starts_with(b"\x7fELF") {
        Elf::new(file).map_or(KernelKind::Unknown, |elf| KernelKind::Elf(elf.kernel()))
    } else if file.get(BZIMAGE_MAGIC_AT..).is_some_and(|rest| rest.starts_with(b"HdrS")) {
        KernelKind::BzImage
    } else if file.starts_with(&[0x1f, 0x8b]) {
        KernelKind::Gzip
    } else {
        KernelKind::Unknown
    }
}

/// A little-endian ELF file of either width.
pub(super) struct Elf<'a> {
    file: &'a [u8],
    is_64bit: bool,
}

/// A table of headers in the file.
pub(super) struct Table {
    pub(super) at: u64,
    pub(super) entry_size: u64,
    pub(super) entries: u64,
}

/// The fields of a segment's or section's header that matter here.
struct Header {
    kind: u32,
    at: u64,
    size: u64,
}

impl<'a> Elf<'a> {
    pub(super) fn new(file: &'a [u8]) -> Option<Self> {
        let is_64bit = match file.get(4)? {
            1 => false,
            2 => true,
            _ => return None,
        };
        // x86 is little-endian (EI_DATA 1).
        (*file.get(5)? == 1).then_some(Self { file, is_64bit })
    }

    pub(super) const fn is_64bit(&self) -> bool {
        self.is_64bit
    }

    fn kernel(&self) -> ElfKernel {
        let mut found = Notes::default();
        for area in self.note_areas() {
            found.read(area);
        }
        let linux = found.linux;
        ElfKernel {
            is_64bit: self.is_64bit,
            xen_notes: found.any,
            pv: found.entry || (found.version && !found.phys32 && !linux),
            pvh: found.phys32,
            linux,
            rsdp_anywhere: !linux || found.rsdp_anywhere,
        }
    }

    /// The bytes of the note segments or, in a file without them, of the note sections.
    fn note_areas(&self) -> Vec<&'a [u8]> {
        let segments = self.segments().map(|table| self.areas(&table, PT_NOTE, Self::segment));
        match segments {
            Some(areas) if !areas.is_empty() => areas,
            _ => self.sections().map(|t| self.areas(&t, SHT_NOTE, Self::section)).unwrap_or_default(),
        }
    }

    fn areas(&self, table: &Table, wanted: u32, header: fn(&Self, u64) -> Option<Header>) -> Vec<&'a [u8]> {
        (0..table.entries)
            .map_while(|i| header(self, i.checked_mul(table.entry_size)?.checked_add(table.at)?))
            .filter(|header| header.kind == wanted)
            .filter_map(|header| self.bytes(header.at, header.size))
            .take(MAX_NOTE_AREAS)
            .collect()
    }

    pub(super) fn segments(&self) -> Option<Table> {
        let (at, size, count) = if self.is_64bit {
            (self.u64(0x20)?, self.u16(0x36)?, self.u16(0x38)?)
        } else {
            (u64::from(self.u32(0x1C)?), self.u16(0x2A)?, self.u16(0x2C)?)
        };
        Some(Table { at, entry_size: u64::from(size), entries: u64::from(count) })
    }

    fn sections(&self) -> Option<Table> {
        let (at, size, count) = if self.is_64bit {
            (self.u64(0x28)?, self.u16(0x3A)?, self.u16(0x3C)?)
        } else {
            (u64::from(self.u32(0x20)?), self.u16(0x2E)?, self.u16(0x30)?)
        };
        Some(Table { at, entry_size: u64::from(size), entries: u64::from(count) })
    }

    /// The segment whose header is at `at`.
    fn segment(&self, at: u64) -> Option<Header> {
        let kind = self.u32(at)?;
        Some(if self.is_64bit {
            Header { kind, at: self.u64(at + 0x08)?, size: self.u64(at + 0x20)? }
        } else {
            Header { kind, at: self.u32(at + 0x04)?.into(), size: self.u32(at + 0x10)?.into() }
        })
    }

    /// The section whose header is at `at`.
    fn section(&self, at: u64) -> Option<Header> {
        self.u32(at)?;
        let kind = self.u32(at + 0x04)?;
        Some(if self.is_64bit {
            Header { kind, at: self.u64(at + 0x18)?, size: self.u64(at + 0x20)? }
        } else {
            Header { kind, at: self.u32(at + 0x10)?.into(), size: self.u32(at + 0x14)?.into() }
        })
    }

    /// Also what makes the sums above safe: a header that starts inside the file ends far from `u64::MAX`.
    fn bytes(&self, at: u64, size: u64) -> Option<&'a [u8]> {
        let at = usize::try_from(at).ok()?;
        self.file.get(at..at.checked_add(usize::try_from(size).ok()?)?)
    }

    fn array<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        self.bytes(at, N as u64)?.try_into().ok()
    }

    fn u16(&self, at: u64) -> Option<u16> {
        self.array(at).map(u16::from_le_bytes)
    }

    pub(super) fn u32(&self, at: u64) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&self, at: u64) -> Option<u64> {
        self.array(at).map(u64::from_le_bytes)
    }
}

/// Which of Xen's notes a kernel has.
#[derive(Debug, Default)]
struct Notes {
    any: bool,
    entry: bool,
    version: bool,
    phys32: bool,
    linux: bool,
    rsdp_anywhere: bool,
}

impl Notes {
    /// Reads an area of notes: name size, value size, type (u32 each), name and value padded to four bytes.
    fn read(&mut self, mut area: &[u8]) {
        for _ in 0..MAX_NOTES {
            let Some((note, rest)) = Note::split_first(area) else { return };
            if note.name == b"Xen\0" {
                self.note(note.kind, note.value);
            }
            area = rest;
        }
    }

    fn note(&mut self, kind: u32, value: &[u8]) {
        self.any = true;
        match kind {
            NOTE_ENTRY => self.entry = true,
            NOTE_XEN_VERSION => self.version = true,
            NOTE_PHYS32_ENTRY => self.phys32 = true,
            NOTE_FEATURES => self.rsdp_anywhere |= has_feature(value),
            NOTE_SUPPORTED_FEATURES => {
                self.rsdp_anywhere |= value.get(1).is_some_and(|byte| byte & RSDP_FEATURE_BIT != 0);
            }
            NOTE_GUEST_OS => self.linux = value.strip_suffix(b"\0").unwrap_or(value) == b"linux",
            _ => {}
        }
    }
}

/// Whether the names, separated by bars and with a mark before required ones, include the RSDP's.
fn has_feature(names: &[u8]) -> bool {
    names
        .split(|byte| matches!(byte, b'|' | 0))
        .any(|name| name.strip_prefix(b"!").unwrap_or(name) == RSDP_FEATURE_NAME)
}

/// One note.
struct Note<'a> {
    name: &'a [u8],
    kind: u32,
    value: &'a [u8],
}

impl<'a> Note<'a> {
    /// The first note of an area, and what follows it.
    fn split_first(area: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (name_size, rest) = split_word(area)?;
        let (value_size, rest) = split_word(rest)?;
        let (kind, rest) = split_word(rest)?;
        let (name, rest) = split_padded(rest, name_size)?;
        let (value, rest) = split_padded(rest, value_size)?;
        Some((Self { name, kind, value }, rest))
    }
}

fn split_word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (word, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*word), rest))
}

/// The first `size` bytes, and what follows their padding to four. The last note's padding may be missing.
fn split_padded(bytes: &[u8], size: u32) -> Option<(&[u8], &[u8])> {
    let size = size as usize;
    let value = bytes.get(..size)?;
    Some((value, bytes.get(size.checked_next_multiple_of(4)?..).unwrap_or_default()))
}
