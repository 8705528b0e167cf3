//! Many VMs at once.

use super::*;

#[test]
fn a_thousand_vms_start_and_stop_in_parallel() {
    const VMS: u32 = 1000;
    let rig = Rig::new(&SimOptions { memory_mib: 256 * 1024, ..quick() });
    let vms: Vec<_> = (0..VMS).map(|n| rig.add(n, &[], |_| ())).collect();
    let (done, outcomes) = crossbeam::channel::unbounded();
    let all = |operation: &Operation| {
        let started = Instant::now();
        for vm in &vms {
            let done = done.clone();
            rig.core.submit_then(vm, "test", operation.clone(), move |result| {
                // The test may have given up.
                let _ = done.send(result);
            });
        }
        for ended in 0..vms.len() {
            let outcome =
                outcomes.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{operation}: only {ended} end"));
            assert_eq!(outcome, Ok(()), "{operation}, {ended} before it");
        }
        eprintln!("{VMS} times {operation}: {:?}", started.elapsed());
    };
    all(&Operation::Start);
    assert_eq!(rig.machine.hardware(crate::sim::Hardware::domids).len(), vms.len());
    all(&Operation::Unpause);
    rig.until("the last disk is connected", || {
        rig.disk(&vms[vms.len() - 1]).frontend == Some(xenstore::layout::XenbusState::Connected)
    });
    all(&Operation::Shutdown(Some(LONG)));
    assert!(rig.machine.hardware(crate::sim::Hardware::domids).is_empty());
    let left = rig.machine.store.lock().dump().len();
    assert!(left < 20, "{left} nodes are left");
}
