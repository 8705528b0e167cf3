//! One VM through its life.

use super::*;
use crate::api::{Action, IndirectBoot, PvInfo};
use crate::edge::ShutdownReason;
use crate::sim::When;
use xenstore::Operations;
use xenstore::layout::XenbusState;

/// Operations on a fresh machine leave the directories that all VMs share; a first round makes them.
fn settled(script: &[(&str, &str)]) -> (Rig, String, Remains) {
    settled_with(script, |_| ())
}

fn settled_with(script: &[(&str, &str)], change: impl FnOnce(&mut Vm)) -> (Rig, String, Remains) {
    let rig = Rig::new(&quick());
    let other = rig.add(0xffff, &[], |_| ());
    rig.start(&other).unwrap();
    rig.run(&other, Operation::Shutdown(None)).unwrap();
    let vm = rig.add(1, script, change);
    let remains = rig.remains(&vm);
    (rig, vm, remains)
}

fn connected(rig: &Rig, vm: &str) -> bool {
    let status = rig.disk(vm);
    (status.backend, status.frontend) == (Some(XenbusState::Connected), Some(XenbusState::Connected))
}

#[test]
fn start_leaves_it_paused_and_unpause_lets_it_connect() {
    let (rig, vm, before) = settled(&[]);
    rig.run(&vm, Operation::Start).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Paused);
    assert_eq!(rig.disk(&vm).backend, Some(XenbusState::InitWait));
    assert_eq!(rig.machine.hardware(crate::sim::Hardware::free_pages), before.free_pages - (64 << 20) / 4096);
    assert_eq!(rig.remains(&vm).kept, 2);
    rig.run(&vm, Operation::Unpause).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Running);
    rig.until("the disk is connected", || connected(&rig, &vm));
    let domid = rig.domid(&vm).unwrap();
    let tty = xenstore::Path::new(&format!("/local/domain/{domid}/console/tty")).unwrap();
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    rig.until("the console has a terminal", || store.read(&tty).unwrap().is_some_and(|v| !v.is_empty()));
    rig.run(&vm, Operation::Pause).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Paused);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Halted);
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn a_domain_that_is_not_built_can_be_neither_paused_nor_unpaused() {
    let (rig, vm, before) = settled(&[]);
    rig.run(&vm, Operation::CreateDomain).unwrap();
    for operation in [Operation::Unpause, Operation::Pause] {
        assert_eq!(rig.run(&vm, operation), Err(Error::DomainNotBuilt));
    }
    assert_eq!(rig.state(&vm), PowerState::Paused);
    rig.run(&vm, Operation::BuildDomain).unwrap();
    rig.run(&vm, Operation::Unpause).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Running);
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn a_failed_build_takes_the_domain_with_it_and_a_second_one_nothing() {
    let (rig, vm, before) = settled(&[]);
    let fault = Fault::Nth { site: Some("hypervisor.build".to_owned()), nth: 0, when: When::Before };
    rig.run(&vm, Operation::CreateDomain).unwrap();
    rig.machine.faults.arm(fault);
    rig.run(&vm, Operation::BuildDomain).unwrap_err();
    assert_eq!((rig.machine.faults.disarm(), rig.state(&vm)), (1, PowerState::Halted));
    assert_eq!(rig.remains(&vm), before);

    rig.run(&vm, Operation::CreateDomain).unwrap();
    rig.run(&vm, Operation::BuildDomain).unwrap();
    let again = rig.run(&vm, Operation::BuildDomain);
    assert!(matches!(&again, Err(Error::InternalError(text)) if text.contains("built already")), "{again:?}");
    rig.run(&vm, Operation::Unpause).unwrap();
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn whoever_waits_for_a_look_gets_its_outcome_however_many_are_asked_for() {
    let (rig, vm, _) = settled(&[]);
    let delay = rig.core.submit(&vm, "test", Operation::Delay(LONG)).unwrap();
    let (done, outcomes) = bounded(3);
    for _ in 0..3 {
        let done = done.clone();
        rig.core.submit_then(&vm, "test", Operation::Check, move |outcome| done.send(outcome).unwrap());
    }
    rig.core.tasks.cancel(&delay).unwrap();
    for _ in 0..3 {
        assert_eq!(outcomes.recv_timeout(LIMIT).expect("it is told"), Ok(()));
    }
}

#[test]
fn a_clean_shutdown_asks_and_a_clean_reboot_comes_back() {
    let (rig, vm, before) = settled(&[]);
    rig.start(&vm).unwrap();
    let first = rig.domid(&vm).unwrap();
    rig.run(&vm, Operation::Reboot(Some(LONG))).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Running);
    assert_ne!(rig.domid(&vm).unwrap(), first);
    rig.until("the disk is connected again", || connected(&rig, &vm));
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn a_hard_reboot_needs_no_guest() {
    let (rig, vm, before) = settled(&[("shutdown", "ignore"), ("devices", "ignore")]);
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Reboot(None)).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Running);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn a_guest_that_ignores_the_request_is_left_running() {
    let (rig, vm, before) = settled(&[("shutdown", "ignore")]);
    rig.start(&vm).unwrap();
    let outcome = rig.run(&vm, Operation::Shutdown(Some(Duration::from_millis(300))));
    assert_eq!(outcome, Err(Error::FailedToAcknowledgeShutdownRequest));
    assert_eq!(rig.state(&vm), PowerState::Running);
    let domid = rig.domid(&vm).unwrap();
    let request = xenstore::Path::new(&format!("/local/domain/{domid}/control/shutdown")).unwrap();
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    assert_eq!(store.read(&request).unwrap().unwrap(), b"", "the request is withdrawn");
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn a_guest_that_only_says_yes_is_left_running_too() {
    let (rig, vm, _) = settled(&[("shutdown", "acknowledge")]);
    rig.start(&vm).unwrap();
    let outcome = rig.run(&vm, Operation::Shutdown(Some(Duration::from_millis(300))));
    assert_eq!(outcome, Err(Error::FailedToShutdown { id: vm.clone(), timeout: 0.3 }));
    assert_eq!(rig.state(&vm), PowerState::Running);
}

#[test]
fn a_guest_may_stop_without_a_word() {
    let (rig, vm, before) = settled(&[("shutdown", "silent")]);
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn a_guest_that_powers_off_by_itself_is_cleaned_up() {
    let (rig, vm, before) = settled(&[("then", "poweroff")]);
    rig.start(&vm).unwrap();
    rig.until_remains(&vm, &before, "its own end");
}

#[test]
fn a_guest_that_reboots_by_itself_comes_back() {
    let (rig, vm, before) = settled(&[("then", "reboot")]);
    rig.start(&vm).unwrap();
    let first = rig.domid(&vm);
    rig.until("it is another domain, connected", || {
        let now = rig.domid(&vm);
        now.is_some() && now != first && rig.state(&vm) == PowerState::Running && connected(&rig, &vm)
    });
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn a_crash_soon_after_the_start_is_not_repeated() {
    let (rig, vm, before) = settled(&[("then", "crash")]);
    rig.start(&vm).unwrap();
    rig.until_remains(&vm, &before, "its own end");
}

#[test]
fn a_crashed_guest_may_be_kept_for_a_look() {
    let (rig, vm, before) = settled_with(&[("then", "crash")], |vm| vm.on_crash = vec![Action::Pause]);
    rig.start(&vm).unwrap();
    rig.until("it has crashed", || {
        rig.core.domain_of(&vm).unwrap().unwrap().shutdown == Some(ShutdownReason::Crash)
    });
    assert!(rig.domid(&vm).is_some());
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn a_domain_that_somebody_else_destroys_is_cleaned_up() {
    let (rig, vm, before) = settled(&[]);
    rig.start(&vm).unwrap();
    rig.until("the disk is connected", || connected(&rig, &vm));
    let domid = rig.domid(&vm).unwrap();
    // As xl does: the devices first, then the domain, then what libxl knows of it.
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    let mut remove = |path: String| store.rm(&xenstore::Path::new(&path).unwrap()).unwrap();
    for (class, ids) in
        [("vbd", &["/51712", "/51728", ""][..]), ("vif", &["/0", ""]), ("console", &["/0", ""])]
    {
        for id in ids {
            remove(format!("/local/domain/0/backend/{class}/{domid}{id}"));
        }
    }
    rig.core.edges.hypervisor().unwrap().destroy(domid).unwrap();
    remove(format!("/libxl/{domid}"));
    rig.until_remains(&vm, &before, "its own end");
}

#[test]
fn a_hostile_guest_is_started_and_removed_like_any_other() {
    for seed in 0..8 {
        let rig = Rig::new(&SimOptions { seed, ..quick() });
        let other = rig.add(0xffff, &[], |_| ());
        rig.start(&other).unwrap();
        rig.run(&other, Operation::Shutdown(None)).unwrap();
        let vm = rig.add(1, &[("devices", "hostile"), ("flood", "2000"), ("shutdown", "ignore")], |_| ());
        let before = rig.remains(&vm);
        rig.run(&vm, Operation::Start).unwrap();
        let paused = rig.machine.store.lock().dump();
        rig.run(&vm, Operation::Unpause).unwrap();
        rig.until("it has scribbled", || rig.machine.store.lock().dump() != paused);
        observe::state(&rig.core, &rig.core.records.vm(&vm).unwrap()).unwrap();
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        assert_eq!(rig.remains(&vm), before, "seed {seed}");
    }
}

#[test]
fn what_is_missing_is_found_before_anything_is_taken() {
    let none = crate::sim::Present::Only(std::collections::BTreeSet::new());
    let rig = Rig::new(&SimOptions { disks: none, ..quick() });
    let vm = rig.add(1, &[], |_| ());
    let before = rig.remains(&vm);
    let missing = Error::does_not_exist("disk", "/srv/1-xvda.img");
    assert_eq!(rig.run(&vm, Operation::Start), Err(missing));
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn a_full_host_says_so() {
    let rig = Rig::new(&SimOptions { memory_mib: 1024 + 100, ..quick() });
    let (first, second) = (rig.add(1, &[], |_| ()), rig.add(2, &[], |_| ()));
    rig.start(&first).unwrap();
    assert!(matches!(rig.run(&second, Operation::Start), Err(Error::NotEnoughMemory(_))));
    rig.run(&first, Operation::Shutdown(None)).unwrap();
    rig.start(&second).unwrap();
}

#[test]
fn a_file_that_is_no_kernel_is_refused_and_undone() {
    let (rig, vm, before) = settled(&[]);
    std::fs::write(rig.kernel(), "#!/bin/sh").unwrap();
    assert!(matches!(rig.run(&vm, Operation::Start), Err(Error::BootloaderError { .. })));
    assert_eq!(rig.remains(&vm), before);
}

/// A VM that boots its first disk.
fn indirect(vm: &mut Vm) {
    let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
    pv.boot = Boot::Indirect(IndirectBoot {
        bootloader: "pygrub".to_owned(),
        extra_args: "console=hvc0".to_owned(),
        devices: vec![Disk::Local("/srv/1-xvda.img".to_owned())],
        ..IndirectBoot::default()
    });
}

#[test]
fn a_guest_boots_and_reboots_from_its_own_disk() {
    let (rig, vm, before) = settled_with(&[], indirect);
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Reboot(Some(LONG))).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Running);
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    assert_eq!(rig.remains(&vm), before);
    // In steps, as clients may.
    rig.run(&vm, Operation::CreateDomain).unwrap();
    rig.run(&vm, Operation::BuildDomain).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Paused);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(rig.remains(&vm), before);
}

#[test]
fn a_disk_without_a_kernel_is_said_and_undone() {
    let (rig, vm, before) = settled_with(&[], indirect);
    let once = |site: &str| Fault::Nth { site: Some(site.to_owned()), nth: 0, when: When::Before };
    rig.machine.faults.arm(once("host.find_kernel"));
    assert!(matches!(rig.run(&vm, Operation::Start), Err(Error::StorageBackendError { .. })));
    assert_eq!((rig.machine.faults.disarm(), rig.remains(&vm)), (1, before));
    let mut record = rig.core.records.vm(&vm).unwrap();
    let BuilderInfo::Pv(PvInfo { boot: Boot::Indirect(boot), .. }) = &mut record.ty else { unreachable!() };
    boot.devices.clear();
    rig.core.records.put_vm(&record).unwrap();
    assert_eq!(rig.run(&vm, Operation::Start), Err(Error::NoBootableDevice));
}

#[test]
fn a_console_is_a_terminal_that_answers() {
    use std::io::{Read, Write};
    let rig = Rig::new(&SimOptions { terminals: true, ..quick() });
    let vm = rig.add(1, &[], |vm| {
        let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
        pv.vncterm = false;
    });
    rig.start(&vm).unwrap();
    let mut console = None;
    rig.until("there is a terminal", || {
        let state = observe::state(&rig.core, &rig.core.records.vm(&vm).unwrap()).unwrap();
        console = state.consoles.first().map(|c| c.path.clone());
        console.is_some()
    });
    let mut terminal = std::fs::File::options().read(true).write(true).open(console.unwrap()).unwrap();
    terminal.write_all(b"hello").unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"hello") {
        let mut byte = [0];
        assert_eq!(terminal.read(&mut byte).unwrap(), 1);
        seen.extend(byte);
    }
    assert!(seen.starts_with(b"This guest is simulated"));
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
}
