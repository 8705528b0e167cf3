//! A viewer of our own decodes every update and must see exactly the terminal's screen.

use super::auth::{Denied, Gate, Password};
use super::encode::Encoding;
use super::pixel::PixelFormat;
use super::*;
use crate::font::{CELL_HEIGHT, CELL_WIDTH};
use crate::term::{Size, Terminal};
use proptest::prelude::*;

mod pixels;

/// What a viewer sees: pixels as numbers in its format.
struct Client<V = Viewer> {
    viewer: V,
    width: usize,
    height: usize,
    bytes: usize,
    /// Bytes of a pixel that ZRLE sends.
    compact: usize,
    pixels: Vec<Vec<u8>>,
    zlib_begun: bool,
    kinds: Vec<i32>,
}

struct Bytes(Vec<u8>, usize);

impl Bytes {
    fn take(&mut self, count: usize) -> &[u8] {
        self.1 += count;
        &self.0[self.1 - count..self.1]
    }

    fn u8(&mut self) -> usize {
        usize::from(self.take(1)[0])
    }

    fn u16(&mut self) -> usize {
        self.u8() << 8 | self.u8()
    }

    fn u32(&mut self) -> usize {
        self.u16() << 16 | self.u16()
    }
}

fn format_message(format: PixelFormat) -> Vec<u8> {
    [&[0, 0, 0, 0][..], &format.to_bytes()].concat()
}

fn encodings(numbers: &[i32]) -> Vec<u8> {
    let mut message = vec![2, 0, 0, u8::try_from(numbers.len()).unwrap()];
    message.extend(numbers.iter().flat_map(|number| number.to_be_bytes()));
    message
}

const REQUEST: [u8; 10] = [3, 1, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];

impl Client {
    fn connect(terminal: &Terminal, version: &[u8; 12], format: PixelFormat, numbers: &[i32]) -> Self {
        let mut viewer = Viewer::new(None);
        assert_eq!(viewer.output(), b"RFB 003.008\n");
        let mut say = |bytes: &[u8]| {
            viewer.sent(usize::MAX);
            viewer.received(bytes, terminal, |_| ()).unwrap();
            viewer.output().to_vec()
        };
        match version {
            b"RFB 003.003\n" => assert_eq!(say(version), [0, 0, 0, 1]),
            b"RFB 003.007\n" => {
                assert_eq!(say(version), [1, 1]);
                assert!(say(&[1]).is_empty());
            }
            _ => {
                assert_eq!(say(version), [1, 1]);
                assert_eq!(say(&[1]), [0; 4]);
            }
        }
        let mut init = Bytes(say(&[1]), 0);
        let (width, height) = (init.u16(), init.u16());
        assert_eq!(init.take(16), PixelFormat::OFFERED.to_bytes());
        say(&format_message(format));
        say(&encodings(numbers));
        viewer.sent(usize::MAX);
        let compact = format.compact().len();
        let pixels = vec![vec![0xee; format.bytes]; width * height];
        Self {
            viewer,
            width,
            height,
            bytes: format.bytes,
            compact,
            pixels,
            zlib_begun: false,
            kinds: Vec::new(),
        }
    }

    /// Asks, and takes what comes.
    fn update(&mut self, terminal: &Terminal) {
        self.viewer.received(&REQUEST, terminal, |_| ()).unwrap();
        self.viewer.update(terminal);
        let output = self.viewer.output().to_vec();
        self.viewer.sent(usize::MAX);
        self.decode(output);
    }
}

impl<V> Client<V> {
    /// An update, or nothing.
    fn decode(&mut self, output: Vec<u8>) {
        let mut bytes = Bytes(output, 0);
        if bytes.0.is_empty() {
            return;
        }
        assert_eq!(bytes.take(2)[0], 0);
        for _ in 0..bytes.u16() {
            self.rect(&mut bytes);
        }
        assert_eq!(bytes.1, bytes.0.len(), "nothing is left");
    }

