//! Recorded sessions of real programs: our screen against what tmux showed for the same bytes.
//!
//! `recordings/record.py` made them and says how.

use std::path::{Path, PathBuf};
use vncterm::term::{Size, Terminal};

fn recordings() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut recordings: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "raw")).collect();
    recordings.sort();
    recordings
}

fn screen(terminal: &Terminal) -> Vec<String> {
    (0..terminal.size().rows).map(|row| terminal.row(row).text().replace('\u{a0}', " ")).collect()
}

#[test]
fn every_recorded_screen_is_what_tmux_shows() {
    let recordings = recordings();
    assert!(recordings.len() >= 9, "{}", recordings.len());
    let mut failures = Vec::new();
    for path in recordings {
        let mut terminal = Terminal::new(Size::DEFAULT, 512);
        // In pieces, as they come from a pseudo-terminal.
        for piece in std::fs::read(&path).unwrap().chunks(61) {
            terminal.feed(piece);
        }
        let expected = std::fs::read_to_string(path.with_extension("screen")).unwrap();
        let (ours, theirs) = (screen(&terminal), expected.lines().map(str::trim_end).collect::<Vec<_>>());
        for (row, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
            if ours.trim_end() != theirs {
                failures.push(format!("{}, row {row}:\n  {ours:?}\n  {theirs:?}", path.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
