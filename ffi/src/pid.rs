//! A process as a descriptor: a number can be used again by another process, a descriptor cannot.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What a process may use no more of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Seconds of processor time; it is killed when it has had them.
    CpuSeconds,
    /// Bytes of address space.
    Memory,
    /// Open descriptors.
    Files,
    /// Bytes of a core dump.
    Core,
}

impl Limit {
    const fn resource(self) -> libc::__rlimit_resource_t {
        match self {
            Self::CpuSeconds => libc::RLIMIT_CPU,
            Self::Memory => libc::RLIMIT_AS,
            Self::Files => libc::RLIMIT_NOFILE,
            Self::Core => libc::RLIMIT_CORE,
        }
    }
}

/// Limits a child of this process that has not been waited for, so that the number is its own. It holds for what the
/// child starts from now on, too.
///
/// # Errors
/// The kernel's errno: `ESRCH` when there is no such process, `EPERM`.
pub fn limit(pid: i32, limit: Limit, value: u64) -> io::Result<()> {
    let wanted = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: the kernel reads one `struct rlimit` and writes nothing, as the last pointer is null.
    let result = unsafe { libc::prlimit(pid, limit.resource(), &raw const wanted, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A process, referred to for as long as the value lives. Its descriptor is readable once the process has exited, so
/// it can be polled.
#[derive(Debug)]
pub struct PidFd(OwnedFd);

impl PidFd {
    /// Refers to a process by number. Sure only for a child that has not been waited for; of another process check
    /// afterwards that it is the one meant (start time, executable).
    ///
    /// # Errors
    /// `ESRCH` when there is none; `ENOSYS` on a kernel without the call (Linux before 5.3).
    pub fn open(pid: u32) -> io::Result<Self> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from_raw_os_error(libc::ESRCH))?;
        // SAFETY: two plain numbers.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let fd = i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: a descriptor the kernel just made (close-on-exec) that nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Sends a signal; 0 only checks that the process is there.
    ///
    /// # Errors
    /// `ESRCH` when it has exited and been waited for, `EPERM`, `EINVAL` for no signal's number.
    pub fn send_signal(&self, signal: i32) -> io::Result<()> {
        let fd = self.0.as_raw_fd();
        // SAFETY: an open descriptor; a null info means "as kill(2)".
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<libc::siginfo_t>(), 0)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// A copy of the process's descriptor of that number: what is done to the open file is done to the process's.
    ///
    /// # Errors
    /// `EBADF` when it has none, `ESRCH`, `EPERM`; `ENOSYS` before Linux 5.6.
    pub fn descriptor(&self, number: i32) -> io::Result<OwnedFd> {
        // SAFETY: an open descriptor and two plain numbers.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.0.as_raw_fd(), number, 0) };
        let fd = i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: a descriptor the kernel just made (close-on-exec) that nobody else has.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

impl AsFd for PidFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<PidFd> for OwnedFd {
    fn from(pid: PidFd) -> Self {
        pid.0
    }
}

/// A descriptor that is a pidfd, as one passed over a socket or kept across an exec. Another kind of descriptor makes
/// [`PidFd::send_signal`] fail with `EBADF`.
impl From<OwnedFd> for PidFd {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn a_child_is_signalled_and_then_gone() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = PidFd::open(child.id()).unwrap();
        pid.send_signal(0).unwrap();
        pid.send_signal(libc::SIGKILL).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(libc::SIGKILL));
        assert_eq!(pid.send_signal(libc::SIGKILL).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[test]
    fn no_such_process() {
        assert_eq!(PidFd::open(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ESRCH));
        assert_eq!(PidFd::open(0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_descriptor_is_the_same_open_file() {
        use std::io::{Read, Write};
        let (mut reader, writer) = std::io::pipe().unwrap();
        let pid = PidFd::open(std::process::id()).unwrap();
        let mut copy = std::fs::File::from(pid.descriptor(writer.as_raw_fd()).unwrap());
        drop(writer);
        copy.write_all(b"x").unwrap();
        drop(copy);
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, b"x");
        assert_eq!(pid.descriptor(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn a_wrong_signal_is_refused() {
        let pid = PidFd::open(std::process::id()).unwrap();
        assert_eq!(pid.send_signal(12345).unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }
}
