//! As the daemon starts it: in the daemon's jail, with sockets handed in, waiting for its word.

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{LIMIT, guest, read_until};
use crossbeam::channel::bounded;
use guest_installer::worker::Worker;
use nix::pty::PtyMaster;
use vncterm::rfb::auth::Password;
use xenopsd::edge::linux::ends::Ends;
use xenopsd::edge::linux::terminal::{ConsoleLog, TerminalServers};
use xenopsd::edge::{
    BootLoader, DomId, FirmwarePaths, Host as _, LinuxHost, Prepared, TerminalSockets, TerminalWanted,
    VifScripts,
};
use xenopsd::rfb;

/// User number of domain 0's.
const BASE: u32 = 131_072;

struct Rig {
    host: LinuxHost,
    directory: tempfile::TempDir,
    guest: PtyMaster,
    tty: String,
    sockets: TerminalSockets,
}

impl Rig {
    fn new() -> Self {
        Self::with(Path::new(env!("CARGO_BIN_EXE_vncterm")))
    }

    fn with(program: &Path) -> Self {
        Self::logging(program, ConsoleLog { size: ConsoleLog::DEFAULT_SIZE, directory: None })
    }

    fn logging(program: &Path, log: ConsoleLog) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "run the tests as root");
        let host = LinuxHost {
            hooks: PathBuf::from("/nonexistent"),
            boot_loader: BootLoader {
                worker: Worker::default(),
                uid_base: BASE,
                kernel_limit: 0,
                unpacked_limit: 0,
                ramdisk_limit: 0,
                wall: Duration::ZERO,
                getter: Worker::fetching(),
                get_wall: Duration::from_secs(1),
            },
            firmware: FirmwarePaths::default(),
            terminals: TerminalServers::new(program.into(), BASE, log),
            ends: Ends::start().unwrap(),
            device_models: xenopsd::edge::linux::device_model::Settings::default(),
            storage: None,
            open_vswitch: "/nonexistent".into(),
            vif_scripts: VifScripts { default: None, directory: "/nonexistent".into() },
            cards: xenopsd::edge::linux::nic::Cards::default(),
        };
        let (guest, tty) = guest();
        let sockets = host.listen_for_terminal(true).unwrap();
        Self { host, directory: tempfile::tempdir().unwrap(), guest, tty, sockets }
    }

    fn screen(&self) -> PathBuf {
        self.directory.path().join("screens/vm")
    }

    fn prepare(&self, restore: bool) -> Result<Prepared, xenopsd::edge::HostError> {
        self.host.start_terminal(&TerminalWanted {
            vm: "vm",
            domid: DomId::new(7).unwrap(),
            tty: &self.tty,
            title: "a guest",
            screen: &self.screen(),
            restore,
            sockets: &self.sockets,
        })
    }

    fn text(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.sockets.ports.text)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }
}

fn field(pid: isize, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
}

#[test]
fn it_reads_nothing_before_its_word_and_serves_from_then_on() {
    let mut rig = Rig::new();
    rig.guest.write_all(b"login: ").unwrap();
    let prepared = rig.prepare(false).unwrap();
    let pid = prepared.process.pid;
    let (told, ended) = bounded(1);
    let _followed = rig
        .host
        .follow_process(&prepared.process, Box::new(move || told.send(()).unwrap()))
        .unwrap()
        .expect("it is there");
    // Nobody has read what the guest wrote.
    let tty = std::fs::File::open(&rig.tty).unwrap();
    let mut ready = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&tty), nix::poll::PollFlags::POLLIN)];
    assert_eq!(nix::poll::poll(&mut ready, nix::poll::PollTimeout::ZERO), Ok(1));
    (prepared.go)().unwrap();
    let mut text = rig.text();
    read_until(&mut text, "login: ");
    text.write_all(b"root\r").unwrap();
    read_until(&mut rig.guest, "root");
    // Who closes its half gets what was printed so far, and the end.
    let mut once = rig.text();
    once.shutdown(std::net::Shutdown::Write).unwrap();
    let mut all = String::new();
    once.read_to_string(&mut all).unwrap();
    assert_eq!(all, "login: ");

    let uid = (BASE + 7).to_string();
    for ids in ["Uid:", "Gid:"] {
        assert_eq!(field(pid, ids).split_whitespace().collect::<Vec<_>>(), [&uid[..]; 4]);
    }
    for capabilities in ["CapPrm:", "CapEff:", "CapBnd:", "CapAmb:", "CapInh:"] {
        assert_eq!(field(pid, capabilities), "0000000000000000", "{capabilities}");
    }
    let confined = ["Groups:", "NoNewPrivs:", "Seccomp:"].map(|name| field(pid, name));
    assert_eq!(confined, ["", "1", "2"]);
    let entries = std::fs::read_dir(format!("/proc/{pid}/root")).unwrap();
    assert_eq!(entries.count(), 0, "its root is empty");
    for namespace in ["net", "mnt", "pid", "ipc"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(of(&pid.to_string()), of("self"), "{namespace}");
    }
    // The guest's end is its end.
    drop(text);
    drop(rig.guest);
    assert_eq!(ended.recv_timeout(LIMIT), Ok(()));
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "and it is reaped");
}

