//! "Something changed, go and look": the coalescing change feed behind `UPDATES.get`.
//!
//! Every object carries the number of its latest change; nothing else is kept, so the feed never grows beyond
//! the number of live objects and a slow client only ever misses intermediate states.
//!
//! ```text
//!   add(object) ──► changes[object] = next++ ──► every waiter whose token is older is answered
//!   get(token)  ──► answered now, or parked until a change or its deadline (no thread is held)
//! ```

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::{DynamicId, Int, Updates as Batch};
use crate::ops::timer::Timer;

/// How many clients may wait in `UPDATES.get` at once. Each costs one parked closure and one connection; a
/// management layer needs one per queue.
pub const MAX_WAITERS: usize = 256;

/// How many barriers may be outstanding. A client injects one per VM and removes it when seen.
pub const MAX_BARRIERS: usize = 4096;

/// Longest timeout honoured; a longer one is cut to it. Bounds the timer entries a client can leave behind.
pub const MAX_WAIT: Duration = Duration::from_secs(3600);

/// Receives the answer of [`Updates::get`], exactly once, on whichever thread caused it; it must not block.
pub type OnBatch = Box<dyn FnOnce(Result<Batch, UpdatesError>) + Send>;

struct Barrier {
    id: Int,
    objects: Vec<DynamicId>,
    change: Int,
}

struct Waiter {
    id: u64,
    from: Int,
    answer: OnBatch,
}

struct Inner {
    next: Int,
    changes: HashMap<DynamicId, Int>,
    /// The same by number, so that what is new is found without looking at what is not.
    by_change: BTreeMap<Int, DynamicId>,
    barriers: Vec<Barrier>,
    waiters: Vec<Waiter>,
    waiter_ids: u64,
}

/// The change feed. Cheap to clone.
#[derive(Clone)]
pub struct Updates {
    inner: Arc<Mutex<Inner>>,
    timer: Timer,
}

/// Why [`Updates::get`] or [`Updates::inject_barrier`] refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UpdatesError {
    /// [`MAX_WAITERS`] clients are waiting already.
    #[error("{MAX_WAITERS} clients are already waiting in UPDATES.get; close one or raise none")]
    TooManyWaiters,
    /// [`MAX_BARRIERS`] barriers have not been removed.
    #[error("{MAX_BARRIERS} barriers are outstanding; remove them with UPDATES.remove_barrier")]
    TooManyBarriers,
}

