//! One viewer: handshake, what it asked for, what it has on its screen.

use super::auth::Gate;
use super::encode::{self, Rect};
use super::frame::{Frame, find_scroll};
use super::message::{Message, ViewerError};
use super::pixel::PixelFormat;
use super::selection::{self, Selection};
use super::session::{self, COPY_RECT, Session};
use crate::font::{CELL_HEIGHT, CELL_WIDTH};
use crate::keys::Keyboard;
use crate::term::{Size, Terminal};
use std::rc::Rc;

/// Rows that a turn of the mouse wheel scrolls, and Ctrl with an arrow one.
const WHEEL: usize = 3;

/// What a viewer wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Bytes for the guest.
    Guest(Vec<u8>),
    /// Its clipboard, to be pasted when asked.
    Paste(Vec<u8>),
    /// A screen of another size.
    Resize(Size),
    /// It came to be the only one.
    Exclusive,
}

/// A viewer.
#[derive(Debug)]
pub struct Viewer {
    session: Session,
    keyboard: Keyboard,
    /// What is on its screen; `None` when that must be sent whole.
    has: Option<Frame>,
    /// Rows of scroll-back it looks at.
    back: usize,
    buttons: u8,
    /// Its clipboard.
    cut_text: Vec<u8>,
    selection: Selection,
    /// What it marked last, as a message that waits until it has taken all others: it cannot pile them up.
    marked: Option<Vec<u8>>,
}

impl Viewer {
    /// One that has just connected; the greeting is in [`Self::output`].
    /// It is let in through `gate`, if there is one, else without being asked anything.
    pub fn new(gate: Option<Rc<Gate>>) -> Self {
        Self {
            session: Session::new(gate),
            keyboard: Keyboard::default(),
            has: None,
            back: 0,
            buttons: 0,
            cut_text: Vec::new(),
            selection: Selection::default(),
            marked: None,
        }
    }

    /// Bytes to be sent.
    pub fn output(&self) -> &[u8] {
        &self.session.output
    }

    /// That many of them were.
    pub fn sent(&mut self, count: usize) {
        self.session.sent(count);
        self.send_marked();
    }

    fn send_marked(&mut self) {
        if self.session.output.is_empty() {
            self.session.output.extend(self.marked.take().into_iter().flatten());
        }
    }

    /// The handshake is over.
    pub fn is_ready(&self) -> bool {
        self.session.is_ready()
    }

    /// An update is wanted and the last one was taken.
    pub fn wants_update(&self) -> bool {
        self.session.wants_update()
    }

    /// Takes what the viewer sent.
    ///
    /// # Errors
    /// [`ViewerError`] when it must be sent away: at once, or one that is [denied](ViewerError::Denied) when it has been
    /// sent why.
    pub fn received(
        &mut self,
        bytes: &[u8],
        terminal: &Terminal,
        mut act: impl FnMut(Input),
    ) -> Result<(), ViewerError> {
        let name = if terminal.title().is_empty() { "Console" } else { terminal.title() };
        let received = self.session.received(bytes, whole(terminal.size()), name)?;
        if received.exclusive {
            act(Input::Exclusive);
        }
        for message in received.messages {
            self.obey(message, terminal, &mut act);
        }
        received.result
    }

    fn obey(&mut self, message: Message, terminal: &Terminal, act: &mut impl FnMut(Input)) {
        match message {
            Message::Format(format) => {
                self.session.use_format(format);
                self.has = None;
            }
            Message::Encodings => self.session.forget_encodings(),
            Message::Encoding(number) => self.session.allow(number),
            Message::Update { incremental, x, y, width, height } => {
                self.session.request();
                if !incremental {
                    self.forget(x, y, width, height);
                }
            }
            Message::Key { down, keysym } => self.key(down, keysym, terminal, act),
            Message::Pointer { buttons, x, y } => {
                if let Some(text) = self.selection.pointer(buttons, (x, y), terminal, self.back) {
                    self.marked = Some(selection::message(&text));
                    self.send_marked();
                }
                self.pointer(buttons, terminal, act);
            }
            Message::CutText(text) => self.cut_text = text,
            Message::Resize { width, height } => {
                let size =
                    Size { cols: usize::from(width) / CELL_WIDTH, rows: usize::from(height) / CELL_HEIGHT };
                self.session.resized = Some(1);
                act(Input::Resize(size.clamped()));
            }
        }
    }

    /// What the viewer has of an area is not known any more.
    fn forget(&mut self, x: u16, y: u16, width: u16, height: u16) {
        let Some(has) = &mut self.has else { return };
        let area = |start: u16, length: u16, cell: usize, most: usize| {
            let end = usize::from(start) + usize::from(length);
            (usize::from(start) / cell).min(most)..end.div_ceil(cell).min(most)
        };
        let cols = has.size.cols;
        for row in area(y, height, CELL_HEIGHT, has.size.rows) {
            for col in area(x, width, CELL_WIDTH, cols) {
                // A colour that no cell has.
                has.cells[row * cols + col].bg = u32::MAX;
            }
        }
    }

    fn scroll(&mut self, rows: isize, terminal: &Terminal) {
        self.back = self.back.saturating_add_signed(rows).min(terminal.history());
    }

