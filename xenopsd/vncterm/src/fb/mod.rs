//! The paravirtual frame buffer and keyboard of a PV or PVH guest, as its backend sees them (`xen/io/fbif.h`,
//! `xen/io/kbdif.h`): nothing here but bytes of pages that the guest may change at any moment.
//!
//! ```text
//!   page of the vfb ── described ─► Geometry, directory ─► frames ─► Canvas (what viewers are sent)
//!        └─ out ring ─ Updates ──── which rows to look at ────────────▲
//!   page of the vkbd ◄─ in ring ── Input ◄── Keyboard (keysyms to the guest's key codes) ◄── viewers
//! ```
//!
//! Every field is read once, checked, and used as it was read. Whatever the guest writes costs bounded memory and a
//! bounded number of looks.

pub mod canvas;
pub mod connect;
pub mod described;
pub mod input;
pub mod keysyms;
pub mod ring;
mod shared;
#[cfg(test)]
mod tests;
pub mod wanted;

pub use shared::Shared;
