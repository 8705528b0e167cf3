//! The program as tests run it, and what is read from it.
#![allow(dead_code, reason = "each test program uses a part")]

use std::io::{BufRead as _, BufReader, Read};
use std::net::{Ipv4Addr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xenopsd::rfb::{Address, Picture, capture, open};

/// Longest wait for anything: far beyond what is needed, so that a hang fails rather than waits for ever.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A terminal server with both of its ports.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) vnc: u16,
    pub(crate) text: u16,
    _stdout: BufReader<ChildStdout>,
}

impl Program {
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_vncterm")).arg("-T").args(arguments))
    }

    /// One on which `until` is to be read.
    pub(crate) fn showing(arguments: &[&str], until: &str) -> Self {
        let program = Self::start(arguments);
        read_until(&mut Self::connect(program.text), until);
        program
    }

    pub(crate) fn run(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut port = |name: &str| -> u16 {
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            line.trim().strip_prefix(name).unwrap_or_else(|| panic!("{line}")).trim().parse().unwrap()
        };
        let (vnc, text) = (port("vnc-port"), port("tc-port"));
        Self { child, vnc, text, _stdout: stdout }
    }

    pub(crate) fn connect(port: u16) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// What a viewer of our own sees.
    pub(crate) fn picture(&self) -> Picture {
        capture(&mut open(&Address::Port(self.vnc), LIMIT).unwrap(), LIMIT).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until `text` was seen; all that came.
pub(crate) fn read_until(stream: &mut impl Read, text: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !String::from_utf8_lossy(&seen).contains(text) {
        let count = stream.read(&mut buffer).unwrap_or_else(|e| panic!("{text:?} did not come: {e}"));
        assert!(count > 0, "closed before {text:?}: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// A guest's console: the end that xenconsoled holds, and the name of the other.
pub(crate) fn guest() -> (nix::pty::PtyMaster, String) {
    use nix::fcntl::OFlag;
    let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC).unwrap();
    nix::pty::grantpt(&master).unwrap();
    nix::pty::unlockpt(&master).unwrap();
    let name = nix::pty::ptsname_r(&master).unwrap();
    (master, name)
}

/// A program of another author that runs beside a test, under timeout(1): a minute, and no longer than the test.
pub(crate) struct Other(pub(crate) Child);

impl Other {
    /// Seconds: a browser's first start on a busy machine takes ten.
    const LIFE: &str = "60";

    pub(crate) fn start(program: &str, with: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", Self::LIFE, program]).stdin(Stdio::null());
        with(&mut command);
        Self(command.spawn().unwrap_or_else(|error| panic!("{program}: {error}")))
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // timeout(1) hands it on.
        let _ = kill(Pid::from_raw(self.0.id().try_into().unwrap()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}