#[test]
fn without_its_word_it_ends() {
    let rig = Rig::new();
    let prepared = rig.prepare(false).unwrap();
    let pid = prepared.process.pid;
    drop(prepared);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}

#[test]
fn its_screen_is_kept_when_it_is_stopped() {
    let mut rig = Rig::new();
    rig.guest.write_all(b"before the suspend").unwrap();
    for restore in [false, true] {
        let prepared = rig.prepare(restore).unwrap();
        (prepared.go)().unwrap();
        if !restore {
            read_until(&mut rig.text(), "before the suspend");
        }
        assert!(rig.host.stop_process(&prepared.process, LIMIT).unwrap(), "it ended by itself");
        assert!(rig.host.follow_process(&prepared.process, Box::new(|| ())).unwrap().is_none());
        let saved = std::fs::read(rig.screen()).unwrap();
        assert!(vncterm::term::Terminal::restore(&saved).unwrap().text().contains("before the suspend"));
    }
    // A damaged one is said to be, and nothing is left of the attempt.
    std::fs::write(rig.screen(), b"VNCTERM\0\x09\0\0\0").unwrap();
    let error = rig.prepare(true).err().unwrap().to_string();
    assert!(error.contains("version 9"), "{error}");
    // A new guest's begins empty.
    let prepared = rig.prepare(false).unwrap();
    (prepared.go)().unwrap();
    assert!(rig.host.stop_process(&prepared.process, LIMIT).unwrap());
    let saved = std::fs::read(rig.screen()).unwrap();
    assert!(!vncterm::term::Terminal::restore(&saved).unwrap().text().contains("before"));
}

/// Bounded in memory and on disk, and on disk it goes on when another process comes.
#[test]
fn the_console_s_log_is_kept_on_disk_if_asked() {
    let directory = tempfile::tempdir().unwrap();
    let log = ConsoleLog { size: 100, directory: Some(directory.path().join("consoles")) };
    let mut rig = Rig::logging(Path::new(env!("CARGO_BIN_EXE_vncterm")), log);
    let file = directory.path().join("consoles/vm.log");
    for round in 0..2 {
        let prepared = rig.prepare(false).unwrap();
        (prepared.go)().unwrap();
        rig.guest.write_all(format!("begin {round}\r\n").as_bytes()).unwrap();
        read_until(&mut rig.text(), &format!("begin {round}"));
        assert!(rig.host.stop_process(&prepared.process, LIMIT).unwrap());
        let kept = std::fs::read_to_string(&file).unwrap();
        assert!(kept.contains("begin 0") && kept.ends_with(&format!("begin {round}\r\n")), "{kept}");
    }
    let prepared = rig.prepare(false).unwrap();
    (prepared.go)().unwrap();
    rig.guest.write_all(&[&[b'x'; 2000][..], b"the end"].concat()).unwrap();
    read_until(&mut rig.text(), "the end");
    let mut once = rig.text();
    once.shutdown(std::net::Shutdown::Write).unwrap();
    let mut ring = String::new();
    once.read_to_string(&mut ring).unwrap();
    assert!(ring.len() == 100 && ring.ends_with("xthe end"), "{ring}");
    assert!(rig.host.stop_process(&prepared.process, LIMIT).unwrap());
    let kept = std::fs::read_to_string(&file).unwrap();
    assert!(kept.len() <= 200 && kept.ends_with("xthe end"), "{kept}");
    // A file of somebody else's choice is not written to, and the guest has its console without it.
    std::fs::remove_file(&file).unwrap();
    let other = directory.path().join("other");
    std::fs::write(&other, "untouched").unwrap();
    std::os::unix::fs::symlink(&other, &file).unwrap();
    let prepared = rig.prepare(false).unwrap();
    (prepared.go)().unwrap();
    rig.guest.write_all(b"without a file").unwrap();
    read_until(&mut rig.text(), "without a file");
    assert!(rig.host.stop_process(&prepared.process, LIMIT).unwrap());
    assert_eq!(std::fs::read_to_string(&other).unwrap(), "untouched");
}

