//! The atoms that start and stop a domain's device model, and what is done when it ends by itself.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use xenstore::{Operations, layout};

use super::create::image_error;
use super::{VmExecutor, clock};
use crate::api::{BuilderInfo, DeviceId, Error, Vm};
use crate::core::Core;
use crate::device::{store_domid, vbd, vif};
use crate::dm::args::{Card, Descriptors, Machine, has_screen};
use crate::dm::drives::Drive;
use crate::dm::kernel::DirectKernel;
use crate::dm::model::{Model, ModelError, Notice, Tell};
use crate::dm::qmp::QmpError;
use crate::edge::linux::device_model::ROLE;
use crate::edge::{
    DeviceModel, DomId, FIRST_DESCRIPTOR, HostError, MONITOR, NewDeviceModel, ScreenAddress, ScreenListener,
    ScreenPlace, StartFile,
};
use crate::ops::plan::{Beginning, Unplugging, has_device_model};
use crate::state::journal::{ProcessId, Resource};

/// What clients know the device model as.
const NAME: &str = "qemu";

/// What is passed to a device model, and what its command line calls it.
#[derive(Default)]
struct Luggage {
    given: Vec<OwnedFd>,
    descriptors: Descriptors,
    /// Where the serial port's readers find it.
    tty: Option<PathBuf>,
}

impl Luggage {
    fn put(&mut self, descriptor: OwnedFd) -> usize {
        self.given.push(descriptor);
        FIRST_DESCRIPTOR + self.given.len() - 1
    }
}

