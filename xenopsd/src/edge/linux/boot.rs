//! The boot loader's jailed worker: started, waited for, and its files taken over.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use crossbeam::channel::bounded;
use ffi::jail::uid_of;
use guest_installer::boot::Request;
use guest_installer::limits::UNPACKED_KERNEL_BYTES;
use guest_installer::worker::{self, Answer, Files, Jailing, Job, Limit, Wanted, Worker};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::edge::{FoundKernel, Image, KernelSearch, KernelSearchError};

/// How boot loaders run on this host.
#[derive(Debug, Clone)]
pub struct BootLoader {
    /// What is started as a worker.
    pub worker: Worker,
    /// User number of domain 0's; the others' follow it.
    pub uid_base: u32,
    /// Largest kernel file, in bytes, unless a VM has a limit of its own.
    pub kernel_limit: u64,
    /// Largest size of all ramdisks together, likewise.
    pub ramdisk_limit: u64,
    /// How long reading a disk may take.
    pub wall: Duration,
}

impl BootLoader {
    /// Looks for a kernel on an open disk.
    ///
    /// # Errors
    /// [`KernelSearchError`]; nothing is left then.
    pub fn search(&self, disk: &File, search: &KernelSearch<'_>) -> Result<FoundKernel, KernelSearchError> {
        let unable = |why: &dyn std::fmt::Display| KernelSearchError::Unable(format!("boot loader: {why}"));
        let uid = uid_of(self.uid_base, search.domid).map_err(|e| unable(&e))?;
        let file = |name: &str| -> Result<File, KernelSearchError> {
            let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
            memfd_create(name, flags).map(File::from).map_err(|e| unable(&e))
        };
        let (kernel, ramdisk) = (file("kernel")?, file("ramdisk")?);
        let kernel_limit = search.limits.kernel.unwrap_or(self.kernel_limit);
        let request = Request {
            kernel_limit,
            ramdisk_limit: search.limits.ramdisk.unwrap_or(self.ramdisk_limit),
            // Here rather than in the daemon, which would have to look at what a guest has packed.
            unpack: Some(UNPACKED_KERNEL_BYTES.max(kernel_limit)),
            ..search.request.clone()
        };
        let job = Job { wanted: Wanted::Deliver, request };
        let files = Files { disk, kernel: &kernel, ramdisk: &ramdisk };
        let booted = match self.run(uid, &job, &files, search)? {
            Answer::Booted(booted) => booted,
            Answer::Entries(_) => return Err(unable(&"it answered another question")),
        };
        let image = |what: &'static str, name: &str, file: File| -> Result<_, KernelSearchError> {
            // The worker is gone, so nobody has it mapped or writes to it.
            let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL)).map_err(|e| unable(&e))?;
            let named = PathBuf::from(format!("{} on {}", name, search.disk.display()));
            Image::sealed(what, named, file).map_err(|e| KernelSearchError::None(e.to_string()))
        };
        let ramdisk = (!booted.ramdisks.is_empty())
            .then(|| image("ramdisk", &booted.ramdisks.join(", "), ramdisk))
            .transpose()?;
        let kernel = image("kernel", &booted.kernel, kernel)?;
        Ok(FoundKernel { title: booted.title, kernel, ramdisk, args: booted.args })
    }

    /// Runs the worker in a thread of its own, so that a cancel is noticed meanwhile.
    fn run(
        &self,
        uid: u32,
        job: &Job,
        files: &Files<'_>,
        search: &KernelSearch<'_>,
    ) -> Result<Answer, KernelSearchError> {
        let (stop, wanted) =
            std::io::pipe().map_err(|e| KernelSearchError::Unable(format!("boot loader: {e}")))?;
        let (stop, wanted) = (OwnedFd::from(stop), OwnedFd::from(wanted));
        let (done, ended) = bounded(1);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let limit = Limit { wall: self.wall, stop: Some(stop.as_fd()) };
                let outcome = worker::run(&self.worker, Jailing::User(uid), limit, job, files);
                let _ = done.send(outcome);
            });
            crossbeam::select! {
                recv(ended) -> outcome => outcome,
                recv(search.cancelled) -> _ => {
                    drop(wanted);
                    ended.recv()
                }
            }
        });
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(guest_installer::Error::Stopped(_))) => Err(KernelSearchError::Cancelled),
            // What the guest has made of its disk, the worker's end over it included.
            Ok(Err(error)) => Err(KernelSearchError::None(error.to_string())),
            Err(_) => Err(KernelSearchError::Unable("boot loader: its thread panicked".to_owned())),
        }
    }
}
