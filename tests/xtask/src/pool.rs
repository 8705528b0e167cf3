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
    process::Output,
    sync::{Mutex, PoisonError},
    thread,
};
use xen_host::progress::step;

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
            match step(target, || test(package, target, filter)) {
                Err(Failure::Targets(targets)) => failed.extend(targets),
                other => other?,
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

/// Runs one, and shows what it printed at its end.
fn test(package: &str, target: &str, filter: Option<&str>) -> Result<(), Failure> {
    let mut command = cargo(&["test", "--quiet", "--package", package, "--test", target]);
    command.args(filter).args(["--", "--test-threads=1", "--format=pretty"]);
    let output = command.output().map_err(|e| Failure::start(&command, e))?;
    show(&output);
    if output.status.success() { Ok(()) } else { Err(Failure::Targets(vec![target.to_owned()])) }
}

/// Shows what a target printed, in one piece.
fn show(output: &Output) {
    let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
    // A closed standard output must not end a test run.
    drop(out.write_all(&output.stdout).and_then(|()| out.flush()));
    drop(err.write_all(&output.stderr));
}
