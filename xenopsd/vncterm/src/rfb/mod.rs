//! The RFB protocol (RFC 6143), the server's side: a viewer is a state machine over bytes, without sockets.
//!
//! ```text
//!  Version ─► Security (3.7 and later) ─► Answer (with a password) ─► Init ─► Normal
//!                                                 │ requested, changed, and the last update was taken
//!  Frame (pictures of all cells now) ── compared ─┴─► CopyRect, then ZRLE, Hextile or Raw
//!          with what the viewer has                  (what the viewer has is known cell by cell)
//! ```

pub mod auth;
mod encode;
mod frame;
mod handshake;
mod message;
mod pixel;
mod pixel_viewer;
#[cfg(test)]
mod pseudo_tests;
mod selection;
mod session;
#[cfg(test)]
mod tests;
mod tiles;
mod viewer;

pub use frame::Frame;
pub use message::ViewerError;
pub use pixel_viewer::{Act, PixelViewer};
pub use viewer::{Input, Viewer};
