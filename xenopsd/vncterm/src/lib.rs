//! A guest's text console as a VNC screen: `vncterm`, as a library.
//!
//! ```text
//!  guest ─► pseudo-terminal ─► term (a screen of cells) ─► rfb (pictures of cells) ─► viewers
//!                 ▲      └───► log ring ───────────────────────────────────────────► text clients
//!                 └──────────────── keys ◄──────────────────────────────┘
//! ```
//!
//! One thread, one loop ([`server`]). Guest and viewers are hostile: each costs bounded memory and a bounded share of
//! a core.

pub mod args;
pub mod fb;
pub mod font;
pub mod jail;
pub mod keys;
pub mod rfb;
pub mod server;
pub mod source;
pub mod store;
pub mod term;
