//! What can be asked of a VM, when it may be asked, and which plan answers it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Core;
use crate::api::{Action, Error, PowerState, Vm};
use crate::domain::{VmExecutor, observe};
use crate::edge::ShutdownReason;
use crate::ops::plan::{self, Atom, Step};
use crate::ops::queue::Slot;
use crate::ops::runner::run;
use crate::ops::task::TaskHandle;
use crate::state::EXTRA_VERSION;

/// A guest that crashes sooner than this after its start is not started again: it would crash for ever.
const CRASH_LOOP: Duration = Duration::from_secs(120);

/// One entry of a VM's queue.
#[derive(Debug, Clone, PartialEq)]
pub enum Operation {
    /// From halted to built and paused.
    Start,
    /// To halted; asks the guest first when a timeout is given.
    Shutdown(Option<Duration>),
    /// Down and up again.
    Reboot(Option<Duration>),
    /// Stop the vcpus.
    Pause,
    /// Let them run.
    Unpause,
    /// An empty domain only.
    CreateDomain,
    /// Its memory and kernel only.
    BuildDomain,
    /// The domain and its devices, without the shutdown of the VM.
    DestroyDomain,
    /// Look at the domain and do what its state asks for.
    Check,
    /// Forget the VM.
    Remove,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::Shutdown(None) => "hard shutdown",
            Self::Shutdown(Some(_)) => "clean shutdown",
            Self::Reboot(None) => "hard reboot",
            Self::Reboot(Some(_)) => "clean reboot",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::CreateDomain => "create",
            Self::BuildDomain => "build",
            Self::DestroyDomain => "destroy",
            Self::Check => "check",
            Self::Remove => "remove",
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
        let state = observe::power_state(self.domain_of(vm)?.as_ref());
        let now = Request { core: self, vm, task, slot, state };
        match operation {
            Operation::Start => now.start(),
            Operation::Shutdown(timeout) => now.shutdown(*timeout),
            Operation::Reboot(timeout) => now.reboot(*timeout),
            Operation::Pause => now.pause(),
            Operation::Unpause => now.unpause(),
            Operation::CreateDomain => {
                now.need(&[PowerState::Halted])?;
                now.tidy()?;
                now.run(&plan::create())
            }
            Operation::BuildDomain => {
                now.need(&[PowerState::Paused])?;
                now.run(&[Step::Do(Atom::BuildDomain)])
            }
            Operation::DestroyDomain => now.run(&plan::destroy()),
            Operation::Check => now.check(),
            Operation::Remove => now.remove(),
        }
    }
}

/// One operation on one VM, with what was seen when it began.
struct Request<'a> {
    core: &'a Core,
    vm: &'a str,
    task: &'a TaskHandle,
    slot: &'a Slot,
    state: PowerState,
}

