//! A worker process in its jail: how it is started, waited for and ended in time, whatever it is for.

use crate::error::{Error, Result};
use ffi::jail::{self, Child, Jail, Limits, ParentDeath};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fs::File,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long a killed worker may take to end. It only takes this long when a disk hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Which jail there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jailing {
    /// All of it, as this user and group; takes root.
    User(u32),
    /// What a caller without privileges can have: see [`Jail::of_caller`].
    Caller,
}

/// When a worker is ended.
#[derive(Clone, Copy, Debug)]
pub struct Limit<'a> {
    /// After this time.
    pub wall: Duration,
    /// When this can be read or its other end is closed.
    pub stop: Option<BorrowedFd<'a>>,
}

/// The program that is started.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its path.
    pub program: PathBuf,
    /// Its arguments, the first being its name.
    pub arguments: Vec<String>,
}

impl Worker {
    /// This program, which must call [`crate::main_if_asked`]. As the kernel names it: the file may have been replaced.
    pub fn this(name: &str) -> Self {
        Self { program: "/proc/self/exe".into(), arguments: vec![name.to_owned()] }
    }
}

/// A worker that has been started; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Running<'a> {
    child: Child,
    /// What it does, for messages.
    what: &'static str,
    jailing: Jailing,
    limit: Limit<'a>,
    deadline: Instant,
    ended: bool,
}

impl<'a> Running<'a> {
    /// Starts it. It has `/dev/null` three times and then the descriptors given. The thread must live as long as it.
    pub(crate) fn start(
        worker: &Worker,
        what: &'static str,
        (jailing, limits): (Jailing, Limits),
        limit: Limit<'a>,
        descriptors: impl IntoIterator<Item = OwnedFd>,
    ) -> Result<Self> {
        let deadline = Instant::now() + limit.wall;
        let wrong = |error: jail::Error| Error::Worker(error.to_string());
        let mut jail = match jailing {
            Jailing::User(uid) => Jail::new(uid, uid).map_err(wrong)?.system_libraries(),
            Jailing::Caller => Jail::of_caller(),
        }
        .limits(limits)
        .parent_death(ParentDeath::Die);
        let null =
            File::options().read(true).write(true).open("/dev/null").map_err(Error::io("/dev/null"))?;
        let nulls = [copy(&null)?, copy(&null)?, null.into()];
        for descriptor in nulls.into_iter().chain(descriptors) {
            jail = jail.descriptor(descriptor);
        }
        let child = jail.spawn(&worker.program, &worker.arguments).map_err(wrong)?;
        Ok(Self { child, what, jailing, limit, deadline, ended: false })
    }

    /// Takes its root away, once it says that it is ready.
    pub(crate) fn lock_in(&self) -> Result<()> {
        match self.jailing {
            Jailing::User(_) => self.child.empty_root().map_err(|e| Error::Worker(e.to_string())),
            Jailing::Caller => Ok(()),
        }
    }

    /// Waits until a descriptor can be read, or the time is over.
    pub(crate) fn wait(&self, descriptor: BorrowedFd<'_>) -> Result<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that it is not asked over and over in the last millisecond.
            let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let mut wanted = vec![PollFd::new(descriptor, PollFlags::POLLIN)];
            wanted.extend(self.limit.stop.map(|stop| PollFd::new(stop, PollFlags::POLLIN)));
            match poll(&mut wanted, left) {
                Ok(0) => {
                    return Err(Error::Timeout { what: self.what, seconds: self.limit.wall.as_secs() });
                }
                Ok(_) if wanted.get(1).is_some_and(|stop| stop.any().unwrap_or(false)) => {
                    return Err(Error::Stopped(self.what));
                }
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("waiting for the worker")(errno.into())),
            }
        }
    }

    /// Waits for its end by itself, which must be a good one.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.wait(self.child.process().as_fd())?;
        self.ended = true;
        let status = self.child.wait().map_err(Error::io("waiting for the worker"))?;
        match (status.code(), status.signal()) {
            (Some(0), _) => Ok(()),
            (Some(code), _) => Err(Error::Worker(format!("it ended with {code} and gave no answer"))),
            (None, Some(libc::SIGSYS)) => {
                Err(Error::Worker("it was killed for a system call that it may not make".to_owned()))
            }
            (None, signal) => Err(Error::Worker(format!("it was killed by signal {}", signal.unwrap_or(0)))),
        }
    }

    /// Why there is no answer.
    pub(crate) fn failed(&mut self) -> Error {
        match self.end() {
            Err(error) => error,
            Ok(()) => Error::Worker("it ended and gave no answer".to_owned()),
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.ended || self.child.kill().is_err() {
            return;
        }
        let limit = PollTimeout::try_from(KILL_LIMIT).unwrap_or(PollTimeout::MAX);
        let mut ended = [PollFd::new(self.child.process().as_fd(), PollFlags::POLLIN)];
        // One that hangs in the kernel stays, unreaped, rather than that its caller hangs with it.
        if poll(&mut ended, limit).is_ok_and(|n| n > 0) {
            let _ = self.child.wait();
        }
    }
}

/// Another descriptor of the same file.
pub(crate) fn copy(file: &File) -> Result<OwnedFd> {
    file.try_clone().map(OwnedFd::from).map_err(Error::io("the worker's descriptors"))
}
