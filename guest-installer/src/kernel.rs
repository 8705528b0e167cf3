//! What a kernel image is, by its first bytes; it is unpacked by whoever builds the domain.

use crate::{
    bytes::{le16, le32},
    error::{Error, Result},
};

/// How many bytes [`check`] wants: the setup header of a bzImage is within.
pub const HEAD: usize = 1024;

/// Refuses what is no kernel that a Xen domain can start.
///
/// # Errors
/// [`Error::Kernel`].
pub fn check(head: &[u8]) -> Result<()> {
    if head.starts_with(b"\x7fELF") || head.starts_with(b"\x1f\x8b") {
        return Ok(());
    }
    if le32(head, 0x202) != Some(u32::from_le_bytes(*b"HdrS")) {
        return Err(Error::Kernel("it is neither a bzImage, nor an ELF file, nor a packed one".to_owned()));
    }
    // Xen finds the kernel proper through fields that the boot protocol has since version 2.08 (Linux 2.6.26).
    match le16(head, 0x206) {
        Some(version) if version >= 0x208 => Ok(()),
        version => {
            Err(Error::Kernel(format!("its boot protocol {:#06x} is older than 2.08", version.unwrap_or(0))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_kernel() {
        let mut image = vec![0; HEAD];
        assert!(check(&image).is_err() && check(b"").is_err() && check(b"<html>").is_err());
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&[0x04, 0x02]);
        assert!(check(&image).unwrap_err().to_string().contains("0x0204"));
        image[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
        check(&image).unwrap();
        check(b"\x7fELF\x02").unwrap();
    }
}
