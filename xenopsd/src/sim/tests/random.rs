//! Random sequences of operations on several VMs, with failures and kills in the middle of them, compared step by step
//! with a model of what should be.

use super::model::{Manners, Model, devices};
use super::*;
use crate::edge::ShutdownReason;
use crate::edge::linux::suspend_file::SIGNATURE;
use crate::ops::plan::{Device, Unplugging};
use crate::sim::When;
use proptest::prelude::*;
use std::collections::BTreeSet;

/// What cuts an operation short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// One call fails.
    Failure(u64),
    /// The daemon dies at a call, and another is started.
    Kill(u64),
}

/// Something that happens to one of the VMs.
#[derive(Debug, Clone)]
enum Event {
    Ask(Operation),
    Cut(Operation, Cut),
    /// The guest does something by itself.
    Stops(ShutdownReason),
    /// Somebody else destroys its domain.
    Vanishes,
    /// The daemon dies while nothing is asked of it, and another is started.
    Restart,
    /// All watches are lost.
    WatchesLost,
}

/// Every operation there is; a new one is a line here and its meaning in the model.
fn operation() -> impl Strategy<Value = Operation> {
    let device = (0..devices().len()).prop_map(|n| devices()[n].clone());
    let how = prop_oneof![Just(Unplugging::Clean), Just(Unplugging::Forced)];
    prop_oneof![
        4 => Just(Operation::Start),
        3 => Just(Operation::Unpause),
        2 => Just(Operation::Pause),
        2 => Just(Operation::Shutdown(None)),
        2 => Just(Operation::Shutdown(Some(LONG))),
        2 => Just(Operation::Reboot(None)),
        1 => Just(Operation::Reboot(Some(LONG))),
        1 => Just(Operation::CreateDomain),
        1 => Just(Operation::BuildDomain),
        1 => Just(Operation::StartDeviceModel),
        1 => Just(Operation::DestroyDomain),
        3 => device.clone().prop_map(Operation::Plug),
        3 => (device, how).prop_map(|(device, how)| Operation::Unplug(device, how)),
        // Where to is filled in when it happens.
        3 => Just(Operation::Suspend(Disk::Local(String::new()))),
        3 => Just(Operation::Resume(Disk::Local(String::new()))),
        1 => Just(Operation::Checkpoint(Disk::Local(String::new()))),
        1 => Just(Operation::FastResume),
        1 => Just(Operation::Delay(Duration::from_millis(1))),
        1 => Just(Operation::Check),
        1 => Just(Operation::Remove),
    ]
}

/// Calls of the longest operation, about: where it may be cut.
const CALLS: u64 = 80;

fn event() -> impl Strategy<Value = Event> {
    let cut = prop_oneof![(0..CALLS).prop_map(Cut::Failure), (0..CALLS).prop_map(Cut::Kill)];
    prop_oneof![
        12 => operation().prop_map(Event::Ask),
        6 => (operation(), cut).prop_map(|(operation, cut)| Event::Cut(operation, cut)),
        1 => Just(Event::Stops(ShutdownReason::PowerOff)),
        1 => Just(Event::Stops(ShutdownReason::Reboot)),
        1 => Just(Event::Stops(ShutdownReason::Crash)),
        1 => Just(Event::Stops(ShutdownReason::Suspend)),
        1 => Just(Event::Vanishes),
        1 => Just(Event::Restart),
        1 => Just(Event::WatchesLost),
    ]
}

/// A script and what the model makes of it.
const SCRIPTS: [(&[(&str, &str)], Manners); 3] = [
    (&[], Manners::Good),
    (&[("shutdown", "silent")], Manners::Good),
    (&[("devices", "ignore"), ("shutdown", "ignore")], Manners::None),
];

/// Patience with guests and backends that do not answer: what is waited for in vain here ends soon.
const SHORT: Duration = Duration::from_millis(300);

