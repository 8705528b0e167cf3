//! What can be asked of a VM, when it may be asked, and which plan answers it.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Core, Wish};
use crate::api::{Disk, Error, Metadata, PowerState};
use crate::device;
use crate::domain::{VmExecutor, metadata, observe};
use crate::edge::{DomainInfo, ShutdownReason};
use crate::ops::explain::Trace;
use crate::ops::plan::{self, Atom, Beginning, Device, Step, Unplugging};
use crate::ops::queue::Slot;
use crate::ops::runner::run;
use crate::ops::task::TaskHandle;
use crate::state::EXTRA_VERSION;

/// One entry of a VM's queue.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// From halted to built and paused.
    Start,
    /// To halted; asks the guest first when a timeout is given.
    Shutdown(Option<Duration>),
    /// Down and up again.
    Reboot(Option<Duration>),
    /// To an image; the domain goes.
    Suspend(Disk),
    /// From an image, leaving the domain paused.
    Resume(Disk),
    /// To an image; the domain stays and runs on.
    Checkpoint(Disk),
    /// On with a domain that has suspended and was not destroyed.
    FastResume,
    /// Stop the vcpus.
    Pause,
    /// Let them run.
    Unpause,
    /// An empty domain only.
    CreateDomain,
    /// Its memory and kernel only.
    BuildDomain,
    /// The device model of a domain that was built.
    StartDeviceModel,
    /// The domain and its devices, without the shutdown of the VM.
    DestroyDomain,
    /// A device for the running guest.
    Plug(Device),
    /// Away from it.
    Unplug(Device, Unplugging),
    /// Look again how large a disk is.
    RefreshDisk(String),
    /// Something about it or its devices is to be different.
    Change(Wish),
    /// Nothing, for a while; what is queued behind it waits.
    Delay(Duration),
    /// Look at the domain and do what its state asks for.
    Check,
    /// Forget the VM.
    Remove,
    /// Store the VM, or a new definition of it.
    ImportMetadata(Box<Metadata>),
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Shutdown(None) => "hard shutdown",
            Self::Shutdown(Some(_)) => "clean shutdown",
            Self::Reboot(None) => "hard reboot",
            Self::Reboot(Some(_)) => "clean reboot",
            Self::Suspend(_) => "suspend",
            Self::Resume(_) => "resume",
            Self::Checkpoint(_) => "checkpoint",
            Self::FastResume => "fast resume",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::CreateDomain => "create",
            Self::BuildDomain => "build",
            Self::StartDeviceModel => "start of the device model",
            Self::DestroyDomain => "destroy",
            Self::Plug(device) => return write!(f, "plug of {device}"),
            Self::Unplug(device, Unplugging::Clean) => return write!(f, "unplug of {device}"),
            Self::Unplug(device, Unplugging::Forced) => return write!(f, "forced unplug of {device}"),
            Self::RefreshDisk(name) => return write!(f, "refresh of disk {name}"),
            Self::Change(wish) => return write!(f, "{wish}"),
            Self::Delay(time) => return write!(f, "delay of {} s", time.as_secs_f64()),
            Self::Check => "check",
            Self::Remove => "remove",
            Self::ImportMetadata(_) => "import of metadata",
        })
    }
}

impl Core {
    /// Carries an operation out, on the VM's own thread.
    pub(super) fn perform(
        &self,
        vm: &str,
        operation: &Operation,
        task: &TaskHandle,
        slot: &Slot,
    ) -> Result<(), Error> {
        let trace = self.traces.begin(vm, operation, task);
        let outcome = self.perform_traced(vm, operation, &trace, task, slot);
        if outcome.is_err() && *operation != Operation::Remove {
            // Also when it was refused before it had a plan.
            self.traces.show(&trace);
        }
        outcome
    }

