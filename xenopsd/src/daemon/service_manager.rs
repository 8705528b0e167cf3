//! Telling the service manager that started the daemon, such as systemd, how far it is: sd_notify(3).

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Names the socket that it listens on; absent when nobody does.
const SOCKET: &str = "NOTIFY_SOCKET";

/// The one that started us, if it wants to know.
pub(super) struct ServiceManager(Option<(UnixDatagram, SocketAddr)>);

impl ServiceManager {
    /// The one of this process's environment. A socket that cannot be is as none: the daemon runs without.
    pub(super) fn from_environment() -> Self {
        let name = std::env::var_os(SOCKET);
        Self(name.and_then(|name| match connect(&name) {
            Ok(manager) => Some(manager),
            Err(error) => {
                tracing::warn!(?name, %error, "{SOCKET} is not told anything");
                None
            }
        }))
    }

    /// Tells it a variable, such as `READY=1`.
    pub(super) fn tell(&self, variable: &str) {
        let Some((socket, address)) = &self.0 else { return };
        if let Err(error) = socket.send_to_addr(variable.as_bytes(), address) {
            tracing::warn!(%error, "the service manager cannot be told {variable}");
        }
    }
}

/// A path, or with `@` in front a name in the abstract namespace.
fn connect(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not listen is not waited for.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(name: &str, address: &SocketAddr) -> String {
        let listener = UnixDatagram::bind_addr(address).unwrap();
        ServiceManager(Some(connect(OsStr::new(name)).unwrap())).tell("READY=1");
        let mut buffer = [0; 64];
        let length = listener.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn paths_and_abstract_names_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notify");
        let address = SocketAddr::from_pathname(&path).unwrap();
        assert_eq!(heard(path.to_str().unwrap(), &address), "READY=1");
        let name = format!("xenopsd-test-{}", std::process::id());
        assert_eq!(heard(&format!("@{name}"), &SocketAddr::from_abstract_name(&name).unwrap()), "READY=1");
    }

    #[test]
    fn a_manager_that_is_not_there_is_no_reason_to_stop() {
        ServiceManager(Some(connect(OsStr::new("/nonexistent/notify")).unwrap())).tell("READY=1");
        ServiceManager(None).tell("READY=1");
        assert!(connect(OsStr::new("vsock:2:1")).is_err());
    }
}