struct Play {
    rig: Rig,
    vms: Vec<(String, Manners, Model)>,
    before: Remains,
}

impl Play {
    fn new(seed: u64) -> Self {
        let patience = Patience { hotplug: Duration::from_secs(5), ..long() };
        let options = SimOptions { seed, delay: Duration::from_millis(1), ..SimOptions::default() };
        let rig = Rig::with_patience(&options, patience);
        let vms: Vec<_> = (0..)
            .zip(SCRIPTS)
            .map(|(n, (script, manners))| (rig.add(n, script, |_| ()), manners, Model::new()))
            .collect();
        rig.start(&vms[0].0).unwrap();
        rig.run(&vms[0].0, Operation::Shutdown(None)).unwrap();
        let before = rig.remains(&vms[0].0);
        Self { rig, vms, before }
    }

    fn happen(mut self, n: usize, event: &Event) -> Self {
        let n = n % self.vms.len();
        let (vm, _, model) = self.vms[n].clone();
        match event {
            Event::Ask(operation) => self.ask(n, operation),
            Event::Cut(Operation::Remove, _) => {}
            Event::Cut(operation, cut) => self = self.cut(n, operation, *cut),
            Event::Stops(_) | Event::Vanishes if !model.has_domain() => {}
            Event::Stops(reason) => {
                self.rig.machine.stop_guest(self.rig.domid(&vm).unwrap(), *reason);
                let seen = self.look(&vm);
                self.vms[n].2 = match reason {
                    // Nobody asked it to suspend.
                    ShutdownReason::PowerOff | ShutdownReason::Suspend => model.halted(),
                    ShutdownReason::Reboot => model.up(PowerState::Running),
                    // One that has not been up for long is not started again, and for how long is not known of one that
                    // was never started as a whole.
                    _ if seen.state == PowerState::Halted => model.halted(),
                    _ => model.up(PowerState::Running),
                };
            }
            Event::Vanishes => {
                self.rig.core.edges.hypervisor().unwrap().destroy(self.rig.domid(&vm).unwrap()).unwrap();
                self.look(&vm);
                self.vms[n].2 = model.halted();
            }
            Event::Restart => self.rig = self.rig.restart(),
            Event::WatchesLost => self.rig.machine.lose_watches(),
        }
        self
    }

    fn ask(&mut self, n: usize, operation: &Operation) {
        let image = self.image(&self.vms[n].0);
        let (vm, manners, model) = &mut self.vms[n];
        let operation = patient(operation, model, *manners, &image);
        let outcome = self.rig.run(vm, operation.clone());
        match (model.after(&operation, *manners), outcome) {
            (Ok(after), Ok(())) => *model = after,
            (Err(Some(expected)), Err(error)) => assert_eq!(error, expected, "{operation} of {model:?}"),
            (Err(None), Err(_)) => {}
            (expected, outcome) => panic!("{operation} of {model:?}: {outcome:?} and not {expected:?}"),
        }
        if operation == Operation::Remove && !self.rig.core.records.has_vm(vm) {
            self.rig.add(u32::try_from(n).unwrap(), SCRIPTS[n].0, |_| ());
        }
    }

    fn cut(mut self, n: usize, operation: &Operation, cut: Cut) -> Self {
        let (vm, manners, model) = self.vms[n].clone();
        let operation = patient(operation, &model, manners, &self.image(&vm));
        self.rig.machine.faults.arm(match cut {
            Cut::Failure(nth) => Fault::Nth { site: None, nth, when: When::Before },
            Cut::Kill(nth) => Fault::From { nth },
        });
        let outcome = self.rig.run(&vm, operation.clone());
        if matches!(cut, Cut::Kill(_)) {
            self.rig = self.rig.restart();
        } else {
            self.rig.machine.faults.disarm();
        }
        let seen = self.look(&vm);
        let context = format!("{operation} of {model:?}, cut by {cut:?}: {outcome:?}");
        let mut allowed = model.between(&operation);
        if outcome.is_ok() {
            // Whatever failed, it was not this.
            let after = model.after(&operation, manners).unwrap_or_else(|e| panic!("{context}: {e:?}"));
            allowed = vec![after.state];
        }
        assert!(allowed.contains(&seen.state), "{context}: {seen:?}");
        self.vms[n].2 = seen;
        if outcome.is_err() {
            // What is half done can be ended; and then the model knows again what is there.
            self.rig.run(&vm, Operation::Shutdown(None)).unwrap();
            self.vms[n].2 = self.vms[n].2.halted();
        }
        self
    }

