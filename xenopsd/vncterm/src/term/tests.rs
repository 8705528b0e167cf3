//! What a guest prints against what the screen shows; and that nothing it prints breaks the terminal.

use super::*;
use proptest::prelude::*;

fn terminal(cols: usize, rows: usize) -> Terminal {
    Terminal::new(Size { cols, rows }, 4)
}

/// The screen's rows after `output`.
fn shown(cols: usize, rows: usize, output: &str) -> Vec<String> {
    let mut terminal = terminal(cols, rows);
    terminal.feed(output.as_bytes());
    screen(&terminal)
}

fn screen(terminal: &Terminal) -> Vec<String> {
    (0..terminal.size().rows).map(|row| terminal.row(row).text()).collect()
}

#[test]
fn text_wraps_at_the_last_column_and_not_before_it_must() {
    assert_eq!(shown(5, 3, "abcde\r\nfg"), ["abcde", "fg", ""]);
    assert_eq!(shown(5, 3, "abcdefg"), ["abcde", "fg", ""]);
    assert_eq!(shown(5, 2, "\x1b[?7labcdefg"), ["abcdg", ""]);
    assert_eq!(shown(5, 2, "abcde\x08X"), ["abcXe", ""]);
}

#[test]
fn rows_that_leave_the_screen_can_be_scrolled_back_to() {
    let mut terminal = terminal(5, 2);
    terminal.feed(b"1\r\n2\r\n3\r\n4\r\n5\r\n6\r\n7\r\n8");
    assert_eq!(screen(&terminal), ["7", "8"]);
    assert_eq!(terminal.history(), 4, "the limit");
    assert_eq!(terminal.viewed(0, 4).text(), "3");
    assert_eq!(terminal.viewed(0, 99).text(), "3");
    assert_eq!(terminal.text(), "3\n4\n5\n6\n7\n8\n");
    terminal.feed(b"\x1b[3J");
    assert_eq!((terminal.history(), terminal.text().as_str()), (0, "7\n8\n"));
}

#[test]
fn margins_keep_what_is_outside_them() {
    let region = "a\r\nb\r\nc\r\nd\x1b[2;3r";
    assert_eq!(shown(3, 4, &format!("{region}\x1b[3;1H\n")), ["a", "c", "", "d"]);
    assert_eq!(shown(3, 4, &format!("{region}\x1b[2;1H\x1bM")), ["a", "", "b", "d"]);
    assert_eq!(shown(3, 4, &format!("{region}\x1b[2;1H\x1b[L")), ["a", "", "b", "d"]);
    assert_eq!(shown(3, 4, &format!("{region}\x1b[2;1H\x1b[M")), ["a", "c", "", "d"]);
    assert_eq!(shown(3, 4, &format!("{region}\x1b[1;1H\x1b[M")), ["a", "b", "c", "d"], "outside: nothing");
    // Origin mode counts from the top margin and does not leave the bottom one.
    assert_eq!(shown(3, 4, &format!("{region}\x1b[?6h\x1b[9;1HX")), ["a", "b", "X", "d"]);
    // The top part of the screen scrolls into the scroll-back, the rest stays.
    let mut terminal = terminal(3, 4);
    terminal.feed(b"a\r\nb\r\nc\r\nd\x1b[1;3r\x1b[3;1H\n\n\n\n\n\n");
    assert_eq!(screen(&terminal), ["", "", "", "d"]);
    assert_eq!(terminal.history(), 4);
}

#[test]
fn cells_are_inserted_deleted_and_erased() {
    assert_eq!(shown(6, 1, "abcdef\x1b[1;3H\x1b[2@"), ["ab  cd"]);
    assert_eq!(shown(6, 1, "abcdef\x1b[1;3H\x1b[2P"), ["abef"]);
    assert_eq!(shown(6, 1, "abcdef\x1b[1;3H\x1b[2X"), ["ab  ef"]);
    assert_eq!(shown(6, 1, "abcdef\x1b[1;3H\x1b[K"), ["ab"]);
    assert_eq!(shown(6, 1, "abcdef\x1b[1;3H\x1b[1K"), ["   def"]);
    assert_eq!(shown(6, 1, "abc\x1b[1;1H\x1b[4hXY\x1b[4lZ"), ["XYZbc"]);
    assert_eq!(shown(6, 1, "a\x1b[3b"), ["aaaa"]);
}

#[test]
fn erased_cells_keep_the_background() {
    let mut terminal = terminal(4, 1);
    terminal.feed(b"\x1b[44m\x1b[K\x1b[0m");
    assert_eq!(terminal.row(0).cell(3).style().bg.kind(), ColorKind::Indexed(4));
    terminal.feed(b"\r\x1b[P");
    assert_eq!(terminal.row(0).cell(3).style().bg.kind(), ColorKind::Default);
}

