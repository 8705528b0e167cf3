//! Giving back what an earlier daemon took and could not give back itself.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Component, Path};
use std::time::Instant;

use ffi::jail::Cgroup;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::disk_server;
use super::loopdev::{self, Detached, LoopError};
use super::netlink::{IfName, Netlink};
use super::nftables;
use super::ovsdb::{self, OvsError};
use super::process;
use crate::edge::{HostError, KILL_LIMIT};
use crate::state::journal::{LoopId, Resource};

/// How many names a path must have to be removed: `/run/xenopsd/root-3` is somebody's, `/run/xenopsd` is not.
const LEAST_DEPTH: usize = 3;

/// The kernel's name for the kind of network device that taps are.
const TAP_KIND: &str = "tun";

/// Gives `resource` back; whether there was anything to give. A domain is not the host's to give, nor is a disk of a storage
/// layer.
///
/// # Errors
/// [`HostError`] that says what refused.
pub fn release(resource: &Resource) -> Result<bool, HostError> {
    let refused = |why: &dyn std::fmt::Display| HostError::Unusable {
        class: "leftover",
        text: format!("{resource} was left by an earlier daemon and cannot be given back: {why}"),
    };
    match resource {
        Resource::Domain | Resource::Storage(_) => Ok(false),
        Resource::Loop(device) => detach(device).map_err(|e| refused(&e)),
        Resource::DiskServer(server) => disk_server::release(server).map_err(|e| refused(&e)),
        Resource::Process(meant) => process::kill(meant).map_err(|e| refused(&e)),
        Resource::NetworkDevice(name) => remove_tap(name).map_err(|e| refused(&e)),
        Resource::Rules(name) => remove_rules(name).map_err(|e| refused(&e)),
        Resource::SwitchPort(_) => Err(refused(&"which Open vSwitch has it is not known here")),
        Resource::Socket(path) => remove_socket(Path::new(path)).map_err(|e| refused(&e)),
        Resource::ControlGroup(name) => end_group(name).map_err(|e| refused(&e)),
        Resource::Directory(path) => remove_directory(Path::new(path)).map_err(|e| refused(&e)),
    }
}

fn detach(device: &LoopId) -> Result<bool, LoopError> {
    let (number, file) = device.meant();
    match loopdev::detach(number, file) {
        Ok(Detached::Done | Detached::WhenClosed) => Ok(true),
        // Somebody else's by now: ours is gone.
        Ok(Detached::AlreadyFree) | Err(LoopError::Foreign { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

fn remove_tap(name: &str) -> Result<bool, Box<dyn std::error::Error>> {
    let name: IfName = name.parse()?;
    let mut netlink = Netlink::open()?;
    match netlink.link_by_name(&name)? {
        Some(link) if link.kind.as_deref() == Some(TAP_KIND) => Ok(netlink.remove(&link).map(|()| true)?),
        Some(_) => Err("it is not a tap".into()),
        None => Ok(false),
    }
}

/// Removes the port of an interface from an Open vSwitch; whether there was one. A switch that is not installed has none.
///
/// # Errors
/// [`HostError`].
pub fn remove_port(socket: &Path, interface: &str) -> Result<bool, HostError> {
    let refused = |why: &dyn std::fmt::Display| HostError::Unusable {
        class: "leftover",
        text: format!("port {interface} of an Open vSwitch cannot be removed: {why}"),
    };
    let name: IfName = interface.parse().map_err(|e| refused(&e))?;
    match ovsdb::remove_port(socket, &name) {
        Err(OvsError::Socket { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map_err(|e| refused(&e)),
    }
}

fn remove_rules(interface: &str) -> Result<bool, Box<dyn std::error::Error>> {
    Ok(nftables::unlock(&interface.parse()?)?)
}

/// Processes of a killed group end a little later, and the group cannot be removed before: its `cgroup.events` tells.
pub(super) fn end_group(name: &str) -> io::Result<bool> {
    let Some(group) = Cgroup::find(name) else { return Ok(false) };
    group.kill()?;
    let deadline = Instant::now() + KILL_LIMIT;
    let events = fs::File::open(group.path().join("cgroup.events"))?;
    loop {
        match group.remove() {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
            other => return other.map(|()| true),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let limit = PollTimeout::try_from(left).map_err(io::Error::other)?;
        // A change is told as an exceptional condition, once it has been read.
        io::copy(&mut &events, &mut io::sink())?;
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], limit)?;
    }
}

/// Only a path that the daemon can have written: absolute, without steps up, not near the root.
fn plausible(path: &Path) -> io::Result<()> {
    let mut names = path.components();
    let fine = names.next() == Some(Component::RootDir)
        && path.components().count() > LEAST_DEPTH
        && names.all(|name| matches!(name, Component::Normal(_)));
    if fine { Ok(()) } else { Err(io::Error::other("this is no path that the daemon makes")) }
}

/// Removes a socket; whether it was there.
///
/// # Errors
/// The kernel's, and for what is no socket.
pub fn remove_socket(path: &Path) -> io::Result<bool> {
    plausible(path)?;
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).map(|()| true),
        Ok(_) => Err(io::Error::other("it is not a socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// What is in it was written by a process that is assumed hostile: links in it are removed, not followed.
fn remove_directory(path: &Path) -> io::Result<bool> {
    plausible(path)?;
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).map(|()| true),
        Ok(_) => Err(io::Error::other("it is not a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::journal::ProcessId;

    fn text(path: &Path) -> String {
        path.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_directory_goes_with_what_is_in_it_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("a/root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("dev")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        let resource = Resource::Directory(text(&root));
        assert!(release(&resource).unwrap());
        assert!(!root.exists() && outside.join("kept").exists());
        assert!(!release(&resource).unwrap());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&outside, &link).unwrap();
        assert!(release(&Resource::Directory(text(&link))).is_err());
        assert!(outside.join("kept").exists());
    }

    #[test]
    fn paths_the_daemon_does_not_make_are_left_alone() {
        for path in ["", "/", "/run", "/run/xenopsd", "run/a/b/c", "/run/xenopsd/../../etc", "/run/./../x/y"]
        {
            assert!(release(&Resource::Directory(path.to_owned())).is_err(), "{path}");
            assert!(release(&Resource::Socket(path.to_owned())).is_err(), "{path}");
        }
    }

    #[test]
    fn only_a_socket_is_removed_as_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let path = dir.path().join("a/socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(release(&Resource::Socket(text(&path))).unwrap());
        drop(listener);
        assert!(!release(&Resource::Socket(text(&path))).unwrap());
        fs::write(&path, "a file").unwrap();
        assert!(release(&Resource::Socket(text(&path))).is_err() && path.exists());
    }

    #[test]
    fn what_is_not_there_is_nothing_to_give_back() {
        let nobody = ProcessId { pid: 1 << 30, started: 1, uid: 1, role: "qemu".to_owned() };
        assert!(!release(&Resource::Process(nobody)).unwrap());
        assert!(!release(&Resource::Domain).unwrap());
    }

    #[test]
    fn the_loopback_device_is_no_tap() {
        assert!(release(&Resource::NetworkDevice("lo".to_owned())).is_err());
        assert!(release(&Resource::NetworkDevice("no/name".to_owned())).is_err());
        assert!(!release(&Resource::NetworkDevice("tap-nobody".to_owned())).unwrap());
    }
}
