//! What a guest's text and its viewers can do to vncterm.

use std::rc::Rc;

use vncterm::rfb::auth::{Gate, Password};
use vncterm::rfb::{Frame, Viewer};
use vncterm::term::{Size, Terminal};

/// Rows that a fuzzed terminal scrolls back to.
const SCROLLBACK: usize = 30;

/// Whatever a guest prints, in whatever pieces, the screen is the same, within its bounds, and comes back when it is saved.
pub fn terminal(bytes: &[u8]) {
    let size = Size { cols: 20, rows: 5 };
    let mut at_once = Terminal::new(size, SCROLLBACK);
    at_once.feed(bytes);
    let mut piecemeal = Terminal::new(size, SCROLLBACK);
    bytes.chunks(1).for_each(|byte| piecemeal.feed(byte));
    assert_eq!(at_once.text(), piecemeal.text());
    // A guest may choose another size.
    let size = at_once.size();
    assert_eq!((at_once.cursor(), size), (piecemeal.cursor(), piecemeal.size()));
    assert_eq!(size, size.clamped());
    let (row, col) = at_once.cursor();
    assert!(row < size.rows && col < size.cols && at_once.history() <= SCROLLBACK);
    let _ = Frame::of(&at_once, SCROLLBACK);
    saved_screen(&at_once.save());
}

/// A saved screen is refused, or can be saved and restored again. (One that no terminal saved, with half of a wide character
/// in it, is put right by that and so need not be the same.)
pub fn saved_screen(bytes: &[u8]) {
    if let Ok(terminal) = Terminal::restore(bytes) {
        let saved = terminal.save();
        let again = Terminal::restore(&saved).expect("what is saved can be restored");
        assert_eq!((again.size(), again.cursor()), (terminal.size(), terminal.cursor()));
    }
}

/// Whatever a viewer sends, in whatever pieces, it wants the same done.
pub fn viewer(bytes: &[u8]) {
    let mut screen = Terminal::new(Size { cols: 20, rows: 5 }, SCROLLBACK);
    screen.feed(b"\x1b[31mlogin: ");
    let gate = || Password::new(b"secret").ok().map(|password| Rc::new(Gate::new(password)));
    let wanted = |gate: Option<Rc<Gate>>, pieces: &mut dyn Iterator<Item = &[u8]>| {
        let (mut viewer, mut wanted) = (Viewer::new(gate), Vec::new());
        for piece in pieces {
            let refused = viewer.received(piece, &screen, |input| wanted.push(format!("{input:?}"))).is_err();
            if refused {
                wanted.push("refused".to_owned());
                break;
            }
            if viewer.wants_update() {
                viewer.update(&screen);
            }
            viewer.sent(viewer.output().len());
        }
        wanted
    };
    assert_eq!(wanted(None, &mut std::iter::once(bytes)), wanted(None, &mut bytes.chunks(1)));
    let guessed = wanted(gate(), &mut std::iter::once(bytes));
    assert_eq!(guessed, wanted(gate(), &mut bytes.chunks(1)));
    assert!(
        guessed.is_empty() || guessed == ["refused"],
        "nothing is done for who does not know the password"
    );
}
