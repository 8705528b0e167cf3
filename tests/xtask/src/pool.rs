//! Runs test targets on the nested host, as many at a time as there are processors.
//!
//! ```text
//!   queue of targets ──┬── worker: cargo test --test nested_a -- --test-threads=1 ──┬── output, in one piece
//!                      └── worker: cargo test --test nested_b -- --test-threads=1 ──┘
//! ```
//!
//! A test keeps about one processor busy: its nested host. With a target after the other, each of which has but one or
//! two tests, the others are idle for a third of the time.

use crate::{Failure, cargo::cargo};
use std::{
    io::{self, Write as _},
    num::NonZeroUsize,
    panic::resume_unwind,
    process::{Command, Output},
    sync::{Mutex, PoisonError},
    thread,
    time::Instant,
};
use xen_host::progress::say;

/// How many nested hosts run at the same time at most: each has 4 GiB of memory and its own disk overlay.
const MOST: usize = 8;

/// Runs each of `targets` of a package, all of its tests or those whose name contains `filter`, to their end,
/// whatever comes of the others.
///
/// # Errors
/// [`Failure::Targets`] with the names of those that failed, [`Failure::Start`] when cargo does not start.
pub(crate) fn run(package: &str, targets: &[&str], filter: Option<&str>) -> Result<(), Failure> {
    let workers = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST);
    let queue = Mutex::new(targets.iter());
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next().copied();
    let work = || -> Result<Vec<String>, Failure> {
        let mut failed = Vec::new();
        while let Some(target) = next() {
            let begin = Instant::now();
            let output = output(&mut command(package, target, filter))?;
            show(&output);
            let success = output.status.success();
            let outcome = if success { "" } else { " (failed)" };
            say(&format!("{target}: {:.1}s{outcome}", begin.elapsed().as_secs_f64()));
            if !success {
                failed.push(target.to_owned());
            }
        }
        Ok(failed)
    };
    let results: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    });
    let mut failed = results.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    failed.sort();
    if failed.is_empty() { Ok(()) } else { Err(Failure::Targets(failed)) }
}

fn command(package: &str, target: &str, filter: Option<&str>) -> Command {
    let mut command = cargo(&["test", "--quiet", "--package", package, "--test", target]);
    command.args(filter).args(["--", "--test-threads=1", "--format=pretty"]);
    command
}

fn output(command: &mut Command) -> Result<Output, Failure> {
    command.output().map_err(|e| Failure::start(command, e))
}

/// Shows what a target printed, in one piece.
fn show(output: &Output) {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    // A closed standard output must not end a test run.
    drop(out.write_all(&output.stdout).and_then(|()| out.flush()));
    drop(err.write_all(&output.stderr));
}