    fn perform_traced(
        &self,
        vm: &str,
        operation: &Operation,
        trace: &Arc<Trace>,
        task: &TaskHandle,
        slot: &Slot,
    ) -> Result<(), Error> {
        let domain = self.domain_of(vm)?;
        let state = observe::power_state(domain.as_ref(), &self.records.extra(vm)?);
        let now = Request { core: self, vm, task, trace, slot, domain, state };
        match operation {
            Operation::Start => now.start(),
            Operation::Shutdown(timeout) => now.shutdown(*timeout),
            Operation::Reboot(timeout) => now.reboot(*timeout),
            Operation::Suspend(disk) => {
                now.need(&[PowerState::Running])?;
                now.run(&plan::suspend(&self.records.vm(vm)?, disk))
            }
            Operation::Resume(disk) => now.resume(disk),
            Operation::Checkpoint(disk) => {
                now.need(&[PowerState::Running])?;
                now.run(&plan::checkpoint(&self.records.vm(vm)?, disk))
            }
            Operation::FastResume => now.fast_resume(),
            Operation::Pause => now.pause(),
            Operation::Unpause => now.unpause(),
            Operation::CreateDomain => {
                now.need(&[PowerState::Halted])?;
                now.tidy()?;
                now.run(&plan::create())
            }
            Operation::BuildDomain => now.build(),
            Operation::StartDeviceModel => now.start_device_model(),
            Operation::DestroyDomain => now.run(&plan::destroy()),
            Operation::Plug(device) => now.plug(device),
            Operation::Unplug(device, how) => now.unplug(device, *how),
            Operation::RefreshDisk(name) => now.refresh_disk(name),
            Operation::Change(wish) => now.change(wish),
            Operation::Delay(time) => now.run(&[Step::Do(Atom::Delay(*time))]),
            Operation::Check => now.check(),
            Operation::Remove => now.remove(),
            Operation::ImportMetadata(metadata) => metadata::import(self, metadata),
        }
    }
}

/// One operation on one VM, with what was seen when it began.
pub(super) struct Request<'a> {
    pub(super) core: &'a Core,
    pub(super) vm: &'a str,
    pub(super) task: &'a TaskHandle,
    trace: &'a Arc<Trace>,
    pub(super) slot: &'a Slot,
    pub(super) domain: Option<DomainInfo>,
    pub(super) state: PowerState,
}

