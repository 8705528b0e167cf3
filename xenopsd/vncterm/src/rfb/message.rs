//! What a viewer says, read in pieces of any size and within bounds.

use super::auth::Denied;
use super::pixel::{BadFormat, PixelFormat};

/// Bytes of a viewer's clipboard that are taken. Longer ones are read and dropped, with no memory used for them.
const MAX_CUT_TEXT: usize = 64 << 10;

/// Why a viewer is sent away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewerError {
    /// It does not speak the protocol.
    #[error("the viewer's greeting is not RFB's")]
    Greeting,
    /// It chose what was not offered.
    #[error("the viewer chose security type {0}, which was not offered")]
    Security(u8),
    /// It is not let in, and has been told so.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The kernel has no random bytes, so that nobody can be asked for the password.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
    /// A message of a type nobody knows, so its end is not known either.
    #[error("the viewer sent a message of unknown type {0}")]
    Message(u8),
    /// Pixels that cannot be.
    #[error("the viewer asked for an impossible pixel format")]
    PixelFormat,
}

impl From<BadFormat> for ViewerError {
    fn from(_: BadFormat) -> Self {
        Self::PixelFormat
    }
}

/// A message, or a part of a long one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// `None`: a colour map.
    Format(Option<PixelFormat>),
    /// A new list of encodings begins.
    Encodings,
    /// One of its entries, best first.
    Encoding(i32),
    Update {
        incremental: bool,
        x: u16,
        y: u16,
        width: u16,
        height: u16,
    },
    Key {
        down: bool,
        keysym: u32,
    },
    Pointer {
        buttons: u8,
        x: u16,
        y: u16,
    },
    CutText(Vec<u8>),
    Resize {
        width: u16,
        height: u16,
    },
}

/// The parser: what of a message is still to come.
#[derive(Debug, Default)]
pub(super) struct Messages {
    buffer: Vec<u8>,
    encodings_left: u16,
    cut_text_left: Option<usize>,
    skip: usize,
}

impl Messages {
    /// Takes bytes; hands over each message that is complete.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(Message) -> Result<(), ViewerError>,
    ) -> Result<(), ViewerError> {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let needed = self.needed()?;
            let taken = needed.saturating_sub(self.buffer.len()).min(bytes.len());
            self.buffer.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if self.skip > 0 || self.buffer.len() < needed {
                return Ok(());
            }
            // The type of a message is needed before its length is known.
            if self.needed()? == needed {
                if let Some(message) = self.complete()? {
                    each(message)?;
                }
                self.buffer.clear();
                self.buffer.shrink_to(256);
            }
        }
    }

    /// Bytes of the message, or of the next part of it; never more than [`MAX_CUT_TEXT`].
    fn needed(&self) -> Result<usize, ViewerError> {
        if self.encodings_left > 0 {
            return Ok(4);
        }
        if let Some(left) = self.cut_text_left {
            return Ok(left);
        }
        Ok(match (self.buffer.first(), self.buffer.get(1)) {
            (None, _) => 1,
            (Some(0), _) => 20,
            (Some(2), _) => 4,
            (Some(3), _) => 10,
            // 254 is XenCenter's scancode event.
            (Some(4 | 6 | 251 | 254), _) => 8,
            (Some(5), _) => 6,
            // QEMU's extension: extended key event; audio is not offered.
            (Some(255), None) => 2,
            (Some(255), Some(0)) => 12,
            (Some(kind), _) => return Err(ViewerError::Message(*kind)),
        })
    }

    fn short(&self, at: usize) -> u16 {
        self.buffer.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_be_bytes(*bytes))
    }

    fn long(&self, at: usize) -> u32 {
        self.buffer.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    fn complete(&mut self) -> Result<Option<Message>, ViewerError> {
        if self.encodings_left > 0 {
            self.encodings_left -= 1;
            let bytes = self.buffer.first_chunk().copied().unwrap_or_default();
            return Ok(Some(Message::Encoding(i32::from_be_bytes(bytes))));
        }
        if self.cut_text_left.take().is_some() {
            return Ok(Some(Message::CutText(std::mem::take(&mut self.buffer))));
        }
        let byte = |at: usize| self.buffer.get(at).copied().unwrap_or(0);
        Ok(Some(match byte(0) {
            0 => {
                let format = self.buffer.get(4..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
                Message::Format(PixelFormat::from_bytes(format)?)
            }
            2 => {
                self.encodings_left = self.short(2);
                Message::Encodings
            }
            3 => Message::Update {
                incremental: byte(1) != 0,
                x: self.short(2),
                y: self.short(4),
                width: self.short(6),
                height: self.short(8),
            },
            4 => Message::Key { down: byte(1) != 0, keysym: self.long(4) },
            5 => Message::Pointer { buttons: byte(1), x: self.short(2), y: self.short(4) },
            6 => {
                self.cut_text(self.long(4));
                return Ok(None);
            }
            251 => {
                // One screen follows for each that is counted, 16 bytes each.
                self.skip = usize::from(byte(6)) * 16;
                Message::Resize { width: self.short(2), height: self.short(4) }
            }
            255 => Message::Key { down: self.short(2) != 0, keysym: self.long(4) },
            _ => return Ok(None),
        }))
    }

    fn cut_text(&mut self, length: u32) {
        // A negative length is of the extended clipboard, which was not offered.
        let extended = i32::from_ne_bytes(length.to_ne_bytes()) < 0;
        let length = if extended { length.wrapping_neg() } else { length };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if extended || length > MAX_CUT_TEXT {
            self.skip = length;
        } else if length > 0 {
            self.cut_text_left = Some(length);
        }
    }
}
