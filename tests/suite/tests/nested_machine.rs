//! The rest of a guest's machine on real Xen: its share of the processors, memory for its page tables, what its agent
//! says, and a guest that does in its part of the store what no driver does.
//!
//! One host serves all parts: each has guests of its own.

use suite::{Dom0, Guest};
use xenopsd::api::{DeviceId, Error, VbdMode, VbdPlug, VbdUnplug, VifUnplug, VmSetShadowMultiplier, VmState};

fn dbg() -> String {
    "test".to_owned()
}

#[test]
fn the_rest_of_the_machine_works_and_hostile_guests_harm_nobody() {
    let dom0 = Dom0::start();
    processors_are_shared_as_asked(&dom0);
    memory_for_page_tables_grows_and_shrinks(&dom0);
    what_an_agent_says_is_seen(&dom0);
    a_guest_that_lies_in_the_store_harms_nobody(&dom0);
}

fn processors_are_shared_as_asked(dom0: &Dom0) {
    let guest = Guest::new("shares").with(|vm| {
        vm.scheduler_params.priority = Some((512, 50));
        vm.scheduler_params.affinity = vec![vec![0, 4000]];
    });
    dom0.boot(&guest);
    let shown = dom0.sh("xl sched-credit2 -d shares");
    let line = shown.lines().last().expect("a line for the domain");
    let fields: Vec<_> = line.split_whitespace().rev().take(2).collect();
    assert_eq!(fields, ["50", "512"], "{shown}");
    dom0.shutdown(&guest, 60.0).expect("goes down");
    let nowhere = Guest::new("nowhere").with(|vm| vm.scheduler_params.affinity = vec![vec![4000]]);
    dom0.add(&nowhere);
    let before = dom0.snapshot();
    let refused = dom0.start_paused(&nowhere).expect_err("there is no such processor").to_string();
    assert!(refused.contains("4000"), "{refused}");
    before.must_be_left(dom0);
}

fn free_mib(dom0: &Dom0) -> i64 {
    dom0.sh("xl info free_memory").trim().parse().expect("a number")
}

fn memory_for_page_tables_grows_and_shrinks(dom0: &Dom0) {
    const DISK: &str = "/root/shadow.img";
    dom0.make_sector_disk(DISK, "shadow");
    let guest = Guest::hvm("shadow").disk("xvda", DISK, VbdMode::ReadWrite);
    dom0.add(&guest);
    dom0.start_paused(&guest).expect("starts");
    let set = |multiplier| {
        dom0.task(&VmSetShadowMultiplier { debug_info: dbg(), id: guest.id().to_owned(), multiplier })
    };
    let before = free_mib(dom0);
    // 256 pages for its vcpu and one for each of its 128 MiB, twenty times: 30 MiB.
    set(20.0).expect("there is room");
    let taken = before - free_mib(dom0);
    assert!((26..=31).contains(&taken), "{taken} MiB");
    assert!((dom0.state(&guest).shadow_multiplier_target - 20.0).abs() < 0.001);
    set(1.0).expect("gives it back");
    assert!((before - free_mib(dom0)).abs() <= 1);
    assert!(matches!(set(0.5), Err(Error::InternalError(_))));
    dom0.hard_shutdown(&guest).expect("goes");
}

fn what_an_agent_says_is_seen(dom0: &Dom0) {
    dom0.sh("truncate -s 8M /root/agent.img");
    let guest = Guest::new("agent").disk("xvda", "/root/agent.img", VbdMode::ReadWrite);
    dom0.boot(&guest);
    dom0.type_into(
        &guest,
        "xenstore-write attr/vif/0/ipv4/0 10.9.0.5 attr/PVAddons/MajorVersion 7 data/os_name \
         \"$(printf 'Evil\\033[2J\\377')\" data/updated 1",
    );
    let says = |state: &VmState, key: &str| state.guest_agent.get(key).cloned();
    let state = dom0.wait_until(&guest, "its agent is heard", |state| says(state, "data/updated").is_some());
    assert_eq!(says(&state, "attr/vif/0/ipv4/0").as_deref(), Some("10.9.0.5"));
    assert!(state.pv_drivers_detected, "its disk's driver is connected");
    // The kernel's own.
    assert_eq!(says(&state, "control/feature-poweroff").as_deref(), Some("1"));
    let shown = dom0.sh("xenops show agent");
    // XML cannot hold the escape, JSON can, and `xenops` would print it as `\\u{1b}`.
    assert!(shown.contains("Evil") && !shown.contains('\u{1b}'), "{shown:?}");
    assert!(shown.contains("vif 0: 10.9.0.5"), "{shown}");
    dom0.type_into(&guest, "xenstore-write attr/vif/0/ipv4/0 10.9.0.6");
    dom0.wait_until(&guest, "its new address", |state| {
        says(state, "attr/vif/0/ipv4/0").as_deref() == Some("10.9.0.6")
    });
    dom0.shutdown(&guest, 60.0).expect("goes down");
}

fn a_guest_that_lies_in_the_store_harms_nobody(dom0: &Dom0) {
    dom0.sh("truncate -s 8M /root/hostile.img /root/other.img");
    let hostile = Guest::new("hostile").disk("xvda", "/root/hostile.img", VbdMode::ReadWrite).vif("xenbr0");
    let other = Guest::new("other").disk("xvda", "/root/other.img", VbdMode::ReadWrite);
    dom0.add(&hostile);
    dom0.add(&other);
    let before = dom0.snapshot();
    dom0.run_guest(&other);
    dom0.said(&other, "GUEST: ready");
    dom0.run_guest(&hostile);
    dom0.said(&hostile, "GUEST: ready");
    let domid = dom0.domid(&other);
    // Its disk's backend is another guest's, its states jump, its card's directory is gone, and it writes all the time.
    dom0.type_into(
        &hostile,
        &format!(
            "xenstore-write device/vbd/51712/backend /local/domain/0/backend/vbd/{domid}/51712 \
             device/vbd/51712/backend-id {domid} device/vbd/51712/state 6; \
             xenstore-write device/vbd/51712/state 3; xenstore-rm device/vif/0; \
             (n=0; while :; do n=$((n+1)); xenstore-write data/x$((n % 300)) $n; done >/dev/null 2>&1 &)"
        ),
    );
    let disk = DeviceId::new(other.id(), "xvda");
    for _ in 0..3 {
        dom0.task(&VbdUnplug { debug_info: dbg(), id: disk.clone(), force: false }).expect("the other's");
        dom0.task(&VbdPlug { debug_info: dbg(), id: disk.clone() }).expect("comes back");
    }
    let vbd = DeviceId::new(hostile.id(), "xvda");
    dom0.task(&VbdUnplug { debug_info: dbg(), id: vbd, force: true }).expect("is taken away");
    let vif = DeviceId::new(hostile.id(), "0");
    dom0.task(&VifUnplug { debug_info: dbg(), id: vif, force: true }).expect("is taken away");
    assert!(dom0.read(&format!("/local/domain/0/backend/vbd/{domid}/51712/state")).is_some(), "the other's");
    dom0.hard_shutdown(&hostile).expect("goes");
    dom0.shutdown(&other, 60.0).expect("goes down");
    before.must_be_left(dom0);
}
