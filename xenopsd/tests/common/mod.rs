//! `xenopsd --simulate` as a process, for tests of what it does on its sockets.

#![allow(dead_code, reason = "each test file uses another part of it")]

pub(crate) mod switch;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use tempfile::TempDir;
use xenopsd::api::{Vbd, Vif, Vm};
use xenopsd::rpc::{Client, Codec};
use xenstore::Endpoint;

/// Long enough for a loaded machine, short enough for a test that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon in directories of its own, killed at the end.
pub(crate) struct Daemon {
    child: Child,
    pub(crate) directory: TempDir,
}

impl Daemon {
    /// In a new directory.
    pub(crate) fn new() -> Self {
        Self::start(TempDir::new().unwrap(), &[])
    }

    /// In a directory that may hold another one's records, with further arguments.
    pub(crate) fn start(directory: TempDir, arguments: &[String]) -> Self {
        Self::run(Command::new(env!("CARGO_BIN_EXE_xenopsd")), directory, arguments)
    }

    /// In a new directory, with so many open files at most.
    pub(crate) fn with_files(files: u32) -> Self {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={files}:{files}")).arg(env!("CARGO_BIN_EXE_xenopsd"));
        Self::run(command, TempDir::new().unwrap(), &[])
    }

    /// With a command that may have an environment of its own.
    pub(crate) fn run(mut command: Command, directory: TempDir, arguments: &[String]) -> Self {
        let at = |name: &str| directory.path().join(name);
        let mut child = command
            .arg("--simulate")
            .args(["--simulate-memory-mib", "4096"])
            .arg(format!("--sockets-path={}", at("sockets").display()))
            .arg(format!("--database-path={}", at("db").display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains(" ready ") {
            line.clear();
            assert_ne!(log.read_line(&mut line).unwrap(), 0, "the daemon ended before it was ready");
            eprint!("{line}");
        }
        // The log must go somewhere, lest the daemon stop at a full pipe.
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(|line| eprintln!("{line}")));
        Self { child, directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn socket(&self, codec: Codec) -> PathBuf {
        self.path(if codec == Codec::Xml { "sockets/xenopsd" } else { "sockets/xenopsd.json" })
    }

    pub(crate) fn client(&self, codec: Codec) -> Client {
        Client::new(self.socket(codec), codec).with_timeout(Some(PATIENCE))
    }

    pub(crate) fn output(&self, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_xenops"), "--socket"]).arg(self.path("sockets/xenopsd"));
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// What `xenops` prints.
    pub(crate) fn xenops(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "xenops {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn store(&self) -> xenstore::Client {
        let endpoint = Endpoint::Socket(self.path("sockets/xenstored"));
        let mut client = xenstore::Client::connect_to(endpoint).unwrap();
        client.set_timeout(Duration::from_secs(20));
        client
    }

    /// Whether it is still the process that was started.
    pub(crate) fn lives(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub(crate) fn pid(&self) -> nix::unistd::Pid {
        nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Asks it to end and returns its directory.
    pub(crate) fn stop(mut self) -> TempDir {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        self.leave()
    }

    /// Kills it and returns its directory.
    pub(crate) fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.leave()
    }

    fn leave(&mut self) -> TempDir {
        std::mem::replace(&mut self.directory, TempDir::new().unwrap())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A configuration in xl's format, with a kernel that the simulator takes.
fn text(directory: &Path, name: &str) -> String {
    let kernel = directory.join("kernel");
    std::fs::write(&kernel, b"\x7fELF for the simulator").unwrap();
    format!(
        "name = \"{name}\"\ntype = \"pv\"\nkernel = \"{}\"\nmemory = 128\nvcpus = 2\n\
         disk = [\"/srv/{name}.img,raw,xvda,rw\"]\nvif = [\"bridge=br0\"]\n",
        kernel.display()
    )
}

/// Such a configuration as a file.
pub(crate) fn configuration(directory: &Path, name: &str) -> String {
    let file = directory.join(format!("{name}.cfg"));
    std::fs::write(&file, text(directory, name)).unwrap();
    file.display().to_string()
}

/// Such a configuration as records.
pub(crate) fn guest(directory: &Path, name: &str) -> (Vm, Vec<Vbd>, Vec<Vif>) {
    let (config, _) = xenopsd::xlcfg::parse(text(directory, name).as_bytes()).unwrap();
    config.into_api()
}
