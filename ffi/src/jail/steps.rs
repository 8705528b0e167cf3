//! From a [`Jail`] to the steps its process takes: the order is the whole point, so it is data that tests can read.
//!
//! ```text
//!   session, signals ─► permission ─► descriptors ─► root directory ─► limits ─► no new privileges, no bounding set
//!     ─► group, user, no capabilities ─► parent's death ─► umask, signal mask ─► filter ─► the program
//! ```

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::fmt;
use std::os::fd::RawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path, PathBuf};

use super::{Entry, Error, Feature, Jail, ParentDeath, SyscallFilter, c_string};

/// Where the new root is mounted before it becomes the root: a directory every Linux has, below which nothing that an
/// [`Entry`] names lies. It is covered in the child's own mount namespace only.
pub(super) const MOUNT_POINT: &CStr = c"/proc";

/// The directory in the new root on which [`super::Child::empty_root`] mounts the next one.
pub(super) const EMPTY: &CStr = c"empty";

/// Bytes of the root file system for directories, links and mount points.
const ROOT_SIZE: u64 = 64 << 10;

/// Most bytes of the files copied into a root, together: what one control group of a device model can hold.
const MAX_CONTENTS: u64 = 256 << 20;

/// Bytes of a page, of which every file of a tmpfs takes whole ones.
const PAGE: u64 = 4096;

/// Most entries of a root, and most directories above one: what fits the file system with room to spare.
const MAX_ENTRIES: usize = 32;
const MAX_DEPTH: usize = 5;

/// One thing the new process does.
#[derive(Debug)]
pub(super) enum Step {
    /// A session without a terminal.
    Session,
    /// Every signal handled as by default, but a file at its limit is an error only.
    DefaultSignals,
    /// Nothing more before a byte comes through this pipe, of which only the starter keeps the writing end.
    Permit { gate: RawFd, go: RawFd },
    /// A descriptor where the program expects it.
    Descriptor { from: RawFd, to: RawFd },
    /// Every descriptor from this number on is closed when the program starts.
    CloseFrom(RawFd),
    /// Nothing mounted here is seen by the host, nor the other way round.
    PrivateMounts,
    /// A file system, or a change to one.
    Mount {
        source: Option<CString>,
        target: CString,
        kind: Option<CString>,
        flags: libc::c_ulong,
        options: Option<CString>,
    },
    /// A directory of the new root.
    Directory(CString),
    /// An empty file, to mount another on.
    File(CString),
    /// A file with this many bytes of another.
    Content { path: CString, source: RawFd, length: u64 },
    /// A character device.
    Node { path: CString, device: libc::dev_t, uid: u32, gid: u32 },
    /// A symbolic link.
    Link { to: CString, path: CString },
    /// A working directory.
    ChangeDirectory(CString),
    /// The working directory becomes the root, and the old root goes.
    PivotRoot,
    /// A limit.
    Limit { resource: u32, value: u64 },
    /// No program it runs gains privileges.
    NoNewPrivileges,
    /// No capability can be had again.
    NoBoundingSet,
    /// The group, and no others.
    Group(u32),
    /// The user.
    User(u32),
    /// No capabilities.
    NoCapabilities,
    /// Killed with its parent.
    DieWithParent,
    /// New files are the user's only.
    Umask,
    /// No signal blocked.
    UnblockSignals,
    /// The filter of system calls.
    Filter(SyscallFilter),
    /// The program.
    Execute { program: RawFd, arguments: Vec<CString>, environment: Vec<CString> },
    /// A failure, wherever a test wants one.
    #[cfg(test)]
    Fail(i32),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session => write!(f, "new session"),
            Self::DefaultSignals => write!(f, "signal handlers"),
            Self::Permit { .. } => write!(f, "permission to go on"),
            Self::Descriptor { to, .. } => write!(f, "descriptor {to}"),
            Self::CloseFrom(first) => {
                write!(f, "closing descriptors from {first} on (close_range, Linux 5.11)")
            }
            Self::PrivateMounts => write!(f, "private mounts"),
            Self::Mount { source, target, .. } => match source {
                Some(source) => {
                    write!(f, "mount {} on {}", source.to_string_lossy(), target.to_string_lossy())
                }
                None => write!(f, "remount {}", target.to_string_lossy()),
            },
            Self::Directory(path) => write!(f, "mkdir {}", path.to_string_lossy()),
            Self::File(path) => write!(f, "mount point {}", path.to_string_lossy()),
            Self::Content { path, .. } => write!(f, "copy to {}", path.to_string_lossy()),
            Self::Node { path, .. } => write!(f, "device node {}", path.to_string_lossy()),
            Self::Link { path, .. } => write!(f, "link {}", path.to_string_lossy()),
            Self::ChangeDirectory(path) => write!(f, "chdir {}", path.to_string_lossy()),
            Self::PivotRoot => write!(f, "pivot_root"),
            Self::Limit { resource, value } => write!(f, "rlimit {resource} = {value}"),
            Self::NoNewPrivileges => write!(f, "no_new_privs"),
            Self::NoBoundingSet => write!(f, "capability bounding set"),
            Self::Group(gid) => write!(f, "group {gid}"),
            Self::User(uid) => write!(f, "user {uid}"),
            Self::NoCapabilities => write!(f, "capabilities"),
            Self::DieWithParent => write!(f, "parent death signal"),
            Self::Umask => write!(f, "umask"),
            Self::UnblockSignals => write!(f, "signal mask"),
            Self::Filter(_) => write!(f, "system call filter"),
            Self::Execute { arguments, .. } => {
                write!(
                    f,
                    "execute {}",
                    arguments.first().map_or_else(String::new, |a| a.to_string_lossy().into_owned())
                )
            }
            #[cfg(test)]
            Self::Fail(_) => write!(f, "test"),
        }
    }
}

