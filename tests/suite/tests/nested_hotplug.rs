//! Disks and network interfaces that come and go while the guest runs, on real Xen, and the scripts run for events.

use std::time::Instant;

use suite::{Dom0, Guest, LIMIT};
use xen_host::Options;
use xenopsd::api::{
    DeviceId, Disk, Error, PowerState, StepState, TaskStat, TaskState, Vbd, VbdAdd, VbdMode, VbdPlug,
    VbdStat, VbdUnplug, VifPlug, VifUnplug, VmExplain,
};

/// How often a device comes and goes.
const CYCLES: usize = 50;

fn dbg() -> String {
    "test".to_owned()
}

fn plug_disk(dom0: &Dom0, id: &DeviceId) -> Result<(), Error> {
    dom0.task(&VbdPlug { debug_info: dbg(), id: id.clone() })
}

fn unplug_disk(dom0: &Dom0, id: &DeviceId, force: bool) -> Result<(), Error> {
    dom0.task(&VbdUnplug { debug_info: dbg(), id: id.clone(), force })
}

/// Boots a guest and takes its devices away: their records stay, to be plugged again.
fn boot_bare(dom0: &Dom0, guest: &Guest) {
    dom0.boot(guest);
    for vbd in &guest.vbds {
        unplug_disk(dom0, &vbd.id, false).expect("a disk nobody uses");
    }
    for vif in &guest.vifs {
        let unplug = VifUnplug { debug_info: dbg(), id: vif.id.clone(), force: false };
        dom0.task(&unplug).expect("an interface goes");
    }
}

#[test]
fn disks_come_and_go_and_what_was_written_stays() {
    let dom0 = Dom0::start();
    dom0.sh("truncate -s 8M /root/hot.img");
    let guest = Guest::new("hot").disk("xvdb", "/root/hot.img", VbdMode::ReadWrite);
    let unknown = dom0.snapshot();
    boot_bare(&dom0, &guest);
    let disk = guest.vbds[0].id.clone();
    let before = dom0.snapshot();

    plug_disk(&dom0, &disk).expect("is plugged");
    let wait = "n=0; while [ ! -e /sys/block/xvdb ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done";
    let write = "head -c 1048576 /dev/urandom >/tmp/data; dd if=/tmp/data of=/dev/xvdb bs=65536 conv=fsync 2>/dev/null";
    let sum = dom0.type_into(&guest, &format!("{wait}; {write}; md5sum </tmp/data"));
    // Plugged twice is plugged once.
    plug_disk(&dom0, &disk).expect("is plugged already");

    // Linux before 5.16 refuses to give up a disk that is open; a later one lets go of it, and nothing is read from it.
    dom0.type_into(&guest, "exec 9</dev/xvdb");
    unplug_disk(&dom0, &disk, false).expect("goes although it is open");
    let (_, state) = dom0.call(&VbdStat { debug_info: dbg(), id: disk.clone() }).expect("is known");
    assert!(!state.plugged);
    let said = dom0.type_into(&guest, "dd bs=512 count=1 skip=99 <&9 2>&1 >/dev/null; exec 9<&-");
    assert!(!said.contains("1+0 records in"), "{said}");
    before.must_be_left(&dom0);
    let written = dom0.sh("head -c 1048576 /root/hot.img | md5sum");
    assert_eq!(written.split_whitespace().next(), sum.split_whitespace().next(), "{sum}");

    let begun = Instant::now();
    for cycle in 0..CYCLES {
        plug_disk(&dom0, &disk).unwrap_or_else(|error| panic!("plug {cycle}: {error}"));
        unplug_disk(&dom0, &disk, false).unwrap_or_else(|error| panic!("unplug {cycle}: {error}"));
    }
    println!("{CYCLES} times plugged and unplugged in {:.1} s", begun.elapsed().as_secs_f32());
    assert_eq!(unplug_disk(&dom0, &disk, false), Err(Error::DeviceNotConnected));
    before.must_be_left(&dom0);

    // A file that is gone: an error, and nothing taken.
    dom0.sh("mv /root/hot.img /root/gone.img");
    let missing = plug_disk(&dom0, &disk);
    assert_eq!(missing, Err(Error::does_not_exist("disk", "/root/hot.img")));
    before.must_be_left(&dom0);
    let explained = dom0.call(&VmExplain { debug_info: dbg(), id: guest.id().to_owned() }).expect("explains");
    let steps = explained.expect("an operation").steps;
    assert!(matches!(steps[1].state, StepState::Failed(_)), "{steps:?}");
    assert_eq!(steps[0].undo[0].what, "unplug disk xvdb by force");
    let table = dom0.sh("xenops explain hot");
    assert!(table.contains("undone by: unplug disk xvdb by force"), "{table}");
    dom0.sh("mv /root/gone.img /root/hot.img");
    let end = crash_amid_plugs(&dom0, &guest, &disk);
    assert!(matches!(end, Error::BadPowerState { .. } | Error::DeviceNotConnected), "{end:?}");
    dom0.wait_for_power(&guest, PowerState::Halted);
    dom0.remove(&guest).expect("is forgotten");
    unknown.must_be_left(&dom0);
}

