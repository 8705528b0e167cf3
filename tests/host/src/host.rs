//! A running nested host: commands, files and sockets in and out of its dom0.

use crate::{
    error::{Context as _, Error, Result},
    lock::Slot,
    paths,
    process::{Life, Output, Sink, Stream},
    progress::timed,
    ssh::{Access, SSH_FAILED, quote, quote_all},
    vm::{self, Vm},
};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    time::Duration,
};

/// Longest connection attempt: half a second on an idle machine.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// Longest command of [`Host::run`] and its like, which do not name a limit of their own. `xl create` of an HVM guest
/// takes ten seconds on an idle machine.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// Longest copy of one file; a hundred megabytes take 12 s.
const COPY_LIMIT: Duration = Duration::from_secs(120);

/// Longest exchange with an ssh that runs already.
pub(crate) const CONTROL_LIMIT: Duration = Duration::from_secs(10);

/// How much output of a failed command its error carries.
const ERROR_OUTPUT: usize = 4 << 10;

/// Name of the record of a host that goes on without its starter.
const RECORD: &str = "host.json";

/// A nested host. One that a test owns ends when it is dropped; a named one (`cargo xtask host up`) goes on.
#[derive(Debug)]
pub struct Host {
    name: String,
    dir: PathBuf,
    pid: i32,
    commands: Access,
    pub(crate) forwards: Access,
    /// Whether the connection for forwards has been made by this value.
    pub(crate) forwarding: Mutex<bool>,
    vm: Option<Vm>,
    owned: bool,
    /// Held while the machine runs: given back after it has ended.
    slot: Option<Slot>,
}

/// Checks that `name` can name a host.
fn valid(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=32).contains(&name.len()) && name.chars().all(good) {
        Ok(())
    } else {
        Err(Error::BadName { name: name.to_owned() })
    }
}

/// The directory of the named host.
pub(crate) fn named_dir(name: &str) -> Result<PathBuf> {
    valid(name)?;
    Ok(paths::nested()?.join(format!("host-{name}")))
}

/// True when `pid` is the machine of `dir`: QEMU is started in it.
fn runs_in(pid: i32, dir: &Path) -> bool {
    let cwd = fs::read_link(format!("/proc/{pid}/cwd"));
    cwd.is_ok_and(|cwd| dir.canonicalize().is_ok_and(|dir| dir == cwd))
}

impl Host {
    /// Takes over a machine whose dom0 is up and connects to it.
    pub(crate) fn new(
        name: &str,
        dir: &Path,
        key: &Path,
        vm: Vm,
        life: Life,
        slot: Option<Slot>,
    ) -> Result<Self> {
        let (command, forward) = vm.ports()?;
        // A copy: the image may be replaced while this host runs.
        let own_key = dir.join("key");
        let content = fs::read(key).at("read", key)?;
        let mut file = File::options();
        let mut file =
            file.write(true).create(true).truncate(true).mode(0o600).open(&own_key).at("create", &own_key)?;
        file.write_all(&content).at("write", &own_key)?;
        let record = json!({ "pid": vm.pid(), "command": command, "forward": forward });
        let path = dir.join(RECORD);
        fs::write(&path, record.to_string()).at("write", &path)?;
        let mut host = Self::from_parts(name, dir, (vm.pid(), command, forward));
        (host.vm, host.slot) = (Some(vm), slot);
        host.connect(&host.commands)?;
        if life == Life::Detached {
            host.release();
        } else {
            host.owned = true;
        }
        Ok(host)
    }

    fn from_parts(name: &str, dir: &Path, (pid, command, forward): (i32, u16, u16)) -> Self {
        let key = dir.join("key");
        Self {
            name: name.to_owned(),
            dir: dir.to_owned(),
            pid,
            commands: Access::new(dir, "command.ctl", &key, command),
            forwards: Access::new(dir, "forward.ctl", &key, forward),
            forwarding: Mutex::new(false),
            vm: None,
            owned: false,
            slot: None,
        }
    }

