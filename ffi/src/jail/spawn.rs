//! Makes the process, and reads what it reports.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, Ordering};

use super::child::{self, Message, Pointers};
use super::steps::{EMPTY, Prepared, Step, compile};
use super::{Error, Feature, Jail, c_string};
use crate::pid::PidFd;

/// A child process of this one, in its jail. Dropping it leaves it running, and unreaped when it ends.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    process: PidFd,
}

impl Jail {
    /// Starts `program` with these arguments (the first being the name it sees). It runs when this returns.
    ///
    /// # Errors
    /// [`Error`]; nothing is left then, but a control group given is the caller's to remove.
    pub fn spawn(self, program: &Path, arguments: &[impl AsRef<OsStr>]) -> Result<Child, Error> {
        self.spawn_when(program, arguments, |_| Ok(()))
    }

    /// The same, but the process, whose number `permit` is told, does nothing before `permit` has returned: time to write
    /// down that it exists. When `permit` refuses, or this process ends meanwhile, it ends too.
    ///
    /// # Errors
    /// As [`Jail::spawn`]; [`Error::NotPermitted`].
    pub fn spawn_when(
        self,
        program: &Path,
        arguments: &[impl AsRef<OsStr>],
        permit: impl FnOnce(u32) -> io::Result<()>,
    ) -> Result<Child, Error> {
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_PATH)
            .open(program)
            .map_err(|source| Error::Program { path: program.to_owned(), source })?;
        let arguments = arguments.iter().map(c_string).collect::<Result<Vec<_>, _>>()?;
        let prepare = |what| move |source| Error::Prepare { what, source };
        // Out of the way of the numbers the program's descriptors will have.
        let above = |descriptor: BorrowedFd<'_>| {
            duplicate_from(descriptor, self.descriptors.len()).map_err(prepare("duplicating a descriptor"))
        };
        let opened = above(opened.as_fd())?;
        let descriptors = self.descriptors.iter().map(|d| above(d.as_fd())).collect::<Result<Vec<_>, _>>()?;
        let contents =
            self.contents.iter().map(|c| above(c.source.as_fd())).collect::<Result<Vec<_>, _>>()?;
        let (reader, low) = io::pipe().map_err(prepare("pipe"))?;
        let writer = above(low.as_fd())?;
        // The report ends when the last writer is closed.
        drop(low);
        let (gate, go) = io::pipe().map_err(prepare("pipe"))?;
        let gate = above(gate.as_fd())?;
        let prepared = Prepared {
            descriptors: descriptors.iter().map(AsRawFd::as_raw_fd).collect(),
            contents: contents.iter().map(AsRawFd::as_raw_fd).collect(),
            program: opened.as_raw_fd(),
            gate: gate.as_raw_fd(),
            go: go.as_raw_fd(),
            arguments,
        };
        let steps = compile(&self, prepared)?;
        let namespaces = self.namespaces()?;
        let group = match (&self.cgroup, self.has(Feature::Cgroup)) {
            (Some(group), true) => {
                Some(group.open().map_err(|source| Error::Unsupported { feature: Feature::Cgroup, source })?)
            }
            _ => None,
        };
        let flags = Flags { namespaces, group };
        start(&steps, &flags, Report { writer, reader: OwnedFd::from(reader).into() }, |pid| {
            permit(pid)?;
            File::from(OwnedFd::from(go)).write_all(&[1])
        })
    }

    fn namespaces(&self) -> Result<i32, Error> {
        let all = [
            (Feature::Mount, libc::CLONE_NEWNS, "mnt"),
            (Feature::Network, libc::CLONE_NEWNET, "net"),
            (Feature::Ipc, libc::CLONE_NEWIPC, "ipc"),
            (Feature::Pid, libc::CLONE_NEWPID, "pid"),
        ];
        let mut flags = 0;
        for (feature, flag, name) in all {
            if self.has(feature) {
                std::fs::metadata(Path::new("/proc/self/ns").join(name))
                    .map_err(|source| Error::Unsupported { feature, source })?;
                flags |= flag;
            }
        }
        Ok(flags)
    }
}

