//! A viewer of a screen of pixels, which a guest draws by itself. What it lacks is known tile by tile.

use super::auth::Gate;
use super::encode::{self, Encoding};
use super::message::{Message, ViewerError};
use super::pixel::PixelFormat;
use super::session::Session;
use super::tiles;
use crate::fb::canvas::{Area, Canvas, TILE};
use std::rc::Rc;

/// Bytes of an update, roughly: what is over is sent in the next one. Eight viewers that take nothing hold this much each.
const MAX_UPDATE: usize = 2 << 20;

/// What viewers show in their title.
const NAME: &str = "Screen";

/// What a viewer wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// A key, by its X11 keysym.
    Key {
        /// Or let go.
        down: bool,
        /// Which.
        keysym: u32,
    },
    /// The pointer, on the guest's screen.
    Pointer {
        /// A bit for each.
        buttons: u8,
        /// In pixels.
        x: u16,
        /// In pixels.
        y: u16,
    },
    /// It came to be the only one.
    Exclusive,
}

/// A viewer.
#[derive(Debug)]
pub struct PixelViewer {
    session: Session,
    /// Tiles that it does not have as they are.
    lacks: Vec<bool>,
    /// Of which screen.
    generation: u64,
}

impl PixelViewer {
    /// One that has just connected; the greeting is in [`Self::output`]. It is let in through `gate`, if there is one, else
    /// without being asked anything.
    pub fn new(gate: Option<Rc<Gate>>) -> Self {
        Self { session: Session::new(gate), lacks: Vec::new(), generation: 0 }
    }

    /// Bytes to be sent.
    pub fn output(&self) -> &[u8] {
        &self.session.output
    }

    /// That many of them were.
    pub fn sent(&mut self, count: usize) {
        self.session.sent(count);
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
        canvas: &Canvas,
        mut act: impl FnMut(Act),
    ) -> Result<(), ViewerError> {
        let received = self.session.received(bytes, canvas.size(), NAME)?;
        if received.exclusive {
            act(Act::Exclusive);
        }
        if received.begun {
            self.begin(canvas);
        }
        for message in received.messages {
            self.obey(&message, canvas, &mut act);
        }
        received.result
    }

    /// It has nothing.
    fn begin(&mut self, canvas: &Canvas) {
        self.lacks = vec![true; canvas.tiles()];
        self.generation = canvas.generation();
    }

    /// A tile looks otherwise than it did.
    pub fn changed(&mut self, tile: usize) {
        if let Some(lacks) = self.lacks.get_mut(tile) {
            *lacks = true;
        }
    }

    fn obey(&mut self, message: &Message, canvas: &Canvas, act: &mut impl FnMut(Act)) {
        match *message {
            Message::Format(format) => {
                self.session.use_format(format);
                self.lacks.fill(true);
            }
            Message::Encodings => self.session.forget_encodings(),
            Message::Encoding(number) => self.session.allow(number),
            Message::Update { incremental, x, y, width, height } => {
                self.session.request();
                if !incremental {
                    self.forget(canvas, [x, y, width, height].map(usize::from));
                }
            }
            Message::Key { down, keysym } => act(Act::Key { down, keysym }),
            Message::Pointer { buttons, x, y } => {
                let (width, height) = canvas.size();
                act(Act::Pointer { buttons, x: x.min(width - 1), y: y.min(height - 1) });
            }
            // The guest has no clipboard here.
            Message::CutText(_) => {}
            // And its size is its own: the answer is that it cannot be changed (3: invalid screen layout).
            Message::Resize { .. } => self.session.resized = Some(3),
        }
    }

    /// What the viewer has of an area is not known any more.
    fn forget(&mut self, canvas: &Canvas, [x, y, width, height]: [usize; 4]) {
        for (tile, lacks) in self.lacks.iter_mut().enumerate() {
            let area = canvas.area(tile);
            *lacks |= area.x < x + width
                && x < area.x + area.width
                && area.y < y + height
                && y < area.y + area.height;
        }
    }

    /// Appends an update, if one is wanted and there is something that the viewer lacks.
    pub fn update(&mut self, canvas: &Canvas) {
        if !self.wants_update() {
            return;
        }
        if self.generation != canvas.generation() {
            self.begin(canvas);
        }
        let lacks = &mut self.lacks;
        self.session.update(|session, out, rects| {
            if session.announce_size(canvas.size(), out, rects) {
                lacks.fill(true);
            }
            for row in 0..canvas.tiles() / canvas.columns() {
                for (first, count) in runs(canvas, lacks, row) {
                    if out.len() > MAX_UPDATE {
                        return;
                    }
                    lacks[first..first + count].fill(false);
                    if let Some(area) = visible(canvas, first, count, session.size) {
                        encode(session, canvas, area, out);
                        *rects += 1;
                    }
                }
            }
        });
    }
}

/// Tiles of a row that are lacked and have been looked at: the first of each run, and how many there are.
fn runs(canvas: &Canvas, lacks: &[bool], row: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    let tiles = row * canvas.columns()..(row + 1) * canvas.columns();
    for tile in tiles.filter(|tile| lacks[*tile] && !canvas.is_stale(*tile)) {
        match runs.last_mut() {
            Some((first, count)) if *first + *count == tile => *count += 1,
            _ => runs.push((tile, 1)),
        }
    }
    runs
}

/// Tiles side by side, cut to the size that the viewer knows.
fn visible(canvas: &Canvas, first: usize, count: usize, (width, height): (u16, u16)) -> Option<Area> {
    let (first, last) = (canvas.area(first), canvas.area(first + count - 1));
    let width = (last.x + last.width).min(width.into()).checked_sub(first.x)?;
    let height = (first.y + first.height).min(height.into()).checked_sub(first.y)?;
    (width > 0 && height > 0).then_some(Area { width, height, ..first })
}

/// Appends a rectangle with its header.
fn encode(session: &mut Session, canvas: &Canvas, area: Area, out: &mut Vec<u8>) {
    let Area { x, y, width, height } = area;
    encode::header(out, [x, y, width, height], session.encoding.number());
    let format: &PixelFormat = &session.format;
    match session.encoding {
        Encoding::Raw => tiles::raw(out, canvas, area, format),
        Encoding::Hextile => parts(area, 16, |part| tiles::hextile(out, canvas, part, format)),
        Encoding::Zrle => session.encoder.zlib(out, |bytes| {
            parts(area, TILE, |part| tiles::zrle(bytes, canvas, part, format));
        }),
    }
}

/// An area in squares of `side` pixels, row by row.
fn parts(area: Area, side: usize, mut each: impl FnMut(Area)) {
    for y in (area.y..area.y + area.height).step_by(side) {
        for x in (area.x..area.x + area.width).step_by(side) {
            let width = side.min(area.x + area.width - x);
            let height = side.min(area.y + area.height - y);
            each(Area { x, y, width, height });
        }
    }
}
