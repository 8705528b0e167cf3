//! What is no picture of the screen: the mouse pointer, the screen's size, the clipboard.

use super::Viewer;
use crate::term::{Size, Terminal};

const CURSOR: i32 = -239;
const DESKTOP_SIZE: i32 = -223;
const EXTENDED_DESKTOP_SIZE: i32 = -308;

/// Everything, whatever the viewer has.
const WHOLE: [u8; 10] = [3, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];

/// A viewer past its handshake, which said this of itself.
fn viewer(terminal: &Terminal, encodings: &[i32], format: Option<[u8; 16]>) -> Viewer {
    let mut viewer = Viewer::new(None);
    let mut said = b"RFB 003.008\n\x01\x01".to_vec();
    if let Some(format) = format {
        said.extend([0; 4]);
        said.extend(format);
    }
    said.extend([2, 0, 0, u8::try_from(encodings.len()).unwrap()]);
    said.extend(encodings.iter().flat_map(|number| number.to_be_bytes()));
    viewer.received(&said, terminal, |_| ()).unwrap();
    viewer.sent(usize::MAX);
    viewer
}

/// What comes for a request.
fn answer(viewer: &mut Viewer, terminal: &Terminal, request: &[u8]) -> Vec<u8> {
    viewer.received(request, terminal, |_| ()).unwrap();
    viewer.update(terminal);
    let answer = viewer.output().to_vec();
    viewer.sent(usize::MAX);
    answer
}

/// A rectangle's header.
fn header([x, y, width, height]: [u16; 4], encoding: i32) -> Vec<u8> {
    let numbers = [x, y, width, height].into_iter().flat_map(u16::to_be_bytes);
    numbers.chain(encoding.to_be_bytes()).collect()
}

#[test]
fn the_pointer_is_an_i_beam_in_the_viewer_s_own_pixels() {
    let terminal = Terminal::new(Size { cols: 2, rows: 1 }, 0);
    // 32 bits as offered; 16 bits, big-endian, 5-6-5.
    let small = [16, 16, 1, 1, 0, 31, 0, 63, 0, 31, 11, 5, 0, 0, 0, 0];
    for (format, white) in [(None, &[0xff, 0xff, 0xff, 0][..]), (Some(small), &[0xff, 0xff])] {
        let mut viewer = viewer(&terminal, &[0, CURSOR], format);
        let seen = answer(&mut viewer, &terminal, &WHOLE);
        assert_eq!(seen[..4], [0, 0, 0, 2], "the pointer and the screen");
        // 8x16, pointing from its middle.
        let mut expected = header([4, 8, 8, 16], CURSOR);
        expected.extend(white.repeat(8 * 16));
        // The mask: a beam with a serif at each end, its other pixels shine through.
        expected.extend([0b0001_0100]);
        expected.extend([0b0000_1000; 14]);
        expected.extend([0b0001_0100]);
        assert_eq!(seen[4..4 + expected.len()], expected);
        let again = answer(&mut viewer, &terminal, &WHOLE);
        assert_eq!(again[..16], [&[0, 0, 0, 1][..], &header([0, 0, 16, 16], 0)].concat(), "only once");
    }
    let mut without = viewer(&terminal, &[0], None);
    assert_eq!(answer(&mut without, &terminal, &WHOLE)[..4], [0, 0, 0, 1], "who cannot show it gets none");
}

