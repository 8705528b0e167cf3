//! The daemon's shared state, and the road from a request to a running operation.
//!
//! ```text
//!   service ── submit(vm, operation) ──► task ──► queue of that VM ──► perform ──► plan ──► runner ──► atoms
//!   event thread ── "domains changed" ──► which VM's domain began or ended ──► check, on that VM's queue
//!   start-up ── recovery ──► what an earlier daemon left ──► check, on that VM's queue
//! ```

mod change;
mod check;
mod guests;
mod networks;
mod observers;
mod operation;
mod recovery;
mod round;
mod runtime;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use xenstore::Path;

use crate::api::value::Value;
use crate::api::{DynamicId, Error, Int, NumaAffinityPolicy};
use crate::device::sharing::DisksInUse;
use crate::domain::observe;
use crate::edge::{DomId, DomainInfo, Edges, Events, Followed, Tell};
use crate::ops::explain::Traces;
use crate::ops::queue::{Queues, Slot};
use crate::ops::task::{TaskHandle, Tasks};
use crate::ops::timer::Timer;
use crate::ops::updates::Updates;
use crate::ops::wait::Waiting;
use crate::state::Records;
use crate::state::journal::Journal;

pub use change::{VifWish, Wish};
use guests::Guests;
pub use observers::{Observer, Observers, debug_info};
pub use operation::Operation;
pub use runtime::{FrameServer, Runtime, Runtimes, Terminal, TerminalServer};

/// Node of a domain's private tree that is there while its creation or destruction is under way.
pub const PENDING: &str = "xenopsd-pending";

/// Node of a domain's private tree that is there while it is being suspended; its value is the image's path.
pub const SUSPENDING: &str = "xenopsd-suspending";

/// Times that an administrator may set.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long a backend may take to appear or to close.
    pub hotplug: Duration,
    /// How long a guest may take to acknowledge a shutdown request.
    pub shutdown_ack: Duration,
    /// How long a guest may take to acknowledge a suspend request.
    pub suspend_ack: Duration,
    /// How long it may then take to suspend.
    pub suspend: Duration,
    /// How long a device model may take until it is ready.
    pub device_model: Duration,
    /// How long one call of the storage layer's program may take.
    pub storage: Duration,
    /// How long a guest may take to give memory back, or to take it.
    pub balloon: Duration,
    /// How long a destroyed domain may stay a zombie before the operation ends without it.
    pub zombie: Duration,
    /// A guest that reboots itself sooner than this after its start waits before it is started again.
    pub least_uptime: Duration,
    /// That wait.
    pub reboot_pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            hotplug: Duration::from_secs(60),
            shutdown_ack: Duration::from_secs(60),
            suspend_ack: Duration::from_secs(30),
            suspend: Duration::from_secs(1200),
            // As xapi's xenopsd has it.
            device_model: Duration::from_secs(300),
            storage: Duration::from_secs(120),
            balloon: Duration::from_secs(60),
            zombie: Duration::from_secs(30),
            // Both as xapi's xenopsd has them, too.
            least_uptime: Duration::from_secs(120),
            reboot_pause: Duration::from_secs(15),
        }
    }
}

/// Everything the threads share.
pub struct Core {
    /// Stored VMs and devices.
    pub records: Records,
    /// What of the host is taken, and for which VM.
    pub journal: Journal,
    /// The machine.
    pub edges: Edges,
    /// Watches.
    pub events: Events,
    /// The change feed.
    pub updates: Updates,
    /// Tasks.
    pub tasks: Tasks,
    /// What is to be done later.
    pub timer: Timer,
    /// Per-VM queues.
    pub queues: Queues,
    /// What is known of VMs only while this process runs.
    pub runtimes: Runtimes,
    /// Disks that VMs have.
    pub disks: DisksInUse,
    /// What each VM's last operation did.
    pub traces: Traces,
    /// Limits of waits.
    pub patience: Patience,
    /// Fresh for every run, so that clients notice a restart.
    pub instance_id: String,
    /// What clients ask of tracing.
    pub observers: Observers,
    /// How clients want memory to be placed.
    numa_policy: Mutex<Option<NumaAffinityPolicy>>,
    /// This.
    pub(crate) me: Weak<Self>,
    /// Follows what guests tell of themselves.
    guests: Guests,
    /// Follows what somebody else does to networks.
    networks: OnceLock<Followed>,
    /// Domains as last seen, to tell which began or ended.
    seen: Mutex<Vec<Seen>>,
}

