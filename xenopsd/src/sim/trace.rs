//! What each object of the simulated world has done, for tests and for a look at what a seed means.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Most steps that are remembered in all.
const MAX_STEPS: usize = 1 << 20;

#[derive(Debug, Default)]
struct Steps {
    of: BTreeMap<String, Vec<String>>,
    count: usize,
}

/// The steps of each backend, guest and dying domain, in its own order. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// None while nobody wants to know.
    steps: Arc<Mutex<Option<Steps>>>,
}

impl Trace {
    /// Begins to remember.
    pub fn record(&self) {
        *self.lock() = Some(Steps::default());
    }

    /// The steps since [`Trace::record`] by object, and no more from now on.
    pub fn recorded(&self) -> BTreeMap<String, Vec<String>> {
        self.lock().take().map(|steps| steps.of).unwrap_or_default()
    }

    /// `object` does something.
    pub(super) fn note(&self, object: &str, what: impl FnOnce() -> String) {
        if let Some(steps) = &mut *self.lock()
            && steps.count < MAX_STEPS
        {
            steps.count += 1;
            steps.of.entry(object.to_owned()).or_default().push(what());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Steps>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
