//! What a guest says of its frame buffer: its size, how its pixels are laid out, and which pages it is in.

use ffi::shared::{PAGE_SIZE, SharedError};

use super::shared::Shared;

/// Most pixels of a side, and of all: 2560x1600 fit. A viewer's update of all of them is 16 MiB.
pub const MAX_SIDE: u16 = 4096;
const MAX_PIXELS: usize = 2560 * 1600;

/// Most bytes of a frame buffer: the most pixels of four bytes each.
const MAX_MEMORY: usize = MAX_PIXELS * 4;

/// Offsets in the shared page (`struct xenfb_page`): width and height in pixels, bytes of a row, bytes of all, bits of a
/// pixel.
const WIDTH: usize = 16;
const HEIGHT: usize = 20;
const LINE_LENGTH: usize = 24;
const MEMORY_LENGTH: usize = 28;
const DEPTH: usize = 32;

/// The rings begin here: the directory of a frame buffer within the limits ends long before.
const DIRECTORY_END: usize = 1024;

/// How long the guest's `unsigned long` is, which its directory is made of (`xen/io/protocols.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abi {
    /// `x86_32-abi`.
    Bits32,
    /// `x86_64-abi`, and what a guest that says nothing has.
    Bits64,
}

impl Abi {
    const fn word(self) -> usize {
        match self {
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }

    /// The page's directory: it follows the depth at the next multiple of a word.
    const fn directory(self) -> usize {
        (DEPTH + 1).next_multiple_of(self.word())
    }

    fn numbers(self, bytes: &[u8]) -> Vec<u64> {
        let number = |word: &[u8]| word.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
        bytes.chunks_exact(self.word()).map(number).collect()
    }
}

/// Why a frame buffer cannot be shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DescribedError {
    /// A side of it.
    #[error(
        "the guest's frame buffer is said to be {width}x{height} pixels; 1x1 to 2560x1600 of them are shown"
    )]
    Size {
        /// As the guest has it.
        width: i32,
        /// As the guest has it.
        height: i32,
    },
    /// Pixels that are not known.
    #[error("the guest's frame buffer is said to have pixels of {0} bits; 8, 16, 24 and 32 are shown")]
    Depth(i64),
    /// Its rows do not fit.
    #[error("rows of {stride} bytes from byte {offset} on do not fit a frame buffer of {memory} bytes")]
    Rows {
        /// Bytes from one row to the next.
        stride: i64,
        /// Where the first begins.
        offset: i64,
        /// Bytes there are.
        memory: usize,
    },
    /// It is too large, or empty.
    #[error("the guest's frame buffer is said to be {0} bytes; 1 to {MAX_MEMORY} are shown")]
    Memory(u32),
    /// The page is not one.
    #[error(transparent)]
    Page(#[from] SharedError),
}

/// How pixels are laid out, checked: every row is inside of the memory that it was checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// In pixels.
    pub width: u16,
    /// In pixels.
    pub height: u16,
    /// Bytes of a pixel: 1 (3, 3 and 2 bits of red, green and blue), 2 (5, 6, 5), 3 or 4 (8 each).
    pub bytes: usize,
    stride: usize,
    offset: usize,
}

impl Geometry {
    /// What a guest says, checked against the bytes that there are.
    ///
    /// # Errors
    /// [`DescribedError`].
    pub fn checked(said: &Said, memory: usize) -> Result<Self, DescribedError> {
        let side = |pixels: i32| u16::try_from(pixels).ok().filter(|pixels| (1..=MAX_SIDE).contains(pixels));
        let size = DescribedError::Size { width: said.width, height: said.height };
        let (Some(width), Some(height)) = (side(said.width), side(said.height)) else { return Err(size) };
        if usize::from(width) * usize::from(height) > MAX_PIXELS {
            return Err(size);
        }
        let bytes = match said.depth {
            8 | 16 | 24 | 32 => usize::try_from(said.depth / 8).unwrap_or(4),
            other => return Err(DescribedError::Depth(other)),
        };
        let rows = DescribedError::Rows { stride: said.stride, offset: said.offset, memory };
        let row = usize::from(width) * bytes;
        let number = |said: i64| usize::try_from(said).ok();
        let (Some(stride), Some(offset)) = (number(said.stride), number(said.offset)) else {
            return Err(rows);
        };
        let end = stride.checked_mul(usize::from(height) - 1).and_then(|last| last.checked_add(row));
        let end = end.and_then(|end| end.checked_add(offset));
        if stride < row || end.is_none_or(|end| end > memory) {
            return Err(rows);
        }
        Ok(Self { width, height, bytes, stride, offset })
    }