/// The part of a domain's state whose change means something to its VM.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Seen {
    domid: DomId,
    uuid: [u8; 16],
    dying: bool,
    stopped: bool,
}

impl Core {
    /// Puts the parts together and begins to follow domains.
    ///
    /// # Errors
    /// When the event thread has ended or Xen does not answer.
    pub fn start(
        records: Records,
        edges: Edges,
        events: Events,
        workers: usize,
        patience: Patience,
    ) -> Result<Arc<Self>, Error> {
        let timer = Timer::start();
        let updates = Updates::new(timer.clone());
        let journal = Journal::open(records.root())?;
        let (guests, news) = Guests::new();
        let core = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            records,
            journal,
            edges,
            events,
            tasks: Tasks::new(updates.clone()),
            updates,
            timer,
            queues: Queues::new(workers),
            runtimes: Runtimes::default(),
            disks: DisksInUse::default(),
            traces: Traces::default(),
            patience,
            instance_id: uuid::Uuid::new_v4().to_string(),
            observers: Observers::default(),
            numa_policy: Mutex::default(),
            guests,
            networks: OnceLock::new(),
            seen: Mutex::default(),
        });
        guests::start(&core, news)?;
        if let Some(following) = networks::follow(&core) {
            let _ = core.networks.set(following);
        }
        core.follow_domains()?;
        Ok(core)
    }

    /// Queues an operation and returns its task.
    ///
    /// # Errors
    /// `Does_not_exist` for an unknown VM; `Internal_error` when too much is queued.
    pub fn submit(self: &Arc<Self>, vm: &str, dbg: &str, operation: Operation) -> Result<String, Error> {
        if !matches!(operation, Operation::ImportMetadata(_)) {
            self.records.need_vm(vm)?;
        }
        let task = self.tasks.create(dbg);
        let id = task.id().to_owned();
        let end = TaskEnd { tasks: self.tasks.clone(), task: Some(task.clone()), then: None };
        self.enqueue(vm, operation, task, end).map(|()| id)
    }

    /// Queues an operation whose outcome, also that it could not be queued, goes to `then` instead of to a task the
    /// client has to destroy.
    pub fn submit_then(
        self: &Arc<Self>,
        vm: &str,
        dbg: &str,
        operation: Operation,
        then: impl FnOnce(Result<(), Error>) + Send + 'static,
    ) {
        let task = self.tasks.create_unowned(dbg);
        let end = TaskEnd { tasks: self.tasks.clone(), task: Some(task.clone()), then: Some(Box::new(then)) };
        if let Err(error) = self.enqueue(vm, operation, task, end) {
            tracing::error!(%vm, %error, "an operation could not be queued");
        }
    }

    /// Queues a look at a VM's domain that nobody waits for. One that is queued and has not begun stands for all that are
    /// asked for meanwhile.
    pub fn check_soon(self: &Arc<Self>, vm: &str, dbg: &'static str) {
        let (core, id) = (Arc::clone(self), vm.to_owned());
        let job = Box::new(move |slot: &Slot| {
            let task = core.tasks.create_unowned(dbg);
            let mut end = TaskEnd { tasks: core.tasks.clone(), task: Some(task.clone()), then: None };
            core.carry_out(&id, &Operation::Check, &task, slot, &mut end);
        });
        if let Err(error) = self.queues.push(vm, Some("check"), job) {
            tracing::error!(%vm, %error, "a look at its domain could not be queued");
        }
    }

    fn enqueue(
        self: &Arc<Self>,
        vm: &str,
        operation: Operation,
        task: TaskHandle,
        mut end: TaskEnd,
    ) -> Result<(), Error> {
        let (core, id) = (Arc::clone(self), vm.to_owned());
        let job = Box::new(move |slot: &Slot| core.carry_out(&id, &operation, &task, slot, &mut end));
        self.queues.push(vm, None, job)
    }

    /// Runs an operation on its VM's thread; clients are told to look at the VM when it is over.
    fn carry_out(&self, vm: &str, operation: &Operation, task: &TaskHandle, slot: &Slot, end: &mut TaskEnd) {
        let (words, trace) = debug_info(task.dbg());
        let span = tracing::info_span!("task", dbg = words, trace);
        let outcome = span.in_scope(|| self.perform(vm, operation, task, slot));
        if let Err(error) = &outcome {
            tracing::warn!(vm, task = task.id(), %error, "{operation} failed");
        }
        end.end(outcome, self.records.objects(vm));
    }

    /// Tells clients to look at a VM and its devices again.
    pub fn announce(&self, vm: &str) {
        self.updates.add_all(self.records.objects(vm));
    }

    /// The VM's domain, found by the handle the hypervisor keeps: domids are reused, UUIDs are not.
    ///
    /// # Errors
    /// When the hypervisor does not answer.
    pub fn domain_of(&self, vm: &str) -> Result<Option<DomainInfo>, Error> {
        let Ok(uuid) = uuid::Uuid::try_parse(vm) else { return Ok(None) };
        let ours = |d: &DomainInfo| d.uuid == *uuid.as_bytes() && !d.dying;
        let hypervisor = self.edges.hypervisor()?;
        // Nearly always it is the one of last time, and one domain is found sooner than all are listed.
        if let Some(domid) = self.runtimes.with(vm, |r| r.domid)
            && let Some(domain) = hypervisor.domain(domid)?.filter(ours)
        {
            return Ok(Some(domain));
        }
        Ok(hypervisor.domains()?.into_iter().find(ours))
    }

    /// How clients want memory of VMs to be placed; none for the daemon's own default. It is kept for when placement is
    /// done; until then the hypervisor places all memory as it likes.
    pub fn numa_policy(&self) -> Option<NumaAffinityPolicy> {
        *self.numa_policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets [`Core::numa_policy`].
    pub fn set_numa_policy(&self, policy: Option<NumaAffinityPolicy>) {
        *self.numa_policy.lock().unwrap_or_else(PoisonError::into_inner) = policy;
    }

    /// What a step of `task` waits with.
    pub fn waiting<'a>(&'a self, task: Option<&'a TaskHandle>, slot: &'a Slot) -> Waiting<'a> {
        Waiting { events: &self.events, task, slot }
    }

    /// Domains begin and end without being asked: xenstored says when, the hypervisor says which.
    fn follow_domains(self: &Arc<Self>) -> Result<(), Error> {
        let (look, looks) = crossbeam::channel::bounded(1);
        for special in ["@introduceDomain", "@releaseDomain"] {
            let look = look.clone();
            let path = Path::new(special).map_err(|e| Error::internal(e.to_string()))?;
            // Full means that a look is due already.
            self.events.always(&path, move || {
                let _ = look.try_send(());
            })?;
        }
        self.recover()?;
        let core = Arc::downgrade(self);
        let follow = move || {
            while looks.recv().is_ok() {
                let Some(core) = core.upgrade() else { return };
                if let Err(error) = core.look_at_domains() {
                    tracing::error!(%error, "domains cannot be listed; the next change is awaited");
                }
            }
        };
        std::thread::Builder::new()
            .name("domain-events".into())
            .stack_size(crate::ops::WORKER_STACK)
            .spawn(follow)
            .map_err(|e| Error::internal(format!("no thread for domain events: {e}")))?;
        Ok(())
    }

    /// Looks at a VM at `at`, if this still runs then.
    pub fn check_at(&self, vm: &str, at: Instant) {
        let (core, vm) = (Weak::clone(&self.me), vm.to_owned());
        self.timer.at(at, move || {
            if let Some(core) = core.upgrade() {
                core.submit_then(&vm, "due", Operation::Check, |_| ());
            }
        });
    }

    /// What is called when a VM's terminal server has ended: it is not offered to viewers any more, and the VM is looked
    /// at.
    pub fn on_terminal_end(&self, vm: &str, pid: Int) -> Tell {
        let (core, vm) = (Weak::clone(&self.me), vm.to_owned());
        Box::new(move || {
            let Some(core) = core.upgrade() else { return };
            let ended = core.runtimes.with(&vm, |r| r.terminal.server.take_if(|server| server.pid == pid));
            if ended.is_some() {
                tracing::warn!(%vm, pid, "the terminal server has ended");
                core.submit_then(&vm, "terminal server", Operation::Check, |_| ());
            }
        })
    }

    /// What is called when a guest, or a toolstack, may have changed a state of a VM's frame buffer: the VM is looked at, in
    /// a moment and not too often.
    pub fn on_frame_buffer_change(&self, vm: &str) -> impl Fn() + Clone + Send + 'static {
        let (core, vm) = (Weak::clone(&self.me), vm.to_owned());
        move || {
            let Some(strong) = core.upgrade() else { return };
            let due = strong.runtimes.with(&vm, |r| r.frame_buffer.looks.changed(Instant::now()));
            let Some(at) = due else { return };
            let (core, vm) = (Weak::clone(&core), vm.clone());
            strong.timer.at(at, move || {
                let Some(core) = core.upgrade() else { return };
                core.runtimes.with(&vm, |r| r.frame_buffer.looks.begin());
                core.check_soon(&vm, "frame buffer");
            });
        }
    }

    /// What is called when the server of a VM's frame buffer has ended: it is not offered to viewers any more, and the VM is
    /// looked at.
    pub fn on_frame_server_end(&self, vm: &str, pid: Int) -> Tell {
        let (core, vm) = (Weak::clone(&self.me), vm.to_owned());
        Box::new(move || {
            let Some(core) = core.upgrade() else { return };
            let ended =
                core.runtimes.with(&vm, |r| r.frame_buffer.server.take_if(|server| server.pid == pid));
            if ended.is_some() {
                tracing::warn!(%vm, pid, "the server of the frame buffer has ended");
                core.submit_then(&vm, "frame buffer", Operation::Check, |_| ());
            }
        })
    }

    /// A domain that was suspended runs on. Nobody is told of that, but its next stop must be news again.
    pub fn runs_on(&self, domid: DomId) {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).retain(|seen| seen.domid != domid);
    }

    /// Follows what the guests of these domains tell, as far as they run.
    fn follow_guests(&self, domains: &[DomainInfo]) {
        let living = domains.iter().filter(|domain| !domain.dying && observe::is_built(domain));
        self.guests.follow(living.map(|domain| (domain.domid, vm_of(domain))).collect());
    }

    fn look_at_domains(self: &Arc<Self>) -> Result<(), Error> {
        let (before, now) = {
            // Held while they are listed: what is said to run on meanwhile is not overwritten with what it was.
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let domains = self.edges.hypervisor()?.domains()?;
            self.follow_guests(&domains);
            let now: Vec<Seen> = domains.iter().map(Seen::of).collect();
            (std::mem::replace(&mut *seen, now.clone()), now)
        };
        let [before, now] = [&before, &now].map(|all| all.iter().collect::<HashSet<_>>());
        let changed = before.symmetric_difference(&now);
        let mut vms: Vec<String> =
            changed.map(|d| uuid::Uuid::from_bytes(d.uuid).hyphenated().to_string()).collect();
        vms.sort();
        vms.dedup();
        for vm in vms.into_iter().filter(|vm| self.records.has_vm(vm)) {
            self.check_soon(&vm, "domain event");
        }
        Ok(())
    }

    /// Keeps what is seen now; what was seen before.
    fn seen(&self, now: Vec<Seen>) -> Vec<Seen> {
        std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), now)
    }
}

/// The VM whose domain it would be.
fn vm_of(domain: &DomainInfo) -> String {
    uuid::Uuid::from_bytes(domain.uuid).hyphenated().to_string()
}

impl Seen {
    fn of(domain: &DomainInfo) -> Self {
        Self {
            domid: domain.domid,
            uuid: domain.uuid,
            dying: domain.dying,
            stopped: domain.shutdown.is_some(),
        }
    }
}

type Then = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Ends a task exactly once, also when its job panics or is never run.
struct TaskEnd {
    tasks: Tasks,
    task: Option<TaskHandle>,
    then: Option<Then>,
}

impl TaskEnd {
    /// Clients are told to look at what may have `changed`, too.
    fn end(&mut self, outcome: Result<(), Error>, changed: Vec<DynamicId>) {
        let Some(task) = self.task.take() else { return };
        self.tasks.finish(&task, outcome.clone().map(|()| None::<Value>), changed);
        if let Some(then) = self.then.take() {
            then(outcome);
        }
    }
}

impl Drop for TaskEnd {
    fn drop(&mut self) {
        let why = "the operation could not be run to its end; the daemon's log says why";
        self.end(Err(Error::internal(why)), Vec::new());
    }
}
