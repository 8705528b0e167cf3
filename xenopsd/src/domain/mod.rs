//! What the atoms of a plan do to a domain.

pub mod bootloader;
mod change;
pub mod clock;
mod create;
mod destroy;
mod device_model;
mod devices;
pub mod frame_buffer;
pub mod guest_data;
mod hook;
pub mod memory;
pub mod metadata;
pub mod observe;
mod passed_through;
mod platform;
mod scheduling;
mod shutdown;
mod suspend;
pub mod suspend_image;
mod terminal;

use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use xenstore::layout::{DomainKind, libxl_path};
use xenstore::{Operations, Path};

use crate::api::{BuilderInfo, Error, Vm};
use crate::core::{Core, PENDING, Runtime};
use crate::device;
use crate::edge::{DomId, GuestKind, SuspendFile};
use crate::ops::plan::{Atom, Records};
use crate::ops::queue::Slot;
use crate::ops::runner::Executor;
use crate::ops::starts::Starts;
use crate::ops::task::TaskHandle;
use create::BootFiles;
use destroy::Ending;
use guest_installer::eliloader::Changes;
use suspend::ModelState;

/// Carries out the atoms of one operation on one VM.
pub struct VmExecutor<'a> {
    core: &'a Core,
    records: &'a Records,
    task: &'a TaskHandle,
    slot: &'a Slot,
    /// Opened by the check, or found on the guest's disk, and read by the build: what was checked is what is booted.
    files: Mutex<Option<BootFiles>>,
    /// What a round of an installation changes, once it has its kernel.
    changes: Mutex<Option<Changes>>,
    /// A suspend image, open while it is written or read.
    image: Mutex<Option<SuspendFile>>,
    /// The device model's state, between it and the image.
    state: Mutex<Option<ModelState>>,
    /// The guest was asked to suspend, and may still do it.
    late: AtomicBool,
    /// The guest of the image has asked for its pointer's place.
    absolute_pointer: AtomicBool,
    /// The domain's end, between its beginning and its completion.
    ending: Mutex<Ending>,
}

impl<'a> VmExecutor<'a> {
    /// For one run of a plan.
    pub fn new(core: &'a Core, records: &'a Records, task: &'a TaskHandle, slot: &'a Slot) -> Self {
        Self {
            core,
            records,
            task,
            slot,
            files: Mutex::default(),
            changes: Mutex::default(),
            image: Mutex::default(),
            state: Mutex::default(),
            late: AtomicBool::new(false),
            absolute_pointer: AtomicBool::new(false),
            ending: Mutex::default(),
        }
    }

    fn vm(&self) -> &str {
        &self.records.vm.id
    }

    /// Not too often: whoever ends a process may do so again. One that may not be started now is looked after when it may;
    /// the log says what `happened` too often and what is done `again` then.
    fn may_start(
        &self,
        starts: impl FnOnce(&mut Runtime) -> &mut Starts,
        [happened, again]: [&str; 2],
    ) -> bool {
        let counted = self.core.runtimes.with(self.vm(), |r| starts(r).count(Instant::now()));
        if let Err(next) = counted {
            tracing::error!(
                vm = self.vm(),
                "{happened} {} times within {} s; it is {again} again later",
                Starts::MOST,
                Starts::WINDOW.as_secs()
            );
            self.core.check_at(self.vm(), next);
        }
        counted.is_ok()
    }

    /// The domain, or the error of an operation that needs one. Looked up by UUID each time: a remembered number may
    /// belong to somebody else's domain by now.
    fn domid(&self) -> Result<DomId, Error> {
        let found = self.core.domain_of(self.vm())?.ok_or(Error::DomainNotBuilt)?;
        self.core.runtimes.with(self.vm(), |r| r.domid = Some(found.domid));
        Ok(found.domid)
    }

    fn files(&self) -> Option<BootFiles> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn pending_marker(domid: DomId) -> Result<Path, Error> {
        Ok(libxl_path(device::store_domid(domid)).join(PENDING).map_err(xenstore::Error::from)?)
    }

    fn keep_files(&self, files: BootFiles) {
        *self.files.lock().unwrap_or_else(PoisonError::into_inner) = Some(files);
    }
}