#[test]
fn a_viewer_is_told_of_a_new_size_before_it_gets_pictures_of_it() {
    let mut terminal = Terminal::new(Size { cols: 10, rows: 3 }, 0);
    let mut viewers = [&[0, DESKTOP_SIZE][..], &[0, EXTENDED_DESKTOP_SIZE], &[0]]
        .map(|encodings| viewer(&terminal, encodings, None));
    let [plain, extended, none] = &mut viewers;
    answer(plain, &terminal, &WHOLE);
    // It is told at once that sizes can be set: one screen, of this size.
    let screen = |width: u16, height: u16| {
        let mut screen = vec![1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        screen.extend([width.to_be_bytes(), height.to_be_bytes()].concat());
        screen.extend([0; 4]);
        screen
    };
    let first = answer(extended, &terminal, &WHOLE);
    let told = [&[0, 0, 0, 2][..], &header([0, 0, 80, 48], EXTENDED_DESKTOP_SIZE), &screen(80, 48)].concat();
    assert_eq!(first[..told.len()], told);
    answer(none, &terminal, &WHOLE);

    terminal.resize(Size { cols: 12, rows: 2 });
    let pictures = header([0, 0, 96, 32], 0);
    let told = [&[0, 0, 0, 2][..], &header([0, 0, 96, 32], DESKTOP_SIZE), &pictures].concat();
    let seen = answer(plain, &terminal, &WHOLE);
    assert_eq!(seen[..told.len()], told);
    assert_eq!(seen.len(), told.len() + 96 * 32 * 4);
    let told =
        [&[0, 0, 0, 2][..], &header([0, 0, 96, 32], EXTENDED_DESKTOP_SIZE), &screen(96, 32), &pictures]
            .concat();
    assert_eq!(answer(extended, &terminal, &WHOLE)[..told.len()], told);
    // Who knows neither sees what of the new screen fits its window.
    let seen = answer(none, &terminal, &WHOLE);
    assert_eq!(seen[..16], [&[0, 0, 0, 1][..], &header([0, 0, 80, 32], 0)].concat());
}

#[test]
fn a_viewer_that_asks_for_a_size_is_answered() {
    let mut terminal = Terminal::new(Size { cols: 10, rows: 3 }, 0);
    let mut viewer = viewer(&terminal, &[0, EXTENDED_DESKTOP_SIZE], None);
    answer(&mut viewer, &terminal, &WHOLE);
    let mut asked = None;
    // 165x40 pixels, one screen.
    let mut message = vec![251, 0, 0, 165, 0, 40, 1, 0];
    message.extend([0; 16]);
    viewer.received(&message, &terminal, |act| asked = Some(act)).unwrap();
    let Some(super::Input::Resize(size)) = asked else { panic!("{asked:?}") };
    assert_eq!(size, Size { cols: 20, rows: 2 });
    terminal.resize(size);
    let seen = answer(&mut viewer, &terminal, &WHOLE);
    // Reason 1: a client, this one, asked.
    assert_eq!(seen[4..16], header([1, 0, 160, 32], EXTENDED_DESKTOP_SIZE));
}

#[test]
fn what_a_viewer_marked_comes_when_it_has_taken_what_came_before_and_never_piles_up() {
    let mut terminal = Terminal::new(Size { cols: 10, rows: 2 }, 0);
    terminal.feed(b"one\r\ntwo");
    let mut viewer = viewer(&terminal, &[0], None);
    let drag = |row: u8, to: u8| {
        let y = row * 16 + 4;
        [[5, 1, 0, 0, 0, y], [5, 1, 0, to * 8, 0, y], [5, 0, 0, to * 8, 0, y]].concat()
    };
    viewer.received(&drag(0, 2), &terminal, |_| ()).unwrap();
    assert_eq!(viewer.output(), b"\x03\0\0\0\0\0\0\x03one");
    // It takes nothing and marks much.
    for _ in 0..1000 {
        viewer.received(&drag(1, 2), &terminal, |_| ()).unwrap();
        viewer.received(&drag(1, 1), &terminal, |_| ()).unwrap();
    }
    assert_eq!(viewer.output(), b"\x03\0\0\0\0\0\0\x03one");
    viewer.sent(usize::MAX);
    assert_eq!(viewer.output(), b"\x03\0\0\0\0\0\0\x02tw", "the last");
    viewer.sent(usize::MAX);
    assert!(viewer.output().is_empty());
}
