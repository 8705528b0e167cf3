//! Messages out of a byte stream that comes in pieces of any size.

use super::{HEADER_LEN, Header, Kind, TxId};

/// Longest payload kept of a message that a daemon sends, in bytes.
///
/// The protocol says 4096, but oxenstored (every version up to now) sends a directory of any length in one reply
/// on its socket, and there is no other way to list it. A guest can make its directories long: 1000 nodes
/// (`quota-maxentity`) with names of up to 1024 bytes (`quota-path-max`) are just below 1 MiB. The payload of
/// anything longer is thrown away as it comes in and reported as too long; it costs no memory.
pub const MAX_REPLY: usize = 1 << 20;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Payload,
}

/// What became of a message's payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// All of it.
    Whole(Vec<u8>),
    /// It was over the bound and has been skipped.
    TooLong {
        /// Bytes it had.
        len: u32,
    },
}

/// The stream makes no sense; where the next message begins is not known any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A message kind that no daemon sends.
    #[error("message kind {kind} is unknown")]
    UnknownKind {
        /// The number in the header.
        kind: u32,
    },
}

/// Cuts a stream into frames. Holds at most one header, or one payload of up to its bound.
#[derive(Debug)]
pub struct Decoder {
    max_payload: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    Header { bytes: [u8; HEADER_LEN], have: usize },
    Payload { header: Header, wanted: usize, bytes: Vec<u8> },
    Skip { header: Header, len: u32, left: usize },
}

const BETWEEN: State = State::Header { bytes: [0; HEADER_LEN], have: 0 };

impl Default for Decoder {
    fn default() -> Self {
        Self::new(MAX_REPLY)
    }
}

impl Decoder {
    /// A decoder at the start of a stream, which keeps payloads of up to `max_payload` bytes.
    pub const fn new(max_payload: usize) -> Self {
        Self { max_payload, state: BETWEEN }
    }

    /// Whether the stream may end here, between two messages.
    pub const fn is_between_messages(&self) -> bool {
        matches!(self.state, State::Header { have: 0, .. })
    }

    /// Takes bytes from the front of `input` until a message is complete (`Some`) or `input` is empty (`None`).
    ///
    /// # Errors
    /// [`DecodeError`] when a header makes no sense: the stream is of no more use.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, DecodeError> {
        loop {
            match &mut self.state {
                State::Header { bytes, have } => {
                    *have += take(input, HEADER_LEN - *have, |part| {
                        bytes[*have..][..part.len()].copy_from_slice(part);
                    });
                    if *have < HEADER_LEN {
                        return Ok(None);
                    }
                    let bytes = *bytes;
                    self.state = self.begin(bytes)?;
                }
                State::Payload { header, wanted, bytes } => {
                    take(input, *wanted - bytes.len(), |part| bytes.extend_from_slice(part));
                    if bytes.len() < *wanted {
                        return Ok(None);
                    }
                    let frame = Frame { header: *header, payload: Payload::Whole(std::mem::take(bytes)) };
                    self.state = BETWEEN;
                    return Ok(Some(frame));
                }
                State::Skip { header, len, left } => {
                    *left -= take(input, *left, |_| ());
                    if *left > 0 {
                        return Ok(None);
                    }
                    let frame = Frame { header: *header, payload: Payload::TooLong { len: *len } };
                    self.state = BETWEEN;
                    return Ok(Some(frame));
                }
            }
        }
    }

    fn begin(&self, bytes: [u8; HEADER_LEN]) -> Result<State, DecodeError> {
        let word = |i: usize| {
            u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
        };
        let kind = Kind::from_wire(word(0)).ok_or(DecodeError::UnknownKind { kind: word(0) })?;
        let header = Header { kind, req_id: word(1), tx_id: TxId(word(2)) };
        let len = word(3);
        // A usize has at least 32 bits wherever Xen runs; if not, the bound below applies.
        let wanted = usize::try_from(len).unwrap_or(usize::MAX);
        if wanted > self.max_payload {
            return Ok(State::Skip { header, len, left: wanted });
        }
        // Memory is taken as bytes arrive, never on the word of the length field.
        Ok(State::Payload { header, wanted, bytes: Vec::new() })
    }
}

/// Gives `sink` up to `most` bytes from the front of `input` and says how many.
fn take(input: &mut &[u8], most: usize, sink: impl FnOnce(&[u8])) -> usize {
    let (part, rest) = input.split_at(most.min(input.len()));
    sink(part);
    *input = rest;
    part.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_in_pieces(stream: &[u8], sizes: &[usize], max: usize) -> Result<Vec<Frame>, DecodeError> {
        let mut decoder = Decoder::new(max);
        let (mut frames, mut rest, mut sizes) = (Vec::new(), stream, sizes.iter().cycle());
        while !rest.is_empty() {
            let cut = sizes.next().map_or(rest.len(), |&n| n.clamp(1, rest.len()));
            let (mut piece, after) = rest.split_at(cut);
            while let Some(frame) = decoder.next(&mut piece)? {
                frames.push(frame);
            }
            assert!(piece.is_empty());
            rest = after;
        }
        Ok(frames)
    }

    #[test]
    fn an_unknown_kind_ends_the_stream() {
        let err = Decoder::default().next(&mut &[0xff; 16][..]);
        assert_eq!(err, Err(DecodeError::UnknownKind { kind: u32::MAX }));
    }

    #[test]
    fn a_long_payload_is_skipped_without_memory_and_the_next_message_found() {
        let header = Header { kind: Kind::Directory, req_id: 1, tx_id: TxId(2) };
        let mut stream = Vec::new();
        header.append_message(&[b'x'; 100], &mut stream);
        header.append_message(b"ok", &mut stream);
        let frames = decode_in_pieces(&stream, &[7], 99).unwrap();
        assert_eq!(frames[0], Frame { header, payload: Payload::TooLong { len: 100 } });
        assert_eq!(frames[1], Frame { header, payload: Payload::Whole(b"ok".to_vec()) });
    }

    #[test]
    fn a_length_of_four_gigabytes_takes_no_memory() {
        let mut stream = Vec::new();
        Header { kind: Kind::Read, req_id: 0, tx_id: TxId::NONE }.append_message(b"", &mut stream);
        stream[12..].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut decoder = Decoder::default();
        assert_eq!(decoder.next(&mut &stream[..]), Ok(None));
        assert!(!decoder.is_between_messages());
        assert!(matches!(decoder.state, State::Skip { .. }));
    }

    proptest! {
        #[test]
        fn any_cutting_gives_the_same_frames(
            messages in proptest::collection::vec((0u32..20, any::<u32>(), any::<u32>(), any::<Vec<u8>>()), 0..6),
            sizes in proptest::collection::vec(1usize..40, 1..8),
        ) {
            let (mut stream, mut frames) = (Vec::new(), Vec::new());
            for (kind, req_id, tx, payload) in messages {
                let header = Header { kind: Kind::from_wire(kind).unwrap(), req_id, tx_id: TxId(tx) };
                header.append_message(&payload, &mut stream);
                frames.push(Frame { header, payload: Payload::Whole(payload) });
            }
            prop_assert_eq!(decode_in_pieces(&stream, &sizes, MAX_REPLY), Ok(frames));
        }

        #[test]
        fn arbitrary_streams_never_panic(stream: Vec<u8>, sizes in proptest::collection::vec(1usize..40, 1..8)) {
            let _ = decode_in_pieces(&stream, &sizes, 64);
        }
    }
}