    fn rect(&mut self, bytes: &mut Bytes) {
        let [x, y, width, height] = [bytes.u16(), bytes.u16(), bytes.u16(), bytes.u16()];
        let kind = i32::from_be_bytes(bytes.take(4).try_into().unwrap());
        self.kinds.push(kind);
        if kind >= 0 {
            assert!(x + width <= self.width && y + height <= self.height && width * height > 0);
        }
        match kind {
            0 => {
                for at in 0..width * height {
                    let pixel = bytes.take(self.bytes).to_vec();
                    self.pixels[(y + at / width) * self.width + x + at % width] = pixel;
                }
            }
            1 => {
                let (from_x, from_y) = (bytes.u16(), bytes.u16());
                let old = self.pixels.clone();
                for at in 0..width * height {
                    let (dx, dy) = (at % width, at / width);
                    self.pixels[(y + dy) * self.width + x + dx] =
                        old[(from_y + dy) * self.width + from_x + dx].clone();
                }
            }
            5 => self.hextile(bytes, [x, y, width, height]),
            16 => self.zrle(bytes, [x, y, width, height]),
            -223 => {
                (self.width, self.height) = (width, height);
                self.pixels = vec![vec![0xee; self.bytes]; width * height];
            }
            -239 => {
                bytes.take(width * height * self.bytes + width.div_ceil(8) * height);
            }
            other => panic!("encoding {other}"),
        }
    }

    fn fill(&mut self, [x, y, width, height]: [usize; 4], pixel: &[u8]) {
        for row in y..y + height {
            self.pixels[row * self.width + x..row * self.width + x + width].fill(pixel.to_vec());
        }
    }

    fn hextile(&mut self, bytes: &mut Bytes, [x, y, width, height]: [usize; 4]) {
        let (mut bg, mut fg) = (Vec::new(), Vec::new());
        for top in (y..y + height).step_by(16) {
            for left in (x..x + width).step_by(16) {
                let (wide, tall) = (16.min(x + width - left), 16.min(y + height - top));
                let kind = bytes.u8();
                if kind & 1 != 0 {
                    for at in 0..wide * tall {
                        let pixel = bytes.take(self.bytes).to_vec();
                        self.pixels[(top + at / wide) * self.width + left + at % wide] = pixel;
                    }
                    continue;
                }
                if kind & 2 != 0 {
                    bg = bytes.take(self.bytes).to_vec();
                }
                if kind & 4 != 0 {
                    fg = bytes.take(self.bytes).to_vec();
                }
                self.fill([left, top, wide, tall], &bg);
                let count = if kind & 8 != 0 { bytes.u8() } else { 0 };
                for _ in 0..count {
                    let color = if kind & 16 != 0 { bytes.take(self.bytes).to_vec() } else { fg.clone() };
                    let (place, size) = (bytes.u8(), bytes.u8());
                    let rect = [left + (place >> 4), top + (place & 15), (size >> 4) + 1, (size & 15) + 1];
                    assert!(rect[0] + rect[2] <= left + wide && rect[1] + rect[3] <= top + tall);
                    self.fill(rect, &color);
                }
            }
        }
    }

