use super::*;

/// A glyph as text: one line for each row that has a pixel.
fn picture(glyph: &Glyph) -> Vec<String> {
    let row =
        |row: &u16| (0..16).map(|x| if row >> (15 - x) & 1 == 1 { '#' } else { '.' }).collect::<String>();
    glyph.iter().filter(|row| **row != 0).map(row).collect()
}

#[test]
fn letters_look_like_themselves() {
    let expected =
        ["######..........", "#...............", "#...............", "#...............", "#####..........."];
    let f = picture(&glyph('F', false));
    assert_eq!(f.iter().map(|row| row.trim_start_matches('.').len()).max(), Some(15));
    for (row, expected) in f.iter().zip(expected) {
        assert_eq!(row.trim_matches('.'), expected.trim_matches('.'), "{f:#?}");
    }
    assert!(picture(&glyph(' ', false)).is_empty());
}

#[test]
fn lines_join_from_cell_to_cell() {
    let horizontal = glyph('─', false);
    assert!(horizontal.contains(&0xff00), "all eight pixels: {horizontal:x?}");
    assert!(glyph('│', false).iter().all(|row| *row != 0 && *row == glyph('│', false)[0]));
    assert_eq!(glyph('█', false), [0xff00; CELL_HEIGHT]);
}

#[test]
fn the_scripts_an_installer_speaks_are_there() {
    let texts = [
        "Ångström",
        "Жуковский",
        "Ελλάδα",
        "中文安裝",
        "日本語インストール",
        "한국어",
        "العربية",
        "עברית",
        "ไทย",
        "देवनागरी",
        "→✓●★€",
    ];
    for text in texts {
        for c in text.chars() {
            assert!(find(c).is_some(), "{c} of {text}");
        }
    }
    assert_ne!(glyph('中', true), MISSING);
    assert_eq!(glyph('\u{1f600}', true), MISSING, "beyond the basic plane");
}

#[test]
fn a_wide_picture_can_be_one_cell_and_a_narrow_two() {
    assert!(glyph('中', false).iter().all(|row| row.to_be_bytes()[1] == 0));
    assert!(glyph('中', false).iter().any(|row| *row != 0));
    assert_eq!(glyph('F', true), glyph('F', false).map(|row| row >> 4));
    assert_eq!(squeeze(0b1000_0001_0011_0000), 0b1001_0100_0000_0000);
}

#[test]
fn marks_are_drawn_over_letters() {
    let plain = glyph('e', false);
    let accented = overlay(plain, '\u{301}', false);
    assert_ne!(accented, plain);
    assert!(plain.iter().zip(accented).all(|(plain, accented)| plain & accented == *plain));
    assert_eq!(overlay(plain, '\u{1d165}', false), plain, "a mark that is not in the font");
}

#[test]
fn every_run_of_the_font_is_whole() {
    for c in (0..=u32::from(char::MAX)).filter_map(char::from_u32) {
        if let Some((rows, stride)) = find(c) {
            assert_eq!(rows.len(), stride * CELL_HEIGHT);
        }
    }
}
