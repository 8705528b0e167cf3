//! Who runs what, when: one queue per VM, served in order; different VMs in parallel.
//!
//! ```text
//!   push(vm, job) ──► queue of vm ──► a thread for vm while it has jobs ──► slot (of N) ──► job runs
//!                                                                            ▲    │
//!                                                  a job that waits for an ──┘    │
//!                                                  event gives its slot back ◄────┘
//! ```
//!
//! A VM's thread exists only while the VM has work, so an idle daemon holds none. Slots bound how many jobs use
//! the processor at once; a job blocked on a guest or a backend holds no slot.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::api::Error;

/// How many VMs may have a thread at once; more wait in `ready`. Bounds stacks, handles and xenstore connections.
pub const MAX_ACTIVE: usize = 256;

/// How many jobs one VM may have queued. A client that floods gets an error instead of memory.
pub const MAX_QUEUED: usize = 1024;

/// What a queue runs. It is given the slot it holds, so that its waits can release it.
pub type Job = Box<dyn FnOnce(&Slot) + Send>;

type VmQueue = VecDeque<(Option<&'static str>, Job)>;

struct Inner {
    /// Only VMs with work have an entry: it is made with the first job and removed with the last.
    queues: HashMap<String, VmQueue>,
    ready: VecDeque<String>,
    threads: usize,
}

/// All VMs' queues. Cheap to clone.
#[derive(Clone)]
pub struct Queues {
    inner: Arc<Mutex<Inner>>,
    slots: Slots,
}

impl Queues {
    /// Queues whose jobs share `slots` processors.
    pub fn new(slots: usize) -> Self {
        let inner = Inner { queues: HashMap::new(), ready: VecDeque::new(), threads: 0 };
        Self { inner: Arc::new(Mutex::new(inner)), slots: Slots::new(slots) }
    }

    /// Changes how many jobs run at once, from now on.
    pub fn resize(&self, slots: usize) {
        self.slots.resize(slots);
    }

    /// Appends a job to `vm`'s queue. A job with a `coalesce` name is dropped when one of that name is queued
    /// already and has not begun.
    ///
    /// # Errors
    /// `Internal_error` when the VM has [`MAX_QUEUED`] jobs or no thread can be started.
    pub fn push(&self, vm: &str, coalesce: Option<&'static str>, job: Job) -> Result<(), Error> {
        let mut inner = self.lock();
        let idle = !inner.queues.contains_key(vm);
        let queue = inner.queues.entry(vm.to_owned()).or_default();
        if coalesce.is_some() && queue.iter().any(|(name, _)| *name == coalesce) {
            return Ok(());
        }
        if queue.len() >= MAX_QUEUED {
            return Err(Error::internal(format!(
                "VM {vm} has {MAX_QUEUED} operations queued; wait for some to finish"
            )));
        }
        queue.push_back((coalesce, job));
        if idle {
            inner.ready.push_back(vm.to_owned());
        }
        self.start_threads(&mut inner)
    }

    /// Threads that serve VMs, slots in use, and slots there are: for diagnostics.
    pub fn workers(&self) -> (usize, isize, usize) {
        let threads = self.lock().threads;
        let count = self.slots.lock();
        (threads, count.used, count.total)
    }

    /// VMs with work, and how many jobs each has waiting: for diagnostics.
    pub fn summary(&self) -> Vec<(String, usize)> {
        let inner = self.lock();
        let mut all: Vec<_> = inner.queues.iter().map(|(vm, q)| (vm.clone(), q.len())).collect();
        all.sort();
        all
    }

    fn start_threads(&self, inner: &mut Inner) -> Result<(), Error> {
        while inner.threads < MAX_ACTIVE && inner.threads < inner.queues.len() {
            let this = self.clone();
            let spawned = std::thread::Builder::new()
                .name("vm-worker".into())
                .stack_size(super::WORKER_STACK)
                .spawn(move || this.serve());
            match spawned {
                Ok(_) => inner.threads += 1,
                // With a thread running, the work is done later rather than never.
                Err(error) if inner.threads > 0 => {
                    tracing::warn!(%error, "no further worker thread can be started");
                    return Ok(());
                }
                Err(error) => {
                    return Err(Error::internal(format!("no worker thread can be started: {error}")));
                }
            }
        }
        Ok(())
    }

    fn serve(&self) {
        let mut inner = self.lock();
        while let Some(vm) = inner.ready.pop_front() {
            let Some((_, job)) = inner.queues.get_mut(&vm).and_then(VecDeque::pop_front) else {
                inner.queues.remove(&vm);
                continue;
            };
            drop(inner);
            let slot = self.slots.take();
            if std::panic::catch_unwind(AssertUnwindSafe(|| job(&slot))).is_err() {
                tracing::error!(%vm, "an operation panicked; its VM's next operation goes on");
            }
            drop(slot);
            inner = self.lock();
            let more = inner.queues.get(&vm).is_some_and(|q| !q.is_empty());
            if more {
                // Behind the others: no VM with a long queue keeps another from its turn.
                inner.ready.push_back(vm);
            } else {
                inner.queues.remove(&vm);
            }
        }
        inner.threads -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone)]
struct Slots {
    shared: Arc<(Mutex<SlotCount>, Condvar)>,
}

struct SlotCount {
    total: usize,
    /// May pass below zero for a moment: see [`Slot::without`].
    used: isize,
}

impl Slots {
    fn new(total: usize) -> Self {
        let count = SlotCount { total: total.max(1), used: 0 };
        Self { shared: Arc::new((Mutex::new(count), Condvar::new())) }
    }

    fn resize(&self, total: usize) {
        self.lock().total = total.max(1);
        self.shared.1.notify_all();
    }

    fn acquire(&self) {
        let mut count = self.lock();
        while count.used >= isize::try_from(count.total).unwrap_or(isize::MAX) {
            count = self.shared.1.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
        count.used += 1;
    }

    fn release(&self) {
        self.lock().used -= 1;
        self.shared.1.notify_one();
    }

    fn take(&self) -> Slot {
        self.acquire();
        Slot { slots: self.clone(), waiting: Mutex::new(0) }
    }

    fn lock(&self) -> MutexGuard<'_, SlotCount> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to use a processor. Dropped when the job ends.
pub struct Slot {
    slots: Slots,
    /// How many threads of the job wait.
    waiting: Mutex<usize>,
}

impl Slot {
    /// A slot outside any pool, for start-up work and tests.
    pub fn unbounded() -> Self {
        Slots::new(usize::MAX).take()
    }

    /// Runs `wait` without holding the slot. A job whose steps run in parallel may wait in several threads: it is
    /// without its slot while any of them does.
    pub fn without<R>(&self, wait: impl FnOnce() -> R) -> R {
        struct Back<'a>(&'a Slot);
        impl Drop for Back<'_> {
            fn drop(&mut self) {
                let mut waiting = self.0.waiting();
                *waiting -= 1;
                let last = *waiting == 0;
                drop(waiting);
                if last {
                    // Another thread of the job may begin to wait here and release what is acquired only now.
                    self.0.slots.acquire();
                }
            }
        }
        let mut waiting = self.waiting();
        *waiting += 1;
        let first = *waiting == 1;
        drop(waiting);
        if first {
            self.slots.release();
        }
        let _back = Back(self);
        wait()
    }

    fn waiting(&self) -> MutexGuard<'_, usize> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::{bounded, unbounded};

    #[test]
    fn one_vm_is_served_in_order() {
        let queues = Queues::new(4);
        let (tx, rx) = unbounded();
        for n in 0..100 {
            let tx = tx.clone();
            queues.push("a", None, Box::new(move |_| tx.send(n).unwrap())).unwrap();
        }
        drop(tx);
        assert_eq!(rx.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_waiting_job_leaves_its_slot_to_another_vm() {
        let queues = Queues::new(1);
        let (event_tx, event) = bounded::<()>(0);
        let (begun_tx, begun) = bounded::<()>(1);
        let (done_tx, done) = unbounded();
        let first = done_tx.clone();
        queues
            .push(
                "a",
                None,
                Box::new(move |slot| {
                    begun_tx.send(()).unwrap();
                    slot.without(|| event.recv().unwrap());
                    first.send("a").unwrap();
                }),
            )
            .unwrap();
        begun.recv().unwrap();
        queues
            .push(
                "b",
                None,
                Box::new(move |_| {
                    done_tx.send("b").unwrap();
                    event_tx.send(()).unwrap();
                }),
            )
            .unwrap();
        assert_eq!(done.iter().collect::<Vec<_>>(), ["b", "a"]);
    }

    #[test]
    fn a_job_may_wait_in_several_threads() {
        let slots = Slots::new(1);
        let slot = slots.take();
        let barrier = std::sync::Barrier::new(3);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| slot.without(|| barrier.wait()));
            }
        });
        assert_eq!(slots.lock().used, 1);
        drop(slot);
        assert_eq!(slots.lock().used, 0);
    }

    #[test]
    fn equal_checks_coalesce_while_queued() {
        let queues = Queues::new(1);
        let (gate_tx, gate) = bounded::<()>(0);
        let (tx, rx) = unbounded();
        queues.push("a", None, Box::new(move |_| gate.recv().unwrap())).unwrap();
        for _ in 0..5 {
            let tx = tx.clone();
            queues.push("a", Some("check"), Box::new(move |_| tx.send(()).unwrap())).unwrap();
        }
        drop(tx);
        gate_tx.send(()).unwrap();
        assert_eq!(rx.iter().count(), 1);
    }

    #[test]
    fn a_flooded_queue_refuses() {
        let queues = Queues::new(1);
        let (gate_tx, gate) = bounded::<()>(0);
        queues.push("a", None, Box::new(move |_| gate.recv().unwrap_or_default())).unwrap();
        let refused = (0..=MAX_QUEUED).find_map(|_| queues.push("a", None, Box::new(|_| ())).err());
        assert!(matches!(refused, Some(Error::InternalError(_))));
        drop(gate_tx);
    }

    #[test]
    fn many_vms_run_on_a_bounded_number_of_threads() {
        let queues = Queues::new(8);
        let (tx, rx) = unbounded();
        for n in 0..1000 {
            let tx = tx.clone();
            queues.push(&n.to_string(), None, Box::new(move |_| tx.send(()).unwrap())).unwrap();
        }
        drop(tx);
        assert_eq!(rx.iter().count(), 1000);
    }
}