    /// Stored blocks only, which is what a decoder of our own needs to know.
    fn zrle(&mut self, bytes: &mut Bytes, [x, y, width, height]: [usize; 4]) {
        let length = bytes.u32();
        let mut stream = Bytes(bytes.take(length).to_vec(), 0);
        if !self.zlib_begun {
            assert_eq!(stream.u16() % 31, 0);
            self.zlib_begun = true;
        }
        let mut data = Vec::new();
        while stream.1 < stream.0.len() {
            assert_eq!(stream.u8(), 0);
            let length = u16::from_le_bytes(stream.take(2).try_into().unwrap());
            assert_eq!(u16::from_le_bytes(stream.take(2).try_into().unwrap()), !length);
            data.extend_from_slice(stream.take(usize::from(length)));
        }
        let mut data = Bytes(data, 0);
        let pad = |pixel: &[u8], bytes: usize| {
            let mut pixel = pixel.to_vec();
            pixel.resize(bytes, 0);
            pixel
        };
        for top in (y..y + height).step_by(64) {
            for left in (x..x + width).step_by(64) {
                let (wide, tall) = (64.min(x + width - left), 64.min(y + height - top));
                let count = data.u8();
                assert!(count <= 16);
                let palette: Vec<_> = (0..count).map(|_| pad(data.take(self.compact), self.bytes)).collect();
                let bits = match count {
                    0 | 1 => 0,
                    2 => 1,
                    3..=4 => 2,
                    _ => 4,
                };
                for row in 0..tall {
                    let packed = data.take(if count == 0 { 0 } else { (wide * bits).div_ceil(8) }).to_vec();
                    for col in 0..wide {
                        let pixel = match count {
                            0 => pad(data.take(self.compact), self.bytes),
                            1 => palette[0].clone(),
                            _ => {
                                let at = col * bits;
                                let entry = packed[at / 8] >> (8 - bits - at % 8) & ((1 << bits) - 1);
                                palette[usize::from(entry)].clone()
                            }
                        };
                        self.pixels[(top + row) * self.width + left + col] = pixel;
                    }
                }
            }
        }
        assert_eq!(data.1, data.0.len());
    }

    fn check(&self, terminal: &Terminal, format: &PixelFormat) {
        let frame = Frame::of(terminal, 0);
        assert_eq!((self.width, self.height), (frame.size.cols * CELL_WIDTH, frame.size.rows * CELL_HEIGHT));
        for y in 0..self.height {
            for x in 0..self.width {
                let cell = frame.row(y / CELL_HEIGHT)[x / CELL_WIDTH];
                let set = cell.rows()[y % CELL_HEIGHT] >> (7 - x % CELL_WIDTH) & 1 == 1;
                let pixel = format.pixel(if set { cell.fg } else { cell.bg });
                assert_eq!(self.pixels[y * self.width + x], &pixel[..format.bytes], "{x},{y}");
            }
        }
    }
}

fn formats() -> [PixelFormat; 4] {
    let other = |bits: u8, depth: u8, big: u8, max: [u8; 3], shift: [u8; 3]| {
        let bytes =
            [bits, depth, big, 1, 0, max[0], 0, max[1], 0, max[2], shift[0], shift[1], shift[2], 0, 0, 0];
        PixelFormat::from_bytes(bytes).unwrap().unwrap()
    };
    [
        PixelFormat::OFFERED,
        PixelFormat::MAPPED,
        other(16, 16, 1, [31, 63, 31], [11, 5, 0]),
        other(16, 15, 0, [31, 31, 31], [0, 5, 10]),
    ]
}

const VERSIONS: [&[u8; 12]; 4] = [b"RFB 003.003\n", b"RFB 003.007\n", b"RFB 003.008\n", b"RFB 003.889\n"];

fn output() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        "[a-zA-Z 漢é\u{301}─█]{0,40}",
        "(\r\n){1,6}",
        "\x1b\\[[0-9]{1,2};[0-9]{1,2}[Hr]",
        "\x1b\\[(1;|7;|4;)?(3[0-7]|4[0-7]|38;5;1[0-9]{2}|48;2;[0-9]{2};1;2)m",
        "\x1b\\[[0-9]?[JKLMPST@]",
        Just("\x1b[?5h".to_owned()),
        Just("\x1b[8;9;30t".to_owned()),
    ];
    proptest::collection::vec(piece, 0..25).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn every_viewer_sees_the_screen(
        outputs in proptest::collection::vec(output(), 1..6),
        format in 0..4_usize,
        version in 0..4_usize,
        encoding in prop_oneof![Just(Encoding::Raw), Just(Encoding::Hextile), Just(Encoding::Zrle)],
    ) {
        let mut terminal = Terminal::new(Size { cols: 21, rows: 7 }, 20);
        let format = formats()[format];
        let mut client =
            Client::connect(&terminal, VERSIONS[version], format, &[encoding.number(), 1, -239, -223]);
        for output in outputs {
            terminal.feed(&output);
            client.update(&terminal);
            client.check(&terminal, &format);
        }
        let before = client.kinds.len();
        client.update(&terminal);
        prop_assert_eq!(client.kinds.len(), before, "nothing changed, nothing is sent");
    }

    #[test]
    fn nothing_a_viewer_sends_breaks_it(
        bytes in proptest::collection::vec(prop_oneof![any::<u8>(), 0..7_u8, Just(0xff)], 0..600),
        cut in 1..40_usize,
        greeted in any::<bool>(),
    ) {
        let terminal = Terminal::new(Size { cols: 10, rows: 3 }, 4);
        let mut viewer = Viewer::new(None);
        if greeted {
            viewer.received(b"RFB 003.008\n\x01\x01", &terminal, |_| ()).unwrap();
        }
        for piece in bytes.chunks(cut) {
            if viewer.received(piece, &terminal, |_| ()).is_err() {
                break;
            }
            viewer.update(&terminal);
            // At most a colour map for each message of 20 bytes, and one update.
            prop_assert!(viewer.output().len() < 200_000);
            viewer.sent(usize::MAX);
        }
    }
}

