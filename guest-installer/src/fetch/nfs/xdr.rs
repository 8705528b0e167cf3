//! XDR (RFC 4506), as much as these calls need.

use crate::fetch::{Error, Result};

/// Attributes of a file in version 3.
const ATTRIBUTES: usize = 84;

/// Writes arguments.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn numbers(&mut self, numbers: &[u32]) {
        self.0.extend(numbers.iter().flat_map(|n| n.to_be_bytes()));
    }

    pub(super) fn long(&mut self, number: u64) {
        self.0.extend(number.to_be_bytes());
    }

    /// Bytes of any number, after that number.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.numbers(&[u32::try_from(bytes.len()).unwrap_or(u32::MAX)]);
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// Reads results.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn skip(&mut self, length: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| Error::refused("the server's answer is too short"))?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn number(&mut self) -> Result<u32> {
        let bytes = self.skip(4)?;
        Ok(u32::from_be_bytes(bytes.try_into().unwrap_or_default()))
    }

    pub(super) fn long(&mut self) -> Result<u64> {
        Ok(u64::from(self.number()?) << 32 | u64::from(self.number()?))
    }

    /// Bytes of any number up to `most`.
    pub(super) fn bytes(&mut self, most: usize) -> Result<&'a [u8]> {
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if length > most {
            return Err(Error::refused(format_args!("the server sends {length} bytes for at most {most}")));
        }
        let padded = self.skip(length.next_multiple_of(4))?;
        Ok(&padded[..length])
    }

    /// Passes over a file's attributes, which may be absent.
    pub(super) fn attributes(&mut self) -> Result<()> {
        let length = if self.number()? == 0 { 0 } else { ATTRIBUTES };
        self.skip(length).map(drop)
    }

    /// What has not been read.
    pub(super) const fn rest(&self) -> &'a [u8] {
        self.0
    }
}

/// Whatever the bytes are, an answer is taken apart within them, and what is written is read; for fuzzing.
pub fn fuzz(bytes: &[u8]) {
    let answer = super::rpc::results(bytes, 1).unwrap_or_default();
    let mut reader = Reader::new(answer);
    while reader.attributes().is_ok()
        && reader.long().is_ok()
        && reader.bytes(64).is_ok_and(|b| b.len() <= 64)
    {}
    let mut writer = Writer::default();
    writer.bytes(bytes);
    assert_eq!(Reader::new(&writer.0).bytes(bytes.len()), Ok(bytes));
}
