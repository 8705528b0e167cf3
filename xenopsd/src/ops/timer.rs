//! One thread that runs short closures at given instants, so that no worker sleeps and no event is polled for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, unbounded};

type Action = Box<dyn FnOnce() + Send>;

struct Entry {
    at: Instant,
    sequence: u64,
    action: Action,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}
impl Entry {
    fn key(&self) -> (Instant, u64) {
        (self.at, self.sequence)
    }
}

/// Handle to the timer thread; the thread ends when the last handle is dropped.
#[derive(Clone)]
pub struct Timer {
    queue: Arc<Sender<(Instant, Action)>>,
    pending: Arc<AtomicUsize>,
}

impl Timer {
    /// Starts the thread.
    ///
    /// # Panics
    /// When the operating system refuses a thread, which only happens at start-up.
    pub fn start() -> Self {
        let (tx, rx) = unbounded();
        std::thread::Builder::new()
            .name("timer".into())
            .stack_size(super::SMALL_STACK)
            .spawn(move || run(&rx))
            .expect("a thread can be started at start-up");
        Self { queue: Arc::new(tx), pending: Arc::default() }
    }

    /// How many actions wait for their instants.
    pub fn pending(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// Runs `action` on the timer thread at `at` (at once when it has passed). It must not block.
    pub fn at(&self, at: Instant, action: impl FnOnce() + Send + 'static) {
        self.pending.fetch_add(1, Ordering::Relaxed);
        let pending = Arc::clone(&self.pending);
        let counted = move || {
            pending.fetch_sub(1, Ordering::Relaxed);
            action();
        };
        // The receiver lives as long as any sender, so this cannot fail.
        let _ = self.queue.send((at, Box::new(counted)));
    }
}

fn run(incoming: &Receiver<(Instant, Action)>) {
    let mut pending: BinaryHeap<Reverse<Entry>> = BinaryHeap::new();
    let mut sequence = 0;
    loop {
        let received = match pending.peek() {
            None => incoming.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(Reverse(first)) => incoming.recv_deadline(first.at),
        };
        match received {
            Ok((at, action)) => {
                sequence += 1;
                pending.push(Reverse(Entry { at, sequence, action }));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(Reverse(due)) = pending.pop() {
                    (due.action)();
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn actions_run_in_the_order_of_their_instants() {
        let timer = Timer::start();
        let (tx, rx) = unbounded();
        let now = Instant::now();
        for (name, ms) in [("late", 40), ("early", 10), ("past", 0)] {
            let tx = tx.clone();
            timer.at(now + Duration::from_millis(ms), move || tx.send(name).expect("the test listens"));
        }
        drop(tx);
        assert_eq!(rx.iter().collect::<Vec<_>>(), ["past", "early", "late"]);
        assert_eq!(timer.pending(), 0);
    }
}
