//! A volume as the file system crates want to read it.

use crate::{
    disk::{Volume, as_io},
    error::Error,
};
use std::{cell::RefCell, rc::Rc};

/// The first read that failed, which the crates' own errors no longer tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Failure(Rc<RefCell<Option<Error>>>);

impl Failure {
    /// The read error behind an error of a crate, or else `other`.
    pub(super) fn or(&self, other: Error) -> Error {
        self.0.borrow_mut().take().unwrap_or(other)
    }
}

/// A volume that remembers why a read failed.
#[derive(Debug)]
pub(super) struct Source {
    volume: Volume,
    failure: Failure,
}

impl Source {
    pub(super) fn new(volume: &Volume, failure: &Failure) -> Self {
        Self { volume: volume.clone(), failure: failure.clone() }
    }

    fn fill(&mut self, offset: u64, buf: &mut [u8]) -> std::result::Result<(), std::io::Error> {
        self.volume.read_exact_at(buf, offset).map_err(|error| {
            let short = as_io(&error);
            self.failure.0.borrow_mut().get_or_insert(error);
            short
        })
    }
}

impl ext4_view::Ext4Read for Source {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.fill(start_byte, dst)?)
    }
}

impl lamxfs::BlockRead for Source {
    type Error = std::io::Error;

    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> std::result::Result<(), Self::Error> {
        self.fill(offset_bytes, buf)
    }
}

impl lambutter::BlockRead for Source {
    type Error = std::io::Error;

    fn read_at(&mut self, offset_bytes: u64, buf: &mut [u8]) -> std::result::Result<(), Self::Error> {
        self.fill(offset_bytes, buf)
    }
}
