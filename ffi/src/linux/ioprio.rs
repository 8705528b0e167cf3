//! Priority of threads' input and output (ioprio_set(2)).

use std::io;

/// `IOPRIO_WHO_PROCESS` of `<linux/ioprio.h>`: one thread.
const WHO_PROCESS: libc::c_int = 1;

/// Where the class is in a priority (`IOPRIO_CLASS_SHIFT`).
const CLASS_SHIFT: u32 = 13;

/// Sets the priority of one thread: its class (1 real time, 2 best effort, 3 idle) and its level in it (0, the first, to 7).
///
/// # Errors
///
/// The kernel's errno: `ESRCH` when there is no such thread, `EINVAL` for what is no priority, `EPERM`.
pub fn set(thread: i32, class: u16, level: u16) -> io::Result<()> {
    let priority = libc::c_int::from(class) << CLASS_SHIFT | libc::c_int::from(level);
    // SAFETY: three plain numbers.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, WHO_PROCESS, thread, priority) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_s_own_priority_is_set_and_nonsense_refused() {
        assert!(set(0, 3, 0).is_ok() && set(0, 2, 4).is_ok());
        assert_eq!(set(0, 7, 0).unwrap_err().raw_os_error(), Some(libc::EINVAL));
        assert_eq!(set(i32::MAX, 2, 4).unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }
}
