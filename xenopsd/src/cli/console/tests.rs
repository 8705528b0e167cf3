//! The console against a real pseudo-terminal whose master plays xenconsoled.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use nix::pty::openpty;
use nix::unistd::ttyname;

use super::attach::{ESCAPE, Pump, RawMode, until_escape};
use super::*;

fn pty() -> (File, OwnedFd, String) {
    let pair = openpty(None, None).unwrap();
    let name = ttyname(&pair.slave).unwrap().to_string_lossy().into_owned();
    (File::from(pair.master), pair.slave, name)
}

fn link(terminal: &Terminal) -> std::os::fd::BorrowedFd<'_> {
    match &terminal.link {
        Link::Pty(pty) => pty.as_fd(),
        Link::Socket(socket) => socket.as_fd(),
    }
}

/// Types `typed`, lets `guest` play the other side, and returns why it ended and what was shown.
fn session(terminal: &Terminal, typed: &[u8], guest: impl FnOnce() + Send) -> (End, Vec<u8>) {
    let (input, mut keyboard) = std::io::pipe().unwrap();
    let (mut screen, output) = std::io::pipe().unwrap();
    keyboard.write_all(typed).unwrap();
    let end = std::thread::scope(|scope| {
        let player = scope.spawn(guest);
        let mut pump = Pump {
            input: Some(input.as_fd()),
            output: output.as_fd(),
            remote: link(terminal),
            signals: None,
            pending: Vec::new(),
        };
        let end = pump.run().unwrap();
        player.join().unwrap();
        end
    });
    drop(output);
    let mut shown = Vec::new();
    screen.read_to_end(&mut shown).unwrap();
    (end, shown)
}

#[test]
fn bytes_go_both_ways_untouched_until_the_escape() {
    let (mut master, _slave, name) = pty();
    let terminal = open_pty(3, &name).unwrap();
    let typed = [b"a\x03\r\n\xff".as_slice(), &[ESCAPE], b"lost"].concat();
    let (end, _) = session(&terminal, &typed, || ());
    assert_eq!(end, End::Escaped);
    let mut received = [0; 5];
    master.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"a\x03\r\n\xff");
}

/// The kernel discards what was not read when the master closes, so the guest waits until it was seen.
#[test]
fn what_the_guest_says_is_shown_and_its_end_is_noticed() {
    let (mut master, slave, name) = pty();
    let terminal = open_pty(3, &name).unwrap();
    drop(slave);
    let (mut screen, output) = std::io::pipe().unwrap();
    let end = std::thread::scope(|scope| {
        let pump = scope.spawn(|| {
            let remote = link(&terminal);
            Pump { input: None, output: output.as_fd(), remote, signals: None, pending: Vec::new() }.run()
        });
        let said = b"Linux version 6.1\r\nlogin: ";
        master.write_all(said).unwrap();
        let mut shown = vec![0; said.len()];
        screen.read_exact(&mut shown).unwrap();
        assert_eq!(shown, said);
        drop(master);
        pump.join().unwrap().unwrap()
    });
    assert_eq!(end, End::HungUp);
}

#[test]
fn a_signal_ends_the_session() {
    let (_master, _slave, name) = pty();
    let terminal = open_pty(3, &name).unwrap();
    let (signal, mut sender) = std::io::pipe().unwrap();
    let (_screen, output) = std::io::pipe().unwrap();
    sender.write_all(b"s").unwrap();
    let remote = link(&terminal);
    let signals = Some(signal.as_fd());
    let mut pump = Pump { input: None, output: output.as_fd(), remote, signals, pending: Vec::new() };
    assert_eq!(pump.run(), Ok(End::Signalled));
}

#[test]
fn a_second_reader_is_turned_away() {
    let (_master, _slave, name) = pty();
    let first = open_pty(3, &name).unwrap();
    assert!(matches!(open_pty(3, &name), Err(ConsoleError::Busy { domid: 3 })));
    drop(first);
    assert!(open_pty(3, &name).is_ok());
}

#[test]
fn only_pseudo_terminals_are_opened() {
    for path in [
        "",
        "/dev/null",
        "/etc/shadow",
        "/dev/pts/",
        "/dev/pts/../null",
        "/dev/pts/0/x",
        "/dev/pts/ptmx",
        "/dev/pts/1234567890",
    ] {
        let refused = open_pty(3, path).unwrap_err();
        assert!(matches!(refused, ConsoleError::NotATerminal { .. }), "{path}: {refused}");
    }
    let absent = open_pty(3, "/dev/pts/999999999").unwrap_err();
    assert!(matches!(absent, ConsoleError::Io { action: "open", .. }), "{absent}");
}

#[test]
fn a_terminal_servers_socket_is_used_when_offered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let console =
        Console { protocol: ConsoleProtocol::Vt100, port: 0, path: path.to_string_lossy().into_owned() };
    let terminal = open_offered(3, &console).unwrap();
    let (end, shown) = session(&terminal, b"", || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hello").unwrap();
    });
    assert_eq!((end, shown.as_slice()), (End::HungUp, b"hello".as_slice()));
    let port = Console { protocol: ConsoleProtocol::Vt100, port: -1, path: String::new() };
    assert!(matches!(open_offered(3, &port), Err(ConsoleError::Io { .. })));
}

#[test]
fn an_hvm_guests_serial_port_comes_first() {
    assert_eq!(nodes(3, DomainType::Hvm), ["/local/domain/3/serial/0/tty", "/local/domain/3/console/tty"]);
    assert_eq!(nodes(3, DomainType::Pvh), ["/local/domain/3/console/tty"]);
}

