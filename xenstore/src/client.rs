//! A connection to a store, and transactions on it.

use crate::batch::{Batch, Step};
use crate::error::Error;
use crate::operations::Operations;
use crate::transport::{Answer, Endpoint, StreamTransport, Transport};
use crate::wire::{Errno, Request, TxId};
use std::fmt;
use std::time::Duration;

/// How often a transaction is tried before [`Error::Conflict`].
///
/// With the C daemon any concurrent access to the same nodes costs a try, and of several that collide one always
/// gets through: with as many workers as a toolstack has, a hundred losses in a row mean that somebody (a guest
/// that writes all the time) is doing it on purpose.
pub const MAX_ATTEMPTS: usize = 100;

/// A client of one store. One per thread: it can be sent to another, not shared.
///
/// Requests are the methods of [`Operations`].
pub struct Client {
    transport: Box<dyn Transport>,
}

impl Client {
    /// A client on a transport.
    pub fn new(transport: Box<dyn Transport>) -> Self {
        Self { transport }
    }

    /// A client of the local xenstored: see [`Endpoint::from_environment`].
    ///
    /// # Errors
    /// [`Error::Transport`] when no connection can be made.
    pub fn connect() -> Result<Self, Error> {
        Self::connect_to(Endpoint::from_environment())
    }

    /// A client of the xenstored at `endpoint`.
    ///
    /// # Errors
    /// [`Error::Transport`] when no connection can be made.
    pub fn connect_to(endpoint: Endpoint) -> Result<Self, Error> {
        let mut transport = StreamTransport::new(endpoint);
        transport.connect()?;
        Ok(Self::new(Box::new(transport)))
    }

    /// Bounds the time that one exchange of requests and answers may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.transport.set_timeout(timeout);
    }

    /// Counts the connections made so far: another number than before means that the store may have been
    /// restarted, and lost what was in it.
    pub fn generation(&self) -> u64 {
        self.transport.generation()
    }

    /// Runs `body` in a transaction and commits it; when others got in between, runs it again from the start, up
    /// to [`MAX_ATTEMPTS`] times. An error of `body`, or a panic, aborts the transaction.
    ///
    /// # Errors
    /// What `body` returns; [`Error::Conflict`] when it had no luck; [`Error::Refused`] and [`Error::Transport`]
    /// when the transaction could not be opened or closed.
    pub fn transaction<R, E: From<Error>>(
        &mut self,
        mut body: impl FnMut(&mut Transaction<'_>) -> Result<R, E>,
    ) -> Result<R, E> {
        for _ in 0..MAX_ATTEMPTS {
            let mut transaction = Transaction::start(self)?;
            let result = body(&mut transaction)?;
            if transaction.commit()? {
                return Ok(result);
            }
        }
        Err(Error::Conflict { attempts: MAX_ATTEMPTS }.into())
    }

    /// Makes the changes of `batch` in a transaction of their own: all of them or none. Three round trips, or four
    /// where it prunes; one for a change that is alone and is one request, which needs no transaction.
    ///
    /// # Errors
    /// As [`Client::transaction`] and [`Operations::apply`].
    pub fn commit(&mut self, batch: &Batch) -> Result<(), Error> {
        match batch.steps() {
            [] => Ok(()),
            [Step::Rm(_) | Step::Mkdir(_) | Step::Write { .. } | Step::SetPerms { .. }] => self.apply(batch),
            _ => self.transaction(|t| t.apply(batch)),
        }
    }

    pub(crate) fn start_transaction(&mut self) -> Result<TxId, Error> {
        let reply = self.request(Request::TransactionStart)?;
        let id = reply.number().filter(|id| *id != TxId::NONE.0);
        id.map(TxId).ok_or_else(|| Error::bad_reply(&Request::TransactionStart, "not a transaction number"))
    }

    /// Ends a transaction; whether it took effect.
    pub(crate) fn end_transaction(&mut self, tx_id: TxId, commit: bool) -> Result<bool, Error> {
        let request = [(tx_id, Request::TransactionEnd { commit })];
        match self.exchange(&request)?.pop() {
            Some(Ok(_)) => Ok(commit),
            Some(Err(Errno::Again)) => Ok(false),
            Some(Err(errno)) => Err(Error::refused(&request[0].1, errno)),
            None => Err(Error::bad_reply(&request[0].1, "no answer at all")),
        }
    }
}

impl Operations for Client {
    fn tx_id(&self) -> TxId {
        TxId::NONE
    }

    fn exchange(&mut self, requests: &[(TxId, Request)]) -> Result<Vec<Answer>, Error> {
        Ok(self.transport.exchange(requests)?)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("generation", &self.generation()).finish_non_exhaustive()
    }
}

/// A transaction in progress: what it reads does not change, what it writes nobody sees yet.
#[derive(Debug)]
pub struct Transaction<'a> {
    client: &'a mut Client,
    tx_id: TxId,
    open: bool,
}

impl<'a> Transaction<'a> {
    fn start(client: &'a mut Client) -> Result<Self, Error> {
        let tx_id = client.start_transaction()?;
        Ok(Self { client, tx_id, open: true })
    }

    /// A view of a transaction that somebody else ends.
    #[cfg(feature = "xenstore-rs")]
    pub(crate) const fn borrowed(client: &'a mut Client, tx_id: TxId) -> Self {
        Self { client, tx_id, open: false }
    }

    /// The client, for what is not part of the transaction.
    #[cfg(feature = "xenstore-rs")]
    pub(crate) const fn client(&mut self) -> &mut Client {
        self.client
    }

    fn commit(mut self) -> Result<bool, Error> {
        self.open = false;
        self.client.end_transaction(self.tx_id, true)
    }
}

impl Operations for Transaction<'_> {
    fn tx_id(&self) -> TxId {
        self.tx_id
    }

    fn exchange(&mut self, requests: &[(TxId, Request)]) -> Result<Vec<Answer>, Error> {
        self.client.exchange(requests)
    }
}

impl Drop for Transaction<'_> {
    fn drop(&mut self) {
        if self.open {
            // If this fails the connection is lost, and the daemon forgets its transactions along with it.
            let _ = self.client.end_transaction(self.tx_id, false);
        }
    }
}
