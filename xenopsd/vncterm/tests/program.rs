//! The program as it is run: on a command, on a pseudo-terminal, jailed; with clients that behave and that do not.

mod common;

use std::fs::Permissions;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use common::{LIMIT, Program, guest, read_until};
use nix::sys::signal::Signal;

/// A viewer in its normal phase; the screen's width and height.
fn viewer(port: u16, shared: u8) -> (TcpStream, u16, u16) {
    let mut stream = Program::connect(port);
    let mut bytes = [0; 12];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"RFB 003.008\n");
    stream.write_all(b"RFB 003.008\n").unwrap();
    stream.read_exact(&mut bytes[..2]).unwrap();
    stream.write_all(&[1]).unwrap();
    stream.read_exact(&mut bytes[..4]).unwrap();
    stream.write_all(&[shared]).unwrap();
    let mut init = [0; 24];
    stream.read_exact(&mut init).unwrap();
    let mut name = vec![0; usize::from(init[23])];
    stream.read_exact(&mut name).unwrap();
    (stream, u16::from_be_bytes([init[0], init[1]]), u16::from_be_bytes([init[2], init[3]]))
}

/// Presses a key; `\r` is Return.
fn key(stream: &mut TcpStream, key: u8) {
    let high = if key == b'\r' { 0xff } else { 0 };
    stream.write_all(&[4, 1, 0, 0, 0, 0, high, key, 4, 0, 0, 0, 0, 0, high, key]).unwrap();
}

#[test]
fn a_command_is_typed_to_by_viewers_and_read_by_text_clients() {
    let program = Program::start(&["-c", "echo ready; read line; echo got-$line; read rest"]);
    let mut text = Program::connect(program.text);
    read_until(&mut text, "ready");
    let (mut viewer, width, height) = viewer(program.vnc, 1);
    assert_eq!((width, height), (640, 384));
    viewer.write_all(&[3, 0, 0, 0, 0, 0, 2, 128, 1, 128]).unwrap();
    let mut update = [0; 16];
    viewer.read_exact(&mut update).unwrap();
    assert_eq!(
        update,
        [0, 0, 0, 1, 0, 0, 0, 0, 2, 128, 1, 128, 0, 0, 0, 0],
        "one raw rectangle of everything"
    );
    let mut pixels = vec![0; 640 * 384 * 4];
    viewer.read_exact(&mut pixels).unwrap();
    assert!(pixels.iter().any(|byte| *byte != 0), "there is text");
    for pressed in *b"hi\r" {
        key(&mut viewer, pressed);
    }
    read_until(&mut text, "got-hi");
    // Who comes later is first shown what was printed before.
    read_until(&mut Program::connect(program.text), "got-hi");
}

#[test]
fn a_viewer_that_wants_to_be_alone_is() {
    let program = Program::start(&["-c", "cat"]);
    let (mut first, ..) = viewer(program.vnc, 1);
    let (_second, ..) = viewer(program.vnc, 0);
    assert_eq!(first.read(&mut [0; 16]).unwrap(), 0, "the first was dropped");
}

#[test]
fn thousands_of_connections_leave_it_serving() {
    let program = Program::start(&["-c", "cat"]);
    let junk: [&[u8]; 5] = [
        b"",
        b"GET / HTTP/1.0\r\n\r\n",
        b"RFB 003.008\n\x01\x01\xff",
        &[0; 64],
        b"RFB 003.003\n\x00\x06\0\0\0\xff\xff\xff\xff",
    ];
    for n in 0..2000 {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, program.vnc)).unwrap();
        // It may be sent away before it has said all.
        let _ = stream.write_all(junk[n % junk.len()]);
    }
    // More than may be in their handshake at once: the oldest give way.
    let idle: Vec<_> = (0..20).map(|_| Program::connect(program.vnc)).collect();
    viewer(program.vnc, 1);
    drop(idle);
}

#[test]
fn a_viewer_that_does_not_read_costs_others_nothing() {
    let program = Program::start(&["-c", "read go; while :; do cat /proc/self/maps; done"]);
    let (mut idle, ..) = viewer(program.vnc, 1);
    // It asks for the whole screen for ever and reads nothing.
    idle.set_nonblocking(true).unwrap();
    while idle.write(&[3, 0, 0, 0, 0, 0, 2, 128, 1, 128].repeat(1000)).is_ok() {}
    let (mut other, ..) = viewer(program.vnc, 1);
    key(&mut other, b'\r');
    for _ in 0..5 {
        other.write_all(&[3, 0, 0, 0, 0, 0, 2, 128, 1, 128]).unwrap();
        let mut update = vec![0; 16 + 640 * 384 * 4];
        other.read_exact(&mut update).unwrap();
        assert_eq!(update[..4], [0, 0, 0, 1]);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 32 << 10, "{kilobytes} kB");
}

