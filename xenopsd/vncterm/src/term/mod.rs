//! The terminal: what a guest prints becomes a screen of cells.
//!
//! ```text
//!  bytes ─► Parser ─► Screen ─► Grid (rows of cells, scroll-back)
//!                        │
//!                        └────► replies: what the guest asked of its terminal
//! ```
//!
//! It is a subset of xterm's and the Linux console's behaviour, `TERM=linux` and `TERM=xterm`: colours of the palette
//! and RGB, the alternate screen, scroll regions, insert mode, tab stops, wide and combining characters, the line
//! drawing set, code page 437. A guest is hostile: whatever it prints, memory stays within the constants here.

mod cell;
mod charset;
mod cp437;
mod csi;
mod grid;
mod osc;
mod palette;
mod parser;
mod restore;
mod save;
mod screen;
#[cfg(test)]
mod tests;
mod width;

pub use cell::{Attrs, Cell, Color, ColorKind, MAX_MARKS, Style};
pub use grid::Row;
pub use palette::Palette;
pub use restore::StateError;
pub use screen::Modes;

use parser::Parser;
use screen::Screen;

/// Most columns: xterm's wide mode has 132; twice that is more than a viewer's screen shows.
pub const MAX_COLS: usize = 256;

/// Most rows, for the same reason.
pub const MAX_ROWS: usize = 128;

/// Most rows of scroll-back, as in the original.
pub const MAX_SCROLLBACK: usize = 8192;

/// Rows of scroll-back when nothing else is said, as in the original.
pub const DEFAULT_SCROLLBACK: usize = 512;

/// Columns and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns.
    pub cols: usize,
    /// Rows.
    pub rows: usize,
}

impl Size {
    /// What a guest's kernel expects.
    pub const DEFAULT: Self = Self { cols: 80, rows: 24 };

    /// The nearest size there may be: 1x1 to [`MAX_COLS`]x[`MAX_ROWS`].
    #[must_use]
    pub fn clamped(self) -> Self {
        Self { cols: self.cols.clamp(1, MAX_COLS), rows: self.rows.clamp(1, MAX_ROWS) }
    }
}

/// A terminal.
#[derive(Debug)]
pub struct Terminal {
    parser: Parser,
    screen: Screen,
}

impl Terminal {
    /// A blank one. `scrollback` is cut to [`MAX_SCROLLBACK`], `size` to what there may be.
    pub fn new(size: Size, scrollback: usize) -> Self {
        Self { parser: Parser::default(), screen: Screen::new(size.clamped(), scrollback) }
    }

    /// Takes output of the guest, in pieces of any size.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.parser.advance(bytes, &mut self.screen);
    }

    /// Takes what the guest must be told because it asked.
    pub fn take_replies(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.screen.replies)
    }

    /// How often the guest rang since the last call.
    pub fn take_bells(&mut self) -> u32 {
        std::mem::take(&mut self.screen.bells)
    }

    /// Columns and rows.
    pub fn size(&self) -> Size {
        self.screen.size
    }

    /// Changes the size, for a viewer that asked.
    pub fn resize(&mut self, size: Size) {
        self.screen.resize(size.clamped());
    }

    /// Rows that can be scrolled back to.
    pub fn history(&self) -> usize {
        self.screen.grid().history()
    }

    /// A row of the screen.
    pub fn row(&self, row: usize) -> &Row {
        self.screen.grid().row(row)
    }

    /// A row of a view that starts `back` rows above the screen.
    pub fn viewed(&self, row: usize, back: usize) -> &Row {
        self.screen.grid().viewed(row, back)
    }

    /// Scroll-back and screen as text, a line for each row, without the blank rows at the end.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for row in self.screen.grid().all() {
            text.push_str(&row.text());
            if !row.wrapped() {
                text.push('\n');
            }
        }
        text.truncate(text.trim_end().len());
        if !text.is_empty() {
            text.push('\n');
        }
        text
    }

    /// Row and column of the cursor.
    pub fn cursor(&self) -> (usize, usize) {
        (self.screen.cursor.row, self.screen.cursor.col)
    }

    /// What the guest switched on.
    pub fn modes(&self) -> Modes {
        self.screen.modes
    }

    /// What the colours are.
    pub fn palette(&self) -> &Palette {
        &self.screen.palette
    }

    /// The title the guest gave its window.
    pub fn title(&self) -> &str {
        &self.screen.title
    }

    /// Screen, scroll-back and modes for [`Self::restore`]: a versioned format of bounded size.
    pub fn save(&self) -> Vec<u8> {
        save::save(&self.screen, self.parser.utf8_on())
    }

    /// What [`Self::save`] wrote. It may come from anywhere: every field is checked.
    ///
    /// # Errors
    /// [`StateError`] says what is wrong with it.
    pub fn restore(state: &[u8]) -> Result<Self, StateError> {
        let (screen, utf8) = restore::restore(state)?;
        let mut parser = Parser::default();
        parser.set_utf8(utf8);
        Ok(Self { parser, screen })
    }
}
