//! A running device model: commands to it, and one thread that follows what becomes of it.
//!
//! ```text
//!   attach ─► monitor greets ─► ready (set up, waiting) ─► follow ─► [load state] ─► run
//!                                                            │ thread: waits for
//!                  process ended ──► Notice::Ended ◄─────────┤  the process
//!                  RTC_CHANGE ─────► Notice::Clock ◄─────────┤  the monitor
//!                  reset, shutdown ► Notice::Look  ◄─────────┤  a wake
//!                  a viewer has come ► handed to the process ┘  viewers
//! ```
//!
//! Nothing that comes through the monitor is believed further than that: the hypervisor says whether a guest has stopped,
//! the process's descriptor whether it has ended.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded, select};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::qmp::{Event, Qmp, QmpError, RunState};
use super::vcpus;
use crate::api::value::Value;
use crate::edge::{DeviceModel, HostError, ScreenListener};
use crate::ops::plan::Beginning;

/// How long a device model that is up may take to answer a command. It answers in microseconds, unless a disk hangs.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Neither the monitor nor viewers are listened to for this long after something came: a flood costs its guest, not dom0.
const THROTTLE: Duration = Duration::from_millis(100);

/// How long a process whose monitor was closed may take to be gone.
const END_LIMIT: Duration = Duration::from_secs(2);

/// Furthest that a guest's clock may be off, in seconds: what a year of four digits can be.
const MAX_CLOCK_OFFSET: i64 = 10_000 * 366 * 86_400;

/// Why a device model is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It ended.
    #[error("the device model ended while it {doing}: {words}")]
    Ended {
        /// What it was doing.
        doing: &'static str,
        /// The last it said.
        words: String,
    },
    /// It was not wanted any more.
    #[error("cancelled")]
    Cancelled,
    /// Its monitor cannot be reached or does not follow the protocol.
    #[error(transparent)]
    Monitor(#[from] QmpError),
    /// It is up, and not as it was told.
    #[error("the device model is not {}, as it was told, but {found:?}", told(*wanted))]
    State {
        /// As it should be.
        wanted: RunState,
        /// As it is.
        found: RunState,
    },
    /// What the daemon needs for it cannot be had.
    #[error("the device model cannot be followed: {0}")]
    Follow(#[source] io::Error),
    /// It cannot be ended, or is not in its jail.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// What a device model in a state does, for people.
fn told(state: RunState) -> &'static str {
    match state {
        RunState::Prelaunch => "waiting for its guest",
        RunState::InMigrate => "waiting for its guest's state",
        RunState::Running => "running",
        RunState::Paused => "stopped",
        RunState::Other => "in another state",
    }
}

/// What becomes of a device model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// It has ended without having been told to; with what it said last.
    Ended(String),
    /// The guest has set its clock: by how many seconds.
    Clock(i64),
    /// Something happened that the hypervisor knows more about.
    Look,
}

/// Who is told. It is called on the device model's thread and may block.
pub type Tell = Box<dyn Fn(Notice) + Send>;

/// A device model that is ready. Dropping this leaves it running, unfollowed.
pub struct Model {
    shared: Arc<Shared>,
    /// The thread that follows it.
    follower: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    process: Arc<dyn DeviceModel>,
    qmp: Mutex<Qmp>,
    /// Wakes the thread: something came with an answer, or it is to end.
    wake: EventFd,
    /// The thread is not wanted any more.
    released: AtomicBool,
}

