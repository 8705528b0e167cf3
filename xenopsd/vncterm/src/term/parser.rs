//! Bytes to terminal actions: text, controls, escape and control sequences, strings.
//!
//! ```text
//!            printable            ESC              [
//!   ┌──────── Ground ────────────────► Escape ──────────► Csi ── final byte ──► Ground
//!   └─ text ──┘ ▲                        │ ]                │ too much: skipped to its final byte
//!               │ BEL or ESC \           ├──────► Osc ──────┤
//!               └────────────────────────┤ P X ^ _          │
//!                                        └──────► String ◄──┘   (read and dropped)
//! ```
//!
//! What is kept of a sequence is bounded by the constants below; a guest cannot make it grow.

use super::cp437;

/// Parameters of one control sequence. The original kept 16; xterm takes 30.
const MAX_PARAMS: usize = 32;

/// Intermediate bytes of one sequence; none in use has more than two.
const MAX_INTERMEDIATES: usize = 2;

/// Bytes of an operating system command that are kept: a window's title, a few palette entries.
const MAX_OSC: usize = 512;

/// What a parser does to a terminal.
pub(super) trait Actions {
    /// Printable ASCII only.
    fn print_ascii(&mut self, text: &[u8]);
    /// One character that is not ASCII.
    fn print(&mut self, c: char);
    /// One byte above 0x7f when UTF-8 is off.
    fn print_byte(&mut self, byte: u8);
    /// A C0 control.
    fn control(&mut self, byte: u8);
    /// `ESC`, intermediates, final byte.
    fn escape(&mut self, intermediates: &[u8], last: u8);
    /// A control sequence.
    fn csi(&mut self, csi: &Csi);
    /// An operating system command, without its introducer and end.
    fn osc(&mut self, text: &[u8]);
    /// Linux' palette entry, `ESC ] P n rr gg bb`.
    fn linux_palette(&mut self, index: u8, rgb: u32);
}

/// A control sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Csi {
    /// `<`, `=`, `>`, `?` or 0.
    pub(super) private: u8,
    /// Its intermediate byte, or 0.
    pub(super) intermediate: u8,
    /// Its final byte.
    pub(super) last: u8,
    params: Params,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Params {
    values: [u16; MAX_PARAMS],
    /// Bit n: parameter n was joined to the one before by a colon.
    joined: u32,
    count: usize,
}

impl Csi {
    /// Parameter `n`, 0 when it is absent.
    pub(super) fn get(&self, n: usize) -> u16 {
        if n < self.params.count { self.params.values[n] } else { 0 }
    }

    /// Parameter `n` where 0 and absent mean 1.
    pub(super) fn at_least_one(&self, n: usize) -> usize {
        usize::from(self.get(n).max(1))
    }

    /// All parameters; at least one.
    pub(super) fn all(&self) -> &[u16] {
        &self.params.values[..self.params.count.max(1)]
    }

