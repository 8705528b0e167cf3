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
//!   unplug:  the guest is done connecting ──► online=0, backend Closing ──► it closes ──► backend Closed ──► nodes removed
//!                 │                                                           └── it says why not, or takes too long: refused
//!                 ├── it has no driver, or is not asked: the frontend is hidden, and the backend closes by itself
//!                 └── dom0 has no driver: it is Closed at once
//! ```

use std::time::{Duration, Instant};

use xenstore::layout::{DeviceAddress, DeviceKind, DeviceStatus, XenbusState, printable};
use xenstore::{Batch, Operations, Path};

use super::storage::{self, Purpose};
use super::{Plug, qos, served, vif};
use crate::api::Error;
use crate::ops::plan::Unplugging;
use crate::ops::wait::Ended;

/// Waits until the backend driver has taken the device up.
pub(super) fn backend_ready(plug: &Plug<'_>, address: DeviceAddress) -> Result<(), Error> {
    let patience = plug.core.patience.hotplug;
    let failure = |why: &str| Error::internal(format!("VM {}: {address}: {why}", plug.vm));
    let taken_up = || {
        let [backend] = values(plug, &[address.backend_state()])?;
        match state(backend) {
            Some(XenbusState::InitWait | XenbusState::Initialised | XenbusState::Connected) => Ok(Some(())),
            Some(XenbusState::Closing | XenbusState::Closed) | None => {
                Err(failure(&complaint(&address.status(&mut *plug.core.edges.store()?)?)))
            }
            Some(_) => Ok(None),
        }
    };
    let waited = plug.waiting.until_changed(&[address.backend_state()], Instant::now() + patience, taken_up);
    waited.map_err(|ended| match ended {
        Ended::TimedOut => failure(&format!(
            "no backend driver took it up within {} s; is the driver loaded (xen-blkback, xen-netback)?",
            patience.as_secs()
        )),
        Ended::Failed(error) => error,
    })
}

/// The state that a node says its end is in.
fn state(value: Option<Vec<u8>>) -> Option<XenbusState> {
    value.map(|state| XenbusState::from_value(&state))
}

/// What nodes say, in one round trip.
fn values<const N: usize>(plug: &Plug<'_>, nodes: &[Path; N]) -> Result<[Option<Vec<u8>>; N], Error> {
    let mut values = plug.core.edges.store()?.read_all(nodes)?.into_iter();
    Ok(std::array::from_fn(|_| values.next().flatten()))
}

/// What the backend, or hotplug, said when it gave up.
fn complaint(status: &DeviceStatus) -> String {
    match status.backend_error.as_ref().or(status.hotplug_error.as_ref()) {
        Some(text) => format!("its backend refused it: {}", printable(text)),
        None => "its backend refused it without a reason; see dom0's kernel log".to_owned(),
    }
}

/// How long a guest that is connecting to a device is let go on before the device is taken away: drivers do it within
/// milliseconds, and Linux' (6.1) stumble when a device goes in the middle of it.
const SETTLE: Duration = Duration::from_secs(10);

/// Takes a device away from a running guest, and what dom0 holds of it. One that is not there is fine. `id` names it in
/// errors.
///
/// # Errors
/// `Device_detach_rejected` when the guest does not let go, `Internal_error` when the backend does not.
pub fn unplug(plug: &Plug<'_>, address: DeviceAddress, id: &str, how: Unplugging) -> Result<(), Error> {
    let settled = if how == Unplugging::Clean { settled(plug, address)? } else { Settled::Untaken };
    let (how, said_before) = match settled {
        Settled::Taken { said } => (how, said),
        Settled::Untaken => (Unplugging::Forced, None),
    };
    request_close(plug, address, how)?;
    let closed = Closing { plug, address, how, said_before }.wait();
    if let Err(gone @ Gone::Domain) = closed {
        tracing::info!(vm = plug.vm, %address, "{gone}");
        return unplug(plug, address, id, Unplugging::Forced);
    }
    closed.map_err(|gone| gone.into_error(plug, address, id, how))?;
    if address.kind == DeviceKind::Vif {
        vif::end(plug.core, plug.domid, address, plug.waiting)?;
    }
    plug.core.edges.store()?.commit(&address.remove())?;
    // Only now: a loop device must not be freed while its backend could still be asked to write.
    plug.core.runtimes.with(plug.vm, |r| r.kept.retain(|(kept, _)| *kept != address));
    plug.core.disks.release(address);
    qos::forget(plug.core, plug.vm, address);
    if address.kind == DeviceKind::Vif {
        vif::forget_interface(plug.core, plug.vm, plug.domid, address.id)?;
    }
    super::loops::detach(plug.core, plug.vm, address)?;
    if address.kind != DeviceKind::Vbd {
        return Ok(());
    }
    plug.waiting.slot.without(|| {
        // What it has not written back yet it writes to where the storage layer has it.
        served::stop(plug.core, plug.vm, address.id)?;
        storage::detach(plug.core, plug.vm, Purpose::Vbd(address.id))
    })
}

/// What a guest does with a device before it is asked to let go of it.
enum Settled {
    /// It has a driver that took it up, or nobody knows better.
    Taken {
        /// An error of its own that it said before it was asked: a quick guest's answer is news.
        said: Option<Vec<u8>>,
    },
    /// It has none.
    Untaken,
}

