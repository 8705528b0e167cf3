//! The terminal server of a guest's text: a process that outlives this daemon. A PV or PVH guest's text is its console's, and
//! shown as a VNC screen too; an HVM guest's is that of its serial port, and kept for who comes later.
//!
//! ```text
//!   start ─► listening ─► process, waiting ─► journal ─► followed ─► its word ─► nodes in the store
//!     its end ─────────► not offered any more ─► the VM is looked at ─► start (a few times a minute at most)
//!     a new daemon ────► journal: pid, start time, owner ─► followed, if the nodes name the same process
//!     suspend ─────────► asked to end: saves its screen ───► resume: begins with it
//! ```
//!
//! The nodes are removed before another process is started and written when it runs, so that those that are there are of
//! the process that the journal names. The listening sockets stay open here from one process to the next: a viewer that
//! comes meanwhile waits, and reaches the same guest.

use std::sync::Arc;
use std::time::{Duration, Instant};

use xenstore::Operations;
use xenstore::layout::{self, domain_path};

use super::VmExecutor;
use crate::api::{BuilderInfo, Error, Vm};
use crate::core::TerminalServer;
use crate::device::store_domid;
use crate::dm::model::Model;
use crate::edge::linux::terminal::ROLE;
use crate::edge::{DomId, TerminalPorts, TerminalSockets, TerminalWanted};
use crate::ops::plan::{Screen, has_frame_buffer, has_terminal, has_text_screen};
use crate::ops::wait::Ended;
use crate::state::journal::{ProcessId, Resource};

/// How long a terminal server may take to save its screen. It takes milliseconds.
const SAVE_LIMIT: Duration = Duration::from_secs(10);

/// Most characters of a VM's name that viewers show.
const MAX_TITLE: usize = 64;

/// Whether viewers may be listened for there: on this host only.
fn check_address(vm: &Vm, what: &str, address: Option<&str>) -> Result<(), Error> {
    match address {
        None | Some("127.0.0.1") => Ok(()),
        Some(other) => Err(Error::internal(format!(
            "VM {}: {what} is {other:?}; consoles are reached through this host only: 127.0.0.1",
            vm.id
        ))),
    }
}

