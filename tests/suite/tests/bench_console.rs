//! `cargo xtask bench console`: what a text console costs. The terminal's speed on output without end, the time of a whole
//! screen in each encoding, and the memory of a hundred idle terminal servers, each as the daemon starts it: what is aimed at is
//! asserted.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use vncterm::rfb::Viewer;
use vncterm::term::{Size, Terminal};

/// Bytes that are printed.
const PRINTED: usize = 100_000_000;

/// What the terminal takes of `yes`, at least, in bytes a second.
const LEAST_SPEED: f64 = 50e6;

/// Whole screens that are encoded in a round, and rounds.
const UPDATES: u32 = 50;
const ROUNDS: usize = 40;

/// What a whole screen takes at most in the encodings that viewers prefer. Raw is a megabyte of pixels, for viewers that
/// know no other.
const MOST_TIME: Duration = Duration::from_micros(200);

/// Idle terminal servers, and what each may have in memory, in KiB.
const IDLE: usize = 100;
const MOST_MEMORY: u64 = 3 << 10;

fn speed(name: &str, text: &[u8]) -> f64 {
    let chunk = text.repeat(32_768 / text.len());
    let mut terminal = Terminal::new(Size::DEFAULT, 512);
    let (start, rounds) = (Instant::now(), PRINTED / chunk.len());
    for _ in 0..rounds {
        terminal.feed(&chunk);
    }
    let bytes = u32::try_from(rounds * chunk.len()).expect("less than 4 GB");
    let speed = f64::from(bytes) / start.elapsed().as_secs_f64();
    println!("{name}: {:.0} MB/s", speed / 1e6);
    speed
}

#[test]
fn bench_console_output_without_end() {
    let yes = speed("yes", b"y\r\n");
    speed("long lines", b"The quick brown fox jumps over the lazy dog, again and again and again.\r\n");
    assert!(yes >= LEAST_SPEED, "{yes} bytes a second of `yes`");
}

/// Every cell has a character, every row a colour of its own.
fn full_screen() -> Terminal {
    let mut terminal = Terminal::new(Size::DEFAULT, 512);
    for row in 0..24_u8 {
        let text = (0..79).map(|col| char::from(33 + (row * 7 + col) % 90)).collect::<String>();
        terminal.feed(format!("\x1b[{};1H\x1b[3{}m{text}", row + 1, row % 8).as_bytes());
    }
    terminal
}

#[test]
fn bench_console_whole_screens() {
    let terminal = full_screen();
    for (name, encoding) in [("ZRLE", 16_i32), ("Hextile", 5), ("Raw", 0)] {
        let mut viewer = Viewer::new(None);
        let encodings = [&[2, 0, 0, 1], encoding.to_be_bytes().as_slice()].concat();
        for message in [b"RFB 003.008\n\x01\x01".as_slice(), &encodings] {
            viewer.received(message, &terminal, |_| ()).expect("a viewer of our own");
        }
        viewer.sent(usize::MAX);
        let mut update = || {
            viewer.received(&[3, 0, 0, 0, 0, 0, 2, 128, 1, 128], &terminal, |_| ()).expect("a request");
            viewer.update(&terminal);
            let bytes = viewer.output().len();
            viewer.sent(usize::MAX);
            bytes
        };
        let mut bytes = 0;
        let mut round = || {
            let start = Instant::now();
            for _ in 0..UPDATES {
                bytes = update();
            }
            start.elapsed() / UPDATES
        };
        // The quickest, which nobody else's work is in.
        let each = (0..ROUNDS).map(|_| round()).min().expect("there are some");
        println!("{name}, a whole 80x24 screen: {each:?}, {bytes} bytes");
        assert!(each < MOST_TIME, "{name}: {each:?}");
    }
}

/// A terminal server with some text on its screen that a viewer has seen, and nothing to do.
struct Idle {
    child: Child,
    _stdout: BufReader<ChildStdout>,
}

impl Idle {
    fn new() -> Self {
        let program = xen_host::workspace().join("target/release/vncterm");
        let command = "printf 'Debian GNU/Linux 12 guest hvc0\\r\\n\\r\\nguest login: '; exec sleep infinity";
        let mut child = Command::new(&program)
            .args(["-T", "-c", command])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut port = || {
            let mut line = String::new();
            stdout.read_line(&mut line).expect("a line");
            line.split_whitespace().last().and_then(|port| port.parse().ok()).expect("a port")
        };
        let [vnc, text]: [u16; 2] = [port(), port()];
        let idle = Self { child, _stdout: stdout };
        let mut seen = Vec::new();
        let mut reader = TcpStream::connect((Ipv4Addr::LOCALHOST, text)).expect("connects");
        while !seen.ends_with(b"login: ") {
            let mut byte = [0];
            reader.read_exact(&mut byte).expect("a prompt");
            seen.push(byte[0]);
        }
        let mut viewer = TcpStream::connect((Ipv4Addr::LOCALHOST, vnc)).expect("connects");
        viewer.write_all(b"RFB 003.003\n\x01\x03\0\0\0\0\0\x02\x80\x01\x80").expect("asks");
        // The greeting, the security, the screen's description with its name, an update of one rectangle.
        let mut screen = vec![0; 12 + 4 + 24 + "Console".len() + 16 + 640 * 384 * 4];
        viewer.read_exact(&mut screen).expect("a screen");
        idle
    }

    /// KiB in memory, shared pages of its program and libraries included; and its share of them counted by its users.
    fn memory(&self) -> [u64; 2] {
        let rollup =
            std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id())).expect("runs");
        ["Rss:", "Pss:"].map(|name| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.trim().trim_end_matches(" kB").parse().expect("a number")
        })
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn bench_console_idle_servers() {
    let idle: Vec<_> = (0..IDLE).map(|_| Idle::new()).collect();
    let memory: Vec<_> = idle.iter().map(Idle::memory).collect();
    let [resident, proportional] = [0, 1].map(|which| memory.iter().map(|m| m[which]).max().unwrap_or(0));
    println!(
        "{IDLE} idle terminal servers: at most {resident} KiB resident each, {proportional} KiB of its own share"
    );
    assert!(resident < MOST_MEMORY, "{resident} KiB");
}
