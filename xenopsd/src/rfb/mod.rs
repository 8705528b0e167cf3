//! A guest's screen as a picture: the little of a VNC viewer that this takes (RFC 6143).
//!
//! ```text
//!   viewer                                  server: vncterm, or QEMU, which its guest may have taken over
//!     version ◄──► version                  3.3, 3.7, 3.8 and what calls itself later
//!     security None or password ►           one that wants anything else is an error that says so
//!     ◄──────── width, height, its own format   bounded before anything of that size is held
//!     32 bits a pixel, Raw ────►
//!     all of it, please ───────►
//!     ◄──────── rectangles, bells, ...      until every pixel was sent once
//! ```
//!
//! The server is hostile: whatever it sends, and however slowly, [`capture`] holds one picture of at most [`MAX_PIXELS`],
//! and ends within the limit that it is given or with its connection.

mod connection;
mod picture;
mod session;
#[cfg(test)]
pub(crate) mod tests;

use std::io;
use std::time::Duration;

pub(crate) use connection::connect;
pub use connection::{Address, open};
pub use picture::{Picture, PictureError};
pub use session::{capture, capture_as};

/// How long a screen may take to be read: QEMU sends one in milliseconds, an emulated dom0 in a second.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Widest and highest screen, in pixels: what QEMU's cards can show is far below.
pub const MAX_SIDE: u16 = 8192;

/// Most pixels of a screen, 4096x4096: 48 MiB as they are held.
pub const MAX_PIXELS: usize = 1 << 24;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum RfbError {
    /// Nobody listens, or the connection broke.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// It closed the connection.
    #[error("the connection was closed while {expected} was expected")]
    Closed {
        /// What should have come.
        expected: &'static str,
    },
    /// It did not send all of its screen.
    #[error("no whole picture within {} s: {expected} did not come", limit.as_secs())]
    Late {
        /// What should have come.
        expected: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Something else than VNC is listening.
    #[error("it is no VNC server: it greets with {greeting:?}")]
    Greeting {
        /// The first twelve bytes.
        greeting: String,
    },
    /// It sent the viewer away.
    #[error("the VNC server refuses the connection: {reason}")]
    Refused {
        /// Why, in its own words.
        reason: String,
    },
    /// It wants more than to be connected to.
    #[error(
        "the VNC server wants a password or encryption (security types {types:?}); a picture needs type 1, None, or type 2 \
         and its password (--password-file)"
    )]
    Security {
        /// What it offers, RFC 6143 7.1.2.
        types: Vec<u8>,
    },
    /// A screen that is empty, or larger than is held.
    #[error(
        "the VNC server says that its screen has {width}x{height} pixels; at most {MAX_PIXELS}, {MAX_SIDE} a side, are read"
    )]
    Size {
        /// Pixels of a row.
        width: u16,
        /// Rows.
        height: u16,
    },
    /// A message, or part of one, that the protocol does not have or that was not asked for.
    #[error("the VNC server does not keep to the protocol: {what} {value}")]
    Protocol {
        /// What is wrong.
        what: &'static str,
        /// The number it sent.
        value: i64,
    },
}
