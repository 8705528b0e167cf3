//! Formats of disk images, and what is looked at in their headers before a disk server is given one.
//!
//! A format is always said by whoever configures the disk, never found out from what is in it: its guest could have written
//! that. The header is read for what would make the server reach for something else than the image (another image that it is
//! based on, a file with its data), or fail with less to say. The guest writes no header, but whoever made the image did. The
//! server does not follow such names either, and has nothing to open them with.

use std::fmt;
use std::str::FromStr;

/// Key of a disk's `extra_backend_keys` with its image's format, which makes it one that is served. It is not in its backend's
/// directory: there it is a block device.
pub const IMAGE_FORMAT: &str = "image-format";

/// Bytes of an image's beginning that are looked at.
pub const HEAD: usize = 512;

/// Bytes of a VHD's footer (Microsoft's "Virtual Hard Disk Image Format Specification"), its last ones.
pub const FOOTER: usize = 512;

/// Largest disk, in bytes: what Linux takes.
const MAX_DISK: u64 = i64::MAX.unsigned_abs();

/// How a disk's contents are kept in a file or block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageFormat {
    /// As they are.
    Raw,
    /// QEMU's copy-on-write format, version 2 or 3.
    Qcow2,
    /// Microsoft's, as it is in xapi's storage repositories: fixed or dynamic.
    Vhd,
}

impl ImageFormat {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Qcow2, Self::Vhd];

    /// Its name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vhd",
        }
    }

    /// QEMU's driver for it.
    pub const fn driver(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vhd => "vpc",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for ImageFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|format| format.name() == name);
        known.ok_or_else(|| format!("{name:?} is no format of disk images: raw, qcow2 or vhd"))
    }
}

/// Why an image is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageFault {
    /// It is something else.
    #[error("it is no {0} image")]
    Other(ImageFormat),
    /// It holds only what is different from another image.
    #[error(
        "it is based on another image, and such chains are not served; make one of them with `qemu-img convert -O {0}`"
    )]
    Based(ImageFormat),
    /// Its contents are in another file.
    #[error("it keeps its data in another file; make one file of them with `qemu-img convert -O qcow2`")]
    DataElsewhere,
    /// Its contents are encrypted.
    #[error("it is encrypted, and nobody here has its key")]
    Encrypted,
    /// Its size is none.
    #[error("its header says that the disk has {0} bytes")]
    Size(u64),
}

/// The size in bytes of the disk that an image shows, if it is one that can be served. `head` are its first [`HEAD`] bytes and
/// `footer` its last [`FOOTER`], fewer if it is shorter; `length` is how many there are.
///
/// # Errors
/// [`ImageFault`].
pub fn check(format: ImageFormat, head: &[u8], footer: &[u8], length: u64) -> Result<u64, ImageFault> {
    let size = match format {
        ImageFormat::Raw => length,
        ImageFormat::Qcow2 => qcow2(head)?,
        // A dynamic one begins with a copy of its footer.
        ImageFormat::Vhd => vhd(head).or_else(|_| vhd(footer))??,
    };
    if (1..=MAX_DISK).contains(&size) { Ok(size) } else { Err(ImageFault::Size(size)) }
}

/// QEMU's `docs/interop/qcow2.txt`.
fn qcow2(head: &[u8]) -> Result<u64, ImageFault> {
    const MAGIC: u64 = 0x5146_49fb;
    const DATA_ELSEWHERE: u64 = 1 << 2;
    let other = || ImageFault::Other(ImageFormat::Qcow2);
    let long = |at| number::<8>(head, at).ok_or_else(other);
    let word = |at| number::<4>(head, at).ok_or_else(other);
    if word(0)? != MAGIC {
        return Err(other());
    }
    let incompatible = match word(4)? {
        2 => 0,
        3 => long(72)?,
        _ => return Err(other()),
    };
    if long(8)? != 0 {
        return Err(ImageFault::Based(ImageFormat::Qcow2));
    }
    if word(32)? != 0 {
        return Err(ImageFault::Encrypted);
    }
    if incompatible & DATA_ELSEWHERE != 0 {
        return Err(ImageFault::DataElsewhere);
    }
    long(24)
}