/// The guest crashes while a disk comes and goes; the error that tells of it.
fn crash_amid_plugs(dom0: &Dom0, guest: &Guest, disk: &DeviceId) -> Error {
    dom0.enter(guest, "echo 1 >/proc/sys/kernel/sysrq; echo c >/proc/sysrq-trigger");
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Err(error) = plug_disk(dom0, disk).and_then(|()| unplug_disk(dom0, disk, false)) {
            return error;
        }
        assert!(Instant::now() < deadline, "the guest does not crash");
    }
}

/// Milliseconds of the slowest of some cycles of a disk.
fn slowest_cycle(dom0: &Dom0, id: &DeviceId) -> u128 {
    let cycle = || {
        let begun = Instant::now();
        plug_disk(dom0, id).expect("is plugged");
        unplug_disk(dom0, id, false).expect("goes");
        begun.elapsed().as_millis()
    };
    (0..3).map(|_| cycle()).max().unwrap_or_default()
}

/// A guest that does not let go of a disk it uses: it is paused, so that its driver answers nothing; then it says what Linux
/// before 5.16 says in its place.
#[test]
fn a_guest_that_keeps_its_disk_is_overruled_and_in_nobody_elses_way() {
    let dom0 = Dom0::without_daemon(Options::default());
    // As long as anything here can take: that nobody waits for this guest is seen, not timed.
    dom0.start_daemon("--hotplug-timeout 600");
    dom0.sh("truncate -s 8M /root/kept.img /root/other.img /root/both.img");
    let keeper = Guest::new("keeper").disk("xvdb", "/root/kept.img", VbdMode::ReadWrite);
    let other = Guest::new("other").disk("xvdb", "/root/other.img", VbdMode::ReadWrite);
    boot_bare(&dom0, &keeper);
    boot_bare(&dom0, &other);
    let (kept, others) = (&keeper.vbds[0].id, &other.vbds[0].id);
    let before = dom0.snapshot();

    // Two clients plug it at once: it is there, once.
    std::thread::scope(|scope| {
        let both = [0, 1].map(|_| scope.spawn(|| plug_disk(&dom0, kept)));
        for client in both {
            client.join().expect("a client").expect("is plugged");
        }
    });
    assert_eq!(dom0.sh("losetup -nO BACK-FILE").trim(), "/root/kept.img");
    let wait = "n=0; while [ ! -e /sys/block/xvdb ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done";
    dom0.type_into(&keeper, &format!("{wait}; exec 9<>/dev/xvdb"));

    let alone = slowest_cycle(&dom0, others);
    dom0.pause(&keeper).expect("pauses");
    let unplug = VbdUnplug { debug_info: dbg(), id: kept.clone(), force: false };
    let task = dom0.call(&unplug).expect("is begun");
    let meanwhile = slowest_cycle(&dom0, others);
    let state = dom0.call(&TaskStat { debug_info: dbg(), id: task.clone() }).expect("is known").state;
    assert!(matches!(state, TaskState::Pending(_)), "{state:?}");
    println!(
        "the other VM's slowest plug and unplug: {alone} ms, and {meanwhile} ms while one guest does not answer"
    );
    assert!(meanwhile < 3 * alone.max(100), "{alone} ms alone, {meanwhile} ms meanwhile");

    // It says no, and is heard at once.
    let said = format!("/local/domain/{}/error/device/vbd/51728/error", dom0.domid(&keeper));
    dom0.sh(&format!("xenstore-write {said} '16 Device in use; refusing to close'"));
    let Err(Error::DeviceDetachRejected { class, id, message }) = dom0.wait_task(&task) else {
        panic!("it kept the disk")
    };
    assert!(class == "VBD" && id == kept.to_string() && message.contains("Device in use"), "{message}");
    assert!(dom0.call(&VbdStat { debug_info: dbg(), id: kept.clone() }).expect("is known").1.plugged);
    unplug_disk(&dom0, kept, true).expect("goes by force");
    dom0.sh(&format!("xenstore-rm {}", said.trim_end_matches("/vbd/51728/error")));
    before.must_be_left(&dom0);
    dom0.unpause(&keeper).expect("goes on");
    let read = dom0.type_into(&keeper, "dd bs=512 count=1 <&9 2>&1 >/dev/null; exec 9<&-");
    assert!(!read.contains("1+0 records in"), "{read}");
    plug_disk(&dom0, kept).expect("is plugged again");
    unplug_disk(&dom0, kept, false).expect("goes");

    // Two VMs want the same disk at once: one gets it.
    let shared = |guest: &Guest| {
        let vbd = Vbd {
            id: DeviceId::new(guest.id(), "xvde"),
            position: Some("xvde".parse().expect("a place")),
            backend: Some(Disk::Local("/root/both.img".to_owned())),
            ..Vbd::default()
        };
        dom0.call(&VbdAdd { debug_info: dbg(), vbd }).expect("is added")
    };
    let (one, two) = (shared(&keeper), shared(&other));
    let outcomes = std::thread::scope(|scope| {
        let both = [&one, &two].map(|id| scope.spawn(|| plug_disk(&dom0, id)));
        both.map(|client| client.join().expect("a client"))
    });
    let refused: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    let [Error::StorageBackendError { code, .. }] = refused[..] else { panic!("{outcomes:?}") };
    assert_eq!(code, "DISK_IN_USE");
    for guest in [&keeper, &other] {
        dom0.shutdown(guest, 60.0).expect("goes down");
    }
    assert_eq!(dom0.sh("losetup -ln").trim(), "");
}

