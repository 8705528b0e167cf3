//! Waiting for a change in a directory (inotify), with a deadline.

use crate::error::{Context as _, Result};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::inotify::{AddWatchFlags, InitFlags, Inotify},
};
use std::{
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// A watched directory.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: Inotify,
    path: PathBuf,
}

impl Watch {
    /// Watches `dir` for `events`.
    pub(crate) fn new(dir: &Path, events: AddWatchFlags) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).at("watch", dir)?;
        inotify.add_watch(dir, events).at("watch", dir)?;
        Ok(Self { inotify, path: dir.to_owned() })
    }

    /// Waits for files that appear or grow.
    pub(crate) fn files(dir: &Path) -> Result<Self> {
        Self::new(dir, AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_MOVED_TO)
    }

    /// Calls `check` now and after every change until it gives a value; `None` when the deadline passed first.
    pub(crate) fn until<T>(
        &self,
        deadline: Instant,
        mut check: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        loop {
            if let Some(value) = check()? {
                return Ok(Some(value));
            }
            if !self.changed(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Waits for a change; false when the deadline passed first.
    pub(crate) fn changed(&self, deadline: Instant) -> Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            // Rounded up, so that the last wait is not spun through in zero-millisecond steps.
            let left = left + Duration::from_millis(1);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(_) => {
                    // What changed does not matter: the caller looks for itself.
                    match self.inotify.read_events() {
                        Ok(_) | Err(nix::Error::EAGAIN) => return Ok(true),
                        Err(e) => return Err(e).at("watch", &self.path),
                    }
                }
                Err(e) => return Err(e).at("watch", &self.path),
            }
        }
    }
}