#[test]
fn rows_that_move_are_copied_by_the_viewer() {
    let mut terminal = Terminal::new(Size { cols: 21, rows: 7 }, 20);
    terminal.feed(b"1 one\r\n2 two\r\n3 three\r\n4 four\r\n5 five\r\n6 six\r\n7 seven");
    let format = PixelFormat::OFFERED;
    let mut client = Client::connect(&terminal, VERSIONS[2], format, &[16, 1]);
    client.update(&terminal);
    assert_eq!(std::mem::take(&mut client.kinds), [16]);
    terminal.feed(b"\r\n8 eight");
    client.update(&terminal);
    assert!(std::mem::take(&mut client.kinds).contains(&1));
    client.check(&terminal, &format);
    terminal.feed(b"\x1b[H\x1bM0 zero");
    client.update(&terminal);
    assert!(client.kinds.contains(&1));
    client.check(&terminal, &format);
}

#[test]
fn a_huge_clipboard_costs_no_memory_and_a_small_one_is_pasted() {
    let terminal = Terminal::new(Size::DEFAULT, 4);
    let mut viewer = Viewer::new(None);
    viewer.received(b"RFB 003.008\n\x01\x01", &terminal, |_| ()).unwrap();
    let mut acts = Vec::new();
    viewer.received(&[6, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff], &terminal, |act| acts.push(act)).unwrap();
    let mut left = 0x7fff_ffff_usize;
    let piece = vec![b'x'; 1 << 20];
    while left > 0 {
        let count = left.min(piece.len());
        viewer.received(&piece[..count], &terminal, |act| acts.push(act)).unwrap();
        left -= count;
    }
    let middle = [5, 2, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0];
    viewer.received(&middle, &terminal, |act| acts.push(act)).unwrap();
    assert_eq!(acts, [], "it was not kept");
    viewer.received(b"\x06\0\0\0\0\0\0\x02hi", &terminal, |act| acts.push(act)).unwrap();
    viewer.received(&middle, &terminal, |act| acts.push(act)).unwrap();
    assert_eq!(acts, [Input::Paste(b"hi".to_vec())]);
}

#[test]
fn who_does_not_speak_rfb_is_sent_away() {
    let terminal = Terminal::new(Size::DEFAULT, 4);
    let refuse = |bytes: &[u8]| Viewer::new(None).received(bytes, &terminal, |_| ()).unwrap_err();
    assert_eq!(refuse(b"GET / HTTP/1.1"), ViewerError::Greeting);
    assert_eq!(refuse(b"RFB 003.008\n\x02"), ViewerError::Security(2));
    assert_eq!(refuse(b"RFB 003.008\n\x01\x01\x63"), ViewerError::Message(0x63));
    let mut bad = b"RFB 003.008\n\x01\x01".to_vec();
    bad.extend([0, 0, 0, 0, 24, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0]);
    assert_eq!(refuse(&bad), ViewerError::PixelFormat);
    bad.truncate(18);
    bad.extend([32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 30, 8, 0, 0, 0, 0]);
    assert_eq!(refuse(&bad), ViewerError::PixelFormat, "a shift beyond the pixel");
}