#[test]
fn an_interface_comes_and_goes_and_carries_packets_in_between() {
    let dom0 = Dom0::start();
    dom0.sh("ip link set xenbr0 mtu 1500");
    let guest = Guest::new("net").vif("xenbr0");
    boot_bare(&dom0, &guest);
    let before = dom0.snapshot();
    let vif = guest.vifs[0].id.clone();
    for address in ["10.9.0.41", "10.9.0.42"] {
        dom0.task(&VifPlug { debug_info: dbg(), id: vif.clone() }).expect("is plugged");
        dom0.type_into(
            &guest,
            &format!(
                "n=0; while [ ! -e /sys/class/net/eth0 ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done
                 ip addr add {address}/24 dev eth0; ip link set eth0 up"
            )
            .replace('\n', ";"),
        );
        dom0.sh(&format!("ping -c 2 -i 0.2 -W 20 {address}"));
        let unplug = VifUnplug { debug_info: dbg(), id: vif.clone(), force: false };
        dom0.task(&unplug).expect("goes");
        before.must_be_left(&dom0);
    }
    dom0.shutdown(&guest, 60.0).expect("goes down");
}

#[test]
fn scripts_in_xapi_d_are_run_and_can_refuse() {
    let dom0 = Dom0::start();
    dom0.sh("for event in vm-pre-start vm-pre-shutdown vm-post-destroy; do
            mkdir -p /etc/xapi.d/$event
            printf '#!/bin/sh\\necho %s \"$@\" >>/root/hooks\\n' $event >/etc/xapi.d/$event/10-log
            chmod +x /etc/xapi.d/$event/10-log
        done");
    let guest = Guest::new("hooked");
    dom0.boot(&guest);
    let (id, domid) = (guest.id().to_owned(), dom0.domid(&guest));
    dom0.shutdown(&guest, 60.0).expect("goes down");
    let told = dom0.sh("cat /root/hooks");
    let expected = [
        format!("vm-pre-start -vmuuid {id} -reason none"),
        format!("vm-pre-shutdown -vmuuid {id} -vmdomid {domid} -reason clean-shutdown"),
        format!("vm-post-destroy -vmuuid {id} -reason clean-shutdown"),
    ];
    assert_eq!(told.lines().collect::<Vec<_>>(), expected);

    dom0.sh("printf '#!/bin/sh\\necho no room; exit 3\\n' >/etc/xapi.d/vm-pre-start/10-log");
    let refused = dom0.start_paused(&guest);
    let Err(Error::HookFailed { script, reason, stdout, code }) = refused else { panic!("{refused:?}") };
    assert_eq!(script, "/etc/xapi.d/vm-pre-start/10-log");
    assert_eq!([reason, stdout, code], ["none", "no room\n", "3"]);
}
