//! The boot loaders' jailed workers: started, waited for, and their files taken over.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::time::Duration;

use crossbeam::channel::bounded;
use ffi::jail::uid_of;
use guest_installer::boot::Request;
use guest_installer::eliloader::fixup::Fixups;
use guest_installer::eliloader::tools::{self, Jailed};
use guest_installer::eliloader::{self, Changes, Which};
use guest_installer::fetch::Network;
use guest_installer::worker::{self, Answer, Files, Jailing, Job, Limit, Wanted, Worker};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::edge::{FoundKernel, Image, Installing, KernelSearch, KernelSearchError};

/// How boot loaders run on this host.
#[derive(Debug, Clone)]
pub struct BootLoader {
    /// What is started as a worker.
    pub worker: Worker,
    /// User number of domain 0's; the others' follow it.
    pub uid_base: u32,
    /// Largest kernel file, in bytes, unless a VM has a limit of its own.
    pub kernel_limit: u64,
    /// Largest kernel once it is unpacked, likewise; one that is not packed may have as much as a file.
    pub unpacked_limit: u64,
    /// Largest size of all ramdisks together, likewise.
    pub ramdisk_limit: u64,
    /// How long reading a disk may take.
    pub wall: Duration,
    /// What is started as a worker that gets files of repositories.
    pub getter: Worker,
    /// How long getting one may take.
    pub get_wall: Duration,
}

impl BootLoader {
    /// Looks for a kernel on an open disk.
    ///
    /// # Errors
    /// [`KernelSearchError`]; nothing is left then.
    pub fn search(&self, disk: &File, search: &KernelSearch<'_>) -> Result<FoundKernel, KernelSearchError> {
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
            unpack: Some(search.limits.unpacked.unwrap_or(self.unpacked_limit.max(kernel_limit))),
            ..search.request.clone()
        };
        let search_with = |stop: BorrowedFd<'_>| match search.install {
            None => self.look(disk, uid, request.clone(), (&kernel, &ramdisk), stop),
            Some(installing) => self.install(disk, uid, &request, (&kernel, &ramdisk), stop, installing),
        };
        let outcome = Self::until_cancelled(search, search_with)?;
        let image = |what: &'static str, name: &str, file: File| -> Result<_, KernelSearchError> {
            // The worker is gone, so nobody has it mapped or writes to it.
            let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
            fcntl(&file, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL)).map_err(|e| unable(&e))?;
            let named = PathBuf::from(match search.install {
                None => format!("{} on {}", name, search.disk.display()),
                Some(_) => name.to_owned(),
            });
            Image::sealed(what, named, file).map_err(|e| KernelSearchError::None(e.to_string()))
        };
        keep_packed(&ramdisk).map_err(|e| unable(&e))?;
        let ramdisk =
            (!outcome.ramdisk.is_empty()).then(|| image("ramdisk", &outcome.ramdisk, ramdisk)).transpose()?;
        let kernel = image("kernel", &outcome.kernel, kernel)?;
        Ok(FoundKernel {
            title: outcome.title,
            kernel,
            ramdisk,
            args: outcome.args,
            changes: outcome.changes,
        })
    }

    /// What the disk boots.
    fn look(
        &self,
        disk: &File,
        uid: u32,
        request: Request,
        (kernel, ramdisk): (&File, &File),
        stop: BorrowedFd<'_>,
    ) -> Result<Outcome, KernelSearchError> {
        let limit = Limit { wall: self.wall, stop: Some(stop) };
        let job = Job { wanted: Wanted::Deliver, request };
        let files = Files { disk, kernel, ramdisk };
        match worker::run(&self.worker, Jailing::User(uid), limit, &job, &files) {
            Ok(Answer::Booted(booted)) => Ok(Outcome {
                title: booted.title,
                kernel: booted.kernel,
                ramdisk: booted.ramdisks.join(", "),
                args: booted.args,
                changes: None,
            }),
            Ok(Answer::Entries(_)) => Err(unable(&"it answered another question")),
            Err(guest_installer::Error::Stopped(_)) => Err(KernelSearchError::Cancelled),
            // What the guest has made of its disk, the worker's end over it included.
            Err(error) => Err(KernelSearchError::None(error.to_string())),
        }
    }

    /// The next round of an installation.
    fn install(
        &self,
        disk: &File,
        uid: u32,
        request: &Request,
        (kernel, ramdisk): (&File, &File),
        stop: BorrowedFd<'_>,
        Installing { install, progress }: Installing<'_>,
    ) -> Result<Outcome, KernelSearchError> {
        let failed = |error: eliloader::Error| match error {
            eliloader::Error::Cancelled => KernelSearchError::Cancelled,
            eliloader::Error::Internal(_) => unable(&error),
            other => KernelSearchError::None(other.to_string()),
        };
        let mut tools = Jailed {
            disk,
            kernel,
            ramdisk,
            limits: request.clone(),
            reader: &self.worker,
            getter: &self.getter,
            jailing: Jailing::User(uid),
            network: Network { proxy: install.proxy.clone(), roots: tools::roots() },
            read_wall: self.wall,
            get_wall: self.get_wall,
            stop: Some(stop),
            progress: &mut |which, done, total| progress(fraction(request, which, done, total)),
        };
        let fixups = Fixups::of_host().map_err(failed)?;
        let loaded = eliloader::load(install, request, &fixups, &mut tools).map_err(failed)?;
        Ok(Outcome {
            title: loaded.kernel.clone(),
            kernel: loaded.kernel,
            ramdisk: loaded.ramdisk,
            args: loaded.args,
            changes: Some(loaded.changes),
        })
    }

    /// Works in a thread of its own, so that a cancel is noticed meanwhile: `stop` can be read from then on.
    fn until_cancelled<T: Send>(
        search: &KernelSearch<'_>,
        work: impl FnOnce(BorrowedFd<'_>) -> Result<T, KernelSearchError> + Send,
    ) -> Result<T, KernelSearchError> {
        let (stop, wanted) = std::io::pipe().map_err(|e| unable(&e))?;
        let (stop, wanted) = (OwnedFd::from(stop), OwnedFd::from(wanted));
        let (done, ended) = bounded(1);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = done.send(work(stop.as_fd()));
            });
            crossbeam::select! {
                recv(ended) -> outcome => outcome,
                recv(search.cancelled) -> _ => {
                    drop(wanted);
                    ended.recv()
                }
            }
        });
        outcome.unwrap_or_else(|_| Err(unable(&"its thread panicked")))
    }
}

