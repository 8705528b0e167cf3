//! Processes this daemon did not start in this run: who they are, and their end.
//!
//! A number read from a file may be another's process by now. So a process is first held by a descriptor, then looked
//! at, and only signalled through that descriptor.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use ffi::pid::PidFd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ends::reap;
use crate::edge::{IoPriority, KILL_LIMIT};
use crate::state::journal::ProcessId;

/// Describes a process that is there, for the journal.
///
/// # Errors
/// `NotFound` when there is none; `InvalidData` when `/proc` cannot be made out.
pub fn describe(pid: u32, uid: u32, role: &str) -> io::Result<ProcessId> {
    let strange = || io::Error::from(io::ErrorKind::InvalidData);
    let started = start_time(pid)?;
    let pid = isize::try_from(pid).map_err(|_| strange())?;
    Ok(ProcessId { pid, started, uid: i64::from(uid), role: role.to_owned() })
}

/// Holds the process that is meant, if it is there: the number, the time of its start and its owner are right. Until it
/// has given up being root's, root is right too.
///
/// # Errors
/// When `/proc` or the kernel refuses.
pub fn hold(process: &ProcessId) -> io::Result<Option<PidFd>> {
    let Ok(pid) = u32::try_from(process.pid) else { return Ok(None) };
    let held = match PidFd::open(pid) {
        Ok(held) => held,
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let owner = match fs::metadata(format!("/proc/{pid}")) {
        Ok(metadata) => i64::from(metadata.uid()),
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    match start_time(pid) {
        Ok(started) if started == process.started && (owner == process.uid || owner == 0) => Ok(Some(held)),
        Ok(_) => Ok(None),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Ends the process that is meant; whether it was there.
///
/// # Errors
/// `TimedOut` when it does not end; otherwise as [`hold`].
pub fn kill(process: &ProcessId) -> io::Result<bool> {
    let Some(held) = hold(process)? else { return Ok(false) };
    match held.send_signal(libc::SIGKILL) {
        Ok(()) => {}
        Err(error) if gone(&error) => return Ok(true),
        Err(error) => return Err(error),
    }
    if !ended(&held, KILL_LIMIT)? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    reap(&held);
    Ok(true)
}

/// Asks the process that is meant to end, and ends it when it has not within `patience`; whether it ended by itself.
///
/// # Errors
/// As [`kill`].
pub fn stop(process: &ProcessId, patience: Duration) -> io::Result<bool> {
    let Some(held) = hold(process)? else { return Ok(false) };
    match held.send_signal(libc::SIGTERM) {
        Ok(()) if ended(&held, patience)? => {
            reap(&held);
            Ok(true)
        }
        Err(error) if !gone(&error) => Err(error),
        _ => kill(process).map(|_| false),
    }
}

/// Most looks at a process's threads: those that a thread starts while it is looked at have its old priority.
const LOOKS: usize = 8;

/// Gives all threads of the process that is meant a priority, which those that they start have then, too; how many there were.
/// One that starts threads all the time, as only a process that was taken over does, has some without it.
///
/// # Errors
/// The kernel's, and as [`hold`].
pub fn prioritise(process: &ProcessId, priority: IoPriority) -> io::Result<usize> {
    let Some(_held) = hold(process)? else { return Ok(0) };
    let mut done = BTreeSet::new();
    for _ in 0..LOOKS {
        let before = done.len();
        for thread in threads(process.pid)? {
            if done.contains(&thread) {
                continue;
            }
            match ffi::linux::ioprio::set(thread, priority.class, priority.level) {
                Ok(()) => drop(done.insert(thread)),
                // It has ended.
                Err(error) if gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if done.len() == before {
            break;
        }
    }
    Ok(done.len())
}

fn threads(pid: isize) -> io::Result<Vec<i32>> {
    let entries = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(entries) => entries,
        Err(error) if gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.collect())
}

/// Waits for its end; whether it came.
fn ended(process: &PidFd, limit: Duration) -> io::Result<bool> {
    let limit = PollTimeout::try_from(limit).map_err(io::Error::other)?;
    let mut ended = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    loop {
        match poll(&mut ended, limit) {
            Ok(ready) => return Ok(ready > 0),
            Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ESRCH | libc::ENOENT))
}

fn start_time(pid: u32) -> io::Result<i64> {
    let stat = fs::read(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)). Field 2, the program's name in parentheses, is whatever the program
/// chose, parentheses included: fields are counted from the last one.
fn parse_start_time(stat: &[u8]) -> Option<i64> {
    let name_end = stat.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(&stat[name_end + 1..]).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::process::{Child, Command, Stdio};

    fn sleeper() -> (Child, ProcessId) {
        let child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = describe(child.id(), 0, "test").unwrap();
        (child, process)
    }

    #[test]
    fn the_process_that_is_meant_is_ended() {
        let (mut child, process) = sleeper();
        let owned = ProcessId { uid: i64::from(nix::unistd::getuid().as_raw()), ..process };
        assert!(hold(&owned).unwrap().is_some());
        assert!(kill(&owned).unwrap());
        // Its remains are gone, too.
        assert_eq!(child.wait().unwrap_err().raw_os_error(), Some(libc::ECHILD));
        assert!(!kill(&owned).unwrap());
    }

    #[test]
    fn one_that_ends_when_asked_is_not_killed() {
        let uid = nix::unistd::getuid().as_raw();
        let start = |script: &str| {
            let mut child = Command::new("sh").args(["-c", script]).stdout(Stdio::piped()).spawn().unwrap();
            // It says when its traps are set.
            child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
            let process = describe(child.id(), uid, "test").unwrap();
            (child, process)
        };
        let (_obeys, process) = start("echo; exec sleep 600");
        assert!(stop(&process, Duration::from_secs(20)).unwrap());
        assert!(!stop(&process, Duration::from_secs(20)).unwrap());
        let (_ignores, process) = start("trap '' TERM; echo; exec sleep 600");
        assert!(!stop(&process, Duration::from_millis(50)).unwrap());
        assert!(hold(&process).unwrap().is_none());
    }

    #[test]
    fn only_the_process_that_is_meant_gets_a_priority() {
        let (mut child, process) = sleeper();
        let process = ProcessId { uid: nix::unistd::getuid().as_raw().into(), ..process };
        let low = IoPriority { class: 2, level: 6 };
        let other = ProcessId { started: process.started + 1, ..process.clone() };
        assert_eq!(prioritise(&other, low).unwrap(), 0);
        assert_eq!(prioritise(&process, low).unwrap(), 1);
        let said = Command::new("ionice").args(["-p", &child.id().to_string()]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "best-effort: prio 6");
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(prioritise(&process, low).unwrap(), 0);
    }

    #[test]
    fn another_process_of_that_number_is_left_alone() {
        let (mut child, process) = sleeper();
        assert!(!kill(&ProcessId { started: process.started + 1, ..process.clone() }).unwrap());
        assert!(!kill(&ProcessId { pid: -1, ..process }).unwrap());
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_name_with_parentheses_hides_nothing() {
        let fields: Vec<String> = (4..=52).map(|n: u32| n.to_string()).collect();
        let stat = format!("7 (a) S 1 (b) R {}", fields.join(" "));
        assert_eq!(parse_start_time(stat.as_bytes()), Some(22));
        for bad in ["", "7", ")", "7 (x) S 1 2", "7 (x) S a"] {
            assert_eq!(parse_start_time(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn a_process_that_is_not_there_is_not_described() {
        assert_eq!(describe(u32::MAX, 0, "x").unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
