//! The new process: takes its steps, reports the one that fails, and becomes the program.
//!
//! Until then it lives in its starter's memory, whose other threads go on: locks may be held for ever, and what it writes to
//! is theirs. So there are system calls and nothing else; those that the C library spreads over threads (`setresuid`) are
//! made directly, and no error is turned into text. The thread that started it stands still, so that the thread's `errno`
//! can be used.

use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::os::fd::RawFd;
use std::ptr::null;

use super::steps::Step;
use crate::error::last_errno;

/// What the child tells of a failed step: its index, then the error number.
pub(super) type Message = [u8; 8];

/// Exit code of a child whose step failed. Nobody reads it: the report says more.
const FAILED: c_int = 127;

/// Pointers to the strings of the program's arguments and environment, made before the process is.
pub(super) struct Pointers {
    arguments: Vec<*const c_char>,
    environment: Vec<*const c_char>,
}

impl Pointers {
    /// Of the last step, which must outlive them.
    pub(super) fn of(steps: &[Step]) -> Self {
        let list = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([null()]).collect();
        match steps.last() {
            Some(Step::Execute { arguments, environment, .. }) => {
                Self { arguments: list(arguments), environment: list(environment) }
            }
            _ => Self { arguments: list(&[]), environment: list(&[]) },
        }
    }
}

/// What the new process is to do.
pub(super) struct Begin<'a> {
    pub(super) steps: &'a [Step],
    pub(super) pointers: Pointers,
    /// Where it says that it is there.
    pub(super) birth: RawFd,
    /// Where it tells of a failed step.
    pub(super) report: RawFd,
}

/// The new process's first function.
pub(super) extern "C" fn enter(begin: &Begin<'_>) -> ! {
    // SAFETY: one byte; and the process was made by `clone3`, with pointers of these steps and a pipe for its report, both
    // marked to be closed by `execve` as every descriptor the standard library makes.
    unsafe {
        libc::write(begin.birth, c"!".as_ptr().cast(), 1);
        run(begin.steps, &begin.pointers, begin.report)
    }
}

/// Takes the steps; comes back only never.
///
/// # Safety
/// The calling process was just made by `clone3`, and the thread that made it stands still; `report` is the writing end of
/// a pipe, marked to be closed by `execve`, and `pointers` are of these steps.
unsafe fn run(steps: &[Step], pointers: &Pointers, report: RawFd) -> ! {
    let mut index: u32 = 0;
    for step in steps {
        // SAFETY: as the caller promises.
        if let Err(errno) = unsafe { take(step, pointers, report) } {
            let mut message: Message = [0; 8];
            message[..4].copy_from_slice(&index.to_ne_bytes());
            message[4..].copy_from_slice(&errno.to_ne_bytes());
            // SAFETY: a buffer on the stack, and the end of this process.
            unsafe {
                libc::write(report, message.as_ptr().cast(), message.len());
                libc::_exit(FAILED);
            }
        }
        index = index.wrapping_add(1);
    }
    // SAFETY: the end of this process.
    unsafe { libc::_exit(FAILED) }
}

/// The result of a C function as ours.
fn outcome(result: c_int) -> Result<(), i32> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

/// The result of a raw system call as ours.
fn raw(result: c_long) -> Result<(), i32> {
    if result < 0 { Err(last_errno()) } else { Ok(()) }
}

fn pointer(string: Option<&CString>) -> *const c_char {
    string.map_or(null(), |s| s.as_ptr())
}

