//! `depriv-check PID CHECKER`: hands Xen's own `depriv-fd-checker` copies of the descriptors that a process has of Xen's
//! drivers, of its log and of its taps. It prints a line for each: `pass` or `fail`, the class, the number there.
//!
//! The checker knows descriptors of its own only; upstream's driver for it is a debugger script that Debian does not have.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Command, ExitCode};

use ffi::pid::PidFd;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// What the checker can say something about, by what `/proc` says of the descriptor. Its other classes need nothing of Xen.
const CLASSES: [(&str, &str); 4] = [
    ("/dev/xen/privcmd", "privcmd"),
    ("/dev/xen/evtchn", "evtchn"),
    ("/dev/xen/gntdev", "gntdev"),
    ("/dev/net/tun", "tun"),
];

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("depriv-check: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<ExitCode> {
    let words: Vec<String> = std::env::args().collect();
    let [_, pid, checker] = &words[..] else {
        return Err(io::Error::other("usage: depriv-check PID CHECKER"));
    };
    let process = PidFd::open(pid.parse().map_err(io::Error::other)?)?;
    let mut copies: Vec<OwnedFd> = Vec::new();
    let mut command = Command::new(checker);
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let path = entry?.path();
        let target = fs::read_link(&path)?;
        let Some((_, class)) = CLASSES.iter().find(|(name, _)| target.as_os_str() == *name) else { continue };
        let number = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let copy = process.descriptor(number.parse().map_err(io::Error::other)?)?;
        fcntl(&copy, FcntlArg::F_SETFD(FdFlag::empty()))?;
        command.args([*class, &copy.as_raw_fd().to_string(), number]);
        copies.push(copy);
    }
    if copies.is_empty() {
        return Err(io::Error::other("the process has nothing to check"));
    }
    let status = command.status()?;
    drop(copies);
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
