//! A real PV guest on real Xen, to an image and back: what it counts goes on, and so do its disk and network.

use suite::{Dom0, Guest};
use xen_host::programs::DAEMON_LOG;
use xenopsd::api::{Disk, Error, PowerState, TaskId, VbdMode, VmCheckpoint, VmResume, VmSuspend};

const IMAGE: &str = "/root/image";

fn dbg() -> String {
    "test".to_owned()
}

fn image() -> Disk {
    Disk::Local(IMAGE.to_owned())
}

fn suspend(guest: &Guest) -> VmSuspend {
    VmSuspend { debug_info: dbg(), id: guest.id().to_owned(), suspend_vdi: image() }
}

fn resume(guest: &Guest) -> VmResume {
    VmResume { debug_info: dbg(), id: guest.id().to_owned(), suspend_vdi: image() }
}

#[test]
fn a_guest_goes_on_after_suspend_and_resume_and_after_a_checkpoint() {
    let dom0 = Dom0::start();
    dom0.sh("printf 'a disk' >/root/disk.img; truncate -s 8M /root/disk.img");
    let guest = Guest::new("web")
        .cmdline("gip=10.9.0.21 tick")
        .disk("xvda", "/root/disk.img", VbdMode::ReadWrite)
        .vif("xenbr0");
    dom0.boot(&guest);
    dom0.type_into(&guest, "mkdir -p /tmp; echo in memory >/tmp/kept");
    dom0.has_kept(&guest, "before");
    let first = dom0.domid(&guest);

    dom0.task(&suspend(&guest)).expect("suspends");
    assert_eq!(dom0.state(&guest).power_state, PowerState::Suspended);
    assert!(!dom0.run("xl domid web").success(), "no domain is left");
    assert_eq!(dom0.sh(&format!("stat -c %a {IMAGE}")).trim(), "600");
    dom0.forget_output(&guest);
    dom0.task(&resume(&guest)).expect("resumes");
    assert_eq!(dom0.state(&guest).power_state, PowerState::Paused);
    dom0.unpause(&guest).expect("runs");
    assert_ne!(dom0.domid(&guest), first);
    dom0.said(&guest, "GUEST: tick");
    dom0.has_kept(&guest, "after a resume");

    let domid = dom0.domid(&guest);
    let call = VmCheckpoint { debug_info: dbg(), id: guest.id().to_owned(), suspend_vdi: image() };
    let _: TaskId = dom0
        .call(&call)
        .map(|task| dom0.wait_task(&task).map(|()| task))
        .expect("a task")
        .expect("a checkpoint");
    assert_eq!(dom0.domid(&guest), domid, "the same domain");
    dom0.has_kept(&guest, "after a checkpoint");

    // A file system without room for it: said before the guest is asked.
    dom0.sh("mkdir -p /mnt/small; mount -t tmpfs -o size=8M tmpfs /mnt/small");
    let small = Disk::Local("/mnt/small/image".to_owned());
    let refused = dom0.task(&VmSuspend { suspend_vdi: small, ..suspend(&guest) });
    assert!(
        matches!(&refused, Err(Error::InternalError(text)) if text.contains("are needed")),
        "{refused:?}"
    );
    dom0.has_kept(&guest, "after a refusal");
    dom0.shutdown(&guest, 60.0).expect("shuts down");
    dom0.remove(&guest).expect("is forgotten");
}

/// Runs `command` in dom0 and kills the daemon, as hard as can be, when it has done `step`: the next one has begun.
fn killed_after(dom0: &Dom0, step: &str, command: &str) {
    dom0.sh(&format!(
        "read -r pid </run/xenopsd.pid
         (tail --pid=$pid -s 0.02 -n0 -F {DAEMON_LOG} 2>/dev/null | grep -q -m1 -F 'runner: {step} '; kill -9 $pid) &
         {command} >/dev/null 2>&1
         wait
         : >{DAEMON_LOG}"
    ));
    dom0.start_daemon("--log-level xenopsd=debug");
}

#[test]
fn a_daemon_killed_in_a_save_or_a_restore_loses_no_guest() {
    let dom0 = Dom0::start();
    dom0.stop_daemon("KILL");
    dom0.start_daemon("--log-level xenopsd=debug");
    dom0.sh("printf 'a disk' >/root/disk.img; truncate -s 8M /root/disk.img");
    let guest = Guest::new("web")
        .cmdline("gip=10.9.0.21")
        .disk("xvda", "/root/disk.img", VbdMode::ReadWrite)
        .vif("xenbr0");
    dom0.boot(&guest);
    dom0.type_into(&guest, "mkdir -p /tmp; echo in memory >/tmp/kept");
    let domid = dom0.domid(&guest);

    killed_after(&dom0, "ask for suspend", &format!("xenops suspend web {IMAGE}"));
    let state = dom0.state(&guest);
    assert_eq!((state.power_state, &state.domids[..]), (PowerState::Running, &[domid][..]));
    dom0.has_kept(&guest, "after a kill in the save");
    dom0.sh(&format!("! test -e {IMAGE}"));

    dom0.task(&suspend(&guest)).expect("suspends");
    killed_after(&dom0, "create domain", &format!("xenops resume web {IMAGE}"));
    dom0.wait_for_power(&guest, PowerState::Suspended);
    dom0.task(&resume(&guest)).expect("resumes");
    dom0.unpause(&guest).expect("runs");
    dom0.has_kept(&guest, "after a kill in the restore");
    dom0.hard_shutdown(&guest).expect("goes down");
    dom0.remove(&guest).expect("is forgotten");
}
