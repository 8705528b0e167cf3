//! What conversations with viewers of any kind of screen have in common: who they are, which pixels and encodings they
//! want, and what is to be sent.

use super::auth::Gate;
use super::encode::{self, Encoder, Encoding, MAX_KEPT};
use super::handshake::Handshake;
use super::message::{Message, Messages, ViewerError};
use super::pixel::PixelFormat;
use std::rc::Rc;

const PSEUDO_CURSOR: i32 = -239;
const PSEUDO_DESKTOP_SIZE: i32 = -223;
const PSEUDO_EXTENDED_DESKTOP_SIZE: i32 = -308;
pub(super) const COPY_RECT: i32 = 1;

/// What a viewer has sent.
pub(super) struct Received {
    /// The handshake was over with it.
    pub(super) begun: bool,
    /// Then, too: it came to be the only one.
    pub(super) exclusive: bool,
    /// The messages that came, up to one that is none.
    pub(super) messages: Vec<Message>,
    /// For that one the viewer must be sent away, once the others are obeyed.
    pub(super) result: Result<(), ViewerError>,
}

/// One conversation.
#[derive(Debug)]
pub(super) struct Session {
    handshake: Handshake,
    messages: Messages,
    pub(super) format: PixelFormat,
    pub(super) encoder: Encoder,
    pub(super) encoding: Encoding,
    encoding_chosen: bool,
    pub(super) copy_rect: bool,
    cursor: bool,
    desktop_size: bool,
    extended_size: bool,
    cursor_sent: bool,
    /// An update is wanted.
    requested: bool,
    /// The size it was told, in pixels.
    pub(super) size: (u16, u16),
    /// It asked for another size, or must be told that it may: the reason of the next message of the size.
    pub(super) resized: Option<u16>,
    pub(super) output: Vec<u8>,
}

impl Session {
    /// One that begins: the greeting is to be sent.
    pub(super) fn new(gate: Option<Rc<Gate>>) -> Self {
        Self {
            handshake: Handshake::new(gate),
            messages: Messages::default(),
            format: PixelFormat::OFFERED,
            encoder: Encoder::default(),
            encoding: Encoding::Raw,
            encoding_chosen: false,
            copy_rect: false,
            cursor: false,
            desktop_size: false,
            extended_size: false,
            cursor_sent: false,
            requested: false,
            size: (0, 0),
            resized: None,
            output: Handshake::GREETING.to_vec(),
        }
    }

    /// So many bytes of the output were sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.output.drain(..count.min(self.output.len()));
        if self.output.is_empty() {
            self.output.shrink_to(MAX_KEPT);
        }
    }

    /// The handshake is over.
    pub(super) fn is_ready(&self) -> bool {
        self.handshake.is_over()
    }

    /// An update is wanted and the last one was taken.
    pub(super) fn wants_update(&self) -> bool {
        self.is_ready() && self.requested && self.output.is_empty()
    }

    /// Takes what the viewer sent. When that ends the handshake it is told of the screen.
    pub(super) fn received(
        &mut self,
        mut bytes: &[u8],
        size: (u16, u16),
        name: &str,
    ) -> Result<Received, ViewerError> {
        let mut received = Received { begun: false, exclusive: false, messages: Vec::new(), result: Ok(()) };
        if !self.is_ready() {
            let Some(begun) = self.handshake.received(bytes, &mut self.output)? else { return Ok(received) };
            bytes = &bytes[begun.taken..];
            (received.begun, received.exclusive) = (true, !begun.shared);
            self.begin(size, name);
        }
        received.result = self.messages.feed(bytes, |message| {
            received.messages.push(message);
            Ok(())
        });
        Ok(received)
    }

    /// What the viewer is told of the screen.
    fn begin(&mut self, size: (u16, u16), name: &str) {
        self.size = size;
        self.output.extend(size.0.to_be_bytes());
        self.output.extend(size.1.to_be_bytes());
        self.output.extend(self.format.to_bytes());
        self.output.extend(u32::try_from(name.len()).unwrap_or(0).to_be_bytes());
        self.output.extend_from_slice(name.as_bytes());
    }

    /// The viewer wants an update.
    pub(super) fn request(&mut self) {
        self.requested = true;
    }

    /// It wants other pixels: all that it has is void.
    pub(super) fn use_format(&mut self, format: Option<PixelFormat>) {
        self.format = format.unwrap_or(PixelFormat::MAPPED);
        self.cursor_sent = false;
        if format.is_none() {
            self.send_colour_map();
        }
    }

    /// A list of encodings begins.
    pub(super) fn forget_encodings(&mut self) {
        (self.encoding, self.encoding_chosen) = (Encoding::Raw, false);
        (self.copy_rect, self.cursor, self.desktop_size, self.extended_size) = (false, false, false, false);
    }

    /// One of that list.
    pub(super) fn allow(&mut self, number: i32) {
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

    fn send_colour_map(&mut self) {
        self.output.extend([1, 0, 0, 0, 1, 0]);
        for index in 0..=u8::MAX {
            let level = |bits: u8, most: u16| (u16::from(bits) * (u16::MAX / most)).to_be_bytes();
            for color in [level(index & 7, 7), level(index >> 3 & 7, 7), level(index >> 6, 3)] {
                self.output.extend(color);
            }
        }
    }

    /// Whether the picture of the pointer is to be sent, which it is once.
    pub(super) fn takes_cursor(&mut self) -> bool {
        self.cursor && !std::mem::replace(&mut self.cursor_sent, true)
    }

    /// The update's message: `fill` appends rectangles to it and counts them. Without any there is none.
    pub(super) fn update(&mut self, fill: impl FnOnce(&mut Self, &mut Vec<u8>, &mut u16)) -> bool {
        // It is empty, and the update may be of a megabyte: it is written in place.
        let mut out = std::mem::take(&mut self.output);
        out.extend([0; 4]);
        let mut rects = 0;
        fill(self, &mut out, &mut rects);
        if rects == 0 {
            out.clear();
        } else {
            out[2..4].copy_from_slice(&rects.to_be_bytes());
            self.requested = false;
        }
        self.output = out;
        rects > 0
    }

    /// Tells of another size, if the viewer can be told; whether what it has is void then.
    pub(super) fn announce_size(&mut self, size: (u16, u16), out: &mut Vec<u8>, rects: &mut u16) -> bool {
        let (width, height) = (usize::from(size.0), usize::from(size.1));
        let changed = size != self.size;
        if let Some(reason) = self.resized.filter(|_| self.extended_size).or(changed.then_some(0))
            && self.extended_size
        {
            encode::header(out, [usize::from(reason), 0, width, height], PSEUDO_EXTENDED_DESKTOP_SIZE);
            out.extend([1, 0, 0, 0]);
            out.extend([0; 8]);
            out.extend(size.0.to_be_bytes());
            out.extend(size.1.to_be_bytes());
            out.extend([0; 4]);
            *rects += 1;
        } else if changed && self.desktop_size {
            encode::header(out, [0, 0, width, height], PSEUDO_DESKTOP_SIZE);
            *rects += 1;
        }
        self.resized = None;
        let told = changed && (self.desktop_size || self.extended_size);
        if told {
            self.size = size;
        }
        told
    }
}

/// A rectangle with the picture of a pointer.
pub(super) fn cursor(out: &mut Vec<u8>, place: [usize; 4]) {
    encode::header(out, place, PSEUDO_CURSOR);
}
