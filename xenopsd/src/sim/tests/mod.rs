//! Whole operations on the simulated machine.

mod agent;
mod boundaries;
mod changes;
mod consoles;
mod determinism;
mod device_model;
mod disks;
mod faults;
mod frame_buffers;
mod guests;
mod hooks;
mod hostile;
mod hotplug;
mod installing;
mod killed_models;
mod kinds;
mod lifecycle;
mod machine;
mod many;
mod metadata;
mod model;
mod networks;
mod random;
mod recovery;
mod served;
mod sharing;
mod state_dir;
mod storage;
mod suspend;
mod suspend_faults;
mod suspend_hvm;
mod terminals;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::bounded;
use xenstore::layout::{DeviceAddress, DeviceKind, DeviceStatus};

use super::{Fault, Hardware, Machine, SimOptions, machine};
use crate::api::{Boot, BuilderInfo, Disk, DynamicId, Error, Int, Network, PowerState, Vm};
use crate::core::{Core, Operation, Patience};
use crate::domain::observe;
use crate::edge::DomId;
use crate::ops::queue::Slot;
use crate::ops::task::TaskHandle;
use crate::state::Records;
use crate::{test_vbd, test_vif, test_vm};

/// Patience that no guest or backend here uses up, whatever the load of the machine.
const LONG: Duration = Duration::from_secs(60);

/// How long a test waits for anything: well above [`LONG`], so that what the daemon waits for in vain ends with the
/// daemon's own error.
const LIMIT: Duration = Duration::from_secs(180);

/// Runs every case, two at a time: each waits for its own machine most of the time.
fn side_by_side<C: Sync>(cases: &[C], run: impl Fn(&C) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(case);
                }
            });
        }
    });
}

/// How often is looked for what nothing tells of.
const UNTOLD: Duration = Duration::from_millis(50);

/// How long dying domains are given in a restart.
const ZOMBIE: Duration = Duration::from_millis(200);

/// A daemon without sockets on a simulated machine.
struct Rig {
    core: Arc<Core>,
    machine: Machine,
    directory: tempfile::TempDir,
}

fn daemon(machine: &Machine, directory: &std::path::Path, patience: Patience) -> Arc<Core> {
    let records = Records::open(&directory.join("db")).unwrap();
    Core::start(records, machine.edges.clone(), machine.events.clone(), 4, patience).unwrap()
}

/// Waits for what nothing tells of.
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        let _ = crossbeam::channel::after(Duration::from_millis(1)).recv();
    }
}

/// Quick steps, and patience enough for a busy machine.
fn quick() -> SimOptions {
    SimOptions { delay: Duration::from_millis(2), ..SimOptions::default() }
}

/// As the daemon's when it simulates, but longer than any wait here is.
fn long() -> Patience {
    Patience {
        // Failures are injected, and then a backend may be waited for in vain.
        hotplug: Duration::from_secs(20),
        shutdown_ack: LONG,
        suspend_ack: LONG,
        suspend: LONG,
        zombie: LONG,
        least_uptime: Duration::ZERO,
        ..Patience::default()
    }
}

impl Rig {
    fn new(options: &SimOptions) -> Self {
        Self::with_patience(options, long())
    }

    fn with_patience(options: &SimOptions, patience: Patience) -> Self {
        // Records are written to disk for sure, which a thousand of them need not be here.
        let memory = std::path::Path::new("/dev/shm");
        let directory = tempfile::tempdir_in(memory).or_else(|_| tempfile::tempdir()).unwrap();
        let machine = machine(options).unwrap();
        let mut kernel = b"\x7fELF".to_vec();
        kernel.resize(1024, 0);
        std::fs::write(directory.path().join("kernel"), kernel).unwrap();
        let core = daemon(&machine, directory.path(), patience);
        Self { core, machine, directory }
    }

    /// The daemon is gone, without a chance to tidy, and another is started. Its threads are ended by letting all its
    /// calls fail; nothing that it does takes effect any more.
    fn restart(self) -> Self {
        self.restart_with(|_| ())
    }

    /// The same, with something done while there is no daemon.
    fn restart_with(self, meanwhile: impl FnOnce(&Machine)) -> Self {
        let Self { core, machine, directory } = self;
        let patience = core.patience;
        machine.faults.arm(Fault::From { nth: 0 });
        let old = Arc::downgrade(&core);
        drop(core);
        // A thread of it that went on after its calls succeed again would be a second daemon.
        eventually("the old daemon's threads have ended", || old.strong_count() == 0);
        // What dies is dead by the time of the restart; one whose devices nobody closes stays.
        machine.wait(ZOMBIE, |hardware| !hardware.infos().iter().any(|d| d.dying));
        machine.faults.disarm();
        meanwhile(&machine);
        let core = daemon(&machine, directory.path(), patience);
        Self { core, machine, directory }
    }