#[test]
fn a_saved_screen_is_shown_again() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state").to_string_lossy().into_owned();
    let mut program = Program::start(&["-c", "echo before-the-move; read rest", "--savestate", &state]);
    read_until(&mut Program::connect(program.text), "before-the-move");
    program.signal(Signal::SIGTERM);
    assert!(program.child.wait().unwrap().success());
    let saved = std::fs::read(&state).unwrap();
    let restored = vncterm::term::Terminal::restore(&saved).unwrap();
    assert!(restored.text().contains("before-the-move"));
    let again = Program::start(&["-c", "read rest", "--loadstate", &state, "--savestate", &state]);
    again.signal(Signal::SIGUSR1);
    viewer(again.vnc, 1);
    let refused = directory.path().join("bad");
    std::fs::write(&refused, b"VNCTERM\0\x09\0\0\0").unwrap();
    let bad = Command::new(env!("CARGO_BIN_EXE_vncterm")).arg("-l").arg(&refused).output().unwrap();
    let error = String::from_utf8_lossy(&bad.stderr);
    assert!(!bad.status.success() && error.contains("version 9"), "{error}");
}

#[test]
fn a_command_is_run_again_when_it_ends() {
    let program = Program::start(&["-r", "-c", "echo once-more"]);
    let mut text = Program::connect(program.text);
    read_until(&mut text, "once-more");
    read_until(&mut text, "once-more");
    let mut ends = Program::start(&["-c", "true"]);
    assert!(ends.child.wait().unwrap().success());
}

/// A command's processes get the signals that end them, whatever whoever started this ignored or blocked, and so none
/// outlives its terminal.
#[test]
fn a_command_is_ended_with_its_terminal_even_under_nohup() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("alive");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // The loop in the background is not the process that vncterm kills: the hang-up of its terminal ends it. It holds
    // the pipe open as long as it lives.
    let command = format!(
        "grep -E '^Sig(Blk|Ign)' /proc/self/status; exec 3>{}; (while :; do cat /proc/self/stat; done) & \
         echo loops; wait",
        fifo.display()
    );
    let mut nohup = Command::new("nohup");
    nohup.args([env!("CARGO_BIN_EXE_vncterm"), "-T", "-c", &command]);
    let program = Program::run(&mut nohup);
    let mut alive = std::fs::File::open(&fifo).unwrap();
    let seen = read_until(&mut Program::connect(program.text), "loops");
    for name in ["SigBlk:\t", "SigIgn:\t"] {
        let signals = seen.split(name).nth(1).and_then(|rest| rest.split_whitespace().next());
        let signals = u64::from_str_radix(signals.unwrap(), 16).unwrap();
        // Signals 32 and 33 are the C library's own, and posix_spawn(3) leaves them ignored.
        assert_eq!(signals & !(3 << 31), 0, "{seen}");
    }
    program.signal(Signal::SIGKILL);
    let (told, ended) = std::sync::mpsc::channel();
    std::thread::spawn(move || told.send(alive.read_to_end(&mut Vec::new()).is_ok()));
    assert_eq!(ended.recv_timeout(LIMIT), Ok(true), "the loop goes on without a terminal");
}

#[test]
fn a_jailed_console_works_and_has_nothing_else() {
    assert!(nix::unistd::geteuid().is_root(), "run the tests as root");
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    let log = directory.path().join("log").to_string_lossy().into_owned();
    let root = directory.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let (mut master, name) = guest();
    let mut program = Program::start(&[
        "-p",
        &name,
        "--chroot",
        root.to_str().unwrap(),
        "--uid",
        "131077",
        "--gid",
        "131077",
        "--log",
        &log,
    ]);
    master.write_all(b"Linux version 6.1\r\nlogin: ").unwrap();
    let mut text = Program::connect(program.text);
    read_until(&mut text, "login: ");
    text.write_all(b"root\r").unwrap();
    read_until(&mut master, "root");
    let (mut seen, ..) = viewer(program.vnc, 1);
    key(&mut seen, b'x');
    read_until(&mut master, "x");
    assert!(std::fs::read_to_string(&log).unwrap().ends_with("login: "));
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(field("Uid:").split_whitespace().collect::<Vec<_>>(), ["131077"; 4]);
    assert_eq!(field("Gid:").split_whitespace().collect::<Vec<_>>(), ["131077"; 4]);
    assert_eq!(
        (field("Groups:").as_str(), field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()),
        ("", "1", "2")
    );
    for capabilities in ["CapPrm:", "CapEff:", "CapAmb:", "CapInh:"] {
        assert_eq!(field(capabilities), "0000000000000000");
    }
    let seen_root = std::fs::read_link(format!("/proc/{}/root", program.child.id())).unwrap();
    assert_eq!(seen_root, root);
    let net = |pid: &str| std::fs::read_link(Path::new("/proc").join(pid).join("ns/net")).unwrap();
    assert_ne!(net(&program.child.id().to_string()), net("self"));
    // When the guest goes, so does its console: within the filter, too.
    drop(master);
    assert!(program.child.wait().unwrap().success());
}
