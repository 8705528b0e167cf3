//! The last look at a device model before its guest runs: Xen's files that it has are restricted to its domain, by us,
//! whether it has done so itself or not; it has no file or directory open through which it reaches what was in its root;
//! and the kernel says of the process what we asked for.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use ffi::pid::PidFd;
use ffi::restrict::{Driver, restrict_descriptor};
use nix::sys::stat::{major, minor};

use super::{failed, refused};
use crate::edge::{DomId, HostError};

/// Most descriptors looked at: its limit is lower.
const MOST_DESCRIPTORS: usize = 4096;

/// One of the drivers through which dom0's processes reach Xen.
pub(super) struct XenDevice {
    name: &'static str,
    /// Whether QEMU does not start without.
    pub(super) needed: bool,
    /// What becomes of an open file of it.
    then: Then,
}

enum Then {
    /// It is restricted to the domain.
    Restrict(Driver),
    /// It must be closed: it cannot be restricted.
    Refuse,
    /// It gives memory for the arguments of hypercalls, and makes none.
    Leave,
}

/// Those that QEMU opens. xenstored is reached through the kernel, because its socket is root's.
pub(super) const XEN_DEVICES: [XenDevice; 5] = [
    XenDevice { name: "privcmd", needed: true, then: Then::Restrict(Driver::Privcmd) },
    XenDevice { name: "evtchn", needed: true, then: Then::Restrict(Driver::Evtchn) },
    XenDevice { name: "gntdev", needed: false, then: Then::Refuse },
    XenDevice { name: "xenbus", needed: true, then: Then::Refuse },
    XenDevice { name: "hypercall", needed: false, then: Then::Leave },
];

impl XenDevice {
    pub(super) fn path(&self) -> PathBuf {
        Path::new("/dev/xen").join(self.name)
    }
}

/// Whether it is a file or directory, but not the log.
fn is_of_host(metadata: &Metadata, log: &Metadata) -> bool {
    let is_log = (metadata.dev(), metadata.ino()) == (log.dev(), log.ino());
    metadata.is_dir() || metadata.is_file() && !is_log
}

/// Major and minor number of a character device.
pub(super) fn number(path: &Path) -> io::Result<(u32, u32)> {
    number_in(&fs::metadata(path)?)
}

fn number_in(metadata: &Metadata) -> io::Result<(u32, u32)> {
    if !metadata.file_type().is_char_device() {
        return Err(io::Error::other("it is not a character device"));
    }
    let part = |number: u64| u32::try_from(number).map_err(io::Error::other);
    Ok((part(major(metadata.rdev()))?, part(minor(metadata.rdev()))?))
}

/// Restricts every open file of Xen's drivers that process `pid` has, and finds files of the host, of which its log is the
/// only one it may have. Its threads have no others: the filter sees to that.
pub(super) fn descriptors(process: &PidFd, pid: u32, domid: DomId, log: &Path) -> Result<(), HostError> {
    let log = fs::metadata(log).map_err(failed("look at", log))?;
    let table = PathBuf::from(format!("/proc/{pid}/fd"));
    let entries = fs::read_dir(&table).map_err(failed("list", &table))?;
    for entry in entries.take(MOST_DESCRIPTORS) {
        let path = entry.map_err(failed("list", &table))?.path();
        let descriptor = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        // It may be closed again by now.
        let (Some(descriptor), Ok(metadata)) = (descriptor, fs::metadata(&path)) else { continue };
        if is_of_host(&metadata, &log) {
            let what = fs::read_link(&path).unwrap_or_else(|_| path.clone());
            return Err(refused(format!(
                "the device model of domain {domid} has not closed {}, a file or directory of this host",
                what.display()
            )));
        }
        let Ok(device) = number_in(&metadata) else { continue };
        let same = |d: &&XenDevice| number(&d.path()).is_ok_and(|known| known == device);
        let Some(found) = XEN_DEVICES.iter().find(same) else { continue };
        match &found.then {
            Then::Leave => {}
            Then::Refuse => {
                return Err(refused(format!(
                    "the device model of domain {domid} has not closed {}: does this QEMU know -xen-domid-restrict?",
                    found.path().display()
                )));
            }
            Then::Restrict(driver) => {
                let file = process.descriptor(descriptor).map_err(failed("take a copy of", &path))?;
                restrict_descriptor(file.as_fd(), *driver, domid)
                    .map_err(failed("restrict", &found.path()))?;
            }
        }
    }
    Ok(())
}

/// Checks what the kernel says of process `pid`.
pub(in super::super) fn status(pid: u32, uid: u32, seccomp: bool) -> Result<(), HostError> {
    let path = PathBuf::from(format!("/proc/{pid}/status"));
    let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
    match wrong(&text, uid, seccomp) {
        None => Ok(()),
        Some(line) => Err(refused(format!("QEMU is not in its jail: /proc/{pid}/status: {line}"))),
    }
}

/// What is not as it should be.
fn wrong(status: &str, uid: u32, seccomp: bool) -> Option<String> {
    let ids = format!("{uid}\t{uid}\t{uid}\t{uid}");
    let none = "0000000000000000";
    let wanted = [
        ("Uid", ids.as_str()),
        ("Gid", ids.as_str()),
        ("Groups", ""),
        ("CapInh", none),
        ("CapPrm", none),
        ("CapEff", none),
        ("CapBnd", none),
        ("CapAmb", none),
        ("NoNewPrivs", "1"),
        ("Seccomp", if seccomp { "2" } else { "0" }),
    ];
    let value = |key| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    wanted.into_iter().find_map(|(key, wanted)| {
        let found = value(key).map(str::trim);
        (found != Some(wanted)).then(|| format!("{key} is {found:?} and not {wanted:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tqemu\nUid:\t7\t7\t7\t7\nGid:\t7\t7\t7\t7\nGroups:\t \nCapInh:\t0000000000000000\n\
        CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\nCapAmb:\t0000000000000000\n\
        NoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";

    #[test]
    fn every_line_counts() {
        assert_eq!(wrong(STATUS, 7, true), None);
        for (good, bad) in [
            ("Uid:\t7\t7\t7\t7", "Uid:\t7\t0\t7\t7"),
            ("Gid:\t7", "Gid:\t0"),
            ("Groups:\t ", "Groups:\t6 "),
            ("CapBnd:\t0000000000000000", "CapBnd:\t0000000000000001"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("Seccomp:\t2", "Seccomp:\t0"),
            ("CapEff", "Other"),
        ] {
            assert!(wrong(&STATUS.replace(good, bad), 7, true).is_some(), "{bad}");
        }
        assert!(wrong(STATUS, 8, true).is_some());
        assert!(wrong("", 7, true).is_some());
    }

    #[test]
    fn files_and_directories_are_the_hosts_unless_they_are_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        for name in ["log", "other"] {
            fs::write(path(name), "").unwrap();
        }
        let look = |path: &Path| fs::metadata(path).unwrap();
        let log = look(&path("log"));
        assert!(is_of_host(&look(&path("other")), &log) && is_of_host(&look(directory.path()), &log));
        assert!(!is_of_host(&look(&path("log")), &log) && !is_of_host(&look(Path::new("/dev/null")), &log));
    }

    #[test]
    fn only_devices_have_numbers() {
        assert_eq!(number(Path::new("/dev/null")).unwrap(), (1, 3));
        assert!(number(Path::new("/etc")).is_err() && number(Path::new("/nonexistent")).is_err());
    }
}
