//! A guest's text console as a VNC screen: `vncterm`, as a library.
//!
//! ```text
//!  guest ─► pseudo-terminal ─► term (a screen of cells) ─► rfb (pictures of cells) ─► viewers
//!                 ▲                                             │
//!                 └──────────────── keys ◄──────────────────────┘
//! ```

pub mod font;
pub mod term;