#[test]
fn the_escape_ends_what_is_typed() {
    assert_eq!(until_escape(b"abc"), (b"abc".as_slice(), false));
    assert_eq!(until_escape(b"ab\x1dc"), (b"ab".as_slice(), true));
    assert_eq!(until_escape(b"\x1d"), (b"".as_slice(), true));
}

#[test]
fn the_terminal_is_given_back_as_it_was() {
    let (_master, slave, _) = pty();
    let before = tcgetattr(&slave).unwrap();
    let raw = RawMode::enter(slave.as_fd()).unwrap().expect("a terminal");
    assert_ne!(tcgetattr(&slave).unwrap(), before);
    drop(raw);
    assert_eq!(tcgetattr(&slave).unwrap(), before);
    let (pipe, _writer) = std::io::pipe().unwrap();
    assert!(RawMode::enter(pipe.as_fd()).unwrap().is_none());
}

/// A store with one node, which is absent, then empty, then names a terminal: each read sees the next of these, and
/// each but the last fires the watch. Serves the connection that reads and the one that watches.
fn store_with(values: &'static [Option<&'static [u8]>]) -> (tempfile::TempDir, Endpoint) {
    const READ: u32 = 2;
    const WATCH: u32 = 4;
    const EVENT: u32 = 15;
    const ERROR: u32 = 16;
    fn send(stream: &mut UnixStream, kind: u32, id: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap();
        let mut message: Vec<u8> = [kind, id, 0, length].iter().flat_map(|word| word.to_ne_bytes()).collect();
        message.extend_from_slice(payload);
        // The client has gone when it has what it wants.
        let _ = stream.write_all(&message);
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let (registered, watches) = std::sync::mpsc::channel::<(UnixStream, Vec<u8>)>();
    let watches = std::sync::Mutex::new(watches);
    std::thread::spawn(move || {
        let shared = (std::sync::atomic::AtomicUsize::new(0), watches);
        std::thread::scope(|scope| {
            for stream in listener.incoming().take(2) {
                let (shared, registered) = (&shared, registered.clone());
                scope.spawn(move || {
                    let mut stream = stream.unwrap();
                    let mut header = [0; 16];
                    while stream.read_exact(&mut header).is_ok() {
                        let word = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
                        let (kind, id) = (word(0), word(4));
                        let mut payload = vec![0; usize::try_from(word(12)).unwrap()];
                        stream.read_exact(&mut payload).unwrap();
                        match kind {
                            WATCH => {
                                send(&mut stream, WATCH, id, b"OK\0");
                                registered.send((stream.try_clone().unwrap(), payload)).unwrap();
                            }
                            READ => {
                                let turn = shared.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                                match values.get(turn).copied().flatten() {
                                    Some(value) => send(&mut stream, READ, id, value),
                                    None => send(&mut stream, ERROR, id, b"ENOENT\0"),
                                }
                                if turn + 1 < values.len() {
                                    let watches = shared.1.lock().unwrap();
                                    let (mut watcher, watch) = watches.recv().unwrap();
                                    send(&mut watcher, EVENT, 0, &watch);
                                    registered.send((watcher, watch)).unwrap();
                                }
                            }
                            other => panic!("request {other}"),
                        }
                    }
                });
            }
        });
    });
    (dir, Endpoint::Socket(path))
}

#[test]
fn a_terminal_that_is_not_there_yet_is_waited_for() {
    let (_dir, store) = store_with(&[None, Some(b""), Some(b"/dev/pts/7")]);
    let nodes = nodes(3, DomainType::Pvh);
    assert_eq!(find_terminal(&store, 3, &nodes, Duration::from_secs(30)).unwrap(), "/dev/pts/7");
}

#[test]
fn waiting_for_a_terminal_ends() {
    let (_dir, store) = store_with(&[None]);
    let error = find_terminal(&store, 3, &nodes(3, DomainType::Pvh), Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, ConsoleError::NoTerminal { domid: 3, .. }), "{error}");
    let absent = Endpoint::Socket("/nonexistent/socket".into());
    let error = find_terminal(&absent, 3, &nodes(3, DomainType::Pvh), Duration::from_secs(1)).unwrap_err();
    assert!(matches!(error, ConsoleError::Store { domid: 3, .. }), "{error}");
}

/// A terminal server that ends, one that does not, and one that has more than there can be.
#[test]
fn a_log_is_read_to_its_end_within_limits() {
    const SHORT: Duration = Duration::from_millis(100);
    let (mut server, client) = UnixStream::pair().unwrap();
    let player = std::thread::spawn(move || {
        server.write_all(b"Linux version 6.1\r\n").unwrap();
        // The client has said that it wants no more than this.
        assert_eq!(server.read(&mut [0]).unwrap(), 0);
    });
    assert_eq!(log(client.into()).unwrap(), b"Linux version 6.1\r\n");
    player.join().unwrap();

    let (_silent, client) = UnixStream::pair().unwrap();
    let late = log::read_within(client.into(), SHORT).unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::TimedOut);

    let (mut endless, client) = UnixStream::pair().unwrap();
    let player = std::thread::spawn(move || while endless.write_all(&[b'y'; 8192]).is_ok() {});
    let long = log(client.into()).unwrap_err();
    assert_eq!(long.kind(), io::ErrorKind::FileTooLarge);
    player.join().unwrap();
}
