//! The body of an answer.

use super::head::{Head, line};
use crate::fetch::{Error, Result, Sink, broken};
use std::io::BufRead;

/// Longest line between chunks, with what servers may add to it.
const CHUNK_LINE_BYTES: usize = 1024;

/// Longest trailer after the last chunk.
const TRAILER_BYTES: usize = 8 << 10;

/// Smallest chunks are to be this long on average: a byte at a time costs six.
const CHUNKS: u64 = 4 << 20;

/// Writes a body into a sink.
pub(super) fn copy(stream: &mut impl BufRead, head: &Head, sink: &mut Sink<'_>) -> Result<()> {
    each(stream, head, &mut |bytes| sink.write(bytes))?;
    sink.end()
}

/// Each part of a body as it comes.
pub(super) fn each(
    stream: &mut impl BufRead,
    head: &Head,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    if head.chunked {
        return chunks(stream, take);
    }
    match head.length {
        Some(length) => exactly(stream, length, take),
        None => loop {
            let buffer = stream.fill_buf().map_err(|e| broken(&e))?;
            if buffer.is_empty() {
                return Ok(());
            }
            let length = buffer.len();
            take(buffer)?;
            stream.consume(length);
        },
    }
}

fn exactly(
    stream: &mut impl BufRead,
    mut left: u64,
    take: &mut dyn FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    while left > 0 {
        let buffer = stream.fill_buf().map_err(|e| broken(&e))?;
        if buffer.is_empty() {
            return Err(Error::Broken(format!("the server ended {left} bytes too early")));
        }
        let length = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        take(&buffer[..length])?;
        stream.consume(length);
        left -= u64::try_from(length).unwrap_or(left);
    }
    Ok(())
}

fn chunks(stream: &mut impl BufRead, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
    for _ in 0..CHUNKS {
        let text = line(stream, &mut { CHUNK_LINE_BYTES })?;
        let digits = text.split(|b| b";\r\n \t".contains(b)).next().unwrap_or_default();
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        let length = u64::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'));
        let length = length.ok_or_else(|| Error::refused("a chunk without a length"))?;
        if length == 0 {
            let mut left = TRAILER_BYTES;
            while !matches!(&*line(stream, &mut left)?, b"\r\n" | b"\n") {}
            return Ok(());
        }
        exactly(stream, length, take)?;
        if !matches!(&*line(stream, &mut { CHUNK_LINE_BYTES })?, b"\r\n" | b"\n") {
            return Err(Error::refused("a chunk that is longer than it says"));
        }
    }
    Err(Error::refused(format_args!("more than {CHUNKS} chunks")))
}