impl Request<'_> {
    pub(super) fn need(&self, expected: &[PowerState]) -> Result<(), Error> {
        if expected.contains(&self.state) {
            return Ok(());
        }
        Err(Error::BadPowerState { found: self.state, expected: expected[0] })
    }

    pub(super) fn records(&self) -> Result<plan::Records, Error> {
        Ok(plan::Records {
            vm: self.core.records.vm(self.vm)?,
            vbds: self.core.records.devices(self.vm)?,
            vifs: self.core.records.devices(self.vm)?,
            leaving: None,
        })
    }

    pub(super) fn run(&self, steps: &[Step]) -> Result<(), Error> {
        self.run_on(&self.records()?, steps)
    }

    /// With records that are not stored yet.
    pub(super) fn run_on(&self, records: &plan::Records, steps: &[Step]) -> Result<(), Error> {
        self.core.traces.show(self.trace);
        let executor = VmExecutor::new(self.core, records, self.task, self.slot);
        run(&executor, self.task, self.trace, steps)
    }

    fn start(&self) -> Result<(), Error> {
        if self.state == PowerState::Running {
            tracing::info!(vm = self.vm, "start of a running VM: nothing to do");
            return Ok(());
        }
        self.need(&[PowerState::Halted])?;
        self.tidy()?;
        let records = self.starting()?;
        self.run_on(&records, &plan::start(&records))?;
        self.started();
        Ok(())
    }

    /// Removes what an earlier end of the VM could not: a new domain would hide it for ever.
    fn tidy(&self) -> Result<(), Error> {
        let left = self.core.runtimes.with(self.vm, |r| r.domid.is_some());
        if left || !self.core.journal.of(self.vm).is_empty() { self.run(&plan::destroy()) } else { Ok(()) }
    }

    fn started(&self) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        // What is there now is this daemon's own.
        self.core.runtimes.with(self.vm, |r| (r.started, r.looked_at) = (Some(Instant::now()), true));
        let kept = self.core.records.update_extra(self.vm, |extra| {
            extra.version = EXTRA_VERSION;
            extra.last_start_time = since_epoch;
        });
        if let Err(error) = kept {
            tracing::warn!(vm = self.vm, %error, "the time of the start is not kept");
        }
    }

    /// There is nothing to do for a guest that needs none, or has one.
    fn start_device_model(&self) -> Result<(), Error> {
        self.need(&[PowerState::Paused])?;
        self.need_built()?;
        let records = self.records()?;
        let has_one = self.core.runtimes.with(self.vm, |r| r.model.is_some());
        if has_one || !plan::has_device_model(&records.vm) {
            return Ok(());
        }
        self.run(&plan::start_device_model(&records.vm, Beginning::Fresh))
    }

    fn shutdown(&self, timeout: Option<Duration>) -> Result<(), Error> {
        if timeout.is_some() {
            self.need(&[PowerState::Running, PowerState::Paused])?;
        } else if self.state == PowerState::Halted {
            tracing::info!(vm = self.vm, "hard shutdown of a halted VM: removing what may be left");
            return self.run(&plan::destroy());
        } else if self.state == PowerState::Suspended {
            tracing::info!(vm = self.vm, "hard shutdown of a suspended VM: its memory is given up");
            self.run(&plan::destroy())?;
            return self.run(&[Step::Do(Atom::ForgetImage)]);
        }
        self.run(&plan::shutdown(timeout))
    }

    fn resume(&self, disk: &Disk) -> Result<(), Error> {
        // Halted too: the image is what counts, and the record may be older than the daemon's database.
        self.need(&[PowerState::Suspended, PowerState::Halted])?;
        self.tidy()?;
        self.run(&plan::resume(&self.records()?, disk))?;
        self.started();
        Ok(())
    }

    fn fast_resume(&self) -> Result<(), Error> {
        let stopped = self.domain.as_ref().and_then(|domain| domain.shutdown);
        if stopped != Some(ShutdownReason::Suspend) {
            return Err(Error::BadPowerState { found: self.state, expected: PowerState::Suspended });
        }
        self.run(&[Step::Do(Atom::ResumeDomain)])
    }

    fn reboot(&self, timeout: Option<Duration>) -> Result<(), Error> {
        self.need(&[PowerState::Running, PowerState::Paused])?;
        let records = self.starting()?;
        self.run_reboot(&records, &plan::reboot(&records, timeout))
    }

    /// The guest wants to be rebooted.
    pub(super) fn own_reboot(&self) -> Result<(), Error> {
        let patience = &self.core.patience;
        let records = self.starting()?;
        let plan = plan::own_reboot(&records, self.up(), patience.least_uptime, patience.reboot_pause);
        self.run_reboot(&records, &plan)
    }

    fn run_reboot(&self, records: &plan::Records, plan: &[Step]) -> Result<(), Error> {
        self.core.runtimes.with(self.vm, |r| r.rebooting = true);
        let outcome = self.run_on(records, plan);
        self.core.runtimes.with(self.vm, |r| r.rebooting = false);
        outcome?;
        self.started();
        Ok(())
    }

    /// A domain that was made and not built has nothing to run.
    fn need_built(&self) -> Result<(), Error> {
        if self.domain.as_ref().is_some_and(|domain| !observe::is_built(domain)) {
            return Err(Error::DomainNotBuilt);
        }
        Ok(())
    }

    fn build(&self) -> Result<(), Error> {
        self.need(&[PowerState::Paused])?;
        if self.domain.as_ref().is_some_and(observe::is_built) {
            return Err(Error::internal(format!("VM {}: its domain is built already", self.vm)));
        }
        let records = self.starting()?;
        self.run_on(&records, &plan::build(&records))
    }

    fn pause(&self) -> Result<(), Error> {
        self.need_built()?;
        if self.state == PowerState::Paused {
            tracing::info!(vm = self.vm, "pause of a paused VM: nothing to do");
            return Ok(());
        }
        self.need(&[PowerState::Running])?;
        self.run(&[Step::Do(Atom::Pause)])
    }

    fn unpause(&self) -> Result<(), Error> {
        self.need_built()?;
        if self.state == PowerState::Running {
            tracing::info!(vm = self.vm, "unpause of a running VM: nothing to do");
            return Ok(());
        }
        self.need(&[PowerState::Paused])?;
        self.run(&[Step::Do(Atom::Unpause)])
    }

    fn plug(&self, device: &Device) -> Result<(), Error> {
        self.need(&[PowerState::Running, PowerState::Paused])?;
        if device::is_plugged(self.core, self.vm, device)? {
            tracing::info!(vm = self.vm, "plug of {device}, which is plugged: nothing to do");
            return Ok(());
        }
        let records = self.records()?;
        let vbd = match device {
            Device::Vbd(name) => records.vbds.iter().find(|vbd| vbd.id.device == *name),
            Device::Vif(_) => None,
        };
        self.run_on(&records, &plan::plug(device, vbd))
    }

    fn unplug(&self, device: &Device, how: Unplugging) -> Result<(), Error> {
        if self.state == PowerState::Halted || !device::is_plugged(self.core, self.vm, device)? {
            return Err(Error::DeviceNotConnected);
        }
        self.run(&plan::unplug(device, how))
    }

    fn refresh_disk(&self, name: &str) -> Result<(), Error> {
        if self.state == PowerState::Halted
            || !device::is_plugged(self.core, self.vm, &Device::Vbd(name.to_owned()))?
        {
            return Err(Error::DeviceNotConnected);
        }
        self.run(&[Step::Do(Atom::RefreshDisk(name.to_owned()))])
    }

    fn remove(&self) -> Result<(), Error> {
        self.need(&[PowerState::Halted, PowerState::Suspended])?;
        self.core.records.remove_vm(self.vm)?;
        self.core.runtimes.forget(self.vm);
        self.core.traces.forget(self.vm);
        Ok(())
    }
}
