//! What is done about a domain when something may have happened to it: it stopped, vanished, lost a process that serves it,
//! or an earlier daemon left it half changed.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::operation::Request;
use crate::api::{Action, Disk, Error, PowerState, Vm};
use crate::device;
use crate::domain::{VmExecutor, observe};
use crate::edge::ShutdownReason;
use crate::ops::plan::{self, Atom, Step};

/// A guest that crashes sooner than this after its start is not started again: it would crash for ever.
const CRASH_LOOP: Duration = Duration::from_secs(120);

/// When it is tried again to start a terminal server.
const TERMINAL_RETRY: Duration = Duration::from_secs(60);

impl Request<'_> {
    /// A domain stopped by itself, or vanished.
    pub(super) fn check(&self) -> Result<(), Error> {
        if !self.core.records.has_vm(self.vm) {
            // Its records are gone and only the journal knows of it.
            return if self.state == PowerState::Halted { self.core.give_back(self.vm) } else { Ok(()) };
        }
        let vm = self.core.records.vm(self.vm)?;
        let Some(domain) = &self.domain else {
            self.undo_round()?;
            // Destroyed by somebody else: its devices are not, and nobody else knows of them.
            let known = self.core.runtimes.with(self.vm, |r| r.domid.is_some());
            let orphaned = known
                || !self.core.journal.of(self.vm).is_empty()
                || self.core.left_behind(self.vm)?.is_some();
            return if orphaned { self.run(&plan::destroy()) } else { Ok(()) };
        };
        if self.core.pending(domain.domid)? {
            tracing::warn!(vm = self.vm, domid = %domain.domid, "a domain was left half built or half destroyed; removing it");
            self.undo_round()?;
            return self.run(&plan::destroy());
        }
        if !self.core.runtimes.with(self.vm, |r| std::mem::replace(&mut r.looked_at, true)) {
            self.core.records.end_round(self.vm)?;
            self.finish_devices()?;
            self.core.adopt_device_model(&vm, domain.domid)?;
            if observe::is_built(domain) {
                self.finish_changes()?;
            }
        }
        if let Err(error) = device::qos::apply(self.core, self.vm, domain.domid) {
            tracing::warn!(vm = self.vm, %error, "a disk has not got its I/O priority");
        }
        self.core.restore_networks(self.vm, domain.domid);
        let suspended = self.core.records.extra(self.vm)?.is_suspended();
        let suspending = self.core.suspending(domain.domid)?;
        if let Some(image) = &suspending {
            if suspended {
                tracing::warn!(vm = self.vm, "a suspended VM's domain was left; removing it");
                return self.run(&plan::destroy());
            }
            self.run(&plan::abandon_suspend(&Disk::Local(image.clone())))?;
        }
        if suspended {
            tracing::warn!(vm = self.vm, "the VM was resumed before the last daemon ended");
            self.run(&[Step::Do(Atom::ForgetImage)])?;
        }
        // Looked at anew: it may have been let run on, or have stopped otherwise than it was asked to.
        match self.core.domain_of(self.vm)?.and_then(|domain| domain.shutdown) {
            None if self.core.runtimes.with(self.vm, |r| std::mem::take(&mut r.model_ended)) => {
                self.device_model_ended(&vm)
            }
            None => self.tend(),
            // It stopped after that. Its stop is an event, and the look that this asks for lets it run on.
            Some(ShutdownReason::Suspend) if suspending.is_some() => Ok(()),
            Some(reason) => self.react(&vm, reason),
        }
    }

    /// Finds the terminal server of the running guest, or starts another, and brings its frame buffer in line with what it
    /// has published.
    fn tend(&self) -> Result<(), Error> {
        let records = self.records()?;
        let executor = VmExecutor::new(self.core, &records, self.task, self.slot);
        let lacks = executor.lacks_terminal();
        let restarted =
            lacks.and_then(|lacks| if lacks { self.run(&plan::restart_terminal()) } else { Ok(()) });
        let tended = restarted.and(executor.tend_frame_buffer());
        if tended.is_err() {
            self.core.check_at(self.vm, Instant::now() + TERMINAL_RETRY);
        }
        tended
    }

    /// An earlier daemon was killed while it plugged or unplugged a device of the running guest.
    fn finish_devices(&self) -> Result<(), Error> {
        let records = self.records()?;
        VmExecutor::new(self.core, &records, self.task, self.slot).finish_devices()
    }

    /// Or a setting of it.
    fn finish_changes(&self) -> Result<(), Error> {
        let records = self.records()?;
        VmExecutor::new(self.core, &records, self.task, self.slot).finish_changes()
    }

    /// A guest without its device model is as one that has crashed, but that it may still run.
    fn device_model_ended(&self, vm: &Vm) -> Result<(), Error> {
        if vm.on_crash.first() == Some(&Action::Pause) {
            return self.run(&[Step::Do(Atom::Pause)]);
        }
        self.react(vm, ShutdownReason::Crash)
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
                // As xapi's: hooks are for what a client asks.
                Action::Shutdown => return self.run(&plan::destroy()),
                Action::Start | Action::Softreboot if crashed && self.young() => {
                    tracing::error!(
                        vm = self.vm,
                        seconds = CRASH_LOOP.as_secs(),
                        "crashed too soon after its start; it is not started again"
                    );
                    return self.run(&plan::destroy());
                }
                // A soft reset keeps the domain and is as much work as a new one, with a history of advisories
                // (XSA-368, XSA-425); a guest that asks for it gets a reboot.
                Action::Start | Action::Softreboot => return self.own_reboot(),
            }
        }
        Ok(())
    }

    /// How long ago the guest was started, if that is known.
    pub(super) fn up(&self) -> Option<Duration> {
        if let Some(started) = self.core.runtimes.with(self.vm, |r| r.started) {
            return Some(started.elapsed());
        }
        // Started by an earlier daemon: only the wall clock knows.
        let started = self.core.records.extra(self.vm).ok()?.last_start_time;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Duration::try_from_secs_f64(now - started).ok().filter(|_| started > 0.0)
    }

    fn young(&self) -> bool {
        self.up().is_some_and(|up| up < CRASH_LOOP)
    }
}
