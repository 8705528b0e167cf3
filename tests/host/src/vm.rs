//! A running QEMU: started, booted or restored, watched, snapshotted, ended.
//!
//! ```text
//!             ┌─ boot ────▶ console says "ready" ─┐
//!   start ────┤                                   ├──▶ running ──▶ snapshot ──▶ gone
//!             └─ restore ─▶ device state loaded ──┘        └──────▶ quit/kill ─▶ gone
//! ```

use crate::{
    error::{Context as _, Error, Result},
    image::Image,
    machine::{self, Launch, QEMU, names},
    preload,
    process::{self, Life, Process},
    qmp::{Qmp, QmpError},
    watch::Watch,
};
use serde_json::json;
use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd as _,
        unix::{fs::symlink, net::UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// Longest boot: 9 s on an idle machine, several times that beside other busy ones.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// Longest wait for QEMU to open its monitor.
const MONITOR_LIMIT: Duration = Duration::from_secs(30);

/// Longest wait for an answer of the monitor.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Longest writing or reading of a device state (0.1 s on an idle machine).
const TRANSFER_LIMIT: Duration = Duration::from_secs(60);

/// How much of the Xen console an error carries.
const CONSOLE_TAIL: usize = 4 << 10;

/// Between `bind` and `listen` of QEMU's monitor no event tells; look again this soon.
const LISTEN_GAP: Duration = Duration::from_millis(20);

/// QEMU's own messages.
const LOG: &str = "qemu.log";

/// What dom0's init prints when everything is up.
const READY: &str = "ready";

/// Lines after which nothing more comes.
const FATAL: &[&str] = &["Panic on CPU", "Kernel panic", "XEN-HOST: no root"];

/// A QEMU process in a directory of its own.
#[derive(Debug)]
pub(crate) struct Vm {
    name: String,
    dir: PathBuf,
    process: Process,
}

/// The end of the console of the machine in `dir`.
pub(crate) fn console_tail(dir: &Path) -> String {
    process::tail(&fs::read(dir.join(names::CONSOLE)).unwrap_or_default(), CONSOLE_TAIL)
}

/// Connects to the monitor of the machine in `dir`, which has one client at a time.
pub(crate) fn monitor(dir: &Path) -> io::Result<UnixStream> {
    // Through the directory's descriptor: the full path could be too long for a socket.
    let handle = File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{}", handle.as_raw_fd(), names::MONITOR))
}

/// Ends the machine in `dir` through its monitor and waits until QEMU has closed it.
pub(crate) fn quit(dir: &Path) -> Result<(), QmpError> {
    let lost = |source| QmpError::Connection { what: "quit".to_owned(), source };
    let mut qmp = Qmp::new(monitor(dir).map_err(lost)?, ANSWER_LIMIT)?;
    match qmp.execute("quit", &json!({}), ANSWER_LIMIT) {
        Ok(_) | Err(QmpError::Connection { .. }) => {}
        Err(error) => return Err(error),
    }
    match qmp.event::<()>("the end", ANSWER_LIMIT, |_, _| None) {
        Ok(()) | Err(QmpError::Connection { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Vm {
    /// Starts QEMU in `dir`, which holds the memory (and the state to restore).
    pub(crate) fn start(name: &str, dir: &Path, image: &Image, launch: Launch, life: Life) -> Result<Self> {
        let link = dir.join(names::IMAGE);
        symlink(image.dir(), &link).at("link", link)?;
        let mut command = Command::new(QEMU);
        command.current_dir(dir).args(machine::arguments(launch)).env("LD_PRELOAD", preload::library()?);
        let process = Process::start(command, life, &dir.join(LOG), dir.join("qemu.exit"))?;
        Ok(Self { name: name.to_owned(), dir: dir.to_owned(), process })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    pub(crate) fn console_tail(&self) -> String {
        console_tail(&self.dir)
    }

    /// An error when QEMU has ended.
    pub(crate) fn alive(&self, during: &'static str) -> Result<()> {
        let Some(status) = self.process.ended() else { return Ok(()) };
        let log = fs::read(self.dir.join(LOG)).unwrap_or_default();
        let (host, log, console) =
            (self.name.clone(), process::tail(&log, CONSOLE_TAIL), self.console_tail());
        Err(Error::QemuEnded { host, during, status, log, console })
    }

    fn late(&self, what: &str, limit: Duration) -> Error {
        Error::Deadline { what: format!("{what} of {}", self.name), limit, console: self.console_tail() }
    }

    /// Explains a failure of the monitor, which is most often QEMU's end.
    fn explain(&self, during: &'static str, source: QmpError) -> Error {
        if matches!(source, QmpError::Connection { .. }) {
            // The socket closes a moment before the process is gone.
            self.process.wait(Duration::from_secs(1));
        }
        match self.alive(during) {
            Err(ended) => ended,
            Ok(()) => Error::Monitor { source, console: self.console_tail() },
        }
    }

    fn connect(&self) -> Result<Qmp> {
        let deadline = Instant::now() + MONITOR_LIMIT;
        let watch = Watch::files(&self.dir)?;
        let mut look = || {
            self.alive("at its start")?;
            match monitor(&self.dir) {
                Ok(stream) => Ok(Some(stream)),
                Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                    Ok(None)
                }
                Err(e) => Err(e).at("connect to", self.dir.join(names::MONITOR)),
            }
        };
        while Instant::now() < deadline {
            if let Some(stream) = watch.until(deadline.min(Instant::now() + LISTEN_GAP), &mut look)? {
                return Qmp::new(stream, ANSWER_LIMIT).map_err(|e| self.explain("at its start", e));
            }
        }
        Err(self.late("the monitor", MONITOR_LIMIT))
    }

    /// Waits until dom0 is up.
    pub(crate) fn booted(&self) -> Result<()> {
        let watch = Watch::files(&self.dir)?;
        let booted = watch.until(Instant::now() + BOOT_LIMIT, || {
            self.alive("while booting")?;
            let console = fs::read(self.dir.join(names::CONSOLE)).unwrap_or_default();
            match progress(&String::from_utf8_lossy(&console)) {
                Progress::Ready => Ok(Some(())),
                Progress::Going => Ok(None),
                Progress::Failed(reason) => {
                    Err(Error::Boot { host: self.name.clone(), reason, console: self.console_tail() })
                }
            }
        })?;
        booted.ok_or_else(|| self.late("the boot", BOOT_LIMIT))
    }

    /// Loads the device state and lets the machine run on.
    pub(crate) fn restore(&self) -> Result<()> {
        let mut qmp = self.connect()?;
        let mut load = || {
            prepare_transfer(&mut qmp)?;
            let uri = format!("exec:cat {}", names::STATE);
            qmp.execute("migrate-incoming", &json!({ "uri": uri }), ANSWER_LIMIT)?;
            transferred(&mut qmp)?;
            qmp.execute("cont", &json!({}), ANSWER_LIMIT)
        };
        load().map(drop).map_err(|e| self.explain("while restoring", e))
    }

    /// Writes the device state beside the memory and ends QEMU. The machine must have been started with shared memory.
    pub(crate) fn snapshot(self) -> Result<()> {
        let mut qmp = self.connect()?;
        let mut save = || {
            qmp.execute("stop", &json!({}), ANSWER_LIMIT)?;
            prepare_transfer(&mut qmp)?;
            // Bytes per second; the default of 128 MiB is meant for networks.
            qmp.execute(
                "migrate-set-parameters",
                &json!({ "max-bandwidth": 100_000_000_000_u64 }),
                ANSWER_LIMIT,
            )?;
            let uri = format!("exec:cat >{}", names::STATE);
            qmp.execute("migrate", &json!({ "uri": uri }), ANSWER_LIMIT)?;
            transferred(&mut qmp)
        };
        save().map_err(|e| self.explain("while taking a snapshot", e))?;
        drop(qmp);
        self.quit();
        Ok(())
    }

    /// The local ports forwarded to dom0's command and forward servers.
    pub(crate) fn ports(&self) -> Result<(u16, u16)> {
        let mut qmp = self.connect()?;
        let arguments = json!({ "command-line": "info usernet" });
        let table = qmp
            .execute("human-monitor-command", &arguments, ANSWER_LIMIT)
            .map_err(|e| self.explain("while asking for its ports", e))?;
        let table = table.as_str().unwrap_or_default();
        let port = |guest| machine::forwarded_port(table, guest);
        port(machine::COMMAND_PORT).zip(port(machine::FORWARD_PORT)).ok_or_else(|| Error::Monitor {
            source: QmpError::Malformed(format!("no forwarded ports in {table:?}")),
            console: self.console_tail(),
        })
    }

    /// Ends QEMU: asks it first, then kills it.
    pub(crate) fn quit(&self) {
        if self.process.ended().is_none() && quit(&self.dir).is_ok() {
            self.process.wait(ANSWER_LIMIT);
        }
        self.process.kill();
    }

    /// Lets QEMU go on when this value is gone.
    pub(crate) fn release(self) {
        self.process.release();
    }

    /// Ends QEMU at once. A throw-away machine has nothing to save.
    pub(crate) fn kill(&self) {
        self.process.kill();
    }
}

fn prepare_transfer(qmp: &mut Qmp) -> Result<(), QmpError> {
    // The memory is in a file already and stays out of the stream; and the end is told by an event.
    let on = |name: &str| json!({ "capability": name, "state": true });
    let capabilities = json!({ "capabilities": [on("x-ignore-shared"), on("events")] });
    qmp.execute("migrate-set-capabilities", &capabilities, ANSWER_LIMIT).map(drop)
}

fn transferred(qmp: &mut Qmp) -> Result<(), QmpError> {
    let status = qmp.event("the snapshot transfer", TRANSFER_LIMIT, |name, data| {
        let status = data.get("status")?.as_str()?;
        (name == "MIGRATION" && matches!(status, "completed" | "failed" | "cancelled"))
            .then(|| status.to_owned())
    })?;
    if status == "completed" { Ok(()) } else { Err(QmpError::Transfer { status }) }
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Going,
    Ready,
    Failed(String),
}

/// How far the boot is, by what the console says. Only whole lines count.
fn progress(console: &str) -> Progress {
    let whole = console.rfind('\n').map_or("", |end| console.get(..end).unwrap_or_default());
    for line in whole.lines() {
        if FATAL.iter().any(|fatal| line.contains(fatal)) {
            return Progress::Failed(line.trim().to_owned());
        }
        let said = line.split_once("XEN-HOST: ").map(|(_, said)| said.trim());
        if said.is_some_and(|said| said.split_once(' ').is_some_and(|(_, word)| word == READY)) {
            return Progress::Ready;
        }
    }
    Progress::Going
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_tells_how_far_the_boot_is() {
        assert_eq!(progress("(XEN) Xen version\r\nXEN-HOST: 1.23 init\r\n"), Progress::Going);
        assert_eq!(progress("XEN-HOST: 1.23 init\r\nXEN-HOST: 8.10 ready\r\n"), Progress::Ready);
        assert_eq!(progress("XEN-HOST: 8.10 ready"), Progress::Going);
        assert_eq!(
            progress("(XEN) Panic on CPU 0:\r\n"),
            Progress::Failed("(XEN) Panic on CPU 0:".to_owned())
        );
    }
}
