//! Takes a plan's steps, in order and in parallel, and undoes what was done when one fails.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::api::value::ToValue;
use crate::api::{self, Error};
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
    total: usize,
    done: AtomicUsize,
    /// Atoms that have begun, in that order: what a failure undoes, backwards.
    begun: Mutex<Vec<Atom>>,
}

/// Runs `plan`. On failure (or cancellation) everything begun is undone in reverse order, each undo is logged, and
/// the first error is returned.
///
/// # Errors
/// The first failing atom's, or `Cancelled`.
pub fn run(executor: &dyn Executor, task: &TaskHandle, plan: &[Step]) -> Result<(), Error> {
    let total = plan.iter().map(Step::atoms).sum::<usize>().max(1);
    let run = Run { executor, task, total, done: AtomicUsize::new(0), begun: Mutex::default() };
    let outcome = run.serial(plan);
    if let Err(error) = &outcome {
        let begun = run.begun.into_inner().unwrap_or_else(PoisonError::into_inner);
        undo(executor, task, &begun, error);
    }
    outcome
}

fn undo(executor: &dyn Executor, task: &TaskHandle, begun: &[Atom], cause: &Error) {
    for atom in begun.iter().rev() {
        for step in atom.undo() {
            let Step::Do(undoing) = step else { continue };
            let outcome = executor.execute(&undoing);
            match &outcome {
                Ok(()) => tracing::info!(task = task.id(), %cause, "undo of {atom}: {undoing}: done"),
                Err(error) => {
                    tracing::error!(task = task.id(), %cause, %error, "undo of {atom}: {undoing}: failed");
                }
            }
            task.subtask(format!("undo {atom}: {undoing}"), outcome_state(outcome.err(), 0.0));
        }
    }
}

impl Run<'_> {
    /// A failure ends it, except within the end of a domain: there each further step leaves less behind, and the first
    /// error is returned when they are through.
    fn serial(&self, steps: &[Step]) -> Result<(), Error> {
        let mut ending = Ok(());
        for step in steps {
            if step.ends_domain() {
                ending = ending.and(self.step(step));
            } else {
                ending.clone()?;
                self.step(step)?;
            }
        }
        ending
    }

    fn step(&self, step: &Step) -> Result<(), Error> {
        match step {
            Step::Do(atom) => self.atom(atom),
            Step::Serial(steps) => self.serial(steps),
            Step::Parallel(steps) => self.parallel(steps),
        }
    }

    /// Workers take the next step as they become free: one slow step delays no other.
    fn parallel(&self, steps: &[Step]) -> Result<(), Error> {
        let next = AtomicUsize::new(0);
        let errors = Mutex::new(Vec::new());
        let work = || {
            while let Some(step) = steps.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.step(step) {
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

    fn atom(&self, atom: &Atom) -> Result<(), Error> {
        if atom.cancellable() {
            self.task.check_cancelled()?;
        }
        self.begun.lock().unwrap_or_else(PoisonError::into_inner).push(atom.clone());
        let started = Instant::now();
        let outcome = self.executor.execute(atom);
        let seconds = started.elapsed().as_secs_f64();
        tracing::debug!(task = self.task.id(), seconds, ok = outcome.is_ok(), "{atom}");
        self.task.subtask(atom.to_string(), outcome_state(outcome.as_ref().err().cloned(), seconds));
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        #[expect(clippy::cast_precision_loss, reason = "a plan has far fewer atoms than 2^52")]
        self.task.set_progress(done as f64 / self.total as f64);
        outcome
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
    use crate::ops::plan;
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

    fn start_failing_at(fail_at: Option<Atom>) -> (Result<(), Error>, Vec<String>) {
        let records = plan::Records {
            vm: test_vm(ID, "demo"),
            vbds: vec![test_vbd(ID, "xvda")],
            vifs: vec![test_vif(ID, "0")],
        };
        let script = Script { fail_at, log: Mutex::default() };
        let tasks = Tasks::new(Updates::new(Timer::start()));
        let outcome = run(&script, &tasks.create("unit test"), &plan::start(&records));
        (outcome, script.log.into_inner().unwrap())
    }

    fn undone() -> Vec<String> {
        ["pause", "close devices", "destroy domain", "release devices"].map(str::to_owned).to_vec()
    }

    #[test]
    fn success_undoes_nothing() {
        let (outcome, log) = start_failing_at(None);
        outcome.unwrap();
        assert_eq!(log.len(), 6, "{log:?}");
        assert_eq!(log[..2], ["check", "create domain"]);
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
            Atom::PlugVbd("xvda".to_owned()),
            Atom::PlugVif("0".to_owned()),
            Atom::Settle,
        ] {
            let (outcome, log) = start_failing_at(Some(atom.clone()));
            assert_eq!(outcome, Err(Error::IoError), "{atom}");
            assert_eq!(log[log.len() - 4..], undone()[..], "{atom}");
            assert_eq!(log.iter().filter(|l| *l == "destroy domain").count(), 1, "{atom}");
        }
    }

    #[test]
    fn a_shutdown_goes_on_past_a_failure_and_reports_the_first() {
        let tasks = Tasks::new(Updates::new(Timer::start()));
        let script = Script { fail_at: Some(Atom::CloseDevices), log: Mutex::default() };
        let outcome = run(&script, &tasks.create("unit test"), &plan::shutdown(None));
        assert_eq!(outcome, Err(Error::IoError));
        assert_eq!(script.log.into_inner().unwrap(), undone());
    }

    #[test]
    fn a_reboot_whose_shutdown_failed_starts_nothing() {
        let records = plan::Records { vm: test_vm(ID, "demo"), vbds: Vec::new(), vifs: Vec::new() };
        let tasks = Tasks::new(Updates::new(Timer::start()));
        let script = Script { fail_at: Some(Atom::DestroyDomain), log: Mutex::default() };
        let outcome = run(&script, &tasks.create("unit test"), &plan::reboot(&records, None));
        assert_eq!(outcome, Err(Error::IoError));
        assert_eq!(script.log.into_inner().unwrap(), undone());
    }

    #[test]
    fn a_cancelled_task_takes_no_further_step() {
        let tasks = Tasks::new(Updates::new(Timer::start()));
        let task = tasks.create("unit test");
        tasks.cancel(task.id()).unwrap();
        let script = Script { fail_at: None, log: Mutex::default() };
        assert_eq!(
            run(&script, &task, &plan::shutdown(Some(std::time::Duration::ZERO))),
            Err(task.cancelled_error())
        );
        assert!(script.log.lock().unwrap().is_empty());
        run(&script, &task, &plan::destroy()).unwrap();
    }
}
