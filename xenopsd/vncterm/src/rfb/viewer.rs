//! One viewer: handshake, what it asked for, what it has on its screen.

use super::auth::Gate;
use super::encode::{self, Encoder, Encoding, MAX_KEPT, Rect};
use super::frame::{Frame, find_scroll};
use super::handshake::Handshake;
use super::message::{Message, Messages, ViewerError};
use super::pixel::PixelFormat;
use super::selection::{self, Selection};
use crate::font::{CELL_HEIGHT, CELL_WIDTH};
use crate::keys::Keyboard;
use crate::term::{Size, Terminal};
use std::rc::Rc;

/// Rows that a turn of the mouse wheel scrolls, and Ctrl with an arrow one.
const WHEEL: usize = 3;

const PSEUDO_CURSOR: i32 = -239;
const PSEUDO_DESKTOP_SIZE: i32 = -223;
const PSEUDO_EXTENDED_DESKTOP_SIZE: i32 = -308;
const COPY_RECT: i32 = 1;

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
    handshake: Handshake,
    messages: Messages,
    keyboard: Keyboard,
    format: PixelFormat,
    encoder: Encoder,
    encoding: Encoding,
    copy_rect: bool,
    cursor: bool,
    desktop_size: bool,
    extended_size: bool,
    cursor_sent: bool,
    encoding_chosen: bool,
    /// An update is wanted.
    requested: bool,
    /// What is on its screen; `None` when that must be sent whole.
    has: Option<Frame>,
    /// The size it was told.
    size: Size,
    resized: Option<u16>,
    /// Rows of scroll-back it looks at.
    back: usize,
    buttons: u8,
    /// Its clipboard.
    cut_text: Vec<u8>,
    selection: Selection,
    /// What it marked last, as a message that waits until it has taken all others: it cannot pile them up.
    marked: Option<Vec<u8>>,
    output: Vec<u8>,
}

impl Viewer {
    /// One that has just connected; the greeting is in [`Self::output`].
    /// It is let in through `gate`, if there is one, else without being asked anything.
    pub fn new(gate: Option<Rc<Gate>>) -> Self {
        Self {
            handshake: Handshake::new(gate),
            messages: Messages::default(),
            keyboard: Keyboard::default(),
            format: PixelFormat::OFFERED,
            encoder: Encoder::default(),
            encoding: Encoding::Raw,
            copy_rect: false,
            cursor: false,
            desktop_size: false,
            extended_size: false,
            cursor_sent: false,
            encoding_chosen: false,
            requested: false,
            has: None,
            size: Size::DEFAULT,
            resized: None,
            back: 0,
            buttons: 0,
            cut_text: Vec::new(),
            selection: Selection::default(),
            marked: None,
            output: Handshake::GREETING.to_vec(),
        }
    }

    /// Bytes to be sent.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// That many of them were.
    pub fn sent(&mut self, count: usize) {
        self.output.drain(..count.min(self.output.len()));
        if self.output.is_empty() {
            self.output.shrink_to(MAX_KEPT);
            self.send_marked();
        }
    }

    fn send_marked(&mut self) {
        if self.output.is_empty() {
            self.output.extend(self.marked.take().into_iter().flatten());
        }
    }

    /// The handshake is over.
    pub fn is_ready(&self) -> bool {
        self.handshake.is_over()
    }

    /// An update is wanted and the last one was taken.
    pub fn wants_update(&self) -> bool {
        self.is_ready() && self.requested && self.output.is_empty()
    }

    /// Takes what the viewer sent.
    ///
    /// # Errors
    /// [`ViewerError`] when it must be sent away: at once, or one that is [denied](ViewerError::Denied) when it has been
    /// sent why.
    pub fn received(
        &mut self,
        mut bytes: &[u8],
        terminal: &Terminal,
        mut act: impl FnMut(Input),
    ) -> Result<(), ViewerError> {
        if !self.is_ready() {
            let Some(begun) = self.handshake.received(bytes, &mut self.output)? else { return Ok(()) };
            bytes = &bytes[begun.taken..];
            if !begun.shared {
                act(Input::Exclusive);
            }
            self.begin(terminal);
        }
        let mut messages = std::mem::take(&mut self.messages);
        let result = messages.feed(bytes, |message| {
            self.obey(message, terminal, &mut act);
            Ok(())
        });
        self.messages = messages;
        result
    }

    /// What the viewer is told of the screen.
    fn begin(&mut self, terminal: &Terminal) {
        self.size = terminal.size();
        let [_, _, width, height] = whole(self.size);
        self.output.extend(width.to_be_bytes());
        self.output.extend(height.to_be_bytes());
        self.output.extend(self.format.to_bytes());
        let name = if terminal.title().is_empty() { "Console" } else { terminal.title() };
        self.output.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        self.output.extend_from_slice(name.as_bytes());
    }