/// Not a footer at all, or one of an image that is not served.
fn vhd(footer: &[u8]) -> Result<Result<u64, ImageFault>, ImageFault> {
    const COOKIE: &[u8] = b"conectix";
    const FIXED: u64 = 2;
    const DYNAMIC: u64 = 3;
    const DIFFERENCING: u64 = 4;
    let other = || ImageFault::Other(ImageFormat::Vhd);
    if !footer.starts_with(COOKIE) {
        return Err(other());
    }
    Ok(match number::<4>(footer, 60).ok_or_else(other)? {
        FIXED | DYNAMIC => number::<8>(footer, 48).ok_or_else(other),
        DIFFERENCING => Err(ImageFault::Based(ImageFormat::Vhd)),
        _ => Err(other()),
    })
}

/// A big-endian number of at most 8 bytes.
fn number<const BYTES: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let found = bytes.get(at..at.checked_add(BYTES)?)?;
    Some(found.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        bytes[at..at + value.len()].copy_from_slice(value);
    }

    fn qcow2_head(version: u32) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        put(&mut head, 0, b"QFI\xfb");
        put(&mut head, 4, &version.to_be_bytes());
        put(&mut head, 20, &16u32.to_be_bytes());
        put(&mut head, 24, &(8u64 << 20).to_be_bytes());
        head
    }

    fn vhd_footer(kind: u32) -> Vec<u8> {
        let mut footer = vec![0; FOOTER];
        put(&mut footer, 0, b"conectix");
        put(&mut footer, 48, &(8u64 << 20).to_be_bytes());
        put(&mut footer, 60, &kind.to_be_bytes());
        footer
    }

    fn qcow2(head: &[u8]) -> Result<u64, ImageFault> {
        check(ImageFormat::Qcow2, head, &[], 1 << 20)
    }

    #[test]
    fn sound_images_tell_their_size() {
        let size = Ok(8 << 20);
        assert_eq!((qcow2(&qcow2_head(2)), qcow2(&qcow2_head(3))), (size.clone(), size.clone()));
        let vhd = |head: &[u8], footer: &[u8]| check(ImageFormat::Vhd, head, footer, 9 << 20);
        assert_eq!(vhd(&[0; HEAD], &vhd_footer(2)), size);
        assert_eq!(vhd(&vhd_footer(3), &[]), size);
        assert_eq!(check(ImageFormat::Raw, &[], &[], 4096), Ok(4096));
    }

    #[test]
    fn one_that_needs_another_file_is_refused() {
        let with = |at: usize, value: &[u8]| {
            let mut head = qcow2_head(3);
            put(&mut head, at, value);
            qcow2(&head).unwrap_err()
        };
        assert_eq!(with(8, &1u64.to_be_bytes()), ImageFault::Based(ImageFormat::Qcow2));
        assert_eq!(with(72, &4u64.to_be_bytes()), ImageFault::DataElsewhere);
        assert_eq!(with(32, &2u32.to_be_bytes()), ImageFault::Encrypted);
        assert_eq!(with(24, &0u64.to_be_bytes()), ImageFault::Size(0));
        assert_eq!(with(24, &u64::MAX.to_be_bytes()), ImageFault::Size(u64::MAX));
        assert_eq!(with(4, &4u32.to_be_bytes()), ImageFault::Other(ImageFormat::Qcow2));
        let differencing = check(ImageFormat::Vhd, &vhd_footer(4), &[], 9 << 20);
        assert_eq!(differencing, Err(ImageFault::Based(ImageFormat::Vhd)));
        // What is at its end does not make up for what is at its beginning.
        let both = check(ImageFormat::Vhd, &vhd_footer(4), &vhd_footer(2), 9 << 20);
        assert_eq!(both, Err(ImageFault::Based(ImageFormat::Vhd)));
        assert_eq!(check(ImageFormat::Raw, &[], &[], 0), Err(ImageFault::Size(0)));
    }

    #[test]
    fn cut_ones_are_no_images() {
        for end in 0..80 {
            assert_eq!(qcow2(&qcow2_head(3)[..end]), Err(ImageFault::Other(ImageFormat::Qcow2)), "{end}");
        }
        for end in 0..64 {
            let cut = check(ImageFormat::Vhd, &vhd_footer(2)[..end], &[], 9 << 20);
            assert_eq!(cut, Err(ImageFault::Other(ImageFormat::Vhd)), "{end}");
        }
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for format in ImageFormat::ALL {
            assert_eq!(format.name().parse(), Ok(format));
        }
        assert!("qcow".parse::<ImageFormat>().is_err() && "".parse::<ImageFormat>().is_err());
    }
}
