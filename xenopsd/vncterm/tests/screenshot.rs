//! A picture of `vncterm`'s screen, as `xenops screenshot` takes it.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Command, Stdio};

use xenopsd::rfb::{Address, LIMIT, Picture, capture, open};

fn picture(command: &str, until: &str) -> Picture {
    let mut program = Command::new(env!("CARGO_BIN_EXE_vncterm"))
        .args(["-T", "-c", command])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = BufReader::new(program.stdout.take().unwrap());
    let mut port = || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        line.split_whitespace().last().unwrap().parse::<u16>().unwrap()
    };
    let (vnc, text) = (port(), port());
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, text)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(until) {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "{until:?} was not printed");
        seen.extend_from_slice(&buffer[..count]);
    }
    let picture = capture(&mut open(&Address::Port(vnc), LIMIT).unwrap(), LIMIT);
    program.kill().unwrap();
    program.wait().unwrap();
    picture.unwrap()
}

#[test]
fn the_picture_shows_what_is_on_the_screen() {
    // No cursor; the first cell red, the next five as they are.
    let shown = picture("printf '\\033[?25l\\033[2J\\033[H\\033[41m \\033[0mhello'; read rest", "hello");
    assert_eq!((shown.width(), shown.height()), (640, 384));
    let pixel = |x: usize, y: usize| {
        let at = (y * 640 + x) * 3;
        [shown.rgb()[at], shown.rgb()[at + 1], shown.rgb()[at + 2]]
    };
    let [red, green, blue] = pixel(4, 8);
    assert!(red > 100 && green < 50 && blue < 50, "the first cell is red: {red} {green} {blue}");
    // `hello` has pixels in its five cells, and nothing has any beside and below.
    let lit = |x: std::ops::Range<usize>, y: std::ops::Range<usize>| {
        y.flat_map(|y| x.clone().map(move |x| (x, y))).filter(|(x, y)| pixel(*x, *y) != [0; 3]).count()
    };
    assert!(lit(8..48, 0..16) > 40);
    assert_eq!(lit(48..640, 0..16) + lit(0..640, 16..384), 0);
    assert_eq!(shown.colours(), 3);
}
