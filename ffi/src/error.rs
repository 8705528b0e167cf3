//! What can go wrong in a call into Xen's libraries, with the fields a program needs.

use std::fmt;
use std::io;

use crate::domid::DomId;

/// Result of a call into Xen's libraries.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call, or a call that was refused before it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// A library call failed.
    Call {
        /// The C function's name.
        call: &'static str,
        /// The domain it was about.
        domid: Option<u32>,
        /// The error number, or 0 when the library gave none.
        errno: i32,
        /// The last error lines the library logged during the call, joined by "; ".
        detail: Option<String>,
    },
    /// The handle was opened by another process. Hypercall buffers are not inherited by a forked child and a file
    /// descriptor's position in a ring is shared with the parent, so the child must open handles of its own.
    Forked {
        /// Which kind of handle.
        handle: &'static str,
        /// The process that opened it.
        opened_by: u32,
    },
    /// No hypervisor to talk to.
    NoXen {
        /// What was opened.
        what: &'static str,
        /// The error number of the attempt, or 0.
        errno: i32,
        /// What the library said.
        detail: Option<String>,
    },
    /// The running hypervisor is of another release than the libraries. Their hypercall layouts differ, so no other
    /// call may be made.
    VersionMismatch {
        /// Release of the libraries this program was built with.
        linked: (u32, u32),
        /// Release of the hypervisor.
        running: (u32, u32),
    },
    /// Refused before calling.
    InvalidArgument {
        /// The call, or the value's kind.
        call: &'static str,
        /// What is wrong with it.
        what: String,
    },
}

impl Error {
    /// The call's error number, when there is one.
    pub const fn errno(&self) -> Option<i32> {
        match self {
            Self::Call { errno, .. } | Self::NoXen { errno, .. } if *errno != 0 => Some(*errno),
            _ => None,
        }
    }

    /// Whether the call failed with this error number (`libc::ESRCH`, ...).
    pub fn is_errno(&self, errno: i32) -> bool {
        self.errno() == Some(errno)
    }

    /// An error for a call that failed without anything logged.
    pub(crate) fn plain(call: &'static str, domid: Option<DomId>, errno: i32) -> Self {
        Self::Call { call, domid: domid.map(u32::from), errno, detail: None }
    }

    pub(crate) fn invalid(call: &'static str, what: impl Into<String>) -> Self {
        Self::InvalidArgument { call, what: what.into() }
    }
}

impl std::error::Error for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call { call, domid, errno, detail } => {
                write!(f, "{call} failed")?;
                if let Some(domid) = domid {
                    write!(f, " for domain {domid}")?;
                }
                write!(f, ": {}", ErrnoText(*errno))?;
                write_detail(f, detail.as_deref())
            }
            Self::Forked { handle, opened_by } => write!(
                f,
                "the {handle} handle was opened by process {opened_by} and cannot be used after a fork: open a new one"
            ),
            Self::NoXen { what, errno, detail } => {
                write!(f, "cannot reach Xen: opening {what} failed: {}", ErrnoText(*errno))?;
                write_detail(f, detail.as_deref())?;
                f.write_str(match *errno {
                    libc::EACCES | libc::EPERM => " (run as root in the control domain)",
                    _ => {
                        " (is this the control domain of a host booted with Xen? \
                         check /sys/hypervisor/type and that /dev/xen/privcmd exists: modprobe xen-privcmd, xen-evtchn)"
                    }
                })
            }
            Self::VersionMismatch { linked, running } => write!(
                f,
                "the running hypervisor is Xen {}.{} but this program uses the libraries of Xen {}.{}: \
                 use the build made for the hypervisor, or reboot into the installed one",
                running.0, running.1, linked.0, linked.1
            ),
            Self::InvalidArgument { call, what } => write!(f, "{call}: {what}"),
        }
    }
}

fn write_detail(f: &mut fmt::Formatter<'_>, detail: Option<&str>) -> fmt::Result {
    detail.map_or(Ok(()), |text| write!(f, ": {text}"))
}

/// "Cannot allocate memory (12)".
struct ErrnoText(i32);

impl fmt::Display for ErrnoText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("no error number was given");
        }
        let text = io::Error::from_raw_os_error(self.0).to_string();
        let text = text.strip_suffix(&format!(" (os error {})", self.0)).unwrap_or(&text);
        write!(f, "{text} ({})", self.0)
    }
}

/// The calling thread's `errno`. To be read at once after the call: anything in between may change it.
pub(crate) fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Sets `errno` to 0, so that a call that fails without setting it is not blamed with an older number.
pub(crate) fn clear_errno() {
    set_errno(0);
}

pub(crate) fn set_errno(errno: i32) {
    // SAFETY: the returned pointer is this thread's errno, valid and writable as long as the thread lives.
    unsafe { *libc::__errno_location() = errno };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_says_which_for_whom_and_why() {
        let error = Error::Call {
            call: "xc_domain_create",
            domid: Some(5),
            errno: libc::ENOMEM,
            detail: Some("no room".into()),
        };
        assert_eq!(
            error.to_string(),
            "xc_domain_create failed for domain 5: Cannot allocate memory (12): no room"
        );
        let error = Error::plain("xc_physinfo", None, 0);
        assert_eq!(error.to_string(), "xc_physinfo failed: no error number was given");
        assert_eq!(error.errno(), None);
    }

    #[test]
    fn no_xen_says_what_to_check() {
        let none = Error::NoXen { what: "libxenctrl", errno: libc::ENOENT, detail: None };
        assert!(none.to_string().contains("/dev/xen/privcmd"), "{none}");
        let denied = Error::NoXen { what: "libxenctrl", errno: libc::EACCES, detail: None };
        assert!(denied.to_string().contains("root"), "{denied}");
        assert!(denied.is_errno(libc::EACCES));
    }

    #[test]
    fn errno_survives_only_what_sets_it() {
        clear_errno();
        assert_eq!(last_errno(), 0);
    }
}
