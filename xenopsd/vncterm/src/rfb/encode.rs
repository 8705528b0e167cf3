//! Rectangles of cells as Raw, Hextile and ZRLE.
//!
//! A cell has two colours and a bit for each pixel, so no pixel is ever looked at: Hextile's subrectangles and ZRLE's
//! packed palettes come straight from the glyph's rows. ZRLE's zlib stream has stored blocks only: the viewer is on
//! this host or behind a proxy here, a full screen is 30 KB, and a compressor would cost each viewer 300 KB.

use super::frame::{Frame, Picture};
use super::pixel::PixelFormat;
use crate::font::{CELL_HEIGHT, CELL_WIDTH};

/// A rectangle of cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) row: usize,
    pub(super) col: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

/// How a rectangle is sent; the protocol's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Raw,
    Hextile,
    Zrle,
}

impl Encoding {
    pub(super) const fn number(self) -> i32 {
        match self {
            Self::Raw => 0,
            Self::Hextile => 5,
            Self::Zrle => 16,
        }
    }

    pub(super) const fn numbered(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::Raw),
            5 => Some(Self::Hextile),
            16 => Some(Self::Zrle),
            _ => None,
        }
    }
}

/// A sent number: sizes here are of at most 256x128 cells, so pixels fit 16 bits.
fn short(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes()
}

/// The header of a rectangle in pixels.
pub(super) fn header(out: &mut Vec<u8>, [x, y, width, height]: [usize; 4], encoding: i32) {
    for value in [x, y, width, height] {
        out.extend(short(value));
    }
    out.extend(encoding.to_be_bytes());
}

/// In pixels: x, y, width, height.
pub(super) fn pixels(rect: Rect) -> [usize; 4] {
    [rect.col * CELL_WIDTH, rect.row * CELL_HEIGHT, rect.cols * CELL_WIDTH, rect.rows * CELL_HEIGHT]
}

/// What the encoders keep from one update of a viewer to the next.
#[derive(Debug, Default)]
pub(super) struct Encoder {
    zlib_begun: bool,
    tiles: Vec<u8>,
}

impl Encoder {
    /// Appends the rectangle with its header.
    pub(super) fn encode(
        &mut self,
        out: &mut Vec<u8>,
        frame: &Frame,
        rect: Rect,
        encoding: Encoding,
        format: &PixelFormat,
    ) {
        header(out, pixels(rect), encoding.number());
        match encoding {
            Encoding::Raw => raw(out, frame, rect, format),
            Encoding::Hextile => hextile(out, frame, rect, format),
            Encoding::Zrle => self.zrle(out, frame, rect, format),
        }
    }

    fn zrle(&mut self, out: &mut Vec<u8>, frame: &Frame, rect: Rect, format: &PixelFormat) {
        self.zlib(out, |tiles| zrle_tiles(tiles, frame, rect, format));
    }

    /// Appends ZRLE's tiles, which `fill` makes.
    pub(super) fn zlib(&mut self, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
        self.tiles.clear();
        fill(&mut self.tiles);
        self.store(out);
        // One update of a wide screen is not kept for the idle hours after it.
        self.tiles.shrink_to(MAX_KEPT);
    }

