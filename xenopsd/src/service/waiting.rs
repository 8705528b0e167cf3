//! Calls that wait for a thread.
//!
//! A thread without work sleeps at once. One at crossbeam's channels yields four times first, which where dom0 has one
//! processor is four system calls and turns of other threads for nothing, twice for each call.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A bounded queue for several threads.
pub(super) struct Waiting<T> {
    queue: Mutex<Queue<T>>,
    changed: Condvar,
    max: usize,
}

struct Queue<T> {
    jobs: VecDeque<T>,
    ended: bool,
}

impl<T> Waiting<T> {
    /// An empty queue of at most `max`.
    pub(super) fn new(max: usize) -> Self {
        let queue = Mutex::new(Queue { jobs: VecDeque::new(), ended: false });
        Self { queue, changed: Condvar::new(), max }
    }

    /// Adds a job, or gives it back if there are too many.
    pub(super) fn push(&self, job: T) -> Result<(), T> {
        let mut queue = self.lock();
        if queue.jobs.len() >= self.max {
            return Err(job);
        }
        queue.jobs.push_back(job);
        drop(queue);
        self.changed.notify_one();
        Ok(())
    }

    /// The next job, once there is one; none once the queue has ended and nothing is left in it.
    pub(super) fn next(&self) -> Option<T> {
        let mut queue = self.lock();
        while queue.jobs.is_empty() && !queue.ended {
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.jobs.pop_front()
    }

    /// Ends it: who waits is let go.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Waiting;

    #[test]
    fn jobs_are_taken_in_their_order_and_bounded() {
        let waiting = Waiting::new(2);
        assert_eq!([waiting.push(1), waiting.push(2), waiting.push(3)], [Ok(()), Ok(()), Err(3)]);
        assert_eq!(waiting.next(), Some(1));
        assert_eq!(waiting.push(4), Ok(()));
        waiting.end();
        assert_eq!([waiting.next(), waiting.next(), waiting.next()], [Some(2), Some(4), None]);
    }

    #[test]
    fn every_job_is_done_once_and_every_thread_is_let_go() {
        const JOBS: usize = 1000;
        let waiting = Waiting::new(JOBS);
        let done = std::thread::scope(|scope| {
            let work = || std::iter::from_fn(|| waiting.next()).collect::<Vec<usize>>();
            let threads = [scope.spawn(work), scope.spawn(work), scope.spawn(work)];
            for job in 0..JOBS {
                assert_eq!(waiting.push(job), Ok(()));
            }
            waiting.end();
            threads.map(|thread| thread.join().expect("no panic")).concat()
        });
        let mut sorted = done;
        sorted.sort_unstable();
        assert_eq!(sorted, (0..JOBS).collect::<Vec<_>>());
    }
}
