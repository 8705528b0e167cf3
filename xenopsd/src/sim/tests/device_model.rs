//! Device models: their start, every way in which it fails, their end at any moment, and the next daemon.

use super::*;
use crate::api::{Action, ConsoleProtocol, HvmInfo};
use crate::core::Wish;
use crate::domain::{VmExecutor, observe};
use crate::edge::ScreenAddress;
use crate::ops::explain::Trace;
use crate::ops::plan::{self, Atom, Records as VmRecords, Step};
use crate::ops::runner;
use crate::sim::{Doing, Vcpus, When};
use crate::state::journal::Resource;
use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use xenstore::Operations;

const START: [Atom; 3] = [Atom::CreateDomain, Atom::StartDeviceModel(plan::Beginning::Fresh), Atom::Settle];

fn hvm(rig: &Rig, word: &str, on_crash: Action) -> String {
    let script = [("device-model", word)];
    rig.add(1, &script, |vm| {
        vm.ty = BuilderInfo::Hvm(HvmInfo {
            serial: Some("pty".to_owned()),
            timeoffset: "100".to_owned(),
            ..HvmInfo::default()
        });
        vm.on_crash = vec![on_crash];
    })
}

/// Runs a plan on the VM's queue.
fn run(rig: &Rig, vm: &str, plan: Vec<Step>) -> Result<(), Error> {
    let task = rig.core.tasks.create_unowned("test");
    run_as(rig, vm, plan, &task)
}

fn run_as(rig: &Rig, vm: &str, plan: Vec<Step>, task: &TaskHandle) -> Result<(), Error> {
    let (done, outcome) = bounded(1);
    let (core, id, task) = (Arc::clone(&rig.core), vm.to_owned(), task.clone());
    let job = move |slot: &Slot| {
        let records = VmRecords {
            vm: core.records.vm(&id).unwrap(),
            vbds: core.records.devices(&id).unwrap(),
            vifs: core.records.devices(&id).unwrap(),
            leaving: None,
        };
        let executor = VmExecutor::new(&core, &records, &task, slot);
        let outcome = runner::run(&executor, &task, &Trace::unseen(&task), &plan);
        drop(core);
        done.send(outcome).unwrap();
    };
    rig.core.queues.push(vm, None, Box::new(job)).unwrap();
    outcome.recv_timeout(LONG).expect("the plan ends")
}

fn start(rig: &Rig, vm: &str) -> Result<(), Error> {
    run(rig, vm, START.map(Step::Do).to_vec())
}

/// What is there of a VM that had a domain before: the store keeps the directories above its nodes.
fn used(rig: &Rig, vm: &str) -> Remains {
    run(rig, vm, vec![Step::Do(Atom::CreateDomain)]).unwrap();
    run(rig, vm, plan::destroy()).unwrap();
    rig.remains(vm)
}

fn read(rig: &Rig, path: &str) -> Option<String> {
    let path = xenstore::Path::new(path).unwrap();
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    store.read(&path).unwrap().map(|value| String::from_utf8(value).unwrap())
}

fn process(rig: &Rig, vm: &str) -> Option<Resource> {
    let taken = rig.core.journal.of(vm).into_iter().map(|(_, resource)| resource);
    taken.into_iter().find(|resource| matches!(resource, Resource::Process(p) if p.role == "qemu"))
}

#[test]
fn it_waits_until_its_guest_runs_and_ends_with_the_domain() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Shutdown);
    let before = used(&rig, &vm);
    start(&rig, &vm).unwrap();
    let domid = rig.domid(&vm).unwrap();
    assert_eq!(rig.machine.device_model(domid), Some(Doing::Waiting));
    let Some(Resource::Process(noted)) = process(&rig, &vm) else { panic!("it is not written down") };
    let home = format!("/local/domain/{domid}");
    assert_eq!(read(&rig, &format!("{home}/image/device-model-pid")), Some(noted.pid.to_string()));
    assert!(read(&rig, &format!("{home}/serial/0/tty")).is_some_and(|tty| tty.starts_with("/dev/pts/")));
    run(&rig, &vm, vec![Step::Do(Atom::Unpause)]).unwrap();
    assert_eq!(rig.machine.device_model(domid), Some(Doing::Emulating));
    run(&rig, &vm, plan::destroy()).unwrap();
    assert!(rig.machine.device_models().is_empty());
    rig.until_remains(&vm, &before, "its end");
}

