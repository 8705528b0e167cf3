//! Takes a plan's steps, in order and in parallel, and undoes what was done when one fails.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crate::api::value::ToValue;
use crate::api::{self, Error};
use crate::ops::explain::Trace;
use crate::ops::plan::{Atom, Step};
use crate::ops::task::TaskHandle;

/// How many atoms of one operation run at once: more only queue at the hypervisor's and the store's locks.
pub const MAX_PARALLEL: usize = 8;

/// Carries atoms out.
pub trait Executor: Sync {
    /// One effect.
    ///
    /// # Errors
    /// Why it could not be had; what it had taken itself by then it has given back, or its [`Atom::undo`] does.
    fn execute(&self, atom: &Atom) -> Result<(), Error>;
}

struct Run<'a> {
    executor: &'a dyn Executor,
    task: &'a TaskHandle,
    trace: &'a Trace,
    /// Of all atoms, and of those done.
    weight: u32,
    done: AtomicU32,
    /// Atoms that have begun, in that order: what a failure undoes, backwards.
    begun: Mutex<Vec<(usize, Atom)>>,
}

/// Runs `plan`. On failure (or cancellation) everything begun is undone in reverse order, each undo is logged, and
/// the first error is returned.
///
/// # Errors
/// The first failing atom's, or `Cancelled`.
pub fn run(executor: &dyn Executor, task: &TaskHandle, trace: &Trace, plan: &[Step]) -> Result<(), Error> {
    let weight = plan.iter().map(Step::weight).sum::<u32>().max(1);
    let run = Run { executor, task, trace, weight, done: AtomicU32::new(0), begun: Mutex::default() };
    let outcome = run.serial(trace.plan(plan), plan);
    if let Err(error) = &outcome {
        run.undo(error);
    }
    outcome
}

impl Run<'_> {
    /// A failure ends it, except within the end of a domain: there each further step leaves less behind, and the first
    /// error is returned when they are through. `number` is that of the first atom.
    fn serial(&self, mut number: usize, steps: &[Step]) -> Result<(), Error> {
        let mut ending = Ok(());
        for step in steps {
            if step.ends_domain() {
                ending = ending.and(self.step(number, step));
            } else {
                ending.clone()?;
                self.step(number, step)?;
            }
            number += step.atoms();
        }
        ending
    }

    fn step(&self, number: usize, step: &Step) -> Result<(), Error> {
        match step {
            Step::Do(atom) => self.atom(number, atom),
            Step::Serial(steps) => self.serial(number, steps),
            Step::Parallel(steps) => self.parallel(number, steps),
        }
    }

    /// Workers take the next step as they become free: one slow step delays no other.
    fn parallel(&self, first: usize, steps: &[Step]) -> Result<(), Error> {
        let numbers = steps.iter().scan(first, |next, step| {
            let number = *next;
            *next += step.atoms();
            Some(number)
        });
        let steps: Vec<_> = numbers.zip(steps).collect();
        let next = AtomicUsize::new(0);
        let errors = Mutex::new(Vec::new());
        let work = || {
            while let Some((number, step)) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.step(*number, step) {
                    errors.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                }
            }
        };
        std::thread::scope(|scope| {
            // This thread is one of the workers.
            for _ in 1..steps.len().min(MAX_PARALLEL) {
                let thread = std::thread::Builder::new().name("atom".into()).stack_size(super::WORKER_STACK);
                if let Err(error) = thread.spawn_scoped(scope, work) {
                    tracing::warn!(%error, "parallel steps run with fewer threads");
                    break;
                }
            }
            work();
        });
        let errors = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        errors.into_iter().next().map_or(Ok(()), Err)
    }

    fn atom(&self, number: usize, atom: &Atom) -> Result<(), Error> {
        if atom.cancellable() {
            self.task.check_cancelled()?;
        }
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push((number, atom.clone()));
        self.trace.begin(number, atom);
        let part = |weight: u32| f64::from(weight) / f64::from(self.weight);
        self.task.begin_step(part(self.done.load(Ordering::Relaxed)), part(atom.weight()));
        let outcome = self.executor.execute(atom);
        if outcome.is_ok() && atom.commits() {
            self.begun.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        let seconds = self.trace.end(number, atom, &outcome).as_secs_f64();
        tracing::debug!(task = self.task.id(), seconds, ok = outcome.is_ok(), "{atom}");
        self.task.subtask(atom.to_string(), outcome_state(outcome.as_ref().err().cloned(), seconds));
        let done = self.done.fetch_add(atom.weight(), Ordering::Relaxed) + atom.weight();
        self.task.set_progress(part(done));
        outcome
    }

    fn undo(self, cause: &Error) {
        let begun = self.begun.into_inner().unwrap_or_else(PoisonError::into_inner);
        let task = self.task.id();
        for (number, atom) in begun.iter().rev() {
            for undoing in atom.undo() {
                let outcome = self.trace.undo(*number, &undoing, || self.executor.execute(&undoing));
                match &outcome {
                    Ok(()) => tracing::info!(task, %cause, "undo of {atom}: {undoing}: done"),
                    Err(error) => tracing::error!(task, %cause, %error, "undo of {atom}: {undoing}: failed"),
                }
                self.task.subtask(format!("undo {atom}: {undoing}"), outcome_state(outcome.err(), 0.0));
            }
        }
    }
}

