//! The screen as pictures of its cells, which is what viewers are sent and compared by.

use crate::font::{self, CELL_HEIGHT};
use crate::term::{Attrs, Cell, Size, Terminal};
use std::ops::Range;

/// A cell's picture: one byte for each row of pixels, the leftmost in the highest bit, and its two colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Picture {
    /// The first row in the lowest byte.
    rows: u128,
    /// 0xRRGGBB of set pixels.
    pub(super) fg: u32,
    /// 0xRRGGBB of the others.
    pub(super) bg: u32,
}

impl Picture {
    fn new(rows: [u8; CELL_HEIGHT], fg: u32, bg: u32) -> Self {
        let rows = u128::from_le_bytes(rows);
        // One way only to be of one colour, so that equal pictures are equal.
        if rows == 0 || fg == bg { Self { rows: 0, fg: bg, bg } } else { Self { rows, fg, bg } }
    }

    pub(super) fn rows(self) -> [u8; CELL_HEIGHT] {
        self.rows.to_le_bytes()
    }

    /// Whether all its pixels have the background's colour.
    pub(super) fn is_plain(self) -> bool {
        self.rows == 0
    }
}

/// Pictures of all cells, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub(super) size: Size,
    pub(super) cells: Vec<Picture>,
}

impl Frame {
    /// The screen as it is now, or `back` rows of scroll-back further up.
    pub fn of(terminal: &Terminal, back: usize) -> Self {
        Self::marked(terminal, back, &(0..0))
    }

    /// As [`Self::of`], with some cells inverted: those of `marked`, counted in reading order.
    pub(super) fn marked(terminal: &Terminal, back: usize, marked: &Range<usize>) -> Self {
        let size = terminal.size();
        let back = back.min(terminal.history());
        let mut cells = Vec::with_capacity(size.cols * size.rows);
        let (row, col) = terminal.cursor();
        let cursor = terminal.modes().cursor_visible.then_some((row + back) * size.cols + col);
        let blanks = [false, true].map(|inverted| draw(terminal, Cell::BLANK, Cell::BLANK, inverted));
        for row in 0..size.rows {
            // Cells after the last that was written are not stored.
            let written = terminal.viewed(row, back).cells().iter().copied();
            let mut before = Cell::BLANK;
            for cell in written.chain(std::iter::repeat(Cell::BLANK)).take(size.cols) {
                let at = cells.len();
                let inverted = (cursor == Some(at)) != marked.contains(&at);
                cells.push(if cell == Cell::BLANK {
                    blanks[usize::from(inverted)]
                } else {
                    draw(terminal, cell, before, inverted)
                });
                before = cell;
            }
        }
        Self { size, cells }
    }

    pub(super) fn row(&self, row: usize) -> &[Picture] {
        &self.cells[row * self.size.cols..(row + 1) * self.size.cols]
    }
}

/// The picture of a cell; `before` is the one left of it, whose right half it may be.
fn draw(terminal: &Terminal, cell: Cell, before: Cell, inverted: bool) -> Picture {
    let attrs = cell.attrs();
    let style = cell.style();
    let (mut fg, mut bg) = terminal.palette().resolve(style.fg, style.bg, attrs);
    if terminal.modes().reverse {
        (fg, bg) = (bg, fg);
    }
    let tail = attrs.has(Attrs::TAIL);
    let shown = if tail { before } else { cell };
    let wide = tail || attrs.has(Attrs::WIDE);
    let mut rows = [0; CELL_HEIGHT];
    if shown.char() != ' ' || shown.marks().next().is_some() {
        let glyph = shown
            .marks()
            .fold(font::glyph(shown.char(), wide), |glyph, mark| font::overlay(glyph, mark, wide));
        rows = glyph.map(|row| row.to_be_bytes()[usize::from(tail)]);
    }
    if attrs.has(Attrs::UNDERLINE) {
        rows[CELL_HEIGHT - 2] = 0xff;
    }
    if attrs.has(Attrs::STRIKE) {
        rows[CELL_HEIGHT / 2] = 0xff;
    }
    if inverted {
        // The cursor is a block: light where the cell is dark, whatever its colours.
        (fg, bg) = (bg, fg);
    }
    if inverted && fg == bg {
        bg = !bg & 0x00ff_ffff;
    }
    Picture::new(rows, fg, bg)
}

/// A move of rows on the screen that a viewer can do by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scroll {
    /// Where the first row comes from.
    pub(super) from: usize,
    /// Where it goes.
    pub(super) to: usize,
    /// Rows that move.
    pub(super) rows: usize,
}

/// Fewest rows a move must save to be worth its message.
const LEAST_MOVED: usize = 3;

/// The move that makes most of `old` like `new`.
pub(super) fn find_scroll(old: &Frame, new: &Frame) -> Option<Scroll> {
    let rows = new.size.rows;
    let changed: Vec<bool> = (0..rows).map(|row| old.row(row) != new.row(row)).collect();
    if changed.iter().filter(|changed| **changed).count() < LEAST_MOVED {
        return None;
    }
    let mut best: Option<(usize, Scroll)> = None;
    for by in 1..rows {
        for up in [true, false] {
            let (mut from, mut to) = if up { (by, 0) } else { (0, by) };
            while from < rows && to < rows {
                let same =
                    |n: usize| from + n < rows && to + n < rows && old.row(from + n) == new.row(to + n);
                let run = (0..rows).take_while(|n| same(*n)).count();
                // Rows that were right already and blank ones save nothing.
                let saved = (0..run)
                    .filter(|n| changed[to + n] && new.row(to + n).iter().any(|p| !p.is_plain()))
                    .count();
                if saved >= LEAST_MOVED && best.is_none_or(|(most, _)| saved > most) {
                    best = Some((saved, Scroll { from, to, rows: run }));
                }
                from += run + 1;
                to += run + 1;
            }
        }
    }
    best.map(|(_, scroll)| scroll)
}

impl Frame {
    /// Does to this frame what the viewer does to its own.
    pub(super) fn scroll(&mut self, scroll: Scroll) {
        let cols = self.size.cols;
        self.cells.copy_within(scroll.from * cols..(scroll.from + scroll.rows) * cols, scroll.to * cols);
    }
}
