//! Device models without emulation: a monitor that answers as QEMU's does, and an end.
//!
//! One lives as long as its domain's machine, whatever becomes of the daemon; the next one finds it by its number.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Shared;
use crate::api::Int;
use crate::api::value::Value;
use crate::dm::args::STATE_SET;
use crate::edge::{DeviceModel, DomId, HostError, NewDeviceModel, Note, ScreenListener, ScreenPlace};
use crate::state::journal::{ProcessId, Resource};

mod emulated;
mod state;

use emulated::Media;
pub use emulated::Vcpus;

/// Above every number that Linux gives to a process, so that none is ever meant.
const FIRST_PID: i64 = 1 << 23;

const GREETING: &str = r#"{"QMP": {"version": {"package": "simulated"}, "capabilities": []}}"#;

/// What a device model does, as its VM's script says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manners {
    Work,
    /// Ends before it greets.
    Exit,
    /// Never says a word.
    Mute,
    /// Says what is not the protocol.
    Nonsense,
    /// Ends when it is told to emulate.
    Crash,
    /// Sends events as fast as they are taken, once it emulates.
    Flood,
    /// Its guest keeps drives closed.
    Lock,
    /// Does not write its state.
    Refuse,
    /// Says that it has, and has not.
    Empty,
    /// Writes more than there is room for.
    Huge,
    /// Ends when it is to write its state.
    Die,
    /// Does not go on after that.
    Halt,
    /// Ends when it is to take a state.
    Choke,
    /// Never comes to the end of taking it.
    Chew,
    /// Ends once it is set up, before anybody looks whether it does.
    Vanish,
}

impl Manners {
    fn of(word: &str) -> Self {
        match word {
            "exit" => Self::Exit,
            "mute" => Self::Mute,
            "nonsense" => Self::Nonsense,
            "crash" => Self::Crash,
            "flood" => Self::Flood,
            "lock" => Self::Lock,
            "refuse" => Self::Refuse,
            "empty" => Self::Empty,
            "huge" => Self::Huge,
            "die" => Self::Die,
            "halt" => Self::Halt,
            "choke" => Self::Choke,
            "chew" => Self::Chew,
            "vanish" => Self::Vanish,
            _ => Self::Work,
        }
    }
}

/// All device models of a machine, by the number of their process.
#[derive(Default)]
pub(super) struct DeviceModels {
    table: Mutex<BTreeMap<i64, Arc<Life>>>,
    started: AtomicI64,
}

/// What a domain's device model is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Set up, and waiting.
    Waiting,
    /// The same, for the state of another one.
    Expecting,
    /// Emulating.
    Emulating,
    /// Not any more, or not yet again.
    Stopped,
}

impl Doing {
    /// What `query-status` says of it.
    fn status(self) -> &'static str {
        match self {
            Self::Waiting => r#"{"status": "prelaunch"}"#,
            Self::Expecting => r#"{"status": "inmigrate"}"#,
            Self::Emulating => r#"{"status": "running"}"#,
            Self::Stopped => r#"{"status": "paused"}"#,
        }
    }
}

