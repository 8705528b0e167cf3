//! Cache keys: FNV-1a with 128 bits. The keys tell our own build products apart; nobody chooses the input to
//! collide, so a cryptographic hash would buy nothing.

use crate::error::{Context as _, Result};
use std::{fmt, fs::File, io::Read as _, path::Path};

/// Offset basis and prime that the authors of FNV published for 128 bits.
const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;

/// A running hash; prints as hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u128);

impl Key {
    /// A key that has seen nothing but its name.
    pub(crate) fn new(name: &str) -> Self {
        let mut key = Self(BASIS);
        key.field(name.as_bytes());
        key
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }

    /// Adds one field; its length goes in too, so that neighbouring fields cannot run into each other.
    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self.bytes(bytes);
    }

    /// Adds a file's content.
    pub(crate) fn file(&mut self, path: &Path) -> Result<()> {
        let mut file = File::open(path).at("open", path)?;
        let mut buffer = vec![0; 1 << 16];
        let mut length = 0_u64;
        loop {
            let count = file.read(&mut buffer).at("read", path)?;
            if count == 0 {
                break;
            }
            length += count as u64;
            self.bytes(buffer.get(..count).unwrap_or_default());
        }
        self.bytes(&length.to_le_bytes());
        Ok(())
    }
}

impl fmt::Display for Key {
    /// 16 digits: 64 bits are plenty to tell a handful of templates apart, and paths stay short.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", (self.0 >> 64) ^ (self.0 & u128::from(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answer() {
        let mut key = Key(BASIS);
        key.bytes(b"a");
        assert_eq!(key.0, 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        let (mut a, mut b) = (Key::new("t"), Key::new("t"));
        a.field(b"ab");
        a.field(b"c");
        b.field(b"a");
        b.field(b"bc");
        assert_ne!(a, b);
    }
}
