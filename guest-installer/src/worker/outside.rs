//! The caller's half: starts a worker in its jail, asks it, and ends it in time.

use super::{Answer, Job, NAME, READY, record};
use crate::{
    error::{Error, Result},
    process::{Jailing, Limit, Running, Worker, copy},
};
use ffi::jail::Limits;
use std::{
    fs::File,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

/// How long reading a disk may take: a Debian disk takes some hundredths of a second, one full of snapshots or with a
/// journal to be replayed less than a second.
pub const WALL: Duration = Duration::from_secs(10);

/// Address space in bytes beside twice the largest kernel file: a decompressor's window, which may be there twice while
/// it grows, and the program itself.
const ADDRESS_SPACE: u64 = 448 << 20;

/// Open descriptors: what it is given.
const DESCRIPTORS: u64 = 16;

impl Default for Limit<'_> {
    fn default() -> Self {
        Self { wall: WALL, stop: None }
    }
}

impl Default for Worker {
    fn default() -> Self {
        Self::this(NAME)
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
    let (running, ask, answer) = start(worker, jailing, limit, job, files)?;
    let mut running = Answering { running, answer };
    let mut ready = [0];
    if running.read(&mut ready)? != 1 || ready != [READY] {
        return Err(running.running.failed());
    }
    running.running.lock_in()?;
    // Fits into the pipe, so that it does not wait for the worker.
    if File::from(ask).write_all(&request).is_err() {
        return Err(running.running.failed());
    }
    let bytes = running.read_all()?;
    running.running.end()?;
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

/// The worker, and the ends of the pipes to and from it.
fn start<'a>(
    worker: &Worker,
    jailing: Jailing,
    limit: Limit<'a>,
    job: &Job,
    files: &Files<'_>,
) -> Result<(Running<'a>, OwnedFd, File)> {
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
    let descriptors =
        [request.into(), tell.into(), copy(files.disk)?, copy(files.kernel)?, copy(files.ramdisk)?];
    let running = Running::start(worker, "reading the disk", (jailing, limits), limit, descriptors)?;
    Ok((running, ask.into(), OwnedFd::from(answer).into()))
}

/// A worker whose answer is read.
struct Answering<'a> {
    running: Running<'a>,
    answer: File,
}

impl Answering<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        self.running.wait(self.answer.as_fd())?;
        self.answer.read(buffer).map_err(Error::io("reading the worker's answer"))
    }

    fn read_all(&mut self) -> Result<Vec<u8>> {
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
}
