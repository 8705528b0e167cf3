//! The traits of the `xenstore-rs` crate for our client, so that programs written for them run on it.
//!
//! Those traits take `&self` and have transactions that own what they need, so the client is shared behind a lock.
//! Unlike that crate's own client, this one has transactions, gives up on a daemon that does not answer, lists
//! directories of any length, and keeps the daemon's errno: an [`std::io::Error`] from here has our
//! [`Error`] inside. Values are text in these traits; one that is not UTF-8 is
//! [`InvalidData`](io::ErrorKind::InvalidData).

use crate::client::{Client, Transaction};
use crate::error::Error;
use crate::operations::Operations;
use crate::path::Path;
use crate::transport::TransportError;
use crate::wire::{EncodeError, Errno, Request, TxId};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xenstore_rs::{Xs, XsTransaction, XsTransactionSpan};

/// A client that implements the traits of `xenstore-rs`. Clones share the connection.
#[derive(Debug, Clone)]
pub struct SharedClient(Arc<Mutex<Client>>);

impl From<Client> for SharedClient {
    fn from(client: Client) -> Self {
        Self(Arc::new(Mutex::new(client)))
    }
}

impl SharedClient {
    /// The client itself. A panic of another holder leaves at worst a broken connection, which is made again.
    fn lock(&self) -> MutexGuard<'_, Client> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transaction on a [`SharedClient`]; aborted when dropped.
#[derive(Debug)]
pub struct Span {
    client: SharedClient,
    tx_id: TxId,
    generation: u64,
    open: bool,
}

impl Span {
    /// Runs `body` within the transaction, unless its connection is gone: on another one its number could be that
    /// of somebody else's transaction.
    fn within<R>(&self, body: impl FnOnce(&mut Transaction<'_>) -> io::Result<R>) -> io::Result<R> {
        let mut client = self.client.lock();
        if client.generation() != self.generation {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the transaction's connection is gone",
            ));
        }
        body(&mut Transaction::borrowed(&mut client, self.tx_id))
    }
}

fn path(text: &str) -> io::Result<Path> {
    Path::new(text).map_err(|e| Error::from(e).into())
}

fn directory(store: &mut impl Operations, text: &str) -> io::Result<Vec<Box<str>>> {
    let names = store.directory(&path(text)?)?.ok_or_else(|| missing("directory", text))?;
    Ok(names.into_iter().map(Into::into).collect())
}

fn read(store: &mut impl Operations, text: &str) -> io::Result<Box<str>> {
    let value = store.read_str(&path(text)?)?;
    value.map(Into::into).ok_or_else(|| missing("read", text))
}

fn rm(store: &mut impl Operations, text: &str) -> io::Result<()> {
    store.request(Request::Rm(path(text)?))?;
    Ok(())
}

fn missing(op: &'static str, target: &str) -> io::Error {
    Error::Refused { op, target: target.to_owned(), errno: Errno::NoEnt }.into()
}

impl Xs for SharedClient {
    fn directory(&self, path: &str) -> io::Result<Vec<Box<str>>> {
        directory(&mut *self.lock(), path)
    }

    fn read(&self, path: &str) -> io::Result<Box<str>> {
        read(&mut *self.lock(), path)
    }

    fn write(&self, text: &str, data: &str) -> io::Result<()> {
        Ok(self.lock().write(&path(text)?, data)?)
    }

    fn rm(&self, path: &str) -> io::Result<()> {
        rm(&mut *self.lock(), path)
    }
}

impl XsTransaction for SharedClient {
    type Span = Span;

    fn transaction(&self) -> io::Result<Span> {
        let mut client = self.lock();
        let tx_id = client.start_transaction()?;
        Ok(Span { client: self.clone(), tx_id, generation: client.generation(), open: true })
    }
}

impl Xs for Span {
    fn directory(&self, path: &str) -> io::Result<Vec<Box<str>>> {
        self.within(|t| directory(t, path))
    }

    fn read(&self, path: &str) -> io::Result<Box<str>> {
        self.within(|t| read(t, path))
    }

    fn write(&self, text: &str, data: &str) -> io::Result<()> {
        self.within(|t| Ok(t.write(&path(text)?, data)?))
    }

    fn rm(&self, path: &str) -> io::Result<()> {
        self.within(|t| rm(t, path))
    }
}

impl XsTransactionSpan for Span {
    /// `WouldBlock` means that others got in between: do the transaction again from its start.
    fn commit(mut self) -> io::Result<()> {
        self.open = false;
        let tx_id = self.tx_id;
        let committed = self.within(|t| Ok(t.client().end_transaction(tx_id, true)?))?;
        if committed { Ok(()) } else { Err(Error::Conflict { attempts: 1 }.into()) }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.open {
            let tx_id = self.tx_id;
            // A connection that fails here takes the transaction along.
            let _ = self.within(|t| Ok(t.client().end_transaction(tx_id, false)?));
        }
    }
}

/// The nearest kind; the error itself is inside.
impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        use io::ErrorKind as K;
        let kind = match &error {
            Error::Refused { errno, .. } => match errno {
                Errno::Inval => K::InvalidInput,
                Errno::Acces | Errno::Perm => K::PermissionDenied,
                Errno::Exist | Errno::IsConn => K::AlreadyExists,
                Errno::IsDir => K::IsADirectory,
                Errno::NoEnt => K::NotFound,
                Errno::NoMem => K::OutOfMemory,
                Errno::NoSpc | Errno::Quota => K::QuotaExceeded,
                Errno::NotEmpty => K::DirectoryNotEmpty,
                Errno::NoSys => K::Unsupported,
                Errno::RoFs => K::ReadOnlyFilesystem,
                Errno::Busy => K::ResourceBusy,
                Errno::Again => K::WouldBlock,
                Errno::TooBig => K::ArgumentListTooLong,
                Errno::Io | Errno::Other(_) => K::Other,
            },
            Error::Transport(e) => match e {
                TransportError::Connect { source, .. } | TransportError::Io { source, .. } => source.kind(),
                TransportError::Closed { .. } => K::BrokenPipe,
                TransportError::TimedOut { .. } => K::TimedOut,
                TransportError::Protocol { .. } => K::InvalidData,
                TransportError::TransactionLost { .. } => K::ConnectionAborted,
                TransportError::Encode(EncodeError::TooLong { .. } | EncodeError::Nul { .. }) => {
                    K::InvalidInput
                }
            },
            Error::Conflict { .. } => K::WouldBlock,
            Error::BadReply { .. } | Error::NotText { .. } => K::InvalidData,
            Error::Path(_) => K::InvalidInput,
        };
        Self::new(kind, error)
    }
}