/// Of a port, any that is free: nobody looks for simulated screens in the range of real ones.
pub(super) fn listen_for_viewers(
    domid: DomId,
    place: ScreenPlace,
    note: &mut Note<'_>,
) -> Result<ScreenListener, HostError> {
    let listener = match place {
        ScreenPlace::Port(_) => TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(ScreenListener::on_port),
        ScreenPlace::Socket => {
            let path = std::env::temp_dir().join("xenopsd-simulated");
            let path = path.join(format!("{}-vnc-{domid}", uuid::Uuid::new_v4()));
            note(Resource::Socket(path.display().to_string()))?;
            let made = path.parent().map_or(Ok(()), std::fs::create_dir_all);
            made.and_then(|()| UnixListener::bind(&path))
                .and_then(|listener| ScreenListener::on_file(listener, path))
        }
    };
    listener.map_err(|error| super::host::unusable("screen", &error))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DeviceModels {
    pub(super) fn start(
        &self,
        shared: &Arc<Shared>,
        new: &NewDeviceModel<'_>,
        note: &mut Note<'_>,
    ) -> Result<Arc<dyn DeviceModel>, HostError> {
        shared.faults.check("host.start_device_model")?;
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let pid = Int::try_from(FIRST_PID + number).unwrap_or(Int::MAX);
        note(Resource::Process(ProcessId { pid, started: number, uid: 0, role: "qemu".to_owned() }))?;
        shared.faults.check("host.exec_device_model")?;
        let life = Life::begin(shared, new).map_err(|e| super::host::unusable("device model", &e))?;
        lock(&self.table).insert(FIRST_PID + number, Arc::clone(&life));
        Ok(Arc::new(Process { shared: Arc::clone(shared), life }))
    }

    pub(super) fn adopt(
        &self,
        shared: &Arc<Shared>,
        process: &ProcessId,
    ) -> Result<Option<Arc<dyn DeviceModel>>, HostError> {
        shared.faults.check("host.adopt_device_model")?;
        let life = i64::try_from(process.pid).ok().and_then(|pid| lock(&self.table).get(&pid).cloned());
        let living = life.filter(|life| life.lives());
        Ok(living.map(|life| Arc::new(Process { shared: Arc::clone(shared), life }) as Arc<dyn DeviceModel>))
    }

    /// Whether there was one.
    pub(super) fn end(&self, pid: Int) -> bool {
        let life = i64::try_from(pid).ok().and_then(|pid| lock(&self.table).remove(&pid));
        life.is_some_and(|life| life.end())
    }

    /// That of a domain, if it lives.
    pub(super) fn of(&self, domid: DomId) -> Option<Arc<Life>> {
        lock(&self.table).values().find(|life| life.domid == domid && life.lives()).cloned()
    }

    /// Domains that have one.
    pub(super) fn domains(&self) -> Vec<DomId> {
        lock(&self.table).values().filter(|life| life.lives()).map(|life| life.domid).collect()
    }
}

/// One device model, from its start to its end.
pub(super) struct Life {
    domid: DomId,
    manners: Manners,
    doing: Mutex<Doing>,
    /// Closed when it ends, which makes the other end readable.
    breath: Mutex<Option<PipeWriter>>,
    ended: PipeReader,
    /// Its end of the monitor's connection.
    monitor: Mutex<Option<UnixStream>>,
    /// Those who look at its screen.
    viewers: Mutex<Vec<OwnedFd>>,
    vcpus: Mutex<Vcpus>,
    media: Mutex<Media>,
    /// What it reads while it starts, with their lengths in bytes.
    files: Vec<(&'static Path, usize)>,
}

impl Life {
    fn begin(shared: &Shared, new: &NewDeviceModel<'_>) -> io::Result<Arc<Self>> {
        let domid = new.domid;
        let word = shared.script_word(domid, "device-model");
        let manners = Manners::of(&word.unwrap_or_default());
        let (ended, breath) = io::pipe()?;
        let breath = Mutex::new((manners != Manners::Exit).then_some(breath));
        let beginning = if new.arguments.iter().any(|word| word == "-incoming") {
            Doing::Expecting
        } else {
            Doing::Waiting
        };
        let (doing, monitor, viewers) = (Mutex::new(beginning), Mutex::default(), Mutex::default());
        let vcpus = Mutex::new(Vcpus::of(new.arguments));
        let media = Mutex::new(Media::of(new.arguments));
        let files = new.files.iter().map(|file| (file.path, file.file.length())).collect();
        let life = Self { domid, manners, doing, breath, ended, monitor, viewers, vcpus, media, files };
        Ok(Arc::new(life))
    }

    fn lives(&self) -> bool {
        lock(&self.breath).is_some()
    }

    /// Whether it lived.
    pub(super) fn end(&self) -> bool {
        let lived = lock(&self.breath).take().is_some();
        if let Some(monitor) = lock(&self.monitor).take() {
            let _ = monitor.shutdown(Shutdown::Both);
        }
        lock(&self.viewers).clear();
        lived
    }

    pub(super) fn doing(&self) -> Doing {
        *lock(&self.doing)
    }

    /// The processors its guest has got.
    pub(super) fn vcpus(&self) -> Vcpus {
        *lock(&self.vcpus)
    }

    /// Drives with something in them, and how many sets of descriptors there are.
    pub(super) fn media(&self) -> (Vec<String>, usize) {
        let media = lock(&self.media);
        (media.inserted.keys().cloned().collect(), media.sets.len())
    }

    pub(super) fn files(&self) -> Vec<(&'static Path, usize)> {
        self.files.clone()
    }

    pub(super) fn lose_processors(&self) {
        *lock(&self.vcpus) = Vcpus { present: 0, max: 0 };
    }

    /// Something it says by itself.
    pub(super) fn say(&self, line: &str) -> io::Result<()> {
        match &*lock(&self.monitor) {
            Some(monitor) => writeln!(&*monitor, "{line}"),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Says to a viewer what a VNC server says first.
    fn welcome(&self, viewer: Option<OwnedFd>) -> io::Result<()> {
        let viewer = viewer.ok_or(io::ErrorKind::InvalidData)?;
        File::from(viewer.try_clone()?).write_all(b"RFB 003.008\n")?;
        lock(&self.viewers).push(viewer);
        Ok(())
    }

    /// What a command about its state does, as [`Media::obey`] does what is about media.
    fn keep_state(&self, name: &str, passed: Option<&OwnedFd>) -> Option<Result<(), &'static str>> {
        let kept = match name {
            "stop" => {
                *lock(&self.doing) = Doing::Stopped;
                Ok(())
            }
            "cont" if self.manners == Manners::Halt && self.doing() == Doing::Stopped => {
                Err("It does not go on")
            }
            "xen-save-devices-state" => match (self.manners, lock(&self.media).given(STATE_SET)) {
                (Manners::Refuse, _) => Err("An IO error has occurred"),
                (Manners::Empty, _) => Ok(()),
                (Manners::Die, _) => {
                    self.end();
                    Ok(())
                }
                (_, None) => Err("Could not open the file"),
                (manners, Some(file)) => state::write(file, self.vcpus(), manners == Manners::Huge),
            },
            "migrate-incoming" if self.doing() != Doing::Expecting => Err("Not started with -incoming defer"),
            "migrate-incoming" => {
                if self.manners == Manners::Choke || !state::is_of(passed, self.vcpus()) {
                    // As QEMU: there is nothing else that it could do then.
                    self.end();
                }
                Ok(())
            }
            _ => return None,
        };
        Some(kept)
    }

    fn serve(&self, stream: &UnixStream) -> io::Result<()> {
        match self.manners {
            Manners::Mute => return Ok(()),
            Manners::Nonsense => return writeln!(&*stream, "hello"),
            _ => writeln!(&*stream, "{GREETING}")?,
        }
        let mut commands = Commands { stream, bytes: Vec::new(), passed: None };
        while let Some(line) = commands.next()? {
            let Ok(command) = crate::rpc::json::parse(&line) else { continue };
            let text = |key| match command.get(key) {
                Some(Value::String(text)) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
                Some(Value::Int(number)) => number.to_string(),
                _ => String::new(),
            };
            let (name, id) = (text("execute"), text("id"));
            if name == "add_client" {
                self.welcome(commands.passed.take())?;
            }
            if name == "device_add" {
                lock(&self.vcpus).present += 1;
            }
            let answer = match &*name {
                "query-status" => self.doing().status().to_owned(),
                "query-hotpluggable-cpus" => self.vcpus().places(),
                _ => "{}".to_owned(),
            };
            let locked = self.manners == Manners::Lock;
            let arguments = command.get("arguments");
            let obeyed = lock(&self.media).obey(&name, arguments, &mut commands.passed, locked);
            let obeyed = obeyed.or_else(|| self.keep_state(&name, commands.passed.as_ref()));
            if !self.lives() {
                return Ok(());
            }
            if let Some(Err(why)) = obeyed {
                let error = format!(r#"{{"class": "GenericError", "desc": "{why}"}}"#);
                writeln!(&*stream, r#"{{"error": {error}, "id": {id}}}"#)?;
                continue;
            }
            if name == "cont" {
                if self.manners == Manners::Crash {
                    self.end();
                    return Ok(());
                }
                *lock(&self.doing) = Doing::Emulating;
            }
            writeln!(&*stream, r#"{{"return": {answer}, "id": {id}}}"#)?;
            if name == "migrate-incoming" && self.manners != Manners::Chew {
                *lock(&self.doing) = Doing::Stopped;
                writeln!(&*stream, r#"{{"event": "MIGRATION", "data": {{"status": "completed"}}}}"#)?;
            }
            if self.manners == Manners::Flood && self.doing() == Doing::Emulating {
                // Until nobody listens any more.
                loop {
                    (&*stream).write_all(b"{\"event\": \"RTC_CHANGE\", \"data\": {\"offset\": 1}}\n")?;
                }
            }
        }
        Ok(())
    }
}

/// What comes through a monitor.
struct Commands<'a> {
    stream: &'a UnixStream,
    bytes: Vec<u8>,
    /// The descriptor that came last.
    passed: Option<OwnedFd>,
}

impl Commands<'_> {
    /// A line; none once the other end is closed.
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(end) = self.bytes.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.bytes.drain(..=end).collect()));
            }
            let mut part = [0; 4096];
            let (length, passed) = ffi::passing::receive(self.stream, &mut part)?;
            if length == 0 {
                return Ok(None);
            }
            self.bytes.extend_from_slice(&part[..length]);
            self.passed = passed.or(self.passed.take());
        }
    }
}

