//! A guest to an image and back.
//!
//! ```text
//!   open image ─► ask the guest ─► [save device model] ─► save ─► seal ─► keep ─► (the domain's end)
//!       │              │                   │               │        │
//!       └──────────────┴───────────────────┴───────────────┴────────┴── failure, cancel: the guest runs on where it is,
//!                                                                       the image goes
//!
//!   a daemon killed in between finds the note in the domain's private tree:
//!       not kept ─► the guest runs on, the image goes          kept ─► the domain's end is finished
//! ```
//!
//! The disks stay connected until the image is kept, so that the guest can run on; its block requests wait in a ring that
//! is in the image, and are done again after a resume. An HVM guest without PV drivers is not asked but stopped; its device
//! model has all that it wrote.

mod device_model;
mod resume;

pub(super) use device_model::ModelState;

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::bounded;
use xenstore::layout::libxl_path;
use xenstore::{Batch, Operations};

use super::VmExecutor;
use super::shutdown::{Refused, control};
use super::suspend_image::{self, ImageWriter, RecordKind, Suspended};
use crate::api::{Disk, Error};
use crate::core::SUSPENDING;
use crate::device::storage::{self, Purpose};
use crate::device::store_domid;
use crate::edge::{Access, DomId, DomainInfo, HypervisorError, ShutdownReason, Stream, SuspendFile};
use crate::ops::SMALL_STACK;
use crate::ops::plan::has_device_model;

/// The request in `control/shutdown`.
const SUSPEND: &str = "suspend";

/// Bytes of a page.
const PAGE: u64 = 4096;

/// What the stream spends on each page: its contents and its number.
const STREAM_BYTES_PER_PAGE: u64 = PAGE + 8;

/// What an image has beside the pages: vcpus' states (16 KiB each at most), CPU policies, records, the VM's record.
const IMAGE_OVERHEAD: u64 = 4 << 20;

fn marker(domid: DomId) -> Result<xenstore::Path, Error> {
    Ok(libxl_path(store_domid(domid)).join(SUSPENDING).map_err(xenstore::Error::from)?)
}

/// Beside the note, once the guest was asked: written together with the request, for a later daemon to see.
fn asked(domid: DomId) -> Result<xenstore::Path, Error> {
    Ok(marker(domid)?.join("asked").map_err(xenstore::Error::from)?)
}

fn suspended(domain: &DomainInfo) -> bool {
    domain.shutdown == Some(ShutdownReason::Suspend)
}

