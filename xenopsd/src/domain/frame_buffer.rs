//! The frame buffer of a PV or PVH guest: two devices whose backend is a process of ours, `vncterm` in another jail than
//! that of its text, which has the guest's pages mapped and nothing else.
//!
//! ```text
//!   offered (both backends wait) ─► the guest publishes ─► process, waiting ─► journal ─► its word ─► nodes, Connected
//!     the guest's nodes change ───► looked at, a moment later ─► served as they are now, or not at all: Closed
//!     its end ────────────────────► the VM is looked at ─► started again (a few times a minute at most)
//!     a new daemon ───────────────► journal, nodes: the process goes on, if it serves what the guest has still
//! ```
//!
//! The process serves the pages and ports that are in its command line. When the guest has others, another process does:
//! there is no channel by which a running one could be told anything.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use xenstore::Operations;
use xenstore::layout::{
    self, FrameBuffer, FrameBufferSaid, FrameBufferServer, Keyboard, XenbusState, printable,
};

use vncterm::fb::wanted::Wanted;

use super::VmExecutor;
use crate::api::Error;
use crate::core::FrameServer;
use crate::device::{frame_buffer, store_domid};
use crate::edge::linux::frame_buffer::ROLE;
use crate::edge::{DomId, FrameBufferWanted};
use crate::ops::plan::has_frame_buffer;
use crate::state::journal::{ProcessId, Resource};

/// From the guest's first change to the look at it: its two drivers publish theirs one after the other.
const SETTLE: Duration = Duration::from_millis(20);

/// Least time between two looks that a guest's changes cause.
const APART: Duration = Duration::from_secs(1);

