//! Why an operation did what it did: its plan, step by step, kept for each VM until its next operation.
//!
//! ```text
//!   runner ── planned, began, ended, undone ──► Trace ◄── Traces (one per VM) ◄── VM.explain
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::api::value::ToValue;
use crate::api::{self, Error, Int, StepState};
use crate::ops::plan::{Atom, Step};
use crate::ops::task::TaskHandle;

/// Which side of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boundary {
    /// It has not begun.
    Before,
    /// It has ended, well or not.
    After,
}

/// Told of each step of each VM, on the thread that takes it.
pub type Observer = Arc<dyn Fn(&str, &Atom, Boundary) + Send + Sync>;

struct Undone {
    what: Atom,
    took: Duration,
    error: Option<Error>,
}

/// Where a step is: whether it has begun, and how it ended.
enum Progress {
    Waiting,
    Running(Instant),
    Ended(Instant, Duration, Option<Error>),
}

struct Planned {
    atom: Atom,
    place: Vec<u16>,
    parallel: bool,
    progress: Progress,
    undone: Vec<Undone>,
}

/// One operation on one VM.
pub struct Trace {
    vm: String,
    operation: String,
    task: TaskHandle,
    began: Instant,
    since_epoch: Duration,
    steps: Mutex<Vec<Planned>>,
    observer: Option<Observer>,
}

impl Trace {
    fn new(vm: &str, operation: String, task: &TaskHandle, observer: Option<Observer>) -> Self {
        Self {
            vm: vm.to_owned(),
            operation,
            task: task.clone(),
            began: Instant::now(),
            since_epoch: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
            steps: Mutex::default(),
            observer,
        }
    }

    /// For tests of what runs plans.
    #[cfg(test)]
    pub(crate) fn unseen(task: &TaskHandle) -> Self {
        Self::new("", String::new(), task, None)
    }

    /// Appends a plan; the number of its first atom. Atoms are numbered in the order in which the plan names them.
    pub(super) fn plan(&self, plan: &[Step]) -> usize {
        let mut steps = self.lock();
        let first = steps.len();
        // An operation may have several plans; together they are one.
        let before = steps.last().and_then(|step| step.place.first().copied()).unwrap_or(0);
        append(&mut steps, plan, &[], before, false);
        first
    }

    /// A step begins.
    pub(super) fn begin(&self, number: usize, atom: &Atom) {
        self.observe(atom, Boundary::Before);
        if let Some(step) = self.lock().get_mut(number) {
            step.progress = Progress::Running(Instant::now());
        }
    }

    /// It has ended; how long it took.
    pub(super) fn end(&self, number: usize, atom: &Atom, outcome: &Result<(), Error>) -> Duration {
        let mut took = Duration::ZERO;
        if let Some(step) = self.lock().get_mut(number)
            && let Progress::Running(began) = step.progress
        {
            took = began.elapsed();
            step.progress = Progress::Ended(began, took, outcome.as_ref().err().cloned());
        }
        self.observe(atom, Boundary::After);
        took
    }

    /// Runs what takes a step back.
    pub(super) fn undo(
        &self,
        number: usize,
        atom: &Atom,
        run: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.observe(atom, Boundary::Before);
        let began = Instant::now();
        let outcome = run();
        if let Some(step) = self.lock().get_mut(number) {
            let error = outcome.as_ref().err().cloned();
            step.undone.push(Undone { what: atom.clone(), took: began.elapsed(), error });
        }
        self.observe(atom, Boundary::After);
        outcome
    }

    fn observe(&self, atom: &Atom, boundary: Boundary) {
        if let Some(observer) = &self.observer {
            observer(&self.vm, atom, boundary);
        }
    }

