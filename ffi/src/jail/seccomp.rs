//! Allow-lists of system calls.

use std::collections::BTreeMap;
use std::io;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch};

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

/// The system calls a program may make, as a program for the kernel.
#[derive(Debug, Clone)]
pub struct SyscallFilter(BpfProgram);

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
        let invalid = |error: &dyn std::fmt::Display| Error::Invalid(format!("system call filter: {error}"));
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|e| invalid(&e))?;
        let filter =
            SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch).map_err(|e| invalid(&e))?;
        Ok(Self(BpfProgram::try_from(filter).map_err(|e| invalid(&e))?))
    }

    /// Puts the calling thread under the filter, for good: for a program that gives up by itself what it needed to
    /// start. It must be unable to [gain privileges](super::Jail::of_caller) or be privileged.
    ///
    /// # Errors
    /// The kernel's; it is not under the filter then.
    pub fn enter(&self) -> io::Result<()> {
        self.install().map_err(io::Error::from_raw_os_error)
    }

    /// Puts the calling thread under the filter, for good. Makes one system call.
    pub(super) fn install(&self) -> Result<(), i32> {
        let length = u16::try_from(self.0.len()).map_err(|_| libc::EINVAL)?;
        let program = libc::sock_fprog { len: length, filter: self.0.as_ptr().cast_mut().cast() };
        // SAFETY: the instructions, which the kernel copies, have the layout of `struct sock_filter` (that crate's
        // type is made for this call), and live as long as `self`.
        let result =
            unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) };
        if result == 0 { Ok(()) } else { Err(last_errno()) }
    }
}
