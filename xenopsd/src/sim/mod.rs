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
//! quotas) and obey `control/shutdown`.
//!
//! # What a seed repeats
//!
//! What an object does next, and how long after the reason for it, is a function of the seed, of the object and of how
//! often it has acted before. Objects are each backend, each guest, each end of a domain, and each name of a call that
//! may fail at random; they are named by their VM and by the how-manieth start of it they belong to, and not by domids,
//! which depend on who comes first. No object's luck depends on what others do.
//!
//! What no seed repeats is the order in which the daemon's threads get their turn, and real time: whether a guest has
//! connected its disk before a shutdown closes it may differ from run to run, and then what it does next does too.
//! Whoever waits for one thing to be done before asking for the next sees each object do the same again.
//! [`Machine::trace`] shows it.
//!
//! # Scripts
//!
//! What a guest does is chosen per VM by keys of its `xsdata`, which become nodes below `vm-data/sim`:
//!
//! | key | values (the first is the default) | meaning |
//! |---|---|---|
//! | `vm-data/sim/shutdown` | `obey`, `ignore`, `acknowledge`, `silent` | obeys a request; never looks at it; takes it and runs on; stops without taking it |
//! | `vm-data/sim/suspend` | `obey`, `ignore`, `acknowledge`, `silent`, `crash` | the same for a request to suspend; takes it and crashes |
//! | `vm-data/sim/then` | `run`, `poweroff`, `reboot`, `crash`, `suspend` | what it does by itself after its first boot in this simulator |
//! | `vm-data/sim/then-ms` | number | how long after its boot, in ms |
//! | `vm-data/sim/devices` | `connect`, `keep`, `refuse`, `ignore`, `hostile` | connects its frontends; and does not give them back; and says why not; leaves them alone; writes nonsense into everything it may write |
//! | `vm-data/sim/flood` | number | how many nodes it writes as fast as it can once it is up |
//! | `vm-data/sim/device-model` | `work`, `exit`, `mute`, `nonsense`, `crash`, `flood`, `lock` | an HVM guest's: does its work; ends at once; never greets; greets with nonsense; ends when the guest is to run; sends events without end; its guest keeps drives closed |
//! | | `refuse`, `empty`, `huge`, `die`, `halt` | does not write its state; says that it has and has not; writes too much; ends instead; does not go on afterwards |
//! | | `choke`, `chew` | ends when it is to take a state; never comes to the end of that |
//! | | `vanish` | ends once it is set up, before the daemon follows it |
//! | `vm-data/sim/drivers` | `pv`, `none` | an HVM guest has PV drivers; it has none and cannot be asked to suspend |
//! | `vm-data/sim/balloon` | `obey`, `refuse`, `slow` | follows `memory/target` as far as there is memory; never; a MiB at a time |
//! | `vm-data/sim/agent` | `none`, `linux`, `hostile` | has no agent; one that says what Linux' do; one that writes what a terminal would obey, and much of it |
//!
//! [`SimOptions::script`] changes the defaults for all.

mod agent;
mod backend;
mod chance;
mod device_model;
mod disk_servers;
mod faults;
mod guest;
mod hardware;
mod host;
mod hypervisor;
mod installer;
mod memory;
mod networks;
mod processes;
mod storage;
mod store;
mod terminals;
mod trace;
mod world;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam::channel::{Sender, unbounded};
use xenstore::store::{Listening, SharedStore, listen};
use xenstore::{Operations, WatchStream};

use crate::edge::{DomId, Edges, Events, FileId, IoPriority, VifSettings};
use crate::state::journal::LoopId;

pub use device_model::{Doing, Vcpus};
pub use faults::{Fault, Faults, When};
pub use guest::SCRIPT_KEYS;
pub use hardware::{Hardware, Tuning};
pub use host::Present;
use host::SimHost;
use hypervisor::SimHypervisor;
use networks::Networks;
use processes::Processes;
use store::FaultyStore;
pub use trace::Trace;
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
    /// Whether they can run PVH and HVM guests.
    pub hvm: bool,
    /// What guests do whose VM does not say: keys as in the table above, without `vm-data/sim/`.
    pub script: Vec<(String, String)>,
    /// Longest time a backend or a guest takes for one step.
    pub delay: Duration,
    /// How long a save or restore takes for each of the eight pieces it is in.
    pub copying: Duration,
    /// Whether consoles are real pseudo-terminals, of which each takes two files; else `/dev/null`.
    pub terminals: bool,
    /// Disks that exist.
    pub disks: Present,
    /// Bridges that exist.
    pub bridges: Present,
    /// Whether there is a QEMU for HVM guests.
    pub qemu: bool,
    /// A real storage program; a simulated one, which has every disk, when there is none.
    pub storage: Option<PathBuf>,
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
            hvm: true,
            script: Vec::new(),
            delay: Duration::from_millis(20),
            copying: Duration::ZERO,
            terminals: false,
            disks: Present::All,
            bridges: Present::All,
            qemu: true,
            storage: None,
            hooks: None,
            store_socket: None,
        }
    }
}

