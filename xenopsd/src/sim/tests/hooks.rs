//! The administrator's scripts, and the waits between a guest's reboots.

use super::*;
use crate::api::TaskState;
use crate::edge::ShutdownReason;
use std::path::Path;

/// A rig whose events have scripts that write what they are told to a file.
fn with_hooks(patience: Patience) -> (Rig, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let events = crate::ops::hook::Hook::ALL.map(|hook| hook.to_string());
    for event in events {
        let log = directory.path().join("log");
        script(directory.path(), &event, &format!("echo {event} \"$@\" >>{}", log.display()));
    }
    let options = SimOptions { hooks: Some(directory.path().to_owned()), ..quick() };
    (Rig::with_patience(&options, patience), directory)
}

fn script(hooks: &Path, event: &str, text: &str) {
    crate::test_script(&hooks.join(event).join("10-test"), text);
}

/// The events since the last look, with their reasons and whether the domain's number was told.
fn told(hooks: &Path, vm: &str) -> Vec<String> {
    let log = hooks.join("log");
    let text = std::fs::read_to_string(&log).unwrap_or_default();
    let _ = std::fs::remove_file(log);
    let line = |line: &str| {
        let words: Vec<_> = line.split(' ').collect();
        assert_eq!(words[1..3], ["-vmuuid", vm]);
        let domid = if words[3] == "-vmdomid" { " domid" } else { "" };
        format!("{} {}{domid}", words[0], words.last().unwrap())
    };
    text.lines().map(line).collect()
}

#[test]
fn scripts_are_run_for_what_clients_ask() {
    let (rig, hooks) = with_hooks(long());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    assert_eq!(told(hooks.path(), &vm), ["vm-pre-start none"]);
    rig.run(&vm, Operation::Reboot(Some(LONG))).unwrap();
    let reboot = [
        "vm-pre-shutdown clean-reboot domid",
        "vm-post-destroy clean-reboot",
        "vm-pre-reboot none",
        "vm-pre-start none",
    ];
    assert_eq!(told(hooks.path(), &vm), reboot);
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    let down = ["vm-pre-shutdown clean-shutdown domid", "vm-post-destroy clean-shutdown"];
    assert_eq!(told(hooks.path(), &vm), down);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(told(hooks.path(), &vm).is_empty(), "nothing is shut down that does not run");
}

#[test]
fn a_script_can_refuse_and_one_cannot_be_heard() {
    let (rig, hooks) = with_hooks(long());
    let vm = rig.add(1, &[], |_| ());
    script(hooks.path(), "vm-pre-start", "exit 1");
    rig.start(&vm).unwrap();
    script(hooks.path(), "vm-pre-shutdown", "echo not now; exit 7");
    let refused = rig.run(&vm, Operation::Shutdown(None)).unwrap_err();
    let Error::HookFailed { script: path, reason, stdout, code } = refused else { panic!("{refused:?}") };
    assert!(path.ends_with("/vm-pre-shutdown/10-test"), "{path}");
    assert_eq!((reason.as_str(), stdout.as_str(), code.as_str()), ("hard-shutdown", "not now\n", "7"));
    assert_eq!(rig.state(&vm), PowerState::Running);
}

#[test]
fn a_task_is_cancelled_while_a_script_runs() {
    let (rig, hooks) = with_hooks(long());
    let vm = rig.add(1, &[], |_| ());
    let before = rig.remains(&vm);
    script(hooks.path(), "vm-pre-start", "sleep 1000");
    let task = rig.core.submit(&vm, "test", Operation::Start).unwrap();
    let running = |rig: &Rig| {
        let steps = rig.core.traces.explain(&vm).map(|e| e.steps).unwrap_or_default();
        steps.iter().any(|s| s.what.starts_with("hook") && s.state == crate::api::StepState::Running)
    };
    eventually("the script runs", || running(&rig));
    rig.core.tasks.cancel(&task).unwrap();
    rig.until("the task has ended", || {
        matches!(rig.core.tasks.stat(&task).unwrap().state, TaskState::Failed(_))
    });
    rig.until_remains(&vm, &before, "a cancelled start");
}

#[test]
fn a_guest_that_reboots_at_once_has_to_wait() {
    let pause = Duration::from_millis(300);
    let rig = Rig::with_patience(&quick(), Patience { least_uptime: LONG, reboot_pause: pause, ..long() });
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let first = rig.domid(&vm).unwrap();
    rig.machine.stop_guest(first, ShutdownReason::Reboot);
    rig.until("it runs again", || rig.domid(&vm).is_some_and(|domid| domid != first));
    let steps = rig.core.traces.explain(&vm).unwrap().steps;
    assert_eq!(steps[0].what, "wait 0.3 s");
    assert!(steps[0].took.unwrap() >= pause.as_secs_f64());
    rig.settle(&vm);
    // A client that asks is not kept waiting.
    rig.run(&vm, Operation::Reboot(None)).unwrap();
    let steps = rig.core.traces.explain(&vm).unwrap().steps;
    assert!(!steps.iter().any(|step| step.what.starts_with("wait")));
}

#[test]
fn a_delay_holds_up_its_own_vm_and_can_be_cancelled() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let other = rig.add(2, &[], |_| ());
    let delay = rig.core.submit(&vm, "test", Operation::Delay(LONG * 60)).unwrap();
    let start = rig.core.submit(&vm, "test", Operation::Start).unwrap();
    rig.start(&other).unwrap();
    assert!(matches!(rig.core.tasks.stat(&start).unwrap().state, TaskState::Pending(_)));
    rig.core.tasks.cancel(&delay).unwrap();
    rig.until("the start has ended", || {
        matches!(rig.core.tasks.stat(&start).unwrap().state, TaskState::Completed(_))
    });
}
