//! Tasks: what a client sees of an operation in flight, and how it cancels it.
//!
//! ```text
//!   Pending(progress) ──► Completed { duration, result }
//!          │        └───► Failed(error)
//!          └─ cancel: the next atom or the wait in progress ends with `Cancelled`
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel::{Receiver, Sender, bounded};

use crate::api::value::{ToValue, Value};
use crate::api::{self, DynamicId, Error};
use crate::ops::updates::Updates;

/// Finished tasks that clients never destroyed are forgotten, oldest first, beyond this many.
pub const MAX_FINISHED: usize = 4096;

/// Most cancel triggers: a test sets one or two.
const MAX_TRIGGERS: usize = 64;

/// Progress is announced at most this often: every announcement costs each waiting client two calls.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

struct Progress {
    state: api::TaskState,
    subtasks: Vec<(String, api::TaskState)>,
    destroy_on_finish: bool,
    /// Nothing is ever sent: the receiver wakes when the sender is dropped.
    cancel: Option<Sender<Infallible>>,
    cancel_points: u64,
    /// The step at which it is cancelled by itself, for tests.
    cancel_at: Option<u64>,
    announced: Instant,
    /// Which part of the whole the step is that runs: where it starts, and how long it is.
    step: (f64, f64),
}

struct Shared {
    id: String,
    dbg: String,
    ctime: f64,
    started: Instant,
    cancelled: Receiver<Infallible>,
    progress: Mutex<Progress>,
}

/// One task, as held by the worker that runs it. Cheap to clone.
#[derive(Clone)]
pub struct TaskHandle {
    shared: Arc<Shared>,
    updates: Updates,
}

impl TaskHandle {
    /// The task's id: a decimal counter of this process.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// The client's own words for the log, from the call's `debug_info`.
    pub fn dbg(&self) -> &str {
        &self.shared.dbg
    }

    /// Sets the fraction done, 0.0 to 1.0.
    pub fn set_progress(&self, done: f64) {
        let mut progress = self.lock();
        if let api::TaskState::Pending(old) = &mut progress.state {
            *old = done.clamp(0.0, 1.0);
            if progress.announced.elapsed() >= PROGRESS_INTERVAL {
                progress.announced = Instant::now();
                drop(progress);
                self.announce();
            }
        }
    }

    /// A step begins, which is this part of the whole: where it starts, and how long it is.
    pub fn begin_step(&self, start: f64, length: f64) {
        self.lock().step = (start, length);
    }

    /// Sets the fraction done of the step that runs, 0.0 to 1.0; for one beside which no other runs.
    pub fn set_step_progress(&self, done: f64) {
        let (start, length) = self.lock().step;
        self.set_progress(start + length * done.clamp(0.0, 1.0));
    }

    /// Records the outcome of a named step, visible in the task's `subtasks`.
    pub fn subtask(&self, name: String, state: api::TaskState) {
        let mut progress = self.lock();
        match progress.subtasks.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => *old = state,
            None => progress.subtasks.push((name, state)),
        }
    }

    /// To be called between steps.
    ///
    /// # Errors
    /// `Cancelled` once a client has cancelled the task.
    pub fn check_cancelled(&self) -> Result<(), Error> {
        let mut progress = self.lock();
        progress.cancel_points += 1;
        if progress.cancel_at == Some(progress.cancel_points) {
            progress.cancel = None;
        }
        if progress.cancel.is_none() { Err(self.cancelled_error()) } else { Ok(()) }
    }

    /// The error a cancelled step ends with.
    pub fn cancelled_error(&self) -> Error {
        Error::Cancelled(self.shared.id.clone())
    }

    /// A channel that is disconnected by a cancel; for `select!` in waits.
    pub(crate) fn cancel_event(&self) -> &Receiver<Infallible> {
        &self.shared.cancelled
    }

    fn announce(&self) {
        self.updates.add(DynamicId::Task(self.shared.id.clone()));
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.shared.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self) -> api::Task {
        let progress = self.lock();
        api::Task {
            id: self.shared.id.clone(),
            dbg: self.shared.dbg.clone(),
            ctime: self.shared.ctime,
            state: progress.state.clone(),
            subtasks: progress.subtasks.iter().cloned().collect(),
            debug_info: [("cancel_points_seen".to_owned(), progress.cancel_points.to_string())]
                .into_iter()
                .collect(),
            backtrace: "()".to_owned(),
            cancellable: progress.cancel.is_some(),
        }
    }

    /// How far it is.
    pub fn state(&self) -> api::TaskState {
        self.lock().state.clone()
    }

    fn is_finished(&self) -> bool {
        !matches!(self.lock().state, api::TaskState::Pending(_))
    }
}