/// In every version: what is offered, the challenge, the result; and that nothing else than a right answer gets further.
#[test]
fn a_password_lets_in_who_knows_it() {
    let terminal = Terminal::new(Size { cols: 10, rows: 3 }, 4);
    let password = Password::new(b"secret").unwrap();
    for (version, minor) in [(VERSIONS[0], 3), (VERSIONS[1], 7), (VERSIONS[2], 8), (VERSIONS[3], 8)] {
        for known in [true, false] {
            let gate = std::rc::Rc::new(Gate::new(password.clone()));
            let mut viewer = Viewer::new(Some(gate));
            let mut acts = Vec::new();
            let mut say = |bytes: &[u8]| {
                viewer.sent(usize::MAX);
                let result = viewer.received(bytes, &terminal, |act| acts.push(act));
                (result, viewer.output().to_vec(), viewer.is_ready())
            };
            let (_, mut offered, _) = say(version);
            if minor == 3 {
                assert_eq!(offered.drain(..4).collect::<Vec<_>>(), [0, 0, 0, 2]);
            } else {
                assert_eq!(offered, [1, 2], "no other than the password");
                offered = say(&[2]).1;
            }
            let challenge: [u8; 16] = offered.try_into().unwrap();
            let mut answer = password.answer(&challenge);
            answer[15] ^= u8::from(!known);
            assert_eq!(say(&answer[..7]), (Ok(()), vec![], false));
            let (result, said, ready) = say(&answer[7..]);
            assert!(!ready);
            if known {
                assert_eq!((result, said), (Ok(()), vec![0; 4]));
                assert!(say(&[1]).2);
                continue;
            }
            assert_eq!(result, Err(ViewerError::Denied(Denied::Wrong)));
            let why: &[u8] = if minor == 8 { b"\0\0\0\x15the password is wrong" } else { b"" };
            assert_eq!(said, [&[0, 0, 0, 1][..], why].concat());
        }
    }
    let gate = std::rc::Rc::new(Gate::new(password));
    let mut around = Viewer::new(Some(std::rc::Rc::clone(&gate)));
    let none = around.received(b"RFB 003.008\n\x01", &terminal, |_| ());
    assert_eq!(none, Err(ViewerError::Security(1)), "no way around it");
    let challenges: std::collections::BTreeSet<_> = (0..20)
        .map(|_| {
            let mut viewer = Viewer::new(Some(std::rc::Rc::clone(&gate)));
            viewer.received(b"RFB 003.003\n", &terminal, |_| ()).unwrap();
            viewer.output()[16..].to_vec()
        })
        .collect();
    assert_eq!(challenges.len(), 20, "an answer that was overheard is worth nothing");
}

#[test]
fn scroll_back_is_looked_at_with_wheel_and_keys() {
    let mut terminal = Terminal::new(Size { cols: 8, rows: 2 }, 50);
    for n in 0..20 {
        terminal.feed(format!("{n}\r\n").as_bytes());
    }
    let mut client = Client::connect(&terminal, VERSIONS[2], PixelFormat::OFFERED, &[0]);
    client.update(&terminal);
    let now = client.pixels.clone();
    let send = |client: &mut Client, bytes: &[u8], terminal: &Terminal| {
        let mut acts = Vec::new();
        client.viewer.received(bytes, terminal, |act| acts.push(act)).unwrap();
        client.update(terminal);
        acts
    };
    assert_eq!(send(&mut client, &[5, 8, 0, 0, 0, 0], &terminal), []);
    assert_ne!(client.pixels, now);
    assert_eq!(send(&mut client, &[4, 1, 0, 0, 0, 0, 0, b'x'], &terminal), [Input::Guest(b"x".to_vec())]);
    assert_eq!(client.pixels, now, "a key goes back to the screen");
}