    /// Behind what the daemon does by itself.
    fn look(&self, vm: &str) -> Model {
        let _ = self.rig.run(vm, Operation::Check);
        self.seen(vm)
    }

    /// Where it is suspended to.
    fn image(&self, vm: &str) -> PathBuf {
        self.rig.directory.path().join(vm)
    }

    fn seen(&self, vm: &str) -> Model {
        let domain = self.rig.core.domain_of(vm).unwrap();
        let plugged = |device: &Device| crate::device::is_plugged(&self.rig.core, vm, device).unwrap();
        Model {
            state: observe::power_state(domain.as_ref(), &self.rig.core.records.extra(vm).unwrap()),
            built: domain.as_ref().is_some_and(observe::is_built),
            image: std::fs::read(self.image(vm)).is_ok_and(|bytes| bytes.starts_with(SIGNATURE)),
            plugged: devices().iter().filter(|d| plugged(d)).map(Device::to_string).collect(),
        }
    }

    fn check(&self, after: &Event) {
        let mut loops = 0;
        for (vm, _, model) in &self.vms {
            assert_eq!(self.seen(vm), *model, "{vm} after {after:?}");
            let disks = model.plugged.iter().filter(|d| d.starts_with("disk")).count();
            let kept = self.rig.core.runtimes.with(vm, |r| r.kept.len());
            assert!(kept <= disks, "{vm} after {after:?}: {kept} files for {disks} disks");
            loops += disks;
        }
        assert_eq!(self.rig.machine.loops().len(), loops, "loop devices after {after:?}");
        let count = |is: fn(&Model) -> bool| self.vms.iter().filter(|(.., model)| is(model)).count();
        let (live, built) = (count(Model::has_domain), count(|m| m.built));
        let taken = u64::try_from(built).unwrap() * (64 << 20) / 4096;
        // The dying are waited for by the operation that ends them, and by nobody when it was somebody else.
        let is_so = self.rig.machine.wait(LIMIT, |hardware| {
            hardware.free_pages() + taken == self.before.free_pages
                && hardware.domids().len() == live + self.before.domids.len()
        });
        let domids = self.rig.machine.hardware(Hardware::domids);
        assert!(is_so, "{live} are up, {built} are built, and there are {domids:?} after {after:?}");
    }
}

/// The operation, with no more patience than is needed, and its image.
fn patient(operation: &Operation, model: &Model, manners: Manners, image: &std::path::Path) -> Operation {
    let image = || Disk::Local(image.display().to_string());
    let in_vain = model.state == PowerState::Running && !model.answers(manners);
    match operation {
        // Acknowledgement is waited for longer than a test should take.
        Operation::Suspend(_) | Operation::Checkpoint(_) if in_vain => Operation::FastResume,
        Operation::Suspend(_) => Operation::Suspend(image()),
        Operation::Checkpoint(_) => Operation::Checkpoint(image()),
        Operation::Resume(_) => Operation::Resume(image()),
        Operation::Shutdown(Some(_)) if !model.answers(manners) => Operation::Shutdown(Some(SHORT)),
        Operation::Reboot(Some(_)) if !model.answers(manners) => Operation::Reboot(Some(SHORT)),
        Operation::Unplug(device, Unplugging::Clean) if !model.answers(manners) => {
            Operation::Unplug(device.clone(), Unplugging::Forced)
        }
        other => other.clone(),
    }
}