impl VmExecutor<'_> {
    /// Finds what would make the start of a device model fail, taking nothing.
    pub(super) fn check_device_model(&self) -> Result<(), Error> {
        if !has_device_model(&self.records.vm) {
            return Ok(());
        }
        self.start_files(&self.machine()?)?;
        self.core.edges.host().check_device_model().map_err(|error| self.not_started(&error))
    }

    pub(super) fn start_device_model(&self, beginning: Beginning) -> Result<(), Error> {
        let (vm, domid) = (&self.records.vm, self.domid()?);
        let machine = self.machine()?;
        let luggage = self.pack(domid, &machine)?;
        let new = NewDeviceModel {
            domid,
            vm: self.vm(),
            arguments: &machine.arguments(domid.get(), &luggage.descriptors, beginning),
            descriptors: luggage.given,
            files: self.start_files(&machine)?,
        };
        let mut process = None;
        let mut into_journal = noting(self.core, self.vm());
        let mut note = |resource: Resource| {
            if let Resource::Process(noted) = &resource {
                process = Some(noted.clone());
            }
            into_journal(resource)
        };
        let started = self.core.edges.host().start_device_model(new, &mut note);
        let started = started.map_err(|error| self.not_started(&error))?;
        let limit = self.core.patience.device_model;
        let cancelled = Some(self.task.cancel_event());
        let model = self
            .slot
            .without(|| Model::attach(started, limit, cancelled))
            .and_then(|model| model.seal(beginning).map(|()| model))
            .map_err(|error| match error {
                ModelError::Cancelled => self.task.cancelled_error(),
                other => self.not_started(&other),
            })?;
        let viewers = machine.has_screen().then(|| self.core.listen_for_viewers(vm, domid)).transpose()?;
        let started = process.ok_or_else(|| self.not_started(&"it was not written down"))?;
        self.core.announce_device_model(domid, &started, luggage.tty, viewers.as_ref())?;
        self.core.keep_model(vm, model, viewers).map_err(|error| self.not_started(&error))
    }

    /// Ends it, and gives back what was taken for it. There may be none.
    pub(super) fn stop_device_model(&self) -> Result<(), Error> {
        let model = self.core.runtimes.with(self.vm(), |r| (r.model.take(), r.screen.take()).0);
        let ended = model.map_or(Ok(()), |model| model.end());
        let given = self.core.give_back_of(self.vm(), is_of_device_model);
        ended.map_err(|error| Error::internal(format!("VM {}: {error}", self.vm()))).and(given)
    }

    /// An HVM guest runs only while its device model does.
    pub(super) fn run_device_model(&self) -> Result<(), Error> {
        match self.core.runtimes.with(self.vm(), |r| r.model.clone()) {
            None if has_device_model(&self.records.vm) => {
                Err(self.not_started(&"there is none; VM.create_device_model starts it"))
            }
            None => Ok(()),
            Some(model) => model.run().map_err(|error| Error::internal(format!("VM {}: {error}", self.vm()))),
        }
    }

    /// An HVM guest learns of a new vcpu from its device model.
    pub(super) fn plug_vcpus(&self, wanted: u32) -> Result<(), Error> {
        let Some(model) = self.core.runtimes.with(self.vm(), |r| r.model.clone()) else { return Ok(()) };
        let wanted = usize::try_from(wanted).map_err(|e| Error::internal(e.to_string()))?;
        model.plug_vcpus(wanted).map_err(|error| Error::internal(format!("VM {}: {error}", self.vm())))
    }

    /// Puts the medium of the record into an emulated drive.
    pub(super) fn insert_medium(&self, name: &str) -> Result<(), Error> {
        let Some((model, drive)) = self.emulated_drive(name)? else { return Ok(()) };
        let Some(medium) = self.open_drive(&drive)? else { return Ok(()) };
        model
            .insert(&drive, medium.as_fd())
            .map_err(|error| Error::internal(format!("VM {}: {error}", self.vm())))
    }

    /// Takes it out. Forced, the guest is not asked.
    pub(super) fn eject_medium(&self, name: &str, how: Unplugging) -> Result<(), Error> {
        let Some((model, drive)) = self.emulated_drive(name)? else { return Ok(()) };
        model.eject(&drive, how == Unplugging::Forced).map_err(|error| match error {
            ModelError::Monitor(QmpError::Refused { text, .. }) => Error::DeviceDetachRejected {
                class: "VBD".to_owned(),
                id: DeviceId::new(self.vm(), name).to_string(),
                message: format!("the guest keeps the drive closed: {text}"),
            },
            other => Error::internal(format!("VM {}: {other}", self.vm())),
        })
    }

    /// A drive that the VM's device model emulates, if it runs and does.
    fn emulated_drive(&self, name: &str) -> Result<Option<(Arc<Model>, Drive)>, Error> {
        let Some(model) = self.core.runtimes.with(self.vm(), |r| r.model.clone()) else { return Ok(None) };
        let machine = self.machine()?;
        let drive = machine.drives().iter().find(|drive| drive.vbd == name && drive.cdrom);
        Ok(drive.map(|drive| (model, drive.clone())))
    }

    fn machine(&self) -> Result<Machine, Error> {
        let vifs: Vec<_> = self.records.vifs.iter().map(|vif| (vif.clone(), vif.mac.clone())).collect();
        Machine::of(&self.records.vm, &self.records.vbds, &vifs).map_err(|error| self.not_started(&error))
    }

    /// The kernel and ramdisk that the guest is started with, if it is.
    fn start_files(&self, machine: &Machine) -> Result<Vec<StartFile>, Error> {
        let files = machine.kernel().map(DirectKernel::open).transpose();
        Ok(files.map_err(|error| image_error(&self.records.vm, &error))?.unwrap_or_default())
    }

    fn pack(&self, domid: DomId, machine: &Machine) -> Result<Luggage, Error> {
        let mut luggage = Luggage::default();
        luggage.descriptors.monitor = MONITOR;
        for drive in machine.drives() {
            let number = self.open_drive(drive)?.map(|descriptor| luggage.put(descriptor));
            luggage.descriptors.drives.push(number);
        }
        for card in machine.cards() {
            let tap = self.make_tap(domid, card)?;
            let number = luggage.put(tap);
            luggage.descriptors.taps.push(number);
        }
        if machine.has_serial() {
            let terminal = self.core.edges.host().open_terminal()?;
            luggage.descriptors.serial = Some(luggage.put(terminal.master));
            // Unused there: it keeps the terminal from ending when the last reader goes.
            luggage.put(terminal.slave);
            luggage.tty = Some(terminal.path);
        }
        Ok(luggage)
    }

    /// A block device of its own, also for a file: a limit of the size of files holds for a device model.
    fn open_drive(&self, drive: &Drive) -> Result<Option<OwnedFd>, Error> {
        let vbd = self.vbd(&drive.vbd)?;
        Ok(vbd::attach(self.core, vbd)?.and_then(|attached| attached.keep))
    }

    fn make_tap(&self, domid: DomId, card: &Card) -> Result<OwnedFd, Error> {
        let wanted = |vif: &&crate::api::Vif| u32::try_from(vif.position) == Ok(card.position);
        let vif = self.records.vifs.iter().find(wanted);
        let vif = vif.ok_or_else(|| Error::does_not_exist("VIF", card.position.to_string()))?;
        vif::make_tap(self.core, domid, vif)
    }

    pub(super) fn not_started(&self, error: &dyn std::fmt::Display) -> Error {
        let message = error.to_string();
        Error::FailedToStartEmulator { id: self.vm().to_owned(), name: NAME.to_owned(), message }
    }
}

/// Writes resources of a VM down.
fn noting<'a>(core: &'a Core, vm: &'a str) -> impl FnMut(Resource) -> Result<(), HostError> + 'a {
    |resource| core.journal.take(vm, resource).map(drop).map_err(|error| HostError::not_noted(&error))
}

/// What goes with a device model and not only with its domain.
fn is_of_device_model(resource: &Resource) -> bool {
    match resource {
        Resource::Process(process) => process.role == ROLE,
        Resource::Socket(_) | Resource::ControlGroup(_) => true,
        _ => false,
    }
}

