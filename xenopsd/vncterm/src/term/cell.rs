//! One cell of the screen in 16 bytes, and how it looks.

/// Combining marks kept per cell: enough for a letter with two accents (Vietnamese). More are dropped.
pub const MAX_MARKS: usize = 2;

/// A colour as the guest named it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Color(u32);

/// What a [`Color`] names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ColorKind {
    /// The terminal's own foreground or background.
    Default,
    /// An entry of the palette of 256.
    Indexed(u8),
    /// 0xRRGGBB.
    Rgb(u32),
}

impl Color {
    /// The terminal's own foreground or background.
    pub const DEFAULT: Self = Self(0);

    /// An entry of the palette.
    pub const fn indexed(index: u8) -> Self {
        Self(1 << 24 | index as u32)
    }

    /// Red, green and blue in the low 24 bits; the others are ignored.
    pub const fn rgb(rgb: u32) -> Self {
        Self(2 << 24 | rgb & 0x00ff_ffff)
    }

    /// What it names.
    pub const fn kind(self) -> ColorKind {
        match self.0 >> 24 {
            0 => ColorKind::Default,
            1 => ColorKind::Indexed(self.0.to_le_bytes()[0]),
            _ => ColorKind::Rgb(self.0 & 0x00ff_ffff),
        }
    }

    /// For the saved state.
    pub(super) const fn to_bits(self) -> u32 {
        self.0
    }

    /// The reverse of [`Self::to_bits`]; bits that mean nothing become something valid.
    pub(super) const fn from_bits(bits: u32) -> Self {
        match bits >> 24 {
            0 => Self::DEFAULT,
            1 => Self::indexed(bits.to_le_bytes()[0]),
            _ => Self::rgb(bits),
        }
    }
}

/// A set of a cell's attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attrs(u32);

impl Attrs {
    /// None.
    pub const NONE: Self = Self(0);
    /// Bold: brighter when the colour is one of the first eight.
    pub const BOLD: Self = Self(1);
    /// Half bright.
    pub const DIM: Self = Self(1 << 1);
    /// Slanted.
    pub const ITALIC: Self = Self(1 << 2);
    /// Underlined.
    pub const UNDERLINE: Self = Self(1 << 3);
    /// Blinking; drawn as steady.
    pub const BLINK: Self = Self(1 << 4);
    /// Foreground and background exchanged.
    pub const INVERSE: Self = Self(1 << 5);
    /// Not shown.
    pub const INVISIBLE: Self = Self(1 << 6);
    /// Struck through.
    pub const STRIKE: Self = Self(1 << 7);
    /// The left half of a character two cells wide.
    pub const WIDE: Self = Self(1 << 8);
    /// The right half of one.
    pub const TAIL: Self = Self(1 << 9);

    /// What a program can set.
    const OF_STYLE: u32 = 0xff;
    const ALL: u32 = 0x3ff;

    /// Whether any of `other` is in it.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// With `other`.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Without `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// How text that is printed next looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// Of the character.
    pub fg: Color,
    /// Behind it.
    pub bg: Color,
    /// The rest.
    pub attrs: Attrs,
}

impl Style {
    /// What erased cells look like: the background only.
    pub(super) const fn erased(self) -> Self {
        Self { fg: Color::DEFAULT, bg: self.bg, attrs: Attrs::NONE }
    }
}

/// Bits of a character; [`char::MAX`] is 0x10ffff.
const CHAR_BITS: u32 = 21;
const CHAR_MASK: u32 = (1 << CHAR_BITS) - 1;

/// One cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Character in the low 21 bits, attributes above.
    bits: u32,
    /// Combining marks of the basic plane, 0 for none.
    marks: [u16; MAX_MARKS],
    fg: Color,
    bg: Color,
}

impl Cell {
    /// A space in the terminal's own colours.
    pub const BLANK: Self =
        Self::new(' ', Style { fg: Color::DEFAULT, bg: Color::DEFAULT, attrs: Attrs::NONE });

    /// A character in a style.
    pub const fn new(c: char, style: Style) -> Self {
        Self {
            bits: c as u32 | style.attrs.0 << CHAR_BITS,
            marks: [0; MAX_MARKS],
            fg: style.fg,
            bg: style.bg,
        }
    }

    /// The same with a printable ASCII byte, quickly.
    pub(super) const fn with_ascii(mut self, byte: u8) -> Self {
        self.bits = self.bits & !CHAR_MASK | byte as u32;
        self
    }

    /// Its character; a space for the right half of a wide one.
    pub fn char(self) -> char {
        char::from_u32(self.bits & CHAR_MASK).unwrap_or(char::REPLACEMENT_CHARACTER)
    }

    /// Its combining marks.
    pub fn marks(&self) -> impl Iterator<Item = char> {
        self.marks.into_iter().filter(|mark| *mark != 0).filter_map(|mark| char::from_u32(u32::from(mark)))
    }

    /// Its style and which half of a wide character it is.
    pub const fn style(self) -> Style {
        Style { fg: self.fg, bg: self.bg, attrs: Attrs(self.bits >> CHAR_BITS) }
    }

    /// Which attributes it has.
    pub const fn attrs(self) -> Attrs {
        Attrs(self.bits >> CHAR_BITS)
    }

    /// Puts a combining mark on it, if there is room.
    pub(super) fn add_mark(&mut self, mark: char) {
        if let (Some(place), Ok(mark)) =
            (self.marks.iter_mut().find(|place| **place == 0), u16::try_from(u32::from(mark)))
        {
            *place = mark;
        }
    }

    /// For the saved state: character and attributes, marks, colours.
    pub(super) fn to_words(self) -> [u32; 4] {
        let marks = u32::from(self.marks[0]) | u32::from(self.marks[1]) << 16;
        [self.bits, marks, self.fg.to_bits(), self.bg.to_bits()]
    }

    /// The reverse of [`Self::to_words`]; words that mean nothing become something valid.
    pub(super) fn from_words(words: [u32; 4]) -> Self {
        let c = char::from_u32(words[0] & CHAR_MASK).filter(|c| !c.is_control()).unwrap_or(' ');
        let attrs = Attrs(words[0] >> CHAR_BITS & Attrs::ALL);
        let style = Style { fg: Color::from_bits(words[2]), bg: Color::from_bits(words[3]), attrs };
        let [a, b, c2, d] = words[1].to_le_bytes();
        let marks = [u16::from_le_bytes([a, b]), u16::from_le_bytes([c2, d])];
        Self { marks, ..Self::new(c, style) }
    }
}

impl Style {
    /// For the saved state.
    pub(super) const fn to_words(self) -> [u32; 3] {
        [self.fg.to_bits(), self.bg.to_bits(), self.attrs.0]
    }

    /// The reverse of [`Self::to_words`].
    pub(super) const fn from_words(words: [u32; 3]) -> Self {
        Self {
            fg: Color::from_bits(words[0]),
            bg: Color::from_bits(words[1]),
            attrs: Attrs(words[2] & Attrs::OF_STYLE),
        }
    }
}
