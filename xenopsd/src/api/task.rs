//! Tasks: operations that outlive the call that asked for them.

use super::errors::Error;
use super::ids::TaskId;
use super::value::{Dict, Value};

record! {
    /// How a task ended well.
    pub struct Completion as "Task.completion_t" {
        /// Seconds it took.
        duration: f64,
        /// What it returns, for the few that return anything.
        result: Option<Value>,
    }
}

variant! {
    /// How far a task is.
    pub enum TaskState as "Task.state" {
        /// Under way; the payload is its progress, 0 to 1.
        Pending as "Pending" (f64),
        /// Ended well.
        Completed as "Completed" (Completion),
        /// Ended badly; the payload is an encoded `Errors.error`.
        Failed as "Failed" (Value),
    }
}

record! {
    /// A task.
    pub struct Task as "Task.t" {
        /// Its id.
        id: TaskId,
        /// The `debug_info` of the call that asked for it.
        dbg: String,
        /// When it was made, in seconds since 1970.
        ctime: f64,
        /// How far it is.
        state: TaskState,
        /// How far its parts are, by name.
        subtasks: Dict<TaskState>,
        /// For debugging; `cancel_points_seen` among others.
        debug_info: Dict<String>,
        /// Where it failed, as an s-expression; `()` for nowhere.
        backtrace: String,
        /// Whether it can be cancelled now.
        cancellable: bool,
    }
}

methods! {
    debug_info as "debug_info", errors Error;

    /// How far a task is.
    "Task.stat" TaskStat -> Task {
        /// The task.
        id: TaskId,
    }

    /// Asks a task to stop; it fails with `Cancelled` once it has undone what it did.
    "Task.cancel" TaskCancel -> () {
        /// The task.
        id: TaskId,
    }

    /// Forgets a task that has ended.
    "Task.destroy" TaskDestroy -> () {
        /// The task.
        id: TaskId,
    }

    /// All tasks.
    "Task.list" TaskList -> Vec<Task> {}

    /// Forgets a task as soon as it ends.
    "Task.destroy_on_finish" TaskDestroyOnFinish -> () {
        /// The task.
        id: TaskId,
    }
}
