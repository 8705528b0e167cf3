//! What the guest sees as its terminal: cursor, modes, margins, and the two screens.

use super::cell::Style;
use super::charset::Charset;
use super::grid::{Grid, Row};
use super::palette::Palette;
use super::parser::{Actions, Csi, pc_character};
use super::width::width;
use super::{MAX_COLS, Size, csi, osc};

/// Bytes of replies that wait to be sent to the guest. It asks and does not read: the rest is lost.
const MAX_REPLIES: usize = 4096;

/// Distance of tab stops that nobody set.
const TAB: usize = 8;

/// What a guest switched on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes {
    /// Arrows are sent as `ESC O A`.
    pub cursor_keys: bool,
    /// The cursor is shown.
    pub cursor_visible: bool,
    /// Light background: foreground and background of everything are exchanged.
    pub reverse: bool,
    /// Pasted text is sent between `ESC [ 200 ~` and `ESC [ 201 ~`.
    pub bracketed_paste: bool,
    /// Return is sent as CR LF.
    pub newline: bool,
    pub(super) wrap: bool,
    pub(super) insert: bool,
    /// 132 columns may be switched to.
    pub(super) allow_wide: bool,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            cursor_keys: false,
            cursor_visible: true,
            reverse: false,
            bracketed_paste: false,
            newline: false,
            wrap: true,
            insert: false,
            allow_wide: false,
        }
    }
}

/// The cursor and what is saved with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    pub(super) row: usize,
    pub(super) col: usize,
    /// The last column was written: the next character goes to the next row.
    pub(super) wrap_pending: bool,
    pub(super) style: Style,
    pub(super) charsets: [Charset; 2],
    /// Which of the two is used.
    pub(super) shift: usize,
    /// Rows are counted from the top margin.
    pub(super) origin: bool,
    /// The font of SGR 11 and 12: bytes are of code page 437, for 12 of its upper half.
    pub(super) font: Font,
}

impl Cursor {
    /// Within a screen of `size`.
    pub(super) fn clamp(&mut self, size: Size) {
        self.row = self.row.min(size.rows - 1);
        self.col = self.col.min(size.cols - 1);
        self.wrap_pending &= self.col + 1 == size.cols;
    }
}

/// The fonts of the Linux console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Font {
    #[default]
    Normal,
    Pc,
    PcUpper,
}

/// One bit per column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tabs([bool; MAX_COLS]);

impl Default for Tabs {
    fn default() -> Self {
        Self(std::array::from_fn(|col| col % TAB == 0 && col > 0))
    }
}

impl Tabs {
    pub(super) fn set(&mut self, col: usize, set: bool) {
        self.0[col] = set;
    }

    pub(super) fn clear(&mut self) {
        self.0 = [false; MAX_COLS];
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = bool> {
        self.0.iter().copied()
    }

    fn next(&self, col: usize, last: usize) -> usize {
        (col + 1..last).find(|col| self.0[*col]).unwrap_or(last)
    }

    fn previous(&self, col: usize) -> usize {
        (0..col).rev().find(|col| self.0[*col]).unwrap_or(0)
    }
}

#[derive(Debug)]
pub(super) struct Screen {
    pub(super) size: Size,
    pub(super) primary: Grid,
    /// Only while it is shown.
    pub(super) alternate: Option<Grid>,
    pub(super) cursor: Cursor,
    /// What DECSC saved on the screen shown, and on the other.
    pub(super) saved: Cursor,
    pub(super) saved_other: Cursor,
    /// First and past the last row that scroll.
    pub(super) top: usize,
    pub(super) bottom: usize,
    pub(super) tabs: Tabs,
    pub(super) modes: Modes,
    pub(super) palette: Palette,
    pub(super) title: String,
    pub(super) bells: u32,
    pub(super) replies: Vec<u8>,
    /// For REP.
    last_printed: Option<char>,
}

impl Screen {
    pub(super) fn new(size: Size, scrollback: usize) -> Self {
        Self {
            size,
            primary: Grid::new(size, scrollback),
            alternate: None,
            cursor: Cursor::default(),
            saved: Cursor::default(),
            saved_other: Cursor::default(),
            top: 0,
            bottom: size.rows,
            tabs: Tabs::default(),
            modes: Modes::default(),
            palette: Palette::default(),
            title: String::new(),
            bells: 0,
            replies: Vec::new(),
            last_printed: None,
        }
    }