#[test]
fn wide_characters_take_two_cells_and_never_half_of_them() {
    assert_eq!(shown(4, 2, "a漢b"), ["a漢b", ""]);
    assert_eq!(shown(4, 2, "abc漢"), ["abc", "漢"]);
    assert_eq!(shown(4, 1, "漢字\x1b[1;2HX"), [" X字"]);
    assert_eq!(shown(4, 1, "漢字\x1b[1;3HX"), ["漢X"]);
    assert_eq!(shown(4, 1, "漢字\x1b[1;1H\x1b[P"), [" 字"]);
    assert_eq!(shown(4, 1, "漢字\x1b[1;1H\x1b[@"), [" 漢"]);
    assert_eq!(shown(1, 1, "漢"), ["漢"]);
}

#[test]
fn combining_marks_join_the_character_before() {
    assert_eq!(shown(4, 1, "e\u{301}x"), ["e\u{301}x"]);
    assert_eq!(shown(2, 1, "xe\u{301}"), ["xe\u{301}"]);
    assert_eq!(shown(4, 1, "漢\u{301}"), ["漢\u{301}"]);
    assert_eq!(shown(4, 1, "e\u{301}\u{302}\u{303}"), ["e\u{301}\u{302}"], "the third is dropped");
    assert_eq!(shown(4, 1, "\u{301}a\u{200b}b"), ["ab"], "nothing to join");
}

#[test]
fn lines_are_drawn() {
    assert_eq!(shown(9, 1, "\x1b(0lqk\x1b(Bq"), ["┌─┐q"]);
    assert_eq!(shown(9, 1, "\x1b)0\x0elqk\x0fq"), ["┌─┐q"]);
    assert_eq!(shown(9, 1, "\x1b[12mD\x1b[10mD"), ["─D"]);
    let mut terminal = terminal(9, 1);
    terminal.feed(b"\x1b%@\x1b(U\xc4\xb3\x1b(B\xe4\x1b%G\xc3\xa4");
    assert_eq!(screen(&terminal), ["─│ää"]);
}

#[test]
fn bad_utf8_is_replaced_and_loses_nothing_after_it() {
    let mut terminal = terminal(20, 1);
    terminal.feed(b"a\xc3(\xff\xe2\x82b\xed\xa0\x80\xc0\xafz");
    assert_eq!(screen(&terminal), ["a\u{fffd}(\u{fffd}\u{fffd}b\u{fffd}\u{fffd}\u{fffd}z"]);
}

#[test]
fn the_alternate_screen_leaves_the_other_alone() {
    let mut terminal = terminal(5, 2);
    terminal.feed(b"one\r\ntwo\x1b[?1049h\x1b[Hvim\r\n1\r\n2\r\n3");
    assert_eq!(screen(&terminal), ["2", "3"]);
    assert_eq!(terminal.history(), 0);
    terminal.feed(b"\x1b[?1049l!");
    assert_eq!(screen(&terminal), ["one", "two!"]);
}

#[test]
fn what_is_asked_is_answered_and_no_more_than_is_bounded() {
    let mut terminal = terminal(9, 9);
    terminal.feed(b"\x1b[c\x1b[5n\x1b[3;4H\x1b[6n\x1b[?6n\x1b[x\x1b[>c\x1bZ\x1b[18t\x1b[21t\x1b[?1;2c");
    let expected = "\x1b[?6c\x1b[0n\x1b[3;4R\x1b[?3;4R\x1b[2;1;1;120;120;1;0x\x1b[>1;0;0c\x1b[?6c\x1b[8;9;9t";
    assert_eq!(String::from_utf8(terminal.take_replies()).unwrap(), expected);
    terminal.feed(&b"\x1b[c".repeat(10_000));
    assert!(terminal.take_replies().len() <= 4096);
    terminal.feed(b"\x07\x07");
    assert_eq!((terminal.take_bells(), terminal.take_bells()), (2, 0));
}

#[test]
fn colours_are_read() {
    let style = |output: &str| {
        let mut terminal = terminal(9, 1);
        terminal.feed(output.as_bytes());
        terminal.feed(b"x");
        terminal.row(0).cell(0).style()
    };
    assert_eq!(style("\x1b[31;42m").fg, Color::indexed(1));
    assert_eq!(style("\x1b[31;42m").bg, Color::indexed(2));
    assert_eq!(style("\x1b[95;106m").fg, Color::indexed(13));
    assert_eq!(style("\x1b[38;5;200;1m").fg, Color::indexed(200));
    assert_eq!(style("\x1b[38;2;1;2;3;48;5;7m").fg, Color::rgb(0x01_0203));
    assert_eq!(style("\x1b[38;2;1;2;3;48;5;7m").bg, Color::indexed(7));
    for form in ["\x1b[38:2::1:2:3;1m", "\x1b[38:2:1:2:3;1m"] {
        assert_eq!((style(form).fg, style(form).attrs), (Color::rgb(0x01_0203), Attrs::BOLD), "{form:?}");
    }
    assert_eq!(style("\x1b[4:0;7m").attrs, Attrs::INVERSE);
    assert_eq!(style("\x1b[4:3m").attrs, Attrs::UNDERLINE);
    assert_eq!(style("\x1b[1;4;7m\x1b[22;24;27m"), Style::default());
    assert_eq!(style("\x1b[38;5;999m\x1b[38m\x1b[38;2;300;0;0m").fg, Color::DEFAULT);
}