impl Updates {
    /// An empty feed whose first token is 1, as the contract's model starts.
    pub fn new(timer: Timer) -> Self {
        let inner = Inner {
            next: 1,
            changes: HashMap::new(),
            by_change: BTreeMap::new(),
            barriers: Vec::new(),
            waiters: Vec::new(),
            waiter_ids: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)), timer }
    }

    /// Records that `object` changed and answers everyone waiting for it.
    pub fn add(&self, object: DynamicId) {
        self.add_all([object]);
    }

    /// Records that all of them changed, and answers everyone once who waits for any.
    pub fn add_all(&self, objects: impl IntoIterator<Item = DynamicId>) {
        self.change(|inner| objects.into_iter().for_each(|object| inner.changed(object)));
    }

    /// Forgets an object that is gone. Its removal must have been announced with [`Updates::add`] before, or be
    /// of no interest to clients (a destroyed task).
    pub fn remove(&self, object: &DynamicId) {
        self.change(|inner| {
            inner.stamp();
            if let Some(before) = inner.changes.remove(object) {
                inner.by_change.remove(&before);
            }
        });
    }

    /// The token after the newest change: what a new client passes to see only later ones.
    pub fn last_id(&self) -> Int {
        self.lock().next - 1
    }

    /// Answers with everything newer than `from` (0 when absent), at once or when something changes; after
    /// `timeout` (none: never) with an empty batch and the caller's own token. When it would have to wait and too many
    /// do, with [`UpdatesError::TooManyWaiters`].
    pub fn get(&self, from: Option<Int>, timeout: Option<Duration>, answer: OnBatch) {
        let from = from.unwrap_or(0);
        let mut inner = self.lock();
        if let Some(batch) = inner.since(from) {
            drop(inner);
            return answer(Ok(batch));
        }
        if inner.waiters.len() >= MAX_WAITERS {
            drop(inner);
            return answer(Err(UpdatesError::TooManyWaiters));
        }
        inner.waiter_ids += 1;
        let id = inner.waiter_ids;
        inner.waiters.push(Waiter { id, from, answer });
        drop(inner);
        if let Some(timeout) = timeout {
            let this = self.clone();
            self.timer.at(Instant::now() + timeout.min(MAX_WAIT), move || this.expire(id));
        }
    }

    /// Puts a marker into the feed holding the present state of the objects for which `belongs` is true.
    ///
    /// # Errors
    /// [`UpdatesError::TooManyBarriers`].
    pub fn inject_barrier(&self, id: Int, belongs: impl Fn(&DynamicId) -> bool) -> Result<(), UpdatesError> {
        if self.lock().barriers.len() >= MAX_BARRIERS {
            return Err(UpdatesError::TooManyBarriers);
        }
        self.change(|inner| {
            let stamp = inner.stamp();
            let objects = inner.by_change.values().filter(|o| belongs(o)).cloned().collect();
            inner.barriers.push(Barrier { id, objects, change: stamp });
        });
        Ok(())
    }

    /// Removes the barrier `id`; unknown ids are ignored, as clients remove on every path.
    pub fn remove_barrier(&self, id: Int) {
        self.change(|inner| {
            inner.stamp();
            inner.barriers.retain(|b| b.id != id);
        });
    }

    /// Objects, barriers and waiting clients: for diagnostics.
    pub fn counts(&self) -> (usize, usize, usize) {
        let inner = self.lock();
        (inner.changes.len(), inner.barriers.len(), inner.waiters.len())
    }

    /// Timers that are set: for diagnostics.
    pub fn timers(&self) -> usize {
        self.timer.pending()
    }

    /// How many clients are waiting, for diagnostics.
    pub fn waiting(&self) -> usize {
        self.lock().waiters.len()
    }

    fn change(&self, apply: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        apply(&mut inner);
        let ready = inner.take_ready();
        drop(inner);
        for (answer, batch) in ready {
            answer(Ok(batch));
        }
    }

    fn expire(&self, id: u64) {
        let mut inner = self.lock();
        let Some(at) = inner.waiters.iter().position(|w| w.id == id) else { return };
        let waiter = inner.waiters.swap_remove(at);
        drop(inner);
        (waiter.answer)(Ok((Vec::new(), Vec::new(), waiter.from)));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The number of a change.
    fn stamp(&mut self) -> Int {
        self.next += 1;
        self.next - 1
    }

    fn changed(&mut self, object: DynamicId) {
        let stamp = self.stamp();
        self.by_change.insert(stamp, object.clone());
        if let Some(before) = self.changes.insert(object, stamp) {
            self.by_change.remove(&before);
        }
    }

    fn since(&self, from: Int) -> Option<Batch> {
        let newer = (Bound::Excluded(from), Bound::Unbounded);
        let mut changed = self.by_change.range(newer);
        let barriers: Vec<_> = self.barriers.iter().filter(|b| b.change > from).collect();
        let newest = changed.next_back().map(|(n, _)| *n);
        let newest = newest.into_iter().chain(barriers.iter().map(|b| b.change)).max()?;
        Some((
            barriers.iter().map(|b| (b.id, b.objects.clone())).collect(),
            self.by_change.range(newer).map(|(_, o)| o.clone()).collect(),
            newest,
        ))
    }

    fn take_ready(&mut self) -> Vec<(OnBatch, Batch)> {
        let mut ready = Vec::new();
        let mut parked = Vec::with_capacity(self.waiters.len());
        for waiter in std::mem::take(&mut self.waiters) {
            match self.since(waiter.from) {
                Some(batch) => ready.push((waiter.answer, batch)),
                None => parked.push(waiter),
            }
        }
        self.waiters = parked;
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::{Receiver, bounded};

    fn feed() -> Updates {
        Updates::new(Timer::start())
    }

    fn vm(name: &str) -> DynamicId {
        DynamicId::Vm(name.to_owned())
    }

    fn get(feed: &Updates, from: Option<Int>, timeout_ms: u64) -> Receiver<Batch> {
        let (tx, rx) = bounded(1);
        let answer = move |batch: Result<Batch, UpdatesError>| {
            tx.send(batch.expect("few waiters")).expect("the test holds the receiver");
        };
        feed.get(from, Some(Duration::from_millis(timeout_ms)), Box::new(answer));
        rx
    }

    #[test]
    fn changes_coalesce_and_keep_the_order_of_the_latest() {
        let feed = feed();
        feed.add(vm("a"));
        feed.add(vm("b"));
        feed.add(vm("a"));
        let (_, changed, token) = get(&feed, None, 1000).recv().expect("answered");
        assert_eq!(changed, [vm("b"), vm("a")]);
        assert_eq!(token, feed.last_id());
    }

    #[test]
    fn a_waiter_is_woken_by_a_change_and_only_by_a_newer_one() {
        let feed = feed();
        feed.add(vm("a"));
        let rx = get(&feed, Some(feed.last_id()), 60_000);
        assert!(rx.try_recv().is_err());
        feed.add(vm("b"));
        assert_eq!(rx.recv().expect("woken").1, [vm("b")]);
        assert_eq!(feed.waiting(), 0);
    }

    #[test]
    fn what_changes_together_is_one_answer() {
        let feed = feed();
        feed.add(vm("a"));
        let rx = get(&feed, Some(feed.last_id()), 60_000);
        feed.add_all([vm("b"), vm("a")]);
        let (_, changed, token) = rx.recv().expect("woken");
        assert_eq!((changed, token), (vec![vm("b"), vm("a")], feed.last_id()));
        let quiet = get(&feed, Some(token), 60_000);
        feed.add_all([]);
        assert!(quiet.try_recv().is_err());
    }

    #[test]
    fn a_timeout_answers_empty_with_the_callers_token() {
        let feed = feed();
        let (barriers, changed, token) = get(&feed, Some(41), 1).recv().expect("answered by the timer");
        assert!(barriers.is_empty() && changed.is_empty());
        assert_eq!(token, 41);
    }

    #[test]
    fn a_barrier_carries_the_objects_of_its_vm_only() {
        let feed = feed();
        feed.add(vm("a"));
        feed.add(vm("b"));
        feed.inject_barrier(7, |o| *o == vm("a")).expect("few barriers");
        let (barriers, _, token) = get(&feed, None, 1000).recv().expect("answered");
        assert_eq!(barriers, [(7, vec![vm("a")])]);
        feed.remove_barrier(7);
        assert!(get(&feed, Some(token), 1).recv().expect("answered").0.is_empty());
    }

    #[test]
    fn the_number_of_waiters_is_bounded() {
        let feed = feed();
        for _ in 0..MAX_WAITERS {
            feed.get(None, None, Box::new(|_| ()));
        }
        let (tx, rx) = bounded(1);
        feed.get(None, None, Box::new(move |answer| tx.send(answer).expect("the test listens")));
        assert_eq!(rx.recv().expect("answered"), Err(UpdatesError::TooManyWaiters));
    }
}