impl VmExecutor<'_> {
    /// Where the image is.
    fn image_path(&self, disk: &Disk) -> Result<PathBuf, Error> {
        match disk {
            Disk::Local(path) => Ok(PathBuf::from(path)),
            Disk::Vdi(_) => storage::attached(self.core, self.vm(), Purpose::Image).map(|(path, _)| path),
        }
    }

    /// Makes a storage layer's disk reachable for the image that is on it, or is to be.
    pub(super) fn attach_image(&self, disk: &Disk, access: Access) -> Result<(), Error> {
        self.must_not_be_its_own(disk)?;
        let Disk::Vdi(vdi) = disk else { return Ok(()) };
        storage::check(self.core, vdi)?;
        let waiting = self.core.waiting(Some(self.task), self.slot);
        let wanted = (Purpose::Image, &**vdi);
        storage::attach(self.core, self.vm(), wanted, access == Access::ReadWrite, waiting)
    }

    /// What cannot be given back stays in the journal; the VM is no worse for it.
    pub(super) fn detach_image(&self) {
        drop(self.take_image());
        let detached = self.slot.without(|| storage::detach(self.core, self.vm(), Purpose::Image));
        if let Err(error) = detached {
            tracing::error!(vm = self.vm(), %error, "the disk of a suspend image is not given back");
        }
    }

    fn must_not_be_its_own(&self, disk: &Disk) -> Result<(), Error> {
        if self.records.vbds.iter().any(|vbd| vbd.backend.as_ref() == Some(disk)) {
            let (Disk::Local(name) | Disk::Vdi(name)) = disk;
            return Err(Error::internal(format!(
                "{name} is a disk of the VM itself; its image needs another place"
            )));
        }
        Ok(())
    }

    pub(super) fn open_image(&self, disk: &Disk) -> Result<(), Error> {
        self.must_not_be_its_own(disk)?;
        let path = self.image_path(disk)?;
        let domain = self.domain()?;
        self.core.edges.store()?.write(&marker(domain.domid)?, path.display().to_string())?;
        let needed = domain.tot_pages.saturating_mul(STREAM_BYTES_PER_PAGE).saturating_add(IMAGE_OVERHEAD);
        self.hold_image(self.core.edges.host().create_image(&path, needed)?);
        Ok(())
    }

    pub(super) fn request_suspend(&self) -> Result<(), Error> {
        let domid = self.domid()?;
        let patience = &self.core.patience;
        let all = patience.suspend_ack + patience.suspend;
        self.have_suspended(domid, all).map_err(|refused| match refused {
            Refused::NotAcknowledged => Error::FailedToAcknowledgeSuspendRequest,
            Refused::NotInTime => {
                Error::FailedToSuspend { id: self.vm().to_owned(), timeout: all.as_secs_f64() }
            }
            Refused::Failed(error) => error,
        })?;
        let domain = self.domain()?;
        if suspended(&domain) {
            return Ok(());
        }
        Err(Error::internal(format!(
            "VM {}: the guest was asked to suspend and stopped with {:?} instead",
            self.vm(),
            domain.shutdown
        )))
    }

    /// Asks the guest; one that cannot hear is stopped.
    fn have_suspended(&self, domid: DomId, all: Duration) -> Result<(), Refused> {
        let hears = !has_device_model(&self.records.vm) || {
            let hypervisor = self.core.edges.hypervisor()?;
            hypervisor.hears(domid).map_err(Error::from)?
        };
        let mut request = Batch::new();
        request.write(asked(domid)?, "");
        if hears {
            request.write(control(domid)?, SUSPEND);
            return self.ask(domid, &request, self.core.patience.suspend_ack, all);
        }
        tracing::info!(vm = self.vm(), %domid, "the guest has no PV drivers: it is stopped where it is");
        let started = Instant::now();
        self.core.edges.store()?.commit(&request).map_err(Error::from)?;
        self.core.edges.hypervisor()?.suspend(domid).map_err(Error::from)?;
        self.until_stopped(domid, started + all)
    }

    pub(super) fn save_domain(&self) -> Result<(), Error> {
        let domain = self.domain()?;
        let model = self.take_state();
        let suspended = Suspended {
            memory_bytes: domain.tot_pages * PAGE,
            emulated_vcpus: model.as_ref().map(|model| model.vcpus),
            absolute_pointer: self.wants_absolute_pointer(domain.domid)?,
        };
        let record = suspend_image::xenops_record(&self.records.vm, &suspended, SystemTime::now());
        self.with_image(|image| {
            let failed = |error: io::Error| image_failed(image, &error);
            let mut writer = ImageWriter::begin(image.file(), &record).map_err(failed)?;
            let hypervisor = self.core.edges.hypervisor()?;
            self.stream(image, |stream| hypervisor.save(domain.domid, stream)).map_err(
                |error| match error {
                    HypervisorError::Stopped => self.task.cancelled_error(),
                    other => Error::internal(format!("suspend image {}: {other}", image.path().display())),
                },
            )?;
            if let Some(model) = &model {
                writer.record(RecordKind::QemuTrad, &model.bytes).map_err(failed)?;
            }
            writer.end().map(drop).map_err(failed)
        })
    }

    pub(super) fn seal_image(&self) -> Result<(), Error> {
        self.with_image(|image| {
            let file = image.file();
            let sealed = file
                .sync_data()
                .and_then(|()| suspend_image::seal(file))
                .and_then(|()| file.sync_all())
                .and_then(|()| sync_directory(image.path()));
            sealed.map_err(|e| image_failed(image, &e))
        })
    }

    pub(super) fn keep_image(&self) -> Result<(), Error> {
        let bytes = i64::try_from(self.domain()?.tot_pages * PAGE).unwrap_or(i64::MAX);
        self.core.records.update_extra(self.vm(), |extra| extra.suspend_memory_bytes = bytes)?;
        drop(self.take_image());
        Ok(())
    }

    /// Takes a request back that the guest has not looked at, and lets a guest run on that has suspended. One that has
    /// taken the request and not stopped yet cannot be told; the note stays, and it runs on when it stops.
    pub(super) fn resume_domain(&self) -> Result<(), Error> {
        let Some(domain) = self.core.domain_of(self.vm())? else { return Ok(()) };
        let domid = domain.domid;
        let (node, asked) = (control(domid)?, asked(domid)?);
        let taken = self.core.edges.store()?.transaction::<bool, xenstore::Error>(|t| {
            let waits = t.read(&node)?.is_some_and(|word| word == SUSPEND.as_bytes());
            if waits {
                t.write(&node, "")?;
            }
            Ok(!waits && t.exists(&asked)?)
        })?;
        // Looked at after the request was withdrawn: a guest that had taken it may have stopped meanwhile.
        let hypervisor = self.core.edges.hypervisor()?;
        let stopped = hypervisor.domain(domid)?.filter(|now| now.shutdown.is_some());
        if stopped.as_ref().is_some_and(suspended) {
            self.continue_device_model();
            hypervisor.resume(domid)?;
            self.core.runs_on(domid);
            // xenstored tells of a domain's end once, until it hears of its resumption.
            self.core.edges.store()?.resume(store_domid(domid))?;
            tracing::info!(vm = self.vm(), %domid, "the guest runs on where it was suspended");
        }
        let late = taken && stopped.is_none();
        self.late.store(late, Ordering::Relaxed);
        if late {
            tracing::warn!(vm = self.vm(), %domid, "the guest may still suspend; it will run on when it does");
            return Ok(());
        }
        Ok(self.core.edges.store()?.rm(&marker(domid)?)?)
    }

    /// Removes an image that is not to be kept, and the note unless the guest may still suspend.
    pub(super) fn discard_image(&self, disk: &Disk) -> Result<(), Error> {
        let path = self.image_path(disk)?;
        if let Some(image) = self.take_image()
            && let Err(error) = suspend_image::unseal(image.file())
        {
            tracing::warn!(vm = self.vm(), image = %path.display(), %error, "not cleared");
        }
        // Before the note: without it nobody looks for the image again.
        self.core.edges.host().discard_image(&path)?;
        match self.core.domain_of(self.vm())? {
            Some(domain) if !self.late.load(Ordering::Relaxed) => {
                Ok(self.core.edges.store()?.rm(&marker(domain.domid)?)?)
            }
            _ => Ok(()),
        }
    }

    /// The whole domain, or the error of an operation that needs one.
    fn domain(&self) -> Result<DomainInfo, Error> {
        self.core.domain_of(self.vm())?.ok_or(Error::DomainNotBuilt)
    }

    fn hold_image(&self, image: SuspendFile) {
        *self.image.lock().unwrap_or_else(PoisonError::into_inner) = Some(image);
    }

    fn take_image(&self) -> Option<SuspendFile> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What `run` does to the open image. It stays open.
    fn with_image<R>(&self, run: impl FnOnce(&SuspendFile) -> Result<R, Error>) -> Result<R, Error> {
        let image = self.take_image().ok_or_else(|| Error::internal("no suspend image is open"))?;
        let outcome = run(&image);
        self.hold_image(image);
        outcome
    }

    /// Runs a call of the hypervisor on the image from where it is now; a cancelled task stops it.
    fn stream<R>(
        &self,
        image: &SuspendFile,
        call: impl FnOnce(&Stream) -> Result<R, HypervisorError>,
    ) -> Result<R, HypervisorError> {
        let failed = |error: io::Error| HypervisorError::Call(format!("{}: {error}", image.path().display()));
        let stream = Stream::new(image.file().as_fd()).map_err(failed)?;
        let stopper = stream.stopper();
        // Nothing is ever sent: dropping one end tells the other.
        let (over, ended) = bounded::<Infallible>(0);
        let cancelled = self.task.cancel_event();
        std::thread::scope(|scope| {
            let watch = move || {
                let stop = crossbeam::select! {
                    recv(cancelled) -> _ => true,
                    recv(ended) -> _ => false,
                };
                if stop && let Err(error) = stopper.stop() {
                    tracing::warn!(%error, "a stream cannot be stopped; it runs to its end");
                }
            };
            let builder = std::thread::Builder::new().name("stream".into()).stack_size(SMALL_STACK);
            if let Err(error) = builder.spawn_scoped(scope, watch) {
                tracing::warn!(%error, "a stream cannot be cancelled");
            }
            let outcome = call(&stream);
            drop(over);
            outcome
        })
    }
}

fn image_failed(image: &SuspendFile, error: &io::Error) -> Error {
    Error::internal(format!("suspend image {}: {error}", image.path().display()))
}

/// The name of a new file must not be lost either.
fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) if path.is_file() => File::open(directory)?.sync_all(),
        _ => Ok(()),
    }
}
