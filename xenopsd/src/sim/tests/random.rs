//! Random sequences of operations, and what must hold after each.

use super::*;
use crate::edge::ShutdownReason;
use proptest::prelude::*;

/// Something that happens to one of the VMs.
#[derive(Debug, Clone)]
enum Event {
    Ask(Operation),
    /// The guest does something by itself.
    Stops(ShutdownReason),
    /// Somebody else destroys its domain.
    Vanishes,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Ask(Operation::Start)),
        3 => Just(Event::Ask(Operation::Unpause)),
        2 => Just(Event::Ask(Operation::Pause)),
        2 => Just(Event::Ask(Operation::Shutdown(None))),
        2 => Just(Event::Ask(Operation::Shutdown(Some(Duration::from_millis(200))))),
        2 => Just(Event::Ask(Operation::Reboot(None))),
        1 => Just(Event::Ask(Operation::Reboot(Some(Duration::from_millis(200))))),
        1 => Just(Event::Ask(Operation::CreateDomain)),
        1 => Just(Event::Ask(Operation::BuildDomain)),
        1 => Just(Event::Ask(Operation::DestroyDomain)),
        1 => Just(Event::Ask(Operation::Check)),
        1 => Just(Event::Stops(ShutdownReason::PowerOff)),
        1 => Just(Event::Stops(ShutdownReason::Reboot)),
        1 => Just(Event::Stops(ShutdownReason::Crash)),
        1 => Just(Event::Vanishes),
    ]
}

const SCRIPTS: [&[(&str, &str)]; 3] =
    [&[], &[("shutdown", "silent")], &[("devices", "ignore"), ("shutdown", "ignore")]];

fn play(seed: u64, events: &[(usize, Event)]) {
    let rig = Rig::new(&SimOptions { seed, delay: Duration::from_millis(1), ..SimOptions::default() });
    let vms: Vec<_> = (0..).zip(SCRIPTS).map(|(n, script)| rig.add(n, script, |_| ())).collect();
    rig.start(&vms[0]).unwrap();
    rig.run(&vms[0], Operation::Shutdown(None)).unwrap();
    let before = rig.remains(&vms[0]);
    for (vm, event) in events {
        let vm = &vms[vm % vms.len()];
        match event {
            Event::Ask(operation) => drop(rig.run(vm, operation.clone())),
            Event::Stops(reason) => {
                if let Some(domid) = rig.domid(vm) {
                    rig.machine.stop_guest(domid, *reason);
                }
            }
            Event::Vanishes => {
                if let Some(domid) = rig.domid(vm) {
                    let _ = rig.core.edges.hypervisor().unwrap().destroy(domid);
                }
            }
        }
        let domids = rig.machine.hardware(crate::sim::Hardware::domids);
        // One domain per VM, and a dying one beside it.
        assert!(domids.len() <= 2 * vms.len(), "{domids:?} after {event:?}");
        let memory = rig.machine.hardware(crate::sim::Hardware::free_pages);
        assert!(memory <= before.free_pages && before.free_pages - memory <= 3 * (64 << 20) / 4096);
    }
    for vm in &vms {
        rig.run(vm, Operation::Shutdown(None)).unwrap();
        assert_eq!(rig.state(vm), PowerState::Halted);
    }
    for vm in &vms {
        rig.until_remains(vm, &before, "all VMs were shut down");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 40, failure_persistence: None, ..ProptestConfig::with_cases(24) })]
    #[test]
    fn any_sequence_of_operations_can_be_tidied(
        seed: u64, events in proptest::collection::vec((0usize..3, event()), 1..25)
    ) {
        play(seed, &events);
    }
}