/// What the parent has prepared: descriptors by number, all above those the program gets.
pub(super) struct Prepared {
    pub(super) descriptors: Vec<RawFd>,
    /// Of the files to be copied, in their order.
    pub(super) contents: Vec<RawFd>,
    pub(super) program: RawFd,
    /// Where its starter's permission comes from.
    pub(super) gate: RawFd,
    pub(super) go: RawFd,
    pub(super) arguments: Vec<CString>,
}

/// The steps, in order.
///
/// # Errors
/// [`Error::Invalid`] for entries that cannot be in a root.
pub(super) fn compile(jail: &Jail, prepared: Prepared) -> Result<Vec<Step>, Error> {
    let mut steps =
        vec![Step::Session, Step::DefaultSignals, Step::Permit { gate: prepared.gate, go: prepared.go }];
    let numbered = prepared.descriptors.iter().zip(0..);
    steps.extend(numbered.map(|(&from, to)| Step::Descriptor { from, to }));
    let first_closed = RawFd::try_from(prepared.descriptors.len())
        .map_err(|_| Error::Invalid("too many descriptors".to_owned()))?;
    steps.push(Step::CloseFrom(first_closed));
    if jail.has(Feature::Mount) {
        root(jail, &prepared.contents, &mut steps)?;
    } else if let Some(content) = jail.contents.first() {
        let path = content.path.display();
        return Err(Error::Invalid(format!("there is no root of its own to copy {path} to")));
    }
    limits(jail, &mut steps);
    steps.push(Step::NoNewPrivileges);
    if let Some((uid, gid)) = jail.user {
        steps.extend([Step::NoBoundingSet, Step::Group(gid), Step::User(uid), Step::NoCapabilities]);
    }
    // After the change of user, which resets it.
    if jail.parent_death == ParentDeath::Die {
        steps.push(Step::DieWithParent);
    }
    steps.extend([Step::Umask, Step::UnblockSignals]);
    if let (Some(filter), true) = (&jail.filter, jail.has(Feature::Seccomp)) {
        steps.push(Step::Filter(filter.clone()));
    }
    let environment = jail.environment.iter().map(|(name, value)| variable(name, value)).collect();
    steps.push(Step::Execute { program: prepared.program, arguments: prepared.arguments, environment });
    Ok(steps)
}

fn variable(name: &CStr, value: &CStr) -> CString {
    let mut text = name.to_bytes().to_vec();
    text.push(b'=');
    text.extend_from_slice(value.to_bytes());
    // Both parts came from C strings.
    CString::new(text).unwrap_or_default()
}

const SAFE: libc::c_ulong = libc::MS_NOSUID | libc::MS_NODEV;

fn root(jail: &Jail, contents: &[RawFd], steps: &mut Vec<Step>) -> Result<(), Error> {
    if jail.entries.len() + jail.contents.len() > MAX_ENTRIES {
        return Err(Error::Invalid(format!("more than {MAX_ENTRIES} entries")));
    }
    let options = root_options(jail)?;
    let nodes = jail.entries.iter().any(|e| matches!(e, Entry::Node { .. }));
    let flags = libc::MS_NOSUID | libc::MS_NOEXEC | if nodes { 0 } else { libc::MS_NODEV };
    let tmpfs = |target: &CStr, flags, source: Option<CString>| Step::Mount {
        source,
        target: target.to_owned(),
        kind: Some(c"tmpfs".to_owned()),
        flags,
        options: Some(options.clone()),
    };
    steps.push(Step::PrivateMounts);
    steps.push(tmpfs(MOUNT_POINT, flags, Some(c"jail".to_owned())));
    steps.push(Step::ChangeDirectory(MOUNT_POINT.to_owned()));
    steps.push(Step::Directory(EMPTY.to_owned()));
    let mut made = BTreeSet::new();
    for entry in &jail.entries {
        add(entry, jail, &mut made, steps)?;
    }
    for (content, &source) in jail.contents.iter().zip(contents) {
        let path = place(&content.path, &mut made, steps)?;
        steps.push(Step::Content { path, source, length: content.length });
    }
    steps.push(tmpfs(c".", flags | libc::MS_REMOUNT | libc::MS_RDONLY, None));
    steps.push(Step::PivotRoot);
    Ok(())
}

