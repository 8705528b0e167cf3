//! What colour each entry of the palette is.

use super::cell::{Attrs, Color, ColorKind};

/// The Linux console's 16 colours, which are the VGA's.
const FIRST_16: [u32; 16] = [
    0x00_0000, 0xaa_0000, 0x00_aa00, 0xaa_5500, 0x00_00aa, 0xaa_00aa, 0x00_aaaa, 0xaa_aaaa, 0x55_5555,
    0xff_5555, 0x55_ff55, 0xff_ff55, 0x55_55ff, 0xff_55ff, 0x55_ffff, 0xff_ffff,
];

/// Which entries are the terminal's own foreground and background.
const FOREGROUND: u8 = 7;
const BACKGROUND: u8 = 0;

/// The palette: xterm's 256 entries, of which a guest can change any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Palette {
    /// `None` until one was changed: most guests never do.
    changed: Option<Box<[u32; 256]>>,
}

/// xterm's entry: 16 named colours, a cube of 6x6x6, 24 greys.
fn standard(index: u8) -> u32 {
    let level = |step: u8| if step == 0 { 0 } else { 55 + 40 * u32::from(step) };
    match index {
        0..16 => FIRST_16[usize::from(index)],
        16..232 => {
            let cube = index - 16;
            level(cube / 36) << 16 | level(cube / 6 % 6) << 8 | level(cube % 6)
        }
        232.. => (8 + 10 * u32::from(index - 232)) * 0x01_0101,
    }
}

impl Palette {
    /// 0xRRGGBB of an entry.
    pub fn entry(&self, index: u8) -> u32 {
        self.changed.as_ref().map_or_else(|| standard(index), |changed| changed[usize::from(index)])
    }

    /// Foreground and background of a cell, as 0xRRGGBB each, with bold, dim and inverse applied.
    pub fn resolve(&self, fg: Color, bg: Color, attrs: Attrs) -> (u32, u32) {
        let bright = if attrs.has(Attrs::BOLD) { 8 } else { 0 };
        let mut front = match fg.kind() {
            ColorKind::Default => self.entry(FOREGROUND + bright),
            ColorKind::Indexed(index @ 0..8) => self.entry(index + bright),
            ColorKind::Indexed(index) => self.entry(index),
            ColorKind::Rgb(rgb) => rgb,
        };
        let mut back = match bg.kind() {
            ColorKind::Default => self.entry(BACKGROUND),
            ColorKind::Indexed(index) => self.entry(index),
            ColorKind::Rgb(rgb) => rgb,
        };
        if attrs.has(Attrs::DIM) {
            front = front >> 1 & 0x7f_7f7f;
        }
        if attrs.has(Attrs::INVERSE) {
            (front, back) = (back, front);
        }
        if attrs.has(Attrs::INVISIBLE) {
            front = back;
        }
        (front, back)
    }

    pub(super) fn set(&mut self, index: u8, rgb: u32) {
        let changed = self.changed.get_or_insert_with(|| {
            Box::new(std::array::from_fn(|index| standard(u8::try_from(index).unwrap_or(u8::MAX))))
        });
        changed[usize::from(index)] = rgb & 0x00ff_ffff;
    }

    pub(super) fn reset_entry(&mut self, index: u8) {
        if self.changed.is_some() {
            self.set(index, standard(index));
        }
    }

    pub(super) fn reset(&mut self) {
        self.changed = None;
    }

    /// The entries that were changed.
    pub(super) fn changes(&self) -> impl Iterator<Item = (u8, u32)> {
        (0..=u8::MAX).map(|index| (index, self.entry(index))).filter(|(index, rgb)| *rgb != standard(*index))
    }
}