#[derive(Default)]
struct Table {
    tasks: BTreeMap<u64, TaskHandle>,
    /// Those of them that have finished.
    finished: BTreeSet<u64>,
}

impl Table {
    /// A task has ended; the tasks that are forgotten for it.
    fn finish(&mut self, number: u64) -> Vec<TaskHandle> {
        // A client may have destroyed it already.
        if self.tasks.contains_key(&number) {
            self.finished.insert(number);
        }
        let mut forgotten = Vec::new();
        while self.finished.len() > MAX_FINISHED {
            forgotten.extend(self.finished.pop_first().and_then(|oldest| self.tasks.remove(&oldest)));
        }
        forgotten
    }

    fn remove(&mut self, number: u64) {
        self.tasks.remove(&number);
        self.finished.remove(&number);
    }
}

/// All tasks of this process.
#[derive(Clone)]
pub struct Tasks {
    table: Arc<Mutex<Table>>,
    next: Arc<AtomicU64>,
    updates: Updates,
    /// Which tasks are to be cancelled by themselves, by the client's words, and at which step.
    triggers: Arc<Mutex<HashMap<String, u64>>>,
}

impl Tasks {
    /// An empty table announcing changes on `updates`.
    pub fn new(updates: Updates) -> Self {
        Self { table: Arc::default(), next: Arc::default(), updates, triggers: Arc::default() }
    }

    /// A new pending task, kept until a client destroys it.
    pub fn create(&self, dbg: &str) -> TaskHandle {
        self.new_task(dbg, false)
    }

    /// A new pending task that no client waits for: it is forgotten when it ends.
    pub fn create_unowned(&self, dbg: &str) -> TaskHandle {
        self.new_task(dbg, true)
    }

    fn new_task(&self, dbg: &str, destroy_on_finish: bool) -> TaskHandle {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (cancel, cancelled) = bounded(0);
        let progress = Progress {
            state: api::TaskState::Pending(0.0),
            subtasks: Vec::new(),
            destroy_on_finish,
            cancel: Some(cancel),
            cancel_points: 0,
            cancel_at: self.triggers.lock().unwrap_or_else(PoisonError::into_inner).get(dbg).copied(),
            announced: Instant::now(),
            step: (0.0, 0.0),
        };
        let ctime = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let shared = Shared {
            id: number.to_string(),
            dbg: dbg.to_owned(),
            ctime,
            started: Instant::now(),
            cancelled,
            progress: Mutex::new(progress),
        };
        let task = TaskHandle { shared: Arc::new(shared), updates: self.updates.clone() };
        self.lock().tasks.insert(number, task.clone());
        task.announce();
        task
    }

    /// Ends a task with its outcome, and tells clients of what else has `changed` by it in one go: who waits for the task is
    /// woken once. A task whose client asked for it disappears at once.
    pub fn finish(
        &self,
        task: &TaskHandle,
        outcome: Result<Option<Value>, Error>,
        changed: impl IntoIterator<Item = DynamicId>,
    ) {
        let duration = task.shared.started.elapsed().as_secs_f64();
        let mut progress = task.lock();
        progress.state = match outcome {
            Ok(result) => api::TaskState::Completed(api::Completion { duration, result }),
            Err(error) => api::TaskState::Failed(error.to_value()),
        };
        let destroy = progress.destroy_on_finish;
        drop(progress);
        self.updates.add_all(changed.into_iter().chain([DynamicId::Task(task.id().to_owned())]));
        if destroy {
            return self.forget(task.id());
        }
        let forgotten = task.id().parse().map_or_else(|_| Vec::new(), |number| self.lock().finish(number));
        for old in forgotten {
            self.updates.remove(&DynamicId::Task(old.id().to_owned()));
        }
    }

    /// What a client sees of a task.
    ///
    /// # Errors
    /// `Does_not_exist("Task", id)`.
    pub fn stat(&self, id: &str) -> Result<api::Task, Error> {
        Ok(self.find(id)?.describe())
    }

    /// Every task, oldest first.
    pub fn list(&self) -> Vec<api::Task> {
        let all: Vec<_> = self.lock().tasks.values().cloned().collect();
        all.iter().map(TaskHandle::describe).collect()
    }

