//! The compressions that Linux packs its kernel with, each within a limit.

use crate::{
    error::{Error, Result},
    fs::{CHUNK, Sink},
};
use std::{fmt, io::Read};

/// Most memory a decompressor may keep of what it has unpacked: `zstd -22 --ultra`, which Linux' build uses, keeps
/// 128 MiB, `xz` 32 MiB.
const WINDOW_BYTES: u64 = 128 << 20;

/// A compression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// LZMA as `lzma` writes it.
    Lzma,
    /// xz, with the x86 filter or without.
    Xz,
    /// LZO as `lzop` writes it.
    Lzo,
    /// LZ4 as `lz4 -l` writes it.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Packing {
    /// By its first bytes.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        const MAGIC: [(&[u8], Packing); 7] = [
            (b"\x1f\x8b\x08", Packing::Gzip),
            (b"BZh", Packing::Bzip2),
            (b"\x5d\0\0", Packing::Lzma),
            (b"\xfd7zXZ\0", Packing::Xz),
            (b"\x89LZO\0\r\n\x1a\n", Packing::Lzo),
            (b"\x02\x21\x4c\x18", Packing::Lz4),
            (b"\x28\xb5\x2f\xfd", Packing::Zstd),
        ];
        MAGIC.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, packing)| *packing)
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// Passes on what is packed in `bytes`; what follows it (Linux appends its size) is not looked at.
pub(super) fn unpack(packing: Packing, bytes: &[u8], limit: u64, sink: &mut Sink) -> Result<()> {
    let damaged = |why: &dyn fmt::Display| Error::Kernel(format!("unpacking it with {packing}: {why}"));
    let window_kib = u32::try_from(WINDOW_BYTES >> 10).unwrap_or(u32::MAX);
    let mut reader: Box<dyn Read + '_> = match packing {
        Packing::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
        Packing::Bzip2 => Box::new(bzip2::read::BzDecoder::new(bytes)),
        Packing::Lzma => {
            Box::new(lzma_rust2::LzmaReader::new_mem_limit(bytes, window_kib, None).map_err(|e| damaged(&e))?)
        }
        Packing::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(bytes, false, window_kib)),
        Packing::Zstd => Box::new(
            ruzstd::decoding::StreamingDecoder::new_with_max_window_size(bytes, WINDOW_BYTES)
                .map_err(|e| damaged(&e))?,
        ),
        Packing::Lz4 => return lz4(&bytes[4..], limit, sink),
        Packing::Lzo => return Err(Error::Unsupported("a kernel packed with lzo".to_owned())),
    };
    passed(limit, sink, &mut reader).map_err(|error| match error {
        Error::Io { source, .. } => damaged(&source),
        other => other,
    })
}

/// Passes on all that is read, at most `limit` bytes.
pub(super) fn passed(limit: u64, sink: &mut Sink, reader: &mut dyn Read) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0u64;
    loop {
        let read = reader.read(&mut buffer).map_err(Error::io("unpacking the kernel"))?;
        if read == 0 {
            return Ok(());
        }
        total = total.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        if total > limit {
            return Err(Error::too_large("the unpacked kernel", limit));
        }
        sink(&buffer[..read])?;
    }
}

/// The legacy format: blocks, each with its size before it, of at most 8 MiB unpacked. It has no end mark: Linux' own
/// size field after it is the rest that is too short for a block.
fn lz4(mut bytes: &[u8], limit: u64, sink: &mut Sink) -> Result<()> {
    const BLOCK: usize = 8 << 20;
    let mut block = vec![0; BLOCK];
    let mut total = 0u64;
    while let Some((size, rest)) = bytes.split_first_chunk::<4>() {
        let size = usize::try_from(u32::from_le_bytes(*size)).unwrap_or(usize::MAX);
        if rest.is_empty() {
            break;
        }
        let cut = || Error::Kernel("unpacking it with lz4: a block is cut off".to_owned());
        let (packed, rest) = rest.split_at_checked(size).ok_or_else(cut)?;
        let length = lz4_flex::block::decompress_into(packed, &mut block)
            .map_err(|e| Error::Kernel(format!("unpacking it with lz4: {e}")))?;
        total = total.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        if total > limit {
            return Err(Error::too_large("the unpacked kernel", limit));
        }
        sink(&block[..length])?;
        bytes = rest;
    }
    Ok(())
}
