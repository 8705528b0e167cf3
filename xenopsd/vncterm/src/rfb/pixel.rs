//! Pixel formats: how a viewer wants its colours.

/// A true colour format (RFC 6143, 7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PixelFormat {
    /// Bytes of a pixel: 1, 2 or 4.
    pub(super) bytes: usize,
    big_endian: bool,
    max: [u16; 3],
    shift: [u8; 3],
    depth: u8,
}

/// Why a format is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadFormat;

impl PixelFormat {
    /// What is offered: 32 bits, little-endian, 0x00RRGGBB.
    pub(super) const OFFERED: Self =
        Self { bytes: 4, big_endian: false, max: [255; 3], shift: [16, 8, 0], depth: 24 };

    /// What a viewer with a colour map gets: three bits of red and green, two of blue.
    pub(super) const MAPPED: Self =
        Self { bytes: 1, big_endian: false, max: [7, 7, 3], shift: [0, 3, 6], depth: 8 };

    /// The 16 bytes of the protocol.
    pub(super) fn to_bytes(self) -> [u8; 16] {
        let mut out = [0; 16];
        out[0] = u8::try_from(self.bytes * 8).unwrap_or(32);
        out[1] = self.depth;
        out[2] = u8::from(self.big_endian);
        out[3] = 1;
        for n in 0..3 {
            out[4 + 2 * n..6 + 2 * n].copy_from_slice(&self.max[n].to_be_bytes());
            out[10 + n] = self.shift[n];
        }
        out
    }

    /// A viewer's request; `Ok(None)` when it wants a colour map of 256 entries.
    pub(super) fn from_bytes(bytes: [u8; 16]) -> Result<Option<Self>, BadFormat> {
        let bits = bytes[0];
        if bytes[3] == 0 {
            return if bits == 8 { Ok(None) } else { Err(BadFormat) };
        }
        if !matches!(bits, 8 | 16 | 32) {
            return Err(BadFormat);
        }
        let max = std::array::from_fn(|n| u16::from_be_bytes([bytes[4 + 2 * n], bytes[5 + 2 * n]]));
        let shift = [bytes[10], bytes[11], bytes[12]];
        let fits = |n: usize| {
            let width = 16 - max[n].leading_zeros();
            max[n] > 0 && u32::from(shift[n]) + width <= u32::from(bits)
        };
        if !(0..3).all(fits) {
            return Err(BadFormat);
        }
        Ok(Some(Self {
            bytes: usize::from(bits / 8),
            big_endian: bytes[2] != 0,
            max,
            shift,
            depth: bytes[1],
        }))
    }

    /// The pixel's bytes, in the first [`Self::bytes`] of four.
    pub(super) fn pixel(&self, rgb: u32) -> [u8; 4] {
        let [_, red, green, blue] = rgb.to_be_bytes();
        let mut value = 0;
        for (n, color) in [red, green, blue].into_iter().enumerate() {
            value |= ((u32::from(color) * u32::from(self.max[n]) + 127) / 255) << self.shift[n];
        }
        match (self.bytes, self.big_endian) {
            (4, true) => value.to_be_bytes(),
            (2, true) => {
                let [_, _, high, low] = value.to_be_bytes();
                [high, low, 0, 0]
            }
            _ => value.to_le_bytes(),
        }
    }

    /// Which bytes of a pixel ZRLE sends: three of four when the colours fit in them.
    pub(super) fn compact(&self) -> std::ops::Range<usize> {
        let used: u32 =
            (0..3).map(|n| u32::from(self.max[n]) << self.shift[n]).fold(0, |used, bits| used | bits);
        match (self.bytes, self.depth <= 24) {
            (4, true) if used & 0xff00_0000 == 0 => {
                if self.big_endian {
                    1..4
                } else {
                    0..3
                }
            }
            (4, true) if used.trailing_zeros() >= 8 => {
                if self.big_endian {
                    0..3
                } else {
                    1..4
                }
            }
            (bytes, _) => 0..bytes,
        }
    }
}
