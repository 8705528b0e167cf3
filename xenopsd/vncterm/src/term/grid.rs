//! Rows of cells: the screen at the end, the scroll-back before it, in one ring.

use super::cell::{Attrs, Cell, Style};
use super::{MAX_SCROLLBACK, Size};
use std::collections::VecDeque;

/// A row. Cells after the last that was written are blank and not stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    cells: Vec<Cell>,
    /// The line goes on in the next row.
    wrapped: bool,
}

impl Row {
    /// Its cells up to the last that was written.
    pub fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// The cell of a column.
    pub fn cell(&self, col: usize) -> Cell {
        self.cells.get(col).copied().unwrap_or(Cell::BLANK)
    }

    /// Whether the line goes on in the next row.
    pub fn wrapped(&self) -> bool {
        self.wrapped
    }

    /// Its text, without blanks at its end.
    pub fn text(&self) -> String {
        self.text_of(0, usize::MAX)
    }

    /// The text of columns `from..to`, without blanks at its end.
    pub fn text_of(&self, from: usize, to: usize) -> String {
        let mut text = String::new();
        let cells = self.cells.iter().take(to).skip(from);
        for cell in cells.filter(|cell| !cell.attrs().has(Attrs::TAIL)) {
            text.push(cell.char());
            text.extend(cell.marks());
        }
        text.truncate(text.trim_end_matches(' ').len());
        text
    }

    pub(super) fn from_parts(cells: Vec<Cell>, wrapped: bool) -> Self {
        Self { cells, wrapped }
    }

    pub(super) fn set_wrapped(&mut self, wrapped: bool) {
        self.wrapped = wrapped;
    }

    /// Makes the first `count` cells exist.
    fn fill_to(&mut self, count: usize) {
        if self.cells.len() < count {
            self.cells.resize(count, Cell::BLANK);
        }
    }

    /// A row as new, with its memory kept.
    fn clear(&mut self, size: Size, style: Style) {
        self.cells.clear();
        self.wrapped = false;
        if style != Style::default() {
            self.cells.resize(size.cols, Cell::new(' ', style));
        }
    }

    /// Half a wide character is none: blanks the other half of one that is cut at `col`.
    fn mend(&mut self, col: usize) {
        if col == 0 || !self.cells.get(col).is_some_and(|cell| cell.attrs().has(Attrs::TAIL)) {
            return;
        }
        for half in &mut self.cells[col - 1..=col] {
            let style = half.style();
            let attrs = style.attrs.without(Attrs::WIDE).without(Attrs::TAIL);
            *half = Cell::new(' ', Style { attrs, ..style });
        }
    }

    /// Makes `from..to` free to be overwritten.
    fn open(&mut self, from: usize, to: usize) {
        self.mend(from);
        self.mend(to);
        self.fill_to(from);
    }

    /// Writes printable ASCII; it must fit.
    pub(super) fn put_ascii(&mut self, col: usize, text: &[u8], style: Style) {
        let pen = Cell::new(' ', style);
        self.open(col, col + text.len());
        let existing = self.cells.len().saturating_sub(col).min(text.len());
        for (cell, byte) in self.cells[col..].iter_mut().zip(text) {
            *cell = pen.with_ascii(*byte);
        }
        self.cells.extend(text[existing..].iter().map(|byte| pen.with_ascii(*byte)));
    }

    /// Writes one character of one or two cells; it must fit.
    pub(super) fn put(&mut self, col: usize, c: char, style: Style, width: usize) {
        self.open(col, col + width);
        self.fill_to(col + width);
        let attrs = if width == 2 { style.attrs.with(Attrs::WIDE) } else { style.attrs };
        self.cells[col] = Cell::new(c, Style { attrs, ..style });
        if width == 2 {
            self.cells[col + 1] = Cell::new(' ', Style { attrs: style.attrs.with(Attrs::TAIL), ..style });
        }
    }

    pub(super) fn add_mark(&mut self, col: usize, mark: char) {
        let tail = self.cell(col).attrs().has(Attrs::TAIL);
        if let Some(cell) = self.cells.get_mut(if tail { col.saturating_sub(1) } else { col }) {
            cell.add_mark(mark);
        }
    }

    /// Erases `from..to` in a row of `cols`.
    pub(super) fn erase(&mut self, from: usize, to: usize, style: Style, cols: usize) {
        self.open(from, to);
        if to >= cols {
            self.wrapped = false;
            if style == Style::default() {
                self.cells.truncate(from);
                return;
            }
        }
        self.fill_to(to.min(cols));
        self.cells[from..to.min(cols)].fill(Cell::new(' ', style));
    }

    /// Moves `col..` right by `count`; what leaves the row of `cols` is lost.
    pub(super) fn insert(&mut self, col: usize, count: usize, style: Style, cols: usize) {
        let count = count.min(cols - col);
        self.open(col, col);
        if self.cells.len() > col || style != Style::default() {
            self.fill_to(col);
            self.cells.splice(col..col, std::iter::repeat_n(Cell::new(' ', style), count));
            self.mend(cols);
            self.cells.truncate(cols);
        }
    }

    /// Removes `count` cells at `col`; the row of `cols` is filled up at its end.
    pub(super) fn delete(&mut self, col: usize, count: usize, style: Style, cols: usize) {
        let count = count.min(cols - col);
        self.open(col, col + count);
        if style != Style::default() {
            self.fill_to(cols);
        }
        let end = (col + count).min(self.cells.len());
        if col < end {
            self.cells.drain(col..end);
        }
        if style != Style::default() {
            self.cells.resize(cols, Cell::new(' ', style));
        }
    }
}