fn outcome_state(error: Option<Error>, duration: f64) -> api::TaskState {
    match error {
        None => api::TaskState::Completed(api::Completion { duration, result: None }),
        Some(error) => api::TaskState::Failed(error.to_value()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::hook::{Hook, HookReason};
    use crate::ops::plan::{self, Device};
    use crate::ops::task::Tasks;
    use crate::ops::timer::Timer;
    use crate::ops::updates::Updates;
    use crate::{test_vbd, test_vif, test_vm};

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    /// Fails at one atom and records all.
    struct Script {
        fail_at: Option<Atom>,
        log: Mutex<Vec<String>>,
    }

    impl Executor for Script {
        fn execute(&self, atom: &Atom) -> Result<(), Error> {
            self.log.lock().unwrap().push(atom.to_string());
            if self.fail_at.as_ref() == Some(atom) { Err(Error::IoError) } else { Ok(()) }
        }
    }

    fn run_for(script: &Script, task: &TaskHandle, plan: &[Step]) -> Result<(), Error> {
        run(script, task, &Trace::unseen(task), plan)
    }

    fn start_failing_at(fail_at: Option<Atom>) -> (Result<(), Error>, Vec<String>) {
        let records = plan::Records {
            vm: test_vm(ID, "demo"),
            vbds: vec![test_vbd(ID, "xvda")],
            vifs: vec![test_vif(ID, "0")],
            leaving: None,
        };
        let script = Script { fail_at, log: Mutex::default() };
        let tasks = Tasks::new(Updates::new(Timer::start()));
        let outcome = run_for(&script, &tasks.create("unit test"), &plan::start(&records));
        (outcome, script.log.into_inner().unwrap())
    }

    fn undone() -> Vec<String> {
        let steps = [
            "pause",
            "stop device model",
            "close devices",
            "stop frame buffer",
            "stop terminal",
            "destroy domain",
            "release devices",
        ];
        steps.map(str::to_owned).to_vec()
    }

    #[test]
    fn success_undoes_nothing() {
        let (outcome, log) = start_failing_at(None);
        outcome.unwrap();
        assert_eq!(log.len(), 7, "{log:?}");
        assert_eq!(log[..3], ["check", "hook vm-pre-start", "create domain"]);
    }

    #[test]
    fn a_hook_that_refuses_a_start_prevents_it() {
        let refusing = Atom::Hook(Hook::PreStart, HookReason::None);
        let (outcome, log) = start_failing_at(Some(refusing));
        assert_eq!(outcome, Err(Error::IoError));
        assert_eq!(log, ["check", "hook vm-pre-start"]);
    }

    #[test]
    fn a_plug_that_fails_half_way_is_taken_back() {
        let disk = Device::Vbd("xvda".to_owned());
        let tasks = Tasks::new(Updates::new(Timer::start()));
        let script = Script { fail_at: Some(Atom::Plug(disk.clone())), log: Mutex::default() };
        let outcome = run_for(&script, &tasks.create("unit test"), &plan::plug(&disk, None));
        assert_eq!(outcome, Err(Error::IoError));
        assert_eq!(
            script.log.into_inner().unwrap(),
            ["begin plug of disk xvda", "plug disk xvda", "unplug disk xvda by force"]
        );
    }

    #[test]
    fn a_failed_check_has_taken_nothing() {
        let (outcome, log) = start_failing_at(Some(Atom::CheckStart));
        assert_eq!(outcome, Err(Error::IoError));
        assert_eq!(log, ["check"]);
    }

    #[test]
    fn a_failure_at_any_later_step_undoes_the_domain_once() {
        for atom in [
            Atom::CreateDomain,
            Atom::BuildDomain,
            Atom::Plug(Device::Vbd("xvda".to_owned())),
            Atom::Plug(Device::Vif("0".to_owned())),
            Atom::Settle,
        ] {
            let (outcome, log) = start_failing_at(Some(atom.clone()));
            assert_eq!(outcome, Err(Error::IoError), "{atom}");
            assert!(log.ends_with(&undone()), "{atom}: {log:?}");
            assert_eq!(log.iter().filter(|l| *l == "destroy domain").count(), 1, "{atom}");
        }
    }

    #[test]
    fn a_shutdown_goes_on_past_a_failure_and_reports_the_first() {
        let tasks = Tasks::new(Updates::new(Timer::start()));
        let script = Script { fail_at: Some(Atom::CloseDevices), log: Mutex::default() };
        let outcome = run_for(&script, &tasks.create("unit test"), &plan::destroy());
        assert_eq!(outcome, Err(Error::IoError));
        assert_eq!(script.log.into_inner().unwrap(), undone());
    }

    #[test]
    fn a_reboot_whose_shutdown_failed_starts_nothing() {
        let records =
            plan::Records { vm: test_vm(ID, "demo"), vbds: Vec::new(), vifs: Vec::new(), leaving: None };
        let tasks = Tasks::new(Updates::new(Timer::start()));
        let script = Script { fail_at: Some(Atom::DestroyDomain), log: Mutex::default() };
        let outcome = run_for(&script, &tasks.create("unit test"), &plan::reboot(&records, None));
        assert_eq!(outcome, Err(Error::IoError));
        assert_eq!(script.log.into_inner().unwrap()[1..], undone()[..]);
    }

    #[test]
    fn a_cancelled_task_takes_no_further_step() {
        let tasks = Tasks::new(Updates::new(Timer::start()));
        let task = tasks.create("unit test");
        tasks.cancel(task.id()).unwrap();
        let script = Script { fail_at: None, log: Mutex::default() };
        assert_eq!(
            run_for(&script, &task, &plan::shutdown(Some(std::time::Duration::ZERO))),
            Err(task.cancelled_error())
        );
        assert!(script.log.lock().unwrap().is_empty());
        run_for(&script, &task, &plan::destroy()).unwrap();
    }
}