    /// The named host, which `cargo xtask host up` started.
    ///
    /// # Errors
    /// [`Error::NotRunning`] when there is none.
    pub fn attach(name: &str) -> Result<Self> {
        let dir = named_dir(name)?;
        let path = dir.join(RECORD);
        let gone = || Error::NotRunning { name: name.to_owned() };
        let record: Value = serde_json::from_slice(&fs::read(&path).map_err(|_| gone())?)
            .map_err(|e| Error::Damaged { path: path.clone(), reason: e.to_string() })?;
        let number = |field: &str| record.get(field).and_then(Value::as_u64);
        let pid = number("pid").and_then(|n| i32::try_from(n).ok());
        let port = |field: &str| number(field).and_then(|n| u16::try_from(n).ok());
        let (Some(pid), Some(command), Some(forward)) = (pid, port("command"), port("forward")) else {
            return Err(Error::Damaged { path, reason: "fields are missing".to_owned() });
        };
        if !runs_in(pid, &dir) {
            return Err(gone());
        }
        Ok(Self::from_parts(name, &dir, (pid, command, forward)))
    }

    /// Names of the named hosts that run.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn list() -> Result<Vec<String>> {
        let dir = paths::nested()?;
        let mut names = Vec::new();
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            let file = entry.at("list", &dir)?.file_name().to_string_lossy().into_owned();
            if let Some(name) = file.strip_prefix("host-").filter(|name| Self::attach(name).is_ok()) {
                names.push(name.to_owned());
            }
        }
        names.sort();
        Ok(names)
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory here.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Process id of its QEMU.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The file Xen's console goes to: messages of Xen and dom0's kernel.
    pub fn console_log(&self) -> PathBuf {
        self.dir.join(crate::machine::names::CONSOLE)
    }

    /// The last few KiB of the Xen console.
    pub fn console_tail(&self) -> String {
        vm::console_tail(&self.dir)
    }

    /// Lets the machine go on when this value is gone.
    fn release(&mut self) {
        if let Some(vm) = self.vm.take() {
            vm.release();
        }
    }

    pub(crate) fn connect(&self, access: &Access) -> Result<()> {
        let output = access.connect(CONNECT_LIMIT).map_err(|e| self.with_console(e))?;
        if output.success() { Ok(()) } else { Err(self.unconnected("a login", &output)) }
    }

    pub(crate) fn unconnected(&self, what: &str, output: &Output) -> Error {
        if let Some(Err(ended)) = self.vm.as_ref().map(|vm| vm.alive("while it was used")) {
            return ended;
        }
        Error::Connection {
            host: self.name.clone(),
            what: what.to_owned(),
            message: output.error_text().trim().to_owned(),
            console: self.console_tail(),
        }
    }

    pub(crate) fn with_console(&self, error: Error) -> Error {
        match error {
            Error::Deadline { what, limit, .. } => {
                if let Some(Err(ended)) = self.vm.as_ref().map(|vm| vm.alive("while it was used")) {
                    return ended;
                }
                Error::Deadline {
                    what: format!("{what} in dom0 of {}", self.name),
                    limit,
                    console: self.console_tail(),
                }
            }
            other => other,
        }
    }

    fn execute(
        &self,
        script: &str,
        stdin: Option<File>,
        limit: Duration,
        sink: Option<Sink<'_>>,
    ) -> Result<Output> {
        let output = self.commands.run(script, stdin, limit, sink).map_err(|error| match error {
            Error::Deadline { limit, console, .. } => {
                self.with_console(Error::Deadline { what: format!("`{script}`"), limit, console })
            }
            other => other,
        })?;
        if output.status == SSH_FAILED && !self.connected() {
            return Err(self.unconnected(script, &output));
        }
        Ok(output)
    }

    /// Whether the kept connection is there: tells ssh's own failure from a command's exit code 255.
    fn connected(&self) -> bool {
        self.commands.control("check", None, CONTROL_LIMIT).is_ok_and(|output| output.success())
    }

    /// Runs a program in dom0 and returns its exit code and output. The words reach it exactly as given.
    ///
    /// # Errors
    /// When there is no connection, or it takes longer than [`COMMAND_LIMIT`]. A failing exit code is no error.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        self.execute(&quote_all(words), None, COMMAND_LIMIT, None)
    }

    /// As [`Host::run`] with a limit.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn run_within(&self, words: &[&str], limit: Duration) -> Result<Output> {
        self.execute(&quote_all(words), None, limit, None)
    }

    /// Runs a shell script (bash) in dom0.
    ///
    /// # Errors
    /// As [`Host::run`].
    pub fn shell(&self, script: &str) -> Result<Output> {
        let _timed = timed(script);
        self.execute(script, None, COMMAND_LIMIT, None)
    }

    /// Runs a program that must succeed and returns its standard output.
    ///
    /// # Errors
    /// [`Error::Command`], with the output and the end of the Xen console, when its exit code is not 0.
    pub fn check(&self, words: &[&str]) -> Result<String> {
        self.check_shell(&quote_all(words))
    }

    /// Runs a shell script that must succeed and returns its standard output.
    ///
    /// # Errors
    /// As [`Host::check`].
    pub fn check_shell(&self, script: &str) -> Result<String> {
        self.succeeded(script, &self.shell(script)?)
    }

    fn succeeded(&self, command: &str, output: &Output) -> Result<String> {
        if output.success() {
            return Ok(output.text());
        }
        let tail = |bytes: &[u8]| crate::process::tail(bytes, ERROR_OUTPUT).into_boxed_str();
        Err(Error::Command {
            host: self.name.clone(),
            command: command.to_owned(),
            status: output.status,
            stdout: tail(&output.stdout),
            stderr: tail(&output.stderr),
            console: self.console_tail().into_boxed_str(),
        })
    }

    /// Runs a program in dom0 and hands on its output as it comes; returns its exit code.
    ///
    /// # Errors
    /// As [`Host::run`], with this limit.
    pub fn stream(
        &self,
        words: &[&str],
        limit: Duration,
        sink: &mut dyn FnMut(Stream, &[u8]),
    ) -> Result<i32> {
        Ok(self.execute(&quote_all(words), None, limit, Some(sink))?.status)
    }

    /// Waits in dom0 until `file` there holds `text`, such as a line of a guest's console log.
    ///
    /// # Errors
    /// [`Error::Command`] with the end of the file when `limit` passes first.
    pub fn wait_for_text(&self, file: &str, text: &str, limit: Duration) -> Result<()> {
        let (file, text) = (quote(file), quote(text));
        let seconds = limit.as_secs().max(1);
        // tail looks for new data by itself; it ends with the shell that started it. What draws a screen ends no line, and
        // grep waits for one: an escape ends one for it.
        let inner = format!(
            "grep -q -m1 -F -e {text} <(tail --pid=$$ -s 0.1 -n +1 -F {file} 2>/dev/null | stdbuf -o0 tr '\\033' '\\n')"
        );
        let script = format!(
            "timeout {seconds} bash -c {} || {{ echo no {text} in {file}; tail -n 40 {file}; exit 1; }}",
            quote(&inner)
        );
        let what = format!("wait for {text} in {file}");
        let _timed = timed(&what);
        let output = self.execute(&script, None, limit + CONTROL_LIMIT, None)?;
        self.succeeded(&what, &output).map(drop)
    }

    /// The file in dom0 that has what the guest `name` printed.
    pub fn guest_log(name: &str) -> String {
        format!("/var/log/xen/console/guest-{name}.log")
    }

    /// Waits until the guest `name` has printed `text`.
    ///
    /// # Errors
    /// As [`Host::wait_for_text`].
    pub fn wait_for_guest(&self, name: &str, text: &str, limit: Duration) -> Result<()> {
        self.wait_for_text(&Self::guest_log(name), text, limit)
    }

    /// Copies a file into dom0, with its permissions. It appears complete: a running program can be replaced.
    ///
    /// # Errors
    /// When the file cannot be read, or written there.
    pub fn put(&self, local: &Path, remote: &str) -> Result<()> {
        let file = File::open(local).at("open", local)?;
        let mode = file.metadata().at("read", local)?.permissions().mode() & 0o777;
        let (new, remote) = (quote(&format!("{remote}.new")), quote(remote));
        let script = format!("cat >{new} && chmod {mode:o} {new} && mv {new} {remote}");
        let output = self.execute(&script, Some(file), COPY_LIMIT, None)?;
        self.succeeded(&format!("write {remote}"), &output).map(drop)
    }

    /// Copies a file out of dom0.
    ///
    /// # Errors
    /// When it cannot be read there, or written here.
    pub fn get(&self, remote: &str, local: &Path) -> Result<()> {
        let mut file = File::create(local).at("create", local)?;
        let mut written = Ok(());
        let mut sink = |stream, piece: &[u8]| {
            if stream == Stream::Out && written.is_ok() {
                written = file.write_all(piece);
            }
        };
        let script = format!("cat {}", quote(remote));
        let output = self.execute(&script, None, COPY_LIMIT, Some(&mut sink))?;
        written.at("write", local)?;
        self.succeeded(&script, &output).map(drop)
    }

    /// An ssh with a terminal in dom0, to be run by a person.
    pub fn interactive(&self) -> Command {
        self.commands.interactive()
    }

    /// Sets dom0's clock, which goes on from the moment of the snapshot otherwise.
    ///
    /// # Errors
    /// When the command fails.
    pub fn set_clock(&self) -> Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.check(&["date", "-s", &format!("@{}", now.as_secs())]).map(drop)
    }

    /// Ends the host and removes what it kept here.
    ///
    /// # Errors
    /// When QEMU's monitor does not answer, or files cannot be removed.
    pub fn shutdown(mut self) -> Result<()> {
        self.owned = false;
        match self.vm.take() {
            Some(vm) => vm.quit(),
            None => vm::quit(&self.dir)
                .map_err(|source| Error::Monitor { source, console: self.console_tail() })?,
        }
        paths::remove_tree(&self.dir)
    }

    /// Gives up the machine for a snapshot of it.
    pub(crate) fn into_vm(mut self) -> Option<Vm> {
        // The connections must not be part of the snapshot: nobody would be at their other end.
        for access in [&self.commands, &self.forwards] {
            drop(access.control("exit", None, CONTROL_LIMIT));
        }
        self.owned = false;
        self.vm.take()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if self.owned {
            if let Some(vm) = &self.vm {
                vm.kill();
            }
            // What stays is removed by the next process that clones.
            drop(paths::remove_tree(&self.dir));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_the_directory() {
        for bad in ["", "..", "a/b", "A", &"x".repeat(33)] {
            assert!(matches!(named_dir(bad), Err(Error::BadName { .. })), "{bad}");
        }
        assert!(named_dir("default-2").is_ok_and(|dir| dir.ends_with("nested/host-default-2")));
    }

    #[test]
    fn a_host_that_is_not_there_is_named() {
        assert!(
            matches!(Host::attach("no-such-host"), Err(Error::NotRunning { name }) if name == "no-such-host")
        );
    }

    #[test]
    fn a_process_elsewhere_is_not_the_host() {
        let own = i32::try_from(std::process::id()).expect("a pid");
        assert!(!runs_in(own, Path::new("/proc")));
        assert!(runs_in(own, &std::env::current_dir().expect("a directory")));
    }
}
