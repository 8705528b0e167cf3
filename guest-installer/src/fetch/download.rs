//! One file, whatever its server does on the way.
//!
//! ```text
//!   attempt ──► complete                             ┌─ the server goes on where it was ──► attempt
//!      └──────► broken on the way ──► more came? ────┤
//!                     │                              └─ it cannot, or the file is another ─► from the start ─► attempt
//!                     └─ ATTEMPTS in vain ──► error
//! ```

use super::{Address, Connect, Error, Network, Result, ftp, http, nfs, url::Scheme};
use std::{
    fs::File,
    io::{Seek, Write},
};

/// Attempts in a row that brought nothing.
const ATTEMPTS_IN_VAIN: usize = 3;

/// All attempts for one file.
const ATTEMPTS: usize = 12;

/// How much comes between two reports of progress.
const REPORTED_BYTES: u64 = 256 << 10;

/// Where a file goes, and how much of it there is.
pub struct Sink<'a> {
    file: &'a mut File,
    /// Bytes that are there.
    at: u64,
    limit: u64,
    /// How long the server says it is.
    total: Option<u64>,
    /// What names this version of the file, if the server has such a thing.
    pub(super) validator: Option<String>,
    reported: u64,
    progress: &'a mut dyn FnMut(u64, Option<u64>),
}

impl std::fmt::Debug for Sink<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("at", &self.at).field("total", &self.total).finish_non_exhaustive()
    }
}

impl<'a> Sink<'a> {
    /// Into an empty file, at most `limit` bytes; `progress` is told how many there are, of how many.
    pub fn new(file: &'a mut File, limit: u64, progress: &'a mut dyn FnMut(u64, Option<u64>)) -> Self {
        Self { file, at: 0, limit, total: None, validator: None, reported: 0, progress }
    }

    /// How many bytes there are: where a server is asked to go on.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    /// A server begins to send. `from` is 0 or [`Sink::at`]; in the first case what was there goes.
    pub(super) fn begin(&mut self, from: u64, total: Option<u64>) -> Result<()> {
        if total.is_some_and(|total| total > self.limit) {
            return Err(Error::TooLarge(self.limit));
        }
        if from != self.at || (from > 0 && total != self.total) {
            self.restart()?;
            if from != 0 {
                return Err(Error::Broken("the server goes on somewhere else".to_owned()));
            }
        }
        self.total = total;
        (self.progress)(self.at, self.total);
        Ok(())
    }

    /// Throws away what is there.
    pub(super) fn restart(&mut self) -> Result<()> {
        if self.at > 0 {
            let emptied = self.file.set_len(0).and_then(|()| self.file.rewind());
            emptied.map_err(|e| Error::refused(format_args!("emptying the output: {e}")))?;
        }
        (self.at, self.total, self.validator, self.reported) = (0, None, None, 0);
        Ok(())
    }

    /// The next bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let at = self.at.saturating_add(length);
        if at > self.limit {
            return Err(Error::TooLarge(self.limit));
        }
        if self.total.is_some_and(|total| at > total) {
            return Err(Error::refused("the server sends more than it said"));
        }
        self.file.write_all(bytes).map_err(|e| Error::refused(format_args!("writing the output: {e}")))?;
        self.at = at;
        if at - self.reported >= REPORTED_BYTES {
            self.reported = at;
            (self.progress)(at, self.total);
        }
        Ok(())
    }

    /// The server says that this is all.
    pub(super) fn end(&mut self) -> Result<()> {
        match self.total {
            Some(total) if self.at < total => {
                Err(Error::Broken(format!("the server ended after {} of {total} bytes", self.at)))
            }
            _ => {
                (self.progress)(self.at, self.total);
                Ok(())
            }
        }
    }
}

/// Gets a file. On failure the output may hold a part.
///
/// # Errors
/// [`Error`]; of the last attempt.
pub fn download(
    address: &Address,
    network: &Network,
    connect: &dyn Connect,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let mut in_vain = 0;
    let mut last = Error::Broken("nothing was tried".to_owned());
    for _ in 0..ATTEMPTS {
        let before = sink.at();
        let outcome = match address.scheme {
            Scheme::Http | Scheme::Https => http::get(address, network, connect, sink),
            Scheme::Ftp => ftp::get(address, connect, sink),
            Scheme::Nfs => nfs::get(address, connect, sink),
        };
        match outcome {
            Err(error @ Error::Broken(_)) => last = error,
            outcome => return outcome,
        }
        in_vain = if sink.at() > before { 0 } else { in_vain + 1 };
        if in_vain == ATTEMPTS_IN_VAIN {
            break;
        }
    }
    Err(last)
}
