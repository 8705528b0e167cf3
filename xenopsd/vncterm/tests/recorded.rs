//! Recorded sessions of real programs: our screen against what tmux showed for the same bytes, and what pyte, a terminal
//! by other authors again, makes of them.
//!
//! `recordings/record.py` made them and says how: editors, pagers, dialogs, Debian's installer, and the screens with which
//! vttest tests terminals, most of which say what they should look like.

mod python;

use std::path::{Path, PathBuf};
use std::process::Command;
use vncterm::term::{Size, Terminal};

fn recordings() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut recordings: Vec<_> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "raw")).collect();
    recordings.sort();
    recordings
}

/// What our terminal shows at the end, without the blanks at the rows' ends.
fn screen(recording: &Path) -> Vec<String> {
    let mut terminal = Terminal::new(Size::DEFAULT, 512);
    // In pieces, as they come from a pseudo-terminal.
    for piece in std::fs::read(recording).unwrap().chunks(61) {
        terminal.feed(piece);
    }
    (0..terminal.size().rows).map(|row| trimmed(&terminal.row(row).text())).collect()
}

fn trimmed(row: &str) -> String {
    row.replace('\u{a0}', " ").trim_end().to_owned()
}

/// The rows of a recording that are not as another terminal shows them.
fn differences(recording: &Path, theirs: &str) -> Vec<String> {
    let (ours, theirs) = (screen(recording), theirs.lines().map(trimmed).collect::<Vec<_>>());
    assert_eq!(ours.len(), theirs.len(), "rows of {}", recording.display());
    let rows = ours.iter().zip(&theirs).enumerate().filter(|(_, (ours, theirs))| ours != theirs);
    rows.map(|(row, (ours, theirs))| format!("{}, row {row}:\n  {ours:?}\n  {theirs:?}", recording.display()))
        .collect()
}

/// The recordings but those of which another terminal is known to show something wrong.
fn but(wrong: &[&str]) -> Vec<PathBuf> {
    let all = recordings();
    assert!(all.len() >= 18, "{}", all.len());
    let known = |path: &PathBuf| path.file_stem().is_some_and(|stem| wrong.iter().any(|name| stem == *name));
    let kept: Vec<_> = all.iter().filter(|path| !known(path)).cloned().collect();
    assert_eq!(kept.len() + wrong.len(), all.len(), "{wrong:?} are recordings");
    kept
}

/// tmux 3.3a does not keep in order the letters at the margins, of which vttest's screen says that they should be. pyte
/// does.
const NOT_FOR_TMUX: [&str; 1] = ["vttest-autowrap"];

/// vim asks how modifier keys are reported (`CSI ? 4 m`), and pyte 0.8.2 raises a `TypeError` at any sequence that begins
/// with `CSI ?` and ends in `m`. And it draws a broken frame, of which vttest's screen says that it should have none. tmux
/// shows both.
const NOT_FOR_PYTE: [&str; 2] = ["vim-left", "vttest-cursor"];

#[test]
fn every_recorded_screen_is_what_tmux_shows() {
    assert!(NOT_FOR_TMUX.iter().all(|name| !NOT_FOR_PYTE.contains(name)), "one of the two is asked of each");
    let tmux = |path: &PathBuf| std::fs::read_to_string(path.with_extension("screen")).unwrap();
    let failures: Vec<_> =
        but(&NOT_FOR_TMUX).iter().flat_map(|path| differences(path, &tmux(path))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn every_recorded_screen_is_what_pyte_shows() {
    let python = python::program("python");
    let pyte = |path: &PathBuf| {
        let printed = python::succeed(Command::new(&python).arg(python::source("screen.py")).arg(path));
        String::from_utf8(printed).unwrap()
    };
    let failures: Vec<_> =
        but(&NOT_FOR_PYTE).iter().flat_map(|path| differences(path, &pyte(path))).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