/// # Safety
/// As [`run`].
unsafe fn take(step: &Step, pointers: &Pointers, report: RawFd) -> Result<(), i32> {
    match step {
        // SAFETY: no argument.
        Step::Session => outcome(unsafe { libc::setsid() }),
        Step::DefaultSignals => {
            default_signals();
            Ok(())
        }
        Step::Permit { gate, go } => permitted(*gate, *go),
        // SAFETY: two numbers.
        Step::Descriptor { from, to } => outcome(unsafe { libc::dup2(*from, *to) }),
        Step::CloseFrom(first) => {
            let (first, last) = (c_long::from(*first), c_long::from(c_int::MAX));
            // SAFETY: numbers only. Marked rather than closed: the report and the program are among them.
            raw(unsafe { libc::syscall(libc::SYS_close_range, first, last, libc::CLOSE_RANGE_CLOEXEC) })
        }
        Step::PrivateMounts => {
            let flags = libc::MS_REC | libc::MS_PRIVATE;
            mount(null(), c"/", null(), flags, null())
        }
        Step::Mount { source, target, kind, flags, options } => {
            mount(pointer(source.as_ref()), target, pointer(kind.as_ref()), *flags, pointer(options.as_ref()))
        }
        // SAFETY: a string that outlives the call.
        Step::Directory(path) => outcome(unsafe { libc::mkdir(path.as_ptr(), 0o755) }),
        // SAFETY: as above.
        Step::File(path) => outcome(unsafe { libc::mknod(path.as_ptr(), libc::S_IFREG | 0o444, 0) }),
        Step::Content { path, source, length } => content(path, *source, *length),
        Step::Node { path, device, uid, gid } => node(path, *device, *uid, *gid),
        // SAFETY: two strings that outlive the call.
        Step::Link { to, path } => outcome(unsafe { libc::symlink(to.as_ptr(), path.as_ptr()) }),
        // SAFETY: as above.
        Step::ChangeDirectory(path) => outcome(unsafe { libc::chdir(path.as_ptr()) }),
        Step::PivotRoot => pivot_root(),
        Step::Limit { resource, value } => {
            let limit = libc::rlimit { rlim_cur: *value, rlim_max: *value };
            // SAFETY: a structure on the stack.
            outcome(unsafe { libc::setrlimit(*resource, &raw const limit) })
        }
        Step::NoNewPrivileges => control(libc::PR_SET_NO_NEW_PRIVS, 1),
        Step::NoBoundingSet => no_bounding_set(),
        Step::Group(gid) => {
            let gid = c_long::from(*gid);
            // SAFETY: an empty list, then numbers only.
            unsafe {
                raw(libc::syscall(libc::SYS_setgroups, 0, null::<libc::gid_t>()))?;
                raw(libc::syscall(libc::SYS_setresgid, gid, gid, gid))
            }
        }
        Step::User(uid) => {
            let uid = c_long::from(*uid);
            // SAFETY: numbers only.
            raw(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })
        }
        Step::NoCapabilities => no_capabilities(),
        Step::DieWithParent => die_with_parent(report),
        Step::Umask => {
            // SAFETY: a number; it cannot fail.
            unsafe { libc::umask(0o077) };
            Ok(())
        }
        Step::UnblockSignals => {
            // SAFETY: a set on the stack, made empty before it is used.
            unsafe {
                let mut none = std::mem::zeroed::<libc::sigset_t>();
                libc::sigemptyset(&raw mut none);
                outcome(libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()))
            }
        }
        Step::Filter(filter) => filter.install(),
        Step::Execute { program, .. } => {
            // SAFETY: lists of pointers to strings that outlive the call, each ended by a null one.
            raw(unsafe {
                libc::syscall(
                    libc::SYS_execveat,
                    *program,
                    c"".as_ptr(),
                    pointers.arguments.as_ptr(),
                    pointers.environment.as_ptr(),
                    libc::AT_EMPTY_PATH,
                )
            })
        }
        #[cfg(test)]
        Step::Fail(errno) => Err(*errno),
    }
}

/// A new program keeps what is ignored, as `SIGPIPE` is in every Rust program.
fn default_signals() {
    const SIGNALS: std::ops::RangeInclusive<c_int> = 1..=64;
    for signal in SIGNALS {
        // A file at its limit is an error to the program, not its end: else whoever makes it write much could end it.
        let action = if signal == libc::SIGXFSZ { libc::SIG_IGN } else { libc::SIG_DFL };
        // SAFETY: neither action runs code of ours. Those that cannot be changed fail, which is fine.
        unsafe { libc::signal(signal, action) };
    }
}

