//! Control sequences: `ESC [`, parameters, a final byte.

use super::Size;
use super::cell::{Attrs, Color, Style};
use super::parser::Csi;
use super::screen::{Font, Screen};

/// "A VT102", as the original says.
pub(super) const DEVICE_ATTRIBUTES: &str = "\x1b[?6c";

/// Obeys a sequence; one that is not known does nothing.
pub(super) fn obey(screen: &mut Screen, csi: &Csi) {
    match (csi.private, csi.intermediate) {
        (0, 0) => plain(screen, csi),
        (b'?', 0) => private(screen, csi),
        (b'>', 0) if csi.last == b'c' && csi.get(0) == 0 => screen.reply("\x1b[>1;0;0c"),
        (0, b'!') if csi.last == b'p' => screen.soft_reset(),
        _ => {}
    }
}

fn plain(screen: &mut Screen, csi: &Csi) {
    let count = csi.at_least_one(0);
    let (row, col) = (screen.cursor.row, screen.cursor.col);
    match csi.last {
        b'@' => edit_row(screen, |row, col, style, cols| row.insert(col, count, style, cols)),
        b'A' => screen.up(count, col),
        b'B' | b'e' => screen.down(count, col),
        b'C' | b'a' => screen.go(row, col + count),
        b'D' => screen.go(row, col.saturating_sub(count)),
        b'E' => screen.down(count, 0),
        b'F' => screen.up(count, 0),
        b'G' | b'`' => screen.go(row, count - 1),
        b'H' | b'f' => screen.go_addressed(count - 1, csi.at_least_one(1) - 1),
        b'I' => screen.forward_tab(count),
        b'J' => erase_display(screen, csi.get(0)),
        b'K' => erase_line(screen, csi.get(0)),
        b'L' => insert_lines(screen, count),
        b'M' => delete_lines(screen, count),
        b'P' => edit_row(screen, |row, col, style, cols| row.delete(col, count, style, cols)),
        b'S' => screen.scroll_up(count),
        b'T' if csi.all().len() == 1 => screen.scroll_down(count),
        b'X' => {
            edit_row(screen, |row, col, style, cols| row.erase(col, (col + count).min(cols), style, cols));
        }
        b'Z' => screen.back_tab(count),
        b'b' => screen.repeat_last(count),
        b'c' if csi.get(0) == 0 => screen.reply(DEVICE_ATTRIBUTES),
        b'd' => screen.go_addressed(count - 1, col),
        b'g' => match csi.get(0) {
            0 => screen.tabs.set(col, false),
            3 => screen.tabs.clear(),
            _ => {}
        },
        b'h' => set_modes(screen, csi, true),
        b'l' => set_modes(screen, csi, false),
        b'm' => select_graphics(screen, csi),
        b'n' => report(screen, csi, ""),
        b'r' => set_margins(screen, csi),
        b's' => screen.save_cursor(),
        b't' => window(screen, csi),
        b'u' => screen.restore_cursor(),
        b'x' if csi.get(0) <= 1 => screen.reply(&format!("\x1b[{};1;1;120;120;1;0x", 2 + csi.get(0))),
        _ => {}
    }
}

fn private(screen: &mut Screen, csi: &Csi) {
    match csi.last {
        // Erasing only what is not protected: nothing is.
        b'J' => erase_display(screen, csi.get(0)),
        b'K' => erase_line(screen, csi.get(0)),
        b'h' => csi.all().iter().for_each(|mode| set_private_mode(screen, *mode, true)),
        b'l' => csi.all().iter().for_each(|mode| set_private_mode(screen, *mode, false)),
        b'n' => report(screen, csi, "?"),
        _ => {}
    }
}

/// Changes the cursor's row from the cursor on.
fn edit_row(screen: &mut Screen, edit: impl FnOnce(&mut super::grid::Row, usize, Style, usize)) {
    let (col, style, cols) = (screen.cursor.col, screen.erased(), screen.size.cols);
    screen.cursor.wrap_pending = false;
    edit(screen.row_mut(), col, style, cols);
}

