//! Integers out of bytes, where a field outside of the bytes is `None` and never a panic.

/// `N` bytes at `offset`.
pub(crate) fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

/// Little-endian 16 bits.
pub(crate) fn le16(bytes: &[u8], offset: usize) -> Option<u16> {
    array(bytes, offset).map(u16::from_le_bytes)
}

/// Little-endian 32 bits.
pub(crate) fn le32(bytes: &[u8], offset: usize) -> Option<u32> {
    array(bytes, offset).map(u32::from_le_bytes)
}

/// Little-endian 64 bits.
pub(crate) fn le64(bytes: &[u8], offset: usize) -> Option<u64> {
    array(bytes, offset).map(u64::from_le_bytes)
}

/// UTF-16 (little-endian) up to the first NUL, as text; what is no text becomes U+FFFD.
pub(crate) fn utf16le(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    char::decode_utf16(units.take_while(|&u| u != 0))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// UTF-16 (big-endian), as Joliet writes it.
pub(crate) fn utf16be(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    char::decode_utf16(units.take_while(|&u| u != 0))
        .map(|c| c.unwrap_or(char::REPLACEMENT_CHARACTER))
        .collect()
}

/// Bytes up to the first NUL or the end, without trailing spaces.
pub(crate) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned()
}

/// 16 bytes as a UUID in the usual spelling.
pub(crate) fn uuid(bytes: [u8; 16]) -> String {
    // Eight, four, four, four and twelve digits.
    let number = u128::from_be_bytes(bytes);
    let digits = format!("{number:032x}");
    [&digits[..8], &digits[8..12], &digits[12..16], &digits[16..20], &digits[20..]].join("-")
}

/// CRC-32 as GPT and gzip use it.
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_outside_are_none() {
        let bytes = [1, 2, 3, 4];
        assert_eq!(le32(&bytes, 0), Some(0x0403_0201));
        assert_eq!(le16(&bytes, 3), None);
        assert_eq!(le64(&bytes, 0), None);
        assert_eq!(le16(&bytes, usize::MAX), None);
    }

    #[test]
    fn texts() {
        assert_eq!(text(b"LABEL  \0junk"), "LABEL");
        assert_eq!(utf16le(&[b'a', 0, 0, 0xd8, b'b', 0, 0, 0, b'c', 0]), "a\u{fffd}b");
        assert_eq!(utf16be(&[0, b'k', 0]), "k");
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
