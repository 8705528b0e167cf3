//! What the terminal and the encoders cost: `cargo run --release -p vncterm --example bench`.

use std::time::Instant;
use vncterm::rfb::Viewer;
use vncterm::term::{Size, Terminal};

/// Bytes of `yes` that are printed.
const PRINTED: usize = 100_000_000;

/// Whole screens that are encoded.
const UPDATES: u32 = 500;

fn print(name: &str, text: &[u8]) {
    let chunk = text.repeat(32_768 / text.len());
    let mut terminal = Terminal::new(Size::DEFAULT, 512);
    let start = Instant::now();
    for _ in 0..PRINTED / chunk.len() {
        terminal.feed(&chunk);
    }
    println!("{name}: {:.0} MB/s", 100.0 / start.elapsed().as_secs_f64());
}

fn encode(name: &str, encoding: i32) {
    let mut terminal = Terminal::new(Size::DEFAULT, 512);
    for row in 0..24_u8 {
        let text = (0..79).map(|col| char::from(33 + (row * 7 + col) % 90)).collect::<String>();
        terminal.feed(format!("\x1b[{};1H\x1b[3{}m{text}", row + 1, row % 8).as_bytes());
    }
    let mut viewer = Viewer::new(None);
    let greeting = b"RFB 003.008\n\x01\x01".as_slice();
    let encodings = [&[2, 0, 0, 1], encoding.to_be_bytes().as_slice()].concat();
    for message in [greeting, &encodings] {
        viewer.received(message, &terminal, |_| ()).expect("a viewer of our own");
    }
    viewer.sent(usize::MAX);
    let (start, mut bytes) = (Instant::now(), 0);
    for _ in 0..UPDATES {
        viewer.received(&[3, 0, 0, 0, 0, 0, 2, 128, 1, 128], &terminal, |_| ()).expect("a request");
        viewer.update(&terminal);
        bytes = viewer.output().len();
        viewer.sent(usize::MAX);
    }
    println!("{name}, a full 80x24 screen: {:?}, {bytes} bytes", start.elapsed() / UPDATES);
}

fn main() {
    print("yes", b"y\r\n");
    print("long lines", b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n");
    encode("ZRLE", 16);
    encode("Hextile", 5);
    encode("Raw", 0);
}
