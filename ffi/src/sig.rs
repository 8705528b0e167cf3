//! Process-wide signal settings.

use std::io;

/// Ignores `SIGPIPE`, for good: a write to a closed pipe or socket fails with `EPIPE` instead of killing the process.
///
/// Rust's runtime does so before `main`. libxenstore, however, sets and restores the disposition around each write, for
/// the whole process and without a lock, so two threads can leave behind what one of them found: this puts it right,
/// and must come before the first [`crate::xs::XsHandle`] in a program whose `main` is not Rust's.
///
/// # Errors
/// The system call's; it has no reason to fail.
pub fn ignore_sigpipe() -> io::Result<()> {
    // SAFETY: "ignore" installs no handler that could run.
    let previous = unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    if previous == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ignores `SIGIO`, the notice that somebody waits for a file lease of this process
/// ([`crate::linux::mapped::MappedFile`]); by default it ends the process.
///
/// # Errors
/// The system call's; it has no reason to fail.
pub fn ignore_sigio() -> io::Result<()> {
    // SAFETY: "ignore" installs no handler that could run.
    let previous = unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    if previous == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_broken_pipe_is_an_error() {
        ignore_sigpipe().unwrap();
        let (mut here, there) = UnixStream::pair().unwrap();
        drop(there);
        assert_eq!(here.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
