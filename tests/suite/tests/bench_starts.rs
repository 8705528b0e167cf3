//! `cargo xtask bench starts`: many simulated VMs started by 32 workers, and what each step of a start costs with so
//! many VMs. The simulated backends and guests take no time of their own, so that what is seen is the daemon's work (and
//! the simulator's, on the same processors).
//!
//! A step that grows with the number of VMs faster than the number itself is a mistake: with VMs doubled, the time of all
//! starts may double and the time of one may not. `growth` is how the time of one start grew against half as many VMs:
//! 2.00 would be quadratic.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use suite::Guest;
use xenopsd::api::{DynamicId, TaskState, VbdMode, Vm};
use xenopsd::core::{Core, Operation, Patience};
use xenopsd::sim::{self, Hardware, SimOptions};
use xenopsd::state::Records;

/// Numbers of VMs: each twice the one before.
const COUNTS: [usize; 4] = [125, 250, 500, 1000];

/// Operations at once.
const WORKERS: usize = 32;

/// No operation of this bench takes so long.
const LIMIT: Duration = Duration::from_secs(600);

/// MiB of a host for all of them.
const HOST_MIB: u64 = 1 << 20;

#[test]
fn bench_starts() {
    println!("{WORKERS} workers; each VM has two disks and an interface; times of a step are means, in µs");
    let mut before: Option<f64> = None;
    for count in COUNTS {
        let rig = Rig::new(count);
        let (started, steps) = rig.all(&Operation::Start);
        assert_eq!(rig.machine.hardware(Hardware::domids).len(), count);
        let (unpaused, _) = rig.all(&Operation::Unpause);
        let (stopped, more_steps) = rig.all(&Operation::Shutdown(None));
        assert!(rig.machine.hardware(Hardware::domids).is_empty());
        let each = |time: Duration| time.as_secs_f64() * 1e6 / f64::from(u32::try_from(count).expect("few"));
        let per_start = each(started);
        let growth = before.map_or(1.0, |before| per_start / before);
        before = Some(per_start);
        println!(
            "\n{count:5} VMs: {:6.0} starts/s; per VM: start {per_start:.0} µs, unpause {:.0} µs, shutdown {:.0} µs; growth {growth:.2}",
            1e6 / per_start,
            each(unpaused),
            each(stopped),
        );
        for (step, (times, total)) in steps.iter().chain(&more_steps) {
            println!("      {:9.0}  {step}", total * 1e6 / f64::from(*times));
        }
    }
}

struct Rig {
    core: Arc<Core>,
    machine: sim::Machine,
    vms: Vec<Vm>,
    _directory: tempfile::TempDir,
}

impl Rig {
    fn new(count: usize) -> Self {
        // Not what the disk is able to do is measured here.
        let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        let options = SimOptions { memory_mib: HOST_MIB, delay: Duration::ZERO, ..SimOptions::default() };
        let machine = sim::machine(&options).expect("a simulated machine");
        let kernel = directory.path().join("kernel");
        std::fs::write(&kernel, b"\x7fELF for the simulator").expect("a kernel");
        let records = Records::open(&directory.path().join("db")).expect("a database");
        let guests: Vec<_> = (0..count).map(|n| guest(n, &kernel.display().to_string())).collect();
        for guest in &guests {
            records.put_vm(&guest.vm).expect("a VM");
            guest.vbds.iter().for_each(|vbd| records.put(vbd).expect("a disk"));
            guest.vifs.iter().for_each(|vif| records.put(vif).expect("an interface"));
        }
        let vms = guests.into_iter().map(|guest| guest.vm).collect();
        let (edges, events) = (machine.edges.clone(), machine.events.clone());
        let core = Core::start(records, edges, events, WORKERS, Patience::default()).expect("a daemon");
        Self { core, machine, vms, _directory: directory }
    }

    /// How long the same operation takes on all VMs at once, and its steps. What has ended is heard of as a management
    /// layer does: from UPDATES.
    fn all(&self, operation: &Operation) -> (Duration, Steps) {
        let mut steps = Steps::new();
        let mut seen = self.core.updates.last_id();
        let begin = Instant::now();
        let submit = |vm: &Vm| self.core.submit(&vm.id, "bench", operation.clone()).expect("it is queued");
        let mut waiting: HashSet<String> = self.vms.iter().map(submit).collect();
        while !waiting.is_empty() {
            let (answer, answered) = channel();
            let tell = Box::new(move |batch| answer.send(batch).expect("the bench waits"));
            self.core.updates.get(Some(seen), Some(LIMIT), tell);
            let (_, changed, next) = answered.recv().expect("an answer").expect("few wait");
            assert!(!changed.is_empty(), "{operation}: {} do not end", waiting.len());
            seen = next;
            for id in changed {
                let DynamicId::Task(id) = id else { continue };
                let Some(task) = waiting.contains(&id).then(|| self.core.tasks.stat(&id)) else { continue };
                let task = task.expect("it is kept until it is destroyed");
                match task.state {
                    TaskState::Pending(_) => continue,
                    TaskState::Completed(_) => {}
                    TaskState::Failed(error) => panic!("{operation}: {error:?}"),
                }
                for (step, state) in task.subtasks.iter() {
                    let TaskState::Completed(done) = state else { continue };
                    let (times, total) = steps.entry(class(step)).or_default();
                    *times += 1;
                    *total += done.duration;
                }
                waiting.remove(&id);
                self.core.tasks.destroy(&id).expect("it has ended");
            }
        }
        (begin.elapsed(), steps)
    }
}

/// Times and seconds of each class of steps.
type Steps = BTreeMap<String, (u32, f64)>;

/// A step's name without its device's.
fn class(step: &str) -> String {
    step.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

fn guest(number: usize, kernel: &str) -> Guest {
    let mut guest = Guest::new(&format!("bench{number}")).memory(64).boot(|boot| {
        kernel.clone_into(&mut boot.kernel);
        boot.ramdisk = None;
    });
    for name in ["xvda", "xvdb"] {
        guest = guest.disk(name, &format!("/srv/{number}-{name}.img"), VbdMode::ReadWrite);
    }
    guest = guest.vif("br0");
    guest.vifs[0].mac = format!("00:16:3e:00:{:02x}:{:02x}", number >> 8 & 0xff, number & 0xff);
    guest
}