fn erase_line(screen: &mut Screen, which: u16) {
    edit_row(screen, |row, col, style, cols| match which {
        0 => row.erase(col, cols, style, cols),
        1 => row.erase(0, col + 1, style, cols),
        2 => row.erase(0, cols, style, cols),
        _ => {}
    });
}

fn erase_display(screen: &mut Screen, which: u16) {
    let (row, rows, style) = (screen.cursor.row, screen.size.rows, screen.erased());
    match which {
        0 => {
            erase_line(screen, 0);
            screen.grid_mut().erase(row + 1..rows, style);
        }
        1 => {
            screen.grid_mut().erase(0..row, style);
            erase_line(screen, 1);
        }
        2 => {
            screen.cursor.wrap_pending = false;
            screen.grid_mut().erase(0..rows, style);
        }
        3 => screen.grid_mut().forget_history(),
        _ => {}
    }
}

fn insert_lines(screen: &mut Screen, count: usize) {
    let (row, bottom, style) = (screen.cursor.row, screen.bottom, screen.erased());
    if (screen.top..bottom).contains(&row) {
        screen.grid_mut().scroll_down(row, bottom, count, style);
        screen.go(row, 0);
    }
}

fn delete_lines(screen: &mut Screen, count: usize) {
    let (row, bottom, style) = (screen.cursor.row, screen.bottom, screen.erased());
    if (screen.top..bottom).contains(&row) {
        screen.grid_mut().delete_rows(row, bottom, count, style);
        screen.go(row, 0);
    }
}

fn set_margins(screen: &mut Screen, csi: &Csi) {
    let top = csi.at_least_one(0) - 1;
    let bottom = match csi.get(1) {
        0 => screen.size.rows,
        bottom => usize::from(bottom).min(screen.size.rows),
    };
    if top + 1 < bottom {
        (screen.top, screen.bottom) = (top, bottom);
        screen.go_addressed(0, 0);
    }
}

fn set_modes(screen: &mut Screen, csi: &Csi, on: bool) {
    for mode in csi.all() {
        match mode {
            4 => screen.modes.insert = on,
            20 => screen.modes.newline = on,
            _ => {}
        }
    }
}

fn set_private_mode(screen: &mut Screen, mode: u16, on: bool) {
    match mode {
        1 => screen.modes.cursor_keys = on,
        3 if screen.modes.allow_wide => {
            let cols = if on { 132 } else { 80 };
            screen.resize(Size { cols, ..screen.size });
            erase_display(screen, 2);
            screen.go(0, 0);
        }
        5 => screen.modes.reverse = on,
        6 => {
            screen.cursor.origin = on;
            screen.go_addressed(0, 0);
        }
        7 => screen.modes.wrap = on,
        25 => screen.modes.cursor_visible = on,
        40 => screen.modes.allow_wide = on,
        47 | 1047 => screen.use_alternate(on),
        1048 if on => screen.save_cursor(),
        1048 => screen.restore_cursor(),
        1049 if on => {
            if screen.alternate.is_none() {
                screen.save_cursor();
                screen.use_alternate(true);
            }
            let style = screen.erased();
            let rows = screen.size.rows;
            screen.grid_mut().erase(0..rows, style);
        }
        1049 => {
            screen.use_alternate(false);
            screen.restore_cursor();
        }
        2004 => screen.modes.bracketed_paste = on,
        _ => {}
    }
}

fn report(screen: &mut Screen, csi: &Csi, mark: &str) {
    match csi.get(0) {
        5 if mark.is_empty() => screen.reply("\x1b[0n"),
        6 => {
            let top = if screen.cursor.origin { screen.top } else { 0 };
            let row = screen.cursor.row.saturating_sub(top) + 1;
            screen.reply(&format!("\x1b[{mark}{row};{}R", screen.cursor.col + 1));
        }
        _ => {}
    }
}

