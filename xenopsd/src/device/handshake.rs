//! The toolstack's half of the xenbus handshake, the same for every device class.
//!
//! ```text
//!   nodes written (both ends Initialising)
//!        │ kernel or QEMU finds the backend directory
//!        ▼
//!   backend InitWait ──► host side set up, `hotplug-status` = connected ──► the guest connects when it runs
//!        │
//!        └── Closing/Closed, or gone: refused; the error nodes say why
//!
//!   unplug:  online=0, backend Closing, frontend hidden ──► backend Closed ──► nodes removed
//! ```

use std::time::Instant;

use xenstore::layout::{DeviceAddress, DeviceStatus, XenbusState, printable};

use super::Plug;
use crate::api::Error;
use crate::ops::wait::Ended;

/// Waits until the backend driver has taken the device up.
pub(super) fn backend_ready(plug: &Plug<'_>, address: DeviceAddress) -> Result<(), Error> {
    let patience = plug.core.patience.hotplug;
    let failure = |why: &str| Error::internal(format!("VM {}: {address}: {why}", plug.vm));
    let taken_up = || {
        let status = address.status(&mut *plug.core.edges.store()?)?;
        match status.backend {
            Some(XenbusState::InitWait | XenbusState::Initialised | XenbusState::Connected) => Ok(Some(())),
            Some(XenbusState::Closing | XenbusState::Closed) | None => Err(failure(&complaint(&status))),
            Some(_) => Ok(None),
        }
    };
    let waited = plug.waiting.until(&[address.backend_state()], Instant::now() + patience, taken_up);
    waited.map_err(|ended| match ended {
        Ended::TimedOut => failure(&format!(
            "no backend driver took it up within {} s; is the driver loaded (xen-blkback, xen-netback)?",
            patience.as_secs()
        )),
        Ended::Failed(error) => error,
    })
}

/// What the backend, or hotplug, said when it gave up.
fn complaint(status: &DeviceStatus) -> String {
    match status.backend_error.as_ref().or(status.hotplug_error.as_ref()) {
        Some(text) => format!("its backend refused it: {}", printable(text)),
        None => "its backend refused it without a reason; see dom0's kernel log".to_owned(),
    }
}
