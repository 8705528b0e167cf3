//! Simulated helper processes: they are started, wait for their word, are followed, and end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::Int;
use crate::edge::{Tell, TerminalPorts};
use crate::state::journal::ProcessId;

/// Above every number the kernel gives (`PID_MAX_LIMIT` is 2^22), so that none is a real process's.
const FIRST_PID: Int = 1 << 22;

/// Where the ports of simulated terminals begin: above those that Linux gives out by itself (`ip_local_port_range`) and those
/// of real screens, so that nobody listens there.
const FIRST_VNC: u16 = 61_001;
const FIRST_TEXT: u16 = 63_001;

/// How many of each there are.
const PORTS: u16 = 2000;

/// What a simulated terminal shows when it is saved; each that begins with a saved one adds a line.
const LINE: &str = "simulated screen\n";

struct Process {
    id: ProcessId,
    screen: PathBuf,
    shown: String,
    /// It was given its word; until then it ends with who started it.
    running: bool,
    tell: Option<(u64, Tell)>,
}

#[derive(Default)]
struct Table {
    started: Int,
    followed: u64,
    listened: u16,
    processes: BTreeMap<Int, Process>,
}

/// All of one machine.
#[derive(Default)]
pub(super) struct Processes {
    table: Mutex<Table>,
}

/// A process that is followed until this is dropped.
pub(super) struct Following {
    all: Arc<Processes>,
    pid: Int,
    number: u64,
}

/// Ends the process when it is dropped before its word.
struct Waiting {
    all: Arc<Processes>,
    pid: Int,
}

impl Processes {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ports that no other has.
    pub(super) fn ports(&self, screen: bool) -> TerminalPorts {
        let mut table = self.lock();
        let number = table.listened;
        table.listened = (number + 1) % PORTS;
        TerminalPorts { vnc: screen.then_some(FIRST_VNC + number), text: FIRST_TEXT + number }
    }

    /// The same for a screen alone.
    pub(super) fn screen_port(&self) -> u16 {
        self.ports(true).vnc.unwrap_or_default()
    }

    /// Starts one; it waits for its word, which is the function.
    pub(super) fn start(
        all: &Arc<Self>,
        role: &str,
        screen: &Path,
        restored: bool,
    ) -> (ProcessId, impl FnOnce() + Send + use<>) {
        let shown = if restored { fs::read_to_string(screen).unwrap_or_default() } else { String::new() };
        let mut table = all.lock();
        table.started += 1;
        let pid = FIRST_PID + table.started;
        let id = ProcessId { pid, started: i64::from(FIRST_VNC), uid: 1000, role: role.to_owned() };
        let shown = shown + LINE;
        let process =
            Process { id: id.clone(), screen: screen.to_owned(), shown, running: false, tell: None };
        table.processes.insert(pid, process);
        drop(table);
        let waiting = Waiting { all: Arc::clone(all), pid };
        let go = move || {
            if let Some(process) = waiting.all.lock().processes.get_mut(&waiting.pid) {
                process.running = true;
            }
        };
        (id, go)
    }

    /// None when it is not there.
    pub(super) fn follow(all: &Arc<Self>, wanted: &ProcessId, tell: Tell) -> Option<Following> {
        let mut table = all.lock();
        table.followed += 1;
        let number = table.followed;
        let process = table.processes.get_mut(&wanted.pid).filter(|process| process.id == *wanted)?;
        process.tell = Some((number, tell));
        drop(table);
        Some(Following { all: Arc::clone(all), pid: wanted.pid, number })
    }

    /// Asks it to end, so that it saves its screen first; whether it was there.
    pub(super) fn stop(&self, wanted: &ProcessId) -> io::Result<bool> {
        let saved =
            self.lock().processes.get(&wanted.pid).filter(|process| process.id == *wanted).map(|process| {
                fs::create_dir_all(process.screen.parent().unwrap_or(Path::new("/")))
                    .and_then(|()| fs::write(&process.screen, &process.shown))
            });
        let there = saved.transpose()?.is_some();
        self.kill(wanted);
        Ok(there)
    }

    /// Whether it is there.
    pub(super) fn is_there(&self, wanted: &ProcessId) -> bool {
        self.lock().processes.get(&wanted.pid).is_some_and(|process| process.id == *wanted)
    }

    /// Ends it; whether it was there.
    pub(super) fn kill(&self, wanted: &ProcessId) -> bool {
        self.is_there(wanted) && self.end(wanted.pid)
    }

    /// It ends by itself; whether it was there.
    pub(super) fn end(&self, pid: Int) -> bool {
        let ended = self.lock().processes.remove(&pid);
        let there = ended.is_some();
        if let Some((_, tell)) = ended.and_then(|process| process.tell) {
            tell();
        }
        there
    }

    /// Their numbers.
    pub(super) fn all(&self) -> Vec<Int> {
        self.lock().processes.keys().copied().collect()
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let mut table = self.all.lock();
        let process = table.processes.get_mut(&self.pid);
        let told = process.and_then(|process| process.tell.take_if(|(number, _)| *number == self.number));
        drop(table);
        drop(told);
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut table = self.all.lock();
        let waits = table.processes.get(&self.pid).is_some_and(|process| !process.running);
        let ended = if waits { table.processes.remove(&self.pid) } else { None };
        drop(table);
        drop(ended);
    }
}