    /// `ESC c`: all but the scroll-back and the size as new.
    fn reset(&mut self) {
        self.alternate = None;
        let blank = self.erased();
        self.primary.erase(0..self.size.rows, blank);
        self.soft_reset();
        self.saved_other = Cursor::default();
        self.cursor = Cursor::default();
        self.tabs = Tabs::default();
        self.modes = Modes::default();
        self.palette.reset();
        self.title.clear();
        self.primary.erase(0..self.size.rows, Style::default());
    }

    /// `ESC [ ! p`.
    pub(super) fn soft_reset(&mut self) {
        let Cursor { row, col, .. } = self.cursor;
        self.cursor = Cursor { row, col, ..Cursor::default() };
        self.saved = Cursor::default();
        (self.top, self.bottom) = (0, self.size.rows);
        self.modes.insert = false;
        self.modes.cursor_keys = false;
        self.modes.cursor_visible = true;
        self.modes.wrap = true;
    }

    pub(super) fn grid(&self) -> &Grid {
        self.alternate.as_ref().unwrap_or(&self.primary)
    }

    pub(super) fn grid_mut(&mut self) -> &mut Grid {
        self.alternate.as_mut().unwrap_or(&mut self.primary)
    }

    pub(super) fn row_mut(&mut self) -> &mut Row {
        let row = self.cursor.row;
        self.grid_mut().row_mut(row)
    }

    /// Style of what is erased.
    pub(super) fn erased(&self) -> Style {
        self.cursor.style.erased()
    }

    pub(super) fn reply(&mut self, text: &str) {
        if self.replies.len() + text.len() <= MAX_REPLIES {
            self.replies.extend_from_slice(text.as_bytes());
        }
    }

    /// Moves the cursor, within the screen.
    pub(super) fn go(&mut self, row: usize, col: usize) {
        self.cursor.row = row.min(self.size.rows - 1);
        self.cursor.col = col.min(self.size.cols - 1);
        self.cursor.wrap_pending = false;
    }

    /// Moves the cursor to a row as the guest counts them.
    pub(super) fn go_addressed(&mut self, row: usize, col: usize) {
        if self.cursor.origin {
            self.go((self.top + row).min(self.bottom - 1), col);
        } else {
            self.go(row, col);
        }
    }

    /// Up, stopping at the top margin if it was below it.
    pub(super) fn up(&mut self, count: usize, col: usize) {
        let least = if self.cursor.row >= self.top { self.top } else { 0 };
        self.go(self.cursor.row.saturating_sub(count).max(least), col);
    }

    /// Down, stopping at the bottom margin if it was above it.
    pub(super) fn down(&mut self, count: usize, col: usize) {
        let most = if self.cursor.row < self.bottom { self.bottom } else { self.size.rows };
        self.go((self.cursor.row + count).min(most - 1), col);
    }

    pub(super) fn forward_tab(&mut self, count: usize) {
        for _ in 0..count.min(self.size.cols) {
            let col = self.tabs.next(self.cursor.col, self.size.cols - 1);
            self.go(self.cursor.row, col);
        }
    }

    pub(super) fn back_tab(&mut self, count: usize) {
        for _ in 0..count.min(self.size.cols) {
            let col = self.tabs.previous(self.cursor.col);
            self.go(self.cursor.row, col);
        }
    }

    /// Moves rows of the margins up.
    pub(super) fn scroll_up(&mut self, count: usize) {
        let (top, bottom, style) = (self.top, self.bottom, self.erased());
        self.grid_mut().scroll_up(top, bottom, count, style);
    }

    /// Moves rows of the margins down.
    pub(super) fn scroll_down(&mut self, count: usize) {
        let (top, bottom, style) = (self.top, self.bottom, self.erased());
        self.grid_mut().scroll_down(top, bottom, count, style);
    }

