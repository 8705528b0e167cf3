//! One jail for every process that may be taken over by a guest: device models, terminals, boot loaders.
//!
//! ```text
//!   Jail (what is wanted) ──compile──► steps (data) ──clone3──► child: takes them one by one, then becomes the program
//!                                                      │          └─ a failing step: its number and errno, on a pipe
//!                                                      └► Child (pid and pidfd), or an Error that names the step
//! ```
//!
//! What the program has is what was put in: the descriptors given, numbered from 0; a root directory of its own, in
//! memory and read-only, with nothing in it but the [entries](Jail::entry) named; a user of its own without groups or
//! capabilities and no way to gain any; limits; and namespaces of its own, in which there are no other processes, no
//! network interfaces that are up and no System V objects. Once the program has loaded what it needs,
//! [`Child::empty_root`] takes even that root away.
//!
//! The work of the child is data, because between `clone3` and `execveat` a child of a process with threads may make
//! system calls and nothing else: every string is made before, nothing is allocated or locked after.

mod cgroup;
mod child;
mod seccomp;
mod spawn;
mod steps;
#[cfg(test)]
mod tests;

use std::ffi::{CString, OsStr};
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

pub use cgroup::{Cgroup, CgroupLimits};
pub use seccomp::{Denied, SyscallFilter};
pub use spawn::{Child, given};

use crate::domid::DomId;

/// A protection the kernel may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Feature {
    /// A mount namespace, and with it a root directory of its own.
    Mount,
    /// A network namespace without interfaces.
    Network,
    /// A namespace of its own for System V and POSIX message queues.
    Ipc,
    /// A namespace in which it sees no other process.
    Pid,
    /// Limits over all its processes together.
    Cgroup,
    /// A filter of system calls.
    Seccomp,
}

impl Feature {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Mount, Self::Network, Self::Ipc, Self::Pid, Self::Cgroup, Self::Seccomp];

    /// Whether this kernel has it; control groups are those of version 2, mounted.
    pub fn supported(self) -> bool {
        let namespace = |name| Path::new("/proc/self/ns").join(name).exists();
        match self {
            Self::Mount => namespace("mnt"),
            Self::Network => namespace("net"),
            Self::Ipc => namespace("ipc"),
            Self::Pid => namespace("pid"),
            Self::Cgroup => Cgroup::hierarchy().is_some(),
            Self::Seccomp => Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
        }
    }

    /// The name it has in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Network => "network",
            Self::Ipc => "ipc",
            Self::Pid => "pid",
            Self::Cgroup => "cgroup",
            Self::Seccomp => "seccomp",
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Feature {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|f| f.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            format!("{name:?} is no protection; there are: {known}")
        })
    }
}