/// The size of disks, in bytes, until a test says otherwise.
const DISK_BYTES: u64 = 1 << 30;

/// What the edges and the world share.
struct Shared {
    store: SharedStore,
    hardware: Mutex<Hardware>,
    /// Told after each change of the hardware.
    changed: Condvar,
    faults: Faults,
    trace: Trace,
    networks: Mutex<Networks>,
    processes: Arc<Processes>,
    device_models: device_model::DeviceModels,
    /// The file behind each loop device that is attached.
    loops: Mutex<BTreeMap<u32, FileId>>,
    /// The network block devices that are connected.
    network_disks: disk_servers::Devices,
    /// The size of every disk.
    disk_bytes: AtomicU64,
    /// Whether dom0 has the modules of the backends.
    drivers: AtomicBool,
    /// The I/O priority that each domain's disks were given.
    priorities: Mutex<HashMap<(DomId, String), IoPriority>>,
    /// And processes, by their numbers.
    process_priorities: Mutex<HashMap<crate::api::Int, IoPriority>>,
    /// Which disks of a storage layer are in use, by the datapath's name, and whether they are active.
    storage: Mutex<BTreeMap<String, bool>>,
    signals: Sender<Signal>,
    /// [`SimOptions::copying`].
    copying: Duration,
}

impl Shared {
    fn hardware(&self) -> MutexGuard<'_, Hardware> {
        self.hardware.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn networks(&self) -> MutexGuard<'_, Networks> {
        self.networks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn loops(&self) -> MutexGuard<'_, BTreeMap<u32, FileId>> {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the loop device was attached to the file that is meant.
    fn detach(&self, device: &LoopId) -> bool {
        let (number, file) = device.meant();
        let mut loops = self.loops();
        let ours = loops.get(&number) == Some(&file);
        if ours {
            loops.remove(&number);
        }
        ours
    }

    fn change<R>(&self, change: impl FnOnce(&mut Hardware) -> R) -> R {
        let result = change(&mut self.hardware());
        self.changed.notify_all();
        result
    }

    fn signal(&self, signal: Signal) {
        // A world that has ended has nobody left to tell.
        let _ = self.signals.send(signal);
    }

    /// What a domain's script says of `key`.
    fn script_word(&self, domid: DomId, key: &str) -> Option<String> {
        let node = format!("/local/domain/{domid}/vm-data/sim/{key}");
        let node = xenstore::Path::new(&node).ok()?;
        let word = self.store.client(xenstore::DomId::DOM0).read(&node).ok()??;
        String::from_utf8(word).ok()
    }