    fn line_feed(&mut self) {
        self.cursor.wrap_pending = false;
        if self.cursor.row + 1 == self.bottom {
            self.scroll_up(1);
        } else if self.cursor.row + 1 < self.size.rows {
            self.cursor.row += 1;
        }
    }

    fn reverse_line_feed(&mut self) {
        self.cursor.wrap_pending = false;
        if self.cursor.row == self.top {
            self.scroll_down(1);
        } else {
            self.cursor.row = self.cursor.row.saturating_sub(1);
        }
    }

    /// Goes to the next row if the last character filled this one.
    fn wrap_if_pending(&mut self) {
        if self.cursor.wrap_pending && self.modes.wrap {
            self.row_mut().set_wrapped(true);
            self.line_feed();
            self.cursor.col = 0;
        }
        self.cursor.wrap_pending = false;
    }

    /// Moves the cursor past what was written in `width` cells.
    fn written(&mut self, width: usize) {
        self.cursor.col += width;
        if self.cursor.col >= self.size.cols {
            self.cursor.col = self.size.cols - 1;
            self.cursor.wrap_pending = true;
        }
    }

    fn put(&mut self, c: char) {
        let wide = width(c);
        if wide == 0 {
            return self.put_mark(c);
        }
        self.last_printed = Some(c);
        // A screen of one column shows half of it.
        let wide = wide.min(self.size.cols);
        if wide == 2 && self.cursor.col + 1 == self.size.cols && !self.cursor.wrap_pending {
            if self.modes.wrap {
                self.cursor.wrap_pending = true;
            } else {
                self.cursor.col -= 1;
            }
        }
        self.wrap_if_pending();
        if wide == 2 && self.cursor.col + 1 >= self.size.cols {
            self.cursor.col = self.size.cols.saturating_sub(2);
        }
        let (col, style, cols) = (self.cursor.col, self.cursor.style, self.size.cols);
        let (insert, erased) = (self.modes.insert, self.erased());
        let row = self.row_mut();
        if insert {
            row.insert(col, wide, erased, cols);
        }
        row.put(col, c, style, wide);
        self.written(wide);
    }

    /// A combining mark belongs to the character before the cursor.
    fn put_mark(&mut self, mark: char) {
        let back = usize::from(!self.cursor.wrap_pending);
        let Some(col) = self.cursor.col.checked_sub(back) else { return };
        // Controls and joiners take no cell and have no picture.
        if !mark.is_control()
            && !matches!(u32::from(mark), 0x200b..0x2010 | 0xfe00..0xfe10 | 0x2060..0x2070 | 0xfeff)
        {
            self.row_mut().add_mark(col, mark);
        }
    }

    pub(super) fn repeat_last(&mut self, count: usize) {
        if let Some(c) = self.last_printed {
            // More than the screen holds would show the same.
            for _ in 0..count.min(self.size.rows * self.size.cols) {
                self.put(c);
            }
        }
    }

    pub(super) fn save_cursor(&mut self) {
        self.saved = self.cursor;
    }

    pub(super) fn restore_cursor(&mut self) {
        self.cursor = self.saved;
    }

    /// Shows the alternate screen, blank, or the primary as it was.
    pub(super) fn use_alternate(&mut self, alternate: bool) {
        if alternate == self.alternate.is_some() {
            return;
        }
        self.alternate = alternate.then(|| Grid::new(self.size, 0));
        std::mem::swap(&mut self.saved, &mut self.saved_other);
    }

    pub(super) fn resize(&mut self, size: Size) {
        let row = self.cursor.row;
        let (shown, hidden) = match &mut self.alternate {
            Some(alternate) => (alternate, Some(&mut self.primary)),
            None => (&mut self.primary, None),
        };
        let moved = shown.resize(size, row);
        if let Some(primary) = hidden {
            let moved = primary.resize(size, self.saved_other.row.min(self.size.rows - 1));
            self.saved_other.row = self.saved_other.row.saturating_add_signed(moved).min(size.rows - 1);
        }
        self.size = size;
        (self.top, self.bottom) = (0, size.rows);
        for saved in [&mut self.saved, &mut self.saved_other] {
            saved.clamp(size);
        }
        self.go(row.saturating_add_signed(moved), self.cursor.col);
    }

