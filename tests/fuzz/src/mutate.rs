//! Small changes to good inputs, drawn from a seed: the same each time.

/// Pseudo-random numbers: `SplitMix64` (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// Dice that always fall the same for a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`; 0 when there is none.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.roll() % end).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.roll().to_le_bytes()[0]
    }
}

/// Words that parsers treat specially.
const WORDS: [&[u8]; 26] = [
    b"null",
    b"true",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-9223372036854775808",
    b"9223372036854775808",
    b"4294967296",
    b"0x10",
    b"\\ud800",
    b"\\u0000",
    b"[[[[[[[[",
    b"{\"\":",
    b"/*",
    b"<value>",
    b"</value>",
    b"<nil/>",
    b"<![CDATA[",
    b"<!DOCTYPE x [",
    b"&#x110000;",
    b"&lt;",
    b"\r\n\r\n",
    b"content-length: 18446744073709551616\r\n",
    b"transfer-encoding: chunked\r\n",
    b"\xff\xfe",
    b"\0",
];

/// Changes `input` in one to four places; sometimes with a part of `other`. Never longer than `limit`.
pub fn mutate(dice: &mut Dice, input: &[u8], other: &[u8], limit: usize) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=dice.below(4) {
        let at = dice.below(bytes.len() + 1);
        match dice.below(8) {
            0 => flip(dice, &mut bytes),
            1 => bytes.truncate(at),
            2 => {
                let word = WORDS[dice.below(WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            3 => {
                let end = (at + dice.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                // The same again.
                let end = (at + dice.below(64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            5 => {
                let from = dice.below(other.len() + 1);
                let to = (from + dice.below(64)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            6 => {
                let byte = dice.byte();
                bytes.insert(at, byte);
            }
            _ => swap(dice, &mut bytes),
        }
    }
    bytes.truncate(limit);
    bytes
}

fn flip(dice: &mut Dice, bytes: &mut [u8]) {
    let at = dice.below(bytes.len());
    let bit = dice.below(8);
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << bit;
    }
}

fn swap(dice: &mut Dice, bytes: &mut [u8]) {
    let (one, two) = (dice.below(bytes.len()), dice.below(bytes.len()));
    if one < bytes.len() && two < bytes.len() {
        bytes.swap(one, two);
    }
}
