//! What is shown: a guest's pseudo-terminal, or a command's.

use crate::term::Size;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::pty::{PtyMaster, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::stat::Mode;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Both ends of a console's bytes. It never blocks.
#[derive(Debug)]
pub struct Source {
    terminal: End,
    command: Option<(OsString, Child)>,
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
        let stdio = || slave.try_clone().map(Stdio::from);
        // setsid(1) makes it the controlling terminal, which needs code between fork and exec; stty(1) says its size.
        let script = format!("stty cols {} rows {}; exec \"$@\"", size.cols, size.rows);
        let mut run = Command::new("setsid");
        run.args(["--ctty", "--wait", "sh", "-c", &script, "sh", "sh", "-c"]).arg(command);
        run.env("TERM", "linux").stdin(stdio()?).stdout(stdio()?).stderr(stdio()?);
        let child = run.spawn()?;
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
        let _ = child.kill();
        let _ = child.wait();
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
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn unblock(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}