    fn kernel(&self) -> PathBuf {
        self.directory.path().join("kernel")
    }

    /// Stores a VM with a number, 64 MiB, two disks and an interface; its guest follows `script`.
    fn add(&self, number: u32, script: &[(&str, &str)], change: impl FnOnce(&mut Vm)) -> String {
        let id = format!("{number:08x}-0000-4000-8000-000000000000");
        let mut vm = test_vm(&id, &format!("vm{number}"));
        let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
        let Boot::Direct(boot) = &mut pv.boot else { unreachable!() };
        boot.kernel = self.kernel().display().to_string();
        pv.vncterm = true;
        for memory in [&mut vm.memory_static_max, &mut vm.memory_dynamic_max, &mut vm.memory_dynamic_min] {
            *memory = 64 << 20;
        }
        let keys = script.iter().map(|(k, v)| (format!("vm-data/sim/{k}"), (*v).to_owned()));
        vm.xsdata.0.extend(keys);
        change(&mut vm);
        self.core.records.put_vm(&vm).unwrap();
        for name in ["xvda", "xvdb"] {
            let mut vbd = test_vbd(&id, name);
            vbd.position = Some(name.parse().unwrap());
            vbd.backend = Some(Disk::Local(format!("/srv/{number}-{name}.img")));
            self.core.records.put(&vbd).unwrap();
        }
        let mut vif = test_vif(&id, "0");
        vif.backend = Network::Local("br0".to_owned());
        vif.mac = format!("00:16:3e:00:{:02x}:{:02x}", number >> 8 & 0xff, number & 0xff);
        self.core.records.put(&vif).unwrap();
        id
    }

    /// Runs an operation to its end.
    fn run(&self, vm: &str, operation: Operation) -> Result<(), Error> {
        let (done, outcome) = bounded(1);
        self.core.submit_then(vm, "test", operation, move |result| done.send(result).unwrap());
        outcome.recv_timeout(LIMIT).expect("the operation ends")
    }

    /// Does an operation; the calls it makes, by name and in order.
    fn calls_of(&self, vm: &str, operation: Operation) -> Vec<String> {
        self.machine.faults.record();
        self.run(vm, operation).unwrap();
        self.machine.faults.recorded()
    }

    /// Does an operation again and again, each time with another of its `calls` failing once; what succeeds all the same is
    /// taken back. Nothing is left of either.
    fn each_call_fails(&self, vm: &str, calls: &[String], operation: &Operation, back: &Operation) {
        let before = self.remains(vm);
        for (nth, site) in (0..).zip(calls) {
            self.machine.faults.arm(Fault::Nth { site: None, nth, when: crate::sim::When::Before });
            let outcome = self.run(vm, operation.clone());
            self.machine.faults.disarm();
            if outcome.is_ok() {
                self.run(vm, back.clone()).unwrap();
            }
            self.until_remains(vm, &before, &format!("call {nth} ({site}) of {operation}: {outcome:?}"));
        }
    }

    /// Waits until what is queued for a VM is done.
    fn settle(&self, vm: &str) {
        self.run(vm, Operation::Delay(Duration::ZERO)).unwrap();
    }

    /// What clients are told of after the change `from`, or nothing after a while.
    fn changes(&self, from: Int, patience: Duration) -> Vec<DynamicId> {
        let (done, batch) = bounded(1);
        let answer = move |batch| done.send(batch).unwrap();
        self.core.updates.get(Some(from), Some(patience), Box::new(answer));
        batch.recv_timeout(LIMIT).unwrap().unwrap().1
    }

    fn start(&self, vm: &str) -> Result<(), Error> {
        self.run(vm, Operation::Start)?;
        self.run(vm, Operation::Unpause)
    }

    /// Starts a VM and waits until its guest has what [`Rig::add`] gives it.
    fn start_connected(&self, vm: &str) {
        use xenstore::layout::XenbusState::Connected;
        self.start(vm).unwrap();
        for (kind, id) in [(DeviceKind::Vbd, 51712), (DeviceKind::Vbd, 51728), (DeviceKind::Vif, 0)] {
            self.until("the guest has its devices", || {
                let device = self.device(vm, kind, id);
                (device.backend, device.frontend) == (Some(Connected), Some(Connected))
            });
        }
    }