impl VmExecutor<'_> {
    /// Writes the nodes of both devices. A guest that goes on from an image does not say again what its pointer is to be like:
    /// its driver asks once, when it starts.
    pub(super) fn offer_frame_buffer(&self) -> Result<(), Error> {
        let domid = self.domid()?;
        let of = store_domid(domid);
        let mut nodes = FrameBuffer { domid: of }.create();
        let absolute = self.absolute_pointer.load(Ordering::Relaxed);
        nodes.append(Keyboard { domid: of }.create(absolute));
        self.core.edges.store()?.commit(&nodes)?;
        self.watch_frame_buffer(domid)
    }

    /// Has the VM looked at when the guest, or a toolstack, changes a state.
    fn watch_frame_buffer(&self, domid: DomId) -> Result<(), Error> {
        let watched = FrameBufferSaid::watched(store_domid(domid));
        let watches = self.core.events.follow(&watched, self.core.on_frame_buffer_change(self.vm()))?;
        self.core.runtimes.with(self.vm(), |r| r.frame_buffer.watches = Some(watches));
        Ok(())
    }

    /// Brings the process and the backends' states in line with what the running guest has published.
    ///
    /// # Errors
    /// When Xen, xenstored or the journal does not answer. What the guest published and cannot be served is no error: its
    /// devices are closed, and the log says why.
    pub(crate) fn tend_frame_buffer(&self) -> Result<(), Error> {
        if !has_frame_buffer(&self.records.vm) {
            return Ok(());
        }
        let domid = self.domid()?;
        if self.core.runtimes.with(self.vm(), |r| r.frame_buffer.watches.is_none()) {
            self.watch_frame_buffer(domid)?;
        }
        let said = self.said(domid)?;
        let wanted = frame_buffer::wanted(domid, &said);
        let mut served = self.served(domid)?;
        if served.is_some() && served != wanted {
            self.stop_server()?;
            served = None;
        }
        let mut failed = false;
        if let (None, Some(wanted)) = (&served, wanted)
            && self
                .may_start(|r| &mut r.frame_buffer.starts, ["the guest's frame buffer was served", "served"])
        {
            match self.start_server(domid, &wanted) {
                Ok(()) => served = Some(wanted),
                Err(error) => {
                    failed = true;
                    let said = printable(error.to_string().as_bytes());
                    tracing::error!(vm = self.vm(), error = said, "the guest's frame buffer is not served");
                    self.stop_server()?;
                }
            }
        }
        let mut next = frame_buffer::states(&said, served.as_ref());
        if failed {
            next = [Some(XenbusState::Closed); 2];
        }
        self.show(domid, next)
    }

    fn said(&self, domid: DomId) -> Result<FrameBufferSaid, Error> {
        let paths = FrameBufferSaid::paths(store_domid(domid));
        Ok(FrameBufferSaid::from_values(self.core.edges.store()?.read_all(&paths)?))
    }

    /// Whether a guest has asked for its pointer's place, which is to be in its image.
    pub(super) fn wants_absolute_pointer(&self, domid: DomId) -> Result<bool, Error> {
        let offered = has_frame_buffer(&self.records.vm);
        Ok(offered && frame_buffer::is_absolute(&self.said(domid)?))
    }

    fn show(&self, domid: DomId, next: [Option<XenbusState>; 2]) -> Result<(), Error> {
        let domid = store_domid(domid);
        let backends = [FrameBuffer { domid }.address(), Keyboard { domid }.address()];
        let mut store = self.core.edges.store()?;
        store.transaction(|t| {
            for (backend, state) in backends.iter().zip(next) {
                // One that went meanwhile must not be brought back to life.
                if let Some(state) = state
                    && t.read(&backend.backend_state())?.is_some()
                {
                    t.write(&backend.backend_state(), state.to_value())?;
                }
            }
            Ok::<_, xenstore::Error>(())
        })?;
        Ok(())
    }

    /// What is served now, by a process of this daemon's or of an earlier one's.
    fn served(&self, domid: DomId) -> Result<Option<Wanted>, Error> {
        if let Some(serves) = self.core.runtimes.with(self.vm(), |r| r.frame_buffer.serves()) {
            return Ok(Some(serves));
        }
        let of = store_domid(domid);
        let values = self.core.edges.store()?.read_all(&FrameBufferServer::paths(of))?;
        let nodes = FrameBufferServer::parse(of, &values);
        for (_, process) in self.core.journal.processes(self.vm(), ROLE) {
            let its = nodes.as_ref().filter(|nodes| Ok(nodes.pid) == u32::try_from(process.pid));
            if let Some(nodes) = its
                && let Ok(serves) = nodes.serves.parse()
                && self.follow_server(&process, nodes.vnc_port, serves)?
            {
                return Ok(Some(serves));
            }
        }
        // There is none, or one that nobody can make use of.
        self.stop_server()?;
        Ok(None)
    }

    fn start_server(&self, domid: DomId, wanted: &Wanted) -> Result<(), Error> {
        let host = self.core.edges.host();
        let socket = match self.core.runtimes.with(self.vm(), |r| r.frame_buffer.socket.take()) {
            Some(socket) => socket,
            None => host.listen_for_frame_buffer()?,
        };
        let port = socket.port;
        let prepared =
            host.start_frame_buffer(&FrameBufferWanted { domid, serves: wanted, socket: &socket })?;
        self.core.runtimes.with(self.vm(), |r| r.frame_buffer.socket = Some(socket));
        let process = prepared.process;
        self.core.journal.take(self.vm(), Resource::Process(process.clone()))?;
        if !self.follow_server(&process, port, *wanted)? {
            return Err(Error::internal("its server ended at once".to_owned()));
        }
        (prepared.go)()?;
        let nodes = FrameBufferServer {
            domid: store_domid(domid),
            vnc_port: port,
            pid: process.number()?,
            serves: wanted.to_string(),
        };
        self.core.edges.store()?.commit(&nodes.create())?;
        self.core.updates.add(crate::api::DynamicId::Vm(self.vm().to_owned()));
        Ok(())
    }

    /// Offers it to viewers until it ends; whether it is there.
    fn follow_server(&self, process: &ProcessId, port: u16, serves: Wanted) -> Result<bool, Error> {
        let pid = process.pid;
        let tell = self.core.on_frame_server_end(self.vm(), pid);
        // Held while it is looked at: an end that is told meanwhile finds it here.
        self.core.runtimes.with(self.vm(), |r| {
            let Some(followed) = self.core.edges.host().follow_process(process, tell)? else {
                return Ok(false);
            };
            r.frame_buffer.server = Some(FrameServer { pid, port, serves, followed });
            Ok(true)
        })
    }

    /// Ends the process, whoever started it; its socket stays, for the next one.
    fn stop_server(&self) -> Result<(), Error> {
        // Not followed any more, so that its end is no news.
        drop(self.core.runtimes.with(self.vm(), |r| r.frame_buffer.server.take()));
        let mut outcome = Ok(());
        for (entry, process) in self.core.journal.processes(self.vm(), ROLE) {
            let ended = self.core.edges.host().release(&Resource::Process(process));
            outcome = outcome
                .and(ended.map_err(Error::from))
                .and_then(|_| self.core.journal.strike(self.vm(), entry));
        }
        if self.ends() {
            return outcome;
        }
        let Some(domain) = self.core.domain_of(self.vm())? else { return outcome };
        let of = store_domid(domain.domid);
        let mut store = self.core.edges.store()?;
        // The node of the process is its own; that of the port may be the terminal server's.
        if store.exists(&FrameBufferServer::paths(of)[0])? {
            store.commit(&layout::FrameBufferServer::remove(of))?;
            self.core.updates.add(crate::api::DynamicId::Vm(self.vm().to_owned()));
        }
        outcome
    }

    /// The end of a domain: the process, and its hold on the guest's pages, before the domain's own; its backends have closed
    /// then, as they were asked to.
    pub(super) fn stop_frame_buffer(&self) -> Result<(), Error> {
        // Its record may say otherwise than when it was started.
        let served = !self.core.journal.processes(self.vm(), ROLE).is_empty();
        let stopped = self.stop_server();
        let known = self.core.runtimes.with(self.vm(), |r| std::mem::take(&mut r.frame_buffer));
        if !served && known.watches.is_none() && !has_frame_buffer(&self.records.vm) {
            return stopped;
        }
        let Some(domid) = self.own_domid()? else { return stopped };
        let said = self.said(domid)?;
        if said.screen_backend.is_none() && said.keyboard_backend.is_none() {
            return stopped;
        }
        stopped.and(self.show(domid, [Some(XenbusState::Closed); 2]))
    }
}

