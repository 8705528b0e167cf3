//! Progress lines for people: what is being done, and how long each step took, on standard error.
//!
//! What a test does in dom0 is said when it took long, so that a file's output shows where its time goes.

use std::{
    io::Write as _,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// What takes less is not worth a line of its own.
const LONG: Duration = Duration::from_secs(2);

/// How many letters of a script name it.
const NAME_LENGTH: usize = 100;

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

/// Prints a name and how long this value lived when it is dropped, if that was long.
#[derive(Debug)]
pub struct Timed {
    name: String,
    begin: Instant,
}

/// Begins one of many things, of which only those that take long are said. The name may be a whole script.
#[must_use = "what it is dropped at is the end"]
pub fn timed(name: &str) -> Timed {
    START.get_or_init(Instant::now);
    Timed { name: one_line(name), begin: Instant::now() }
}

impl Drop for Timed {
    fn drop(&mut self) {
        let took = self.begin.elapsed();
        if took >= LONG {
            say(&format!("  {:5.1}s {}", took.as_secs_f64(), self.name));
        }
    }
}

/// The beginning of a text, without its line ends.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(NAME_LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_named_by_its_beginning() {
        assert_eq!(one_line("a\n  b\tc "), "a b c");
        assert_eq!(one_line(&"é".repeat(500)), "é".repeat(NAME_LENGTH));
    }
}
