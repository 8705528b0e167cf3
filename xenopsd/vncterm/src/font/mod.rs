//! Pictures of characters: GNU Unifont's, 8x16 for a cell and 16x16 for a wide character.
//!
//! The glyphs stay in the program's file; only pages with characters that are shown become resident.

#[cfg(test)]
mod tests;

/// Width of a cell in pixels.
pub const CELL_WIDTH: usize = 8;

/// Height of a cell in pixels.
pub const CELL_HEIGHT: usize = 16;

/// See `examples/unifont.rs` for the format and `LICENSE` beside it for whose it is.
static FONT: &[u8] = include_bytes!("unifont.bin");

/// Bytes of a run in the font's index.
const RUN: usize = 12;

/// Rows of 16 pixels, the leftmost in the highest bit; a narrow glyph has its 8 in the high byte.
pub type Glyph = [u16; CELL_HEIGHT];

/// Shown for what the font does not have: a frame.
const MISSING: Glyph = {
    let mut rows = [0x4200; CELL_HEIGHT];
    (rows[0], rows[1], rows[14], rows[15]) = (0, 0x7e00, 0x7e00, 0);
    rows
};

fn word(at: usize) -> Option<usize> {
    let bytes = FONT.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

fn half_word(at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(*FONT.get(at..)?.first_chunk()?)))
}

/// The rows of a character as the font has them, and how many bytes each is.
fn find(c: char) -> Option<(&'static [u8], usize)> {
    let c = usize::try_from(u32::from(c)).ok()?;
    let runs = word(0)?;
    let (mut low, mut high) = (0, runs);
    while low < high {
        let middle = low.midpoint(high);
        let run = 4 + middle * RUN;
        let (first, count) = (word(run)?, half_word(run + 4)?);
        if c < first {
            high = middle;
        } else if c >= first + count {
            low = middle + 1;
        } else {
            let stride = half_word(run + 6)?;
            let size = stride * CELL_HEIGHT;
            let start = 4 + runs * RUN + word(run + 8)? + (c - first) * size;
            return FONT.get(start..start + size).map(|rows| (rows, stride));
        }
    }
    None
}

/// Halves the width of a row of 16 pixels: a pixel is set if either of two was.
fn squeeze(row: u16) -> u16 {
    (0..8).filter(|pixel| row >> (14 - 2 * pixel) & 0b11 != 0).map(|pixel| 0x8000 >> pixel).sum()
}

/// The picture of a character in one cell, or in two if `wide`.
pub fn glyph(c: char, wide: bool) -> Glyph {
    let Some((rows, stride)) = find(c) else { return MISSING };
    std::array::from_fn(|row| match (stride, wide) {
        (1, false) => u16::from(rows[row]) << 8,
        // A narrow picture in two cells is in their middle.
        (1, true) => u16::from(rows[row]) << 4,
        (_, true) => u16::from_be_bytes([rows[2 * row], rows[2 * row + 1]]),
        (_, false) => squeeze(u16::from_be_bytes([rows[2 * row], rows[2 * row + 1]])),
    })
}

/// The picture with a combining mark drawn over it.
pub fn overlay(mut picture: Glyph, mark: char, wide: bool) -> Glyph {
    if find(mark).is_some() {
        picture.iter_mut().zip(glyph(mark, wide)).for_each(|(row, mark)| *row |= mark);
    }
    picture
}
