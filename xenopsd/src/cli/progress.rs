//! How far an operation is, on one line of a terminal.

use std::io::Write;
use std::time::Instant;

use crate::api::{Task, TaskState};

use super::Streams;

/// Erases from the cursor to the end of the line (ECMA-48 EL).
const ERASE_LINE: &str = "\r\u{1b}[K";

/// The progress line of one operation; silent where nobody watches.
pub(super) struct Progress<'a, 'w> {
    label: String,
    started: Instant,
    terminal: Option<&'a mut (dyn Write + 'w)>,
}

impl<'a, 'w> Progress<'a, 'w> {
    pub(super) fn new(label: &str, streams: &'a mut Streams<'w>) -> Self {
        let terminal = if streams.progress { Some(&mut *streams.err) } else { None };
        Self { label: super::table::printable(label), started: Instant::now(), terminal }
    }

    /// Shows the task as it is now. A terminal that cannot be written to is no reason to fail.
    pub(super) fn show(&mut self, task: &Task) {
        let line = line(&self.label, &task.state, self.started.elapsed().as_secs_f64());
        if let Some(terminal) = &mut self.terminal {
            let _ = write!(terminal, "{ERASE_LINE}{line}");
            let _ = terminal.flush();
        }
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if let Some(terminal) = &mut self.terminal {
            let _ = write!(terminal, "{ERASE_LINE}");
            let _ = terminal.flush();
        }
    }
}

fn line(label: &str, state: &TaskState, seconds: f64) -> String {
    format!("{label}: {}  {seconds:.1} s", percent(state))
}

/// A task's state in a word.
pub(super) fn percent(state: &TaskState) -> String {
    match state {
        // A daemon may send any number.
        TaskState::Pending(part) => format!("{:.0}%", part.clamp(0.0, 1.0) * 100.0),
        TaskState::Completed(_) => "done".to_owned(),
        TaskState::Failed(_) => "failed".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentage_and_the_time() {
        assert_eq!(line("starting web", &TaskState::Pending(0.414), 1.26), "starting web: 41%  1.3 s");
        assert_eq!(percent(&TaskState::Pending(7.0)), "100%");
        assert_eq!(percent(&TaskState::Pending(f64::NAN)), "NaN%");
    }
}