/// Window operations: the size only. Titles are never reported: a guest's program could type with them.
fn window(screen: &mut Screen, csi: &Csi) {
    match csi.get(0) {
        8 => {
            let or = |value: u16, now: usize| if value == 0 { now } else { usize::from(value) };
            let size =
                Size { rows: or(csi.get(1), screen.size.rows), cols: or(csi.get(2), screen.size.cols) };
            screen.resize(size.clamped());
        }
        18 => screen.reply(&format!("\x1b[8;{};{}t", screen.size.rows, screen.size.cols)),
        _ => {}
    }
}

fn select_graphics(screen: &mut Screen, csi: &Csi) {
    let params = csi.all();
    let mut at = 0;
    while at < params.len() {
        at += match params[at] {
            which @ (38 | 48) => {
                let (color, taken) = extended_color(csi, at);
                if let Some(color) = color {
                    let style = &mut screen.cursor.style;
                    *(if which == 38 { &mut style.fg } else { &mut style.bg }) = color;
                }
                taken
            }
            param => {
                graphic(screen, param, csi.joined(at + 1).then(|| csi.get(at + 1)));
                // What is joined by colons refines this parameter.
                1 + (at + 1..params.len()).take_while(|next| csi.joined(*next)).count()
            }
        };
    }
}

/// The colour of `38;5;N`, `38;2;R;G;B` and the forms with colons; how many parameters it took.
fn extended_color(csi: &Csi, at: usize) -> (Option<Color>, usize) {
    let joined = (at + 1..csi.all().len()).take_while(|next| csi.joined(*next)).count();
    let byte = |n: usize| u8::try_from(csi.get(n)).ok();
    let rgb = |n: usize| Some(Color::rgb(u32::from_be_bytes([0, byte(n)?, byte(n + 1)?, byte(n + 2)?])));
    match (csi.get(at + 1), joined) {
        (5, 0) => (byte(at + 2).map(Color::indexed), 3),
        (2, 0) => (rgb(at + 2), 5),
        (5, _) => (byte(at + 2).map(Color::indexed), 1 + joined),
        // `38:2::R:G:B` has a colour space, `38:2:R:G:B` has none.
        (2, 4) => (rgb(at + 2), 1 + joined),
        (2, _) => (rgb(at + 3), 1 + joined),
        _ => (None, 1 + joined.max(1)),
    }
}

fn graphic(screen: &mut Screen, param: u16, detail: Option<u16>) {
    let style = &mut screen.cursor.style;
    let indexed = |first: u16, base: u8| Color::indexed(base + u8::try_from(param - first).unwrap_or(0));
    let mut set = |attrs: Attrs| style.attrs = style.attrs.with(attrs);
    match param {
        0 => {
            *style = Style::default();
            screen.cursor.font = Font::Normal;
        }
        1 => set(Attrs::BOLD),
        2 => set(Attrs::DIM),
        3 => set(Attrs::ITALIC),
        4 if detail == Some(0) => style.attrs = style.attrs.without(Attrs::UNDERLINE),
        4 | 21 => set(Attrs::UNDERLINE),
        5 | 6 => set(Attrs::BLINK),
        7 => set(Attrs::INVERSE),
        8 => set(Attrs::INVISIBLE),
        9 => set(Attrs::STRIKE),
        10 => screen.cursor.font = Font::Normal,
        11 => screen.cursor.font = Font::Pc,
        12 => screen.cursor.font = Font::PcUpper,
        22 => style.attrs = style.attrs.without(Attrs::BOLD.with(Attrs::DIM)),
        23 => style.attrs = style.attrs.without(Attrs::ITALIC),
        24 => style.attrs = style.attrs.without(Attrs::UNDERLINE),
        25 => style.attrs = style.attrs.without(Attrs::BLINK),
        27 => style.attrs = style.attrs.without(Attrs::INVERSE),
        28 => style.attrs = style.attrs.without(Attrs::INVISIBLE),
        29 => style.attrs = style.attrs.without(Attrs::STRIKE),
        30..=37 => style.fg = indexed(30, 0),
        39 => style.fg = Color::DEFAULT,
        40..=47 => style.bg = indexed(40, 0),
        49 => style.bg = Color::DEFAULT,
        90..=97 => style.fg = indexed(90, 8),
        100..=107 => style.bg = indexed(100, 8),
        _ => {}
    }
}