/// Why a program is not running in its jail. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for makes no jail.
    #[error("jail: {0}")]
    Invalid(String),
    /// The program cannot be opened.
    #[error("jail: {}: {source}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// This kernel lacks a protection.
    #[error("jail: this kernel has no {feature} isolation ({source})")]
    Unsupported {
        /// Which.
        feature: Feature,
        /// What the kernel said.
        source: io::Error,
    },
    /// The process could not be made.
    #[error("jail: {what}: {source}")]
    Prepare {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Who started it did not let it begin.
    #[error("jail: the process was not let begin: {source}")]
    NotPermitted {
        /// Why.
        source: io::Error,
    },
    /// A step of the new process failed.
    #[error("jail: {step}: {source}")]
    Step {
        /// What was tried.
        step: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Something in the jail's root directory. Paths are absolute, as the program sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A file or directory of the host, read-only and without the file systems mounted below it.
    ReadOnly {
        /// Where it is on the host; links are followed.
        source: PathBuf,
        /// Where the program sees it.
        path: PathBuf,
    },
    /// The same, writable as far as the permissions on it let the jail's user.
    Writable {
        /// Where it is on the host; links are followed.
        source: PathBuf,
        /// Where the program sees it.
        path: PathBuf,
    },
    /// A directory whose device nodes work, such as `/dev/pts`.
    Devices {
        /// Where it is on the host.
        source: PathBuf,
        /// Where the program sees it.
        path: PathBuf,
    },
    /// A character device that belongs to the jail's user.
    Node {
        /// Where the program sees it.
        path: PathBuf,
        /// Major and minor number.
        device: (u32, u32),
    },
    /// A symbolic link.
    Link {
        /// What it says.
        to: PathBuf,
        /// Where the program sees it.
        path: PathBuf,
    },
}

/// A file of the root directory whose content is copied into it, so that the program has no way to the original.
#[derive(Debug)]
struct Content {
    path: PathBuf,
    source: OwnedFd,
    length: u64,
}

/// Limits of the process, in bytes or as counts; none leaves the daemon's. Core dumps, locked memory and message
/// queues are always 0: a core dump of a device model holds guest memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Open descriptors.
    pub open_files: Option<u64>,
    /// Threads and processes of the jail's user.
    pub processes: Option<u64>,
    /// Largest file it can write (not block devices).
    pub file_size: Option<u64>,
    /// All its mappings, shared and foreign ones too.
    pub address_space: Option<u64>,
    /// Its private writable memory.
    pub data: Option<u64>,
    /// Seconds of processor time, after which it is killed.
    pub cpu_seconds: Option<u64>,
}

/// What becomes of the process when who started it ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ParentDeath {
    /// It lives on, to be found again by the next daemon.
    #[default]
    Survive,
    /// It is killed. The kernel watches the *thread* that called [`Jail::spawn`], which must live as long.
    Die,
}

/// A jail to be made. Everything is on until it is taken [out](Jail::without).
#[derive(Debug)]
pub struct Jail {
    /// User and group; none keeps the caller's, with what takes privileges to make.
    user: Option<(u32, u32)>,
    entries: Vec<Entry>,
    contents: Vec<Content>,
    without: Vec<Feature>,
    limits: Limits,
    descriptors: Vec<OwnedFd>,
    filter: Option<SyscallFilter>,
    cgroup: Option<Cgroup>,
    parent_death: ParentDeath,
    environment: Vec<(CString, CString)>,
}

impl Jail {
    /// A jail with an empty root and no descriptors, for a user and group of its own.
    ///
    /// # Errors
    /// [`Error::Invalid`] for root and for the numbers that mean "no user".
    pub fn new(uid: u32, gid: u32) -> Result<Self, Error> {
        for id in [uid, gid] {
            if id == 0 || id == u32::MAX {
                return Err(Error::Invalid(format!("{id} is no unprivileged user or group")));
            }
        }
        Ok(Self::for_user(Some((uid, gid))))
    }

    /// What a caller without privileges can have: limits, the descriptors given and no others, no way to gain
    /// privileges, and a filter; but the caller's own user, root directory and namespaces. The filter must keep the
    /// program from them.
    #[must_use]
    pub fn of_caller() -> Self {
        let without = [Feature::Mount, Feature::Network, Feature::Ipc, Feature::Pid, Feature::Cgroup];
        Self { without: without.to_vec(), ..Self::for_user(None) }
    }

    fn for_user(user: Option<(u32, u32)>) -> Self {
        Self {
            user,
            entries: Vec::new(),
            contents: Vec::new(),
            without: Vec::new(),
            limits: Limits::default(),
            descriptors: Vec::new(),
            filter: None,
            cgroup: None,
            parent_death: ParentDeath::default(),
            environment: Vec::new(),
        }
    }

    /// Puts something into the root directory.
    #[must_use]
    pub fn entry(mut self, entry: Entry) -> Self {
        self.entries.push(entry);
        self
    }

