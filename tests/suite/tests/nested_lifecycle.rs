//! A guest's life under the daemon, on real Xen: from a configuration file to nothing left.

use std::time::{Duration, Instant};

use suite::{Dom0, Guest, LIMIT};
use xen_host::programs::DAEMON_LOG;
use xenopsd::api::{
    Action, Error, PowerState, TaskCancel, TaskDestroy, TaskId, TaskList, TaskStat, TaskState, VbdMode,
    VmBuild, VmCreate, VmDestroy, VmShutdown, VmStart,
};

const DISK: &str = "/root/disk.img";

const CONFIG: &str = r#"
name = "web"
type = "pv"
kernel = "/guests/vmlinux"
ramdisk = "/guests/initramfs"
extra = "console=hvc0 gip=10.9.0.21"
memory = 128
vcpus = 1
disk = ["format=raw,vdev=xvda,access=rw,target=/root/disk.img"]
vif = ["bridge=xenbr0,mac=00:16:3e:00:00:21"]
"#;

fn dbg() -> String {
    "test".to_owned()
}

#[test]
fn from_a_file_to_a_running_guest_to_nothing() {
    let dom0 = Dom0::start();
    let before = dom0.snapshot();
    dom0.sh(&format!("truncate -s 8M {DISK}; printf %s {} >/root/web.cfg", xen_host::quote(CONFIG)));
    let id = dom0.sh("xenops create /root/web.cfg").trim().to_owned();
    assert!(dom0.sh("xenops list").contains("Halted"));
    dom0.sh("xenops start web");
    for line in ["GUEST: disk xvda 8388608", "GUEST: net up 10.9.0.21", "GUEST: ready"] {
        dom0.host.wait_for_guest("web", line, LIMIT).expect(line);
    }

    let list = dom0.sh("xenops list");
    assert!(list.contains(&id) && list.contains("Running") && list.contains("128"), "{list}");
    let show = dom0.sh("xenops show web");
    let consoles = ["console      VNC on port", "console      text on port"];
    let others = ["state        Running", "/guests/vmlinux", "/root/disk.img", "xvda", "vif1.0", "xenbr0"];
    for part in consoles.iter().chain(&others) {
        assert!(show.contains(part), "{part}: {show}");
    }
    let xl = dom0.sh("xl list web");
    assert!(xl.contains("web") && xl.contains(" 128 "), "{xl}");
    assert_eq!(dom0.sh("xl domid web").trim(), "1");
    assert_eq!(dom0.read("/local/domain/1/vm"), Some(format!("/vm/{id}")));

    // Somebody at the console types and reads.
    dom0.sh(r#"coproc C { xenops console web; }
        printf 'echo con""sole-works\r' >&${C[1]}
        timeout 60 grep -q -m1 -a console-works <&${C[0]}
        printf '\x1d' >&${C[1]}
        wait $C_PID"#);

    dom0.sh("xenops shutdown web --timeout 60");
    dom0.host.wait_for_guest("web", "GUEST: poweroff", LIMIT).expect("the guest did it itself");
    assert!(dom0.sh("xenops list").contains("Halted"));
    dom0.sh("xenops destroy web");
    assert_eq!(dom0.sh("xenops list").lines().count(), 1);
    before.must_be_left(&dom0);
}

#[test]
fn data_for_the_guest_pause_and_reboot() {
    let dom0 = Dom0::start();
    let before = dom0.snapshot();
    let guest = Guest::new("web").with(|vm| {
        let pairs = [
            ("vm-data/foo", "bar"),
            ("vm-data/deep/er", "x"),
            ("attr/os", "no"),
            ("vm-data/../name", "evil"),
        ];
        vm.xsdata.0 = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    });
    dom0.boot(&guest);
    let domid = dom0.domid(&guest);
    let home = format!("/local/domain/{domid}");
    assert_eq!(dom0.type_into(&guest, "xenstore-read vm-data/foo vm-data/deep/er"), "bar\nx");
    assert_eq!(dom0.read(&format!("{home}/attr/os")), None);
    assert_eq!(dom0.read(&format!("{home}/name")).as_deref(), Some("web"));
    assert_eq!(dom0.type_into(&guest, "xenstore-write vm-data/back home && echo wrote"), "wrote");
    let data = dom0.state(&guest).xsdata_state;
    assert_eq!(data.get("vm-data/back").map(String::as_str), Some("home"), "{data:?}");
    // Its name and memory are not the guest's to change.
    let refused = dom0.type_into(&guest, "xenstore-write name x; xenstore-write memory/target 1; echo tried");
    assert!(refused.contains("tried"), "{refused}");
    assert_eq!(dom0.read(&format!("{home}/name")).as_deref(), Some("web"));
    assert_eq!(dom0.read(&format!("{home}/memory/target")).as_deref(), Some("131072"));

    dom0.pause(&guest).expect("pauses");
    assert_eq!(dom0.state(&guest).power_state, PowerState::Paused);
    assert!(dom0.sh("xl list web").contains("p---"), "blocked as it may be, it is paused");
    dom0.pause(&guest).expect("is paused already");
    dom0.unpause(&guest).expect("goes on");
    assert_eq!(dom0.state(&guest).power_state, PowerState::Running);
    assert_eq!(dom0.type_into(&guest, "echo alive"), "alive");
    assert_eq!(
        dom0.remove(&guest),
        Err(Error::BadPowerState { found: PowerState::Running, expected: PowerState::Halted })
    );

    dom0.forget_output(&guest);
    dom0.reboot(&guest, Some(60.0)).expect("reboots");
    dom0.said(&guest, "GUEST: ready");
    let state = dom0.state(&guest);
    assert_eq!(state.power_state, PowerState::Running);
    assert_ne!(state.domids, [domid]);
    assert_eq!(dom0.type_into(&guest, "xenstore-read vm-data/foo"), "bar");
    dom0.reboot(&guest, None).expect("reboots by force");
    dom0.hard_shutdown(&guest).expect("goes down");
    dom0.hard_shutdown(&guest).expect("is down already");
    assert!(matches!(
        dom0.shutdown(&guest, 1.0),
        Err(Error::BadPowerState { found: PowerState::Halted, .. })
    ));
    assert!(matches!(dom0.pause(&guest), Err(Error::BadPowerState { found: PowerState::Halted, .. })));
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(&dom0);
}

#[test]
fn a_guest_that_does_not_shut_down() {
    let dom0 = Dom0::start();
    let before = dom0.snapshot();
    let guest = Guest::new("deaf").cmdline("noshutdown");
    dom0.boot(&guest);

    // A paused guest cannot even take the request.
    dom0.pause(&guest).expect("pauses");
    let begin = Instant::now();
    assert_eq!(dom0.shutdown(&guest, 3.0), Err(Error::FailedToAcknowledgeShutdownRequest));
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(3) && took < Duration::from_secs(10), "{took:?}");
    let request = format!("/local/domain/{}/control/shutdown", dom0.domid(&guest));
    assert_eq!(dom0.read(&request).as_deref(), Some(""), "the request is withdrawn");
    dom0.unpause(&guest).expect("goes on");

    let begin = Instant::now();
    assert_eq!(
        dom0.shutdown(&guest, 5.0),
        Err(Error::FailedToShutdown { id: guest.id().to_owned(), timeout: 5.0 })
    );
    let took = begin.elapsed();
    assert!(took >= Duration::from_secs(5) && took < Duration::from_secs(12), "{took:?}");
    dom0.said(&guest, "GUEST: ignoring poweroff");
    let output = dom0.run("xenops shutdown deaf --timeout 2");
    assert_eq!(output.status, 1);
    assert!(output.error_text().contains("did not shut down within 2 s"), "{}", output.error_text());
    assert_eq!(dom0.state(&guest).power_state, PowerState::Running);

    // Somebody who does not want to wait any longer.
    let call = VmShutdown { debug_info: dbg(), id: guest.id().to_owned(), delay: Some(3600.0) };
    let task = dom0.call(&call).expect("a task");
    let stat = |id: &TaskId| dom0.call(&TaskStat { debug_info: dbg(), id: id.clone() });
    let running = stat(&task).expect("is there");
    assert!(matches!(running.state, TaskState::Pending(_)) && running.cancellable, "{running:?}");
    assert_eq!(running.dbg, "test");
    dom0.call(&TaskCancel { debug_info: dbg(), id: task.clone() }).expect("cancels");
    assert_eq!(dom0.wait_task(&task), Err(Error::Cancelled(task.clone())));
    assert_eq!(stat(&task), Err(Error::does_not_exist("Task", &task)));
    assert_eq!(dom0.state(&guest).power_state, PowerState::Running);
    assert_eq!(
        dom0.call(&TaskDestroy { debug_info: dbg(), id: "999999".to_owned() }),
        Err(Error::does_not_exist("Task", "999999"))
    );

    dom0.hard_shutdown(&guest).expect("goes down by force");
    dom0.remove(&guest).expect("is forgotten");
    assert_eq!(dom0.call(&TaskList { debug_info: dbg() }).expect("lists"), []);
    before.must_be_left(&dom0);
}

