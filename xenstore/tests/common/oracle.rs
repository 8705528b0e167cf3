//! Debian's own xenstored, in C and in OCaml, on a machine without Xen; and guests that speak to them through rings.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use tempfile::TempDir;
use xenstore::wire::{Decoder, Errno, Frame, Kind, Payload};
use xenstore::{Client, DomId, Endpoint, Operations, Request, TxId};

/// Which implementation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Daemon {
    C,
    Ocaml,
}

impl Daemon {
    pub(crate) const BOTH: [Self; 2] = [Self::C, Self::Ocaml];

    const fn program(self) -> &'static str {
        match self {
            Self::C => "xenstored",
            Self::Ocaml => "oxenstored",
        }
    }

    /// The newest one that is installed.
    fn find(self) -> Option<PathBuf> {
        let versions = fs::read_dir("/usr/lib").ok()?.filter_map(|e| Some(e.ok()?.path()));
        let programs = versions
            .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("xen-")))
            .map(|p| p.join("bin").join(self.program()));
        programs.filter(|p| p.exists()).max()
    }
}

/// A running daemon with a directory of its own.
pub(crate) struct Oracle {
    pub(crate) daemon: Daemon,
    program: PathBuf,
    directory: TempDir,
    child: Child,
    events: File,
}

/// Runs `test` against each daemon that is installed.
pub(crate) fn with_each(test: impl Fn(&mut Oracle)) {
    for daemon in Daemon::BOTH {
        match daemon.find() {
            Some(program) => {
                eprintln!("-- {}", program.display());
                test(&mut Oracle::start(daemon, program));
            }
            None => eprintln!("skipped: {} is not installed (Debian package xen-utils)", daemon.program()),
        }
    }
}

/// The shim, built once per test program.
fn shim() -> &'static FilePath {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/oracle/shim.c");
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let own = directory.join(format!("xenstored-shim-{}.so", std::process::id()));
        let out = directory.join("xenstored-shim.so");
        let status = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", source, "-ldl", "-o"])
            .arg(&own)
            .status()
            .expect("a C compiler is needed, as for the ffi crate");
        assert!(status.success(), "{source} does not compile; are the Xen headers installed (libxen-dev)?");
        // Other test programs may be using the one that is there.
        fs::rename(&own, &out).unwrap();
        out
    })
}

impl Oracle {
    fn start(daemon: Daemon, program: PathBuf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["to-daemon", "from-daemon"] {
            mkfifo(&at(name), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        }
        fs::write(at("xsd_kva"), [0; 4096]).unwrap();
        fs::write(at("xsd_port"), "2").unwrap();
        fs::write(at("conf"), configuration(directory.path())).unwrap();
        let events = OpenOptions::new().read(true).write(true).open(at("from-daemon")).unwrap();
        let child = run(daemon, &program, directory.path());
        let mut oracle = Self { daemon, program, directory, child, events };
        oracle.wait_for(0);
        oracle
    }

    /// Kills the daemon and starts another, with an empty store, at the same place.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.child = run(self.daemon, &self.program, self.directory.path());
        self.wait_for(0);
    }

    fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(self.socket());
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub(crate) fn endpoint(&self) -> Endpoint {
        Endpoint::Socket(self.socket())
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect_to(self.endpoint()).unwrap()
    }

    /// What a program of Debian's says, if it is installed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Option<String> {
        let mut command = Command::new(program);
        match command.args(args).env("XENSTORED_PATH", self.socket()).output() {
            Ok(output) => {
                assert!(output.status.success(), "{program} {args:?}: {output:?}");
                Some(String::from_utf8(output.stdout).unwrap())
            }
            Err(e) => {
                eprintln!("skipped: {program}: {e} (Debian package xenstore-utils)");
                None
            }
        }
    }

    /// Waits until the daemon notifies this event channel.
    fn wait_for(&mut self, port: u32) {
        loop {
            let mut fds = [PollFd::new(self.events.as_fd(), PollFlags::POLLIN)];
            assert_eq!(poll(&mut fds, PollTimeout::from(20_000u16)), Ok(1), "{:?} is silent", self.daemon);
            let mut bytes = [0; 4];
            self.events.read_exact(&mut bytes).unwrap();
            if u32::from_ne_bytes(bytes) == port {
                return;
            }
        }
    }

    /// Introduces a domain and plays it.
    pub(crate) fn guest(&mut self, domid: DomId) -> Guest<'_> {
        self.client().introduce(domid, 1, 1).unwrap();
        let open = |name: String| {
            OpenOptions::new().read(true).write(true).open(self.directory.path().join(name)).unwrap()
        };
        let ring = open(format!("ring-{domid}"));
        let notify = open("to-daemon".to_owned());
        Guest { oracle: self, port: 1000 + u32::from(domid.0), ring, notify }
    }
}