/// Waits for the starter's word. That it closes the pipe without one, or ends, is a refusal.
fn permitted(gate: RawFd, go: RawFd) -> Result<(), i32> {
    // SAFETY: this process's copy of the writing end, which nothing here owns; open, it would keep the pipe from ending.
    unsafe { libc::close(go) };
    let mut word = [0_u8; 1];
    loop {
        // SAFETY: a buffer on the stack.
        match unsafe { libc::read(gate, word.as_mut_ptr().cast(), word.len()) } {
            1 => return Ok(()),
            0 => return Err(libc::ECANCELED),
            _ if last_errno() == libc::EINTR => {}
            _ => return Err(last_errno()),
        }
    }
}

fn mount(
    source: *const c_char,
    target: &CStr,
    kind: *const c_char,
    flags: libc::c_ulong,
    options: *const c_char,
) -> Result<(), i32> {
    // SAFETY: each pointer is null or a string of a step, which outlives the call.
    outcome(unsafe { libc::mount(source, target.as_ptr(), kind, flags, options.cast()) })
}

fn node(path: &CStr, device: libc::dev_t, uid: u32, gid: u32) -> Result<(), i32> {
    // SAFETY: a string that outlives the calls.
    unsafe {
        outcome(libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, device))?;
        outcome(libc::chown(path.as_ptr(), uid, gid))
    }
}

/// Copies within the kernel. A source that ends too early is an error.
fn content(path: &CStr, source: RawFd, length: u64) -> Result<(), i32> {
    // SAFETY: a string that outlives the call.
    let file = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL, 0o444) };
    outcome(file)?;
    let length = libc::off_t::try_from(length).map_err(|_| libc::EFBIG)?;
    let mut copied: libc::off_t = 0;
    while copied < length {
        let left = usize::try_from(length - copied).map_err(|_| libc::EFBIG)?;
        // SAFETY: two descriptors, and an offset on the stack, which the kernel moves on.
        match unsafe { libc::sendfile(file, source, &raw mut copied, left) } {
            0 => return Err(libc::ENODATA),
            -1 if last_errno() == libc::EINTR => {}
            -1 => return Err(last_errno()),
            _ => {}
        }
    }
    // SAFETY: made above, and used nowhere else.
    outcome(unsafe { libc::close(file) })
}

/// The new root is mounted over the old one's place, and the old one taken from under it (pivot_root(2), "`.`, `.`").
fn pivot_root() -> Result<(), i32> {
    let here = c".".as_ptr();
    // SAFETY: constant strings.
    unsafe {
        raw(libc::syscall(libc::SYS_pivot_root, here, here))?;
        outcome(libc::umount2(here, libc::MNT_DETACH))?;
        outcome(libc::chdir(c"/".as_ptr()))
    }
}

fn control(option: c_int, value: libc::c_ulong) -> Result<(), i32> {
    // SAFETY: the options used here take numbers.
    outcome(unsafe { libc::prctl(option, value, 0, 0, 0) })
}

fn no_bounding_set() -> Result<(), i32> {
    /// More than any kernel has: the first unknown one ends the loop.
    const MAX: libc::c_ulong = 64;
    for capability in 0..MAX {
        match control(libc::PR_CAPBSET_DROP, capability) {
            Err(libc::EINVAL) if capability > 0 => break,
            other => other?,
        }
    }
    Ok(())
}

fn no_capabilities() -> Result<(), i32> {
    /// `_LINUX_CAPABILITY_VERSION_3` of `<linux/capability.h>`, whose sets are of two words.
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    let sets = [0_u32; 6];
    // SAFETY: structures of the version's layout on the stack.
    raw(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) })?;
    let clear = libc::c_ulong::try_from(libc::PR_CAP_AMBIENT_CLEAR_ALL).unwrap_or_default();
    control(libc::PR_CAP_AMBIENT, clear)
}

/// The parent may have ended before the kernel was asked to watch it: then nobody reads the report.
fn die_with_parent(report: RawFd) -> Result<(), i32> {
    control(libc::PR_SET_PDEATHSIG, libc::c_ulong::try_from(libc::SIGKILL).unwrap_or_default())?;
    let mut poll = libc::pollfd { fd: report, events: 0, revents: 0 };
    // SAFETY: one structure on the stack.
    outcome(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
    if poll.revents & libc::POLLERR != 0 { Err(libc::EPIPE) } else { Ok(()) }
}
