//! One store for many threads.

use super::{ConnectionId, Store, WatchEvent};
use crate::client::Client;
use crate::perms::DomId;
use crate::transport::{Answer, Transport, TransportError};
use crate::wire::{Request, TxId};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What errors name as the address of a store in this process.
const ENDPOINT: &str = "the store in this process";

/// A [`Store`] behind a lock. Cheap to clone.
#[derive(Clone, Default)]
pub struct SharedStore {
    store: Arc<Mutex<Store>>,
}

impl SharedStore {
    /// A store as it is when the daemon has started.
    pub fn new() -> Self {
        Self::default()
    }

    /// The store, for as long as the guard lives. Nothing in it waits.
    pub fn lock(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A way to the store on behalf of `domid`.
    pub fn transport(&self, domid: DomId) -> StoreTransport {
        let connection = self.lock().connect(domid);
        StoreTransport { store: self.clone(), domid, connection, generation: 1, scratch: Vec::new() }
    }

    /// A client on behalf of `domid`.
    pub fn client(&self, domid: DomId) -> Client {
        Client::new(Box::new(self.transport(domid)))
    }
}

/// A [`Transport`] without any socket in between. Other threads' requests may come between two of one exchange, as
/// with a real daemon.
pub struct StoreTransport {
    store: SharedStore,
    domid: DomId,
    connection: ConnectionId,
    generation: u64,
    scratch: Vec<u8>,
}

impl StoreTransport {
    /// The connection it speaks on.
    pub const fn connection(&self) -> ConnectionId {
        self.connection
    }

    /// The next event of a watch that was registered on this connection. Events do not survive the next exchange of
    /// requests other than watches.
    pub fn take_event(&mut self) -> Option<WatchEvent> {
        self.store.lock().take_event(self.connection)
    }

    /// Ends the connection, as a daemon does that goes away: transactions and watches are gone, the next exchange
    /// connects anew.
    pub fn disconnect(&mut self) {
        self.store.lock().disconnect(self.connection);
    }
}

impl Transport for StoreTransport {
    fn exchange(&mut self, requests: &[(TxId, Request)]) -> Result<Vec<Answer>, TransportError> {
        // What could not be sent to a daemon cannot be said here.
        for (tx_id, request) in requests {
            self.scratch.clear();
            request.append(*tx_id, 0, &mut self.scratch)?;
        }
        if !self.store.lock().is_connected(self.connection) {
            if requests.iter().any(|(tx, _)| *tx != TxId::NONE) {
                return Err(TransportError::TransactionLost { endpoint: ENDPOINT.to_owned() });
            }
            self.connection = self.store.lock().connect(self.domid);
            self.generation += 1;
        }
        let ask =
            |(tx_id, request): &(TxId, Request)| self.store.lock().request(self.connection, *tx_id, request);
        let answers: Option<Vec<Answer>> = requests.iter().map(ask).collect();
        answers.ok_or_else(|| TransportError::Closed { endpoint: ENDPOINT.to_owned() })
    }

    /// Nothing here takes time.
    fn set_timeout(&mut self, _: Duration) {}

    fn generation(&self) -> u64 {
        self.generation
    }
}

impl Drop for StoreTransport {
    fn drop(&mut self) {
        self.disconnect();
    }
}