/// oxenstored's: everything in the directory, and Debian's limits for guests.
fn configuration(directory: &FilePath) -> String {
    let files = [
        ("pid-file", "pid"),
        ("xenstored-log-file", "log"),
        ("access-log-file", "access-log"),
        ("xenstored-kva", "xsd_kva"),
        ("xenstored-port", "xsd_port"),
    ];
    let limits =
        ["quota-activate = true", "quota-maxentity = 1000", "quota-maxsize = 2048", "quota-path-max = 1024"];
    let files = files.map(|(key, name)| format!("{key} = {}\n", directory.join(name).display()));
    files.concat() + &limits.join("\n") + "\n"
}

fn run(daemon: Daemon, program: &FilePath, directory: &FilePath) -> Child {
    let mut command = Command::new(program);
    match daemon {
        Daemon::C => command.arg("--no-fork").arg("--pid-file").arg(directory.join("pid")),
        Daemon::Ocaml => command.arg("--no-fork").arg("--config-file").arg(directory.join("conf")),
    };
    command.env("LD_PRELOAD", shim()).env("SHIM_DIR", directory).env("XENSTORED_RUNDIR", directory);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

impl Drop for Oracle {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A domain that speaks to the daemon through its ring (`docs/misc/xenstore-ring.txt`).
pub(crate) struct Guest<'a> {
    oracle: &'a mut Oracle,
    port: u32,
    ring: File,
    notify: File,
}

/// Bytes of each direction's buffer.
const RING: u32 = 1024;
const IN_PROD: u64 = 2052;
const OUT_CONS: u64 = 2056;
const OUT_PROD: u64 = 2060;

impl Guest<'_> {
    fn index(&self, at: u64) -> u32 {
        let mut bytes = [0; 4];
        self.ring.read_exact_at(&mut bytes, at).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn advance(&mut self, at: u64, by: u32) {
        let next = self.index(at).wrapping_add(by);
        self.ring.write_all_at(&next.to_le_bytes(), at).unwrap();
        self.notify.write_all(&self.port.to_ne_bytes()).unwrap();
    }

    /// One request that fits the ring, and its answer.
    pub(crate) fn request(&mut self, request: &Request) -> Result<Vec<u8>, Errno> {
        let mut message = Vec::new();
        request.append(TxId::NONE, 1, &mut message).unwrap();
        let start = self.index(IN_PROD);
        for (i, byte) in (0..).zip(&message) {
            self.ring.write_all_at(&[*byte], u64::from(start.wrapping_add(i) % RING)).unwrap();
        }
        self.advance(IN_PROD, u32::try_from(message.len()).unwrap());
        let mut decoder = Decoder::default();
        loop {
            self.oracle.wait_for(self.port);
            let (cons, prod) = (self.index(OUT_CONS), self.index(OUT_PROD));
            let mut bytes = vec![0; usize::try_from(prod.wrapping_sub(cons)).unwrap()];
            for (i, byte) in (0..).zip(bytes.iter_mut()) {
                let at = u64::from(RING + cons.wrapping_add(i) % RING);
                self.ring.read_exact_at(std::slice::from_mut(byte), at).unwrap();
            }
            self.advance(OUT_CONS, prod.wrapping_sub(cons));
            let mut input = &bytes[..];
            if let Some(Frame { header, payload: Payload::Whole(payload) }) =
                decoder.next(&mut input).unwrap()
            {
                return if header.kind == Kind::Error {
                    Err(Errno::from_wire(&payload))
                } else {
                    Ok(payload)
                };
            }
        }
    }
}
