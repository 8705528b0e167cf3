//! The store edge: the store in this process, with a connection that can be lost.

use std::sync::Arc;
use std::time::Duration;

use xenstore::store::StoreTransport;
use xenstore::transport::Answer;
use xenstore::{Client, DomId, Request, Transport, TransportError, TxId};

use super::Shared;
use super::faults::When;

/// What errors name as the address.
const ENDPOINT: &str = "the simulated store";

/// A connection of dom0's.
pub(super) struct FaultyStore {
    shared: Arc<Shared>,
    transport: StoreTransport,
}

impl FaultyStore {
    pub(super) fn open(shared: &Arc<Shared>) -> Result<Client, xenstore::Error> {
        if shared.faults.check("store.open").is_err() {
            return Err(TransportError::Closed { endpoint: ENDPOINT.to_owned() }.into());
        }
        let transport = shared.store.transport(DomId::DOM0);
        Ok(Client::new(Box::new(Self { shared: Arc::clone(shared), transport })))
    }
}

impl Transport for FaultyStore {
    fn exchange(&mut self, requests: &[(TxId, Request)]) -> Result<Vec<Answer>, TransportError> {
        let Some((_, first)) = requests.first() else { return Ok(Vec::new()) };
        match self.shared.faults.meet(&format!("store.{}", first.name())) {
            None => return self.transport.exchange(requests),
            Some(When::After) => drop(self.transport.exchange(requests)),
            Some(When::Before) => {}
        }
        self.transport.disconnect();
        Err(TransportError::Closed { endpoint: ENDPOINT.to_owned() })
    }

    fn set_timeout(&mut self, timeout: Duration) {
        self.transport.set_timeout(timeout);
    }

    fn generation(&self) -> u64 {
        self.transport.generation()
    }
}
