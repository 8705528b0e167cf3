//! Connections lent to worker threads and kept for the next one.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use xenstore::Client;

use super::{Host, Hypervisor, HypervisorError};
use crate::api::Error;

/// How many idle connections of a kind are kept. A burst opens more and closes them when it is over.
const KEPT: usize = 8;

type Open<T> = Box<dyn Fn() -> Result<T, Error> + Send + Sync>;

struct Pool<T> {
    open: Open<T>,
    idle: Mutex<Vec<T>>,
}

impl<T> Pool<T> {
    fn new(open: Open<T>) -> Self {
        Self { open, idle: Mutex::default() }
    }

    fn lend(&self) -> Result<Lent<'_, T>, Error> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let item = match idle {
            Some(item) => item,
            None => (self.open)()?,
        };
        Ok(Lent { pool: self, item: Some(item) })
    }
}

/// A borrowed connection; it goes back on drop.
pub struct Lent<'a, T> {
    pool: &'a Pool<T>,
    item: Option<T>,
}

impl<T> Deref for Lent<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.item.as_ref().expect("present until drop")
    }
}

impl<T> DerefMut for Lent<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.item.as_mut().expect("present until drop")
    }
}

impl<T> Drop for Lent<'_, T> {
    fn drop(&mut self) {
        // A panic may have left it in the middle of an exchange.
        if std::thread::panicking() {
            return;
        }
        let mut idle = self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.extend(self.item.take());
        }
    }
}

/// The machine: the three edges. Cheap to clone.
#[derive(Clone)]
pub struct Edges {
    hypervisors: Arc<Pool<Box<dyn Hypervisor>>>,
    stores: Arc<Pool<Client>>,
    host: Arc<dyn Host>,
}

impl Edges {
    /// Edges that open their connections with the given functions.
    pub fn new(
        hypervisor: impl Fn() -> Result<Box<dyn Hypervisor>, HypervisorError> + Send + Sync + 'static,
        store: impl Fn() -> Result<Client, xenstore::Error> + Send + Sync + 'static,
        host: Arc<dyn Host>,
    ) -> Self {
        Self {
            hypervisors: Arc::new(Pool::new(Box::new(move || Ok(hypervisor()?)))),
            stores: Arc::new(Pool::new(Box::new(move || Ok(store()?)))),
            host,
        }
    }

    /// A hypervisor handle for this thread.
    ///
    /// # Errors
    /// `Internal_error` when it cannot be opened.
    pub fn hypervisor(&self) -> Result<Lent<'_, Box<dyn Hypervisor>>, Error> {
        self.hypervisors.lend()
    }

    /// A xenstore connection for this thread.
    ///
    /// # Errors
    /// `Internal_error` when it cannot be opened.
    pub fn store(&self) -> Result<Lent<'_, Client>, Error> {
        self.stores.lend()
    }

    /// Linux.
    pub fn host(&self) -> &dyn Host {
        &*self.host
    }
}

impl From<HypervisorError> for Error {
    fn from(error: HypervisorError) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<xenstore::Error> for Error {
    fn from(error: xenstore::Error) -> Self {
        Self::internal(error.to_string())
    }
}