    /// Appends the tiles as stored blocks of the viewer's zlib stream (RFC 1950, 1951).
    fn store(&mut self, out: &mut Vec<u8>) {
        let length_at = out.len();
        out.extend([0; 4]);
        if !self.zlib_begun {
            out.extend([0x78, 0x01]);
            self.zlib_begun = true;
        }
        for block in self.tiles.chunks(usize::from(u16::MAX)) {
            let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
            out.push(0);
            out.extend(length.to_le_bytes());
            out.extend((!length).to_le_bytes());
            out.extend(block);
        }
        let length = u32::try_from(out.len() - length_at - 4).unwrap_or(u32::MAX);
        out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

fn zrle_tiles(tiles: &mut Vec<u8>, frame: &Frame, rect: Rect, format: &PixelFormat) {
    /// Cells of a tile of 64x64 pixels.
    const COLS: usize = 8;
    const ROWS: usize = 4;
    for row in (rect.row..rect.row + rect.rows).step_by(ROWS) {
        for col in (rect.col..rect.col + rect.cols).step_by(COLS) {
            let rows = ROWS.min(rect.row + rect.rows - row);
            let cols = COLS.min(rect.col + rect.cols - col);
            zrle_tile(tiles, frame, Rect { row, col, rows, cols }, format);
        }
    }
}

/// Bytes of buffers that an idle viewer keeps.
pub(super) const MAX_KEPT: usize = 16 << 10;

fn raw(out: &mut Vec<u8>, frame: &Frame, rect: Rect, format: &PixelFormat) {
    out.reserve(rect.rows * rect.cols * CELL_HEIGHT * CELL_WIDTH * format.bytes);
    for row in rect.row..rect.row + rect.rows {
        raw_cells(out, &frame.row(row)[rect.col..rect.col + rect.cols], format);
    }
}

/// The pixels of a row of cells, line by line.
fn raw_cells(out: &mut Vec<u8>, cells: &[Picture], format: &PixelFormat) {
    match format.bytes {
        1 => raw_pixels::<1>(out, cells, format),
        2 => raw_pixels::<2>(out, cells, format),
        _ => raw_pixels::<4>(out, cells, format),
    }
}

/// As [`raw_cells`], of `BYTES` for a pixel.
fn raw_pixels<const BYTES: usize>(out: &mut Vec<u8>, cells: &[Picture], format: &PixelFormat) {
    let width = cells.len() * CELL_WIDTH * BYTES;
    let lines = appended(out, CELL_HEIGHT * width);
    let pixel = |rgb: u32| {
        let bytes = format.pixel(rgb);
        std::array::from_fn::<u8, BYTES, _>(|n| bytes[n])
    };
    for (col, cell) in cells.iter().enumerate() {
        let (bg, fg) = (pixel(cell.bg), pixel(cell.fg));
        for (line, bits) in lines.chunks_exact_mut(width).zip(cell.rows()) {
            let place = col * CELL_WIDTH * BYTES;
            let pixels: [_; CELL_WIDTH] =
                std::array::from_fn(|n| if bits & 0x80 >> n != 0 { fg } else { bg });
            line[place..place + CELL_WIDTH * BYTES].copy_from_slice(pixels.as_flattened());
        }
    }
}

/// Appends `length` zeros, to be written to.
fn appended(out: &mut Vec<u8>, length: usize) -> &mut [u8] {
    let start = out.len();
    out.resize(start + length, 0);
    &mut out[start..]
}

pub(super) const HEXTILE_RAW: u8 = 1;
pub(super) const HEXTILE_BACKGROUND: u8 = 2;
const HEXTILE_FOREGROUND: u8 = 4;
const HEXTILE_SUBRECTS: u8 = 8;
const HEXTILE_COLOURED: u8 = 16;

/// A tile of 16x16 pixels is two cells; the last of an odd row is one.
fn hextile(out: &mut Vec<u8>, frame: &Frame, rect: Rect, format: &PixelFormat) {
    for row in rect.row..rect.row + rect.rows {
        for pair in frame.row(row)[rect.col..rect.col + rect.cols].chunks(2) {
            hextile_tile(out, pair, format);
        }
    }
}

fn hextile_tile(out: &mut Vec<u8>, cells: &[Picture], format: &PixelFormat) {
    let start = out.len();
    let bg = cells[0].bg;
    let color = |rgb: u32| format.pixel(rgb);
    if cells.iter().all(|cell| cell.is_plain() && cell.bg == bg) {
        out.push(HEXTILE_BACKGROUND);
        out.extend_from_slice(&color(bg)[..format.bytes]);
        return;
    }
    let mut fronts = cells.iter().filter(|cell| !cell.is_plain()).map(|cell| cell.fg);
    let first = fronts.next();
    let one = first.filter(|first| cells.iter().all(|c| c.bg == bg) && fronts.all(|front| front == *first));
    match one {
        Some(_) => out.push(HEXTILE_BACKGROUND | HEXTILE_FOREGROUND | HEXTILE_SUBRECTS),
        None => out.push(HEXTILE_BACKGROUND | HEXTILE_SUBRECTS | HEXTILE_COLOURED),
    }
    out.extend_from_slice(&color(bg)[..format.bytes]);
    if let Some(fg) = one {
        out.extend_from_slice(&color(fg)[..format.bytes]);
    }
    let count_at = out.len();
    out.push(0);
    let mut count = 0_u8;
    for (n, cell) in cells.iter().enumerate() {
        let left = if n == 0 { 0 } else { 8 };
        let mut subrect = |x: u8, y: u8, width: u8, height: u8, rgb: u32| {
            if one.is_none() {
                out.extend_from_slice(&color(rgb)[..format.bytes]);
            }
            out.extend([(left + x) << 4 | y, (width - 1) << 4 | (height - 1)]);
            // At most 4 runs in each of 16 rows of two cells, and two backgrounds: 130.
            count += 1;
        };
        if cell.bg != bg {
            subrect(0, 0, 8, 16, cell.bg);
        }
        if !cell.is_plain() {
            runs(cell.rows(), |x, y, width, height| subrect(x, y, width, height, cell.fg));
        }
    }
    out[count_at] = count;
    let plain = 1 + cells.len() * CELL_WIDTH * CELL_HEIGHT * format.bytes;
    if out.len() - start > plain {
        out.truncate(start);
        out.push(HEXTILE_RAW);
        raw_cells(out, cells, format);
    }
}

/// The set pixels of a glyph as rectangles: runs of a row, as tall as rows repeat.
fn runs(rows: [u8; CELL_HEIGHT], mut each: impl FnMut(u8, u8, u8, u8)) {
    let (mut line, mut y) = (0, 0_u8);
    while line < CELL_HEIGHT {
        let row = rows[line];
        let height = rows[line..].iter().take_while(|next| **next == row).count();
        let tall = u8::try_from(height).unwrap_or(16);
        let (mut rest, mut x) = (row, 0_u8);
        while rest != 0 {
            let gap = rest.leading_zeros();
            rest <<= gap;
            let width = rest.leading_ones();
            x += u8::try_from(gap).unwrap_or(0);
            let wide = u8::try_from(width).unwrap_or(8);
            each(x, y, wide, tall);
            x += wide;
            rest = rest.checked_shl(width).unwrap_or(0);
        }
        line += height;
        y += tall;
    }
}

/// Most colours of a packed palette.
pub(super) const MAX_PACKED: usize = 16;

fn zrle_tile(out: &mut Vec<u8>, frame: &Frame, rect: Rect, format: &PixelFormat) {
    let compact = format.compact();
    let cells = |row: usize| &frame.row(row)[rect.col..rect.col + rect.cols];
    let mut palette: Vec<u32> = Vec::with_capacity(MAX_PACKED);
    let mut many = false;
    for cell in (rect.row..rect.row + rect.rows).flat_map(cells) {
        for color in [cell.bg, cell.fg] {
            if !palette.contains(&color) {
                many |= palette.len() == MAX_PACKED;
                if !many {
                    palette.push(color);
                }
            }
        }
    }
    let place = |color: u32| palette.iter().position(|entry| *entry == color).unwrap_or(0);
    out.push(match palette.len() {
        _ if many => 0,
        count => u8::try_from(count).unwrap_or(1),
    });
    if many {
        for row in rect.row..rect.row + rect.rows {
            for line in 0..CELL_HEIGHT {
                for cell in cells(row) {
                    let (bg, fg) = (format.pixel(cell.bg), format.pixel(cell.fg));
                    for pixel in (0..8).rev() {
                        let color = if cell.rows()[line] >> pixel & 1 == 1 { fg } else { bg };
                        out.extend_from_slice(&color[compact.clone()]);
                    }
                }
            }
        }
        return;
    }
    for color in &palette {
        out.extend_from_slice(&format.pixel(*color)[compact.clone()]);
    }
    let bits = match palette.len() {
        1 => return,
        2 => 1,
        3..=4 => 2,
        _ => 4,
    };
    for row in rect.row..rect.row + rect.rows {
        let entries = cells(row).iter().map(|cell| (cell.rows(), place(cell.bg), place(cell.fg)));
        match bits {
            1 => packed::<1>(out, rect.cols, entries),
            2 => packed::<2>(out, rect.cols, entries),
            _ => packed::<4>(out, rect.cols, entries),
        }
    }
}

/// For each byte, its bits each repeated: masks of eight pixels of 2 and 4 bits.
static SPREAD_2: [u32; 256] = spread(2);
static SPREAD_4: [u32; 256] = spread(4);

const fn spread(bits: u32) -> [u32; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut bit = 0;
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                table[byte] |= ((1 << bits) - 1) << (bit * bits);
            }
            bit += 1;
        }
        byte += 1;
    }
    table
}

/// The pixels of `cols` cells, line by line, as palette entries of `BITS` bits: so many bytes for a cell's eight. A cell
/// has its glyph and the entries of its two colours.
fn packed<const BITS: usize>(
    out: &mut Vec<u8>,
    cols: usize,
    cells: impl Iterator<Item = ([u8; CELL_HEIGHT], usize, usize)>,
) {
    let width = cols * BITS;
    let lines = appended(out, CELL_HEIGHT * width);
    // An entry in all eight pixels.
    let color = |entry: usize| u32::try_from(entry).unwrap_or(0) * [0xff, 0x5555, 0, 0x1111_1111][BITS - 1];
    for (col, (rows, bg, fg)) in cells.enumerate() {
        let (bg, fg) = (color(bg), color(fg));
        for (line, row) in lines.chunks_exact_mut(width).zip(rows) {
            let set = match BITS {
                1 => u32::from(row),
                2 => SPREAD_2[usize::from(row)],
                _ => SPREAD_4[usize::from(row)],
            };
            let pixels = (fg & set | bg & !set).to_be_bytes();
            line[col * BITS..(col + 1) * BITS].copy_from_slice(&pixels[4 - BITS..]);
        }
    }
}
