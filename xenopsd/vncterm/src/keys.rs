//! Keysyms of viewers (X11's) to what a terminal's keyboard sends, `TERM=linux`.

use crate::term::Modes;

const BACKSPACE: u32 = 0xff08;
const INSERT: u32 = 0xff63;
const PAGE_UP: u32 = 0xff55;
const PAGE_DOWN: u32 = 0xff56;
const UP: u32 = 0xff52;
const DOWN: u32 = 0xff54;

/// Which modifiers a viewer holds down.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Keyboard {
    shift: bool,
    control: bool,
    alt: bool,
}

impl Keyboard {
    /// Notes a modifier; the bytes of any other key that goes down.
    pub(crate) fn key(&mut self, down: bool, keysym: u32, modes: Modes) -> Vec<u8> {
        match keysym {
            0xffe1 | 0xffe2 => self.shift = down,
            0xffe3 | 0xffe4 => self.control = down,
            0xffe7..=0xffea => self.alt = down,
            _ if down => return self.pressed(keysym, modes),
            _ => {}
        }
        Vec::new()
    }

    /// Rows to scroll by for Ctrl with an arrow (1), half pages for Shift with a page key (2), upward positive.
    pub(crate) fn scrolls(self, down: bool, keysym: u32) -> Option<isize> {
        match keysym {
            PAGE_UP if self.shift && down => Some(2),
            PAGE_DOWN if self.shift && down => Some(-2),
            UP if self.control && down => Some(1),
            DOWN if self.control && down => Some(-1),
            _ => None,
        }
    }

    /// Shift-Insert.
    pub(crate) fn pastes(self, down: bool, keysym: u32) -> bool {
        down && self.shift && keysym == INSERT
    }

    fn pressed(self, keysym: u32, modes: Modes) -> Vec<u8> {
        let mut bytes = special(keysym, modes).unwrap_or_else(|| self.text(keysym));
        if self.alt && !bytes.is_empty() {
            bytes.insert(0, 0x1b);
        }
        bytes
    }

    fn text(self, keysym: u32) -> Vec<u8> {
        let Some(c) = character(keysym) else { return Vec::new() };
        if self.control
            && let Some(control) = control(c)
        {
            return vec![control];
        }
        c.to_string().into_bytes()
    }
}

/// What Ctrl makes of a character.
fn control(c: char) -> Option<u8> {
    let byte = u8::try_from(u32::from(c)).ok()?;
    match byte {
        b' ' | b'2' => Some(0),
        b'@'..=b'_' | b'a'..=b'z' => Some(byte & 0x1f),
        b'3'..=b'7' => Some(byte - b'3' + 0x1b),
        b'8' | b'?' => Some(0x7f),
        b'/' => Some(0x1f),
        _ => None,
    }
}

/// Keys that are no characters.
fn special(keysym: u32, modes: Modes) -> Option<Vec<u8>> {
    let arrow = |last: char| format!("\x1b{}{last}", if modes.cursor_keys { 'O' } else { '[' });
    let text = match keysym {
        BACKSPACE => "\x7f".into(),
        0xff09 | 0xff89 => "\t".into(),
        0xfe20 => "\x1b[Z".into(),
        0xff0d | 0xff8d => if modes.newline { "\r\n" } else { "\r" }.into(),
        0xff0a => "\n".into(),
        0xff1b => "\x1b".into(),
        0xffff | 0xff9f => "\x1b[3~".into(),
        0xff50 | 0xff95 => "\x1b[1~".into(),
        0xff57 | 0xff9c => "\x1b[4~".into(),
        INSERT | 0xff9e => "\x1b[2~".into(),
        PAGE_UP | 0xff9a => "\x1b[5~".into(),
        PAGE_DOWN | 0xff9b => "\x1b[6~".into(),
        UP | 0xff97 => arrow('A'),
        DOWN | 0xff99 => arrow('B'),
        0xff53 | 0xff98 => arrow('C'),
        0xff51 | 0xff96 => arrow('D'),
        0xffbe..=0xffc2 => format!("\x1b[[{}", char::from(b"ABCDE"[usize::try_from(keysym - 0xffbe).ok()?])),
        0xffc3..=0xffd1 => {
            // F6 to F20; the gaps are the VT220's.
            let codes = [17, 18, 19, 20, 21, 23, 24, 25, 26, 28, 29, 31, 32, 33, 34];
            format!("\x1b[{}~", codes[usize::try_from(keysym - 0xffc3).ok()?])
        }
        _ => return None,
    };
    Some(text.into_bytes())
}