    /// Bytes of all pixels.
    pub fn screen(&self) -> usize {
        usize::from(self.width) * usize::from(self.height) * self.bytes
    }

    /// Where a pixel begins.
    pub(super) fn at(&self, x: usize, y: usize) -> usize {
        self.offset + y * self.stride + x * self.bytes
    }

    /// 0xRRGGBB of a pixel's bytes, of which there are as many as a pixel has.
    pub(super) fn colour(pixel: &[u8]) -> u32 {
        // Bits of less than eight are spread over all eight, so that the most is white.
        let spread = |value: u32, bits: u32| (value & ((1 << bits) - 1)) * 255 / ((1 << bits) - 1);
        let rgb = |red, green, blue| red << 16 | green << 8 | blue;
        match *pixel {
            [a] => {
                let a = u32::from(a);
                rgb(spread(a >> 5, 3), spread(a >> 2, 3), spread(a, 2))
            }
            [a, b] => {
                let a = u32::from(u16::from_le_bytes([a, b]));
                rgb(spread(a >> 11, 5), spread(a >> 5, 6), spread(a, 5))
            }
            [blue, green, red, ..] => rgb(u32::from(red), u32::from(green), u32::from(blue)),
            [] => 0,
        }
    }
}

/// What a guest says of its pixels, in the page or in an event: nothing is checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// In pixels.
    pub width: i32,
    /// In pixels.
    pub height: i32,
    /// Bytes from one row to the next.
    pub stride: i64,
    /// Bits of a pixel.
    pub depth: i64,
    /// Where the first row begins.
    pub offset: i64,
}

/// A frame buffer as its page describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// How pixels are laid out.
    pub geometry: Geometry,
    /// Frame numbers of the pages that list its own: one for each 512 or 1024 of them.
    pub directory: Vec<u64>,
    /// Its pages.
    pages: usize,
    abi: Abi,
}

impl Described {
    /// Reads the page, once.
    ///
    /// # Errors
    /// [`DescribedError`].
    pub fn read(page: &impl Shared, abi: Abi) -> Result<Self, DescribedError> {
        let mut bytes = [0; DIRECTORY_END];
        page.read(0, &mut bytes)?;
        let word = |at: usize| bytes[at..].first_chunk().copied().unwrap_or_default();
        let memory = u32::from_le_bytes(word(MEMORY_LENGTH));
        let length = usize::try_from(memory).ok().filter(|length| (1..=MAX_MEMORY).contains(length));
        let length = length.ok_or(DescribedError::Memory(memory))?;
        let said = Said {
            width: i32::from_le_bytes(word(WIDTH)),
            height: i32::from_le_bytes(word(HEIGHT)),
            stride: u32::from_le_bytes(word(LINE_LENGTH)).into(),
            depth: bytes[DEPTH].into(),
            offset: 0,
        };
        let geometry = Geometry::checked(&said, length)?;
        let pages = length.div_ceil(PAGE_SIZE);
        let listed = abi.numbers(&bytes[abi.directory()..]);
        let count = pages.div_ceil(PAGE_SIZE / abi.word());
        let directory = listed.into_iter().take(count).collect();
        Ok(Self { geometry, directory, pages, abi })
    }

    /// Reads the pages of the directory, once: the frame numbers of the frame buffer's own.
    ///
    /// # Errors
    /// [`SharedError`] when these are fewer pages than the directory has.
    pub fn frames(&self, directory: &impl Shared) -> Result<Vec<u64>, SharedError> {
        let mut bytes = vec![0; self.pages * self.abi.word()];
        directory.read(0, &mut bytes)?;
        Ok(self.abi.numbers(&bytes))
    }

    /// Bytes of the frame buffer's pages, which an event's size is checked against.
    pub fn memory(&self) -> usize {
        self.pages * PAGE_SIZE
    }
}