    fn designate(&mut self, which: usize, last: u8) {
        self.cursor.charsets[which] = Charset::named(last);
    }

    /// `ESC # 8`: the screen full of E, to adjust a monitor by.
    fn alignment(&mut self) {
        (self.top, self.bottom) = (0, self.size.rows);
        self.go(0, 0);
        let cols = self.size.cols;
        for row in 0..self.size.rows {
            self.grid_mut().row_mut(row).put_ascii(0, &[b'E'; MAX_COLS][..cols], Style::default());
        }
    }
}

impl Actions for Screen {
    fn print_ascii(&mut self, mut text: &[u8]) {
        let charset = self.cursor.charsets[self.cursor.shift];
        if self.modes.insert || charset.changes_ascii() || self.cursor.font == Font::PcUpper {
            for byte in text {
                self.put(match self.cursor.font {
                    Font::PcUpper => pc_character(byte | 0x80),
                    Font::Pc => char::from(*byte),
                    Font::Normal => charset.character(*byte),
                });
            }
            return;
        }
        let Some(last) = text.last() else { return };
        self.last_printed = Some(char::from(*last));
        while !text.is_empty() {
            self.wrap_if_pending();
            let Cursor { col, style, .. } = self.cursor;
            let room = self.size.cols - col;
            // Without wrapping, what does not fit is written over the last column.
            if !self.modes.wrap && text.len() > room {
                let (fits, rest) = text.split_at(room - 1);
                self.row_mut().put_ascii(col, fits, style);
                self.written(fits.len());
                text = &rest[rest.len() - 1..];
                continue;
            }
            let (now, rest) = text.split_at(text.len().min(room));
            self.row_mut().put_ascii(col, now, style);
            self.written(now.len());
            text = rest;
        }
    }

    fn print(&mut self, c: char) {
        self.put(c);
    }

    fn print_byte(&mut self, byte: u8) {
        let pc = self.cursor.font != Font::Normal || self.cursor.charsets[self.cursor.shift] == Charset::Pc;
        self.put(if pc { pc_character(byte) } else { char::from(byte) });
    }

    fn control(&mut self, byte: u8) {
        match byte {
            0x07 => self.bells = self.bells.saturating_add(1),
            0x08 => self.go(self.cursor.row, self.cursor.col.saturating_sub(1)),
            0x09 => self.forward_tab(1),
            0x0a..=0x0c => {
                self.line_feed();
                if self.modes.newline {
                    self.cursor.col = 0;
                }
            }
            0x0d => self.go(self.cursor.row, 0),
            0x0e => self.cursor.shift = 1,
            0x0f => self.cursor.shift = 0,
            _ => {}
        }
    }

    fn escape(&mut self, intermediates: &[u8], last: u8) {
        match (intermediates, last) {
            ([], b'7') => self.save_cursor(),
            ([], b'8') => self.restore_cursor(),
            ([], b'c') => self.reset(),
            ([], b'D') => self.line_feed(),
            ([], b'E') => {
                self.line_feed();
                self.cursor.col = 0;
            }
            ([], b'H') => self.tabs.set(self.cursor.col, true),
            ([], b'M') => self.reverse_line_feed(),
            ([], b'Z') => self.reply(csi::DEVICE_ATTRIBUTES),
            (b"(", set) => self.designate(0, set),
            (b")", set) => self.designate(1, set),
            (b"#", b'8') => self.alignment(),
            _ => {}
        }
    }

    fn csi(&mut self, csi: &Csi) {
        csi::obey(self, csi);
    }

    fn osc(&mut self, text: &[u8]) {
        osc::obey(self, text);
    }

    fn linux_palette(&mut self, index: u8, rgb: u32) {
        self.palette.set(index, rgb);
    }
}