/// Of a serial port: no screen, no port for one, and no password, as only viewers are asked for it.
#[test]
fn one_without_a_screen_serves_the_text_only() {
    let mut rig = Rig::new();
    rig.host.terminals.password = Some("/nonexistent".into());
    rig.sockets = rig.host.listen_for_terminal(false).unwrap();
    assert_eq!((rig.sockets.ports.vnc, rig.sockets.sockets.len()), (None, 1));
    let prepared = rig.prepare(false).unwrap();
    (prepared.go)().unwrap();
    rig.guest.write_all(b"SeaBIOS").unwrap();
    read_until(&mut rig.text(), "SeaBIOS");
    // Who comes later gets what was said before, first.
    let mut late = rig.text();
    read_until(&mut late, "SeaBIOS");
    late.write_all(b"x").unwrap();
    read_until(&mut rig.guest, "x");
    let listening = std::fs::read_dir(format!("/proc/{}/fd", prepared.process.pid)).unwrap();
    let sockets = listening
        .filter(|fd| {
            let target = std::fs::read_link(fd.as_ref().unwrap().path()).unwrap_or_default();
            target.to_string_lossy().starts_with("socket:")
        })
        .count();
    // The listener, two readers, and both of the pair that it was told to start by.
    assert!(sockets <= 5, "{sockets}");
    assert!(rig.host.stop_process(&prepared.process, LIMIT).unwrap());
}

/// Never on its command line or in its environment, and not guessed for want of a file.
#[test]
fn viewers_must_know_the_password_if_there_is_one() {
    let mut rig = Rig::new();
    let file = rig.directory.path().join("password");
    rig.host.terminals.password = Some(file.clone());
    let refused = |rig: &Rig, why: &str| {
        let error = rig.prepare(false).err().unwrap().to_string();
        assert!(error.contains(why) && error.contains("vncterm-password-file"), "{error}");
    };
    refused(&rig, "No such file");
    for (text, why) in [("", "empty"), ("123456789", "more than 8 bytes"), ("s3cr3t-x", "chmod 600")] {
        std::fs::write(&file, text).unwrap();
        let mode = if why == "chmod 600" { 0o640 } else { 0o600 };
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        refused(&rig, why);
    }
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let prepared = rig.prepare(false).unwrap();
    let pid = prepared.process.pid;
    (prepared.go)().unwrap();
    rig.guest.write_all(b"login: ").unwrap();
    read_until(&mut rig.text(), "login: ");
    let picture = |password: Option<&[u8]>| {
        let password = password.map(|text| Password::new(text).unwrap());
        let mut stream = rfb::open(&rfb::Address::Port(rig.sockets.ports.vnc.unwrap()), LIMIT).unwrap();
        rfb::capture_as(password.as_ref(), &mut stream, LIMIT)
    };
    assert!(picture(Some(b"s3cr3t-x")).unwrap().colours() > 1);
    let without = picture(None).unwrap_err().to_string();
    assert!(without.contains("types [2]"), "{without}");
    for guess in 0..6 {
        let why = if guess < 5 { "the password is wrong" } else { "too many wrong passwords" };
        let wrong = picture(Some(b"s3cr3t-y")).unwrap_err().to_string();
        assert!(wrong.contains(why), "{guess}: {wrong}");
    }
    for name in ["cmdline", "environ"] {
        let seen = std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
        assert!(!seen.windows(6).any(|part| part == b"s3cr3t"), "{name}");
    }
    assert!(rig.host.stop_process(&prepared.process, LIMIT).unwrap());
}

#[test]
fn what_cannot_be_started_says_why() {
    for (program, why) in [("/bin/false", "did not become ready"), ("/nonexistent", "/nonexistent")] {
        let rig = Rig::with(Path::new(program));
        let error = rig.prepare(false).err().unwrap().to_string();
        assert!(error.contains(why), "{program}: {error}");
    }
    let missing = Rig::with(Path::new("/nonexistent")).host.check_terminal().unwrap_err();
    assert!(missing.to_string().contains("--vncterm"), "{missing}");
}

#[test]
fn ports_are_of_this_host_only_and_not_used_again_at_once() {
    let Rig { host, sockets, .. } = Rig::new();
    let first = sockets.ports;
    drop(sockets);
    let next = host.listen_for_terminal(true).unwrap();
    assert!(next.ports.vnc != first.vnc && next.ports.text != first.text);
    let listening = std::fs::read_to_string("/proc/net/tcp").unwrap();
    for port in [next.ports.vnc.unwrap(), next.ports.text] {
        let local = format!("0100007F:{port:04X}");
        assert!(listening.contains(&local), "{local}");
        assert!(!listening.contains(&format!("00000000:{port:04X}")));
    }
}
