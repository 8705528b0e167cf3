//! Locks between processes: several test binaries build, snapshot and clone at the same time.
//!
//! A lock is a `flock` on a file under `target/nested/lock`; the kernel drops it with the process that held it, so
//! nothing has to be cleaned up after a crash.

use crate::{
    error::{Context as _, Error, Result},
    paths,
    watch::Watch,
};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::inotify::AddWatchFlags,
};
use std::{
    env,
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

/// A held lock.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: Flock<File>,
}

fn lock_file(name: &str) -> Result<(File, PathBuf)> {
    let path = paths::nested_dir("lock")?.join(name);
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
    Ok((file, path))
}

impl Lock {
    /// Waits until the lock `name` is ours alone. What is done under it is bounded, so the wait is too.
    pub(crate) fn exclusive(name: &str) -> Result<Self> {
        Self::take(name, FlockArg::LockExclusive)
    }

    /// Waits until nobody holds the lock exclusively.
    pub(crate) fn shared(name: &str) -> Result<Self> {
        Self::take(name, FlockArg::LockShared)
    }

    /// The lock, when nobody else has it.
    pub(crate) fn try_exclusive(name: &str) -> Result<Option<Self>> {
        let (file, path) = lock_file(name)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Self { _file: file })),
            Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(e).at("lock", path),
        }
    }

    fn take(name: &str, how: FlockArg) -> Result<Self> {
        let (mut file, path) = lock_file(name)?;
        loop {
            match Flock::lock(file, how) {
                Ok(file) => return Ok(Self { _file: file }),
                Err((again, nix::Error::EINTR)) => file = again,
                Err((_, e)) => return Err(e).at("lock", path),
            }
        }
    }
}

/// The environment variable that says how many clones of one machine's tests may run at once.
pub const SLOTS_VARIABLE: &str = "XEN_HOST_CLONES";

/// Most clones that can be asked for: each may come to use all of its 4 GiB.
const MAX_SLOTS: usize = 16;

/// How many clones may run at once: `XEN_HOST_CLONES`, else one per core, and two at least. A clone keeps one core
/// busy while its dom0 works; more of them only slow each other down.
pub fn slots() -> usize {
    let asked = env::var(SLOTS_VARIABLE).ok().and_then(|v| v.parse().ok());
    let cores = || thread::available_parallelism().map_or(2, usize::from).max(2);
    asked.unwrap_or_else(cores).clamp(1, MAX_SLOTS)
}

/// One of the [`slots`], held.
#[derive(Debug)]
pub(crate) struct Slot {
    // Dropped first: the lock must be gone when the close below wakes the others.
    _lock: Flock<File>,
    // Open for writing: closing it is the event the waiters listen for.
    _announce: File,
}

impl Slot {
    /// Waits for a free slot.
    ///
    /// Nothing waits for "any of several" flocks, so waiters watch the directory: a holder has its slot open for
    /// writing and its end, however it comes, closes that. Waiters open slots read-only and so do not wake each other.
    pub(crate) fn take(limit: Duration) -> Result<Self> {
        Self::take_from(&paths::nested_dir("lock/slots")?, slots(), limit)
    }

    fn take_from(dir: &Path, count: usize, limit: Duration) -> Result<Self> {
        let deadline = Instant::now() + limit;
        let watch = Watch::new(dir, AddWatchFlags::IN_CLOSE_WRITE)?;
        loop {
            // The kernel may close a dying process's descriptors in either order, so one event can come a moment
            // before its lock is gone; look again after a while.
            let soon = deadline.min(Instant::now() + Duration::from_secs(1));
            if let Some(slot) = watch.until(soon, || Self::try_take(dir, count))? {
                return Ok(slot);
            }
            if Instant::now() >= deadline {
                let what =
                    format!("waiting for one of {count} clone slots ({SLOTS_VARIABLE} sets the number)");
                return Err(Error::Deadline { what, limit, console: String::new() });
            }
        }
    }

    fn try_take(dir: &Path, count: usize) -> Result<Option<Self>> {
        for number in 0..count {
            let path = dir.join(number.to_string());
            let file = match File::open(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    File::create(&path).at("create", &path)?;
                    File::open(&path)
                }
                other => other,
            };
            match Flock::lock(file.at("open", &path)?, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => {
                    let announce = OpenOptions::new().write(true).open(&path).at("open", &path)?;
                    return Ok(Some(Self { _lock: lock, _announce: announce }));
                }
                Err((_, nix::Error::EWOULDBLOCK | nix::Error::EINTR)) => {}
                Err((_, e)) => return Err(e).at("lock", &path),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, sync::mpsc};

    #[test]
    fn slots_are_waited_for_and_given_back() {
        let dir = env::temp_dir().join(format!("xen-host-slots-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let take = |limit| Slot::take_from(&dir, 2, limit);
        let limit = Duration::from_secs(20);
        let first = take(limit).expect("one");
        let _second = take(limit).expect("two");
        assert!(matches!(take(Duration::from_millis(50)), Err(Error::Deadline { .. })));
        let (sender, taken) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| drop(sender.send(take(limit))));
            assert!(taken.recv_timeout(Duration::from_millis(100)).is_err());
            drop(first);
            taken.recv_timeout(limit).expect("taken").expect("three");
        });
        fs::remove_dir_all(dir).expect("removed");
    }
}
