//! Running an administrator's script: in a process group of its own, its output bounded, its time bounded, and nothing of
//! it left running when it is given up. One that is given input has an environment of its own and limits, too.
//!
//! ```text
//!   script ── exits ──► waiter (the process stays a zombie) ──┐
//!                                                             ├─► runner ── kills the group ──► reaps
//!   task cancelled, time over ────────────────────────────────┘
//! ```
//!
//! The process is reaped only after its group was killed: until then nobody else can be given the group's number.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crossbeam::channel::{Receiver, bounded};
use ffi::pid::{Limit, limit};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::edge::{HostError, ScriptEnd, ScriptError, ScriptRun};

/// Most of a script's output that is kept, in bytes: it travels in an error to the client.
const MAX_OUTPUT: u64 = 16 * 1024;

/// Most input of a script, in bytes: no more than a pipe holds (16 pages), so that writing it never waits.
pub const MAX_INPUT: usize = 16 * 4096;

/// Where a script with input finds other programs.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// What a script with input may use: far more than one that talks to a storage service needs, and far less than the host
/// has. Time it spends waiting is not counted.
const LIMITS: [(Limit, u64); 4] =
    [(Limit::CpuSeconds, 300), (Limit::Memory, 2 << 30), (Limit::Files, 1024), (Limit::Core, 0)];

/// Most scripts of one event.
const MAX_SCRIPTS: usize = 256;

/// Executable files of a directory by name; none when there is no such directory.
///
/// # Errors
/// What the kernel says, and more than [`MAX_SCRIPTS`] of them.
pub fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let context =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", directory.display()));
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(context)?,
    };
    let mut scripts = Vec::new();
    for entry in entries {
        let path = entry.map_err(context)?.path();
        // Editors' backups and notes lie about in such directories.
        if fs::metadata(&path).is_ok_and(|found| is_program(&found)) {
            scripts.push(path);
        }
    }
    if scripts.len() > MAX_SCRIPTS {
        let text = format!("{} holds more than {MAX_SCRIPTS} scripts", directory.display());
        return Err(io::Error::other(text));
    }
    scripts.sort();
    Ok(scripts)
}

/// Whether it is a file that somebody may execute.
pub fn is_program(found: &fs::Metadata) -> bool {
    found.is_file() && found.mode() & 0o111 != 0
}

/// Checks that a script is there and can be run.
///
/// # Errors
/// [`HostError`].
pub fn check(path: &Path) -> Result<(), HostError> {
    let id = path.display().to_string();
    match fs::metadata(path) {
        Ok(found) if is_program(&found) => Ok(()),
        Ok(_) => {
            let text = format!("script {id} is not an executable file");
            Err(HostError::Unusable { class: "script", text })
        }
        Err(error) => Err(HostError::Missing { class: "script", text: format!("script {id}: {error}"), id }),
    }
}

