//! The daemon is killed in the middle of an operation, on real Xen; the next one finishes the job.

use suite::{Dom0, Guest};
use xen_host::programs::DAEMON_LOG;
use xenopsd::api::{DeviceId, PowerState, VbdMode, VbdPlug, VbdRemove, VbdStat, VbdUnplug};

const DISK: &str = "/root/disk.img";

/// The daemon is killed when its log says that this step is done; the next step may have begun by then.
const WHILE_STARTING: [&str; 6] =
    ["check", "create domain", "plug disk xvda", "plug interface 0", "build domain", "settle"];
const WHILE_STOPPING: [&str; 4] = ["pause", "close devices", "destroy domain", "release devices"];
const WHILE_PLUGGING: [&str; 2] = ["begin plug of disk xvdb", "plug disk xvdb"];
const WHILE_UNPLUGGING: [&str; 1] = ["unplug disk xvdb by force"];

/// Kills the daemon, as hard as can be, when it has done `step`: a command for dom0's shell, `$pid` being the daemon.
fn killer(step: &str) -> String {
    format!(
        "read -r pid </run/xenopsd.pid
         (tail --pid=$pid -s 0.02 -n0 -F {DAEMON_LOG} 2>/dev/null | grep -q -m1 -F 'runner: {step} '; kill -9 $pid)"
    )
}

/// Runs `command` in dom0 and kills the daemon when it has done `step`.
fn killed_after(dom0: &Dom0, step: &str, command: &str) {
    dom0.sh(&format!(
        "{} &
         {command} >/dev/null 2>&1
         wait
         : >{DAEMON_LOG}",
        killer(step)
    ));
    dom0.start_daemon("--log-level xenopsd=debug");
}

/// Asks the daemon for something, and kills it when it has done `step` of that.
fn killed_while(dom0: &Dom0, step: &str, ask: impl FnOnce()) {
    dom0.sh(&format!("{} </dev/null >/dev/null 2>&1 &", killer(step)));
    ask();
    dom0.sh(&format!(
        "read -r pid </run/xenopsd.pid; timeout 60 tail --pid=$pid -s 0.05 -f /dev/null; : >{DAEMON_LOG}"
    ));
    dom0.start_daemon("--log-level xenopsd=debug");
}

/// What the new daemon makes of what it found: the domain is complete, or it goes.
fn recovered(dom0: &Dom0, guest: &Guest) -> PowerState {
    let state = dom0.state(guest);
    let half_done = state.domids.first().is_some_and(|domid| {
        dom0.read(&format!("/libxl/{domid}/xenopsd-pending")).is_some() || dom0.state(guest).domids.is_empty()
    });
    if half_done { dom0.wait_for_power(guest, PowerState::Halted).power_state } else { state.power_state }
}

#[test]
fn a_daemon_killed_in_the_middle_leaves_nothing_to_its_successor() {
    let dom0 = Dom0::start();
    dom0.stop_daemon("KILL");
    dom0.start_daemon("--log-level xenopsd=debug");
    dom0.sh(&format!("truncate -s 8M {DISK}"));
    let guest = Guest::new("web").disk("xvda", DISK, VbdMode::ReadWrite).vif("xenbr0");
    let before = dom0.snapshot();
    dom0.add(&guest);

    let mut half_built = 0;
    for step in WHILE_STARTING {
        killed_after(&dom0, step, "xenops start --paused web");
        match recovered(&dom0, &guest) {
            PowerState::Halted => half_built += 1,
            PowerState::Paused => dom0.hard_shutdown(&guest).expect("a complete domain can be shut down"),
            other => panic!("{other:?} after a kill at {step:?}"),
        }
    }
    assert!(half_built >= 3, "only {half_built} kills met a half-built domain");

    for step in WHILE_STOPPING {
        dom0.start_paused(&guest).expect("starts");
        killed_after(&dom0, step, "xenops shutdown --hard web");
        dom0.wait_for_power(&guest, PowerState::Halted);
    }

    dom0.remove(&guest).expect("halted");
    before.must_be_left(&dom0);
}

#[test]
fn a_daemon_killed_while_a_device_comes_or_goes_leaves_it_whole_or_not_at_all() {
    let dom0 = Dom0::start();
    dom0.stop_daemon("KILL");
    dom0.start_daemon("--log-level xenopsd=debug");
    dom0.sh(&format!("truncate -s 8M {DISK}"));
    let guest = Guest::new("hot").disk("xvdb", DISK, VbdMode::ReadWrite);
    let id = DeviceId::new(&guest.vm.id, "xvdb");
    let dbg = || "test".to_owned();
    let plug = || VbdPlug { debug_info: dbg(), id: id.clone() };
    let unplug = || VbdUnplug { debug_info: dbg(), id: id.clone(), force: true };
    let plugged = || dom0.call(&VbdStat { debug_info: dbg(), id: id.clone() }).expect("is known").1.plugged;
    dom0.add(&guest);
    dom0.start_paused(&guest).expect("starts");
    dom0.task(&unplug()).expect("goes");
    let (before, domid) = (dom0.snapshot(), dom0.domid(&guest));
    let converged = |step: &str| {
        // Behind the look that the new daemon takes by itself.
        dom0.unpause(&guest).expect("runs");
        dom0.pause(&guest).expect("stands");
        assert_eq!(dom0.domid(&guest), domid, "the guest goes on after a kill at {step:?}");
        let private = dom0.sh(&format!("xenstore-list /libxl/{domid}"));
        assert!(
            private.contains("device") && !private.contains("xenopsd-plugging"),
            "after a kill at {step:?}: {private}"
        );
    };
    for step in WHILE_PLUGGING {
        killed_while(&dom0, step, || drop(dom0.call(&plug()).expect("is queued")));
        converged(step);
        if plugged() {
            dom0.task(&unplug()).expect("goes");
        }
        before.must_be_left(&dom0);
    }
    for step in WHILE_UNPLUGGING {
        dom0.task(&plug()).expect("comes");
        killed_while(&dom0, step, || drop(dom0.call(&unplug()).expect("is queued")));
        converged(step);
        assert!(!plugged(), "after a kill at {step:?}");
        before.must_be_left(&dom0);
    }
    dom0.hard_shutdown(&guest).expect("goes");
    dom0.call(&VbdRemove { debug_info: dbg(), id: id.clone() }).expect("is not plugged");
    dom0.remove(&guest).expect("halted");
}
