//! A control group (version 2) for the processes of one domain: limits over all of them together, and one write that
//! kills them all.
//!
//! The groups lie beside the daemon's own and not below it, because a service manager kills what is in a service's
//! group when it stops the service, and device models outlive the daemon.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// The group above all of ours, below the root of the hierarchy.
const PARENT: &str = "xenopsd";

/// Limits over a group's processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Memory in bytes, page cache included.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub processes: Option<u64>,
}

/// A control group that exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Where version 2 is mounted; none when it is not.
    pub fn hierarchy() -> Option<PathBuf> {
        mounted(&fs::read_to_string("/proc/self/mountinfo").ok()?)
    }

    /// Makes the group (or takes over one of that name) and sets its limits. Says which limits there is no controller
    /// for; limits of the process hold all the same.
    ///
    /// # Errors
    /// The kernel's; `NotFound` when version 2 is not mounted; `InvalidInput` for a name that is no file name.
    pub fn create(name: &str, limits: &CgroupLimits) -> io::Result<(Self, Vec<&'static str>)> {
        let root = Self::hierarchy().ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "control groups (version 2) are not mounted")
        })?;
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name:?} is no file name")));
        }
        let above = root.join(PARENT);
        let path = above.join(name);
        fs::create_dir_all(&path)?;
        let group = Self(path);
        let mut lacking = Vec::new();
        for (controller, file, limit) in
            [("memory", "memory.max", limits.memory), ("pids", "pids.max", limits.processes)]
        {
            let Some(limit) = limit else { continue };
            // Refused where the controller does not exist, or serves a version 1 hierarchy.
            let enable = format!("+{controller}");
            for level in [&root, &above] {
                let _ = fs::write(level.join("cgroup.subtree_control"), &enable);
            }
            if fs::write(group.0.join(file), limit.to_string()).is_err() {
                lacking.push(controller);
            }
        }
        Ok((group, lacking))
    }

    /// The group of that name, if it is there.
    pub fn find(name: &str) -> Option<Self> {
        let path = Self::hierarchy()?.join(PARENT).join(name);
        path.is_dir().then_some(Self(path))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Kills every process in it, also those being made (Linux 5.14).
    ///
    /// # Errors
    /// The kernel's.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.0.join("cgroup.kill"), "1")
    }

    /// Removes it; one that is gone is no error.
    ///
    /// # Errors
    /// The kernel's; `ResourceBusy` while a process is in it.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        Ok(fs::File::open(&self.0)?.into())
    }
}

/// The mount point in a `/proc/PID/mountinfo` (proc(5): fields, `-`, type). Spaces in it would be `\040`, which no
/// distribution's has.
fn mounted(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        (kind.split(' ').next()? == "cgroup2").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_by_its_type() {
        let text = "24 1 0:22 / /proc rw - proc proc rw\n\
            30 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mounted(text), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(mounted("24 1 0:22 / /cgroup2 rw - proc cgroup2 rw"), None);
        assert_eq!(mounted("nonsense"), None);
    }

    #[test]
    fn a_name_is_not_a_path() {
        if Cgroup::hierarchy().is_none() {
            return;
        }
        for name in ["", "..", "a/b", ".hidden"] {
            let refused = Cgroup::create(name, &CgroupLimits::default()).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::InvalidInput, "{name}");
        }
    }
}
