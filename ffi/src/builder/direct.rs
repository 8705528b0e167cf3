//! A kernel read from its file straight into the guest's memory.
//!
//! libxenguest copies a kernel from one place of dom0's memory to another, so that the file has to be mapped. In a dom0
//! that is a PV guest itself every page of a mapping costs work in the hypervisor, when it comes and when it goes: for
//! the 60 MB of an unpacked Linux kernel that is more than all the rest of a small guest's build. So libxenguest is
//! shown a view of the file whose loadable segments have nothing to copy, and lays out the guest by it; the segments are
//! then read into their places.
//!
//! ```text
//!   file ──► view: nothing in the file for any segment, no length but for the end of the one that ends last
//!     │        └──► xc_dom_parse_image, xc_dom_build_image: the same layout; nothing written but that end's zeros
//!     └───────────► pread ──► each segment's place in the guest; zeros behind what the file has of it
//! ```
//!
//! The layout follows from the lowest address of a segment and from the highest end of one. So the segment that ends last
//! is shown as if it began behind what the file has of it: for Linux, whose file has all of it, that is 25 MB that are not
//! zeroed only to be written over.
//!
//! Only headers that leave no doubt are treated so: all others, and kernels that have to be unpacked first, are loaded
//! by libxenguest alone.

use std::ops::Range;

use super::kernel::Elf;
use crate::linux::mapped::{MappedFile, PrivateCopy};

/// `p_type` of what is to be loaded.
const PT_LOAD: u32 = 1;
/// libxenguest loads only what can be written or executed (`PF_X | PF_W`).
const LOADABLE: u32 = 1 | 2;
/// Bytes of a segment's header in a 64-bit file, and where its fields are.
const HEADER: u64 = 56;
const FLAGS: u64 = 4;
const OFFSET: u64 = 8;
const ADDRESS: u64 = 24;
const FILE_SIZE: u64 = 32;
const MEMORY_SIZE: u64 = 40;
/// Most segments looked at. Linux has five.
const MAX_SEGMENTS: u64 = 64;
/// Below this it does not matter how the kernel gets there, in bytes.
const WORTHWHILE: u64 = 1 << 20;

/// A segment to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// Where its header is in the file.
    header: usize,
    /// Where its bytes are in the file, and how many.
    pub(super) file: Range<u64>,
    /// Where it goes, in bytes from the lowest segment's beginning.
    pub(super) place: Range<usize>,
    /// How it is shown, which says who zeroes what the file has not of it.
    shown: Shown,
}

/// A segment in the view. Nothing of any is in the file there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// At its address and without length: its zeros are ours.
    Empty,
    /// As its zeros alone, at the address that they begin at.
    Zeros(u64),
    /// At its address with its whole length, all of which libxenguest zeroes: where the layout begins and ends with it.
    Whole,
}

/// What libxenguest is shown in place of a kernel's file.
#[derive(Debug)]
pub(super) struct View<'a> {
    bytes: PrivateCopy<'a>,
    segments: Vec<Segment>,
    file: &'a MappedFile,
}

impl<'a> View<'a> {
    /// None for a kernel that libxenguest is to load by itself.
    pub(super) fn of(file: &'a MappedFile) -> Option<Self> {
        let segments = segments(file)?;
        let mut bytes = match file.private_copy() {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::debug!(%error, "the kernel is loaded through a mapping");
                return None;
            }
        };
        for segment in &segments {
            segment.hide(&mut bytes);
        }
        Some(Self { bytes, segments, file })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    pub(super) const fn file(&self) -> &'a MappedFile {
        self.file
    }
}

impl Segment {
    /// Whether libxenguest zeroes what the file has not of it.
    pub(super) const fn zeroed(&self) -> bool {
        !matches!(self.shown, Shown::Empty)
    }

    /// Takes its contents out of its header. The place of a segment without length still counts for the layout.
    fn hide(&self, file: &mut [u8]) {
        let mut set = |field: u64, value: u64| {
            let at = self.header + usize::try_from(field).unwrap_or(usize::MAX);
            if let Some(place) = file.get_mut(at..at + size_of::<u64>()) {
                place.copy_from_slice(&value.to_le_bytes());
            }
        };
        set(FILE_SIZE, 0);
        match self.shown {
            Shown::Empty => set(MEMORY_SIZE, 0),
            Shown::Zeros(address) => {
                set(ADDRESS, address);
                set(MEMORY_SIZE, self.place.len() as u64 - (self.file.end - self.file.start));
            }
            Shown::Whole => {}
        }
    }
}

