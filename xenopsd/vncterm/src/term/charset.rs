//! The sets a guest can choose its characters from.

/// A character set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Charset {
    /// ASCII, and Latin-1 for bytes above when UTF-8 is off.
    #[default]
    Ascii,
    /// ASCII with a pound sign.
    British,
    /// DEC's line drawing in place of the small letters.
    LineDrawing,
    /// The PC's code page 437.
    Pc,
}

/// DEC special graphics for `_` to `~`.
#[rustfmt::skip]
const LINE_DRAWING: [char; 32] = [
    '\u{a0}', '◆', '▒', '␉', '␌', '␍', '␊', '°', '±', '␤', '␋', '┘', '┐', '┌', '└', '┼',
    '⎺', '⎻', '─', '⎼', '⎽', '├', '┤', '┴', '┬', '│', '≤', '≥', 'π', '≠', '£', '·',
];

impl Charset {
    /// The set that the final byte of `ESC ( x` names.
    pub(super) fn named(last: u8) -> Self {
        match last {
            b'A' => Self::British,
            b'0' | b'2' => Self::LineDrawing,
            b'U' => Self::Pc,
            _ => Self::Ascii,
        }
    }

    /// The character of a printable ASCII byte.
    pub(super) fn character(self, byte: u8) -> char {
        match (self, byte) {
            (Self::British, b'#') => '£',
            (Self::LineDrawing, 0x5f..0x7f) => LINE_DRAWING[usize::from(byte - 0x5f)],
            _ => char::from(byte),
        }
    }

    /// Whether a printable ASCII byte can be another character.
    pub(super) fn changes_ascii(self) -> bool {
        matches!(self, Self::British | Self::LineDrawing)
    }

    pub(super) fn to_byte(self) -> u8 {
        match self {
            Self::Ascii => b'B',
            Self::British => b'A',
            Self::LineDrawing => b'0',
            Self::Pc => b'U',
        }
    }
}