#[test]
fn one_that_does_not_become_ready_is_an_error_and_leaves_nothing() {
    for (word, said) in [("exit", "ended while it started"), ("mute", "no answer"), ("nonsense", "JSON")] {
        let limit = if word == "mute" { Duration::from_millis(50) } else { LONG };
        let rig = Rig::with_patience(&quick(), Patience { device_model: limit, ..long() });
        let vm = hvm(&rig, word, Action::Shutdown);
        let before = used(&rig, &vm);
        match start(&rig, &vm) {
            Err(Error::FailedToStartEmulator { id, message, .. }) => {
                assert_eq!(id, vm);
                assert!(message.contains(said), "{word}: {message}");
            }
            other => panic!("{word}: {other:?}"),
        }
        assert!(rig.machine.device_models().is_empty(), "{word}");
        rig.until_remains(&vm, &before, word);
    }
}

#[test]
fn nobody_waits_for_a_mute_one_whose_task_is_cancelled() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "mute", Action::Shutdown);
    let before = used(&rig, &vm);
    let task = rig.core.tasks.create("test");
    std::thread::scope(|scope| {
        let starting = scope.spawn(|| run_as(&rig, &vm, START.map(Step::Do).to_vec(), &task));
        rig.until("it is there", || process(&rig, &vm).is_some());
        rig.core.tasks.cancel(task.id()).unwrap();
        assert_eq!(starting.join().unwrap(), Err(task.cancelled_error()));
    });
    assert!(rig.machine.device_models().is_empty());
    rig.until_remains(&vm, &before, "the cancel");
}

#[test]
fn no_failing_call_of_its_start_or_end_leaves_anything() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Shutdown);
    let before = used(&rig, &vm);
    let everything = || {
        let mut steps = START.map(Step::Do).to_vec();
        steps.extend(plan::destroy());
        steps
    };
    rig.machine.faults.record();
    run(&rig, &vm, everything()).unwrap();
    let calls = rig.machine.faults.recorded();
    let mut own: Vec<_> =
        calls.iter().filter(|s| s.contains("device_model") || s.starts_with("host.")).collect();
    own.sort();
    own.dedup();
    assert!(own.len() >= 7, "{own:?}");
    for site in own {
        rig.machine.faults.arm(Fault::Nth { site: Some(site.clone()), nth: 0, when: When::Before });
        let outcome = run(&rig, &vm, everything());
        assert_eq!(rig.machine.faults.disarm(), 1, "{site}");
        assert!(outcome.is_err(), "{site}");
        // What could not be ended in the first go is ended by the next.
        run(&rig, &vm, plan::destroy()).unwrap();
        assert!(rig.machine.device_models().is_empty(), "{site}");
        rig.until_remains(&vm, &before, site);
    }
}

#[test]
fn a_guest_whose_device_model_ends_has_crashed() {
    for word in ["work", "crash"] {
        let rig = Rig::new(&quick());
        let vm = hvm(&rig, word, Action::Shutdown);
        let before = used(&rig, &vm);
        start(&rig, &vm).unwrap();
        let domid = rig.domid(&vm).unwrap();
        // One that ends on `cont` does not answer.
        assert_eq!(run(&rig, &vm, vec![Step::Do(Atom::Unpause)]).is_ok(), word == "work");
        if word == "work" {
            assert!(rig.machine.end_device_model(domid));
        }
        rig.until_remains(&vm, &before, word);
    }
}

#[test]
fn a_guest_to_be_kept_for_inspection_is_paused_once() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Pause);
    start(&rig, &vm).unwrap();
    run(&rig, &vm, vec![Step::Do(Atom::Unpause)]).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Running);
    assert!(rig.machine.end_device_model(rig.domid(&vm).unwrap()));
    rig.until("it is paused", || rig.state(&vm) == PowerState::Paused);
    rig.run(&vm, Operation::Check).unwrap();
    rig.core.edges.hypervisor().unwrap().unpause(rig.domid(&vm).unwrap()).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Running, "paused a second time");
}

#[test]
fn the_next_daemon_picks_it_up() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Shutdown);
    let before = used(&rig, &vm);
    start(&rig, &vm).unwrap();
    run(&rig, &vm, vec![Step::Do(Atom::Unpause)]).unwrap();
    let domid = rig.domid(&vm).unwrap();
    let rig = rig.restart();
    rig.until("it is followed", || rig.core.runtimes.with(&vm, |r| r.model.is_some()));
    assert_eq!(rig.machine.device_model(domid), Some(Doing::Emulating));
    assert!(process(&rig, &vm).is_some());
    assert!(rig.machine.end_device_model(domid));
    rig.until_remains(&vm, &before, "its end is noticed");
}

#[test]
fn one_that_ended_while_no_daemon_ran_is_noticed_by_the_next() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Shutdown);
    let before = used(&rig, &vm);
    start(&rig, &vm).unwrap();
    let domid = rig.domid(&vm).unwrap();
    rig.machine.faults.arm(Fault::From { nth: 0 });
    assert!(rig.machine.end_device_model(domid));
    let rig = rig.restart();
    rig.until_remains(&vm, &before, "the next daemon's look");
}