/// One device model as the daemon holds it.
struct Process {
    shared: Arc<Shared>,
    life: Arc<Life>,
}

impl DeviceModel for Process {
    fn ended(&self) -> BorrowedFd<'_> {
        self.life.ended.as_fd()
    }

    fn connect(&self) -> io::Result<UnixStream> {
        self.shared.faults.check("device_model.connect").map_err(io::Error::other)?;
        if !self.life.lives() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = UnixStream::pair()?;
        *lock(&self.life.monitor) = Some(theirs.try_clone()?);
        let life = Arc::clone(&self.life);
        let serve = move || {
            // It fails when the other end is closed.
            let _ = life.serve(&theirs);
        };
        let thread = std::thread::Builder::new().name("simulated-dm".into());
        thread.stack_size(crate::ops::WORKER_STACK).spawn(serve)?;
        Ok(ours)
    }

    fn seal(&self) -> Result<(), HostError> {
        self.shared.faults.check("device_model.seal")?;
        if self.life.manners == Manners::Vanish {
            self.life.end();
        }
        Ok(())
    }

    fn kill(&self) -> Result<(), HostError> {
        self.shared.faults.check("device_model.kill")?;
        self.life.end();
        Ok(())
    }

    fn last_words(&self) -> String {
        "the simulator ended it".to_owned()
    }
}