#[test]
fn the_palette_is_the_guests() {
    let mut terminal = terminal(9, 1);
    terminal.feed(b"\x1b]P1102030ok\x1b]4;2;rgb:ff/00/ff;3;#010203\x1b\\!");
    assert_eq!(screen(&terminal), ["ok!"]);
    assert_eq!(
        [1, 2, 3, 4].map(|n| terminal.palette().entry(n)),
        [0x10_2030, 0xff_00ff, 0x01_0203, 0x00_00aa]
    );
    terminal.feed(b"\x1b]104;2\x07");
    assert_eq!([1, 2].map(|n| terminal.palette().entry(n)), [0x10_2030, 0x00_aa00]);
    terminal.feed(b"\x1b]R");
    assert_eq!(terminal.palette(), &Palette::default());
    assert_eq!(terminal.palette().entry(196), 0xff_0000);
    assert_eq!(terminal.palette().entry(255), 0xee_eeee);
}

#[test]
fn strings_are_swallowed_and_titles_kept() {
    let mut terminal = terminal(9, 1);
    terminal.feed(b"a\x1b]0;my title\x07b\x1bPq#0\x1b\\c\x1b_x\x07d\x1b^no\x18e");
    assert_eq!(screen(&terminal), ["abcde"]);
    assert_eq!(terminal.title(), "my title");
    terminal.feed(b"\x1b]2;");
    terminal.feed(&b"t".repeat(1 << 20));
    terminal.feed(b"\x07");
    assert_eq!(terminal.title().len(), 128);
}

#[test]
fn a_size_that_changes_keeps_the_text_at_the_cursor() {
    let mut terminal = terminal(5, 4);
    terminal.feed(b"1\r\n2\r\n3\r\n4");
    terminal.resize(Size { cols: 5, rows: 2 });
    assert_eq!((screen(&terminal), terminal.cursor()), (vec!["3".into(), "4".into()], (1, 1)));
    terminal.resize(Size { cols: 3, rows: 4 });
    assert_eq!((screen(&terminal)[0].as_str(), terminal.cursor()), ("1", (3, 1)));
    terminal.resize(Size { cols: 0, rows: 9999 });
    assert_eq!(terminal.size(), Size { cols: 1, rows: MAX_ROWS });
    terminal.feed(b"\x1b[?3h");
    assert_eq!(terminal.size().cols, 1, "not allowed");
    terminal.feed(b"\x1b[?40h\x1b[?3h");
    assert_eq!(terminal.size().cols, 132);
    terminal.feed(b"\x1b[8;65535;65535t");
    assert_eq!(terminal.size(), Size { cols: MAX_COLS, rows: MAX_ROWS });
}

#[test]
fn a_saved_terminal_is_the_same_when_restored() {
    let mut terminal = terminal(10, 4);
    terminal.feed("1\r\n2\r\n3\r\n4\r\n5\x1b[1;31me\u{301}漢\x1b]P1102030\x1b]0;t\x07\x1b)0\x0e".as_bytes());
    terminal.feed(b"\x1b[2;3r\x1b[?2004h\x1b[3g\x1b[4;4H\x1bH\x1b7\x1b[?1049h\x1b[2;2Halt");
    let saved = terminal.save();
    let mut restored = Terminal::restore(&saved).unwrap();
    assert_eq!(restored.save(), saved);
    for more in ["x\tq\r\n", "\x1b[?1049l", "\x1b8qq\x1b[m\n\n\n"] {
        terminal.feed(more.as_bytes());
        restored.feed(more.as_bytes());
        assert_eq!(restored.text(), terminal.text());
        assert_eq!(restored.cursor(), terminal.cursor());
    }
}

