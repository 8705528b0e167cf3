//! `cargo xtask bench plugs`: eight disks each of many simulated VMs taken away and plugged again, all at once. VMs must
//! not wait for each other: the slowest plug may take three times what the median one takes, and so may a VM's eight.
//!
//! ```text
//!   all calls at once ─► queue of each VM ─► workers ─► steps (begin, plug, end) ─► seen ended in UPDATES
//!                        └──────────────── "a VM's eight" ────────────────────────┘
//!                                                       └── "one" ──┘
//! ```
//!
//! Guests and backends take up to [`DELAY`] for each step of the handshake, and no worker while they do. A lock that is
//! held over one of those waits, or that all VMs' operations take, shows in both ratios.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use suite::Guest;
use xenopsd::api::{DynamicId, Task, TaskState, VbdMode};
use xenopsd::core::{Core, Operation, Patience};
use xenopsd::ops::plan::{Device, Unplugging};
use xenopsd::sim::{self, SimOptions};
use xenopsd::state::Records;

/// VMs, and disks of each.
const VMS: usize = 200;
const DISKS: [&str; 8] = ["xvda", "xvdb", "xvdc", "xvdd", "xvde", "xvdf", "xvdg", "xvdh"];

/// Operations at once.
const WORKERS: usize = 32;

/// Longest time a backend or a guest takes for one step.
const DELAY: Duration = Duration::from_millis(20);

/// What is aimed at: the 99th percentile over the median.
const AIM: f64 = 3.0;

/// No operation of this bench takes so long.
const LIMIT: Duration = Duration::from_secs(600);

/// MiB of a host for all of them.
const HOST_MIB: u64 = 1 << 20;

#[test]
fn bench_plugs() {
    let rig = Rig::new();
    rig.all(|_| vec![Operation::Start]);
    rig.all(|_| vec![Operation::Unpause]);
    println!(
        "{VMS} VMs with {} disks each, {WORKERS} workers, milliseconds; aim of the ratio: {AIM}",
        DISKS.len()
    );
    let device = |name: &str| Device::Vbd(name.to_owned());
    let away = rig.all(|_| DISKS.map(|name| Operation::Unplug(device(name), Unplugging::Forced)).to_vec());
    away.report("forced unplug");
    let back = rig.all(|_| DISKS.map(|name| Operation::Plug(device(name))).to_vec());
    back.report("plug");
}

/// Seconds of each operation's steps, and from the calls to the end of each VM's last operation.
struct Times {
    one: Vec<f64>,
    of_vm: Vec<f64>,
}

impl Times {
    fn report(self, what: &str) {
        println!("{:>9} {:>9} {:>7}  {what}", "p50", "p99", "ratio");
        for (shown, mut times) in [("one", self.one), ("a VM's eight, from the call", self.of_vm)] {
            times.sort_by(f64::total_cmp);
            let (middle, last) = (times[times.len() / 2], times[times.len() * 99 / 100]);
            println!("{:9.1} {:9.1} {:7.2}  {shown}", middle * 1e3, last * 1e3, last / middle);
        }
    }
}

struct Rig {
    core: Arc<Core>,
    ids: Vec<String>,
    _machine: sim::Machine,
    _directory: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        // Not what the disk is able to do is measured here.
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let options = SimOptions { memory_mib: HOST_MIB, delay: DELAY, ..SimOptions::default() };
        let machine = sim::machine(&options).expect("a simulated machine");
        let kernel = directory.path().join("kernel");
        std::fs::write(&kernel, b"\x7fELF for the simulator").expect("a kernel");
        let records = Records::open(&directory.path().join("db")).expect("a database");
        let mut ids = Vec::new();
        for number in 0..VMS {
            let guest = guest(number, &kernel.display().to_string());
            records.put_vm(&guest.vm).expect("a VM");
            guest.vbds.iter().for_each(|vbd| records.put(vbd).expect("a disk"));
            ids.push(guest.vm.id);
        }
        let (edges, events) = (machine.edges.clone(), machine.events.clone());
        let core = Core::start(records, edges, events, WORKERS, Patience::default()).expect("a daemon");
        Self { core, ids, _machine: machine, _directory: directory }
    }

    /// The operations of every VM, all called at once. What has ended is heard of as a management layer does.
    fn all(&self, operations: impl Fn(usize) -> Vec<Operation>) -> Times {
        let mut seen = self.core.updates.last_id();
        let begin = Instant::now();
        let mut waiting: HashMap<String, usize> = HashMap::new();
        for (vm, id) in self.ids.iter().enumerate() {
            for operation in operations(vm) {
                waiting.insert(self.core.submit(id, "bench", operation).expect("it is queued"), vm);
            }
        }
        let mut times = Times { one: Vec::new(), of_vm: vec![0.0; self.ids.len()] };
        while !waiting.is_empty() {
            let (answer, answered) = channel();
            let tell = Box::new(move |batch| answer.send(batch).expect("the bench waits"));
            self.core.updates.get(Some(seen), Some(LIMIT), tell);
            let (_, changed, next) = answered.recv().expect("an answer").expect("few wait");
            assert!(!changed.is_empty(), "{} operations do not end", waiting.len());
            seen = next;
            for id in changed {
                let DynamicId::Task(id) = id else { continue };
                let Some(vm) = waiting.get(&id).copied() else { continue };
                let task = self.core.tasks.stat(&id).expect("it is kept until it is destroyed");
                match &task.state {
                    TaskState::Pending(_) => continue,
                    TaskState::Completed(_) => times.one.push(steps(&task)),
                    TaskState::Failed(error) => panic!("{error:?}"),
                }
                times.of_vm[vm] = begin.elapsed().as_secs_f64();
                waiting.remove(&id);
                self.core.tasks.destroy(&id).expect("it has ended");
            }
        }
        times
    }
}

/// How long its steps took together, seconds.
fn steps(task: &Task) -> f64 {
    let taken = |state: &TaskState| match state {
        TaskState::Completed(done) => done.duration,
        _ => 0.0,
    };
    task.subtasks.iter().map(|(_, state)| taken(state)).sum()
}

fn guest(number: usize, kernel: &str) -> Guest {
    let guest = Guest::new(&format!("bench{number}")).memory(64).boot(|boot| {
        kernel.clone_into(&mut boot.kernel);
        boot.ramdisk = None;
    });
    DISKS
        .iter()
        .fold(guest, |guest, name| guest.disk(name, &format!("/srv/{number}-{name}.img"), VbdMode::ReadWrite))
}
