//! What a client of the NBD protocol says before the kernel takes over: which export, and how large it is.
//!
//! ```text
//!   server                                client
//!   "NBDMAGIC" "IHAVEOPT" flags ──►
//!                             ◄── flags
//!                             ◄── option GO: the export without a name
//!   INFO: size, flags ──►            any number of these, up to [`MAX_REPLIES`]
//!   ACK ──►                          from here on the kernel speaks
//! ```
//!
//! The numbers are those of NBD's `doc/proto.md`, big-endian. The server may have been taken over by what is in its image:
//! no answer is longer than [`MAX_REPLY`] here, and its size is only ever told to the kernel.

use std::io::{self, Read, Write};

const GREETING: [u8; 16] = *b"NBDMAGICIHAVEOPT";
const OPTION: [u8; 8] = *b"IHAVEOPT";
const REPLY: u64 = 0x0003_e889_0455_65a9;

/// Both sides know the protocol as it is since 2011, and no zeroes follow an export.
const HANDSHAKE: u16 = 0b11;

const OPTION_GO: u32 = 7;

const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
/// Replies from here on are refusals.
const REPLY_ERROR: u32 = 1 << 31;

/// The information that every server gives.
const INFO_EXPORT: u16 = 0;

/// Most replies before the last: QEMU sends three.
const MAX_REPLIES: usize = 16;

/// Longest reply, in bytes: a refusal comes with a sentence.
const MAX_REPLY: usize = 4096;

/// Most characters of a refusal that are repeated.
const MAX_QUOTED: usize = 200;

/// `NBD_FLAG_READ_ONLY`.
pub const READ_ONLY: u16 = 1 << 1;