/// The root file system is as large as what is put into it.
fn root_options(jail: &Jail) -> Result<CString, Error> {
    let lengths = jail.contents.iter().map(|content| content.length);
    let total = lengths.fold(0_u64, |sum, length| sum.saturating_add(length.saturating_add(PAGE)));
    if total > MAX_CONTENTS {
        return Err(Error::Invalid(format!("files of more than {MAX_CONTENTS} bytes to be copied")));
    }
    c_string(format!("size={},nr_inodes=256,mode=0755", ROOT_SIZE + total))
}

fn add(entry: &Entry, jail: &Jail, made: &mut BTreeSet<PathBuf>, steps: &mut Vec<Step>) -> Result<(), Error> {
    let (source, path, flags) = match entry {
        Entry::ReadOnly { source, path } => (source, path, SAFE | libc::MS_RDONLY),
        Entry::Writable { source, path } => (source, path, SAFE | libc::MS_NOEXEC),
        Entry::Devices { source, path } => (source, path, libc::MS_NOSUID | libc::MS_NOEXEC),
        Entry::Node { path, device } => {
            let path = place(path, made, steps)?;
            let device = libc::makedev(device.0, device.1);
            let (uid, gid) = jail.user.unwrap_or_default();
            steps.push(Step::Node { path, device, uid, gid });
            return Ok(());
        }
        Entry::Link { to, path } => {
            let path = place(path, made, steps)?;
            steps.push(Step::Link { to: c_string(to)?, path });
            return Ok(());
        }
    };
    let metadata = std::fs::metadata(source).map_err(|error| Error::Step {
        step: format!("entry {} of the root directory", source.display()),
        source: error,
    })?;
    let kind = metadata.file_type();
    let target = place(path, made, steps)?;
    if kind.is_dir() {
        steps.push(Step::Directory(target.clone()));
        made.insert(relative(path)?);
    } else if kind.is_file() || kind.is_socket() {
        steps.push(Step::File(target.clone()));
    } else {
        return Err(Error::Invalid(format!("{} is neither file, directory nor socket", source.display())));
    }
    let mount = |source, flags| Step::Mount {
        source,
        target: target.clone(),
        kind: None,
        flags: libc::MS_BIND | flags,
        options: None,
    };
    // A bind mount takes no flags when it is made, only afterwards.
    steps.push(mount(Some(c_string(source)?), 0));
    steps.push(mount(None, libc::MS_REMOUNT | flags));
    Ok(())
}

/// Makes the directories above an entry, each once.
fn place(path: &Path, made: &mut BTreeSet<PathBuf>, steps: &mut Vec<Step>) -> Result<CString, Error> {
    let path = relative(path)?;
    if path.components().count() > MAX_DEPTH {
        return Err(Error::Invalid(format!("entry {} is too deep", path.display())));
    }
    if made.contains(&path) {
        return Err(Error::Invalid(format!("entry /{} is there already", path.display())));
    }
    let mut above: Vec<_> = path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()).collect();
    above.reverse();
    for directory in above {
        if made.insert(directory.to_owned()) {
            steps.push(Step::Directory(c_string(directory)?));
        }
    }
    c_string(&path)
}

/// The path below the working directory, which will be the root.
fn relative(path: &Path) -> Result<PathBuf, Error> {
    let inside = path.strip_prefix("/").ok().filter(|inside| {
        !inside.as_os_str().is_empty() && inside.components().all(|c| matches!(c, Component::Normal(_)))
    });
    inside
        .map(Path::to_owned)
        .ok_or_else(|| Error::Invalid(format!("entry {} is no absolute path below the root", path.display())))
}

fn limits(jail: &Jail, steps: &mut Vec<Step>) {
    let wanted = &jail.limits;
    let given = [
        (libc::RLIMIT_NOFILE, wanted.open_files),
        (libc::RLIMIT_NPROC, wanted.processes),
        (libc::RLIMIT_FSIZE, wanted.file_size),
        (libc::RLIMIT_AS, wanted.address_space),
        (libc::RLIMIT_DATA, wanted.data),
        (libc::RLIMIT_CPU, wanted.cpu_seconds),
        (libc::RLIMIT_CORE, Some(0)),
        (libc::RLIMIT_MEMLOCK, Some(0)),
        (libc::RLIMIT_MSGQUEUE, Some(0)),
    ];
    let set = given.into_iter().filter_map(|(resource, value)| Some((resource, value?)));
    steps.extend(set.map(|(resource, value)| Step::Limit { resource, value }));
}
