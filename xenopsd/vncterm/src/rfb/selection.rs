//! Text that a viewer marks with the left button, and gets as its clipboard when it lets the button go.
//!
//! What is marked are the characters between two places in reading order, as in xterm. It is shown inverted while the
//! button is down, to this viewer only; the viewer's own clipboard has it afterwards.

use std::ops::Range;

use crate::font::{CELL_HEIGHT, CELL_WIDTH};
use crate::term::{Size, Terminal};

/// Button 1 of a pointer event's mask (RFC 6143, 7.5.5).
const LEFT: u8 = 1;

/// Most bytes of the text that is sent: the largest screen has half as many cells, with a line end for each row.
const MAX_CUT_TEXT: usize = 64 << 10;

/// Row and column of a cell on the viewer's screen.
type Place = (usize, usize);

/// What one viewer marks.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Where the button was pressed and where the pointer is now, while it is down.
    marked: Option<(Place, Place)>,
}

impl Selection {
    /// The pointer is at `x`, `y`, in pixels. Returns the text that was marked when the button is let go.
    pub(super) fn pointer(
        &mut self,
        buttons: u8,
        (x, y): (u16, u16),
        terminal: &Terminal,
        back: usize,
    ) -> Option<String> {
        let size = terminal.size();
        let place = |pixel: u16, cell: usize, count: usize| (usize::from(pixel) / cell).min(count - 1);
        let here = (place(y, CELL_HEIGHT, size.rows), place(x, CELL_WIDTH, size.cols));
        if buttons & LEFT != 0 {
            self.marked = Some((self.marked.map_or(here, |(pressed, _)| pressed), here));
            return None;
        }
        let (pressed, _) = self.marked.take()?;
        // A click marks nothing.
        (pressed != here).then(|| text(terminal, back, span(pressed, here)))
    }

    /// The cells to be shown as marked, counted in reading order, on a screen of this size.
    pub(super) fn cells(&self, size: Size) -> Range<usize> {
        let Some((pressed, here)) = self.marked.filter(|(pressed, here)| pressed != here) else {
            return 0..0;
        };
        let at = |(row, col): Place| row * size.cols + col.min(size.cols - 1);
        let (first, last) = span(pressed, here);
        at(first)..at(last) + 1
    }
}

/// The two in reading order.
fn span(one: Place, other: Place) -> (Place, Place) {
    (one.min(other), one.max(other))
}

/// Lines are ended by line feeds; one that goes on in the next row is one line.
fn text(
    terminal: &Terminal,
    back: usize,
    ((from_row, from_col), (to_row, to_col)): (Place, Place),
) -> String {
    let mut text = String::new();
    for row in from_row..=to_row {
        let line = terminal.viewed(row, back);
        let from = if row == from_row { from_col } else { 0 };
        let to = if row == to_row { to_col + 1 } else { usize::MAX };
        text.push_str(&line.text_of(from, to));
        if row != to_row && !line.wrapped() {
            text.push('\n');
        }
    }
    text
}

/// As the protocol has it (RFC 6143, 7.6.4): Latin-1, at most [`MAX_CUT_TEXT`] bytes. Other characters are question marks;
/// no character that a screen shows is a control character, and none is sent.
pub(super) fn message(text: &str) -> Vec<u8> {
    let kept = text.chars().filter(|c| !c.is_control() || *c == '\n').take(MAX_CUT_TEXT);
    let latin: Vec<u8> = kept.map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).collect();
    let mut message = vec![3, 0, 0, 0];
    message.extend(u32::try_from(latin.len()).unwrap_or(0).to_be_bytes());
    message.extend(latin);
    message
}

#[cfg(test)]
mod tests {
    use super::super::frame::Frame;
    use super::*;

    fn terminal() -> Terminal {
        let mut terminal = Terminal::new(Size { cols: 10, rows: 3 }, 10);
        terminal.feed("old\r\nab漢é cdef--wrapped\r\nx\x1b[1;31m─y".as_bytes());
        terminal
    }

    /// The pixel in the middle of a cell.
    fn at(row: u16, col: u16) -> (u16, u16) {
        (col * 8 + 4, row * 16 + 8)
    }

    fn marked(from: (u16, u16), to: (u16, u16), back: usize) -> Option<String> {
        let (terminal, mut selection) = (terminal(), Selection::default());
        assert_eq!(selection.pointer(0, from, &terminal, back), None);
        assert_eq!(selection.pointer(1, from, &terminal, back), None);
        assert_eq!(selection.pointer(1, to, &terminal, back), None);
        let text = selection.pointer(0, to, &terminal, back);
        assert_eq!(selection.pointer(0, from, &terminal, back), None, "once");
        text
    }

    #[test]
    fn what_is_between_two_places_is_marked() {
        assert_eq!(marked(at(0, 1), at(0, 4), 0).as_deref(), Some("b漢é"));
        assert_eq!(marked(at(0, 4), at(0, 1), 0).as_deref(), Some("b漢é"), "backwards");
        assert_eq!(marked(at(0, 6), at(2, 1), 0).as_deref(), Some("cdef--wrapped\nx─"), "over rows");
        assert_eq!(
            marked(at(0, 0), at(0, 9), 1).as_deref(),
            Some("old"),
            "of the scroll-back, without blanks"
        );
        assert_eq!(marked(at(0, 3), at(0, 3), 0), None, "a click marks nothing");
        assert_eq!(marked((0, 0), (u16::MAX, u16::MAX), 0).as_deref(), Some("ab漢é cdef--wrapped\nx─y"));
    }

    #[test]
    fn it_is_shown_while_the_button_is_down() {
        let (mut terminal, mut selection) = (terminal(), Selection::default());
        let cells = |selection: &Selection, terminal: &Terminal| selection.cells(terminal.size());
        selection.pointer(1, at(0, 1), &terminal, 0);
        assert_eq!(cells(&selection, &terminal), 0..0);
        selection.pointer(1, at(1, 0), &terminal, 0);
        assert_eq!(cells(&selection, &terminal), 1..11);
        let inverted = Frame::marked(&terminal, 0, &(1..11));
        let plain = Frame::of(&terminal, 0);
        let changed: Vec<_> = (0..30).filter(|n| inverted.cells[*n] != plain.cells[*n]).collect();
        assert_eq!(changed, (1..11).collect::<Vec<_>>());
        terminal.feed(b"\x1b[1;2H");
        assert!(
            Frame::marked(&terminal, 0, &(1..11)).cells[1] == plain.cells[1],
            "the cursor stands out in it"
        );
        // The screen became smaller since.
        terminal.resize(Size { cols: 5, rows: 1 });
        assert_eq!(cells(&selection, &terminal), 1..6);
        Frame::marked(&terminal, 0, &(1..6));
        selection.pointer(0, at(1, 0), &terminal, 0);
        assert_eq!(cells(&selection, &terminal), 0..0);
    }

    #[test]
    fn it_is_sent_as_latin_1_within_bounds() {
        assert_eq!(message("é漢\n\x1b"), b"\x03\0\0\0\0\0\0\x03\xe9?\n");
        let long = message(&"x".repeat(1 << 20));
        assert_eq!(long.len(), 8 + MAX_CUT_TEXT);
        assert_eq!(long[4..8], [0, 1, 0, 0]);
    }
}
