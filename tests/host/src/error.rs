//! What can go wrong with the nested host, with the fields a program needs and a text for a person.

use std::{io, path::PathBuf, time::Duration};

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failure of the nested host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of ours could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was attempted: a verb, such as `create` or `read`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A program could not be started at all.
    #[error("cannot start `{program}`: {source}; `cargo xtask setup` installs what the nested host needs")]
    Start {
        /// The program's name or path.
        program: String,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A program on this machine ended with a failure.
    #[error("`{command}` failed (exit {status}): {output}")]
    Program {
        /// The command line.
        command: String,
        /// Exit code, or 128 plus the signal that ended it.
        status: i32,
        /// The end of what it wrote.
        output: String,
    },
    /// Something did not finish in its time.
    #[error("{what} did not finish within {limit:?}{}", tail(console))]
    Deadline {
        /// What was waited for.
        what: String,
        /// The limit that passed.
        limit: Duration,
        /// The end of the Xen console, empty when there is none.
        console: String,
    },
    /// QEMU ended while it was needed.
    #[error("QEMU of {host} ended (exit {status}) {during}: {log}{}", tail(console))]
    QemuEnded {
        /// The host's name.
        host: String,
        /// What was going on, such as `while booting`.
        during: &'static str,
        /// Exit code, or 128 plus the signal that ended it.
        status: i32,
        /// The end of QEMU's own messages.
        log: String,
        /// The end of the Xen console.
        console: String,
    },
    /// Xen or dom0 gave up while booting.
    #[error("{host} does not boot: {reason}{}", tail(console))]
    Boot {
        /// The host's name.
        host: String,
        /// The line that says so.
        reason: String,
        /// The end of the Xen console.
        console: String,
    },
    /// QEMU's monitor refused or broke off.
    #[error("QEMU monitor: {source}{}", tail(console))]
    Monitor {
        /// What the monitor said.
        source: crate::qmp::QmpError,
        /// The end of the Xen console, empty when there is none.
        console: String,
    },
    /// A command in dom0 ended with a failure where success was required.
    #[error(
        "`{command}` in dom0 of {host} ended with {status}\nstdout: {stdout}\nstderr: {stderr}{}",
        tail(console)
    )]
    Command {
        /// The host's name.
        host: String,
        /// The command line.
        command: String,
        /// The remote exit code.
        status: i32,
        /// The end of what it wrote to standard output.
        stdout: Box<str>,
        /// The end of what it wrote to standard error.
        stderr: Box<str>,
        /// The end of the Xen console.
        console: Box<str>,
    },
    /// The connection into dom0 failed (ssh itself, not the command).
    #[error("no connection into dom0 of {host} for {what}: {message}{}", tail(console))]
    Connection {
        /// The host's name.
        host: String,
        /// What was attempted.
        what: String,
        /// ssh's message.
        message: String,
        /// The end of the Xen console.
        console: String,
    },
    /// There is no such persistent host.
    #[error("no nested host named `{name}` is running; start it with `cargo xtask host up --name {name}`")]
    NotRunning {
        /// The name asked for.
        name: String,
    },
    /// A persistent host of this name exists already.
    #[error(
        "the nested host `{name}` is already running; use it, or end it with `cargo xtask host down --name {name}`"
    )]
    AlreadyRunning {
        /// The name asked for.
        name: String,
    },
    /// A host name that cannot be a directory name.
    #[error("`{name}` is no host name: use 1 to 32 of a-z, 0-9 and -")]
    BadName {
        /// The name asked for.
        name: String,
    },
    /// Packages are missing and cannot be installed from here.
    #[error("missing packages: {}; {reason}", missing.join(" "))]
    Packages {
        /// Their names.
        missing: Vec<String>,
        /// Why they cannot be installed, and what to do.
        reason: String,
    },
    /// The image could not be put together.
    #[error("dom0 image: {0}")]
    Image(String),
    /// The programs that are to run in dom0 are not there.
    #[error("no {}; build it with `cargo build --release --package xenopsd`", path.display())]
    NotBuilt {
        /// The program.
        path: PathBuf,
    },
    /// A file of ours does not hold what it should.
    #[error("{} is damaged ({reason}); remove it and try again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

fn tail(console: &str) -> String {
    if console.is_empty() { String::new() } else { format!("\n--- end of the Xen console ---\n{console}") }
}

/// Adds the action and the path to an [`io::Error`].
pub(crate) trait Context<T> {
    /// Names what was attempted on which file.
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T> {
        self.map_err(|source| Error::File { action, path: path.into(), source: source.into() })
    }
}
