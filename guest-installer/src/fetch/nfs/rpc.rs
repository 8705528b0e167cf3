//! Calls of ONC RPC version 2 over TCP (RFC 5531): one at a time, each with its answer.

use super::xdr::{Reader, Writer};
use crate::fetch::{Error, Result, broken};
use std::{
    io::{Read, Write},
    net::TcpStream,
};

/// Longest answer: a read of [`super::READ_BYTES`] and what is around it.
const RECORD_BYTES: usize = (64 << 10) + 1024;

/// Most fragments of one.
const FRAGMENTS: usize = 64;

/// Of a fragment's head: it is the last one.
const LAST: u32 = 1 << 31;

/// `AUTH_SYS`: a user and group by number; a server makes of root what it does.
const AUTH_SYS: u32 = 1;

/// Longest verifier of an answer.
const VERIFIER_BYTES: usize = 400;

/// Which procedure.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call {
    pub(super) program: u32,
    pub(super) version: u32,
    pub(super) procedure: u32,
}

/// A connection to one program.
#[derive(Debug)]
pub(super) struct Client {
    stream: TcpStream,
    number: u32,
}

impl Client {
    #[expect(clippy::unnecessary_wraps, reason = "used where a connection may have failed")]
    pub(super) fn new(stream: TcpStream) -> Result<Self> {
        Ok(Self { stream, number: 0 })
    }

    /// The results of a call.
    pub(super) fn call(&mut self, call: Call, arguments: impl FnOnce(&mut Writer)) -> Result<Vec<u8>> {
        self.number += 1;
        let mut record = Writer::default();
        // CALL, of version 2.
        record.numbers(&[self.number, 0, 2, call.program, call.version, call.procedure]);
        let mut credentials = Writer::default();
        // A stamp, no name, user 0, group 0, no other groups.
        credentials.numbers(&[0, 0, 0, 0, 0]);
        record.numbers(&[AUTH_SYS]);
        record.bytes(&credentials.0);
        record.numbers(&[0, 0]);
        arguments(&mut record);
        let length = u32::try_from(record.0.len()).unwrap_or(LAST - 1);
        let message = [&(length | LAST).to_be_bytes(), &*record.0].concat();
        self.stream.write_all(&message).map_err(|e| broken(&e))?;
        let answer = read_record(&mut self.stream)?;
        results(&answer, self.number).map(<[u8]>::to_vec)
    }
}

fn read_record(stream: &mut impl Read) -> Result<Vec<u8>> {
    let mut record = Vec::new();
    for _ in 0..FRAGMENTS {
        let mut head = [0; 4];
        stream.read_exact(&mut head).map_err(|e| broken(&e))?;
        let head = u32::from_be_bytes(head);
        let length = usize::try_from(head & !LAST).unwrap_or(usize::MAX);
        let start = record.len();
        if length > RECORD_BYTES - start {
            return Err(Error::refused("an answer that is too long"));
        }
        record.resize(start + length, 0);
        stream.read_exact(&mut record[start..]).map_err(|e| broken(&e))?;
        if head & LAST != 0 {
            return Ok(record);
        }
    }
    Err(Error::refused("an answer in too many pieces"))
}

/// The results in an answer to a call of that number.
pub(super) fn results(answer: &[u8], number: u32) -> Result<&[u8]> {
    let mut reader = Reader::new(answer);
    let (answered, kind, accepted) = (reader.number()?, reader.number()?, reader.number()?);
    if answered != number || kind != 1 {
        return Err(Error::refused("an answer to another call"));
    }
    if accepted != 0 {
        return Err(Error::refused("the server does not let us call"));
    }
    let _flavour = reader.number()?;
    reader.bytes(VERIFIER_BYTES)?;
    match reader.number()? {
        0 => Ok(reader.rest()),
        1 | 2 => Err(Error::refused("the server does not have that program or version (NFS 3)")),
        status => Err(Error::refused(format_args!("the server answers {status} to a call"))),
    }
}
