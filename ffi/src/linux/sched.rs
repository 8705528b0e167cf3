//! How the kernel schedules threads (sched_setscheduler(2)).

use std::io;
use std::sync::OnceLock;

/// As long as it lives, the calling thread's waking up takes the processor from nobody: it waits until another process that
/// runs sleeps, or has had its share. (`SCHED_BATCH`: such a thread does not preempt at its wakeup, sched(7). Its share of the
/// processor is the same.)
///
/// For one who waits for many messages of a process that is writing them: woken for each, it would interrupt the writer
/// each time.
#[derive(Debug)]
pub struct Unhurried {
    // The policy is the thread's: it is to be given back by the one who took it.
    _of_this_thread: std::marker::PhantomData<*const ()>,
}

impl Unhurried {
    /// None where the process is scheduled otherwise than the kernel does by default: an administrator wanted that.
    pub fn begin() -> Option<Self> {
        static BY_DEFAULT: OnceLock<bool> = OnceLock::new();
        let by_default = *BY_DEFAULT.get_or_init(|| policy() == libc::SCHED_OTHER);
        (by_default && set(libc::SCHED_BATCH).is_ok())
            .then_some(Self { _of_this_thread: std::marker::PhantomData })
    }
}

impl Drop for Unhurried {
    fn drop(&mut self) {
        // What was allowed one way is allowed the other; and a thread that stays as it is loses nothing but the first turn.
        let _ = set(libc::SCHED_OTHER);
    }
}

fn policy() -> libc::c_int {
    // SAFETY: a plain number; 0 is the calling thread.
    unsafe { libc::sched_getscheduler(0) }
}

fn set(policy: libc::c_int) -> io::Result<()> {
    let param = libc::sched_param { sched_priority: 0 };
    // SAFETY: 0 is the calling thread; the kernel reads the parameter, which lives until the call returns.
    let result = unsafe { libc::sched_setscheduler(0, policy, &raw const param) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_this_thread_s_and_given_back() {
        let unhurried = Unhurried::begin();
        assert!(unhurried.is_some());
        assert_eq!(policy(), libc::SCHED_BATCH);
        drop(unhurried);
        assert_eq!(policy(), libc::SCHED_OTHER);
    }

    #[test]
    fn nonsense_is_refused() {
        assert_eq!(set(99).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
