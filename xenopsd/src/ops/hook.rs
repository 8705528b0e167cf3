//! The events for which an administrator can have scripts run, and what the scripts are told.
//!
//! ```text
//!   <hooks-path>/vm-pre-start/*     each, in order of name:  SCRIPT -vmuuid UUID [-vmdomid DOMID] -reason REASON
//!                                   exit 0: fine · 1: logged, goes on · anything else: the operation fails
//! ```

use std::fmt;

/// An event; its text is the name of the directory of its scripts (xapi's `xenops_hooks`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// Before a start takes anything.
    PreStart,
    /// Before a domain ends, also for a reboot or a suspend.
    PreShutdown,
    /// After it has ended.
    PostDestroy,
    /// Between the two halves of a reboot.
    PreReboot,
    /// Before a guest is asked to suspend.
    PreSuspend,
    /// Before a suspended guest's memory is read back.
    PreResume,
    /// After it runs again.
    PostResume,
}

impl Hook {
    /// Every event.
    pub const ALL: [Self; 7] = [
        Self::PreStart,
        Self::PreShutdown,
        Self::PostDestroy,
        Self::PreReboot,
        Self::PreSuspend,
        Self::PreResume,
        Self::PostResume,
    ];
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PreStart => "vm-pre-start",
            Self::PreShutdown => "vm-pre-shutdown",
            Self::PostDestroy => "vm-post-destroy",
            Self::PreReboot => "vm-pre-reboot",
            Self::PreSuspend => "vm-pre-suspend",
            Self::PreResume => "vm-pre-resume",
            Self::PostResume => "vm-post-resume",
        })
    }
}

/// Why the event happens; its text is what scripts are given after `-reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookReason {
    /// There is but one reason for it.
    None,
    /// The guest is asked to shut down.
    CleanShutdown,
    /// It is not asked.
    HardShutdown,
    /// The guest is asked to reboot.
    CleanReboot,
    /// It is not asked, or asked for it itself.
    HardReboot,
    /// It is suspended.
    Suspend,
}

impl fmt::Display for HookReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::CleanShutdown => "clean-shutdown",
            Self::HardShutdown => "hard-shutdown",
            Self::CleanReboot => "clean-reboot",
            Self::HardReboot => "hard-reboot",
            Self::Suspend => "suspend",
        })
    }
}
