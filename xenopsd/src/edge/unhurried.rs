//! Long exchanges with xenstored, without interrupting it at each of its replies.
//!
//! ```text
//!   a device's fifty requests ──► xenstored answers one ──► (it goes on, though we could read) ──► ... the last one
//!                                                                                                     └──► we read all
//! ```
//!
//! xenstored answers requests one by one, and each answer wakes who waits for them. Where dom0 has few processors, the one
//! who is woken takes xenstored's, reads one answer and sleeps again: two switches for each request, which cost more than
//! what xenstored does for it.

use std::time::Duration;

use ffi::linux::sched::Unhurried;
use xenstore::transport::{Answer, Transport, TransportError};
use xenstore::wire::{Request, TxId};

/// Requests of one exchange from which on it is worth two more system calls.
const MANY: usize = 8;

/// A transport whose long exchanges leave xenstored the processor.
pub(super) struct Patient<T>(pub(super) T);

impl<T: Transport> Transport for Patient<T> {
    fn exchange(&mut self, requests: &[(TxId, Request)]) -> Result<Vec<Answer>, TransportError> {
        let _unhurried = if requests.len() < MANY { None } else { Unhurried::begin() };
        self.0.exchange(requests)
    }

    fn set_timeout(&mut self, timeout: Duration) {
        self.0.set_timeout(timeout);
    }

    fn generation(&self) -> u64 {
        self.0.generation()
    }
}
