//! The options of the original, each by what it does.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use common::{LIMIT, Program, guest, read_until};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use xenstore::Operations as _;
use xenstore::store::{SharedStore, listen};

/// The screen's name, which viewers are told in the handshake (RFC 6143, 7.3.2).
fn name(port: u16) -> String {
    let mut stream = Program::connect(port);
    stream.write_all(b"RFB 003.003\n\x01").unwrap();
    // Version, security, size, pixel format, the name's length.
    let mut head = [0; 12 + 4 + 4 + 16 + 4];
    stream.read_exact(&mut head).unwrap();
    let mut name = vec![0; usize::from(head[39])];
    stream.read_exact(&mut name).unwrap();
    String::from_utf8(name).unwrap()
}

#[test]
fn the_title_is_the_screen_s_name_until_the_guest_gives_it_another() {
    let program = Program::start(&["-t", "Console of größe", "-c", "cat"]);
    assert_eq!(name(program.vnc), "Console of größe");
    let renamed = Program::showing(&["-t", "mine", "-c", "printf '\\033]2;its own\\007ready'; cat"], "ready");
    assert_eq!(name(renamed.vnc), "its own");
    assert_eq!(name(Program::start(&["-c", "cat"]).vnc), "Console");
}

/// All that was printed so far: who closes its half of a text connection gets that, and the end.
fn printed(port: u16) -> String {
    let mut stream = Program::connect(port);
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn one_that_stays_shows_what_a_command_left_behind() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("alive");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let program = Program::start(&["-s", "-c", &format!("exec 3>{}; echo last words", fifo.display())]);
    // The terminal is closed by now: an exiting process closes its lower descriptors first.
    assert_eq!(std::fs::read(&fifo).unwrap(), b"");
    for _ in 0..3 {
        assert_eq!(printed(program.text), "last words\r\n");
        assert!(program.picture().colours() > 1);
    }
    // Keys for nobody are no harm.
    Program::connect(program.text).write_all(b"hello?\r").unwrap();
    assert_eq!(printed(program.text), "last words\r\n");
}

/// A port, and not the next one, that nobody had when it was looked for.
fn taken() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

#[test]
fn a_display_that_is_taken_is_followed_by_the_next_that_is_free() {
    let (_listener, port) = taken();
    // Displays are counted from 5900; ports that the kernel gives out are beyond that.
    let display = port - 5900;
    let program = Program::start(&["-v", &format!("127.0.0.1:{display}"), "-c", "cat"]);
    assert!(program.vnc > port && program.vnc <= port + 1000, "{} after {port}", program.vnc);
    assert!(program.text >= display + 9500, "{}", program.text);
    read_until(&mut Program::connect(program.vnc), "RFB 003.008\n");
    // The other loopback address is another one.
    let v6 = Program::start(&["-v", &format!("[::1]:{display}"), "-c", "cat"]);
    let stream = TcpStream::connect((Ipv6Addr::LOCALHOST, v6.vnc)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    read_until(&mut &stream, "RFB 003.008\n");
    let refused =
        Command::new(env!("CARGO_BIN_EXE_vncterm")).args(["-v", "0.0.0.0:1", "-c", "cat"]).output().unwrap();
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && error.contains("loopback"), "{error}");
}

/// Given a console's place in the store, it says there where it listens, and waits for its terminal's name.
#[test]
fn a_console_is_found_and_announced_in_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let store = SharedStore::new();
    let socket = directory.path().join("socket");
    let _listening = listen(&store, &socket).unwrap();
    let mut client = store.client(xenstore::DomId::DOM0);
    let console = "/local/domain/7/console";
    let node = |name: &str| xenstore::Path::new(&format!("{console}/{name}")).unwrap();
    let (mut guest, tty) = guest();

    let mut child = Command::new(env!("CARGO_BIN_EXE_vncterm"));
    child.args(["-x", console, "-T"]).env("XENSTORED_PATH", &socket).stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    // It prints its ports once it has the terminal, and it has that when it is told of it.
    client.write(&node("tty"), tty.as_bytes()).unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let said = read_until(&mut stdout, "tc-port ");
    let mut port = |name: &str| client.read_str(&node(name)).unwrap().expect("it was written");
    let (vnc, text) = (port("vnc-port"), port("tc-port"));
    assert!(said.contains(&format!("vnc-port {vnc}\n")), "{said}");
    guest.write_all(b"login: ").unwrap();
    let mut reader = Program::connect(text.parse().unwrap());
    read_until(&mut reader, "login: ");
    reader.write_all(b"root").unwrap();
    read_until(&mut guest, "root");
    read_until(&mut Program::connect(vnc.parse().unwrap()), "RFB 003.008\n");
    // The guest's end is its end.
    drop(guest);
    assert!(child.wait().unwrap().success());
}
