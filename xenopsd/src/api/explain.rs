//! Our own extension of the contract: what an operation is made of, and how far each part is.

use super::errors::Error;
use super::ids::{TaskId, VmId};
use super::task::TaskState;
use super::value::{Int, Value};

variant! {
    /// How far a step is.
    pub enum StepState as "Explain.step_state" {
        /// Its turn has not come; when the operation has ended, it never did.
        Waiting as "Waiting",
        /// Under way.
        Running as "Running",
        /// Done.
        Done as "Done",
        /// It failed; the payload is an encoded `Errors.error`.
        Failed as "Failed" (Value),
    }
}

record! {
    /// What was done to take a step back.
    pub struct Undo as "Explain.undo" {
        /// The effect, in words.
        what: String,
        /// Seconds it took.
        took: f64,
        /// Why it failed, an encoded `Errors.error`; none when it did not.
        error: Option<Value>,
    }
}

record! {
    /// One effect of a plan.
    pub struct PlannedStep as "Explain.step" {
        /// The effect, in words.
        what: String,
        /// Where in the plan: its number at each level of grouping, from the outside in, counted from 1.
        place: Vec<Int>,
        /// Whether it runs beside the others of its group rather than after them.
        parallel: bool,
        /// How far it is.
        state: StepState,
        /// When it began, in seconds after the operation did.
        began: Option<f64>,
        /// Seconds it took.
        took: Option<f64>,
        /// What took it back, if anything had to, in order.
        undo: Vec<Undo>,
    }
}

record! {
    /// A VM's operation, explained.
    pub struct Explanation as "Explain.t" {
        /// The VM.
        vm: VmId,
        /// The operation, in words.
        operation: String,
        /// The task it was, or is.
        task: TaskId,
        /// The `debug_info` of the call that asked for it.
        dbg: String,
        /// When it began, in seconds since 1970.
        began: f64,
        /// How far it is, or how it ended.
        state: TaskState,
        /// Its plan.
        steps: Vec<PlannedStep>,
    }
}

methods! {
    debug_info as "debug_info", errors Error;

    /// The plan of the VM's operation under way, or of its last one: step by step, with times, outcomes, and what undid
    /// them. Kept while the daemon runs. Not in xapi's contract.
    "VM.explain" VmExplain -> Option<Explanation> {
        /// The VM.
        id: VmId,
    }
}