/// The screen and its scroll-back.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    /// At least as many as the screen has.
    rows: VecDeque<Row>,
    size: Size,
    limit: usize,
}

impl Grid {
    /// A blank screen that keeps `limit` rows that leave it at its top.
    pub(super) fn new(size: Size, limit: usize) -> Self {
        let rows = std::iter::repeat_n(Row::default(), size.rows).collect();
        Self { rows, size, limit: limit.min(MAX_SCROLLBACK) }
    }

    /// Rows that left the screen, oldest first.
    pub(super) fn history(&self) -> usize {
        self.rows.len() - self.size.rows
    }

    /// How many of those are kept.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn row(&self, row: usize) -> &Row {
        &self.rows[self.history() + row]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut Row {
        let base = self.history();
        &mut self.rows[base + row]
    }

    /// Row `row` of a view that is `back` rows above the screen.
    pub(super) fn viewed(&self, row: usize, back: usize) -> &Row {
        &self.rows[self.history() - back.min(self.history()) + row]
    }

    /// History, then screen.
    pub(super) fn all(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter()
    }

    /// Moves rows `top..bottom` up; what leaves at the top of the screen becomes history.
    pub(super) fn scroll_up(&mut self, top: usize, bottom: usize, count: usize, style: Style) {
        if top > 0 || self.limit == 0 {
            return self.delete_rows(top, bottom, count, style);
        }
        for _ in 0..count.min(bottom - top) {
            self.push_history(bottom, style);
        }
    }

    /// Moves rows `top..bottom` up; what leaves at the top is lost.
    pub(super) fn delete_rows(&mut self, top: usize, bottom: usize, count: usize, style: Style) {
        let base = self.history();
        for _ in 0..count.min(bottom - top) {
            for row in top..bottom - 1 {
                self.rows.swap(base + row, base + row + 1);
            }
            self.rows[base + bottom - 1].clear(self.size, style);
        }
    }

    fn push_history(&mut self, bottom: usize, style: Style) {
        let mut blank =
            if self.history() >= self.limit { self.rows.pop_front() } else { None }.unwrap_or_default();
        blank.clear(self.size, style);
        if bottom == self.size.rows {
            self.rows.push_back(blank);
        } else {
            // One row is missing: the first of the screen is already where history ends.
            let at = self.rows.len() - (self.size.rows - bottom);
            self.rows.insert(at, blank);
        }
    }

    /// Moves rows `top..bottom` down; what leaves at the bottom is lost.
    pub(super) fn scroll_down(&mut self, top: usize, bottom: usize, count: usize, style: Style) {
        let base = self.history();
        for _ in 0..count.min(bottom - top) {
            for row in (top..bottom - 1).rev() {
                self.rows.swap(base + row, base + row + 1);
            }
            self.rows[base + top].clear(self.size, style);
        }
    }

    /// Erases whole rows.
    pub(super) fn erase(&mut self, rows: std::ops::Range<usize>, style: Style) {
        let size = self.size;
        for row in rows {
            self.row_mut(row).clear(size, style);
        }
    }

    /// Forgets the scroll-back.
    pub(super) fn forget_history(&mut self) {
        let history = self.history();
        self.rows.drain(..history);
    }

    /// Changes the size. `cursor` is the cursor's row; returned is how far it moves down (rows that come back from
    /// the scroll-back) or up (rows that go there).
    pub(super) fn resize(&mut self, size: Size, cursor: usize) -> isize {
        for row in &mut self.rows {
            if row.cells.len() > size.cols {
                row.mend(size.cols);
                row.cells.truncate(size.cols);
            }
        }
        let history = self.history();
        // Rows below the cursor are given up before any is pushed into the scroll-back.
        let spare = self.size.rows.saturating_sub(cursor + 1).min(self.size.rows.saturating_sub(size.rows));
        self.rows.truncate(self.rows.len() - spare);
        while self.rows.len() < size.rows {
            self.rows.push_back(Row::default());
        }
        self.size = size;
        let after = self.history();
        let moved = isize::try_from(history).unwrap_or(0) - isize::try_from(after).unwrap_or(0);
        let excess = after.saturating_sub(self.limit);
        self.rows.drain(..excess);
        moved
    }

    /// From saved rows, history first. At most the limit and the screen are kept, and blank rows fill the screen.
    pub(super) fn restore(size: Size, limit: usize, rows: VecDeque<Row>) -> Self {
        let mut grid = Self { rows, size, limit: limit.min(MAX_SCROLLBACK) };
        while grid.rows.len() < size.rows {
            grid.rows.push_back(Row::default());
        }
        let excess = grid.history().saturating_sub(grid.limit);
        grid.rows.drain(..excess);
        for row in &mut grid.rows {
            row.cells.truncate(size.cols);
            row.mend_all();
        }
        grid
    }
}

impl Row {
    /// Halves of wide characters that have no other half become blanks.
    fn mend_all(&mut self) {
        for col in 0..self.cells.len() {
            let attrs = self.cells[col].attrs();
            let before = col > 0 && self.cells[col - 1].attrs().has(Attrs::WIDE);
            let after = self.cells.get(col + 1).is_some_and(|cell| cell.attrs().has(Attrs::TAIL));
            let both = attrs.has(Attrs::WIDE) && attrs.has(Attrs::TAIL);
            let broken = both || attrs.has(Attrs::TAIL) != before || attrs.has(Attrs::WIDE) && !after;
            if broken {
                let style = self.cells[col].style();
                let attrs = style.attrs.without(Attrs::WIDE).without(Attrs::TAIL);
                self.cells[col] = Cell::new(' ', Style { attrs, ..style });
            }
        }
    }
}
