//! What guests do with their memory and vcpus, and what the machine refuses.

use super::*;
use crate::edge::{
    Access, DiskWanted, DomainInfo, FeatureSet, GuestKind, Hypervisor, HypervisorError, NewDomain,
    VifSettings,
};
use xenstore::Operations;

const MIB_PAGES: u64 = 256;

fn info(rig: &Rig, vm: &str) -> DomainInfo {
    rig.core.domain_of(vm).unwrap().unwrap()
}

fn until(rig: &Rig, vm: &str, what: &str, is_so: impl Fn(&DomainInfo) -> bool) {
    let domid = rig.domid(vm).unwrap();
    let waited = rig.machine.wait(LIMIT, |hardware| hardware.info(domid).is_some_and(|info| is_so(&info)));
    assert!(waited, "waited in vain until {what}");
}

fn write(rig: &Rig, vm: &str, node: &str, value: &str) {
    let path = format!("/local/domain/{}/{node}", rig.domid(vm).unwrap());
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    store.write(&xenstore::Path::new(&path).unwrap(), value).unwrap();
}

#[test]
fn a_balloon_follows_its_target() {
    for word in ["obey", "slow"] {
        let rig = Rig::new(&quick());
        let vm = rig.add(1, &[("balloon", word)], |_| ());
        rig.start(&vm).unwrap();
        for (target_mib, pages) in [(48, 48 * MIB_PAGES), (64, 64 * MIB_PAGES), (1 << 20, 65 * MIB_PAGES)] {
            write(&rig, &vm, "memory/target", &format!("{}", target_mib * 1024));
            // The last is above the hard limit, which has a MiB of slack.
            until(&rig, &vm, &format!("{word}: {target_mib} MiB"), |info| info.tot_pages == pages);
        }
        rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    }
}

#[test]
fn a_balloon_that_refuses_keeps_its_pages() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[("balloon", "refuse")], |_| ());
    let obeys = rig.add(2, &[], |_| ());
    rig.start(&vm).unwrap();
    rig.start(&obeys).unwrap();
    for vm in [&vm, &obeys] {
        write(&rig, vm, "memory/target", "32768");
    }
    until(&rig, &obeys, "it follows", |info| info.tot_pages == 32 * MIB_PAGES);
    assert_eq!(info(&rig, &vm).tot_pages, 64 * MIB_PAGES);
}

#[test]
fn a_guest_starts_the_vcpus_it_is_to_have() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| (vm.vcpu_max, vm.vcpus) = (4, 3));
    rig.run(&vm, Operation::Start).unwrap();
    assert_eq!((info(&rig, &vm).nr_online_vcpus, info(&rig, &vm).max_vcpu_id), (1, Some(3)));
    rig.run(&vm, Operation::Unpause).unwrap();
    until(&rig, &vm, "three are up", |info| info.nr_online_vcpus == 3);
    write(&rig, &vm, "cpu/1/availability", "offline");
    until(&rig, &vm, "one is down", |info| info.nr_online_vcpus == 2);
}

#[test]
fn habits_of_all_guests_yield_to_those_of_a_vm() {
    let script = vec![("balloon".to_owned(), "refuse".to_owned())];
    let rig = Rig::new(&SimOptions { script, ..quick() });
    let (refuses, obeys) = (rig.add(1, &[], |_| ()), rig.add(2, &[("balloon", "obey")], |_| ()));
    for vm in [&refuses, &obeys] {
        rig.start(vm).unwrap();
        write(&rig, vm, "memory/target", "32768");
    }
    until(&rig, &obeys, "it follows", |info| info.tot_pages == 32 * MIB_PAGES);
    assert_eq!(info(&rig, &refuses).tot_pages, 64 * MIB_PAGES);
}

#[test]
fn lost_watches_lose_nothing() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let before = rig.remains(&vm);
    for _ in 0..20 {
        let (done, outcome) = bounded(2);
        for operation in [Operation::Start, Operation::Unpause] {
            let done = done.clone();
            rig.core.submit_then(&vm, "test", operation, move |result| done.send(result).unwrap());
        }
        while outcome.is_empty() {
            rig.machine.lose_watches();
        }
        for _ in 0..2 {
            assert_eq!(outcome.recv_timeout(LIMIT).unwrap(), Ok(()));
        }
        rig.machine.lose_watches();
        // Nobody asks for this one: it is noticed.
        rig.machine.stop_guest(rig.domid(&vm).unwrap(), crate::edge::ShutdownReason::PowerOff);
        rig.until_remains(&vm, &before, "its own end");
    }
}

/// Every call of the three edges can be made to fail.
#[test]
fn every_call_of_the_edges_can_fail() {
    let rig = Rig::new(&quick());
    let edges = &rig.machine.edges;
    let (hypervisor, mut store) = (edges.hypervisor().unwrap(), edges.store().unwrap());
    rig.machine.faults.arm(Fault::From { nth: 0 });
    let id = DomId::new(1).unwrap();
    let new = NewDomain::new(GuestKind::Pv, [1; 16], 1);
    let h: &dyn Hypervisor = &**hypervisor;
    let failures: Vec<Result<(), HypervisorError>> = vec![
        h.version().map(drop),
        h.host().map(drop),
        h.domains().map(drop),
        h.domain(id).map(drop),
        h.create(&new).map(drop),
        h.set_scheduler(id, 256, 0),
        h.set_affinity(id, 0, &crate::edge::CpuMap::of([0])),
        h.paging_kib(id).map(drop),
        h.set_paging_kib(id, 1024),
        h.set_memory_target(id, 1024),
        h.pause(id),
        h.unpause(id),
        h.destroy(id),
        h.console_ring().map(drop),
        h.features(FeatureSet::Pv).map(drop),
        h.send_debug_keys("q"),
    ];
    for (n, failure) in failures.iter().enumerate() {
        let failure = failure.as_ref().expect_err("all fail").to_string();
        assert!(failure.contains("injected"), "{n}: {failure}");
    }
    assert!(store.read(&xenstore::Path::root()).is_err());
    let disk = std::path::Path::new("/srv/1.img");
    let wanted = DiskWanted { path: disk, access: Access::ReadOnly, block_size: None };
    let settings = VifSettings {
        bridge: "br0".to_owned(),
        mtu: None,
        carrier: true,
        locked: None,
        offloads: Vec::new(),
        promiscuous: false,
        vlan: None,
        trunks: Vec::new(),
        external_ids: Vec::new(),
        scripted: false,
    };
    let host = edges.host();
    for failure in [
        host.check_disk(disk, Access::ReadOnly),
        host.attach_disk(&wanted, &mut |_, _| Ok(())).map(|attached| attached.id),
        host.disk_id(7, 0),
    ] {
        assert!(failure.expect_err("all fail").to_string().contains("injected"));
    }
    for failure in
        [host.check_bridge("br0").map(drop), host.connect_vif("vif1.0", &settings, &mut |_| Ok(()))]
    {
        assert!(failure.expect_err("all fail").to_string().contains("injected"));
    }
    rig.machine.faults.disarm();
    host.check_disk(disk, Access::ReadOnly).unwrap();
}
