//! `xenopsd --simulate` as a management layer and an administrator meet it: the programs themselves, over sockets.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use xenstore::{Client, Endpoint, Operations};

/// A daemon in directories of its own, killed at the end.
struct Daemon {
    child: Child,
    directory: TempDir,
}

impl Daemon {
    fn start(directory: TempDir) -> Self {
        let at = |name: &str| directory.path().join(name);
        let mut child = Command::new(env!("CARGO_BIN_EXE_xenopsd"))
            .arg("--simulate")
            .args(["--simulate-memory-mib", "4096"])
            .arg(format!("--sockets-path={}", at("sockets").display()))
            .arg(format!("--database-path={}", at("db").display()))
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

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn output(&self, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["60", env!("CARGO_BIN_EXE_xenops"), "--socket"]).arg(self.path("sockets/xenopsd"));
        command.args(args).stdin(Stdio::null()).output().unwrap()
    }

    /// What `xenops` prints.
    fn xenops(&self, args: &[&str]) -> String {
        let output = self.output(args);
        assert!(output.status.success(), "xenops {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn store(&self) -> Client {
        let mut client = Client::connect_to(Endpoint::Socket(self.path("sockets/xenstored"))).unwrap();
        client.set_timeout(Duration::from_secs(20));
        client
    }

    fn stop(mut self) -> TempDir {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.child.wait().unwrap().success());
        let empty = TempDir::new().unwrap();
        std::mem::replace(&mut self.directory, empty)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A configuration file in xl's format, with a kernel that the simulator takes.
fn configuration(directory: &Path, name: &str) -> String {
    let kernel = directory.join("kernel");
    std::fs::write(&kernel, b"\x7fELF for the simulator").unwrap();
    let text = format!(
        "name = \"{name}\"\ntype = \"pv\"\nkernel = \"{}\"\nmemory = 128\nvcpus = 2\n\
         disk = [\"/srv/{name}.img,raw,xvda,rw\"]\nvif = [\"bridge=br0\"]\n",
        kernel.display()
    );
    let file = directory.join(format!("{name}.cfg"));
    std::fs::write(&file, text).unwrap();
    file.display().to_string()
}

fn line_of<'a>(list: &'a str, name: &str) -> &'a str {
    list.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name} is not in {list}"))
}

#[test]
fn a_vm_lives_through_the_command_line() {
    let daemon = Daemon::start(TempDir::new().unwrap());
    let file = configuration(daemon.directory.path(), "one");
    daemon.xenops(&["create", &file]);
    assert!(line_of(&daemon.xenops(&["list"]), "one").contains("Halted"));
    daemon.xenops(&["start", "one"]);
    assert!(line_of(&daemon.xenops(&["list"]), "one").contains("Running"));
    let shown = daemon.xenops(&["show", "one"]);
    assert!(shown.contains("128 MiB") && shown.contains("vif1.0"), "{shown}");
    let name = xenstore::Path::new("/local/domain/1/name").unwrap();
    assert_eq!(daemon.store().read_str(&name).unwrap().unwrap(), "one");
    daemon.xenops(&["pause", "one"]);
    assert!(line_of(&daemon.xenops(&["list"]), "one").contains("Paused"));
    daemon.xenops(&["unpause", "one"]);
    daemon.xenops(&["reboot", "one"]);
    assert!(line_of(&daemon.xenops(&["list"]), "one").contains("Running"));
    daemon.xenops(&["shutdown", "one"]);
    assert!(line_of(&daemon.xenops(&["list"]), "one").contains("Halted"));
    let domains = daemon.store().directory(&xenstore::Path::new("/local/domain").unwrap()).unwrap().unwrap();
    assert_eq!(domains, ["0"]);
    daemon.xenops(&["remove", "one"]);
    assert!(!daemon.output(&["start", "one"]).status.success());
}

#[test]
fn records_survive_the_daemon_and_simulated_domains_do_not() {
    let daemon = Daemon::start(TempDir::new().unwrap());
    let file = configuration(daemon.directory.path(), "two");
    daemon.xenops(&["create", &file]);
    daemon.xenops(&["start", "two"]);
    let daemon = Daemon::start(daemon.stop());
    assert!(line_of(&daemon.xenops(&["list"]), "two").contains("Halted"));
    daemon.xenops(&["start", "two"]);
    assert!(line_of(&daemon.xenops(&["list"]), "two").contains("Running"));
}

#[test]
fn a_second_simulator_in_the_same_place_is_refused() {
    let daemon = Daemon::start(TempDir::new().unwrap());
    let output = Command::new("timeout")
        .args(["20", env!("CARGO_BIN_EXE_xenopsd"), "--simulate"])
        .arg(format!("--sockets-path={}", daemon.path("sockets").display()))
        .arg(format!("--database-path={}", daemon.path("db").display()))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(daemon.xenops(&["list"]).contains("NAME"));
}