#[test]
fn a_state_that_is_none_is_refused() {
    let state = terminal(10, 4).save();
    assert_eq!(Terminal::restore(b"").unwrap_err(), StateError::NotAState);
    assert_eq!(Terminal::restore(b"something else").unwrap_err(), StateError::NotAState);
    let mut other = state.clone();
    other[8] = 9;
    assert_eq!(Terminal::restore(&other).unwrap_err(), StateError::Version(9));
    assert_eq!(Terminal::restore(&[&state[..], b"x"].concat()).unwrap_err(), StateError::Long(1));
    for length in 8..state.len() {
        assert_eq!(Terminal::restore(&state[..length]).unwrap_err(), StateError::Short, "{length}");
    }
    let mut huge = state.clone();
    huge[12..14].copy_from_slice(&u16::MAX.to_le_bytes());
    let refused = StateError::OutOfRange { field: "columns", value: 65535 };
    assert_eq!(Terminal::restore(&huge).unwrap_err(), refused);
}

/// What a hostile guest prints: bytes, and pieces of sequences with numbers of any size.
fn output() -> impl Strategy<Value = Vec<u8>> {
    let number = prop_oneof![0..200_u32, Just(0), Just(1), Just(65_535), Just(u32::MAX)];
    let csi = (
        prop_oneof![Just(""), Just("?"), Just(">"), Just("!")],
        proptest::collection::vec(number, 0..6),
        proptest::char::range('@', '~'),
        prop_oneof![Just(";"), Just(":")],
    );
    let csi = csi.prop_map(|(private, numbers, last, joint)| {
        let numbers: Vec<_> = numbers.iter().map(u32::to_string).collect();
        format!("\x1b[{private}{}{last}", numbers.join(joint)).into_bytes()
    });
    let mode =
        (prop_oneof![Just(3), Just(6), Just(7), Just(25), Just(40), Just(47), Just(1049)], any::<bool>());
    let mode = mode.prop_map(|(mode, on)| format!("\x1b[?{mode}{}", if on { 'h' } else { 'l' }).into_bytes());
    let piece = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..20),
        "[a-z漢é\u{301}字 ]{0,30}".prop_map(String::into_bytes),
        "\x1b[()\\]#%DEM78cHPZ_^][0AUBR8]?".prop_map(String::into_bytes),
        "[\r\n\t\x08\x0e\x0f]{1,5}".prop_map(String::into_bytes),
        csi,
        mode,
    ];
    proptest::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

fn check(terminal: &Terminal) {
    let size = terminal.size();
    let (row, col) = terminal.cursor();
    assert!(row < size.rows && col < size.cols && size == size.clamped());
    assert!(terminal.history() <= 4);
    for row in 0..size.rows {
        let row = terminal.row(row);
        assert!(row.cells().len() <= size.cols);
        for (col, cell) in row.cells().iter().enumerate() {
            let next = row.cell(col + 1).attrs().has(Attrs::TAIL);
            assert_eq!(cell.attrs().has(Attrs::WIDE), next, "half a character at {col}: {row:?}");
        }
        assert!(!row.cell(0).attrs().has(Attrs::TAIL));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_that_is_printed_breaks_it(output in output(), cols in 1..40_usize, rows in 1..12_usize, cut in 0..300_usize) {
        let size = Size { cols, rows };
        let mut whole = Terminal::new(size, 4);
        whole.feed(&output);
        check(&whole);
        // The same in two pieces is the same; so is the rest after a restore.
        let (first, second) = output.split_at(cut.min(output.len()));
        let mut pieces = Terminal::new(size, 4);
        pieces.feed(first);
        check(&pieces);
        pieces.feed(second);
        prop_assert_eq!(pieces.save(), whole.save());
        let restored = Terminal::restore(&whole.save()).unwrap();
        prop_assert_eq!(restored.save(), whole.save());
        check(&restored);
    }

    #[test]
    fn no_state_breaks_it(output in output(), at in any::<prop::sample::Index>(), bytes in proptest::collection::vec(any::<u8>(), 1..8)) {
        let mut terminal = Terminal::new(Size { cols: 10, rows: 4 }, 4);
        terminal.feed(&output);
        let mut state = terminal.save();
        let at = at.index(state.len());
        let end = (at + bytes.len()).min(state.len());
        state[at..end].copy_from_slice(&bytes[..end - at]);
        if let Ok(mut restored) = Terminal::restore(&state) {
            restored.feed(&output);
        }
        let _ = Terminal::restore(&[super::save::MAGIC.as_slice(), &1_u32.to_le_bytes(), &bytes].concat());
    }
}

#[test]
fn a_sequence_with_as_many_parameters_as_there_can_be_is_obeyed() {
    let mut terminal = terminal(4, 1);
    let most = ";".repeat(30);
    terminal.feed(format!("\x1b[0{most}4mx\x1b[{most};m").as_bytes());
    assert_eq!(screen(&terminal), ["x"]);
    // The last one of all may refine nothing: there is none after it.
    terminal.feed(format!("\x1b[{most};4:3my").as_bytes());
    assert_eq!(screen(&terminal), ["xy"]);
}
