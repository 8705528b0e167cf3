//! The caller's half: starts a worker in its jail, asks it, and ends it in time.

use super::{Answer, Job, NAME, READY, record};
use crate::error::{Error, Result};
use ffi::jail::{self, Child, Jail, Limits, ParentDeath};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long reading a disk may take: a Debian disk takes some hundredths of a second, one full of snapshots or with a
/// journal to be replayed less than a second.
pub const WALL: Duration = Duration::from_secs(10);

/// How long a killed worker may take to end. It only takes this long when the disk hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Address space in bytes beside twice the largest kernel file: a decompressor's window, which may be there twice while
/// it grows, and the program itself.
const ADDRESS_SPACE: u64 = 448 << 20;

/// Open descriptors: what it is given.
const DESCRIPTORS: u64 = 16;

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

impl Default for Limit<'_> {
    fn default() -> Self {
        Self { wall: WALL, stop: None }
    }
}

/// The program that is started.
#[derive(Clone, Debug)]
pub struct Worker {
    /// Its path.
    pub program: PathBuf,
    /// Its arguments, the first being its name.
    pub arguments: Vec<String>,
}

impl Default for Worker {
    /// This program, which must call [`super::main_if_asked`]. As the kernel names it: the file may have been replaced.
    fn default() -> Self {
        Self { program: "/proc/self/exe".into(), arguments: vec![NAME.to_owned()] }
    }
}

/// What a worker works on.
#[derive(Debug)]
pub struct Files<'a> {
    /// The disk, open for reading.
    pub disk: &'a File,
    /// Where the kernel goes, empty and open for writing.
    pub kernel: &'a File,
    /// Where the ramdisk goes, as well.
    pub ramdisk: &'a File,
}

/// Has a job done. The thread must live as long as this takes. On failure the outputs may hold a part.
///
/// # Errors
/// The worker's ([`Error::Remote`]); [`Error::Timeout`], [`Error::Stopped`]; [`Error::Worker`] when it cannot be
/// started or ended without an answer.
pub fn run(
    worker: &Worker,
    jailing: Jailing,
    limit: Limit<'_>,
    job: &Job,
    files: &Files<'_>,
) -> Result<Answer> {
    let request = record::encode_job(job)?;
    let deadline = Instant::now() + limit.wall;
    let (mut running, ask) = Running::start(worker, jailing, limit, deadline, job, files)?;
    let mut ready = [0];
    if running.read(&mut ready)? != 1 || ready != [READY] {
        return Err(running.failed());
    }
    if let Jailing::User(_) = jailing {
        running.child.empty_root().map_err(|e| Error::Worker(e.to_string()))?;
    }
    // Fits into the pipe, so that it does not wait for the worker.
    if File::from(ask).write_all(&request).is_err() {
        return Err(running.failed());
    }
    let bytes = running.read_answer()?;
    running.end()?;
    let answer = record::decode_answer(job.wanted, &bytes)?;
    let most = [
        (files.kernel, "the kernel", job.request.unpack.unwrap_or(job.request.kernel_limit)),
        (files.ramdisk, "the ramdisks", job.request.ramdisk_limit),
    ];
    for (file, what, limit) in most {
        if file.metadata().map_err(Error::io("looking at what was delivered"))?.len() > limit {
            return Err(Error::too_large(what, limit));
        }
    }
    Ok(answer)
}

/// A worker that has been started; dropping it kills it.
struct Running<'a> {
    child: Child,
    answer: File,
    limit: Limit<'a>,
    deadline: Instant,
    ended: bool,
}

impl<'a> Running<'a> {
    fn start(
        worker: &Worker,
        jailing: Jailing,
        limit: Limit<'a>,
        deadline: Instant,
        job: &Job,
        files: &Files<'_>,
    ) -> Result<(Self, OwnedFd)> {
        let (request, ask) = io::pipe().map_err(Error::io("a pipe to the worker"))?;
        let (answer, tell) = io::pipe().map_err(Error::io("a pipe to the worker"))?;
        let request_limits = &job.request;
        let largest = request_limits.kernel_limit.max(request_limits.ramdisk_limit);
        let limits = Limits {
            open_files: Some(DESCRIPTORS),
            file_size: Some(largest.max(request_limits.unpack.unwrap_or(0))),
            address_space: Some(request_limits.kernel_limit.saturating_mul(2).saturating_add(ADDRESS_SPACE)),
            cpu_seconds: Some(limit.wall.as_secs().saturating_add(1)),
            ..Limits::default()
        };
        let wrong = |error: jail::Error| Error::Worker(error.to_string());
        let mut jail = match jailing {
            Jailing::User(uid) => Jail::new(uid, uid).map_err(wrong)?.system_libraries(),
            Jailing::Caller => Jail::of_caller(),
        }
        .limits(limits)
        .parent_death(ParentDeath::Die);
        let null =
            File::options().read(true).write(true).open("/dev/null").map_err(Error::io("/dev/null"))?;
        let copy =
            |file: &File| file.try_clone().map(OwnedFd::from).map_err(Error::io("the worker's descriptors"));
        let descriptors = [
            copy(&null)?,
            copy(&null)?,
            null.into(),
            request.into(),
            tell.into(),
            copy(files.disk)?,
            copy(files.kernel)?,
            copy(files.ramdisk)?,
        ];
        for descriptor in descriptors {
            jail = jail.descriptor(descriptor);
        }
        let child = jail.spawn(&worker.program, &worker.arguments).map_err(wrong)?;
        let answer = File::from(OwnedFd::from(answer));
        Ok((Self { child, answer, limit, deadline, ended: false }, ask.into()))
    }

    /// Waits until a descriptor can be read, or the time is over.
    fn wait(&self, descriptor: BorrowedFd<'_>) -> Result<()> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that it is not asked over and over in the last millisecond.
            let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            let mut wanted = vec![PollFd::new(descriptor, PollFlags::POLLIN)];
            wanted.extend(self.limit.stop.map(|stop| PollFd::new(stop, PollFlags::POLLIN)));
            match poll(&mut wanted, left) {
                Ok(0) => return Err(Error::Timeout(self.limit.wall.as_secs())),
                Ok(_) if wanted.get(1).is_some_and(|stop| stop.any().unwrap_or(false)) => {
                    return Err(Error::Stopped);
                }
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(Error::io("waiting for the worker")(errno.into())),
            }
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.wait(self.answer.as_fd())?;
        self.answer.read(buffer).map_err(Error::io("reading the worker's answer"))
    }

    fn read_answer(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 16 << 10];
        loop {
            let read = self.read(&mut buffer)?;
            if read == 0 {
                return Ok(bytes);
            }
            if bytes.len() + read > record::ANSWER_BYTES {
                return Err(Error::too_large("the worker's answer", record::ANSWER_BYTES));
            }
            bytes.extend_from_slice(&buffer[..read]);
        }
    }

    /// Waits for its end by itself, which must be a good one.
    fn end(&mut self) -> Result<()> {
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
    fn failed(&mut self) -> Error {
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