/// Each guest stops by itself, all at the same time.
#[test]
fn what_a_guest_does_by_itself() {
    let dom0 = Dom0::start();
    let before = dom0.snapshot();
    let poweroff = Guest::new("poweroff").cmdline("do=poweroff");
    let reboot = Guest::new("reboot").cmdline("do=reboot").with(|vm| vm.on_reboot = vec![Action::Start]);
    let crash = Guest::new("crash").cmdline("do=crash").with(|vm| vm.on_crash = vec![Action::Start]);
    let kept = Guest::new("kept").cmdline("do=crash").with(|vm| vm.on_crash = vec![Action::Pause]);
    let all = [&poweroff, &reboot, &crash, &kept];
    for guest in all {
        dom0.add(guest);
    }
    let starts = all.map(|guest| {
        let id = guest.id().to_owned();
        dom0.call(&VmStart { debug_info: dbg(), id, paused: true }).expect("a task")
    });
    for task in &starts {
        dom0.wait_task(task).expect("starts");
    }
    let first = dom0.domid(&reboot);
    for guest in all {
        dom0.unpause(guest).expect("runs");
    }

    dom0.wait_for_power(&poweroff, PowerState::Halted);
    dom0.said(&poweroff, "GUEST: ready");
    let again = |state: &xenopsd::api::VmState| state.domids.iter().any(|domid| *domid != first);
    let state = dom0.wait_until(&reboot, "rebooted", again);
    assert_eq!(state.power_state, PowerState::Running);
    dom0.hard_shutdown(&reboot).expect("stops rebooting");
    // It would crash at every start: so it is not started for ever.
    dom0.wait_for_power(&crash, PowerState::Halted);
    assert!(dom0.sh("grep -c 'not started again' /var/log/xenopsd.log").trim() == "1");
    dom0.said(&kept, "GUEST: ready");
    dom0.host.wait_for_text(DAEMON_LOG, "reason=Crash actions=[Pause]", LIMIT).expect("is seen");
    let list = dom0.sh("xl list kept");
    assert!(list.contains("---sc-"), "a preserved guest is there to be looked at: {list}");
    assert_eq!(dom0.state(&kept).domids.len(), 1);
    dom0.hard_shutdown(&kept).expect("goes down");
    for guest in all {
        dom0.remove(guest).expect("is forgotten");
    }
    before.must_be_left(&dom0);
}

