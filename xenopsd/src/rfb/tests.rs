//! Servers that are scripted: what they send is known beforehand, well-behaved or not.

use std::io::{self, Cursor, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::time::Duration;

use super::*;

/// Sends its script whatever it is told.
struct Scripted {
    script: Cursor<Vec<u8>>,
    told: Vec<u8>,
}

impl Scripted {
    fn new(script: &[&[u8]]) -> Self {
        Self { script: Cursor::new(script.concat()), told: Vec::new() }
    }
}

impl Read for Scripted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.script.read(buffer)
    }
}

impl Write for Scripted {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.told.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const V3: &[u8] = b"RFB 003.003\n\0\0\0\x01";
const V7: &[u8] = b"RFB 003.007\n\x02\x02\x01";
const V8: &[u8] = b"RFB 003.008\n\x01\x01\0\0\0\0";

/// A screen of this size, whose name is `x`.
fn init(width: u16, height: u16) -> Vec<u8> {
    [&width.to_be_bytes()[..], &height.to_be_bytes(), &[0; 16], b"\0\0\0\x01x"].concat()
}

fn update(rectangles: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(rectangles.len()).unwrap();
    [&[0, 0][..], &count.to_be_bytes(), &rectangles.concat()].concat()
}

fn rectangle(place: [u16; 4], encoding: i32, pixels: &[u8]) -> Vec<u8> {
    [&place.map(u16::to_be_bytes).concat()[..], &encoding.to_be_bytes(), pixels].concat()
}

/// A rectangle of one colour.
fn plain([x, y, width, height]: [u16; 4], pixel: [u8; 4]) -> Vec<u8> {
    let pixels = pixel.repeat(usize::from(width) * usize::from(height));
    rectangle([x, y, width, height], 0, &pixels)
}

/// All that a server of a screen of one colour says.
pub(crate) fn plain_screen(width: u16, height: u16, pixel: [u8; 4]) -> Vec<u8> {
    [V8, &init(width, height), &update(&[plain([0, 0, width, height], pixel)])].concat()
}

const ORANGE: [u8; 4] = [0x00, 0x80, 0xff, 0];

fn run(script: &[&[u8]]) -> Result<Picture, RfbError> {
    capture(&mut Scripted::new(script), LIMIT)
}

#[test]
fn every_version_gives_the_picture() {
    for (hello, answer) in [
        (V3, &b"RFB 003.003\n\x01"[..]),
        (V7, b"RFB 003.007\n\x01\x01"),
        (V8, b"RFB 003.008\n\x01\x01"),
        (b"RFB 003.889\n\x01\x01\0\0\0\0", b"RFB 003.008\n\x01\x01"),
    ] {
        let mut server = Scripted::new(&[hello, &init(2, 2), &update(&[plain([0, 0, 2, 2], ORANGE)])]);
        let picture = capture(&mut server, LIMIT).unwrap();
        assert_eq!((picture.width(), picture.height()), (2, 2));
        assert_eq!(picture.rgb(), [0xff, 0x80, 0].repeat(4), "red, green, blue");
        assert_eq!(picture.colours(), 1);
        // The version, the security, shared; then 32-bit pixels, two encodings, everything.
        let rest = [
            &[0, 0, 0, 0, 32, 24, 0, 1, 0, 255, 0, 255, 0, 255, 16, 8, 0, 0, 0, 0][..],
            &[2, 0, 0, 2, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0x21],
            &[3, 0, 0, 0, 0, 0, 0, 2, 0, 2],
        ];
        assert_eq!(server.told, [answer, &rest.concat()].concat());
    }
}

#[test]
fn pieces_other_messages_and_changes_of_size_are_followed() {
    let picture = run(&[
        V8,
        &init(4, 2),
        // A bell, a clipboard, a map of colours.
        &[2],
        b"\x03\0\0\0\0\0\0\x02hi",
        &[1, 0, 0, 0, 0, 1, 9, 9, 9, 9, 9, 9],
        &update(&[plain([0, 0, 4, 1], ORANGE)]),
        &update(&[rectangle([0, 0, 2, 1], -223, &[])]),
        &update(&[plain([0, 0, 1, 1], ORANGE), plain([0, 0, 1, 1], [1, 2, 3, 0])]),
        &update(&[plain([1, 0, 1, 1], ORANGE)]),
    ]);
    let picture = picture.unwrap();
    assert_eq!((picture.width(), picture.height()), (2, 1));
    assert_eq!(picture.rgb(), [3, 2, 1, 0xff, 0x80, 0]);
}

#[test]
fn what_servers_must_not_do_is_an_error_that_says_so() {
    let begun = [V8, &init(4, 2)].concat();
    let whole = [0, 0, 4, 2];
    for (script, part) in [
        (b"HTTP/1.1 400 Bad Request\r\n".to_vec(), "greets with \"HTTP/1.1 400"),
        (b"RFB 004.001\n".to_vec(), "no VNC server"),
        (b"RFB 003.+08\n".to_vec(), "no VNC server"),
        (b"RFB 003.003\n\0\0\0\x02".to_vec(), "password"),
        (b"RFB 003.003\n\0\0\0\0\0\0\0\x04busy".to_vec(), "refuses the connection: busy"),
        (b"RFB 003.008\n\0\0\0\0\x05n\n\x1b[m".to_vec(), "n  [m"),
        (b"RFB 003.008\n\x02\x02\x13".to_vec(), "types [2, 19]"),
        (b"RFB 003.008\n\x01\x01\0\0\0\x01\0\0\0\x02no".to_vec(), "refuses the connection: no"),
        (b"RFB 003.008\n\0\xff\xff\xff\xff".to_vec(), "length of 4294967295"),
        ([V8, &init(0, 2)].concat(), "0x2 pixels"),
        ([V8, &init(8193, 1)].concat(), "8193x1 pixels"),
        ([V8, &init(8192, 2049)].concat(), "8192x2049 pixels"),
        ([V8, &[0, 4, 0, 2], &[0; 16], &[0, 1, 0, 0]].concat(), "length of 65536"),
        ([&begun[..], &[7]].concat(), "message of kind 7"),
        ([&begun[..], b"\x03\0\0\0\xff\xff\xff\xf0"].concat(), "clipboard of a length of 4294967280"),
        ([&begun[..], &update(&[plain([1, 0, 4, 2], ORANGE)])].concat(), "beyond its screen"),
        ([&begun[..], &update(&[plain([0, 65535, 1, 1], ORANGE)])].concat(), "beyond its screen"),
        ([&begun[..], &update(&[rectangle(whole, 16, &[])])].concat(), "number 16"),
        ([&begun[..], &update(&[rectangle([0, 0, 65535, 65535], -223, &[])])].concat(), "65535x65535"),
        (
            [&begun[..], &update(&[rectangle(whole, -223, &[]), rectangle(whole, -223, &[])])].concat(),
            "at once",
        ),
        ([&begun[..], &update(&[rectangle(whole, -223, &[])]).repeat(17)].concat(), "changes of size 16"),
        ([&begun[..], &[2; 1000]].concat(), "without a whole picture: 1000"),
        ([&begun[..], &update(&[]).repeat(1000)].concat(), "without a whole picture: 1000"),
        (
            [&begun[..], &update(&[plain([0, 0, 4, 1], ORANGE)])].concat(),
            "closed while its screen was expected",
        ),
    ] {
        let error = run(&[&script]).unwrap_err().to_string();
        assert!(error.contains(part), "{error:?} does not say {part:?}");
    }
}

/// A server that ends anywhere ends the capture, and never with a picture.
#[test]
fn a_connection_that_breaks_is_an_error_wherever_it_does() {
    let script = [V8, &init(2, 2), &update(&[plain([0, 0, 2, 2], ORANGE)])].concat();
    for length in 0..script.len() {
        let error = run(&[&script[..length]]).unwrap_err();
        assert!(matches!(error, RfbError::Closed { .. }), "{length}: {error}");
    }
    run(&[&script]).unwrap();
}

#[test]
fn a_server_that_says_nothing_ends_at_the_limit() {
    const SHORT: Duration = Duration::from_millis(50);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("screen");
    let (unix, tcp) = (UnixListener::bind(&path).unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    for address in [Address::Socket(path), Address::Port(tcp.local_addr().unwrap().port())] {
        let error = capture(&mut open(&address, SHORT).unwrap(), SHORT).unwrap_err();
        assert!(matches!(error, RfbError::Late { expected: "its version", .. }), "{address}: {error}");
    }
    drop((unix, tcp));
}

#[test]
fn a_server_that_trickles_ends_at_the_limit() {
    const SHORT: Duration = Duration::from_millis(100);
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = tcp.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = tcp.accept().unwrap();
        let script = [V8, &init(2, 2)].concat();
        stream.write_all(&script).unwrap();
        let mut sent = 0_u64;
        let clipboard = vec![0; 0x000f_0000];
        // Clipboards as fast as they are taken: each read restarts a socket's timeout, and none the deadline.
        while stream.write_all(b"\x03\0\0\0\0\x0f\0\0").and_then(|()| stream.write_all(&clipboard)).is_ok() {
            sent += 1;
        }
        sent
    });
    let begin = std::time::Instant::now();
    let error = capture(&mut open(&Address::Port(port), SHORT).unwrap(), SHORT).unwrap_err();
    assert!(matches!(error, RfbError::Late { .. }), "{error}");
    assert!(begin.elapsed() < LIMIT);
    assert!(server.join().unwrap() > 0);
}

#[test]
fn nobody_at_an_address_is_said() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = open(&Address::Port(free), LIMIT).err().unwrap().to_string();
    assert!(error.contains("cannot connect to the screen"), "{error}");
}

#[test]
fn a_picture_is_a_png() {
    let picture = run(&[V8, &init(3, 1), &update(&[plain([0, 0, 3, 1], ORANGE)])]).unwrap();
    let file = picture.to_png().unwrap();
    let mut reader = png::Decoder::new(Cursor::new(file)).read_info().unwrap();
    let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
    let info = reader.next_frame(&mut pixels).unwrap();
    assert_eq!((info.width, info.height, info.color_type), (3, 1, png::ColorType::Rgb));
    assert_eq!(pixels, picture.rgb());
}