/// The segments of a 64-bit ELF file in the order of their headers; none when any of them is not as it should be: out of
/// the file, larger there than in memory, in another's place.
fn segments(bytes: &[u8]) -> Option<Vec<Segment>> {
    let elf = bytes.starts_with(b"\x7fELF").then(|| Elf::new(bytes))??;
    let table = elf.segments()?;
    if !elf.is_64bit() || table.entry_size != HEADER || table.entries > MAX_SEGMENTS {
        return None;
    }
    let mut found = Vec::new();
    for number in 0..table.entries {
        let at = table.at.checked_add(number * HEADER)?;
        if elf.u32(at)? != PT_LOAD || elf.u32(at + FLAGS)? & LOADABLE == 0 {
            continue;
        }
        let field = |field: u64| elf.u64(at.checked_add(field)?);
        let (offset, address) = (field(OFFSET)?, field(ADDRESS)?);
        let (file_size, memory_size) = (field(FILE_SIZE)?, field(MEMORY_SIZE)?);
        let file = offset..offset.checked_add(file_size)?;
        if file.end > bytes.len() as u64 || file_size > memory_size {
            return None;
        }
        found.push((usize::try_from(at).ok()?, file, address..address.checked_add(memory_size)?));
    }
    let low = found.iter().map(|(_, _, place)| place.start).min()?;
    let high = found.iter().map(|(_, _, place)| place.end).max()?;
    let apart = |a: &Range<u64>, b: &Range<u64>| a.end <= b.start || b.end <= a.start;
    let pairs = found.iter().enumerate().flat_map(|(i, a)| found[i + 1..].iter().map(move |b| (&a.2, &b.2)));
    let total: u64 = found.iter().map(|(_, file, _)| file.end - file.start).sum();
    if pairs.into_iter().any(|(a, b)| !apart(a, b)) || total < WORTHWHILE {
        return None;
    }
    let segment = |(header, file, place): (usize, Range<u64>, Range<u64>)| {
        let shown = match (place.end == high, place.start == low) {
            (false, _) => Shown::Empty,
            (true, false) => Shown::Zeros(place.start + (file.end - file.start)),
            (true, true) => Shown::Whole,
        };
        let place = usize::try_from(place.start - low).ok()?..usize::try_from(place.end - low).ok()?;
        Some(Segment { header, file, place, shown })
    };
    found.into_iter().map(segment).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Header number, type and flags, range in the file, address, length in memory.
    type Load = (u32, u32, Range<u64>, u64, u64);

    const MIB: u64 = 1 << 20;

    fn elf(loads: &[Load]) -> Vec<u8> {
        let mut file: Vec<u8> = (0..3 * MIB).map(|n| u8::try_from(n % 251).unwrap() | 1).collect();
        let mut put = |at: u64, value: &[u8]| {
            let at = usize::try_from(at).unwrap();
            file[at..at + value.len()].copy_from_slice(value);
        };
        put(0, b"\x7fELF\x02\x01\x01\0");
        put(0x20, &64_u64.to_le_bytes());
        put(0x36, &56_u16.to_le_bytes());
        put(0x38, &u16::try_from(loads.len()).unwrap().to_le_bytes());
        for (at, (kind, flags, range, address, length)) in (64..).step_by(56).zip(loads) {
            put(at, &kind.to_le_bytes());
            put(at + FLAGS, &flags.to_le_bytes());
            let size = range.end - range.start;
            let fields =
                [(OFFSET, range.start), (ADDRESS, *address), (FILE_SIZE, size), (MEMORY_SIZE, *length)];
            for (field, value) in fields {
                put(at + field, &value.to_le_bytes());
            }
        }
        file
    }

    /// As Linux has it: code, data, per-processor data elsewhere in the file, and what is freed after the start with the
    /// zeroed data behind it.
    fn linux() -> Vec<Load> {
        vec![
            (PT_LOAD, 5, 4096..MIB, 0x100_0000, MIB),
            (PT_LOAD, 6, 2 * MIB..2 * MIB + 5000, 0x120_0000, 9000),
            (4, 4, 100..200, 0, 0),
            (PT_LOAD, 4, 0..16, 0x500_0000, 16),
            (PT_LOAD, 7, MIB..2 * MIB, 0x130_0000, 2 * MIB + 77),
        ]
    }

    /// What libxenguest does with the headers.
    fn load(file: &[u8], low: u64, memory: &mut [u8]) {
        let elf = Elf::new(file).unwrap();
        for at in (64..).step_by(56).take(usize::from(file[0x38])) {
            if elf.u32(at).unwrap() != PT_LOAD || elf.u32(at + FLAGS).unwrap() & LOADABLE == 0 {
                continue;
            }
            let field = |field| usize::try_from(elf.u64(at + field).unwrap()).unwrap();
            let (offset, size) = (field(OFFSET), field(FILE_SIZE));
            let place = &mut memory[field(ADDRESS) - usize::try_from(low).unwrap()..][..field(MEMORY_SIZE)];
            place[..size].copy_from_slice(&file[offset..offset + size]);
            place[size..].fill(0);
        }
    }

    #[test]
    fn view_and_segments_make_what_the_file_does() {
        let shown = |loads: &[Load]| made_by_both(loads).iter().map(|s| s.shown).collect::<Vec<_>>();
        let zeros = Shown::Zeros(0x130_0000 + MIB);
        assert_eq!(shown(&linux()), [Shown::Empty, Shown::Empty, zeros]);
        // All of the last one is in the file, as Debian's kernels have it.
        let mut whole = linux();
        whole[4].4 = MIB;
        assert_eq!(shown(&whole), [Shown::Empty, Shown::Empty, zeros]);
        assert_eq!(shown(&[(PT_LOAD, 7, 0..2 * MIB, 0x100_0000, 3 * MIB + 5)]), [Shown::Whole]);
        let mut backwards = linux();
        backwards.swap(0, 4);
        assert_eq!(shown(&backwards), [zeros, Shown::Empty, Shown::Empty]);
    }

    #[test]
    fn libxenguest_writes_nothing_that_is_written_again() {
        let file = elf(&linux());
        let mut view = file.clone();
        segments(&file).unwrap().iter().for_each(|segment| segment.hide(&mut view));
        let mut memory = vec![0xaa; 6 << 20];
        load(&view, 0x100_0000, &mut memory);
        let zeros = 4 << 20..(5 << 20) + 77;
        assert!(memory[zeros.clone()].iter().all(|byte| *byte == 0));
        assert!(memory[..zeros.start].iter().chain(&memory[zeros.end..]).all(|byte| *byte == 0xaa));
    }

    /// Loads a kernel as libxenguest alone does, and as it does with us.
    fn made_by_both(loads: &[Load]) -> Vec<Segment> {
        let file = elf(loads);
        let segments = segments(&file).unwrap();
        let mut expected = vec![0xaa; 6 << 20];
        load(&file, 0x100_0000, &mut expected);
        let mut view = file.clone();
        for segment in &segments {
            segment.hide(&mut view);
        }
        let mut memory = vec![0xaa; 6 << 20];
        load(&view, 0x100_0000, &mut memory);
        for segment in &segments {
            let range =
                usize::try_from(segment.file.start).unwrap()..usize::try_from(segment.file.end).unwrap();
            let place = &mut memory[segment.place.clone()];
            let (read, rest) = place.split_at_mut(range.len());
            read.copy_from_slice(&file[range]);
            if !segment.zeroed() {
                rest.fill(0);
            }
        }
        assert!(memory == expected, "the guest's memory differs");
        segments
    }

    #[test]
    fn only_headers_are_changed_and_the_layout_is_not() {
        let file = elf(&linux());
        let mut view = file.clone();
        for segment in segments(&file).unwrap() {
            segment.hide(&mut view);
        }
        assert!(view[64 + 5 * 56..] == file[64 + 5 * 56..]);
        let (before, after) = (Elf::new(&file).unwrap(), Elf::new(&view).unwrap());
        let last = 64 + 4 * 56;
        for at in (64..last).step_by(56) {
            assert_eq!(before.u64(at + ADDRESS), after.u64(at + ADDRESS));
        }
        let end = |elf: &Elf<'_>| elf.u64(last + ADDRESS).unwrap() + elf.u64(last + MEMORY_SIZE).unwrap();
        assert_eq!(end(&before), end(&after));
        assert_eq!(after.u64(last + FILE_SIZE), Some(0));
    }

    #[test]
    fn doubtful_kernels_are_left_to_libxenguest() {
        assert!(segments(&elf(&linux())).is_some());
        let changed = |change: fn(&mut Vec<Load>)| {
            let mut loads = linux();
            change(&mut loads);
            segments(&elf(&loads))
        };
        assert_eq!(changed(|l| l[0].2 = 0..4 * MIB), None, "beyond the end of the file");
        assert_eq!(changed(|l| l[0].4 = 10), None, "larger in the file than in memory");
        assert_eq!(changed(|l| l[1].3 = 0x10f_ffff), None, "in the place of another");
        assert_eq!(changed(|l| l[4].3 = u64::MAX - 5), None, "beyond the end of all addresses");
        assert_eq!(changed(|l| l.iter_mut().for_each(|l| l.2 = 0..10)), None, "too small to matter");
        assert_eq!(changed(Vec::clear), None, "nothing to load");
        let mut narrow = elf(&linux());
        narrow[4] = 1;
        assert_eq!(segments(&narrow), None, "32-bit");
        assert_eq!(segments(b"\x1f\x8b"), None);
        assert_eq!(segments(b"\x7fELF"), None);
    }
}