impl Model {
    /// Connects to a device model and waits, no longer than `limit`, until its monitor answers.
    ///
    /// # Errors
    /// [`ModelError`]; the process is not ended.
    pub fn attach(
        process: Arc<dyn DeviceModel>,
        limit: Duration,
        cancelled: Option<&Receiver<Infallible>>,
    ) -> Result<Self, ModelError> {
        let doing = "connecting to its monitor";
        let started = connect(&*process)
            .map_err(|source| QmpError::Connection { doing, source })
            .and_then(|stream| unless_cancelled(stream, limit, cancelled));
        let qmp = match started {
            Ok(qmp) => qmp,
            Err(QmpError::Connection { .. }) if has_ended(process.ended(), END_LIMIT) => {
                return Err(ModelError::Ended { doing: "started", words: process.last_words() });
            }
            Err(QmpError::Connection { .. }) if is_disconnected(cancelled) => {
                return Err(ModelError::Cancelled);
            }
            Err(other) => return Err(other.into()),
        };
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|errno| ModelError::Follow(errno.into()))?;
        let released = AtomicBool::new(false);
        let shared = Shared { process, qmp: Mutex::new(qmp), wake, released };
        Ok(Self { shared: Arc::new(shared), follower: Mutex::default() })
    }

    /// Makes sure that it is set up and emulates nothing yet, and takes away what it needed to get there.
    ///
    /// # Errors
    /// [`ModelError`].
    pub fn seal(&self, beginning: Beginning) -> Result<(), ModelError> {
        self.expect(match beginning {
            Beginning::Fresh => RunState::Prelaunch,
            Beginning::Kept => RunState::InMigrate,
        })?;
        Ok(self.shared.process.seal()?)
    }

    /// Makes sure that it is in this state.
    pub(super) fn expect(&self, wanted: RunState) -> Result<(), ModelError> {
        let found = RunState::of(&self.ask("query-status")?);
        if found == wanted { Ok(()) } else { Err(ModelError::State { wanted, found }) }
    }

    /// Follows it from now on, for as long as this value lives, and hands it the viewers that come.
    ///
    /// # Errors
    /// [`ModelError::Follow`].
    pub fn follow(&self, name: &str, tell: Tell, viewers: Option<ScreenListener>) -> Result<(), ModelError> {
        let shared = Arc::clone(&self.shared);
        let stream = shared.qmp().try_clone_stream().map_err(ModelError::Follow)?;
        let watch = Watch { shared, stream: Some(stream), tell, viewers };
        let thread = std::thread::Builder::new().name(name.into()).stack_size(crate::ops::WORKER_STACK);
        let follower = thread.spawn(move || watch.run()).map_err(ModelError::Follow)?;
        *self.follower.lock().unwrap_or_else(PoisonError::into_inner) = Some(follower);
        Ok(())
    }

    /// Lets it emulate; one that does is left so.
    ///
    /// # Errors
    /// [`ModelError::Monitor`].
    pub fn run(&self) -> Result<(), ModelError> {
        Ok(self.shared.execute("cont", None, None).map(drop)?)
    }

    /// Gives the guest its first `wanted` processors, as far as it has not got them.
    ///
    /// # Errors
    /// [`ModelError::Monitor`]; some may be there.
    pub fn plug_vcpus(&self, wanted: usize) -> Result<(), ModelError> {
        let places = self.ask("query-hotpluggable-cpus")?;
        for arguments in vcpus::missing(&places, wanted)? {
            self.shared.execute("device_add", Some(arguments), None)?;
        }
        Ok(())
    }

    /// Has a command carried out that answers nothing of interest.
    pub(super) fn execute(
        &self,
        command: &str,
        arguments: Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<(), ModelError> {
        Ok(self.shared.execute(command, Some(arguments), descriptor).map(drop)?)
    }

    /// Has a command carried out that answers at once and goes on until there is an event; one that ends instead is an error.
    pub(super) fn execute_until(
        &self,
        command: &str,
        arguments: Value,
        is_over: impl Fn(&Event) -> bool,
        limit: Duration,
    ) -> Result<(), ModelError> {
        // The thread that follows it hears of events when this has.
        let outcome = self.shared.qmp().execute_until(command, Some(arguments), is_over, limit);
        self.shared.wake();
        match outcome {
            Err(QmpError::Connection { .. }) if has_ended(self.shared.process.ended(), END_LIMIT) => {
                Err(ModelError::Ended { doing: "took its state", words: self.shared.process.last_words() })
            }
            other => Ok(other?),
        }
    }

    /// What it answers to a question.
    pub(super) fn ask(&self, question: &str) -> Result<Value, ModelError> {
        Ok(self.shared.execute(question, None, None)?)
    }

    /// Ends it. Nobody is told anything of it after this.
    ///
    /// # Errors
    /// [`ModelError::Host`] when it does not end.
    pub fn end(&self) -> Result<(), ModelError> {
        self.shared.release();
        self.shared.process.kill()?;
        let follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner).take();
        // With its process gone, nothing that it waits for takes long. A panic there was reported by itself.
        let _ = follower.map(JoinHandle::join);
        Ok(())
    }

    /// Whether it has ended by now, as the kernel knows it: the thread that follows it may not have heard yet.
    pub fn has_ended(&self) -> bool {
        has_ended(self.shared.process.ended(), Duration::ZERO)
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("ended", &self.has_ended()).finish_non_exhaustive()
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        self.shared.release();
    }
}

impl Shared {
    fn qmp(&self) -> MutexGuard<'_, Qmp> {
        self.qmp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn execute(
        &self,
        command: &str,
        arguments: Option<Value>,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let answer = self.qmp().execute_with(command, arguments, descriptor, ANSWER_LIMIT);
        // Events may have come before the answer.
        self.wake();
        answer
    }

    /// Viewers are not asked for a password: who can connect is who may.
    fn add_viewer(&self, viewer: BorrowedFd<'_>) -> Result<(), QmpError> {
        let arguments = |members: &[(&str, Value)]| {
            Some(Value::Dict(members.iter().map(|(key, value)| ((*key).into(), value.clone())).collect()))
        };
        let name = || Value::string("viewer");
        self.execute("getfd", arguments(&[("fdname", name())]), Some(viewer))?;
        let client =
            [("protocol", Value::string("vnc")), ("fdname", name()), ("skipauth", Value::Bool(true))];
        self.execute("add_client", arguments(&client), None).map(drop)
    }

    fn wake(&self) {
        // It fails when it is full, and then a wake is due anyway.
        let _ = self.wake.write(1);
    }

    fn release(&self) {
        self.released.store(true, Ordering::Release);
        self.wake();
    }
}

fn connect(process: &dyn DeviceModel) -> io::Result<UnixStream> {
    process.connect()
}