#[test]
fn ten_at_once_and_ten_times() {
    let dom0 = Dom0::start();
    dom0.sh("truncate -s 8M /root/disk{0..9}.img");
    let guest = |n: usize| {
        Guest::new(&format!("g{n}"))
            .disk("xvda", &format!("/root/disk{n}.img"), VbdMode::ReadWrite)
            .vif("xenbr0")
    };
    let guests: Vec<_> = (0..10).map(guest).collect();
    for guest in &guests {
        dom0.add(guest);
    }
    let before = dom0.snapshot();
    let all = |call: &dyn Fn(&Guest) -> TaskId| {
        let tasks: Vec<_> = guests.iter().map(call).collect();
        for task in &tasks {
            dom0.wait_task(task).expect("goes well");
        }
    };
    all(&|guest| {
        let id = guest.id().to_owned();
        dom0.call(&VmStart { debug_info: dbg(), id, paused: true }).expect("a task")
    });
    for guest in &guests {
        assert_eq!(dom0.state(guest).power_state, PowerState::Paused);
    }
    assert_eq!(dom0.sh("xl list | grep -c -- --p---").trim(), "10");
    assert_eq!(dom0.sh("ls -d /sys/block/loop*/loop | wc -l").trim(), "10");
    assert_eq!(dom0.sh("bridge link | grep -c 'vif[0-9]*[.]0'").trim(), "10");
    all(&|guest| {
        let id = guest.id().to_owned();
        dom0.call(&VmShutdown { debug_info: dbg(), id, delay: None }).expect("a task")
    });
    before.must_be_left(&dom0);

    // By now the daemon has all the connections it keeps.
    let before = dom0.snapshot();
    for _ in 0..10 {
        dom0.run_guest(&guests[0]);
        dom0.hard_shutdown(&guests[0]).expect("goes down");
    }
    before.must_be_left_exactly(&dom0);
}

#[test]
fn single_steps_and_a_domain_destroyed_by_somebody_else() {
    let dom0 = Dom0::start();
    dom0.sh("truncate -s 8M /root/disk.img");
    let guest = Guest::new("steps").disk("xvda", DISK, VbdMode::ReadWrite).vif("xenbr0");
    dom0.add(&guest);
    let before = dom0.snapshot();
    let id = || guest.id().to_owned();
    dom0.task(&VmCreate { debug_info: dbg(), id: id() }).expect("creates");
    assert_eq!(dom0.state(&guest).power_state, PowerState::Paused);
    dom0.task(&VmBuild { debug_info: dbg(), id: id(), force: false }).expect("builds");
    dom0.unpause(&guest).expect("runs");
    dom0.said(&guest, "GUEST: ready");
    dom0.task(&VmDestroy { debug_info: dbg(), id: id() }).expect("destroys");
    assert_eq!(dom0.state(&guest).power_state, PowerState::Halted);
    before.must_be_left(&dom0);

    dom0.forget_output(&guest);
    dom0.run_guest(&guest);
    dom0.said(&guest, "GUEST: ready");
    dom0.sh("xl destroy steps");
    dom0.wait_for_power(&guest, PowerState::Halted);
    before.must_be_left(&dom0);
}