/// Runs a script to its end, in `/`.
///
/// # Errors
/// [`ScriptError`].
pub fn run(run: &ScriptRun<'_>) -> Result<ScriptEnd, ScriptError> {
    let unusable = |error: io::Error| ScriptError::Unusable(error.to_string());
    let mut command = Command::new(run.script);
    command.args(run.arguments).stdin(Stdio::null()).stdout(Stdio::piped()).current_dir("/").process_group(0);
    if run.input.is_some() {
        command.env_clear().env("PATH", PATH).env("LC_ALL", "C").stdin(Stdio::piped()).stderr(Stdio::piped());
    }
    command.envs(run.environment.iter().map(|(name, value)| (name, value)));
    let mut child = command.spawn().map_err(unusable)?;
    let (input, output, complaints) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let pid =
        Pid::from_raw(i32::try_from(child.id()).map_err(|_| unusable(io::ErrorKind::InvalidData.into()))?);
    let group = Group { child, pid };
    let ended = on_end(pid).map_err(unusable)?;
    let reader = output.map(|output| read_beginning(OwnedFd::from(output).into())).transpose();
    let complaints = complaints.map(|output| read_beginning(OwnedFd::from(output).into())).transpose();
    let (reader, complaints) = (reader.map_err(unusable)?, complaints.map_err(unusable)?);
    if let (Some(mut pipe), Some(input)) = (input, run.input) {
        for (what, value) in LIMITS {
            limit(pid.as_raw(), what, value).or_else(ended_already).map_err(unusable)?;
        }
        // It fits into the pipe, and need not be read.
        pipe.write_all(&input[..input.len().min(MAX_INPUT)]).or_else(unread).map_err(unusable)?;
    }
    let outcome = crossbeam::select! {
        recv(ended) -> _ => Ok(()),
        recv(run.cancelled) -> _ => Err(ScriptError::Cancelled),
        default(run.limit) => Err(ScriptError::TimedOut(run.limit)),
    };
    // A script's children go with it: whatever they hold open is closed, so that the reader comes to its end.
    let status = group.end().map_err(unusable)?;
    let read = |reader: Option<Receiver<Vec<u8>>>| {
        let bytes = reader.and_then(|reader| reader.recv().ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (read(reader), read(complaints));
    outcome?;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(ScriptEnd { code, stdout, stderr })
}

/// A process that has ended needs no limits.
fn ended_already(error: io::Error) -> io::Result<()> {
    if error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
}

/// What it does not read is not missed.
fn unread(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::BrokenPipe { Ok(()) } else { Err(error) }
}

/// A script and its children.
struct Group {
    child: Child,
    pid: Pid,
}

impl Group {
    fn end(mut self) -> io::Result<ExitStatus> {
        self.kill();
        self.child.wait()
    }

    fn kill(&self) {
        // All of it may have ended by itself.
        let _ = killpg(self.pid, Signal::SIGKILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // After `end` the child is known to be reaped, and its number is not used again.
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

/// Tells when a child has ended, without reaping it.
fn on_end(pid: Pid) -> io::Result<Receiver<()>> {
    let (tell, ended) = bounded(1);
    let wait = move || {
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
        let _ = tell.send(());
    };
    std::thread::Builder::new().name("script-end".into()).stack_size(crate::ops::SMALL_STACK).spawn(wait)?;
    Ok(ended)
}

/// Reads all that is written and keeps the beginning: a script must not be stopped by a full pipe.
fn read_beginning(mut output: File) -> io::Result<Receiver<Vec<u8>>> {
    let (give, kept) = bounded(1);
    let read = move || {
        let mut beginning = Vec::new();
        let _ = (&mut output).take(MAX_OUTPUT).read_to_end(&mut beginning);
        let _ = io::copy(&mut output, &mut io::sink());
        let _ = give.send(beginning);
    };
    std::thread::Builder::new()
        .name("script-output".into())
        .stack_size(crate::ops::SMALL_STACK)
        .spawn(read)?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::os::unix::fs::symlink;
    use std::time::Duration;

    const LONG: Duration = Duration::from_secs(60);

    fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        crate::test_script(&path, text);
        path
    }

    fn run_text(text: &str, arguments: &[&str], limit: Duration) -> Result<ScriptEnd, ScriptError> {
        let directory = tempfile::tempdir().unwrap();
        let script = script(directory.path(), "script", text);
        let arguments: Vec<_> = arguments.iter().map(|a| (*a).to_owned()).collect();
        let (_keep, cancelled) = bounded::<Infallible>(0);
        run(&ScriptRun {
            script: &script,
            arguments: &arguments,
            input: None,
            environment: &[],
            limit,
            cancelled: &cancelled,
        })
    }

    fn run_with_input(text: &str, input: &[u8]) -> ScriptEnd {
        let directory = tempfile::tempdir().unwrap();
        let script = script(directory.path(), "script", text);
        let (_keep, cancelled) = bounded::<Infallible>(0);
        let input = Some(input);
        run(&ScriptRun {
            script: &script,
            arguments: &[],
            input,
            environment: &[],
            limit: LONG,
            cancelled: &cancelled,
        })
        .unwrap()
    }

    #[test]
    fn one_with_input_reads_it_and_has_little_else() {
        let end = run_with_input("cat; echo why >&2; exit 4", b"{}");
        assert_eq!(end, ScriptEnd { code: 4, stdout: "{}".to_owned(), stderr: "why\n".to_owned() });
        let end = run_with_input("env | sort; ulimit -c; ulimit -n; ulimit -v", b"");
        for line in ["LC_ALL=C", "0", "1024", "2097152"] {
            assert!(end.stdout.lines().any(|l| l == line), "{line}: {}", end.stdout);
        }
        assert!(!end.stdout.contains("HOME=") && !end.stdout.contains("CARGO"), "{}", end.stdout);
        // One that does not read.
        assert_eq!(run_with_input("exec <&-; exit 0", &vec![b'x'; MAX_INPUT]).code, 0);
    }

    #[test]
    fn what_it_prints_and_how_it_exits_is_told() {
        let end = run_text("echo \"$@\"; exit 3", &["-reason", "none"], LONG).unwrap();
        assert_eq!(end, ScriptEnd { code: 3, stdout: "-reason none\n".to_owned(), stderr: String::new() });
        assert_eq!(run_text("kill -TERM $$", &[], LONG).unwrap().code, 128 + 15);
    }

    #[test]
    fn endless_output_is_cut_and_does_not_block() {
        let end = run_text("head -c 1000000 /dev/zero", &[], LONG).unwrap();
        assert_eq!((end.code, end.stdout.len() as u64), (0, MAX_OUTPUT));
    }

    #[test]
    fn one_that_takes_too_long_goes_with_its_children() {
        // The child holds the output open: if it lived on, the reader would not come to its end.
        let outcome = run_text("sleep 1000 & sleep 1000", &[], Duration::from_millis(50));
        assert!(matches!(outcome, Err(ScriptError::TimedOut(_))), "{outcome:?}");
    }

    #[test]
    fn children_that_it_leaves_behind_do_not_keep_it() {
        assert_eq!(run_text("sleep 1000 & exit 0", &[], LONG).unwrap().code, 0);
    }

    #[test]
    fn a_cancelled_one_is_killed() {
        let directory = tempfile::tempdir().unwrap();
        let script = script(directory.path(), "script", "sleep 1000");
        let (cancel, cancelled) = bounded::<Infallible>(0);
        drop(cancel);
        let run = run(&ScriptRun {
            script: &script,
            arguments: &[],
            input: None,
            environment: &[],
            limit: LONG,
            cancelled: &cancelled,
        });
        assert!(matches!(run, Err(ScriptError::Cancelled)), "{run:?}");
    }

    #[test]
    fn one_that_cannot_be_run_says_why() {
        let (_keep, cancelled) = bounded::<Infallible>(0);
        let script = Path::new("/nonexistent/script");
        let run = run(&ScriptRun {
            script,
            arguments: &[],
            input: None,
            environment: &[],
            limit: LONG,
            cancelled: &cancelled,
        });
        assert!(matches!(run, Err(ScriptError::Unusable(_))), "{run:?}");
    }

    #[test]
    fn executable_files_are_listed_by_name() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["20-b", "10-a"] {
            script(directory.path(), name, "");
        }
        fs::write(directory.path().join("README"), "not a script").unwrap();
        fs::create_dir(directory.path().join("00-directory")).unwrap();
        let names: Vec<_> =
            list(directory.path()).unwrap().into_iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(names, ["10-a", "20-b"]);
        assert!(list(&directory.path().join("absent")).unwrap().is_empty());
        for number in 0..MAX_SCRIPTS {
            symlink("10-a", directory.path().join(number.to_string())).unwrap();
        }
        assert!(list(directory.path()).is_err());
    }
}