impl Request<'_> {
    fn need(&self, expected: &[PowerState]) -> Result<(), Error> {
        if expected.contains(&self.state) {
            return Ok(());
        }
        Err(Error::BadPowerState { found: self.state, expected: expected[0] })
    }

    fn records(&self) -> Result<plan::Records, Error> {
        Ok(plan::Records {
            vm: self.core.records.vm(self.vm)?,
            vbds: self.core.records.devices(self.vm)?,
            vifs: self.core.records.devices(self.vm)?,
        })
    }

    fn run(&self, steps: &[Step]) -> Result<(), Error> {
        let records = self.records()?;
        run(&VmExecutor::new(self.core, &records, self.task, self.slot), self.task, steps)
    }

    fn start(&self) -> Result<(), Error> {
        if self.state == PowerState::Running {
            tracing::info!(vm = self.vm, "start of a running VM: nothing to do");
            return Ok(());
        }
        self.need(&[PowerState::Halted])?;
        self.tidy()?;
        self.run(&plan::start(&self.records()?))?;
        self.started();
        Ok(())
    }

    /// Removes what an earlier end of the VM could not: a new domain would hide it for ever.
    fn tidy(&self) -> Result<(), Error> {
        let left = self.core.runtimes.with(self.vm, |r| r.domid.is_some());
        if left { self.run(&plan::destroy()) } else { Ok(()) }
    }

    fn started(&self) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        self.core.runtimes.with(self.vm, |r| r.started = Some(Instant::now()));
        let kept = self.core.records.update_extra(self.vm, |extra| {
            extra.version = EXTRA_VERSION;
            extra.last_start_time = since_epoch;
        });
        if let Err(error) = kept {
            tracing::warn!(vm = self.vm, %error, "the time of the start is not kept");
        }
    }

    fn shutdown(&self, timeout: Option<Duration>) -> Result<(), Error> {
        if timeout.is_some() {
            self.need(&[PowerState::Running, PowerState::Paused])?;
        } else if self.state == PowerState::Halted {
            tracing::info!(vm = self.vm, "hard shutdown of a halted VM: removing what may be left");
        }
        self.run(&plan::shutdown(timeout))
    }

    fn reboot(&self, timeout: Option<Duration>) -> Result<(), Error> {
        self.need(&[PowerState::Running, PowerState::Paused])?;
        self.core.runtimes.with(self.vm, |r| r.rebooting = true);
        let outcome = self.run(&plan::reboot(&self.records()?, timeout));
        self.core.runtimes.with(self.vm, |r| r.rebooting = false);
        outcome?;
        self.started();
        Ok(())
    }

    fn pause(&self) -> Result<(), Error> {
        if self.state == PowerState::Paused {
            tracing::info!(vm = self.vm, "pause of a paused VM: nothing to do");
            return Ok(());
        }
        self.need(&[PowerState::Running])?;
        self.run(&[Step::Do(Atom::Pause)])
    }

    fn unpause(&self) -> Result<(), Error> {
        if self.state == PowerState::Running {
            tracing::info!(vm = self.vm, "unpause of a running VM: nothing to do");
            return Ok(());
        }
        self.need(&[PowerState::Paused])?;
        self.run(&[Step::Do(Atom::Unpause)])
    }

    fn remove(&self) -> Result<(), Error> {
        if self.state != PowerState::Halted {
            return Err(Error::BadPowerState { found: self.state, expected: PowerState::Halted });
        }
        self.core.records.remove_vm(self.vm)?;
        self.core.runtimes.forget(self.vm);
        Ok(())
    }

    /// A domain stopped by itself, or vanished.
    fn check(&self) -> Result<(), Error> {
        let Ok(vm) = self.core.records.vm(self.vm) else { return Ok(()) };
        let Some(domain) = self.core.domain_of(self.vm)? else {
            // Destroyed by somebody else: its devices are not, and nobody else knows of them.
            let known = self.core.runtimes.with(self.vm, |r| r.domid.is_some());
            let orphaned = known || self.core.left_behind(self.vm)?.is_some();
            return if orphaned { self.run(&plan::destroy()) } else { Ok(()) };
        };
        if self.core.pending(domain.domid)? {
            tracing::warn!(vm = self.vm, domid = %domain.domid, "a domain was left half built or half destroyed; removing it");
            return self.run(&plan::destroy());
        }
        match domain.shutdown {
            None => Ok(()),
            Some(reason) => self.react(&vm, reason),
        }
    }

    fn react(&self, vm: &Vm, reason: ShutdownReason) -> Result<(), Error> {
        let (what, actions) = match reason {
            ShutdownReason::PowerOff => ("shut down", &vm.on_shutdown),
            ShutdownReason::Reboot => ("rebooted", &vm.on_reboot),
            ShutdownReason::SoftReset => ("asked for a soft reset", &vm.on_softreboot),
            // Nobody asked it to suspend: whoever did is not going to resume it.
            ShutdownReason::Suspend => ("suspended by itself", &vec![Action::Shutdown]),
            _ => ("crashed", &vm.on_crash),
        };
        let crashed = what == "crashed";
        tracing::info!(vm = self.vm, ?reason, ?actions, "the guest {what}");
        for action in actions {
            match action {
                Action::Coredump => tracing::warn!(vm = self.vm, "no core dump is written: not supported"),
                Action::Pause => return Ok(()),
                Action::Shutdown => return self.run(&plan::shutdown(None)),
                Action::Start | Action::Softreboot if crashed && self.young() => {
                    tracing::error!(
                        vm = self.vm,
                        seconds = CRASH_LOOP.as_secs(),
                        "crashed too soon after its start; it is not started again"
                    );
                    return self.run(&plan::shutdown(None));
                }
                // A soft reset keeps the domain and is as much work as a new one, with a history of advisories
                // (XSA-368, XSA-425); a guest that asks for it gets a reboot.
                Action::Start | Action::Softreboot => return self.reboot(None),
            }
        }
        Ok(())
    }

    fn young(&self) -> bool {
        if let Some(started) = self.core.runtimes.with(self.vm, |r| r.started) {
            return started.elapsed() < CRASH_LOOP;
        }
        // Started by an earlier daemon: only the wall clock knows.
        let started = self.core.records.extra(self.vm).map_or(0.0, |extra| extra.last_start_time);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        (0.0..CRASH_LOOP.as_secs_f64()).contains(&(now - started))
    }
}