/// How the VM's domain is virtualised.
fn guest_kind(vm: &Vm) -> GuestKind {
    match vm.ty {
        BuilderInfo::Pv(_) => GuestKind::Pv,
        BuilderInfo::Pvh(_) | BuilderInfo::PvInPvh(_) => GuestKind::Pvh,
        BuilderInfo::Hvm(_) => GuestKind::Hvm,
    }
}

/// The same in the store's words.
fn domain_kind(vm: &Vm) -> DomainKind {
    match guest_kind(vm) {
        GuestKind::Pv => DomainKind::Pv,
        GuestKind::Pvh => DomainKind::Pvh,
        GuestKind::Hvm => DomainKind::Hvm,
    }
}

impl Executor for VmExecutor<'_> {
    fn execute(&self, atom: &Atom) -> Result<(), Error> {
        match atom {
            Atom::CheckStart => self.check_start(),
            Atom::CreateDomain => self.create_domain(),
            Atom::FindKernel | Atom::LoadInstaller => self.find_kernel(),
            Atom::KeepRound => self.keep_round(),
            Atom::ForgetRound => self.forget_round(),
            Atom::BeginBuild => self.begin_build(),
            Atom::BuildDomain => self.build_domain(),
            Atom::Hook(hook, reason) => self.run_hook(*hook, *reason),
            Atom::Delay(time) => self.delay(*time),
            Atom::OfferFrameBuffer => self.offer_frame_buffer(),
            Atom::StopFrameBuffer => self.stop_frame_buffer(),
            Atom::StartTerminal(screen) => self.start_terminal(*screen),
            Atom::StopTerminal(screen) => self.stop_terminal(*screen),
            Atom::AttachStorage(device) => self.attach_storage(device),
            Atom::ServeDisk(name) => self.serve_disk(name),
            Atom::BeginPlug(device) => self.begin_plug(device),
            Atom::Plug(device) => self.plug(device),
            Atom::EndPlug(device) => self.end_plug(device),
            Atom::Unplug(device, how) => self.unplug(device, *how),
            Atom::RefreshDisk(name) => self.refresh_disk(name),
            Atom::InsertMedium(drive) => self.insert_medium(drive),
            Atom::EjectMedium(drive, how) => self.eject_medium(drive, *how),
            Atom::Keep(change) => change.now.put(&self.core.records),
            Atom::Apply(change) => self.apply(change),
            Atom::Settle => {
                let marker = Self::pending_marker(self.domid()?)?;
                self.core.edges.store()?.rm(&marker)?;
                self.core.records.end_round(self.vm())
            }
            Atom::StartDeviceModel(beginning) => self.start_device_model(*beginning),
            Atom::SaveDeviceModel => self.save_device_model(),
            Atom::LoadDeviceModel => self.load_device_model(),
            Atom::StopDeviceModel => self.stop_device_model(),
            Atom::Unpause => {
                self.run_device_model()?;
                Ok(self.core.edges.hypervisor()?.unpause(self.domid()?)?)
            }
            Atom::Pause => Ok(self.core.edges.hypervisor()?.pause(self.domid()?)?),
            Atom::PauseBestEffort => {
                if let Err(error) = self.pause_for_good() {
                    tracing::debug!(vm = self.vm(), %error, "not paused before it is destroyed");
                }
                Ok(())
            }
            Atom::RequestShutdown(what, timeout) => self.request_shutdown(*what, *timeout),
            Atom::AttachImage(disk, access) => self.attach_image(disk, *access),
            Atom::DetachImage => {
                self.detach_image();
                Ok(())
            }
            Atom::OpenImage(disk) => self.open_image(disk),
            Atom::RequestSuspend => self.request_suspend(),
            Atom::SaveDomain => self.save_domain(),
            Atom::SealImage => self.seal_image(),
            Atom::KeepImage => self.keep_image(),
            Atom::ResumeDomain => self.resume_domain(),
            Atom::DiscardImage(disk) => self.discard_image(disk),
            Atom::CheckResume(disk) => self.check_resume(disk),
            Atom::RestoreDomain(disk) => self.restore_domain(disk),
            Atom::ForgetImage => self.forget_image(),
            Atom::CloseDevices => self.close_devices(),
            Atom::DestroyDomain => self.destroy_domain(),
            Atom::ReleaseDevices => self.release_devices(),
        }
    }
}