/// Makes a ramdisk that gzip has packed one that libxenguest does not unpack. It would, for a PV guest, in the process that
/// builds the domain, which is this one, with all of dom0's rights: the guest's bytes are nothing for it. What it goes by
/// are the first two bytes, and the length in the last four (RFC 1952), of which 0 stands for a file that is not packed.
/// Linux skips zeros behind an archive (`init/initramfs.c`).
fn keep_packed(ramdisk: &File) -> io::Result<()> {
    const GZIP: [u8; 2] = [0x1f, 0x8b];
    const LENGTH: u64 = 4;
    let size = ramdisk.metadata()?.len();
    let mut magic = [0; GZIP.len()];
    if size < LENGTH || ramdisk.read_at(&mut magic, 0)? < magic.len() || magic != GZIP {
        return Ok(());
    }
    ramdisk.set_len(size + LENGTH)
}

/// What a search comes to, its files being filled.
struct Outcome {
    title: String,
    /// Where they are from, for people; no ramdisk when empty.
    kernel: String,
    ramdisk: String,
    args: String,
    changes: Option<Changes>,
}

fn unable(why: &dyn std::fmt::Display) -> KernelSearchError {
    KernelSearchError::Unable(format!("boot loader: {why}"))
}

/// How much of a round's files is there: a kernel is a fifth of both. Without a length, of the most it may be.
fn fraction(request: &Request, which: Which, done: u64, total: Option<u64>) -> f64 {
    /// A percent at a time is fine enough.
    const STEPS: u64 = 100;
    let (start, length, limit) = match which {
        Which::Kernel => (0.0, 0.2, request.kernel_limit),
        Which::Ramdisk => (0.2, 0.8, request.ramdisk_limit),
    };
    let steps = done.saturating_mul(STEPS) / total.unwrap_or(limit).max(1);
    let steps = u32::try_from(steps.min(STEPS)).unwrap_or(0);
    start + length * f64::from(steps) / 100.0
}
