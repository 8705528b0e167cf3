//! The saved state of a terminal, for a guest that is suspended or moves.
//!
//! Little-endian, in this order; booleans are one byte, 0 or 1:
//!
//! ```text
//! magic    8 bytes "VNCTERM\0"
//! version  u32     1
//! size     u16 columns, u16 rows, u16 rows of scroll-back kept at most
//! flags    u16     bit n: see FLAGS
//! cursor   three of them: shown, saved on this screen, saved on the other; each
//!          u16 row, u16 column, u8 bits (wrap pending, origin), u8 font, u8 shift, u8 G0, u8 G1, 3 x u32 style
//! margins  u16 first row, u16 past the last
//! tabs     32 bytes, one bit for each column
//! palette  u16 count, then u8 index and u32 0xRRGGBB for each entry that was changed
//! title    u16 length, UTF-8
//! screens  u8 count: 1, or 2 when the alternate screen is shown; primary first; each
//!          u32 rows (scroll-back, then screen), each u16 cells, u8 wrapped, 4 x u32 for each cell
//! ```

use super::MAX_COLS;
use super::grid::Grid;
use super::screen::{Cursor, Font, Modes, Screen};

pub(super) const MAGIC: &[u8; 8] = b"VNCTERM\0";
pub(super) const VERSION: u32 = 1;

/// The modes, by the bit that keeps each. The last is the parser's: bytes are UTF-8.
pub(super) const FLAGS: [fn(&mut Modes) -> &mut bool; 8] = [
    |modes| &mut modes.cursor_keys,
    |modes| &mut modes.cursor_visible,
    |modes| &mut modes.reverse,
    |modes| &mut modes.bracketed_paste,
    |modes| &mut modes.newline,
    |modes| &mut modes.wrap,
    |modes| &mut modes.insert,
    |modes| &mut modes.allow_wide,
];

/// The bit after those: bytes are UTF-8.
pub(super) const UTF8_FLAG: u16 = 1 << FLAGS.len();

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// For numbers that the limits of the terminal keep below 65536.
    fn u16(&mut self, value: usize) {
        let value = u16::try_from(value).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn cursor(&mut self, cursor: &Cursor) {
        self.u16(cursor.row);
        self.u16(cursor.col);
        self.u8(u8::from(cursor.wrap_pending) | u8::from(cursor.origin) << 1);
        self.u8(match cursor.font {
            Font::Normal => 0,
            Font::Pc => 1,
            Font::PcUpper => 2,
        });
        self.u8(u8::from(cursor.shift == 1));
        cursor.charsets.iter().for_each(|set| self.u8(set.to_byte()));
        cursor.style.to_words().into_iter().for_each(|word| self.u32(word));
    }

    fn grid(&mut self, grid: &Grid) {
        self.u32(u32::try_from(grid.all().count()).unwrap_or(u32::MAX));
        for row in grid.all() {
            self.u16(row.cells().len());
            self.u8(u8::from(row.wrapped()));
            for cell in row.cells() {
                cell.to_words().into_iter().for_each(|word| self.u32(word));
            }
        }
    }
}

pub(super) fn save(screen: &Screen, utf8: bool) -> Vec<u8> {
    let mut out = Writer(MAGIC.to_vec());
    out.u32(VERSION);
    out.u16(screen.size.cols);
    out.u16(screen.size.rows);
    out.u16(screen.primary.limit());
    let mut modes = screen.modes;
    let flags = FLAGS.iter().enumerate().map(|(bit, flag)| u16::from(*flag(&mut modes)) << bit).sum::<u16>();
    out.u16(usize::from(flags | if utf8 { UTF8_FLAG } else { 0 }));
    for cursor in [&screen.cursor, &screen.saved, &screen.saved_other] {
        out.cursor(cursor);
    }
    out.u16(screen.top);
    out.u16(screen.bottom);
    let mut tabs = [0_u8; MAX_COLS / 8];
    for (col, _) in screen.tabs.iter().enumerate().filter(|(_, set)| *set) {
        tabs[col / 8] |= 1 << (col % 8);
    }
    out.0.extend_from_slice(&tabs);
    out.u16(screen.palette.changes().count());
    for (index, rgb) in screen.palette.changes() {
        out.u8(index);
        out.u32(rgb);
    }
    out.u16(screen.title.len());
    out.0.extend_from_slice(screen.title.as_bytes());
    out.u8(1 + u8::from(screen.alternate.is_some()));
    for grid in [Some(&screen.primary), screen.alternate.as_ref()].into_iter().flatten() {
        out.grid(grid);
    }
    out.0
}