    /// Puts a copy of the first `length` bytes of a file into the root directory, readable by the program and gone with
    /// the root. The copy is made by the new process, before the program starts and in its control group; a file that
    /// has become shorter makes the start fail.
    #[must_use]
    pub fn content(mut self, path: PathBuf, source: OwnedFd, length: u64) -> Self {
        self.contents.push(Content { path, source, length });
        self
    }

    /// The host's shared libraries, read-only: what a dynamically linked program needs to start. All of it is
    /// readable by everybody on the host.
    #[must_use]
    pub fn system_libraries(mut self) -> Self {
        for path in ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache"] {
            if Path::new(path).exists() {
                self.entries.push(Entry::ReadOnly { source: path.into(), path: path.into() });
            }
        }
        self
    }

    /// Does without a protection: because the kernel lacks it and the administrator accepts that.
    #[must_use]
    pub fn without(mut self, feature: Feature) -> Self {
        self.without.push(feature);
        self
    }

    /// Sets the limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Gives the program a descriptor; the first is its 0, the next its 1, and so on. Every other one is closed.
    #[must_use]
    pub fn descriptor(mut self, descriptor: OwnedFd) -> Self {
        self.descriptors.push(descriptor);
        self
    }

    /// How many descriptors were given: the number the next one will have.
    pub fn descriptors(&self) -> usize {
        self.descriptors.len()
    }

    /// Lets the program make only these system calls.
    #[must_use]
    pub fn filter(mut self, filter: SyscallFilter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Starts the process in a control group.
    #[must_use]
    pub fn cgroup(mut self, cgroup: Cgroup) -> Self {
        self.cgroup = Some(cgroup);
        self
    }

    /// What happens to it when the daemon ends.
    #[must_use]
    pub fn parent_death(mut self, parent_death: ParentDeath) -> Self {
        self.parent_death = parent_death;
        self
    }

    /// Sets a variable of the environment, which has no other ones.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it holds a zero byte, or its name is empty or holds `=`.
    pub fn variable(mut self, name: &str, value: impl AsRef<OsStr>) -> Result<Self, Error> {
        if name.is_empty() || name.contains('=') {
            return Err(Error::Invalid(format!("{name:?} is no name of a variable")));
        }
        self.environment.push((c_string(name)?, c_string(value)?));
        Ok(self)
    }

    fn has(&self, feature: Feature) -> bool {
        !self.without.contains(&feature)
    }
}

/// The user (and group) number of one domain's processes.
///
/// # Errors
/// [`Error::Invalid`] when `base` leaves no room for every domain, or is below 1000, where systems number their own
/// users.
pub fn uid_of(base: u32, domid: DomId) -> Result<u32, Error> {
    check_uid_base(base)?;
    Ok(base + u32::from(domid.get()))
}

/// The user (and group) number of one domain's disk servers, which are not its device model's: limits of a user's processes
/// count them together.
///
/// # Errors
/// As [`uid_of`].
pub fn disk_uid_of(base: u32, domid: DomId) -> Result<u32, Error> {
    Ok(uid_of(base, domid)? + DomId::MAX.raw() + 1)
}

/// Checks that `base` can be the first of a range of user numbers, two for each domain.
///
/// # Errors
/// As [`uid_of`].
pub fn check_uid_base(base: u32) -> Result<(), Error> {
    /// Users below it are the system's own.
    const FIRST: u32 = 1000;
    // The last two numbers mean "none" and "unchanged" to some calls.
    let last = u32::MAX - 2 - (2 * DomId::MAX.raw() + 1);
    if (FIRST..=last).contains(&base) {
        return Ok(());
    }
    Err(Error::Invalid(format!("the first user number of domains must be {FIRST} to {last}, not {base}")))
}

fn c_string(text: impl AsRef<OsStr>) -> Result<CString, Error> {
    CString::new(text.as_ref().as_bytes())
        .map_err(|_| Error::Invalid(format!("{} holds a zero byte", text.as_ref().display())))
}
