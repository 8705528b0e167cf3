//! A machine without Xen: the three edges in one process, for people who write management layers and for tests.
//!
//! ```text
//!   Core ──► Edges ──┬─► SimHypervisor ──► Hardware (domains, memory) ◄──┐
//!                    ├─► FaultyStore ────► xenstore::store ◄─────────────┤ World: one thread that plays the
//!                    ├─► SimHost                                         │ backends, the guests and xenconsoled
//!                    └─► every call asks Faults first                    ┘
//! ```
//!
//! What a VM start does is the same code as on real Xen; only what it talks to is not. Backends walk the xenbus
//! states, guests connect their frontends through connections of their own to the store (with a guest's rights and
//! quotas) and obey `control/shutdown`; the delays in between come from a seeded generator.
//!
//! # Scripts
//!
//! What a guest does is chosen per VM by keys of its `xsdata`, which become nodes below `vm-data/sim`:
//!
//! | key | values (the first is the default) | meaning |
//! |---|---|---|
//! | `vm-data/sim/shutdown` | `obey`, `ignore`, `acknowledge`, `silent` | obeys a request; never looks at it; takes it and runs on; stops without taking it |
//! | `vm-data/sim/then` | `run`, `poweroff`, `reboot`, `crash`, `suspend` | what it does by itself after its first boot in this simulator |
//! | `vm-data/sim/then-ms` | number | how long after its boot, in ms |
//! | `vm-data/sim/devices` | `connect`, `ignore`, `hostile` | connects its frontends; leaves them alone; writes nonsense into everything it may write |
//! | `vm-data/sim/flood` | number | how many nodes it writes as fast as it can once it is up |

mod backend;
mod faults;
mod guest;
mod hardware;
mod host;
mod hypervisor;
mod store;
mod terminals;
mod world;

use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Sender, unbounded};
use xenstore::WatchStream;
use xenstore::store::{Listening, SharedStore, listen};

use crate::edge::{DomId, Edges, Events};

pub use faults::{Fault, Faults, When};
pub use hardware::Hardware;
pub use host::Present;
use host::SimHost;
use hypervisor::SimHypervisor;
use store::FaultyStore;
use world::{Signal, World};

/// What machine to simulate.
#[derive(Debug, Clone)]
pub struct SimOptions {
    /// What the delays are drawn from.
    pub seed: u64,
    /// Memory of the host, in MiB, dom0's included.
    pub memory_mib: u64,
    /// Processors of the host.
    pub cpus: u32,
    /// Longest time a backend or a guest takes for one step.
    pub delay: Duration,
    /// Whether consoles are real pseudo-terminals, of which each takes two files; else `/dev/null`.
    pub terminals: bool,
    /// Disks that exist.
    pub disks: Present,
    /// Bridges that exist.
    pub bridges: Present,
    /// Directories of real scripts that are run for events; none are when there is none.
    pub hooks: Option<PathBuf>,
    /// Where the store listens, for tools and `xenops console`; a private directory when none.
    pub store_socket: Option<PathBuf>,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            memory_mib: 64 * 1024,
            cpus: 8,
            delay: Duration::from_millis(20),
            terminals: false,
            disks: Present::All,
            bridges: Present::All,
            hooks: None,
            store_socket: None,
        }
    }
}

/// What the edges and the world share.
struct Shared {
    store: SharedStore,
    hardware: Mutex<Hardware>,
    faults: Faults,
    signals: Sender<Signal>,
}

impl Shared {
    fn hardware(&self) -> MutexGuard<'_, Hardware> {
        self.hardware.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) {
        // A world that has ended has nobody left to tell.
        let _ = self.signals.send(signal);
    }

    /// What happens to a domain that nobody holds any more.
    fn shut_down(&self, domid: DomId, reason: crate::edge::ShutdownReason) {
        if self.hardware().shut_down(domid, reason) {
            self.store.lock().domain_shut_down(store_domid(domid));
        }
    }
}

fn store_domid(domid: DomId) -> xenstore::DomId {
    xenstore::DomId(domid.get())
}

/// A simulated machine. It runs until this is dropped.
pub struct Machine {
    /// The edges.
    pub edges: Edges,
    /// Watches on its store.
    pub events: Events,
    /// Which calls are to fail.
    pub faults: Faults,
    /// Its store.
    pub store: SharedStore,
    shared: Arc<Shared>,
    world: Option<std::thread::JoinHandle<()>>,
    listening: Option<Listening>,
    private: Option<PathBuf>,
}

/// Switches a simulated machine on.
///
/// # Errors
/// When the kernel refuses a thread, or the store's socket.
pub fn machine(options: &SimOptions) -> std::io::Result<Machine> {
    let store = SharedStore::new();
    let (signals, incoming) = unbounded();
    let shared = Arc::new(Shared {
        store: store.clone(),
        hardware: Mutex::new(Hardware::new(options.memory_mib, options.cpus)),
        faults: Faults::default(),
        signals,
    });
    let (socket, private) = if let Some(path) = &options.store_socket {
        if UnixStream::connect(path).is_ok() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::AddrInUse,
                format!("{} is served", path.display()),
            ));
        }
        // Left by a simulator that was killed.
        let _ = std::fs::remove_file(path);
        (path.clone(), None)
    } else {
        let directory = std::env::temp_dir().join(format!("xenopsd-sim-{}", uuid::Uuid::new_v4()));
        std::fs::DirBuilder::new().mode(0o700).create(&directory)?;
        (directory.join("xenstored"), Some(directory))
    };
    let listening = listen(&store, &socket)?;
    let watches = WatchStream::connect(listening.endpoint()).map_err(std::io::Error::other)?;
    let events = Events::start(watches)?;
    let world = World::new(Arc::clone(&shared), incoming, options)?.start()?;
    let host = SimHost::new(Arc::clone(&shared), options);
    let (for_hypervisor, for_store) = (Arc::clone(&shared), Arc::clone(&shared));
    let edges = Edges::new(
        move || Ok(Box::new(SimHypervisor::open(&for_hypervisor)?) as Box<dyn crate::edge::Hypervisor>),
        move || FaultyStore::open(&for_store),
        Arc::new(host),
    );
    Ok(Machine {
        edges,
        events,
        faults: shared.faults.clone(),
        store,
        shared,
        world: Some(world),
        listening: Some(listening),
        private,
    })
}

impl Machine {
    /// Looks at the hardware.
    pub fn hardware<R>(&self, look: impl FnOnce(&Hardware) -> R) -> R {
        look(&self.shared.hardware())
    }

    /// A guest stops by itself, whatever its script says; nothing when it is not running.
    pub fn stop_guest(&self, domid: DomId, reason: crate::edge::ShutdownReason) {
        self.shared.shut_down(domid, reason);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shared.signal(Signal::End);
        if let Some(world) = self.world.take() {
            let _ = world.join();
        }
        self.listening = None;
        if let Some(directory) = &self.private {
            let _ = std::fs::remove_dir_all(directory);
        }
    }
}

#[cfg(test)]
mod tests;