    fn obey(&mut self, message: Message, terminal: &Terminal, act: &mut impl FnMut(Input)) {
        match message {
            Message::Format(format) => {
                self.format = format.unwrap_or(PixelFormat::MAPPED);
                self.has = None;
                self.cursor_sent = false;
                if format.is_none() {
                    self.send_colour_map();
                }
            }
            Message::Encodings => {
                (self.encoding, self.encoding_chosen) = (Encoding::Raw, false);
                (self.copy_rect, self.cursor, self.desktop_size, self.extended_size) =
                    (false, false, false, false);
            }
            Message::Encoding(number) => self.allow(number),
            Message::Update { incremental, x, y, width, height } => {
                self.requested = true;
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
                self.resized = Some(1);
                act(Input::Resize(size.clamped()));
            }
        }
    }

    fn allow(&mut self, number: i32) {
        match number {
            COPY_RECT => self.copy_rect = true,
            PSEUDO_CURSOR => self.cursor = true,
            PSEUDO_DESKTOP_SIZE => self.desktop_size = true,
            PSEUDO_EXTENDED_DESKTOP_SIZE => {
                self.extended_size = true;
                self.resized.get_or_insert(0);
            }
            _ => {
                if let (Some(encoding), false) = (Encoding::numbered(number), self.encoding_chosen) {
                    (self.encoding, self.encoding_chosen) = (encoding, true);
                }
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

    fn send_colour_map(&mut self) {
        self.output.extend([1, 0, 0, 0, 1, 0]);
        for index in 0..=u8::MAX {
            let level = |bits: u8, most: u16| (u16::from(bits) * (u16::MAX / most)).to_be_bytes();
            for color in [level(index & 7, 7), level(index >> 3 & 7, 7), level(index >> 6, 3)] {
                self.output.extend(color);
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
        if self.is_ready() && self.output.is_empty() {
            self.output.push(2);
        }
    }

    /// Appends an update, if one is wanted and something changed.
    pub fn update(&mut self, terminal: &Terminal) {
        if !self.wants_update() {
            return;
        }
        self.back = self.back.min(terminal.history());
        let frame = Frame::marked(terminal, self.back, &self.selection.cells(terminal.size()));
        // It is empty, and the update may be of a megabyte: it is written in place.
        let mut out = std::mem::take(&mut self.output);
        out.extend([0; 4]);
        let mut rects = 0_u16;
        self.announce_size(frame.size, &mut out, &mut rects);
        if self.cursor && !self.cursor_sent {
            self.cursor_sent = true;
            rects += 1;
            send_pointer(&mut out, &self.format);
        }
        self.encode(&frame, &mut out, &mut rects);
        if rects == 0 {
            out.clear();
        } else {
            out[2..4].copy_from_slice(&rects.to_be_bytes());
            self.requested = false;
            self.has = Some(frame);
        }
        self.output = out;
    }

    fn announce_size(&mut self, size: Size, out: &mut Vec<u8>, rects: &mut u16) {
        let [_, _, width, height] = whole(size).map(usize::from);
        let changed = size != self.size;
        if let Some(reason) = self.resized.filter(|_| self.extended_size).or(changed.then_some(0))
            && self.extended_size
        {
            encode::header(out, [usize::from(reason), 0, width, height], PSEUDO_EXTENDED_DESKTOP_SIZE);
            out.extend([1, 0, 0, 0]);
            out.extend([0; 8]);
            out.extend(whole(size)[2].to_be_bytes());
            out.extend(whole(size)[3].to_be_bytes());
            out.extend([0; 4]);
            *rects += 1;
        } else if changed && self.desktop_size {
            encode::header(out, [0, 0, width, height], PSEUDO_DESKTOP_SIZE);
            *rects += 1;
        }
        self.resized = None;
        if changed && (self.desktop_size || self.extended_size) {
            self.size = size;
            self.has = None;
        }
    }

    /// Rectangles of what differs from what the viewer has, within the size it knows.
    fn encode(&mut self, frame: &Frame, out: &mut Vec<u8>, rects: &mut u16) {
        let size =
            Size { cols: frame.size.cols.min(self.size.cols), rows: frame.size.rows.min(self.size.rows) };
        let mut has = self.has.take().filter(|has| has.size == frame.size);
        if let Some(has) = &mut has
            && self.copy_rect
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
            self.encoder.encode(out, frame, rect, self.encoding, &self.format);
            *rects += 1;
        }
        self.has = has;
    }
}

/// x, y, width and height of the screen in pixels.
fn whole(size: Size) -> [u16; 4] {
    let pixels = |cells: usize, each: usize| u16::try_from(cells * each).unwrap_or(u16::MAX);
    [0, 0, pixels(size.cols, CELL_WIDTH), pixels(size.rows, CELL_HEIGHT)]
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
    encode::header(out, [4, 8, CELL_WIDTH, CELL_HEIGHT], PSEUDO_CURSOR);
    let white = format.pixel(0x00ff_ffff);
    for _ in 0..CELL_WIDTH * CELL_HEIGHT {
        out.extend_from_slice(&white[..format.bytes]);
    }
    out.extend(rows);
}
