//! How many cells a character takes.

use unicode_width::UnicodeWidthChar as _;

/// 0 for combining marks and what is never shown, 2 for East Asian wide characters and emoji, else 1.
pub(super) fn width(c: char) -> usize {
    match u32::from(c) {
        // Controls, and DEL with C1.
        0..0x20 | 0x7f..0xa0 => 0,
        // Soft hyphen is shown, as xterm and the Linux console do.
        0x20..0x300 => 1,
        _ => c.width().unwrap_or(0).min(2),
    }
}
