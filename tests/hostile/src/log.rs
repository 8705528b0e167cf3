//! The log: what came of each attempt, a line each, and that it cannot be made to fill dom0's disk.

use std::fmt::Display;
use std::io::{self, Write};

use nix::errno::Errno;

/// More than any limit of a log: writes go on until one is refused, or this much was written.
const MUCH: usize = 4 << 20;

/// Prints a line. There is nobody to tell that it cannot.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Prints what came of an attempt.
pub(crate) fn attempt(phase: &str, name: &str, outcome: Result<(), Errno>) {
    match outcome {
        Ok(()) => say(format!("{phase} {name}: allowed")),
        Err(errno) => say(format!("{phase} {name}: {errno:?}")),
    }
}

/// What an error of the standard library's says.
pub(crate) fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// Fills the log as far as it goes.
///
/// # Errors
/// When it goes on beyond every limit, or ends otherwise than by an error about the file's size.
pub(crate) fn fill() -> Result<(), String> {
    let line = [b'x'; 1024];
    for _ in 0..MUCH / line.len() {
        match io::stdout().write_all(&line).and_then(|()| io::stdout().flush()) {
            Ok(()) => {}
            Err(error) if errno(&error) == Errno::EFBIG => return Ok(()),
            Err(error) => return Err(format!("the log ends with {error}")),
        }
    }
    Err("the log has no end".to_owned())
}