#[test]
fn the_guests_clock_is_kept_for_clients_and_for_its_next_domain() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Shutdown);
    let record = || rig.core.records.vm(&vm).unwrap();
    let told = || observe::state(&rig.core, &record()).unwrap().rtc_timeoffset;
    assert_eq!(told(), "");
    rig.start(&vm).unwrap();
    let node = format!("/vm/{vm}/rtc/timeoffset");
    assert_eq!((read(&rig, &node).as_deref(), told().as_str()), (Some("100"), "100"));
    let says = |event: &str| rig.machine.device_model_says(rig.domid(&vm).unwrap(), event).unwrap();
    let sets = |seconds: i64| says(&format!(r#"{{"event": "RTC_CHANGE", "data": {{"offset": {seconds}}}}}"#));
    // By how much it was set, which adds up, however many are read at once.
    for (seconds, kept) in
        [(3600, 3700), (-200, 3500), (0, 3500), (i64::MAX, i64::from(i32::MAX)), (-1, 2_147_483_646)]
    {
        sets(seconds);
        // In the record and in the store, one after the other.
        rig.until("it is kept", || told() == kept.to_string() && read(&rig, &node) == Some(kept.to_string()));
    }
    // Whatever else it says changes nothing.
    says(r#"{"event": "RESET"}"#);
    says("nonsense");
    rig.run(&vm, Operation::Reboot(None)).unwrap();
    assert_eq!(told(), "2147483646");
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let BuilderInfo::Hvm(kept) = record().ty else { panic!("of another kind") };
    assert_eq!(kept.timeoffset, "2147483646");
}

#[test]
fn a_domain_that_was_made_and_built_by_hand_gets_one_when_asked_and_runs_only_with_one() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Shutdown);
    rig.run(&vm, Operation::CreateDomain).unwrap();
    rig.run(&vm, Operation::BuildDomain).unwrap();
    let refused = rig.run(&vm, Operation::Unpause);
    assert!(
        matches!(&refused, Err(Error::FailedToStartEmulator { message, .. }) if message.contains("create_device_model")),
        "{refused:?}"
    );
    assert_eq!(rig.state(&vm), PowerState::Paused);
    for _ in 0..2 {
        rig.run(&vm, Operation::StartDeviceModel).unwrap();
    }
    assert_eq!(rig.machine.device_models().len(), 1);
    rig.run(&vm, Operation::Unpause).unwrap();
    assert!(matches!(rig.run(&vm, Operation::StartDeviceModel), Err(Error::BadPowerState { .. })));
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.machine.device_models().is_empty());
}

#[test]
fn it_is_given_a_kernel_and_a_bad_one_is_found_before_anything_is_taken() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Shutdown);
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut kernel = vec![0; 0x202];
    kernel.extend_from_slice(b"HdrS");
    std::fs::write(path("kernel"), &kernel).unwrap();
    std::fs::write(path("other"), "something else").unwrap();
    let set = |kernel: &str, ramdisk: &str| {
        let mut record = rig.core.records.vm(&vm).unwrap();
        for (key, name) in [("kernel", kernel), ("ramdisk", ramdisk)] {
            record.platformdata.insert(key, path(name).display().to_string());
        }
        rig.core.records.put_vm(&record).unwrap();
    };
    set("kernel", "other");
    rig.run(&vm, Operation::Start).unwrap();
    let domid = rig.domid(&vm).unwrap();
    let given = [(std::path::Path::new("/boot/kernel"), 0x206), (std::path::Path::new("/boot/ramdisk"), 14)];
    assert_eq!(rig.machine.device_model_files(domid), given);
    assert_eq!(read(&rig, &format!("/local/domain/{domid}/platform/kernel")), None);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let before = rig.remains(&vm);

    for (kernel, ramdisk, text) in [
        ("none", "other", "none"),
        ("other", "other", "not a packed Linux kernel"),
        ("kernel", "none", "none"),
    ] {
        set(kernel, ramdisk);
        rig.machine.faults.record();
        let refused = rig.run(&vm, Operation::Start).unwrap_err();
        let is_of_contract = matches!(refused, Error::DoesNotExist { .. } | Error::BootloaderError { .. });
        assert!(is_of_contract && refused.to_string().contains(text), "{refused:?}");
        let calls = rig.machine.faults.recorded();
        assert!(!calls.iter().any(|call| call == "hypervisor.create"), "{calls:?}");
        rig.until_remains(&vm, &before, text);
    }
}

