//! Tells when processes end, whoever started them: one thread waits for all.
//!
//! ```text
//!   follow(pidfd, tell) ──► table ◄── thread "process-ends" ── epoll over the pidfds
//!                                        └─ ended: taken out, reaped if it is a child of ours, told
//! ```

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ffi::pid::PidFd;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token, Waker};
use nix::sys::wait::{Id, WaitPidFlag, waitid};

/// What is told of an end, once, on the thread of all ends. It must not block.
pub type Tell = Box<dyn FnOnce() + Send>;

/// Token of the waker; those of processes count up from 0.
const STOP: Token = Token(usize::MAX);

/// All followed processes. The thread begins and ends with this.
pub struct Ends(Arc<Inner>);

struct Inner {
    registry: Registry,
    waker: Waker,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    next: usize,
    processes: HashMap<Token, (PidFd, Tell)>,
}

/// A process that is followed until this is dropped.
#[derive(Debug)]
pub struct Following {
    inner: Weak<Inner>,
    token: Token,
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ends").finish_non_exhaustive()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("followed", &self.table().processes.len()).finish_non_exhaustive()
    }
}

impl Ends {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the kernel refuses it or its descriptors.
    pub fn start() -> io::Result<Self> {
        let poll = Poll::new()?;
        let inner = Arc::new(Inner {
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), STOP)?,
            table: Mutex::default(),
        });
        let shared = Arc::clone(&inner);
        std::thread::Builder::new()
            .name("process-ends".into())
            .stack_size(crate::ops::SMALL_STACK)
            .spawn(move || shared.run(poll))?;
        Ok(Self(inner))
    }

    /// Follows a process; `tell` is called once it has ended, at once when it has already.
    ///
    /// # Errors
    /// When the kernel refuses to wait for one more.
    pub fn follow(&self, process: PidFd, tell: Tell) -> io::Result<Following> {
        let inner = &self.0;
        let raw = process.as_fd().as_raw_fd();
        let token = {
            let mut table = inner.table();
            let token = Token(table.next);
            table.next += 1;
            table.processes.insert(token, (process, tell));
            token
        };
        let following = Following { inner: Arc::downgrade(inner), token };
        inner.registry.register(&mut SourceFd(&raw), token, Interest::READABLE)?;
        Ok(following)
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        if let Err(error) = self.0.waker.wake() {
            tracing::debug!(%error, "the thread that waits for processes sleeps on");
        }
    }
}

impl Inner {
    fn run(&self, mut poll: Poll) {
        let mut ready = Events::with_capacity(64);
        loop {
            match poll.poll(&mut ready, None) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    tracing::error!(%error, "ends of processes are not noticed any more");
                    return;
                }
                _ => {}
            }
            for event in &ready {
                if event.token() == STOP {
                    return;
                }
                let ended = self.table().processes.remove(&event.token());
                if let Some((process, tell)) = ended {
                    reap(&process);
                    // Closing it takes it out of the poll.
                    drop(process);
                    tell();
                }
            }
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            let forgotten = inner.table().processes.remove(&self.token);
            // Dropped after the lock: what is told may hold anything.
            drop(forgotten);
        }
    }
}

/// Takes the remains of an ended child away; that of an earlier daemon is init's.
pub(super) fn reap(process: &PidFd) {
    let _ = waitid(Id::PIDFd(process.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam::channel::bounded;
    use std::process::Command;
    use std::time::Duration;

    const LIMIT: Duration = Duration::from_secs(20);

    /// Its number; whoever follows it waits for it.
    fn spawn(command: &[&str]) -> u32 {
        Command::new(command[0]).args(&command[1..]).spawn().unwrap().id()
    }

    #[test]
    fn an_end_is_told_once_and_the_child_is_reaped() {
        let ends = Ends::start().unwrap();
        let (told, tells) = bounded(8);
        let pid = spawn(&["sleep", "600"]);
        let tell = told.clone();
        let following =
            ends.follow(PidFd::open(pid).unwrap(), Box::new(move || tell.send("end").unwrap())).unwrap();
        assert!(tells.is_empty());
        PidFd::open(pid).unwrap().send_signal(libc::SIGKILL).unwrap();
        assert_eq!(tells.recv_timeout(LIMIT), Ok("end"));
        // A zombie still has a number.
        assert_eq!(PidFd::open(pid).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        drop(following);
        assert!(tells.is_empty());
    }

    #[test]
    fn who_is_not_followed_any_more_is_not_told_of() {
        let ends = Ends::start().unwrap();
        let (told, tells) = bounded(8);
        let mut children: Vec<_> =
            (0..2).map(|_| Command::new("sleep").arg("600").spawn().unwrap()).collect();
        let follow = |n: usize| {
            let told = told.clone();
            let process = PidFd::open(children[n].id()).unwrap();
            ends.follow(process, Box::new(move || told.send(n).unwrap())).unwrap()
        };
        let (forgotten, _followed) = (follow(0), follow(1));
        drop(forgotten);
        for child in &mut children {
            child.kill().unwrap();
        }
        assert_eq!(tells.recv_timeout(LIMIT), Ok(1));
        assert!(children[0].wait().is_ok() && tells.is_empty());
    }

    #[test]
    fn one_that_has_ended_is_told_of_at_once() {
        let ends = Ends::start().unwrap();
        let (told, tells) = bounded(1);
        let process = PidFd::open(spawn(&["true"])).unwrap();
        waitid(Id::PIDFd(process.as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
        let _following = ends.follow(process, Box::new(move || told.send(()).unwrap())).unwrap();
        assert_eq!(tells.recv_timeout(LIMIT), Ok(()));
    }
}
