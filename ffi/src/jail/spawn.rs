//! Makes the process, and reads what it reports.

use std::ffi::{OsStr, c_long};
use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use super::child::{self, Begin, Message, Pointers};
use super::steps::{EMPTY, Prepared, Step, compile};
use super::{Error, Feature, Jail, c_string};
use crate::pid::PidFd;

/// Bytes of a new process's stack: a few calls deep, with some hundred bytes of buffers.
const STACK: usize = 64 << 10;

/// Bytes of the stack of the thread that permits: it writes a record.
const PERMIT_STACK: usize = 256 << 10;

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
        permit: impl FnOnce(u32) -> io::Result<()> + Send,
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

/// Makes the process take `steps`. `permit` is told its number, on a thread of its own, and lets it begin: this one waits
/// until the process is its program, or has failed to become it.
pub(super) fn start(
    steps: &[Step],
    flags: &Flags,
    report: Report,
    permit: impl FnOnce(u32) -> io::Result<()> + Send,
) -> Result<Child, Error> {
    let prepare = |what| move |source| Error::Prepare { what, source };
    let Report { writer, mut reader } = report;
    let (born, birth) = io::pipe().map_err(prepare("pipe"))?;
    let number = AtomicI32::new(0);
    let begin =
        Begin { steps, pointers: Pointers::of(steps), birth: birth.as_raw_fd(), report: writer.as_raw_fd() };
    let (made, permitted) = std::thread::scope(|scope| {
        let told = || permit_when_born(born, &number, permit);
        let starter = std::thread::Builder::new().name("permit".into()).stack_size(PERMIT_STACK);
        let starter = starter.spawn_scoped(scope, told).map_err(prepare("thread"))?;
        let made = clone3(flags, &begin, &number).map_err(prepare("clone3"));
        // If there is no process, nothing else tells the other thread.
        drop(birth);
        let panicked = |_| Err(io::Error::other("the thread that permits it panicked"));
        let permitted = starter.join().unwrap_or_else(panicked);
        Ok((made?, permitted))
    })?;
    drop(writer);
    if let Err(source) = permitted {
        let _ = made.kill();
        let _ = made.wait();
        return Err(Error::NotPermitted { source });
    }
    let mut report: Message = [0; size_of::<Message>()];
    match read_report(&mut reader, &mut report) {
        // The pipe was closed by the program's start.
        Ok(false) => Ok(made),
        Ok(true) => {
            let _ = made.wait();
            Err(failure(steps, report))
        }
        Err(source) => {
            let _ = made.kill();
            let _ = made.wait();
            Err(Error::Prepare { what: "reading the new process's report", source })
        }
    }
}

/// Waits for the process to be there, and says that it may begin. None comes when it could not be made.
fn permit_when_born(
    mut born: io::PipeReader,
    number: &AtomicI32,
    permit: impl FnOnce(u32) -> io::Result<()>,
) -> io::Result<()> {
    let mut word = [0_u8; 1];
    match born.read_exact(&mut word) {
        Ok(()) => permit(number.load(Ordering::Acquire).unsigned_abs()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        Err(error) => Err(error),
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

/// Makes the process, in this one's memory and on a stack of its own, and returns when it has left that memory: by becoming
/// its program, or by its end. A copy of the memory would cost more than all steps where dom0 is a PV guest, which asks the
/// hypervisor for every page table: when it is made, when either side writes to it first, and when it is given back.
///
/// Only the calling thread waits. What the process copies into its root meanwhile counts as this process's memory, not as its
/// control group's. Until then the process has its own descriptors, directories, signal handlers and rights, but
/// no memory; the kernel does not let others of the user that it becomes look into it, as it changes its user
/// (`PR_SET_DUMPABLE` in prctl(2)), nor into this process from then on.
fn clone3(flags: &Flags, begin: &Begin<'_>, number: &AtomicI32) -> io::Result<Child> {
    /// `<linux/sched.h>`, from Linux 5.7 on.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    // As the processor wants a stack to be aligned.
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let mut pidfd: RawFd = -1;
    let shared = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::CLONE_PARENT_SETTID;
    // SAFETY: a structure of numbers, for which zero means "not used".
    let mut arguments = unsafe { std::mem::zeroed::<libc::clone_args>() };
    arguments.flags = u64::from((flags.namespaces | shared).cast_unsigned());
    arguments.pidfd = (&raw mut pidfd).expose_provenance() as u64;
    arguments.parent_tid = number.as_ptr().expose_provenance() as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    arguments.stack = stack.as_mut_ptr().expose_provenance() as u64;
    arguments.stack_size = STACK as u64;
    if let Some(group) = &flags.group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(group.as_raw_fd().unsigned_abs());
    }
    let signals = BlockedSignals::block();
    // SAFETY: the structure and its size; the new process runs `child::enter` on the stack given, which nobody else uses,
    // with what it is to do, and both outlive it, because this thread goes on when the process has left this memory only.
    // The kernel writes the pidfd and the number before either goes on.
    let result = unsafe { call(&arguments, begin) };
    drop(signals);
    match u32::try_from(result) {
        Err(_) => Err(io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EINVAL))),
        Ok(pid) => {
            // SAFETY: a descriptor the kernel just made for us.
            let process = PidFd::from(unsafe { OwnedFd::from_raw_fd(pidfd) });
            Ok(Child { pid, process })
        }
    }
}

/// The system call. The C library has none for a process with a stack of its own in a control group.
///
/// # Safety
/// The arguments have a stack that is used by nothing else, `CLONE_VM` and `CLONE_VFORK`.
unsafe fn call(arguments: &libc::clone_args, begin: &Begin<'_>) -> c_long {
    let result: c_long;
    // SAFETY: in the calling process registers change as said and nothing else does. The new one, for which the call returns 0,
    // leaves this function for another that does not return; its stack is aligned as a call needs it.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r8",
            "call r9",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") arguments,
            in("rsi") size_of::<libc::clone_args>(),
            in("r8") std::ptr::from_ref(begin),
            in("r9") child::enter as extern "C" fn(&Begin<'_>) -> !,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
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
