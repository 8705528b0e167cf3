//! Progress lines for people: what is being done, and how long each step took, on standard error.

use std::{
    io::Write as _,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

static START: OnceLock<Instant> = OnceLock::new();
static QUIET: AtomicBool = AtomicBool::new(false);

/// Suppresses (or restores) the progress lines of this process.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Prints one line with the seconds since the first one.
pub fn say(text: &str) {
    let start = *START.get_or_init(Instant::now);
    if QUIET.load(Ordering::Relaxed) {
        return;
    }
    // A closed standard error must not end a test run.
    drop(writeln!(std::io::stderr().lock(), "[{:6.1}s] {text}", start.elapsed().as_secs_f64()));
}

/// Runs one named step and prints how long it took.
///
/// # Errors
/// Those of the step.
pub fn step<T, E>(name: &str, run: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
    START.get_or_init(Instant::now);
    let begin = Instant::now();
    let result = run();
    let outcome = if result.is_ok() { "" } else { " (failed)" };
    say(&format!("{name}: {:.1}s{outcome}", begin.elapsed().as_secs_f64()));
    result
}
