//! Asking a guest to go down, in its own time but not for ever.
//!
//! ```text
//!   write control/shutdown ─► guest empties it (acknowledged) ─► domain stops
//!            └── not within the acknowledgement time: Failed_to_acknowledge_shutdown_request
//!                                  └── not within the whole time: Failed_to_shutdown
//! ```

use std::time::{Duration, Instant};

use xenstore::{Operations, Path};

use super::VmExecutor;
use crate::api::Error;
use crate::edge::DomId;
use crate::ops::plan::ShutdownRequest;
use crate::ops::wait::Ended;

impl VmExecutor<'_> {
    pub(super) fn request_shutdown(&self, what: ShutdownRequest, timeout: Duration) -> Result<(), Error> {
        let started = Instant::now();
        let domid = self.domid()?;
        if self.stopped(domid)? {
            return Ok(());
        }
        let node = control(domid)?;
        let word = match what {
            ShutdownRequest::Poweroff => "poweroff",
            ShutdownRequest::Reboot => "reboot",
        };
        self.core.edges.store()?.write(&node, word)?;
        let waiting = self.core.waiting(Some(self.task), self.slot);
        let released = Path::new("@releaseDomain").map_err(xenstore::Error::from)?;
        let watched = [node.clone(), released];

        let ack_deadline = started + timeout.min(self.core.patience.shutdown_ack);
        waiting
            .until(&watched, ack_deadline, || {
                // A guest may stop without ever touching the node.
                let acknowledged = self.core.edges.store()?.read(&node)?.is_none_or(|v| v.is_empty());
                Ok((acknowledged || self.stopped(domid)?).then_some(()))
            })
            .map_err(|ended| match ended {
                Ended::TimedOut => {
                    self.withdraw(&node);
                    Error::FailedToAcknowledgeShutdownRequest
                }
                Ended::Failed(error) => error,
            })?;
        waiting.until(&watched, started + timeout, || Ok(self.stopped(domid)?.then_some(()))).map_err(
            |ended| match ended {
                Ended::TimedOut => {
                    Error::FailedToShutdown { id: self.vm().to_owned(), timeout: timeout.as_secs_f64() }
                }
                Ended::Failed(error) => error,
            },
        )
    }

    /// A request nobody took must not take effect later, when nobody expects it.
    fn withdraw(&self, node: &Path) {
        let withdrawn =
            self.core.edges.store().and_then(|mut store| store.write(node, "").map_err(Error::from));
        if let Err(error) = withdrawn {
            tracing::warn!(vm = self.vm(), %error, "the shutdown request could not be withdrawn");
        }
    }

    fn stopped(&self, domid: DomId) -> Result<bool, Error> {
        let domain = self.core.edges.hypervisor()?.domain(domid)?;
        Ok(domain.is_none_or(|d| d.shutdown.is_some() || d.dying))
    }
}

fn control(domid: DomId) -> Result<Path, Error> {
    Ok(Path::new(&format!("/local/domain/{domid}/control/shutdown")).map_err(xenstore::Error::from)?)
}