/// How the process is made.
pub(super) struct Flags {
    pub(super) namespaces: i32,
    pub(super) group: Option<OwnedFd>,
}

/// The pipe on which it tells of a failed step.
pub(super) struct Report {
    pub(super) writer: OwnedFd,
    pub(super) reader: File,
}

/// Makes the process take `steps`. `permit` is told its number and lets it begin.
pub(super) fn start(
    steps: &[Step],
    flags: &Flags,
    report: Report,
    permit: impl FnOnce(u32) -> io::Result<()>,
) -> Result<Child, Error> {
    let Report { writer, mut reader } = report;
    let pointers = Pointers::of(steps);
    let signals = BlockedSignals::block();
    let made = clone3(flags.namespaces, flags.group.as_ref());
    if let Ok(None) = made {
        // SAFETY: this is the new process, and the writer is the report's pipe (close-on-exec as every descriptor the
        // standard library makes).
        unsafe { child::run(steps, &pointers, writer.as_raw_fd()) }
    }
    drop(signals);
    let child = match made {
        Ok(Some(child)) => child,
        Ok(None) => unreachable!("the child does not return"),
        Err(source) => return Err(Error::Prepare { what: "clone3", source }),
    };
    drop(writer);
    if let Err(source) = permit(child.pid) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(Error::NotPermitted { source });
    }
    let mut report: Message = [0; size_of::<Message>()];
    match read_report(&mut reader, &mut report) {
        // The pipe was closed by the program's start.
        Ok(false) => Ok(child),
        Ok(true) => {
            let _ = child.wait();
            Err(failure(steps, report))
        }
        Err(source) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(Error::Prepare { what: "reading the new process's report", source })
        }
    }
}

/// Whether there is one. It is written at once or not at all.
fn read_report(reader: &mut File, report: &mut Message) -> io::Result<bool> {
    match reader.read_exact(report) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn failure(steps: &[Step], report: Message) -> Error {
    let (index, errno) = report.split_at(4);
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_ne_bytes);
    let source = io::Error::from_raw_os_error(number(errno).cast_signed());
    let step = usize::try_from(number(index)).ok().and_then(|i| steps.get(i));
    match step {
        Some(Step::Filter(_)) => Error::Unsupported { feature: Feature::Seccomp, source },
        Some(step) => Error::Step { step: step.to_string(), source },
        None => Error::Prepare { what: "a report that makes no sense", source },
    }
}

/// For a program in a jail: takes `count` of the descriptors it was [given](Jail::descriptor), from number `first` on.
///
/// # Errors
/// `EBADF` when one of them is not open; `EBUSY` the second time, because each can have one owner only.
pub fn given(first: RawFd, count: RawFd) -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let numbers = first..first.saturating_add(count);
    for number in numbers.clone() {
        // SAFETY: a number; whether it is open is the question.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: open, and given to this program by number, so that nothing else in it has opened or owns them; they are
    // handed out once.
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

fn duplicate_from(descriptor: BorrowedFd<'_>, first: usize) -> io::Result<OwnedFd> {
    let first = RawFd::try_from(first).map_err(|_| io::Error::from_raw_os_error(libc::EMFILE))?;
    // SAFETY: an open descriptor and a number.
    let made = unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first) };
    if made < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor the kernel just made.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

/// A copy of this process; none in the copy.
fn clone3(namespaces: i32, group: Option<&OwnedFd>) -> io::Result<Option<Child>> {
    /// `<linux/sched.h>`, from Linux 5.7 on.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let flags = u64::from(namespaces.cast_unsigned()) | u64::from(libc::CLONE_PIDFD.cast_unsigned());
    // SAFETY: a structure of numbers, for which zero means "not used".
    let mut arguments = unsafe { std::mem::zeroed::<libc::clone_args>() };
    arguments.flags = flags;
    arguments.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    if let Some(group) = group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    }
    // SAFETY: the structure and its size; without CLONE_VM the new process has its own copy of all memory, this
    // function's frame too, and the kernel writes the pidfd into the parent's only.
    let result =
        unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    match u32::try_from(result) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(0) => Ok(None),
        Ok(pid) => {
            // SAFETY: a descriptor the kernel just made for us.
            let process = PidFd::from(unsafe { OwnedFd::from_raw_fd(pidfd) });
            Ok(Some(Child { pid, process }))
        }
    }
}