    /// From now on, tasks of these words are cancelled when they come to their `step`th step, counted from 1: for tests
    /// of how clients take it.
    ///
    /// # Errors
    /// `Internal_error` when there are too many such.
    pub fn set_cancel_trigger(&self, dbg: &str, step: u64) -> Result<(), Error> {
        let mut triggers = self.triggers.lock().unwrap_or_else(PoisonError::into_inner);
        if triggers.len() >= MAX_TRIGGERS && !triggers.contains_key(dbg) {
            return Err(Error::internal(format!("{MAX_TRIGGERS} cancel triggers are set already")));
        }
        triggers.insert(dbg.to_owned(), step);
        Ok(())
    }

    /// Asks a task to stop at its next step or in its present wait. Cancelling twice, or a finished task, is
    /// not an error.
    ///
    /// # Errors
    /// `Does_not_exist("Task", id)`.
    pub fn cancel(&self, id: &str) -> Result<(), Error> {
        let task = self.find(id)?;
        task.lock().cancel = None;
        task.announce();
        Ok(())
    }

    /// Forgets a finished task; a pending one is left to run and forgotten when it ends.
    ///
    /// # Errors
    /// `Does_not_exist("Task", id)`.
    pub fn destroy(&self, id: &str) -> Result<(), Error> {
        let task = self.find(id)?;
        task.lock().destroy_on_finish = true;
        if task.is_finished() {
            self.forget(id);
        }
        Ok(())
    }

    fn forget(&self, id: &str) {
        if let Ok(number) = id.parse() {
            self.lock().remove(number);
        }
        self.updates.remove(&DynamicId::Task(id.to_owned()));
    }

    fn find(&self, id: &str) -> Result<TaskHandle, Error> {
        let missing = || Error::does_not_exist("Task", id);
        let number: u64 = id.parse().map_err(|_| missing())?;
        self.lock().tasks.get(&number).cloned().ok_or_else(missing)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::timer::Timer;

    fn tasks() -> Tasks {
        Tasks::new(Updates::new(Timer::start()))
    }

    #[test]
    fn a_task_completes_with_its_result() {
        let tasks = tasks();
        let task = tasks.create("unit test");
        assert!(matches!(tasks.stat(task.id()).unwrap().state, api::TaskState::Pending(_)));
        tasks.finish(&task, Ok(Some(Value::Int(3))), []);
        let api::TaskState::Completed(done) = tasks.stat(task.id()).unwrap().state else {
            panic!("not completed")
        };
        assert_eq!(done.result, Some(Value::Int(3)));
        tasks.destroy(task.id()).unwrap();
        assert_eq!(tasks.stat(task.id()), Err(Error::does_not_exist("Task", task.id())));
    }

    #[test]
    fn a_cancel_is_seen_at_the_next_step_and_in_a_wait() {
        let tasks = tasks();
        let task = tasks.create("unit test");
        task.check_cancelled().unwrap();
        tasks.cancel(task.id()).unwrap();
        assert_eq!(task.check_cancelled(), Err(Error::Cancelled(task.id().to_owned())));
        assert!(task.cancel_event().recv().is_err());
        assert!(!tasks.stat(task.id()).unwrap().cancellable);
    }

    #[test]
    fn a_trigger_cancels_the_tasks_of_its_words_at_its_step() {
        let tasks = tasks();
        tasks.set_cancel_trigger("words", 2).unwrap();
        let (other, task) = (tasks.create("other"), tasks.create("words"));
        for _ in 0..3 {
            other.check_cancelled().unwrap();
        }
        task.check_cancelled().unwrap();
        assert_eq!(task.check_cancelled(), Err(task.cancelled_error()));
    }

    #[test]
    fn destroying_a_pending_task_takes_effect_when_it_ends() {
        let tasks = tasks();
        let task = tasks.create("unit test");
        tasks.destroy(task.id()).unwrap();
        assert!(tasks.stat(task.id()).is_ok());
        tasks.finish(&task, Ok(None), []);
        assert!(tasks.stat(task.id()).is_err());
    }

    #[test]
    fn finished_tasks_nobody_destroys_are_bounded() {
        let tasks = tasks();
        for _ in 0..MAX_FINISHED + 10 {
            let task = tasks.create("unit test");
            tasks.finish(&task, Ok(None), []);
        }
        assert!(tasks.list().len() <= MAX_FINISHED + 1);
    }
}