fn play(seed: u64, events: &[(usize, Event)]) {
    let mut play = Play::new(seed);
    for (n, event) in events {
        play = play.happen(*n, event);
        play.check(event);
    }
    for (vm, ..) in &play.vms {
        play.rig.run(vm, Operation::Shutdown(None)).unwrap();
    }
    for (vm, ..) in &play.vms {
        play.rig.until_remains(vm, &play.before, "all VMs were shut down");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::with_cases(24) })]
    #[test]
    fn any_sequence_of_operations_does_what_the_model_does(
        seed: u64, events in proptest::collection::vec((0usize..3, event()), 1..25)
    ) {
        play(seed, &events);
    }
}

/// Operations that are asked for at once are done one after the other in the order of asking, whatever the other VMs do.
#[test]
fn the_order_of_a_vm_is_the_order_of_asking() {
    type Log = std::sync::Mutex<Vec<(String, String)>>;
    const VMS: u32 = 8;
    const ROUNDS: u64 = 40;
    let rig = Rig::new(&SimOptions { delay: Duration::ZERO, ..SimOptions::default() });
    let vms: Vec<_> = (0..VMS).map(|n| rig.add(n, &[], |_| ())).collect();
    let log: Arc<Log> = Arc::default();
    let steps = Arc::clone(&log);
    rig.core.traces.observe(Some(Arc::new(move |vm: &str, atom: &_, boundary| {
        if boundary == crate::ops::explain::Boundary::Before {
            steps.lock().unwrap().push((vm.to_owned(), format!("{atom}")));
        }
    })));
    let operations = [Operation::Start, Operation::Unpause, Operation::Pause, Operation::Shutdown(None)];
    let (done, outcomes) = bounded(vms.len() * usize::try_from(ROUNDS).unwrap() * 2);
    for round in 0..ROUNDS {
        for vm in &vms {
            let marker = Operation::Delay(Duration::from_nanos(round));
            let operation = operations[usize::try_from(round).unwrap() % operations.len()].clone();
            for operation in [marker, operation] {
                let (done, log, vm_id, name) =
                    (done.clone(), Arc::clone(&log), vm.clone(), format!("end of {operation}"));
                rig.core.submit_then(vm, "test", operation, move |outcome| {
                    log.lock().unwrap().push((vm_id, name));
                    done.send(outcome).unwrap();
                });
            }
        }
    }
    for _ in 0..vms.len() * usize::try_from(ROUNDS).unwrap() * 2 {
        assert_eq!(outcomes.recv_timeout(LIMIT).expect("no deadlock"), Ok(()));
    }
    let log = log.lock().unwrap();
    for vm in &vms {
        let mut steps = log.iter().filter(|(of, _)| of == vm).map(|(_, step)| step.as_str());
        for round in 0..ROUNDS {
            let marker = Operation::Delay(Duration::from_nanos(round));
            let operation = &operations[usize::try_from(round).unwrap() % operations.len()];
            assert_eq!(
                steps.next(),
                Some(&*format!("{}", crate::ops::plan::Atom::Delay(Duration::from_nanos(round))))
            );
            assert_eq!(steps.next(), Some(&*format!("end of {marker}")));
            let end = format!("end of {operation}");
            let own: BTreeSet<_> = steps.by_ref().take_while(|step| *step != end).collect();
            let first = match operation {
                Operation::Start => "create domain",
                Operation::Unpause => "unpause",
                Operation::Pause => "pause",
                _ => "destroy domain",
            };
            assert!(own.contains(first), "{vm}, round {round}: {own:?}");
            assert!(
                !own.iter().any(|step| step.starts_with("wait") || step.starts_with("end of")),
                "{own:?}"
            );
        }
        assert_eq!(steps.next(), None);
    }
}