    fn describe(&self) -> api::Explanation {
        api::Explanation {
            vm: self.vm.clone(),
            operation: self.operation.clone(),
            task: self.task.id().to_owned(),
            dbg: self.task.dbg().to_owned(),
            began: self.since_epoch.as_secs_f64(),
            state: self.task.state(),
            steps: self.lock().iter().map(|step| step.describe(self.began)).collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Planned>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn append(to: &mut Vec<Planned>, steps: &[Step], group: &[u16], before: u16, parallel: bool) {
    for (number, step) in (before.saturating_add(1)..).zip(steps) {
        let place = [group, &[number]].concat();
        match step {
            Step::Do(atom) => {
                let (atom, progress) = (atom.clone(), Progress::Waiting);
                to.push(Planned { atom, place, parallel, progress, undone: Vec::new() });
            }
            Step::Serial(inner) => append(to, inner, &place, 0, false),
            Step::Parallel(inner) => append(to, inner, &place, 0, true),
        }
    }
}

impl Planned {
    fn describe(&self, operation_began: Instant) -> api::PlannedStep {
        let (state, began, took) = match &self.progress {
            Progress::Waiting => (StepState::Waiting, None, None),
            Progress::Running(began) => (StepState::Running, Some(began), None),
            Progress::Ended(began, took, None) => (StepState::Done, Some(began), Some(took)),
            Progress::Ended(began, took, Some(error)) => {
                (StepState::Failed(error.to_value()), Some(began), Some(took))
            }
        };
        let undo = |undone: &Undone| api::Undo {
            what: undone.what.to_string(),
            took: undone.took.as_secs_f64(),
            error: undone.error.as_ref().map(ToValue::to_value),
        };
        api::PlannedStep {
            what: self.atom.to_string(),
            place: self
                .place
                .iter()
                .map(|number| Int::from(i16::try_from(*number).unwrap_or(i16::MAX)))
                .collect(),
            parallel: self.parallel,
            state,
            began: began.map(|began| began.duration_since(operation_began).as_secs_f64()),
            took: took.map(Duration::as_secs_f64),
            undo: self.undone.iter().map(undo).collect(),
        }
    }
}

/// The last operation of every VM.
#[derive(Default)]
pub struct Traces {
    last: Mutex<HashMap<String, Arc<Trace>>>,
    observer: Mutex<Option<Observer>>,
}

impl Traces {
    /// An operation begins. It is not the VM's last before it is [`Traces::show`]n: most checks find nothing to do.
    pub fn begin(&self, vm: &str, operation: impl std::fmt::Display, task: &TaskHandle) -> Arc<Trace> {
        let observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Arc::new(Trace::new(vm, operation.to_string(), task, observer))
    }

    /// From now on this is the VM's last operation.
    pub fn show(&self, trace: &Arc<Trace>) {
        self.lock().insert(trace.vm.clone(), Arc::clone(trace));
    }

    /// What the VM's last operation did, or does.
    pub fn explain(&self, vm: &str) -> Option<api::Explanation> {
        let trace = self.lock().get(vm).cloned()?;
        Some(trace.describe())
    }

    /// The VM is gone.
    pub fn forget(&self, vm: &str) {
        self.lock().remove(vm);
    }

    /// Has `observer` told of every step of the operations that begin from now on.
    pub fn observe(&self, observer: Option<Observer>) {
        *self.observer.lock().unwrap_or_else(PoisonError::into_inner) = observer;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Trace>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::task::Tasks;
    use crate::ops::timer::Timer;
    use crate::ops::updates::Updates;

    fn task() -> TaskHandle {
        Tasks::new(Updates::new(Timer::start())).create("unit test")
    }

    #[test]
    fn places_say_how_steps_are_grouped() {
        let [one, two, three, four] =
            [Atom::CheckStart, Atom::BuildDomain, Atom::Settle, Atom::Pause].map(Step::Do);
        let traces = Traces::default();
        let trace = traces.begin("vm", "start", &task());
        let grouped = Step::Parallel(vec![two, Step::Serial(vec![three, one.clone()])]);
        assert_eq!(trace.plan(&[one, grouped]), 0);
        assert_eq!(trace.plan(&[four]), 4);
        assert!(traces.explain("vm").is_none());
        traces.show(&trace);
        let steps = traces.explain("vm").unwrap().steps;
        let places: Vec<_> = steps.iter().map(|s| (s.place.clone(), s.parallel)).collect();
        let expected: [(&[Int], bool); 5] =
            [(&[1], false), (&[2, 1], true), (&[2, 2, 1], false), (&[2, 2, 2], false), (&[3], false)];
        assert_eq!(places, expected.map(|(place, parallel)| (place.to_vec(), parallel)));
        assert!(steps.iter().all(|s| s.state == StepState::Waiting && s.began.is_none()));
    }

    #[test]
    fn outcomes_and_undos_are_shown_where_they_belong() {
        let traces = Traces::default();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        traces.observe(Some(Arc::new(move |vm, atom, boundary| {
            log.lock().unwrap().push((vm.to_owned(), atom.clone(), boundary));
        })));
        let trace = traces.begin("vm", "start", &task());
        traces.show(&trace);
        trace.plan(&[Atom::CreateDomain, Atom::BuildDomain].map(Step::Do));
        trace.begin(0, &Atom::CreateDomain);
        assert_eq!(traces.explain("vm").unwrap().steps[0].state, StepState::Running);
        trace.end(0, &Atom::CreateDomain, &Ok(()));
        trace.begin(1, &Atom::BuildDomain);
        trace.end(1, &Atom::BuildDomain, &Err(Error::IoError));
        assert_eq!(
            trace.undo(0, &Atom::DestroyDomain, || Err(Error::UnknownError)),
            Err(Error::UnknownError)
        );
        let steps = traces.explain("vm").unwrap().steps;
        assert_eq!(steps[0].state, StepState::Done);
        assert_eq!(steps[1].state, StepState::Failed(Error::IoError.to_value()));
        assert_eq!(steps[0].undo[0].what, "destroy domain");
        assert_eq!(steps[0].undo[0].error, Some(Error::UnknownError.to_value()));
        assert_eq!(seen.lock().unwrap().len(), 6);
        traces.forget("vm");
        assert!(traces.explain("vm").is_none());
    }
}