#[test]
fn its_guest_gets_more_vcpus_from_it_and_none_is_taken_away() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Shutdown);
    let mut record = rig.core.records.vm(&vm).unwrap();
    (record.vcpu_max, record.vcpus) = (4, 1);
    rig.core.records.put_vm(&record).unwrap();
    rig.run(&vm, Operation::Start).unwrap();
    rig.run(&vm, Operation::Unpause).unwrap();
    let domid = rig.domid(&vm).unwrap();
    let given = |present| Some(Vcpus { present, max: 4 });
    assert_eq!(rig.machine.device_model_vcpus(domid), given(1));
    for (wanted, present) in [(3, 3), (2, 3), (4, 4)] {
        rig.run(&vm, Operation::Change(Wish::Vcpus(wanted))).unwrap();
        assert_eq!(rig.machine.device_model_vcpus(domid), given(present));
        let online = format!("/local/domain/{domid}/cpu/{wanted}/availability");
        assert_eq!(read(&rig, &online), (wanted < 4).then(|| "offline".to_owned()));
    }
    rig.run(&vm, Operation::Shutdown(None)).unwrap();

    // One that says nothing sensible any more: an error, and the record is as before.
    record.vcpus = 1;
    rig.core.records.put_vm(&record).unwrap();
    rig.run(&vm, Operation::Start).unwrap();
    let domid = rig.domid(&vm).unwrap();
    rig.machine.device_model_loses_its_processors(domid);
    let refused = rig.run(&vm, Operation::Change(Wish::Vcpus(2)));
    assert!(
        matches!(&refused, Err(Error::InternalError(text)) if text.contains("list of processors")),
        "{refused:?}"
    );
    assert_eq!(rig.core.records.vm(&vm).unwrap().vcpus, 1);
    assert_eq!(read(&rig, &format!("/local/domain/{domid}/cpu/1/availability")).as_deref(), Some("offline"));
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
}

/// Connects to the VM's screen, and is greeted by its device model.
fn look(rig: &Rig, vm: &str) -> TcpStream {
    let state = crate::domain::observe::state(&rig.core, &rig.core.records.vm(vm).unwrap()).unwrap();
    let screen = state.consoles.into_iter().find(|console| console.protocol == ConsoleProtocol::Rfb).unwrap();
    let port = u16::try_from(screen.port).unwrap();
    let node = format!("/local/domain/{}/console/vnc-port", rig.domid(vm).unwrap());
    assert_eq!(read(rig, &node), Some(port.to_string()));
    let mut viewer = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut greeting = [0; 12];
    viewer.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"RFB 003.008\n");
    viewer
}

#[test]
fn viewers_are_handed_to_it_and_find_it_after_a_restart_of_the_daemon() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Shutdown);
    let mut record = rig.core.records.vm(&vm).unwrap();
    if let BuilderInfo::Hvm(hvm) = &mut record.ty {
        hvm.vnc_ip = Some("127.0.0.1".to_owned());
    }
    rig.core.records.put_vm(&record).unwrap();
    start(&rig, &vm).unwrap();
    let mut first = look(&rig, &vm);
    let _second = look(&rig, &vm);
    let rig = rig.restart();
    rig.until("it is picked up", || rig.core.runtimes.with(&vm, |r| r.screen.is_some()));
    let mut later = look(&rig, &vm);
    run(&rig, &vm, plan::destroy()).unwrap();
    // Both see the end of what they looked at.
    for viewer in [&mut first, &mut later] {
        assert_eq!(viewer.read(&mut [0]).unwrap(), 0);
    }
    assert!(rig.core.runtimes.with(&vm, |r| r.screen.is_none()));
}

#[test]
fn a_screen_without_an_address_is_a_socket_of_roots() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "work", Action::Shutdown);
    start(&rig, &vm).unwrap();
    let Some(ScreenAddress::Socket(path)) = rig.core.runtimes.with(&vm, |r| r.screen.clone()) else {
        panic!("it has none");
    };
    let mut greeting = [0; 12];
    UnixStream::connect(&path).unwrap().read_exact(&mut greeting).unwrap();
    run(&rig, &vm, plan::destroy()).unwrap();
    assert!(!path.exists());
}

#[test]
fn one_that_floods_is_ended_as_any() {
    let rig = Rig::new(&quick());
    let vm = hvm(&rig, "flood", Action::Shutdown);
    let before = used(&rig, &vm);
    start(&rig, &vm).unwrap();
    run(&rig, &vm, vec![Step::Do(Atom::Unpause)]).unwrap();
    run(&rig, &vm, plan::destroy()).unwrap();
    rig.until_remains(&vm, &before, "the flood");
}
