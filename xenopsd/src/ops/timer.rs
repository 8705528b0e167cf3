//! One thread that runs short closures at given instants, so that no worker sleeps and no event is polled for.
//!
//! ```text
//!   at(instant, action) ──► actions, by their instants ──► the thread waits for the first ──► runs it, unlocked
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

type Action = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Actions {
    /// By instant, and in the order of the calls where that is the same.
    waiting: BTreeMap<(Instant, u64), Action>,
    calls: u64,
    /// There is no handle any more.
    closed: bool,
}

#[derive(Default)]
struct Shared {
    actions: Mutex<Actions>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Actions> {
        self.actions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while let Some(due) = self.next() {
            due();
        }
    }

    /// Waits for the first action and for its instant; none when there is no handle any more.
    fn next(&self) -> Option<Action> {
        let mut actions = self.lock();
        while !actions.closed {
            let now = Instant::now();
            let Some(first) = actions.waiting.first_entry() else {
                actions = self.changed.wait(actions).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (at, _) = *first.key();
            if at <= now {
                return Some(first.remove());
            }
            let waited = self.changed.wait_timeout(actions, at - now);
            (actions, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        None
    }
}

struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_one();
    }
}

/// Handle to the timer thread; the thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Timer {
    handle: Arc<Handle>,
}

impl Timer {
    /// Starts the thread.
    ///
    /// # Panics
    /// When the operating system refuses a thread, which only happens at start-up.
    pub fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let handle = Arc::new(Handle { shared: Arc::clone(&shared) });
        std::thread::Builder::new()
            .name("timer".into())
            .stack_size(super::SMALL_STACK)
            .spawn(move || shared.run())
            .expect("a thread can be started at start-up");
        Self { handle }
    }

    /// How many actions wait for their instants.
    pub fn pending(&self) -> usize {
        self.handle.shared.lock().waiting.len()
    }

    /// How many of them wait for one that is not before `at`.
    #[cfg(test)]
    pub fn pending_from(&self, at: Instant) -> usize {
        self.handle.shared.lock().waiting.range((at, 0)..).count()
    }

    /// Runs `action` on the timer thread at `at` (at once when it has passed). It must not block.
    pub fn at(&self, at: Instant, action: impl FnOnce() + Send + 'static) {
        let mut actions = self.handle.shared.lock();
        let call = actions.calls;
        actions.calls += 1;
        actions.waiting.insert((at, call), Box::new(action));
        let is_first = actions.waiting.first_key_value().is_some_and(|(first, _)| *first == (at, call));
        drop(actions);
        if is_first {
            self.handle.shared.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::unbounded;
    use std::time::Duration;

    #[test]
    fn actions_run_in_the_order_of_their_instants() {
        let timer = Timer::start();
        let (tx, rx) = unbounded();
        let now = Instant::now();
        for (name, ms) in [("late", 40), ("early", 10), ("past", 0), ("as early", 10)] {
            let tx = tx.clone();
            timer.at(now + Duration::from_millis(ms), move || tx.send(name).expect("the test listens"));
        }
        drop(tx);
        assert_eq!(rx.iter().collect::<Vec<_>>(), ["past", "early", "as early", "late"]);
        assert_eq!(timer.pending(), 0);
    }

    #[test]
    fn the_thread_ends_with_the_last_handle_and_what_waits_is_dropped() {
        let timer = Timer::start();
        let (tx, rx) = unbounded::<()>();
        let later = Instant::now() + Duration::from_secs(3600);
        timer.at(later, move || tx.send(()).expect("the test listens"));
        assert_eq!((timer.pending_from(later), timer.pending_from(later + Duration::from_secs(1))), (1, 0));
        let other = timer.clone();
        drop(timer);
        let (ran, runs) = unbounded();
        other.at(Instant::now(), move || ran.send(()).expect("the test listens"));
        runs.recv().expect("it runs while there is a handle");
        drop(other);
        assert!(rx.recv().is_err(), "the action is gone, and was not run");
    }
}
