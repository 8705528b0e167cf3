//! A state directory that refuses: whatever needs it fails with its reason, whatever does not goes on.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::*;

fn mount(arguments: &[&str], at: &Path) {
    let status = Command::new("mount").args(arguments).arg(at).status().unwrap();
    assert!(status.success(), "mount {arguments:?} {}", at.display());
}

/// Runs `body` with a daemon whose state directory is a file system of its own, of 512 KiB, that nobody else sees; says
/// so and returns where this is not possible.
fn on_a_small_disk(body: impl FnOnce(&Rig, &Path) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        if let Err(errno) = unshare(CloneFlags::CLONE_NEWNS) {
            eprintln!("skipped: no mount namespace ({errno}); needs root");
            return;
        }
        mount(&["--make-rprivate"], Path::new("/"));
        // All threads of the daemon come from this one and see what it sees.
        let rig = Rig::new(&quick());
        let database = rig.core.records.root().to_owned();
        mount(&["-t", "tmpfs", "-o", "size=512k", "state"], &database);
        body(&rig, &database);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, Error>, reason: &str) {
    match outcome {
        Err(Error::InternalError(text)) => assert!(text.contains(reason), "{reason}: {text}"),
        other => panic!("{reason}: {other:?}"),
    }
}

#[test]
fn a_full_disk_stops_what_must_be_written_and_nothing_else() {
    on_a_small_disk(|rig, database| {
        const FULL: &str = "No space left";
        let (running, halted) = (rig.add(1, &[], |_| ()), rig.add(2, &[], |_| ()));
        rig.start(&running).unwrap();
        rig.run(&running, Operation::Shutdown(None)).unwrap();
        rig.start(&running).unwrap();
        // The guest that runs goes on writing nodes of its own meanwhile.
        let its_own = rig.domid(&running).unwrap().get().to_string();
        let remains = || {
            let mut remains = rig.remains(&halted);
            remains.nodes.retain(|path| path.split('/').all(|name| name != its_own));
            remains
        };
        let before = remains();
        let filler = database.join("filler");
        let mut file = fs::File::create(&filler).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}

        let fresh = crate::test_vm("99999999-0000-4000-8000-000000000000", "fresh");
        refused(rig.core.records.put_vm(&fresh), FULL);
        assert!(!database.join("VM").join(&fresh.id).exists(), "nothing half written");
        let was = rig.core.records.vm(&halted).unwrap();
        refused(rig.core.records.put_vm(&Vm { name: "renamed".to_owned(), ..was.clone() }), FULL);
        assert_eq!(rig.core.records.vm(&halted).unwrap(), was);
        refused(rig.run(&halted, Operation::Start), FULL);
        assert_eq!(remains(), before);

        rig.run(&running, Operation::Pause).unwrap();
        rig.run(&running, Operation::Unpause).unwrap();
        rig.run(&running, Operation::Shutdown(Some(LONG))).unwrap();
        assert_eq!(rig.state(&running), PowerState::Halted);
        fs::remove_file(&filler).unwrap();
        rig.start(&halted).unwrap();
    });
}

#[test]
fn a_read_only_disk_ends_no_guest_and_keeps_none() {
    on_a_small_disk(|rig, database| {
        const READ_ONLY: &str = "Read-only file system";
        let (running, halted) = (rig.add(1, &[], |_| ()), rig.add(2, &[], |_| ()));
        rig.start(&running).unwrap();
        mount(&["-o", "remount,ro"], database);
        refused(rig.run(&halted, Operation::Start), READ_ONLY);
        refused(rig.core.records.remove_vm(&halted), READ_ONLY);
        assert_eq!(rig.core.records.vms().unwrap().len(), 2);
        rig.run(&running, Operation::Pause).unwrap();
        // The guest goes; only that it is gone cannot be written down.
        refused(rig.run(&running, Operation::Shutdown(None)), READ_ONLY);
        assert_eq!(rig.state(&running), PowerState::Halted);
        mount(&["-o", "remount,rw"], database);
        rig.start(&running).unwrap();
        rig.run(&running, Operation::Shutdown(None)).unwrap();
        assert_eq!(rig.core.journal.counts(), (0, 0));
        rig.core.records.remove_vm(&halted).unwrap();
    });
}

#[test]
fn a_vm_whose_record_is_truncated_keeps_no_other_from_starting() {
    let rig = Rig::new(&quick());
    let (broken, other) = (rig.add(1, &[], |_| ()), rig.add(2, &[], |_| ()));
    let record = rig.core.records.root().join("VM").join(&broken).join("vbd.xvda");
    let text = fs::read(&record).unwrap();
    fs::write(&record, &text[..text.len() / 2]).unwrap();
    refused(rig.run(&broken, Operation::Start), &record.display().to_string());
    rig.start(&other).unwrap();
    let rig = rig.restart();
    assert_eq!(rig.state(&other), PowerState::Running);
    rig.run(&other, Operation::Shutdown(None)).unwrap();
    fs::write(&record, text).unwrap();
    rig.start(&broken).unwrap();
}