    /// What happens to a domain that nobody holds any more.
    fn shut_down(&self, domid: DomId, reason: crate::edge::ShutdownReason) {
        if self.change(|hardware| hardware.shut_down(domid, reason)) {
            let mut store = self.store.lock();
            // As xenstored, which looks when it gets to it: the domain may have been resumed by then.
            let stopped = self.hardware().info(domid).is_some_and(|domain| domain.shutdown.is_some());
            if stopped {
                store.domain_shut_down(store_domid(domid));
            }
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
    /// What each object has done.
    pub trace: Trace,
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
        hardware: Mutex::new(Hardware::new(options.memory_mib, options.cpus, options.hvm)),
        changed: Condvar::new(),
        faults: Faults::default(),
        trace: Trace::default(),
        networks: Mutex::new(Networks::new(options.bridges.clone())),
        processes: Arc::default(),
        device_models: device_model::DeviceModels::default(),
        loops: Mutex::default(),
        network_disks: disk_servers::Devices::default(),
        disk_bytes: AtomicU64::new(DISK_BYTES),
        drivers: AtomicBool::new(true),
        priorities: Mutex::default(),
        process_priorities: Mutex::default(),
        storage: Mutex::default(),
        signals,
        copying: options.copying,
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
        trace: shared.trace.clone(),
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

    /// Waits, for as long as `limit`, until the hardware is as wanted; whether it is.
    pub fn wait(&self, limit: Duration, is_so: impl Fn(&Hardware) -> bool) -> bool {
        let waited = self
            .shared
            .changed
            .wait_timeout_while(self.shared.hardware(), limit, |hardware| !is_so(hardware));
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// What an interface in dom0 was last set to.
    pub fn interface(&self, name: &str) -> Option<VifSettings> {
        self.shared.networks().interfaces.get(name).cloned()
    }

    /// Somebody else removes a bridge: its ports are in none.
    pub fn remove_bridge(&self, name: &str) {
        self.shared.networks().remove(name);
    }

    /// Somebody else makes a bridge, and whoever follows networks is told.
    pub fn make_bridge(&self, name: &str) {
        self.shared.networks().make(name);
    }

    /// Somebody else removes all rules of locked interfaces, and whoever follows networks is told.
    pub fn remove_rules(&self) {
        self.shared.networks().remove_rules();
    }

    /// The numbers of the loop devices that are attached.
    pub fn loops(&self) -> Vec<u32> {
        self.shared.loops().keys().copied().collect()
    }

    /// The numbers of the network block devices that are connected.
    pub fn network_disks(&self) -> Vec<u32> {
        self.shared.network_disks.all()
    }

    /// The I/O priority that a domain's disk was given.
    pub fn disk_priority(&self, domid: DomId, device: &str) -> Option<IoPriority> {
        let priorities = self.shared.priorities.lock().unwrap_or_else(PoisonError::into_inner);
        priorities.get(&(domid, device.to_owned())).copied()
    }

    /// The I/O priority that a process was given.
    pub fn process_priority(&self, pid: crate::api::Int) -> Option<IoPriority> {
        let priorities = self.shared.process_priorities.lock().unwrap_or_else(PoisonError::into_inner);
        priorities.get(&pid).copied()
    }

    /// The names of the datapaths that are attached.
    pub fn datapaths(&self) -> Vec<String> {
        self.shared.storage.lock().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The connections of all watchers are lost, as when xenstored is restarted; they may connect again at once.
    pub fn lose_watches(&self) {
        if let Some(listening) = &self.listening {
            listening.hang_up();
        }
    }

    /// The processes that run beside the daemon, by number.
    pub fn processes(&self) -> Vec<crate::api::Int> {
        self.shared.processes.all()
    }

    /// A process ends by itself, as one that is killed by the kernel; nothing when it is not there.
    pub fn end_process(&self, pid: crate::api::Int) {
        self.shared.processes.end(pid);
    }

    /// Domains that have a device model.
    pub fn device_models(&self) -> Vec<DomId> {
        self.shared.device_models.domains()
    }

    /// What a domain's device model is doing; none when it has none.
    pub fn device_model(&self, domid: DomId) -> Option<Doing> {
        self.shared.device_models.of(domid).map(|life| life.doing())
    }

    /// The emulated drives of a domain with something in them, and how many sets of descriptors its device model has.
    pub fn device_model_media(&self, domid: DomId) -> Option<(Vec<String>, usize)> {
        self.shared.device_models.of(domid).map(|life| life.media())
    }

    /// Disks in dom0 are larger from now on, or smaller.
    pub fn resize_disks(&self, bytes: u64) {
        self.shared.disk_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Whether devices that are new from now on are taken up: dom0 has the modules of its backends, or has not.
    pub fn set_drivers(&self, loaded: bool) {
        self.shared.drivers.store(loaded, Ordering::Relaxed);
    }

    /// Makes a domain's device model say that there is no place for any processor.
    pub fn device_model_loses_its_processors(&self, domid: DomId) {
        if let Some(life) = self.shared.device_models.of(domid) {
            life.lose_processors();
        }
    }

    /// The processors that its device model has given to a domain.
    pub fn device_model_vcpus(&self, domid: DomId) -> Option<Vcpus> {
        self.shared.device_models.of(domid).map(|life| life.vcpus())
    }

    /// The files that a domain's device model reads while it starts, with their lengths in bytes.
    pub fn device_model_files(&self, domid: DomId) -> Vec<(&'static std::path::Path, usize)> {
        self.shared.device_models.of(domid).map(|life| life.files()).unwrap_or_default()
    }

    /// A domain's device model ends by itself; whether it had one.
    pub fn end_device_model(&self, domid: DomId) -> bool {
        self.shared.device_models.of(domid).is_some_and(|life| life.end())
    }

    /// A domain's device model says a line to whoever is connected to its monitor.
    ///
    /// # Errors
    /// When there is none, or nobody is connected.
    pub fn device_model_says(&self, domid: DomId, line: &str) -> std::io::Result<()> {
        let life = self.shared.device_models.of(domid);
        life.ok_or(std::io::ErrorKind::NotFound)?.say(line)
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
