//! Threads of the kernel's blkback: one for each queue of a disk, there while a guest is connected to it.
//!
//! They are told by what blkback calls them, `DOMID.DEVICE-QUEUE`, and by their parent, the kernel: what any other process
//! calls itself does not count.

use std::fs;
use std::io;

use crate::edge::{DomId, IoPriority};

/// Number of the process whose children the kernel's threads are.
const KTHREADD: i32 = 2;

/// Longest name of a thread that the kernel keeps, in bytes (`TASK_COMM_LEN` without its end).
const NAME_MAX: usize = 15;

/// Gives the threads that serve a disk a priority; how many there were.
///
/// # Errors
/// The kernel's.
pub fn prioritise(domid: DomId, device: &str, priority: IoPriority) -> io::Result<usize> {
    let name = format!("{domid}.{device}");
    let mut found = 0;
    for entry in fs::read_dir("/proc")? {
        let file_name = entry?.file_name();
        let Some(pid) = file_name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // One that is not there any more needs nothing.
        let Ok(stat) = fs::read(format!("/proc/{pid}/stat")) else { continue };
        if !serves(&stat, &name) {
            continue;
        }
        match ffi::linux::ioprio::set(pid, priority.class, priority.level) {
            Ok(()) => found += 1,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Whether `/proc/<pid>/stat` (proc(5)) is that of a thread of the disk `DOMID.DEVICE`.
fn serves(stat: &[u8], disk: &str) -> bool {
    let Ok(stat) = std::str::from_utf8(stat) else { return false };
    let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(')')) else {
        return false;
    };
    let parent = rest.split_ascii_whitespace().nth(1).and_then(|parent| parent.parse().ok());
    // Of a long name its end is cut off, the queue's number first.
    let queue = name.strip_prefix(disk).and_then(|rest| rest.strip_prefix('-'));
    let cut = disk.len() + 1 >= NAME_MAX && name.len() == NAME_MAX && disk.starts_with(name);
    parent == Some(KTHREADD) && (queue.is_some_and(|queue| queue.parse::<u32>().is_ok()) || cut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_told_by_name_and_parent() {
        let serves = |stat: &str, disk: &str| serves(stat.as_bytes(), disk);
        assert!(serves("812 (1.xvda-0) S 2 0 0 0", "1.xvda"));
        assert!(serves("812 (1.xvda-13) S 2 0 0 0", "1.xvda"));
        assert!(serves(
            "812 (12345.0123456789ab) S 2 0".replace("6789ab", "678").as_str(),
            "12345.0123456789ab"
        ));
        for other in [
            "812 (1.xvda-0) S 1 0 0 0",
            "812 (1.xvdaa-0) S 2 0 0 0",
            "812 (11.xvda-0) S 2 0 0 0",
            "812 (1.xvda) S 2 0 0 0",
            "812 (1.xvda-x) S 2 0 0 0",
            "812 (a) (1.xvda-0) S 2 0",
            "812 (1.xvda-0",
            "",
        ] {
            assert!(!serves(other, "1.xvda"), "{other}");
        }
    }

    #[test]
    fn a_disk_that_nobody_serves_has_none() {
        let priority = IoPriority { class: 2, level: 4 };
        assert_eq!(prioritise(DomId::MAX, "xvdzz", priority).unwrap(), 0);
    }
}