/// The monitor's greeting, which a cancelled task does not wait for.
fn unless_cancelled(
    stream: UnixStream,
    limit: Duration,
    cancelled: Option<&Receiver<Infallible>>,
) -> Result<Qmp, QmpError> {
    let Some(cancelled) = cancelled else { return Qmp::start(stream, limit) };
    let doing = "duplicating its monitor's connection";
    let other = stream.try_clone().map_err(|source| QmpError::Connection { doing, source })?;
    let (done, over) = bounded::<Infallible>(0);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            select! {
                recv(cancelled) -> _ => drop(other.shutdown(std::net::Shutdown::Both)),
                recv(over) -> _ => {}
            }
        });
        let qmp = Qmp::start(stream, limit);
        drop(done);
        qmp
    })
}

fn is_disconnected(cancelled: Option<&Receiver<Infallible>>) -> bool {
    cancelled.is_some_and(|c| matches!(c.try_recv(), Err(crossbeam::channel::TryRecvError::Disconnected)))
}

/// Whether the descriptor becomes readable within `limit`.
fn has_ended(ended: BorrowedFd<'_>, limit: Duration) -> bool {
    wait(&mut [PollFd::new(ended, PollFlags::POLLIN)], Some(limit)).is_ok_and(|count| count > 0)
}

fn wait(descriptors: &mut [PollFd<'_>], limit: Option<Duration>) -> io::Result<usize> {
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        // A part of a millisecond would be none, and the wait a busy one.
        let left = left.map(|left| left + Duration::from_millis(1));
        let timeout = left.map_or(Ok(PollTimeout::NONE), PollTimeout::try_from).map_err(io::Error::other)?;
        match poll(descriptors, timeout) {
            Ok(count) => return Ok(usize::try_from(count).unwrap_or(0)),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The thread of one device model.
struct Watch {
    shared: Arc<Shared>,
    /// To wait on; none once the monitor is of no use any more.
    stream: Option<UnixStream>,
    tell: Tell,
    viewers: Option<ScreenListener>,
}

impl Watch {
    fn run(mut self) {
        let mut deaf_until = None::<Instant>;
        loop {
            let deaf = deaf_until.map(|until| until.saturating_duration_since(Instant::now()));
            let deaf = deaf.filter(|left| !left.is_zero());
            if let Err(error) = self.wait(deaf) {
                tracing::error!(%error, "a device model cannot be waited for; its end will not be noticed");
                return;
            }
            let _ = self.shared.wake.read();
            if self.shared.released.load(Ordering::Acquire) {
                return;
            }
            if has_ended(self.shared.process.ended(), Duration::ZERO) {
                (self.tell)(Notice::Ended(self.shared.process.last_words()));
                return;
            }
            if deaf.is_none() && (self.listen() | self.welcome()) {
                deaf_until = Some(Instant::now() + THROTTLE);
            }
        }
    }

    fn wait(&self, deaf: Option<Duration>) -> io::Result<()> {
        let readable = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut descriptors = vec![readable(self.shared.process.ended()), readable(self.shared.wake.as_fd())];
        if deaf.is_none() {
            descriptors.extend(self.stream.as_ref().map(|stream| readable(stream.as_fd())));
            descriptors.extend(self.viewers.as_ref().map(|viewers| readable(viewers.as_fd())));
        }
        wait(&mut descriptors, deaf).map(drop)
    }

    /// Hands on a viewer that has come; whether there was one.
    fn welcome(&mut self) -> bool {
        let Some(viewers) = &self.viewers else { return false };
        match viewers.accept() {
            Ok(None) => false,
            Ok(Some(viewer)) => {
                if let Err(error) = self.shared.add_viewer(viewer.as_fd()) {
                    tracing::warn!(%error, "a viewer is not let in");
                }
                true
            }
            Err(error) => {
                tracing::error!(%error, "viewers of a screen are not listened for any more");
                self.viewers = None;
                true
            }
        }
    }

    /// Whether there was something.
    fn listen(&mut self) -> bool {
        if self.stream.is_none() {
            return false;
        }
        let events = self.shared.qmp().events();
        match events {
            Ok(events) => {
                let change = events.iter().filter_map(clock).fold(0, i64::saturating_add);
                if change != 0 {
                    (self.tell)(Notice::Clock(change));
                }
                if events.iter().any(|event| matches!(&*event.name, "RESET" | "SHUTDOWN")) {
                    (self.tell)(Notice::Look);
                }
                !events.is_empty()
            }
            Err(error) => {
                // A process that ends closes it a moment before.
                if !has_ended(self.shared.process.ended(), END_LIMIT) {
                    tracing::error!(%error, "the device model's monitor is not listened to any more");
                }
                self.stream = None;
                false
            }
        }
    }
}

fn clock(event: &Event) -> Option<i64> {
    match (&*event.name, event.data.get("offset")) {
        ("RTC_CHANGE", Some(Value::Int(offset))) => {
            Some((*offset).clamp(-MAX_CLOCK_OFFSET, MAX_CLOCK_OFFSET))
        }
        _ => None,
    }
}
