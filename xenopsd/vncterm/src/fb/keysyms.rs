//! Keysyms of viewers (X11's) to key codes of a guest (Linux' `input-event-codes.h`): the keys of a US keyboard.
//!
//! A viewer says which character its user meant, and presses Shift besides; the guest wants to know which key. Both agree
//! as long as the guest has the US layout, which is what it has unless it was told otherwise.

/// Keys that have two characters: without Shift and with it.
const PRINTED: [(u8, u8, u16); 21] = [
    (b'1', b'!', 2),
    (b'2', b'@', 3),
    (b'3', b'#', 4),
    (b'4', b'$', 5),
    (b'5', b'%', 6),
    (b'6', b'^', 7),
    (b'7', b'&', 8),
    (b'8', b'*', 9),
    (b'9', b'(', 10),
    (b'0', b')', 11),
    (b'-', b'_', 12),
    (b'=', b'+', 13),
    (b'[', b'{', 26),
    (b']', b'}', 27),
    (b';', b':', 39),
    (b'\'', b'"', 40),
    (b'`', b'~', 41),
    (b'\\', b'|', 43),
    (b',', b'<', 51),
    (b'.', b'>', 52),
    (b'/', b'?', 53),
];

/// Letters, and the code of the first of each row of keys.
const ROWS: [(&[u8], u16); 3] = [(b"qwertyuiop", 16), (b"asdfghjkl", 30), (b"zxcvbnm", 44)];

/// Keys without a character.
const OTHERS: [(u32, u16); 66] = [
    (0x0020, 57),  // space
    (0xff08, 14),  // BackSpace
    (0xff09, 15),  // Tab
    (0xfe20, 15),  // ISO_Left_Tab
    (0xff0d, 28),  // Return
    (0xff13, 119), // Pause
    (0xff14, 70),  // Scroll_Lock
    (0xff15, 99),  // Sys_Req
    (0xff1b, 1),   // Escape
    (0xff50, 102), // Home
    (0xff51, 105), // Left
    (0xff52, 103), // Up
    (0xff53, 106), // Right
    (0xff54, 108), // Down
    (0xff55, 104), // Page_Up
    (0xff56, 109), // Page_Down
    (0xff57, 107), // End
    (0xff61, 99),  // Print
    (0xff63, 110), // Insert
    (0xff67, 127), // Menu
    (0xff7f, 69),  // Num_Lock
    (0xff8d, 96),  // KP_Enter
    (0xff95, 71),  // KP_Home
    (0xff96, 75),  // KP_Left
    (0xff97, 72),  // KP_Up
    (0xff98, 77),  // KP_Right
    (0xff99, 80),  // KP_Down
    (0xff9a, 73),  // KP_Page_Up
    (0xff9b, 81),  // KP_Page_Down
    (0xff9c, 79),  // KP_End
    (0xff9d, 76),  // KP_Begin
    (0xff9e, 82),  // KP_Insert
    (0xff9f, 83),  // KP_Delete
    (0xffaa, 55),  // KP_Multiply
    (0xffab, 78),  // KP_Add
    (0xffad, 74),  // KP_Subtract
    (0xffae, 83),  // KP_Decimal
    (0xffaf, 98),  // KP_Divide
    (0xffb0, 82),  // KP_0
    (0xffb1, 79),
    (0xffb2, 80),
    (0xffb3, 81),
    (0xffb4, 75),
    (0xffb5, 76),
    (0xffb6, 77),
    (0xffb7, 71),
    (0xffb8, 72),
    (0xffb9, 73),  // KP_9
    (0xffbd, 117), // KP_Equal
    (0xffc8, 87),  // F11
    (0xffc9, 88),  // F12
    (0xffe1, 42),  // Shift_L
    (0xffe2, 54),  // Shift_R
    (0xffe3, 29),  // Control_L
    (0xffe4, 97),  // Control_R
    (0xffe5, 58),  // Caps_Lock
    (0xffe7, 125), // Meta_L
    (0xffe8, 126), // Meta_R
    (0xffe9, 56),  // Alt_L
    (0xffea, 100), // Alt_R
    (0xffeb, 125), // Super_L
    (0xffec, 126), // Super_R
    (0xfe03, 100), // ISO_Level3_Shift
    (0xff7e, 100), // Mode_switch
    (0xff6a, 138), // Help
    (0xffff, 111), // Delete
];

/// F1, and its code; up to F10 both count on.
const F1: (u32, u16) = (0xffbe, 59);

/// The key of a keysym, if the keyboard has one.
pub fn code(keysym: u32) -> Option<u16> {
    if let Some(byte) = u8::try_from(keysym).ok().filter(u8::is_ascii_graphic) {
        let letter = byte.to_ascii_lowercase();
        let row = ROWS.iter().find_map(|(row, first)| {
            let at = row.iter().position(|key| *key == letter)?;
            Some(first + u16::try_from(at).ok()?)
        });
        let printed = || PRINTED.iter().find(|(plain, shifted, _)| [*plain, *shifted].contains(&byte));
        return row.or_else(|| printed().map(|(_, _, code)| *code));
    }
    if let Some(n @ 0..10) = keysym.checked_sub(F1.0) {
        return u16::try_from(n).ok().map(|n| F1.1 + n);
    }
    OTHERS.iter().find(|(known, _)| *known == keysym).map(|(_, code)| *code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_of_a_us_keyboard_has_its_key() {
        for byte in 0x20..0x7f_u8 {
            assert!(code(byte.into()).is_some(), "{}", char::from(byte));
        }
        let codes = |text: &str| text.bytes().map(|byte| code(byte.into()).unwrap()).collect::<Vec<_>>();
        // KEY_Q, KEY_P, KEY_A, KEY_L, KEY_Z, KEY_M, and those with Shift.
        assert_eq!(codes("qpalzmQM"), [16, 25, 30, 38, 44, 50, 16, 50]);
        assert_eq!(codes("1!0)-_ "), [2, 2, 11, 11, 12, 12, 57]);
    }

    #[test]
    fn other_keys_have_theirs_and_nonsense_has_none() {
        // Return, F1, F10, F11, F12, KP_5, Delete, the left Shift.
        let known = [0xff0d, 0xffbe, 0xffc7, 0xffc8, 0xffc9, 0xffb5, 0xffff, 0xffe1];
        assert_eq!(known.map(code), [28, 59, 68, 87, 88, 76, 111, 42].map(Some));
        for nonsense in [0, 7, 0x7f, 0xa0, 0xffca, 0x0100_6f22, u32::MAX] {
            assert_eq!(code(nonsense), None, "{nonsense:#x}");
        }
    }
}
