//! Reading a saved state. It may be anything: every number is checked before it is used.

use super::cell::{Cell, Style};
use super::charset::Charset;
use super::grid::{Grid, Row};
use super::save::{FLAGS, MAGIC, UTF8_FLAG, VERSION};
use super::screen::{Cursor, Font, Screen};
use super::{MAX_COLS, MAX_ROWS, MAX_SCROLLBACK, Size};
use std::collections::VecDeque;
use std::fmt;

/// What is wrong with a saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateError {
    /// It does not begin as one.
    NotAState,
    /// A version that this program does not know.
    Version(u32),
    /// It ends in the middle.
    Short,
    /// It goes on after its end by this many bytes.
    Long(usize),
    /// A number that is out of its range.
    OutOfRange {
        /// Which.
        field: &'static str,
        /// The number.
        value: u32,
    },
}

impl fmt::Display for StateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAState => f.write_str("not a saved terminal"),
            Self::Version(version) => write!(f, "version {version} of a saved terminal; known is {VERSION}"),
            Self::Short => f.write_str("the saved terminal is cut short"),
            Self::Long(by) => write!(f, "{by} bytes follow the saved terminal"),
            Self::OutOfRange { field, value } => write!(f, "the saved terminal's {field} is {value}"),
        }
    }
}

impl std::error::Error for StateError {}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Result<&'a [u8], StateError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(StateError::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StateError> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(StateError::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, StateError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, StateError> {
        self.array().map(u32::from_le_bytes)
    }

    /// A number of 16 bits from `least` to `most`.
    fn within(&mut self, field: &'static str, least: usize, most: usize) -> Result<usize, StateError> {
        let value = u16::from_le_bytes(self.array()?);
        let out = StateError::OutOfRange { field, value: u32::from(value) };
        Some(usize::from(value)).filter(|value| (least..=most).contains(value)).ok_or(out)
    }

    fn bool(&mut self, field: &'static str) -> Result<bool, StateError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(StateError::OutOfRange { field, value: u32::from(value) }),
        }
    }

    fn words<const N: usize>(&mut self) -> Result<[u32; N], StateError> {
        let mut words = [0; N];
        for word in &mut words {
            *word = self.u32()?;
        }
        Ok(words)
    }

    fn cursor(&mut self, size: Size) -> Result<Cursor, StateError> {
        let row = self.within("cursor row", 0, MAX_ROWS)?;
        let col = self.within("cursor column", 0, MAX_COLS)?;
        let bits = self.u8()?;
        let font = match self.u8()? {
            0 => Font::Normal,
            1 => Font::Pc,
            2 => Font::PcUpper,
            value => return Err(StateError::OutOfRange { field: "font", value: u32::from(value) }),
        };
        let shift = usize::from(self.bool("character set in use")?);
        let charsets = [Charset::named(self.u8()?), Charset::named(self.u8()?)];
        let style = Style::from_words(self.words()?);
        let (wrap_pending, origin) = (bits & 1 != 0, bits & 2 != 0);
        let mut cursor = Cursor { row, col, wrap_pending, style, charsets, shift, origin, font };
        cursor.clamp(size);
        Ok(cursor)
    }

    fn row(&mut self, cols: usize) -> Result<Row, StateError> {
        let count = self.within("row's length", 0, cols)?;
        let wrapped = self.bool("row's wrap")?;
        let cells = (0..count).map(|_| self.words().map(Cell::from_words)).collect::<Result<_, _>>()?;
        Ok(Row::from_parts(cells, wrapped))
    }

    fn grid(&mut self, size: Size, limit: usize) -> Result<Grid, StateError> {
        let count = self.u32()?;
        let most = size.rows + limit;
        let rows = usize::try_from(count).ok().filter(|rows| (size.rows..=most).contains(rows));
        let rows = rows.ok_or(StateError::OutOfRange { field: "count of rows", value: count })?;
        let rows = (0..rows).map(|_| self.row(size.cols)).collect::<Result<VecDeque<_>, _>>()?;
        Ok(Grid::restore(size, limit, rows))
    }
}

/// The screen, and whether bytes are UTF-8.
pub(super) fn restore(state: &[u8]) -> Result<(Screen, bool), StateError> {
    let mut from = Reader(state.strip_prefix(MAGIC).ok_or(StateError::NotAState)?);
    let version = from.u32()?;
    if version != VERSION {
        return Err(StateError::Version(version));
    }
    let size = Size { cols: from.within("columns", 1, MAX_COLS)?, rows: from.within("rows", 1, MAX_ROWS)? };
    let limit = from.within("scroll-back", 0, MAX_SCROLLBACK)?;
    let mut screen = Screen::new(size, limit);
    let flags = u16::from_le_bytes(from.array()?);
    for (bit, flag) in FLAGS.iter().enumerate() {
        *flag(&mut screen.modes) = flags >> bit & 1 == 1;
    }
    screen.cursor = from.cursor(size)?;
    screen.saved = from.cursor(size)?;
    screen.saved_other = from.cursor(size)?;
    screen.top = from.within("top margin", 0, size.rows - 1)?;
    screen.bottom = from.within("bottom margin", screen.top + 1, size.rows)?;
    for (at, bits) in from.array::<{ MAX_COLS / 8 }>()?.into_iter().enumerate() {
        for bit in 0..8 {
            screen.tabs.set(at * 8 + bit, bits >> bit & 1 == 1);
        }
    }
    for _ in 0..from.within("count of colours", 0, 256)? {
        let index = from.u8()?;
        screen.palette.set(index, from.u32()?);
    }
    let title = from.within("title's length", 0, osc_title_bytes())?;
    screen.title = String::from_utf8_lossy(from.bytes(title)?).chars().filter(|c| !c.is_control()).collect();
    let both = match from.u8()? {
        1 => false,
        2 => true,
        value => return Err(StateError::OutOfRange { field: "count of screens", value: u32::from(value) }),
    };
    screen.primary = from.grid(size, limit)?;
    screen.alternate = both.then(|| from.grid(size, 0)).transpose()?;
    if !from.0.is_empty() {
        return Err(StateError::Long(from.0.len()));
    }
    Ok((screen, flags & UTF8_FLAG != 0))
}

/// Most bytes of a title.
const fn osc_title_bytes() -> usize {
    super::osc::MAX_TITLE * 4
}