impl VmExecutor<'_> {
    /// What can be found wrong before anything is taken.
    pub(super) fn check_terminal(&self) -> Result<(), Error> {
        let vm = &self.records.vm;
        if !has_terminal(vm) && !has_frame_buffer(vm) {
            return Ok(());
        }
        if let BuilderInfo::Pv(pv) | BuilderInfo::Pvh(pv) | BuilderInfo::PvInPvh(pv) = &vm.ty {
            check_address(vm, "vncterm_ip", pv.vncterm_ip.as_deref().filter(|_| pv.vncterm))?;
            check_address(vm, "framebuffer_ip", pv.framebuffer_ip.as_deref().filter(|_| pv.framebuffer))?;
        }
        Ok(self.core.edges.host().check_terminal()?)
    }

    pub(super) fn start_terminal(&self, screen: Screen) -> Result<(), Error> {
        if self.core.runtimes.with(self.vm(), |r| r.terminal.server.is_some()) {
            return Ok(());
        }
        let domid = self.domid()?;
        let tty = self.wait_for_tty(domid)?;
        let host = self.core.edges.host();
        let sockets = match self.core.runtimes.with(self.vm(), |r| r.terminal.sockets.take()) {
            Some(sockets) => sockets,
            None => host.listen_for_terminal(has_text_screen(&self.records.vm))?,
        };
        let title: String =
            self.records.vm.name.chars().filter(|c| !c.is_control()).take(MAX_TITLE).collect();
        let prepared = host.start_terminal(&TerminalWanted {
            vm: self.vm(),
            domid,
            tty: &tty,
            title: &title,
            screen: &self.core.records.screen(self.vm()),
            restore: screen == Screen::Kept,
            sockets: &sockets,
        })?;
        self.tty_is_its_own()?;
        let ports = sockets.ports;
        let process = prepared.process;
        self.core.journal.take(self.vm(), Resource::Process(process.clone()))?;
        if !self.follow_terminal(&process, ports, Some(sockets))? {
            return Err(Error::internal(format!("VM {}: its terminal server ended at once", self.vm())));
        }
        (prepared.go)()?;
        let nodes = layout::TerminalServer {
            domid: store_domid(domid),
            vnc_port: ports.vnc,
            text_port: ports.text,
            pid: process.number()?,
        };
        Ok(self.core.edges.store()?.commit(&nodes.create())?)
    }

    /// Ends it, whoever started it, and gives its ports up.
    pub(super) fn stop_terminal(&self, screen: Screen) -> Result<(), Error> {
        let given_up = self.core.runtimes.with(self.vm(), |r| std::mem::take(&mut r.terminal));
        // Not followed any more, so that its end is no news.
        drop(given_up);
        let mut outcome = Ok(());
        for (entry, process) in self.core.journal.processes(self.vm(), ROLE) {
            let ended = match screen {
                Screen::Fresh => self.core.edges.host().release(&Resource::Process(process)).map(drop),
                Screen::Kept => self.core.edges.host().stop_process(&process, SAVE_LIMIT).map(|saved| {
                    if !saved {
                        tracing::warn!(vm = self.vm(), "the terminal server did not save its screen");
                    }
                }),
            };
            outcome = outcome
                .and(ended.map_err(Error::from))
                .and_then(|()| self.core.journal.strike(self.vm(), entry));
        }
        if self.ends() {
            return outcome;
        }
        match self.core.domain_of(self.vm())? {
            Some(domain) => outcome.and(self.remove_nodes(domain.domid)),
            None => outcome,
        }
    }

    /// Whether the running guest has no terminal server and should be given one. One that an earlier daemon started is
    /// found here.
    pub(crate) fn lacks_terminal(&self) -> Result<bool, Error> {
        if self.core.runtimes.with(self.vm(), |r| r.terminal.server.is_some())
            || !has_terminal(&self.records.vm)
        {
            return Ok(false);
        }
        let domid = self.domid()?;
        for (entry, process) in self.core.journal.processes(self.vm(), ROLE) {
            if self.adopt(domid, &process)? {
                return Ok(false);
            }
            self.core.edges.host().release(&Resource::Process(process))?;
            self.core.journal.strike(self.vm(), entry)?;
        }
        self.remove_nodes(domid)?;
        // An empty domain has no console yet.
        Ok(self.tty(domid)?.is_some()
            && self.tty_is_its_own().is_ok()
            && self.may_start(|r| &mut r.terminal.restarts, ["the terminal server has ended", "started"]))
    }

    /// A device model's terminal goes with it, and its number may be another guest's then: one that was opened while the
    /// device model runs is the guest's. xenconsoled keeps a console's as long as the domain is there.
    fn tty_is_its_own(&self) -> Result<(), Error> {
        let runs = |model: &Arc<Model>| !model.has_ended();
        match &self.records.vm.ty {
            BuilderInfo::Hvm(_)
                if !self.core.runtimes.with(self.vm(), |r| r.model.as_ref().is_some_and(runs)) =>
            {
                let vm = self.vm();
                Err(Error::internal(format!(
                    "VM {vm}: its device model, which has its serial port, does not run"
                )))
            }
            _ => Ok(()),
        }
    }

    /// Which of the terminal server's nodes are there.
    fn has_screen(&self) -> bool {
        has_text_screen(&self.records.vm)
    }

    /// Whether `process` is there and the nodes are its own; then it is this daemon's from now on.
    fn adopt(&self, domid: DomId, process: &ProcessId) -> Result<bool, Error> {
        let of = store_domid(domid);
        let values =
            self.core.edges.store()?.read_all(&layout::TerminalServer::paths(of, self.has_screen()))?;
        let nodes = layout::TerminalServer::parse(of, &values);
        let Some(nodes) = nodes.filter(|nodes| Ok(nodes.pid) == u32::try_from(process.pid)) else {
            return Ok(false);
        };
        let ports = TerminalPorts { vnc: nodes.vnc_port, text: nodes.text_port };
        self.follow_terminal(process, ports, None)
    }

    /// Offers it to viewers until it ends; whether it is there.
    fn follow_terminal(
        &self,
        process: &ProcessId,
        ports: TerminalPorts,
        sockets: Option<TerminalSockets>,
    ) -> Result<bool, Error> {
        let pid = process.pid;
        let tell = self.core.on_terminal_end(self.vm(), pid);
        // Held while it is looked at: an end that is told meanwhile finds it here.
        self.core.runtimes.with(self.vm(), |r| {
            let Some(followed) = self.core.edges.host().follow_process(process, tell)? else {
                return Ok(false);
            };
            r.terminal.server = Some(TerminalServer { pid, ports, followed });
            r.terminal.sockets = sockets;
            Ok(true)
        })
    }

    fn remove_nodes(&self, domid: DomId) -> Result<(), Error> {
        let mut store = self.core.edges.store()?;
        let of = store_domid(domid);
        let paths = layout::TerminalServer::paths(of, self.has_screen());
        let there = store.read_all(&paths)?.iter().any(Option::is_some);
        if there { Ok(store.commit(&layout::TerminalServer::remove(of, self.has_screen()))?) } else { Ok(()) }
    }

    /// The console's pseudo-terminal, once xenconsoled has made it; the serial port's, once the device model runs.
    fn tty(&self, domid: DomId) -> Result<Option<String>, Error> {
        let path = self.tty_path(domid)?;
        Ok(self.core.edges.store()?.read_str(&path)?.filter(|tty| !tty.is_empty()))
    }

    fn tty_path(&self, domid: DomId) -> Result<xenstore::Path, Error> {
        let of = store_domid(domid);
        match &self.records.vm.ty {
            BuilderInfo::Hvm(_) => Ok(layout::DeviceModel::serial_path(of)),
            _ => Ok(domain_path(of).join("console/tty").map_err(xenstore::Error::from)?),
        }
    }

    fn wait_for_tty(&self, domid: DomId) -> Result<String, Error> {
        let limit = self.core.patience.hotplug;
        let waiting = self.core.waiting(Some(self.task), self.slot);
        let made = waiting.until(&[self.tty_path(domid)?], Instant::now() + limit, || self.tty(domid));
        made.map_err(|ended| match ended {
            Ended::TimedOut => Error::internal(format!(
                "VM {}: the console of domain {domid} has no terminal after {} s; is xenconsoled running?",
                self.vm(),
                limit.as_secs()
            )),
            Ended::Failed(error) => error,
        })
    }
}

/// Where the terminal server of a VM listens, if it runs.
pub(super) fn ports(core: &crate::core::Core, vm: &str) -> Option<TerminalPorts> {
    core.runtimes.with(vm, |r| r.terminal.server.as_ref().map(|server| server.ports))
}