    fn key(&mut self, down: bool, keysym: u32, terminal: &Terminal, act: &mut impl FnMut(Input)) {
        let page = isize::try_from(terminal.size().rows).unwrap_or(1) / 2;
        if let Some(by) = self.keyboard.scrolls(down, keysym) {
            return self.scroll(by * if by.abs() == 1 { 1 } else { page }, terminal);
        }
        if self.keyboard.pastes(down, keysym) {
            return self.paste(act);
        }
        let bytes = self.keyboard.key(down, keysym, terminal.modes());
        if !bytes.is_empty() {
            self.back = 0;
            act(Input::Guest(bytes));
        }
    }

    fn pointer(&mut self, buttons: u8, terminal: &Terminal, act: &mut impl FnMut(Input)) {
        let pressed = buttons & !self.buttons;
        self.buttons = buttons;
        let wheel = isize::try_from(WHEEL).unwrap_or(1);
        if pressed & 8 != 0 {
            self.scroll(wheel, terminal);
        }
        if pressed & 16 != 0 {
            self.scroll(-wheel, terminal);
        }
        if pressed & 2 != 0 {
            self.paste(act);
        }
    }

    fn paste(&mut self, act: &mut impl FnMut(Input)) {
        if !self.cut_text.is_empty() {
            self.back = 0;
            act(Input::Paste(self.cut_text.clone()));
        }
    }

    /// Rings, if the viewer takes messages.
    pub fn bell(&mut self) {
        if self.is_ready() && self.session.output.is_empty() {
            self.session.output.push(2);
        }
    }

    /// Appends an update, if one is wanted and something changed.
    pub fn update(&mut self, terminal: &Terminal) {
        if !self.wants_update() {
            return;
        }
        self.back = self.back.min(terminal.history());
        let frame = Frame::marked(terminal, self.back, &self.selection.cells(terminal.size()));
        let mut has = self.has.take();
        let sent = self.session.update(|session, out, rects| {
            if session.announce_size(whole(frame.size), out, rects) {
                has = None;
            }
            if session.takes_cursor() {
                *rects += 1;
                send_pointer(out, &session.format);
            }
            encode(session, &mut has, &frame, out, rects);
        });
        self.has = if sent { Some(frame) } else { has };
    }
}

/// Rectangles of what differs from what the viewer `has`, within the size it knows.
fn encode(session: &mut Session, has: &mut Option<Frame>, frame: &Frame, out: &mut Vec<u8>, rects: &mut u16) {
    let known = Size {
        cols: usize::from(session.size.0) / CELL_WIDTH,
        rows: usize::from(session.size.1) / CELL_HEIGHT,
    };
    let size = Size { cols: frame.size.cols.min(known.cols), rows: frame.size.rows.min(known.rows) };
    has.take_if(|has| has.size != frame.size);
    if let Some(has) = has
        && session.copy_rect
        && size == frame.size
        && let Some(scroll) = find_scroll(has, frame)
    {
        has.scroll(scroll);
        let (width, height) = (size.cols * CELL_WIDTH, scroll.rows * CELL_HEIGHT);
        encode::header(out, [0, scroll.to * CELL_HEIGHT, width, height], COPY_RECT);
        out.extend([0, 0]);
        out.extend(u16::try_from(scroll.from * CELL_HEIGHT).unwrap_or(0).to_be_bytes());
        *rects += 1;
    }
    for rect in damage(has.as_ref(), frame, size) {
        session.encoder.encode(out, frame, rect, session.encoding, &session.format);
        *rects += 1;
    }
}

/// Width and height of the screen in pixels.
fn whole(size: Size) -> (u16, u16) {
    let pixels = |cells: usize, each: usize| u16::try_from(cells * each).unwrap_or(u16::MAX);
    (pixels(size.cols, CELL_WIDTH), pixels(size.rows, CELL_HEIGHT))
}

/// What differs: in each row from its first to its last changed cell; rows with the same span are one rectangle.
fn damage(has: Option<&Frame>, frame: &Frame, size: Size) -> Vec<Rect> {
    let mut rects: Vec<Rect> = Vec::new();
    let Some(has) = has else { return vec![Rect { row: 0, col: 0, rows: size.rows, cols: size.cols }] };
    for row in 0..size.rows {
        let (old, new) = (&has.row(row)[..size.cols], &frame.row(row)[..size.cols]);
        let Some(col) = old.iter().zip(new).position(|(old, new)| old != new) else { continue };
        let last = old.iter().zip(new).rposition(|(old, new)| old != new).unwrap_or(col);
        let cols = last + 1 - col;
        match rects.last_mut() {
            Some(above) if above.row + above.rows == row && (above.col, above.cols) == (col, cols) => {
                above.rows += 1;
            }
            _ => rects.push(Rect { row, col, rows: 1, cols }),
        }
    }
    rects
}

/// The mouse pointer: an I-beam, 8x16.
fn send_pointer(out: &mut Vec<u8>, format: &PixelFormat) {
    let mut rows = [0b0000_1000_u8; CELL_HEIGHT];
    (rows[0], rows[15]) = (0b0001_0100, 0b0001_0100);
    session::cursor(out, [4, 8, CELL_WIDTH, CELL_HEIGHT]);
    let white = format.pixel(0x00ff_ffff);
    for _ in 0..CELL_WIDTH * CELL_HEIGHT {
        out.extend_from_slice(&white[..format.bytes]);
    }
    out.extend(rows);
}
