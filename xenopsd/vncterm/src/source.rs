//! What is shown: a guest's pseudo-terminal, or a command's.

use crate::term::Size;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Both ends of a console's bytes. It never blocks.
#[derive(Debug)]
pub struct Source {
    terminal: End,
    command: Option<(OsString, Running)>,
}

#[derive(Debug)]
enum End {
    Guest(OwnedFd),
    Command(PtyMaster),
}

impl Source {
    /// The terminal that xenconsoled made for a guest, or any other; `-` is standard input.
    ///
    /// # Errors
    /// When it cannot be opened or is no terminal.
    pub fn guest(path: &Path) -> io::Result<Self> {
        let fd = if path == Path::new("-") {
            io::stdin().as_fd().try_clone_to_owned()?
        } else {
            open(path, OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty())?
        };
        let mut raw = tcgetattr(&fd)?;
        cfmakeraw(&mut raw);
        tcsetattr(&fd, SetArg::TCSANOW, &raw)?;
        unblock(fd.as_fd())?;
        Ok(Self { terminal: End::Guest(fd), command: None })
    }

    /// A command on a terminal of its own.
    ///
    /// # Errors
    /// When there is no terminal, or the command cannot be run.
    pub fn command(command: &OsStr, size: Size) -> io::Result<Self> {
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let slave = open(
            ptsname_r(&master)?.as_str(),
            OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        let child = Running::spawn(command, slave.as_fd(), size)?;
        unblock(master.as_fd())?;
        Ok(Self { terminal: End::Command(master), command: Some((command.to_owned(), child)) })
    }

    /// Runs the command again after it ended.
    ///
    /// # Errors
    /// As [`Self::command`]; `None` when there is none.
    pub fn restart(&mut self, size: Size) -> Option<io::Result<Self>> {
        let (command, child) = self.command.as_mut()?;
        // Its terminal is closed: what is left of it ends.
        child.end();
        Some(Self::command(command, size))
    }

    /// For a poll.
    pub fn raw_fd(&self) -> RawFd {
        self.fd().as_raw_fd()
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match &self.terminal {
            End::Guest(fd) => fd.as_fd(),
            End::Command(master) => master.as_fd(),
        }
    }

    /// Reads what there is; `Ok(None)` when there is nothing now.
    ///
    /// # Errors
    /// When the other end has gone.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        match nix::unistd::read(self.fd(), buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => Ok(Some(count)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Writes what is taken; 0 when nothing is now.
    ///
    /// # Errors
    /// When the other end has gone.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match nix::unistd::write(self.fd(), bytes) {
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(0),
            other => Ok(other?),
        }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if let Some((_, child)) = &mut self.command {
            child.end();
        }
    }
}

/// A command's first process.
#[derive(Debug)]
struct Running {
    /// `None` once it was waited for, when its number may be another's.
    pid: Option<Pid>,
}

impl Running {
    /// Every signal is as by default for it: whoever started this process may have ignored some (nohup(1) does SIGHUP,
    /// and a command that ignores it outlives its terminal), and this process blocks two for its own use.
    fn spawn(command: &OsStr, terminal: BorrowedFd<'_>, size: Size) -> io::Result<Self> {
        // setsid(1) makes it the controlling terminal, which needs code between fork and exec; stty(1) says its size.
        let script = format!("stty cols {} rows {}; exec \"$@\"", size.cols, size.rows);
        let words = ["setsid", "--ctty", "--wait", "sh", "-c", &script, "sh", "sh", "-c"];
        let mut arguments = words.into_iter().map(CString::new).collect::<Result<Vec<_>, _>>()?;
        arguments.push(CString::new(command.as_bytes())?);
        let inherited = std::env::vars_os().filter(|(name, _)| name != "TERM");
        let mut environment = inherited
            .map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()))
            .collect::<Result<Vec<_>, _>>()?;
        environment.push(c"TERM=linux".to_owned());
        let mut attributes = PosixSpawnAttr::init()?;
        attributes
            .set_flags(PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF | PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK)?;
        attributes.set_sigdefault(&SigSet::all())?;
        attributes.set_sigmask(&SigSet::empty())?;
        let mut descriptors = PosixSpawnFileActions::init()?;
        for standard in 0..=2 {
            descriptors.add_dup2(terminal.as_raw_fd(), standard)?;
        }
        let pid = posix_spawnp(c"setsid", &descriptors, &attributes, &arguments, &environment)?;
        Ok(Self { pid: Some(pid) })
    }

    fn end(&mut self) {
        let Some(pid) = self.pid.take() else { return };
        // Not waited for yet, so the number is still its own; it may have ended by itself.
        let _ = kill(pid, Signal::SIGKILL);
        while waitpid(pid, None) == Err(Errno::EINTR) {}
    }
}

fn unblock(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
