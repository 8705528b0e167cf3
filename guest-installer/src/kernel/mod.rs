//! What a kernel image is, and the kernel proper out of it.
//!
//! ```text
//!   ELF ──────────────────────────────────────────────┐
//!   gzip ─────────────────────────────────────┐       │
//!   bzImage: setup code │ payload, packed ────┴─ unpack ─► ELF
//! ```
//! A caller that runs with privileges has it unpacked here, in the jail, so that no decompressor of its own sees what a
//! guest wrote; another one passes the file on as it is.

mod unpack;

use crate::{
    bytes::{le16, le32},
    error::{Error, Result},
    fs::Sink,
};
use std::ops::Range;
pub use unpack::Packing;

/// How many bytes [`check`] wants: the setup header of a bzImage is within.
pub const HEAD: usize = 1024;

/// What every ELF file begins with.
const ELF: &[u8] = b"\x7fELF";

/// Refuses what is no kernel that a Xen domain can start.
///
/// # Errors
/// [`Error::Kernel`].
pub fn check(head: &[u8]) -> Result<()> {
    if head.starts_with(ELF) || Packing::of(head) == Some(Packing::Gzip) {
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

/// Passes on the ELF file in a kernel image, at most `limit` bytes of it.
///
/// # Errors
/// [`Error::Kernel`] for what is no kernel or packed in an unknown or damaged way, [`Error::TooLarge`], the sink's.
pub fn unpack(image: &[u8], limit: u64, sink: &mut Sink) -> Result<()> {
    check(image)?;
    if image.starts_with(ELF) {
        return unpack::passed(limit, sink, &mut &*image);
    }
    let packed = if Packing::of(image) == Some(Packing::Gzip) { image } else { &image[payload(image)?] };
    if packed.starts_with(ELF) {
        return unpack::passed(limit, sink, &mut &*packed);
    }
    let Some(packing) = Packing::of(packed) else {
        return Err(Error::Kernel("its payload is packed in a way that is not known".to_owned()));
    };
    // The first bytes are looked at before any is passed on: a kernel in a kernel is none.
    let mut start = Vec::new();
    unpack::unpack(packing, packed, limit, &mut |bytes| {
        if start.len() < ELF.len() {
            start.extend_from_slice(&bytes[..bytes.len().min(ELF.len() - start.len())]);
            if start.len() == ELF.len() && start != ELF {
                return Err(Error::Kernel(format!("what is packed in it with {packing} is no ELF file")));
            }
        }
        sink(bytes)
    })?;
    if start == ELF { Ok(()) } else { Err(Error::Kernel(format!("nothing is packed in it with {packing}"))) }
}

/// Where in a bzImage its payload is (Linux boot protocol: `setup_sects`, `payload_offset`, `payload_length`).
fn payload(image: &[u8]) -> Result<Range<usize>> {
    /// A sector, and what 0 sectors of setup code mean.
    const SECTOR: usize = 512;
    const DEFAULT_SECTORS: u8 = 4;
    let sectors = image.get(0x1f1).map_or(DEFAULT_SECTORS, |&s| if s == 0 { DEFAULT_SECTORS } else { s });
    let field = |at| le32(image, at).and_then(|v| usize::try_from(v).ok());
    let range = field(0x248).zip(field(0x24c)).and_then(|(offset, length)| {
        let start = (usize::from(sectors) + 1).checked_mul(SECTOR)?.checked_add(offset)?;
        Some(start..start.checked_add(length)?)
    });
    range
        .filter(|range| !range.is_empty() && range.end <= image.len())
        .ok_or_else(|| Error::Kernel("its payload is not within the file".to_owned()))
}

/// Unpacks whatever it is, within the limits; for fuzzing.
///
/// # Errors
/// Whatever is wrong with it.
pub fn fuzz(image: &[u8]) -> Result<()> {
    const LIMIT: u64 = 1 << 20;
    let mut passed = 0;
    let outcome = unpack(image, LIMIT, &mut |bytes| {
        passed += bytes.len();
        Ok(())
    });
    assert!(u64::try_from(passed).is_ok_and(|passed| passed <= LIMIT), "more than the limit was passed on");
    outcome
}

#[cfg(test)]
mod tests;
