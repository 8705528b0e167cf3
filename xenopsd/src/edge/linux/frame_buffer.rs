//! Starts the server of a guest's frame buffer: `vncterm` in another jail than that of the guest's text.
//!
//! ```text
//!   this daemon                                             vncterm --frame-buffer (own user, empty root, no network)
//!     opens privcmd and evtchn, restricts both ─ descriptors ─►  0, 1, 2 the daemon   3 VNC   4 privcmd   5 evtchn
//!     ◄──────────────────────────────────────── "ready"  the guest's pages are mapped, privcmd is closed
//!     its root is taken away; the journal is written
//!     a line ───────────────────────────────────────► │  from here on it makes no request but a signal to the guest
//! ```
//!
//! What it says instead of `ready` is why the guest's pages cannot be served.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use ffi::jail::{self, Jail, Limits};
use ffi::restrict::{Driver, restrict_descriptor};

use super::terminal::{LIMITS, TerminalError, TerminalServers, read_password};
use crate::edge::{DomId, FrameBufferWanted, Prepared, ScreenSocket};

/// The role of its entries in the journal.
pub const ROLE: &str = "vfb";

/// Xen's drivers.
const PRIVCMD: &str = "/dev/xen/privcmd";
const EVTCHN: &str = "/dev/xen/evtchn";

impl TerminalServers {
    /// Listens for viewers of a frame buffer.
    ///
    /// # Errors
    /// [`TerminalError::Ports`].
    pub fn listen_for_frame_buffer(&self) -> Result<ScreenSocket, TerminalError> {
        let socket = self.listen_for_viewers(None)?;
        let port = socket.local_addr().map_or(0, |address| address.port());
        Ok(ScreenSocket { port, socket: Some(socket.into()) })
    }

    /// Starts one; it waits for its word.
    ///
    /// # Errors
    /// [`TerminalError`].
    pub fn start_frame_buffer(&self, wanted: &FrameBufferWanted<'_>) -> Result<Prepared, TerminalError> {
        // Not its terminal server's user, whose processes are counted.
        let uid = jail::disk_uid_of(self.uid_base, wanted.domid)?;
        let password = self.password.as_deref().map(read_password).transpose()?;
        let broken = |error: io::Error| self.not_ready(&error);
        let (ours, its) = UnixStream::pair().map_err(broken)?;
        let its = OwnedFd::from(its);
        let socket =
            wanted.socket.socket.as_ref().ok_or_else(|| self.not_ready(&"there is no socket for viewers"))?;
        let privcmd = driver(PRIVCMD, Driver::Privcmd, wanted.domid)?;
        let evtchn = driver(EVTCHN, Driver::Evtchn, wanted.domid)?;
        let mut jail = Jail::new(uid, uid)?
            .system_libraries()
            .limits(Limits { file_size: Some(0), ..LIMITS })
            .descriptor(its.try_clone().map_err(broken)?)
            .descriptor(its.try_clone().map_err(broken)?)
            .descriptor(its);
        for descriptor in [socket.try_clone().map_err(broken)?, privcmd, evtchn] {
            jail = jail.descriptor(descriptor);
        }
        let jail = jail.variable("LISTEN_FDS", "1")?;
        let serves = wanted.serves.to_string();
        let arguments = ["vncterm", "--supervised", "--frame-buffer", &serves];
        self.hold(jail, &arguments, (ours, password), (uid, ROLE))
    }
}

/// An open driver of Xen's that can only touch the domain.
fn driver(path: &str, driver: Driver, domid: DomId) -> Result<OwnedFd, TerminalError> {
    let failed = |source| TerminalError::Driver { path: Path::new(path).to_owned(), domid, source };
    let file = File::options().read(true).write(true).open(path).map_err(failed)?;
    restrict_descriptor(file.as_fd(), driver, domid).map_err(failed)?;
    Ok(file.into())
}
