//! Asking a guest to go down, in its own time but not for ever.
//!
//! ```text
//!   write control/shutdown ─► guest empties it (acknowledged) ─► domain stops
//!            └── not within the acknowledgement time: Failed_to_acknowledge_shutdown_request
//!                                  └── not within the whole time: Failed_to_shutdown
//! ```

use std::time::{Duration, Instant};

use xenstore::{Batch, Operations, Path};

use super::VmExecutor;
use crate::api::Error;
use crate::edge::DomId;
use crate::ops::plan::ShutdownRequest;
use crate::ops::wait::Ended;

/// Why a guest did not do as it was asked.
pub(super) enum Refused {
    /// It never looked at the request, which is still there.
    NotAcknowledged,
    /// It took the request and did not stop in time.
    NotInTime,
    /// The wait was cancelled, or the machine failed.
    Failed(Error),
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl VmExecutor<'_> {
    pub(super) fn request_shutdown(&self, what: ShutdownRequest, timeout: Duration) -> Result<(), Error> {
        let word = match what {
            ShutdownRequest::Poweroff => "poweroff",
            ShutdownRequest::Reboot => "reboot",
        };
        let ack = timeout.min(self.core.patience.shutdown_ack);
        let domid = self.domid()?;
        let mut request = Batch::new();
        request.write(control(domid)?, word);
        self.ask(domid, &request, ack, timeout).map_err(|refused| match refused {
            Refused::NotAcknowledged => {
                self.withdraw(domid);
                Error::FailedToAcknowledgeShutdownRequest
            }
            Refused::NotInTime => {
                Error::FailedToShutdown { id: self.vm().to_owned(), timeout: timeout.as_secs_f64() }
            }
            Refused::Failed(error) => error,
        })
    }

    /// Makes a `request`, which writes a word to the guest's `control/shutdown`, and waits until it has stopped, for
    /// whatever reason. It has `ack` to take the request, and `all` from the beginning to stop.
    pub(super) fn ask(
        &self,
        domid: DomId,
        request: &Batch,
        ack: Duration,
        all: Duration,
    ) -> Result<(), Refused> {
        let started = Instant::now();
        if self.stopped(domid)? {
            return Ok(());
        }
        let node = control(domid)?;
        self.core.edges.store()?.commit(request).map_err(Error::from)?;
        let waiting = self.core.waiting(Some(self.task), self.slot);
        let watched = [node.clone(), released()?];
        waiting
            .until(&watched, started + ack, || {
                // A guest may stop without ever touching the node.
                let acknowledged = self.core.edges.store()?.read(&node)?.is_none_or(|v| v.is_empty());
                Ok((acknowledged || self.stopped(domid)?).then_some(()))
            })
            .map_err(|ended| match ended {
                Ended::TimedOut => Refused::NotAcknowledged,
                Ended::Failed(error) => Refused::Failed(error),
            })?;
        self.until_stopped(domid, started + all)
    }

    /// Waits until it has stopped, for whatever reason, but no longer than that.
    pub(super) fn until_stopped(&self, domid: DomId, deadline: Instant) -> Result<(), Refused> {
        let waiting = self.core.waiting(Some(self.task), self.slot);
        let stopped = waiting.until(&[released()?], deadline, || Ok(self.stopped(domid)?.then_some(())));
        stopped.map_err(|ended| match ended {
            Ended::TimedOut => Refused::NotInTime,
            Ended::Failed(error) => Refused::Failed(error),
        })
    }

    /// A request nobody took must not take effect later, when nobody expects it.
    fn withdraw(&self, domid: DomId) {
        let withdrawn =
            control(domid).and_then(|node| self.core.edges.store()?.write(&node, "").map_err(Error::from));
        if let Err(error) = withdrawn {
            tracing::warn!(vm = self.vm(), %error, "the shutdown request could not be withdrawn");
        }
    }

    fn stopped(&self, domid: DomId) -> Result<bool, Error> {
        let domain = self.core.edges.hypervisor()?.domain(domid)?;
        Ok(domain.is_none_or(|d| d.shutdown.is_some() || d.dying))
    }
}

/// What changes when a domain stops.
fn released() -> Result<Path, Error> {
    Ok(Path::new("@releaseDomain").map_err(xenstore::Error::from)?)
}

/// Where a guest is asked.
pub(super) fn control(domid: DomId) -> Result<Path, Error> {
    Ok(Path::new(&format!("/local/domain/{domid}/control/shutdown")).map_err(xenstore::Error::from)?)
}