/// All signals of this thread, blocked: a handler of this process must not run in the copy.
struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn block() -> Self {
        // SAFETY: two sets on the stack, the first filled before it is used, the second by the call.
        unsafe {
            let mut all = std::mem::zeroed::<libc::sigset_t>();
            let mut before = std::mem::zeroed::<libc::sigset_t>();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set that was in force.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, null_mut()) };
    }
}

impl Child {
    /// Its number, sure to be its own until it has been waited for.
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// The process as a descriptor: to poll for its end, and to signal it.
    pub const fn process(&self) -> &PidFd {
        &self.process
    }

    /// Kills it.
    ///
    /// # Errors
    /// `ESRCH` when it has been waited for.
    pub fn kill(&self) -> io::Result<()> {
        self.process.send_signal(libc::SIGKILL)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// `ECHILD` when it has been waited for.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        self.reap(0)?.ok_or_else(|| io::Error::from_raw_os_error(libc::EAGAIN))
    }

    /// Its end, if it has ended.
    ///
    /// # Errors
    /// As [`Self::wait`].
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        self.reap(libc::WNOHANG)
    }

    fn reap(&self, flags: i32) -> io::Result<Option<ExitStatus>> {
        let pid = libc::pid_t::try_from(self.pid).map_err(|_| io::Error::from_raw_os_error(libc::ECHILD))?;
        loop {
            let mut status = 0;
            // SAFETY: `status` is where the end goes.
            match unsafe { libc::waitpid(pid, &raw mut status, flags) } {
                -1 => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
                0 => return Ok(None),
                _ => return Ok(Some(ExitStatus::from_raw(status))),
            }
        }
    }

    /// Takes the root directory away: an empty one, read-only, comes in its place, and nothing that was mounted in the
    /// jail can be reached any more. What the program has open or mapped it keeps.
    ///
    /// To be called once the program has loaded its libraries and files.
    ///
    /// # Errors
    /// [`Error::Step`]; [`Error::Unsupported`] before Linux 5.8. The root may then still be there.
    pub fn empty_root(&self) -> Result<(), Error> {
        let process = self.process.as_fd();
        // A thread of its own, because it never comes back from the other mount namespace.
        std::thread::scope(|scope| scope.spawn(|| replace_root(process)).join())
            .unwrap_or_else(|_| Err(Error::Invalid("the thread that empties a root panicked".to_owned())))
    }
}

fn replace_root(process: BorrowedFd<'_>) -> Result<(), Error> {
    let step = |step: &str, result: libc::c_long| {
        if result >= 0 {
            return Ok(());
        }
        Err(Error::Step { step: step.to_owned(), source: io::Error::last_os_error() })
    };
    let here = c".".as_ptr();
    let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: numbers and constant strings. Only this thread's view changes: it leaves the directories it shares with
    // the others first.
    unsafe {
        step("unshare", libc::unshare(libc::CLONE_FS).into())?;
        if libc::setns(process.as_raw_fd(), libc::CLONE_NEWNS) < 0 {
            return Err(Error::Unsupported { feature: Feature::Mount, source: io::Error::last_os_error() });
        }
        step("chdir to the root", libc::chdir(c"/".as_ptr()).into())?;
        let options = c"size=4k,nr_inodes=1,mode=0555".as_ptr();
        let mounted =
            libc::mount(c"empty".as_ptr(), EMPTY.as_ptr(), c"tmpfs".as_ptr(), flags, options.cast());
        step("mount of an empty root", mounted.into())?;
        step("chdir to the empty root", libc::chdir(EMPTY.as_ptr()).into())?;
        // Moves every process that has the old root to the new one.
        step("pivot_root", libc::syscall(libc::SYS_pivot_root, here, here))?;
        step("unmounting the old root", libc::umount2(here, libc::MNT_DETACH).into())
    }
}
