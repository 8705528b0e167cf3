//! A seed repeats what each object does, whatever the threads of the daemon and the other objects do meanwhile.

use super::*;
use std::collections::BTreeMap;
use xenstore::layout::XenbusState;

/// What the objects of three VMs do when these are started, used and stopped at the same time.
fn trace(seed: u64) -> BTreeMap<String, Vec<String>> {
    let rig = Rig::new(&SimOptions { seed, ..quick() });
    let vms: Vec<_> = (0..3).map(|n| rig.add(n, &[], |_| ())).collect();
    let all = |operation: Operation| {
        let (done, outcomes) = bounded(vms.len());
        for vm in &vms {
            let done = done.clone();
            rig.core.submit_then(vm, "test", operation.clone(), move |result| done.send(result).unwrap());
        }
        for _ in &vms {
            assert_eq!(outcomes.recv_timeout(LIMIT).expect("all end"), Ok(()), "{operation}");
        }
    };
    rig.machine.trace.record();
    for _ in 0..2 {
        all(Operation::Start);
        all(Operation::Unpause);
        rig.until("all disks are connected", || {
            vms.iter().all(|vm| {
                DISKS.iter().all(|id| rig.device(vm, DeviceKind::Vbd, *id).frontend == CONNECTED)
                    && rig.device(vm, DeviceKind::Vif, 0).backend == CONNECTED
            })
        });
        all(Operation::Shutdown(Some(LONG)));
    }
    rig.machine.trace.recorded()
}

const CONNECTED: Option<XenbusState> = Some(XenbusState::Connected);

/// xvda and xvdb.
const DISKS: [u32; 2] = [51712, 51728];

#[test]
fn a_seed_repeats_what_every_object_does() {
    let first = trace(7);
    // Two starts of three VMs: a guest, three backends and three frontends each.
    assert_eq!(first.len(), 2 * 3 * 7, "{:?}", first.keys());
    assert!(first.values().all(|steps| !steps.is_empty()));
    assert_eq!(first, trace(7));
    let other = trace(8);
    assert_eq!(first.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>());
    assert_ne!(first, other);
}