/// The character of a keysym: Latin-1 is itself, others are Unicode plus a constant; the keypad's; and the older
/// keysyms of Cyrillic and Greek, in which viewers of X11 still speak.
fn character(keysym: u32) -> Option<char> {
    /// 0x6c0 to 0x6df; the capitals follow in the same order.
    const CYRILLIC: &str = "юабцдефгхийклмнопярстужвьызшэщчъ";
    match keysym {
        0x20..=0x7e | 0xa0..=0xff => char::from_u32(keysym),
        0x0100_0000..=0x0110_ffff => char::from_u32(keysym - 0x0100_0000).filter(|c| !c.is_control()),
        0xffaa..=0xffb9 => char::from_u32(keysym - 0xff80),
        0xff80 => Some(' '),
        0xffbd => Some('='),
        0x6c0..=0x6df => CYRILLIC.chars().nth(usize::try_from(keysym - 0x6c0).ok()?),
        0x6e0..=0x6ff => CYRILLIC.to_uppercase().chars().nth(usize::try_from(keysym - 0x6e0).ok()?),
        0x6a3 => Some('ё'),
        0x6b3 => Some('Ё'),
        0x7c1..=0x7d1 => char::from_u32(keysym - 0x7c1 + 0x391),
        0x7d2 => Some('Σ'),
        0x7d4..=0x7d9 => char::from_u32(keysym - 0x7d4 + 0x3a4),
        0x7e1..=0x7f1 => char::from_u32(keysym - 0x7e1 + 0x3b1),
        0x7f2 => Some('σ'),
        0x7f3 => Some('ς'),
        0x7f4..=0x7f9 => char::from_u32(keysym - 0x7f4 + 0x3c4),
        0x20ac => Some('€'),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(keys: &[(bool, u32)], modes: Modes) -> Vec<u8> {
        let mut keyboard = Keyboard::default();
        keys.iter().flat_map(|(down, keysym)| keyboard.key(*down, *keysym, modes)).collect()
    }

    fn key(keysym: u32) -> Vec<u8> {
        typed(&[(true, keysym), (false, keysym)], Modes::default())
    }

    #[test]
    fn keys_are_what_a_linux_console_sends() {
        assert_eq!(key(u32::from('a')), b"a");
        assert_eq!(key(0xff08), b"\x7f");
        assert_eq!(key(0xffbe), b"\x1b[[A");
        assert_eq!(key(0xffc3), b"\x1b[17~");
        assert_eq!(key(0xffc9), b"\x1b[24~");
        assert_eq!(key(0xff52), b"\x1b[A");
        let mut modes = Modes::default();
        (modes.cursor_keys, modes.newline) = (true, true);
        assert_eq!(typed(&[(true, 0xff52), (true, 0xff0d)], modes), b"\x1bOA\r\n");
    }

    #[test]
    fn modifiers_change_keys_while_they_are_held() {
        let c = u32::from('c');
        let keys = [(true, 0xffe3), (true, c), (false, c), (false, 0xffe3), (true, c)];
        assert_eq!(typed(&keys, Modes::default()), b"\x03c");
        assert_eq!(typed(&[(true, 0xffe9), (true, c)], Modes::default()), b"\x1bc");
        assert_eq!(typed(&[(true, 0xffe3), (true, u32::from('['))], Modes::default()), b"\x1b");
    }

    #[test]
    fn other_scripts_are_typed() {
        assert_eq!(key(0xe4), "ä".as_bytes());
        assert_eq!(key(0x0100_6f22), "漢".as_bytes());
        assert_eq!([0x6c1, 0x6e1, 0x6a3].map(key).concat(), "аАё".as_bytes());
        assert_eq!([0x7e1, 0x7f9, 0x7c1, 0x7f3].map(key).concat(), "αωΑς".as_bytes());
        assert_eq!(key(0xffb5), b"5");
        assert_eq!((key(0x0100_0007), key(0xffff_ffff), key(0)), (vec![], vec![], vec![]));
    }
}