impl Core {
    /// Finds the device model of a VM whose domain an earlier daemon left running. One that has ended meanwhile is as one
    /// that ends now.
    ///
    /// # Errors
    /// When it is there and cannot be reached.
    pub fn adopt_device_model(&self, vm: &Vm, domid: DomId) -> Result<(), Error> {
        let noted = self.journal.processes(&vm.id, ROLE).into_iter().next().map(|(_, process)| process);
        let known = self.runtimes.with(&vm.id, |r| r.model.is_some());
        let Some(process) = noted.filter(|_| !known) else { return Ok(()) };
        let failed = |error: &dyn std::fmt::Display| Error::internal(format!("VM {}: {error}", vm.id));
        let found = self.edges.host().adopt_device_model(domid, &vm.id, &process).map_err(|e| failed(&e))?;
        let Some(found) = found else {
            tracing::error!(vm = %vm.id, %domid, pid = process.pid, "the device model ended while no daemon ran");
            self.runtimes.with(&vm.id, |r| r.model_ended = true);
            return Ok(());
        };
        tracing::info!(vm = %vm.id, %domid, pid = process.pid, "the device model is picked up");
        let model = self.adopted(found).map_err(|error| failed(&error))?;
        let has_screen = matches!(&vm.ty, BuilderInfo::Hvm(hvm) if has_screen(hvm));
        let viewers = has_screen.then(|| self.listen_for_viewers(vm, domid)).transpose()?;
        self.announce_device_model(domid, &process, None, viewers.as_ref())?;
        self.keep_model(vm, model, viewers).map_err(|error| failed(&error))
    }

    /// Viewers come to this daemon, which hands them on. They find it where an earlier one was, if that place is free.
    fn listen_for_viewers(&self, vm: &Vm, domid: DomId) -> Result<ScreenListener, Error> {
        let BuilderInfo::Hvm(hvm) = &vm.ty else {
            return Err(Error::internal(format!("VM {} has no screen", vm.id)));
        };
        let place = if hvm.vnc_ip.is_some() {
            let node = layout::DeviceModel::vnc_port_path(store_domid(domid));
            let before = self.edges.store()?.read_str(&node)?;
            ScreenPlace::Port(before.and_then(|port| port.parse().ok()))
        } else {
            ScreenPlace::Socket
        };
        let mut note = noting(self, &vm.id);
        Ok(self.edges.host().listen_for_viewers(domid, place, &mut note)?)
    }

    /// Tells the store what `xl`, viewers and people look for.
    fn announce_device_model(
        &self,
        domid: DomId,
        process: &ProcessId,
        tty: Option<PathBuf>,
        viewers: Option<&ScreenListener>,
    ) -> Result<(), Error> {
        let vnc_port = viewers.and_then(|viewers| match viewers.address() {
            ScreenAddress::Port(port) => Some(*port),
            ScreenAddress::Socket(_) => None,
        });
        let nodes = layout::DeviceModel {
            domid: store_domid(domid),
            pid: process.number()?,
            serial: tty.map(|tty| tty.to_string_lossy().into_owned()),
            vnc_port,
        };
        Ok(self.edges.store()?.commit(&nodes.create())?)
    }

    fn adopted(&self, found: Arc<dyn DeviceModel>) -> Result<Model, ModelError> {
        Model::attach(found, self.patience.device_model, None)
    }

    /// Follows a device model for as long as its domain lives.
    fn keep_model(&self, vm: &Vm, model: Model, viewers: Option<ScreenListener>) -> Result<(), ModelError> {
        let name = format!("dm-{}", vm.id);
        let screen = viewers.as_ref().map(|viewers| viewers.address().clone());
        let model = Arc::new(model);
        // Before it is followed: one that has ended already says so at once, and that must not be forgotten.
        self.runtimes.with(&vm.id, |r| {
            (r.model, r.model_ended, r.screen) = (Some(Arc::clone(&model)), false, screen);
        });
        model.follow(&name, self.tell(vm), viewers).inspect_err(|_| {
            self.runtimes.with(&vm.id, |r| (r.model, r.screen) = (None, None));
        })
    }

    fn tell(&self, vm: &Vm) -> Tell {
        let (core, id) = (Weak::clone(&self.me), vm.id.clone());
        Box::new(move |notice| {
            let Some(core) = core.upgrade() else { return };
            match notice {
                Notice::Ended(words) => {
                    tracing::error!(vm = %id, "the device model ended unexpectedly: {words}");
                    core.runtimes.with(&id, |r| r.model_ended = true);
                    core.check_soon(&id, "device model");
                }
                Notice::Look => core.check_soon(&id, "device model"),
                Notice::Clock(change) => match clock::change(&core, &id, change) {
                    Ok(offset) => tracing::info!(vm = %id, change, offset, "the guest has set its clock"),
                    Err(error) => tracing::error!(vm = %id, %error, "the guest's clock is not kept"),
                },
            }
        })
    }
}
