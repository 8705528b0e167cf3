//! Waiting for something in the store: no polling, always a deadline, cancellable, and without holding a processor
//! slot that another VM could use.
//!
//! ```text
//!   condition? ──yes──► done
//!     │  ▲ no
//!     ▼  │
//!   one of: a watch fired · task cancelled · deadline · time to look, for what no watch tells of
//! ```

use std::time::{Duration, Instant};

use crossbeam::channel::Select;
use xenstore::Path;

use crate::api::Error;
use crate::edge::Events;
use crate::ops::queue::Slot;
use crate::ops::task::TaskHandle;

/// What a waiting step holds.
#[derive(Clone, Copy)]
pub struct Waiting<'a> {
    /// Where watches come from.
    pub events: &'a Events,
    /// The task whose cancellation ends the wait; none for steps that must run to their end.
    pub task: Option<&'a TaskHandle>,
    /// Given back while waiting.
    pub slot: &'a Slot,
}

/// A wait that did not get what it waited for.
#[derive(Debug, PartialEq)]
pub enum Ended {
    /// The deadline passed.
    TimedOut,
    /// The condition itself failed, or the task was cancelled.
    Failed(Error),
}

/// When to look again at what tells nobody that it has changed. Each pause is as long as all before it together, so that
/// nothing is seen later than after twice the time it took, and a long wait costs a handful of looks.
#[derive(Debug, Clone, Copy)]
pub struct Looks {
    next: Duration,
    longest: Duration,
}

impl Looks {
    /// The first pause and the longest.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.longest);
        pause
    }
}

impl Waiting<'_> {
    /// Evaluates `condition` now and whenever something at or below one of `paths` changes, until it yields a value.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn until<T>(
        &self,
        paths: &[Path],
        deadline: Instant,
        condition: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Ended> {
        self.watch(paths, deadline, None, condition)
    }

    /// As [`Waiting::until`], for a condition that depends on something no watch tells of besides: it is evaluated as `looks`
    /// say, too.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn until_looking<T>(
        &self,
        paths: &[Path],
        deadline: Instant,
        looks: Looks,
        condition: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Ended> {
        self.watch(paths, deadline, Some(looks), condition)
    }

    /// As [`Waiting::until`], for what is hardly ever so already: it is not looked at before it is watched.
    ///
    /// # Errors
    /// [`Ended`].
    pub fn until_changed<T>(
        &self,
        paths: &[Path],
        deadline: Instant,
        condition: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Ended> {
        self.watched(paths, deadline, None, condition)
    }

    fn watch<T>(
        &self,
        paths: &[Path],
        deadline: Instant,
        looks: Option<Looks>,
        mut condition: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Ended> {
        // Often it is true already, and then no watch is needed.
        if let Some(value) = condition().map_err(Ended::Failed)? {
            return Ok(value);
        }
        self.watched(paths, deadline, looks, condition)
    }

    /// That the watches are there is the first change.
    fn watched<T>(
        &self,
        paths: &[Path],
        deadline: Instant,
        mut looks: Option<Looks>,
        mut condition: impl FnMut() -> Result<Option<T>, Error>,
    ) -> Result<T, Ended> {
        let changes = self.events.subscribe(paths).map_err(Ended::Failed)?;
        loop {
            let look = looks.as_mut().map(|looks| Instant::now() + looks.pause());
            let wake = look.map_or(deadline, |look| look.min(deadline));
            let silent = self.slot.without(|| {
                let mut select = Select::new();
                select.recv(changes.receiver());
                if let Some(task) = self.task {
                    select.recv(task.cancel_event());
                }
                select.ready_deadline(wake).is_err()
            });
            if silent && wake == deadline {
                // A change may be on its way to this thread.
                return condition().map_err(Ended::Failed)?.ok_or(Ended::TimedOut);
            }
            changes.take();
            if let Some(task) = self.task {
                task.check_cancelled().map_err(Ended::Failed)?;
            }
            if let Some(value) = condition().map_err(Ended::Failed)? {
                return Ok(value);
            }
        }
    }

    /// Waits for nothing but the deadline.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn pause(&self, deadline: Instant) -> Result<(), Error> {
        self.slot.without(|| match self.task {
            // Nothing is ever sent: what can be received is that the task was cancelled.
            Some(task) => drop(task.cancel_event().recv_deadline(deadline)),
            None => drop(crossbeam::channel::at(deadline).recv()),
        });
        self.task.map_or(Ok(()), TaskHandle::check_cancelled)
    }
}