    /// Whether parameter `n` was joined to the one before it by a colon.
    pub(super) fn joined(&self, n: usize) -> bool {
        n < self.params.count && self.params.joined >> n & 1 == 1
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Ground,
    Escape,
    Csi,
    /// A control sequence that is too long or malformed: skipped to its end.
    CsiIgnored,
    Osc,
    /// Linux' `ESC ] P` takes seven hexadecimal digits and has no end.
    LinuxPalette,
    /// DCS, SOS, PM, APC: read and dropped.
    String,
    /// `ESC` within a string: its end, if `\` follows.
    StringEscape,
}

/// The state between two bytes.
#[derive(Debug)]
pub(super) struct Parser {
    state: State,
    csi: Csi,
    intermediates: [u8; MAX_INTERMEDIATES],
    intermediate_count: usize,
    osc: Vec<u8>,
    in_osc: bool,
    utf8: Utf8,
    /// Off after `ESC % @`: a byte is a character.
    utf8_on: bool,
}

/// A character of which not all bytes came yet.
#[derive(Clone, Copy, Debug, Default)]
struct Utf8 {
    missing: u8,
    value: u32,
    least: u32,
}

impl Default for Parser {
    fn default() -> Self {
        Self {
            state: State::Ground,
            csi: Csi::default(),
            intermediates: [0; MAX_INTERMEDIATES],
            intermediate_count: 0,
            osc: Vec::new(),
            in_osc: false,
            utf8: Utf8::default(),
            utf8_on: true,
        }
    }
}

const ESC: u8 = 0x1b;
const BEL: u8 = 0x07;
const CAN: u8 = 0x18;
const SUB: u8 = 0x1a;
const DEL: u8 = 0x7f;

impl Parser {
    /// Takes bytes in pieces of any size.
    pub(super) fn advance(&mut self, mut bytes: &[u8], to: &mut impl Actions) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.state == State::Ground && self.utf8.missing == 0 && is_printable(byte) {
                let run = bytes.iter().position(|b| !is_printable(*b)).unwrap_or(bytes.len());
                to.print_ascii(&bytes[..run]);
                bytes = &bytes[run..];
                continue;
            }
            self.step(byte, to);
            bytes = rest;
        }
    }

    fn step(&mut self, byte: u8, to: &mut impl Actions) {
        match self.state {
            State::Ground => self.ground(byte, to),
            State::Escape => self.escape(byte, to),
            State::Csi | State::CsiIgnored => self.control_sequence(byte, to),
            State::Osc => self.osc(byte, to),
            State::LinuxPalette => self.linux_palette(byte, to),
            State::String => self.string(byte, to),
            State::StringEscape => {
                self.end_string(to);
                // `ESC \` ends the string; any other begins a sequence of its own, as in xterm.
                if byte != b'\\' {
                    self.begin_escape();
                    self.escape(byte, to);
                }
            }
        }
    }

    fn ground(&mut self, byte: u8, to: &mut impl Actions) {
        if self.utf8.missing > 0 {
            if byte & 0xc0 == 0x80 {
                return self.continuation(byte, to);
            }
            self.utf8.missing = 0;
            to.print(char::REPLACEMENT_CHARACTER);
        }
        match byte {
            ESC => self.begin_escape(),
            DEL => {}
            0..0x20 => to.control(byte),
            0x20..0x80 => to.print_ascii(&[byte]),
            _ if !self.utf8_on => to.print_byte(byte),
            _ => self.utf8_start(byte, to),
        }
    }

    fn utf8_start(&mut self, byte: u8, to: &mut impl Actions) {
        self.utf8 = match byte {
            0xc2..0xe0 => Utf8 { missing: 1, value: u32::from(byte & 0x1f), least: 0x80 },
            0xe0..0xf0 => Utf8 { missing: 2, value: u32::from(byte & 0x0f), least: 0x800 },
            0xf0..0xf5 => Utf8 { missing: 3, value: u32::from(byte & 0x07), least: 0x1_0000 },
            _ => return to.print(char::REPLACEMENT_CHARACTER),
        };
    }

    fn continuation(&mut self, byte: u8, to: &mut impl Actions) {
        self.utf8.value = self.utf8.value << 6 | u32::from(byte & 0x3f);
        self.utf8.missing -= 1;
        if self.utf8.missing == 0 {
            let valid = char::from_u32(self.utf8.value).filter(|c| u32::from(*c) >= self.utf8.least);
            to.print(valid.unwrap_or(char::REPLACEMENT_CHARACTER));
        }
    }

    fn begin_escape(&mut self) {
        self.state = State::Escape;
        self.intermediate_count = 0;
    }

    /// Controls are obeyed within a sequence; `CAN` and `SUB` abandon it. False when `byte` is none.
    fn control_within(&mut self, byte: u8, to: &mut impl Actions) -> bool {
        match byte {
            ESC => self.begin_escape(),
            CAN | SUB => self.state = State::Ground,
            0..0x20 => to.control(byte),
            DEL => {}
            _ => return false,
        }
        true
    }

    fn escape(&mut self, byte: u8, to: &mut impl Actions) {
        if self.control_within(byte, to) {
            return;
        }
        match byte {
            0x20..0x30 => {
                if let Some(place) = self.intermediates.get_mut(self.intermediate_count) {
                    *place = byte;
                    self.intermediate_count += 1;
                }
            }
            _ if self.intermediate_count > 0 => self.end_escape(byte, to),
            b'[' => {
                self.csi = Csi::default();
                self.state = State::Csi;
            }
            b']' => {
                self.osc.clear();
                self.in_osc = true;
                self.state = State::Osc;
            }
            b'P' | b'X' | b'^' | b'_' => {
                self.in_osc = false;
                self.state = State::String;
            }
            0x30..0x7f => self.end_escape(byte, to),
            // Nothing of ours: shown as text.
            _ => {
                self.state = State::Ground;
                self.ground(byte, to);
            }
        }
    }

    fn end_escape(&mut self, byte: u8, to: &mut impl Actions) {
        self.state = State::Ground;
        let intermediates = &self.intermediates[..self.intermediate_count];
        match (intermediates, byte) {
            (b"%", b'@') => self.utf8_on = false,
            (b"%", b'G' | b'8') | ([], b'c') => self.utf8_on = true,
            _ => {}
        }
        to.escape(intermediates, byte);
    }

    fn control_sequence(&mut self, byte: u8, to: &mut impl Actions) {
        if self.control_within(byte, to) {
            return;
        }
        let params = &mut self.csi.params;
        let ignored = self.state == State::CsiIgnored;
        match byte {
            0x40..0x7f => {
                self.state = State::Ground;
                if !ignored {
                    self.csi.last = byte;
                    to.csi(&self.csi);
                }
            }
            _ if ignored => {}
            b'0'..=b'9' if self.csi.intermediate == 0 => {
                if params.count == 0 {
                    params.count = 1;
                }
                let value = &mut params.values[params.count - 1];
                *value = value.saturating_mul(10).saturating_add(u16::from(byte - b'0'));
            }
            b';' | b':' if self.csi.intermediate == 0 && params.count < MAX_PARAMS => {
                params.count = params.count.max(1);
                if params.count == MAX_PARAMS {
                    self.state = State::CsiIgnored;
                    return;
                }
                if byte == b':' {
                    params.joined |= 1 << params.count;
                }
                params.count += 1;
            }
            b'<'..=b'?' if params.count == 0 && self.csi.private == 0 => self.csi.private = byte,
            0x20..0x30 if self.csi.intermediate == 0 => self.csi.intermediate = byte,
            _ => self.state = State::CsiIgnored,
        }
    }

    fn osc(&mut self, byte: u8, to: &mut impl Actions) {
        if self.osc.is_empty() && byte == b'P' {
            self.state = State::LinuxPalette;
            return;
        }
        if self.osc.is_empty() && byte == b'R' {
            self.state = State::Ground;
            to.osc(b"R");
            return;
        }
        self.string(byte, to);
    }

    /// Bytes of a string, an operating system command or another.
    fn string(&mut self, byte: u8, to: &mut impl Actions) {
        match byte {
            BEL => self.end_string(to),
            ESC => self.state = State::StringEscape,
            CAN | SUB => self.state = State::Ground,
            _ if self.in_osc && self.osc.len() < MAX_OSC => self.osc.push(byte),
            _ => {}
        }
    }

    fn end_string(&mut self, to: &mut impl Actions) {
        self.state = State::Ground;
        if self.in_osc {
            to.osc(&self.osc);
        }
    }

    fn linux_palette(&mut self, byte: u8, to: &mut impl Actions) {
        if !byte.is_ascii_hexdigit() {
            self.state = State::Ground;
            return self.ground(byte, to);
        }
        self.osc.push(byte);
        if self.osc.len() == 7 {
            self.state = State::Ground;
            let digits = std::str::from_utf8(&self.osc).unwrap_or("0000000");
            let value = u32::from_str_radix(digits, 16).unwrap_or(0);
            let index = u8::try_from(value >> 24).unwrap_or(0);
            to.linux_palette(index, value & 0x00ff_ffff);
        }
    }

    /// Whether bytes are UTF-8.
    pub(super) fn utf8_on(&self) -> bool {
        self.utf8_on
    }

    /// Restores what [`Self::utf8_on`] said.
    pub(super) fn set_utf8(&mut self, on: bool) {
        self.utf8_on = on;
    }
}

const fn is_printable(byte: u8) -> bool {
    byte >= 0x20 && byte < DEL
}

/// The character of a byte when UTF-8 is off and the character set is the PC's.
pub(super) fn pc_character(byte: u8) -> char {
    cp437::CHARACTERS[usize::from(byte)]
}