/// What is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Bytes.
    pub size: u64,
    /// What the server can do and will allow (`NBD_FLAG_*`), for the kernel.
    pub flags: u16,
}

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum NegotiateError {
    /// The connection.
    #[error("NBD server: {0}")]
    Connection(#[from] io::Error),
    /// It speaks something else.
    #[error("NBD server: {0}")]
    Malformed(&'static str),
    /// It says no.
    #[error("NBD server refuses (error {code:#x}): {text}")]
    Refused {
        /// `NBD_REP_ERR_*`.
        code: u32,
        /// Its words.
        text: String,
    },
}

/// Asks for the export without a name; the connection is then in the phase in which blocks are read and written.
///
/// # Errors
/// [`NegotiateError`].
pub fn negotiate(stream: &mut (impl Read + Write)) -> Result<Export, NegotiateError> {
    let greeting: [u8; 16] = read(stream)?;
    if greeting != GREETING {
        return Err(NegotiateError::Malformed("this is no NBD server's greeting"));
    }
    let flags = u16::from_be_bytes(read(stream)?);
    if flags & HANDSHAKE != HANDSHAKE {
        return Err(NegotiateError::Malformed("it speaks the protocol of before 2011"));
    }
    let mut asked = u32::from(HANDSHAKE).to_be_bytes().to_vec();
    asked.extend_from_slice(&OPTION);
    asked.extend_from_slice(&OPTION_GO.to_be_bytes());
    // The length of a name, and how many kinds of information are asked for, both none: four and two bytes.
    asked.extend_from_slice(&6u32.to_be_bytes());
    asked.extend_from_slice(&[0; 6]);
    stream.write_all(&asked)?;
    let mut export = None;
    for _ in 0..MAX_REPLIES {
        match reply(stream)? {
            (REPLY_ACK, _) => {
                return export.ok_or(NegotiateError::Malformed("it does not say how large it is"));
            }
            (REPLY_INFO, data) => export = info(&data)?.or(export),
            (code, data) if code & REPLY_ERROR != 0 => {
                let text = String::from_utf8_lossy(&data);
                let text = text.chars().take(MAX_QUOTED);
                let text = text.map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
                return Err(NegotiateError::Refused { code, text });
            }
            _ => {}
        }
    }
    Err(NegotiateError::Malformed("it does not come to an end"))
}

/// The kind of a reply and what is in it.
fn reply(stream: &mut impl Read) -> Result<(u32, Vec<u8>), NegotiateError> {
    let magic = u64::from_be_bytes(read(stream)?);
    let option = u32::from_be_bytes(read(stream)?);
    if magic != REPLY || option != OPTION_GO {
        return Err(NegotiateError::Malformed("it answers something that was not asked"));
    }
    let kind = u32::from_be_bytes(read(stream)?);
    let length = usize::try_from(u32::from_be_bytes(read(stream)?)).unwrap_or(usize::MAX);
    if length > MAX_REPLY {
        return Err(NegotiateError::Malformed("its answer is too long"));
    }
    let mut data = vec![0; length];
    stream.read_exact(&mut data)?;
    Ok((kind, data))
}

/// Size and flags, if it is about those.
fn info(data: &[u8]) -> Result<Option<Export>, NegotiateError> {
    let short = NegotiateError::Malformed("an information is cut");
    let Some((kind, rest)) = data.split_first_chunk::<2>() else { return Err(short) };
    if u16::from_be_bytes(*kind) != INFO_EXPORT {
        return Ok(None);
    }
    let Some((size, rest)) = rest.split_first_chunk::<8>() else { return Err(short) };
    let Some((flags, _)) = rest.split_first_chunk::<2>() else { return Err(short) };
    Ok(Some(Export { size: u64::from_be_bytes(*size), flags: u16::from_be_bytes(*flags) }))
}

fn read<const BYTES: usize>(stream: &mut impl Read) -> io::Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says what it says, whatever is asked.
    struct Told<'a> {
        says: &'a [u8],
        heard: Vec<u8>,
    }

    impl Read for Told<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            self.says.read(into)
        }
    }

    impl Write for Told<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.heard.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn told(says: &[u8]) -> (Result<Export, NegotiateError>, Vec<u8>) {
        let mut server = Told { says, heard: Vec::new() };
        (negotiate(&mut server), server.heard)
    }

    fn answer(kind: u32, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap();
        [&REPLY.to_be_bytes()[..], &OPTION_GO.to_be_bytes(), &kind.to_be_bytes(), &length.to_be_bytes(), data]
            .concat()
    }

    fn greeted(replies: &[Vec<u8>]) -> Vec<u8> {
        [&GREETING[..], &HANDSHAKE.to_be_bytes(), &replies.concat()].concat()
    }

    fn export() -> Vec<u8> {
        answer(REPLY_INFO, &[&[0, 0][..], &(8u64 << 20).to_be_bytes(), &[0, 0x2d]].concat())
    }

    #[test]
    fn an_export_is_asked_for_and_its_size_learnt() {
        let other = answer(REPLY_INFO, &[0, 3, 0, 0, 0, 1]);
        let (found, asked) = told(&greeted(&[other, export(), answer(REPLY_ACK, &[])]));
        assert_eq!(found.unwrap(), Export { size: 8 << 20, flags: 0x2d });
        assert_eq!(asked, b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0");
    }

    #[test]
    fn what_is_no_protocol_ends_it() {
        let malformed = |says: &[u8]| matches!(told(says).0, Err(NegotiateError::Malformed(_)));
        assert!(malformed(b"HTTP/1.1 200 OK\r\n"));
        assert!(malformed(&[&GREETING[..], &[0, 1]].concat()));
        assert!(malformed(&greeted(&[answer(REPLY_ACK, &[])])), "without a size");
        assert!(malformed(&greeted(&[answer(REPLY_INFO, &[0])])));
        assert!(malformed(&greeted(&vec![export(); MAX_REPLIES + 1])), "without an end");
        assert!(malformed(&greeted(&[answer(REPLY_INFO, &[1; MAX_REPLY + 1])])));
        assert!(malformed(&greeted(&[vec![0; 20]])));
        let refused = told(&greeted(&[answer(REPLY_ERROR | 6, b"no such\nexport")])).0;
        assert!(
            matches!(&refused, Err(NegotiateError::Refused { text, .. }) if text == "no such\u{fffd}export"),
            "{refused:?}"
        );
        let whole = greeted(&[export(), answer(REPLY_ACK, &[])]);
        for end in 0..whole.len() {
            assert!(matches!(told(&whole[..end]).0, Err(NegotiateError::Connection(_))), "{end}");
        }
    }
}
