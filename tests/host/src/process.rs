//! Programs on this machine: run to their end with a deadline, or supervised for as long as we live.
//!
//! ```text
//!  run():        child ──stdout──▶ reader thread ─┐
//!                      ──stderr──▶ reader thread ─┼─▶ events ─▶ caller (deadline, line callback)
//!                      ──exit────▶ waiter thread ─┘
//!  supervise():  child dies with this process: the kernel kills it (PR_SET_PDEATHSIG)
//! ```

use crate::error::{Context as _, Error, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use std::{
    fs::File,
    io::{self, Read},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        mpsc::{self, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

/// Most bytes kept of one output stream; the start and what goes beyond it is dropped. More than any command of the
/// tests prints, and small beside the memory of a clone.
pub(crate) const MAX_OUTPUT: usize = 16 << 20;

/// How much of a failed program's output an error carries.
const ERROR_TAIL: usize = 4 << 10;

/// How long a killed program gets to be gone. Only a process stuck in the kernel needs more than milliseconds.
const KILL_GRACE: Duration = Duration::from_secs(10);

/// What a program gave back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit code; 128 plus the signal number when a signal ended it, as shells say it.
    pub status: i32,
    /// Standard output (the last 16 MiB of it).
    pub stdout: Vec<u8>,
    /// Standard error (the last 16 MiB of it).
    pub stderr: Vec<u8>,
}

impl Output {
    /// True for exit code 0.
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// Standard output as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn error_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Which of the two streams a piece of output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Err,
}

/// Receives output while it comes, in pieces as they were written.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(Stream, &[u8]);

/// The shell's way to write an exit status as one number.
pub(crate) fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// The command as a person would type it, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|w| w.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// The last `limit` bytes as text.
pub(crate) fn tail(bytes: &[u8], limit: usize) -> String {
    let start = bytes.len().saturating_sub(limit);
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).trim_end().to_owned()
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The data behind our mutexes is whole at every step, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

enum Event {
    Output(Stream, Vec<u8>),
    End,
    Exit(io::Result<ExitStatus>),
}

fn read_all(stream: Stream, mut pipe: impl Read, events: &Sender<Event>) {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match pipe.read(&mut buffer) {
            Ok(count) if count > 0 => {
                let piece = buffer.get(..count).unwrap_or_default().to_vec();
                if events.send(Event::Output(stream, piece)).is_err() {
                    return;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    // The receiver is gone only when nobody waits any more.
    drop(events.send(Event::End));
}

fn keep(kept: &mut Vec<u8>, piece: &[u8]) {
    kept.extend_from_slice(piece);
    // Cut in large steps: cutting for every piece would move the whole buffer each time.
    if kept.len() > 2 * MAX_OUTPUT {
        kept.drain(..kept.len() - MAX_OUTPUT);
    }
}

/// Runs `command` to its end. Its output goes to `sink` as it comes and into the result; standard input is `stdin`
/// or empty.
///
/// # Errors
/// [`Error::Start`] when it cannot be started, [`Error::Deadline`] when `limit` passes (the program is killed). A
/// failing exit code is no error here.
pub(crate) fn run(
    command: &mut Command,
    stdin: Option<File>,
    limit: Duration,
    sink: Option<Sink<'_>>,
) -> Result<Output> {
    command.stdin(stdin.map_or_else(Stdio::null, Stdio::from));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let (sender, events) = mpsc::channel();
    if let Some(pipe) = child.stdout.take() {
        let sender = sender.clone();
        thread::spawn(move || read_all(Stream::Out, pipe, &sender));
    }
    if let Some(pipe) = child.stderr.take() {
        let sender = sender.clone();
        thread::spawn(move || read_all(Stream::Err, pipe, &sender));
    }
    let pid = pid(&child);
    thread::spawn(move || drop(sender.send(Event::Exit(child.wait()))));
    let mut ignore = |_: Stream, _: &[u8]| {};
    let sink = sink.unwrap_or(&mut ignore);
    let (mut stdout, mut stderr, mut exit, mut open) = (Vec::new(), Vec::new(), None, 2);
    let mut deadline = Instant::now() + limit;
    let mut expired = false;
    while exit.is_none() || (open > 0 && !expired) {
        match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Event::Output(stream, piece)) => {
                sink(stream, &piece);
                keep(if stream == Stream::Out { &mut stdout } else { &mut stderr }, &piece);
            }
            Ok(Event::End) => open -= 1,
            Ok(Event::Exit(status)) => exit = Some(status.at("wait for", command.get_program())?),
            Err(RecvTimeoutError::Timeout) if !expired => {
                expired = true;
                deadline = Instant::now() + KILL_GRACE;
                if exit.is_none() {
                    // Not reaped yet (the waiter has not reported), so the number is still this child's.
                    let _ = kill(pid, Signal::SIGKILL);
                }
            }
            Err(_) => break,
        }
    }
    match exit {
        Some(status) if !expired => Ok(Output { status: code(status), stdout, stderr }),
        _ => Err(Error::Deadline { what: format!("`{}`", shown(command)), limit, console: String::new() }),
    }
}

/// As [`run`], but a failing exit code is an error that carries the end of the output.
pub(crate) fn check(command: &mut Command, limit: Duration) -> Result<Output> {
    let output = run(command, None, limit, None)?;
    if output.success() {
        return Ok(output);
    }
    let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
    Err(Error::Program { command: shown(command), status: output.status, output: tail(said, ERROR_TAIL) })
}

fn spawn(command: &mut Command) -> Result<Child> {
    command.spawn().map_err(|source| Error::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        source,
    })
}

fn pid(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

/// Who a long-running program belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// It ends with this process, however that ends.
    Ours,
    /// It goes on without us (a host for `cargo xtask host`), in a process group of its own.
    Detached,
}

/// How a program ended, as far as it has.
#[derive(Debug, Default)]
struct End {
    status: Option<i32>,
    /// Nothing more is written to its directory by us.
    settled: bool,
}

/// A running program, with its end observed.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    released: bool,
    end: Arc<(Mutex<End>, Condvar)>,
}

impl Process {
    /// Starts `command` with its output in `log`. When it ends, its exit code is written to `exit_file`, so that who
    /// watches that directory wakes up.
    pub(crate) fn start(mut command: Command, life: Life, log: &Path, exit_file: PathBuf) -> Result<Self> {
        if life == Life::Ours {
            command = dying_with_us(&command);
        }
        let file = File::create(log).at("create", log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone().at("open", log)?).stderr(file).process_group(0);
        let mut child = match life {
            Life::Ours => on_lasting_thread(move || spawn(&mut command))?,
            Life::Detached => spawn(&mut command)?,
        };
        let end = Arc::new((Mutex::new(End::default()), Condvar::new()));
        let process = Self { pid: pid(&child), released: false, end: Arc::clone(&end) };
        thread::spawn(move || {
            let status = child.wait().map_or(-1, code);
            locked(&end.0).status = Some(status);
            // Nobody may be watching any more, and the directory may be gone.
            drop(std::fs::write(exit_file, status.to_string()));
            locked(&end.0).settled = true;
            end.1.notify_all();
        });
        Ok(process)
    }

    /// Lets it go on when this value is gone; only a [`Life::Detached`] one also outlives this process.
    pub(crate) fn release(mut self) {
        self.released = true;
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// The exit code, once it has ended.
    pub(crate) fn ended(&self) -> Option<i32> {
        locked(&self.end.0).status
    }

    /// Waits for its end; `None` when `limit` passes first.
    pub(crate) fn wait(&self, limit: Duration) -> Option<i32> {
        let guard = locked(&self.end.0);
        let waited = self.end.1.wait_timeout_while(guard, limit, |end| !end.settled);
        waited.unwrap_or_else(PoisonError::into_inner).0.status
    }

    /// Kills it and waits until it is gone.
    pub(crate) fn kill(&self) {
        if self.ended().is_none() {
            // It may end at this moment: then there is nothing left to kill.
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        self.wait(KILL_GRACE);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.released {
            self.kill();
        }
    }
}

/// Wraps a command (program, arguments, directory and environment; not its streams) so that the kernel kills it when the starting thread dies: `setpriv` sets the death signal, and
/// the shell closes the gap in which we could have died before it was set (the parent is somebody else then).
fn dying_with_us(command: &Command) -> Command {
    let mut wrapped = Command::new("setpriv");
    wrapped.args(["--pdeathsig", "KILL", "--", "sh", "-c"]);
    wrapped.args(["[ \"$PPID\" = \"$1\" ] || exit 125; shift; exec \"$@\"", "sh"]);
    wrapped.arg(std::process::id().to_string()).arg(command.get_program()).args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        wrapped.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    wrapped
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs `start` on a thread that lasts as long as the process: the death signal follows the *thread* that forked,
/// and test threads come and go.
fn on_lasting_thread<T: Send + 'static>(start: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    static STARTER: OnceLock<Sender<Job>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || jobs.into_iter().for_each(|job| job()));
        sender
    });
    let (sender, result) = mpsc::channel();
    let job: Job = Box::new(move || drop(sender.send(start())));
    let gone = || Error::Start {
        program: "starter thread".to_owned(),
        source: io::Error::other("the thread that starts programs is gone"),
    };
    starter.send(job).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_exit_code() {
        let output = run(&mut sh("echo out; echo err >&2; exit 7"), None, Duration::from_secs(20), None);
        let output = output.expect("runs");
        assert_eq!(
            (output.status, output.text().as_str(), output.error_text().as_str()),
            (7, "out\n", "err\n")
        );
    }

    #[test]
    fn output_is_streamed() {
        let mut seen = Vec::new();
        let mut sink = |stream, piece: &[u8]| seen.push((stream, piece.to_vec()));
        run(&mut sh("echo out"), None, Duration::from_secs(20), Some(&mut sink)).expect("runs");
        assert_eq!(seen, [(Stream::Out, b"out\n".to_vec())]);
    }

    #[test]
    fn a_deadline_kills() {
        let begin = Instant::now();
        let result = run(&mut sh("exec sleep 60"), None, Duration::from_millis(100), None);
        assert!(matches!(result, Err(Error::Deadline { .. })), "{result:?}");
        assert!(begin.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_background_process_holding_the_pipe_does_not_hold_us_for_ever() {
        let begin = Instant::now();
        let result = run(&mut sh("sleep 5 & exit 0"), None, Duration::from_millis(200), None);
        assert!(matches!(result, Err(Error::Deadline { .. })), "{result:?}");
        assert!(begin.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_signal_is_128_and_its_number() {
        let output = run(&mut sh("kill -9 $$"), None, Duration::from_secs(20), None).expect("runs");
        assert_eq!(output.status, 137);
    }

    #[test]
    fn a_missing_program_is_named() {
        let result = check(&mut Command::new("no-such-program"), Duration::from_secs(1));
        assert!(result.is_err_and(|e| e.to_string().contains("no-such-program")));
    }

    #[test]
    fn a_supervised_program_outlives_the_thread_that_asked_for_it() {
        let exit = std::env::temp_dir().join(format!("xen-host-exit-{}", std::process::id()));
        let file = exit.clone();
        let process = thread::spawn(move || {
            let mut command = Command::new("sleep");
            command.arg("60");
            Process::start(command, Life::Ours, Path::new("/dev/null"), file)
        });
        let process = process.join().expect("no panic").expect("starts");
        assert_eq!(process.wait(Duration::from_millis(300)), None);
        process.kill();
        assert_eq!(process.ended(), Some(137));
        drop(std::fs::remove_file(exit));
    }
}