    fn image_path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn image(&self) -> Disk {
        Disk::Local(self.image_path().display().to_string())
    }

    fn suspend(&self, vm: &str) -> Result<(), Error> {
        self.run(vm, Operation::Suspend(self.image()))
    }

    fn resume(&self, vm: &str) -> Result<(), Error> {
        self.run(vm, Operation::Resume(self.image()))?;
        self.run(vm, Operation::Unpause)
    }

    fn connected(&self, vm: &str) -> bool {
        self.domid(vm).is_some() && self.disk(vm).frontend == Some(xenstore::layout::XenbusState::Connected)
    }

    fn state(&self, vm: &str) -> PowerState {
        observe::power_state(self.core.domain_of(vm).unwrap().as_ref(), &self.core.records.extra(vm).unwrap())
    }

    fn domid(&self, vm: &str) -> Option<DomId> {
        self.core.domain_of(vm).unwrap().map(|d| d.domid)
    }

    /// Its first disk.
    fn disk(&self, vm: &str) -> DeviceStatus {
        self.device(vm, DeviceKind::Vbd, 51712)
    }

    fn device(&self, vm: &str, kind: DeviceKind, id: u32) -> DeviceStatus {
        let domid = xenstore::DomId(self.domid(vm).unwrap().get());
        let address = DeviceAddress { kind, domid, id, backend_domid: xenstore::DomId::DOM0 };
        address.status(&mut self.machine.store.client(xenstore::DomId::DOM0)).unwrap()
    }

    /// Waits until something is so; looked at after each change that the daemon announces or the store sees, and now
    /// and then: of the last page of a dying domain, or a file that is closed, nothing tells.
    fn until(&self, what: &str, is_so: impl FnMut() -> bool) {
        assert!(self.becomes(is_so), "waited in vain until {what}");
    }

    /// Waits until a VM has left nothing.
    fn until_remains(&self, vm: &str, before: &Remains, after: &str) {
        if self.becomes(|| self.remains(vm) == *before) {
            return;
        }
        let now = self.remains(vm);
        let extra: Vec<_> = now.nodes.iter().filter(|n| !before.nodes.contains(n)).collect();
        panic!(
            "left after {after}: {} files, domains {:?}, {} of {} pages, {} journal entries, {:?}, processes {:?}, loop devices {:?}, network disks {:?}, storage {:?}, {extra:?}",
            now.kept,
            now.domids,
            now.free_pages,
            before.free_pages,
            now.journal,
            now.interfaces,
            now.processes,
            now.loops,
            now.network_disks,
            now.datapaths
        );
    }

    fn becomes(&self, mut is_so: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + LIMIT;
        let everything = [xenstore::Path::root(), xenstore::Path::new("@releaseDomain").unwrap()];
        let changes = self.core.events.subscribe(&everything).unwrap();
        let (announce, announced) = bounded(1);
        let listen = || {
            let announce = announce.clone();
            let tell = Box::new(move |_| {
                let _ = announce.try_send(());
            });
            self.core.updates.get(Some(self.core.updates.last_id()), Some(LIMIT), tell);
        };
        listen();
        while !is_so() {
            if Instant::now() > deadline {
                return false;
            }
            crossbeam::select! {
                recv(changes.receiver()) -> _ => changes.take(),
                recv(announced) -> _ => listen(),
                default(UNTOLD) => {},
            }
        }
        true
    }

    /// Everything that a VM could leave behind: domains, nodes, files kept open, memory taken.
    fn remains(&self, vm: &str) -> Remains {
        Remains {
            domids: self.machine.hardware(Hardware::domids),
            free_pages: self.machine.hardware(Hardware::free_pages),
            nodes: self.machine.store.lock().dump().into_iter().map(|(path, ..)| path.to_string()).collect(),
            kept: self.core.runtimes.with(vm, |r| r.kept.len()),
            disks: self.core.disks.count(),
            journal: self.core.journal.counts().0,
            loops: self.machine.loops(),
            network_disks: self.machine.network_disks(),
            datapaths: self.machine.datapaths(),
            interfaces: self.core.records.interfaces().unwrap(),
            processes: self.machine.processes(),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Remains {
    domids: Vec<DomId>,
    free_pages: u64,
    nodes: Vec<String>,
    kept: usize,
    disks: usize,
    journal: usize,
    loops: Vec<u32>,
    network_disks: Vec<u32>,
    datapaths: Vec<String>,
    interfaces: Vec<String>,
    processes: Vec<Int>,
}
