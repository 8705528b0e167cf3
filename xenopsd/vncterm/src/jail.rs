//! Giving up everything that a console does not need, after the descriptors are open and before a byte is read.
//!
//! Own user, empty root, no network, limits, no new privileges, and an allow-list of the system calls of the loop:
//! whoever takes over this process from the guest's side or the viewer's has a pseudo-terminal and some sockets.

use crate::args::Jail;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Uid, chdir, chroot, setgroups, setresgid, setresuid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// Bytes of files that may be written: the log and the saved state.
const FILE_SIZE: u64 = 64 << 20;

/// Bytes of address space, as in the original: a full scroll-back of the widest screen with a viewer's buffers.
const ADDRESS_SPACE: u64 = 128 << 20;

/// Descriptors: listeners, eight viewers, eight text clients, and few more.
const DESCRIPTORS: u64 = 64;

/// Which step failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {reason}")]
pub struct JailError {
    /// What was tried.
    pub step: &'static str,
    /// The kernel's answer.
    pub reason: String,
}

fn step<T>(step: &'static str, result: Result<T, Errno>) -> Result<T, JailError> {
    result.map_err(|errno| JailError { step, reason: errno.desc().into() })
}

/// Does it, for good.
///
/// # Errors
/// [`JailError`]: the process must end, for it may be half in.
pub fn enter(jail: &Jail) -> Result<(), JailError> {
    step(
        "leave the network",
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS),
    )?;
    step("change the root directory", chroot(&jail.root).and_then(|()| chdir("/")))?;
    let (uid, gid) = (Uid::from_raw(jail.uid), Gid::from_raw(jail.gid));
    step("leave all groups", setgroups(&[]))?;
    step("change the group", setresgid(gid, gid, gid))?;
    step("change the user", setresuid(uid, uid, uid))?;
    limit()?;
    step("give up new privileges", nix::sys::prctl::set_no_new_privs())?;
    filter()
}

fn limit() -> Result<(), JailError> {
    for (resource, most) in [
        (Resource::RLIMIT_FSIZE, FILE_SIZE),
        (Resource::RLIMIT_AS, ADDRESS_SPACE),
        (Resource::RLIMIT_NOFILE, DESCRIPTORS),
        (Resource::RLIMIT_NPROC, 0),
        (Resource::RLIMIT_CORE, 0),
    ] {
        step("set a limit", setrlimit(resource, most, most))?;
    }
    Ok(())
}

/// The system calls of the loop; any other ends the process.
const ALLOWED: &[i64] = &[
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mprotect,
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_futex,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Allows only the system calls of the loop from now on.
///
/// # Errors
/// [`JailError`].
pub fn filter() -> Result<(), JailError> {
    apply(ALLOWED.iter().map(|call| (*call, Vec::new())))
}

/// The same for the loop of a frame buffer, which also signals the guest: no other request of any driver passes, and it
/// has no files.
///
/// # Errors
/// [`JailError`].
pub fn filter_frame_buffer() -> Result<(), JailError> {
    let request = ffi::given::NOTIFY;
    let notify = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(|e| failed(e.to_string()))?;
    let calls = ALLOWED.iter().map(|call| (*call, Vec::new()));
    apply(calls.chain([(libc::SYS_ioctl, vec![notify])]))
}

fn failed(reason: String) -> JailError {
    JailError { step: "filter system calls", reason }
}

fn apply(rules: impl Iterator<Item = (i64, Vec<SeccompRule>)>) -> Result<(), JailError> {
    let arch =
        std::env::consts::ARCH.try_into().map_err(|e: seccompiler::BackendError| failed(e.to_string()))?;
    let filter = SeccompFilter::new(rules.collect(), SeccompAction::KillProcess, SeccompAction::Allow, arch)
        .and_then(BpfProgram::try_from)
        .map_err(|e| failed(e.to_string()))?;
    seccompiler::apply_filter(&filter).map_err(|e| failed(e.to_string()))
}