/// Looks that the guest's changes cause: when the next one is.
#[derive(Debug, Default)]
pub struct Looks {
    /// One is to come.
    due: bool,
    last: Option<Instant>,
}

impl Looks {
    /// When to look because of a change; none when that is known already.
    pub fn changed(&mut self, now: Instant) -> Option<Instant> {
        if std::mem::replace(&mut self.due, true) {
            return None;
        }
        let at = self.last.map_or(now + SETTLE, |last| (last + APART).max(now + SETTLE));
        self.last = Some(at);
        Some(at)
    }

    /// It is time: changes from here on are a reason for another.
    pub fn begin(&mut self) {
        self.due = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_changes_all_the_time_is_looked_at_once_a_second() {
        let begin = Instant::now();
        let (mut looks, mut now) = (Looks::default(), begin);
        let mut count = 0;
        for _ in 0..100_000 {
            now += Duration::from_micros(100);
            if let Some(at) = looks.changed(now) {
                assert!(at >= now + SETTLE);
                count += 1;
                now = at;
                looks.begin();
            }
        }
        let most = now.duration_since(begin).as_secs() + 2;
        assert!(count <= most && count > 5, "{count} looks in {most} s");
        assert_eq!(Looks::default().changed(begin), Some(begin + SETTLE), "the first is soon");
    }
}
