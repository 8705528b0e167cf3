//! Allow-lists of system calls.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::Error;
use crate::error::last_errno;

/// What happens on a system call that is not in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// It fails with `EPERM`.
    Fails,
    /// The process is killed (`SIGSYS`).
    Kills,
}

/// The system calls a program may make, as programs for the kernel, all of which must let a call through.
#[derive(Debug, Clone)]
pub struct SyscallFilter(Vec<BpfProgram>);

impl SyscallFilter {
    /// Lets through these calls, by number (`libc::SYS_*`), whatever their arguments. `execveat`, by which the jail
    /// starts the program, is always among them: without a right to files there is nothing to execute with it.
    ///
    /// # Errors
    /// [`Error::Invalid`] on a processor the filter's compiler does not know.
    pub fn allow(calls: impl IntoIterator<Item = i64>, denied: Denied) -> Result<Self, Error> {
        Self::rules(calls.into_iter().map(|call| (call, Vec::new())), denied)
    }

    /// The same with rules about arguments: a call passes when it has no rules or one of its rules matches.
    ///
    /// # Errors
    /// As [`Self::allow`].
    pub fn rules(
        rules: impl IntoIterator<Item = (i64, Vec<SeccompRule>)>,
        denied: Denied,
    ) -> Result<Self, Error> {
        let mut all: BTreeMap<i64, Vec<SeccompRule>> = rules.into_iter().collect();
        all.insert(libc::SYS_execveat, Vec::new());
        Self::compile(all, denied)
    }

    /// Exactly these, without `execveat`: for a program that [enters](Self::enter) its filter by itself.
    ///
    /// # Errors
    /// As [`Self::allow`].
    pub fn exactly(
        rules: impl IntoIterator<Item = (i64, Vec<SeccompRule>)>,
        denied: Denied,
    ) -> Result<Self, Error> {
        Self::compile(rules.into_iter().collect(), denied)
    }

    fn compile(rules: BTreeMap<i64, Vec<SeccompRule>>, denied: Denied) -> Result<Self, Error> {
        let otherwise = match denied {
            Denied::Fails => SeccompAction::Errno(libc::EPERM.unsigned_abs()),
            Denied::Kills => SeccompAction::KillProcess,
        };
        Ok(Self(vec![compile(rules, otherwise, SeccompAction::Allow)?]))
    }

    /// Puts the calling thread under the filter, for good: for a program that gives up by itself what it needed to
    /// start. It must be unable to [gain privileges](super::Jail::of_caller) or be privileged.
    ///
    /// # Errors
    /// The kernel's; it is not under the filter then.
    pub fn enter(&self) -> io::Result<()> {
        self.install().map_err(io::Error::from_raw_os_error)
    }

    /// As [`Self::allow`], and threads may be made, but no processes, and no threads with descriptors or directories of
    /// their own, which who looks at the process would not see. `clone3`, whose flags are in memory that a filter
    /// cannot see, is answered as by a kernel without it: the C library then uses `clone`.
    ///
    /// # Errors
    /// As [`Self::allow`].
    pub fn allow_with_threads(calls: impl IntoIterator<Item = i64>, denied: Denied) -> Result<Self, Error> {
        let thread = libc::CLONE_THREAD | libc::CLONE_FILES | libc::CLONE_FS;
        let thread = u64::from(thread.unsigned_abs());
        let rule = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(thread), thread)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(|e| invalid(&e))?;
        let calls = calls.into_iter().chain([libc::SYS_clone3]).map(|call| (call, Vec::new()));
        let mut filter = Self::rules(calls.chain([(libc::SYS_clone, vec![rule])]), denied)?;
        let absent = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
        let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
        filter.0.push(compile(clone3, SeccompAction::Allow, absent)?);
        Ok(filter)
    }

    /// Puts the calling thread under the filter, for good. Makes a system call for each program.
    pub(super) fn install(&self) -> Result<(), i32> {
        self.0.iter().try_for_each(Self::install_one)
    }

    fn install_one(program: &BpfProgram) -> Result<(), i32> {
        let length = u16::try_from(program.len()).map_err(|_| libc::EINVAL)?;
        let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
        // SAFETY: the instructions, which the kernel copies, have the layout of `struct sock_filter` (that crate's
        // type is made for this call), and live as long as `self`.
        let result =
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) };
        if result == 0 { Ok(()) } else { Err(last_errno()) }
    }
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| invalid(&e))?;
    let filter = SeccompFilter::new(rules, otherwise, on_match, arch).map_err(|e| invalid(&e))?;
    BpfProgram::try_from(filter).map_err(|e| invalid(&e))
}

fn invalid(error: &dyn std::fmt::Display) -> Error {
    Error::Invalid(format!("system call filter: {error}"))
}