/// Whether the guest has a driver that took the device up; if one is about to, that is awaited.
fn settled(plug: &Plug<'_>, address: DeviceAddress) -> Result<Settled, Error> {
    let deadline = Instant::now() + SETTLE.min(plug.core.patience.hotplug);
    let watched = [address.backend_state(), address.frontend().join("state").map_err(xenstore::Error::from)?];
    let [backend, frontend] = watched.clone();
    let nodes = [backend, frontend, address.frontend_error()];
    let look = || -> Result<_, Error> {
        let [backend, frontend, said] = values(plug, &nodes)?;
        Ok(([backend, frontend].map(state), said))
    };
    let settled = plug.waiting.until(&watched, deadline, || {
        let (states, said) = look()?;
        if states == [Some(XenbusState::Connected); 2] {
            plug.core.runtimes.with(plug.vm, |r| r.connected_in = Some(plug.domid));
        }
        let connecting = matches!(
            states,
            [
                Some(XenbusState::InitWait | XenbusState::Initialised | XenbusState::Connected),
                Some(XenbusState::Initialising | XenbusState::Initialised),
            ]
        );
        Ok((!connecting).then_some(Settled::Taken { said }))
    });
    match settled {
        Ok(settled) => Ok(settled),
        Err(Ended::TimedOut) => {
            let ([_, frontend], said) = look()?;
            let untaken = frontend == Some(XenbusState::Initialising);
            Ok(if untaken { Settled::Untaken } else { Settled::Taken { said } })
        }
        Err(Ended::Failed(error)) => Err(error),
    }
}

fn request_close(plug: &Plug<'_>, address: DeviceAddress, how: Unplugging) -> Result<(), Error> {
    let mut store = plug.core.edges.store()?;
    store.transaction(|t| {
        let backend = state(t.read(&address.backend_state())?);
        t.apply(&closing(address, backend, how))
    })?;
    Ok(())
}

/// What asks a backend in this state to close. To be written in the transaction that the state was read in: a driver that has
/// closed meanwhile would not say so again over the request.
///
/// A backend that is not there must not be brought back to life by a write to it. One that no driver has taken up has none to
/// close it; should one do so just now, the device goes all the same, and the driver with it.
pub fn closing(address: DeviceAddress, backend: Option<XenbusState>, how: Unplugging) -> Batch {
    let mut batch = match backend {
        None | Some(XenbusState::Closed) => Batch::new(),
        Some(_) => address.request_close(),
    };
    if backend == Some(XenbusState::Initialising) {
        batch.write(address.backend_state(), XenbusState::Closed.to_value());
    }
    if how == Unplugging::Forced {
        batch.append(address.hide_frontend());
    }
    batch
}

/// Why a backend did not close.
#[derive(Debug, PartialEq, thiserror::Error)]
enum Gone {
    /// The guest said something, which is shown to people only.
    #[error("the guest says: {}", printable(.0))]
    Refused(Vec<u8>),
    /// It took too long.
    #[error("it was not released in time")]
    TimedOut,
    /// The whole domain stopped meanwhile.
    #[error("the guest stopped while it was asked")]
    Domain,
    /// The wait itself failed.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl Gone {
    fn into_error(self, plug: &Plug<'_>, address: DeviceAddress, id: &str, how: Unplugging) -> Error {
        let seconds = plug.core.patience.hotplug.as_secs();
        match self {
            Self::Failed(error) => error,
            _ if how == Unplugging::Forced => Error::internal(format!(
                "VM {}: the backend of {address} did not close within {seconds} s; see dom0's kernel log",
                plug.vm
            )),
            refused => Error::DeviceDetachRejected {
                class: if address.kind == DeviceKind::Vif { "VIF" } else { "VBD" }.to_owned(),
                id: id.to_owned(),
                message: format!("{refused}; it was given {seconds} s, and can be unplugged by force"),
            },
        }
    }
}

/// The wait for a backend to close.
struct Closing<'a> {
    plug: &'a Plug<'a>,
    address: DeviceAddress,
    how: Unplugging,
    /// An error of the guest's from before it was asked.
    said_before: Option<Vec<u8>>,
}

impl Closing<'_> {
    fn wait(&self) -> Result<(), Gone> {
        let released = Path::new("@releaseDomain").map_err(|e| Error::from(xenstore::Error::from(e)))?;
        let watched = [self.address.backend_state(), self.address.frontend_error(), released];
        let deadline = Instant::now() + self.plug.core.patience.hotplug;
        let nodes = [self.address.backend_state(), self.address.frontend_error()];
        let mut refused = None;
        let waited = self.plug.waiting.until_changed(&watched, deadline, || {
            let [backend, says] = values(self.plug, &nodes)?;
            match state(backend) {
                None | Some(XenbusState::Closed) => return Ok(Some(())),
                Some(XenbusState::Closing) => {}
                // A driver that was about to connect has written its state over the request.
                Some(_) => request_close(self.plug, self.address, self.how)?,
            }
            refused = self.refused(says)?;
            Ok(refused.is_some().then_some(()))
        });
        match (waited, refused) {
            (Ok(()), None) => Ok(()),
            (Ok(()), Some(gone)) => Err(gone),
            (Err(Ended::TimedOut), _) => Err(Gone::TimedOut),
            (Err(Ended::Failed(error)), _) => Err(Gone::Failed(error)),
        }
    }

    /// Nobody is waited for who has said no, or cannot answer any more.
    fn refused(&self, says: Option<Vec<u8>>) -> Result<Option<Gone>, Error> {
        if self.how == Unplugging::Forced {
            return Ok(None);
        }
        let domain = self.plug.core.edges.hypervisor()?.domain(self.plug.domid)?;
        if domain.is_none_or(|d| d.dying || d.shutdown.is_some()) {
            return Ok(Some(Gone::Domain));
        }
        let new = says != self.said_before;
        Ok(says.filter(|text| new && !text.is_empty()).map(Gone::Refused))
    }
}
