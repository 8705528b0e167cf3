//! Suspend, resume and checkpoint: what works, what is refused, every failure, every kill.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use super::*;
use crate::core::SUSPENDING;

impl Rig {
    /// Whether its domain is there and neither stopped nor paused.
    pub(super) fn executes(&self, vm: &str) -> bool {
        self.core.domain_of(vm).unwrap().is_some_and(|d| d.shutdown.is_none() && !d.paused && !d.dying)
    }

    pub(super) fn noted(&self) -> bool {
        self.machine.store.lock().dump().iter().any(|(path, ..)| path.as_str().ends_with(SUSPENDING))
    }

    /// The guest goes on as if nothing had been, and nothing is left of the attempt.
    pub(super) fn runs_on(&self, vm: &str, domid: DomId, what: &str) {
        assert_eq!(self.domid(vm), Some(domid), "{what}");
        assert_eq!(self.state(vm), PowerState::Running, "{what}");
        assert!(self.executes(vm), "{what}");
        assert!(!self.image_path().exists(), "{what}: the image is left");
        assert!(!self.noted(), "{what}: the note is left");
        self.until(&format!("{what}: its disk is connected"), || self.connected(vm));
    }
}

/// A running guest whose devices are connected.
fn running(options: &SimOptions, patience: Patience, script: &[(&str, &str)]) -> (Rig, String, DomId) {
    running_as(|_| (), options, patience, script)
}

/// The same of another kind.
pub(super) fn running_as(
    kind: fn(&mut Vm),
    options: &SimOptions,
    patience: Patience,
    script: &[(&str, &str)],
) -> (Rig, String, DomId) {
    let rig = Rig::with_patience(options, patience);
    let vm = rig.add(1, script, kind);
    rig.start(&vm).unwrap();
    rig.until("its disk is connected", || rig.connected(&vm));
    let domid = rig.domid(&vm).unwrap();
    (rig, vm, domid)
}

#[test]
fn a_suspended_vm_is_an_image_and_nothing_else_until_it_is_resumed() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    let before = rig.remains(&vm);
    rig.start(&vm).unwrap();
    let memory = |rig: &Rig| rig.core.domain_of(&vm).unwrap().unwrap().tot_pages;
    let had = memory(&rig);
    rig.suspend(&vm).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Suspended);
    rig.until_remains(&vm, &before, "a suspend");
    assert_eq!(fs::metadata(rig.image_path()).unwrap().mode() & 0o777, 0o600);
    assert!(fs::read(rig.image_path()).unwrap().starts_with(b"XenSavedDomv2-\n"));

    // It is suspended for the next daemon too.
    let rig = rig.restart();
    assert_eq!(rig.state(&vm), PowerState::Suspended);
    let start = rig.run(&vm, Operation::Start);
    let suspended = PowerState::Suspended;
    assert_eq!(start, Err(Error::BadPowerState { found: suspended, expected: PowerState::Halted }));
    rig.run(&vm, Operation::Resume(rig.image())).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Paused);
    rig.run(&vm, Operation::Unpause).unwrap();
    rig.until("its disk is connected", || rig.connected(&vm));
    assert_eq!(memory(&rig), had);
    rig.suspend(&vm).unwrap();
    rig.resume(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Halted);
    rig.until_remains(&vm, &before, "a shutdown");
}

#[test]
fn a_suspended_vm_can_be_given_up_and_forgotten() {
    let (rig, vm, _) = running(&quick(), long(), &[]);
    rig.suspend(&vm).unwrap();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Halted);
    rig.start(&vm).unwrap();
    rig.suspend(&vm).unwrap();
    rig.run(&vm, Operation::Remove).unwrap();
    assert!(!rig.core.records.has_vm(&vm));
}

#[test]
fn a_checkpoint_leaves_the_guest_running_and_can_be_resumed_from_later() {
    let (rig, vm, domid) = running(&quick(), long(), &[]);
    for _ in 0..2 {
        rig.run(&vm, Operation::Checkpoint(rig.image())).unwrap();
        assert!(rig.executes(&vm) && !rig.noted());
        assert_eq!(rig.domid(&vm), Some(domid));
    }
    rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Halted);
    rig.resume(&vm).unwrap();
    rig.until("its disk is connected", || rig.connected(&vm));
}

#[test]
fn what_cannot_be_suspended_or_resumed_is_refused_and_unchanged() {
    let (rig, vm, domid) = running(&quick(), long(), &[]);
    let bad = |found, expected| Err(Error::BadPowerState { found, expected });
    let suspend = |disk: Disk| rig.run(&vm, Operation::Suspend(disk));
    let vdi = suspend(Disk::Vdi("sr/vdi".to_owned()));
    // The simulated storage layer has disks that are nowhere.
    assert!(matches!(&vdi, Err(Error::InternalError(what)) if what.contains("/sim/sr/vdi")), "{vdi:?}");
    assert!(rig.machine.datapaths().is_empty());
    for (path, what) in [
        ("/srv/1-xvda.img", "a disk of the VM itself"),
        ("relative", "absolute"),
        ("/no/such/directory/image", "directory does not exist"),
        ("/dev/full", "neither a regular file nor a block device"),
    ] {
        let refused = suspend(Disk::Local(path.to_owned()));
        assert!(matches!(&refused, Err(Error::InternalError(text)) if text.contains(what)), "{refused:?}");
        rig.runs_on(&vm, domid, path);
    }
    fs::write(rig.image_path(), "precious").unwrap();
    assert!(matches!(rig.suspend(&vm), Err(Error::InternalError(text)) if text.contains("no suspend image")));
    assert_eq!(fs::read(rig.image_path()).unwrap(), b"precious");
    fs::remove_file(rig.image_path()).unwrap();

    let (running, paused) = (PowerState::Running, PowerState::Paused);
    assert_eq!(rig.resume(&vm), bad(running, PowerState::Suspended));
    assert_eq!(rig.run(&vm, Operation::FastResume), bad(running, PowerState::Suspended));
    rig.run(&vm, Operation::Pause).unwrap();
    assert_eq!(rig.suspend(&vm), bad(paused, running));
    rig.run(&vm, Operation::Unpause).unwrap();
    rig.runs_on(&vm, domid, "all refusals");
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert_eq!(rig.suspend(&vm), bad(PowerState::Halted, running));
    assert!(matches!(rig.resume(&vm), Err(Error::DoesNotExist { .. })));
}

/// A domain stays suspended for as long as its queue is busy: nobody has asked it to suspend, so the look that its stop
/// asks for would end it.
#[test]
fn a_domain_that_is_there_and_suspended_is_resumed_where_it_is() {
    let (rig, vm, domid) = running(&quick(), long(), &[]);
    let busy = rig.core.submit(&vm, "test", Operation::Delay(LONG)).unwrap();
    let (done, outcome) = bounded(1);
    rig.core.submit_then(&vm, "test", Operation::FastResume, move |result| done.send(result).unwrap());
    rig.machine.stop_guest(domid, crate::edge::ShutdownReason::Suspend);
    assert!(!rig.executes(&vm));
    rig.core.tasks.cancel(&busy).unwrap();
    assert_eq!(outcome.recv_timeout(LIMIT).expect("it ends"), Ok(()));
    // Behind the look.
    rig.settle(&vm);
    rig.runs_on(&vm, domid, "a fast resume");
    // Its next stop is noticed.
    rig.machine.stop_guest(domid, crate::edge::ShutdownReason::PowerOff);
    rig.until("it is halted", || rig.state(&vm) == PowerState::Halted);
}

/// An old image on the device is gone as soon as a new one is begun, and a device that is too small or in use is left as
/// it is.
#[test]
fn a_vm_is_suspended_to_a_block_device_and_resumed_from_it() {
    let rig = Rig::new(&quick());
    let Some(device) = loop_device(rig.directory.path(), 1 << 20) else { return };
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    rig.until("its disk is connected", || rig.connected(&vm));
    let image = || Disk::Local(device.path().display().to_string());
    // Through the device: what is written to it reaches its file later.
    let signed = || {
        let mut start = [0; 15];
        fs::File::open(device.path()).unwrap().read_exact(&mut start).unwrap();
        start == *b"XenSavedDomv2-\n"
    };
    for _ in 0..2 {
        rig.run(&vm, Operation::Suspend(image())).unwrap();
        assert_eq!(rig.state(&vm), PowerState::Suspended);
        assert!(signed());
        rig.run(&vm, Operation::Resume(image())).unwrap();
        rig.run(&vm, Operation::Unpause).unwrap();
        rig.until("its disk is connected", || rig.connected(&vm));
    }
    rig.machine.faults.arm(Fault::Nth {
        site: Some("hypervisor.save".to_owned()),
        nth: 0,
        when: crate::sim::When::Before,
    });
    rig.run(&vm, Operation::Suspend(image())).unwrap_err();
    assert_eq!(rig.machine.faults.disarm(), 1);
    assert!(!signed(), "half an image must not be resumed from");

    let claimed =
        fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_EXCL).open(device.path()).unwrap();
    let refused = rig.run(&vm, Operation::Suspend(image()));
    assert!(matches!(&refused, Err(Error::InternalError(text)) if text.contains("in use")), "{refused:?}");
    drop(claimed);
    let Some(small) = loop_device(rig.directory.path(), 512) else { return };
    let refused = rig.run(&vm, Operation::Suspend(Disk::Local(small.path().display().to_string())));
    assert!(
        matches!(&refused, Err(Error::InternalError(text)) if text.contains("are needed")),
        "{refused:?}"
    );
    assert!(rig.executes(&vm) && !rig.noted());
}

/// A loop device over a new file of `bytes`, for as long as it lives.
struct LoopDevice(PathBuf, #[expect(dead_code, reason = "the kernel frees the device with it")] fs::File);

impl LoopDevice {
    fn path(&self) -> &std::path::Path {
        &self.0
    }
}

/// None, with a message, where there can be none.
fn loop_device(directory: &std::path::Path, bytes: u64) -> Option<LoopDevice> {
    use crate::edge::linux::blockdev::{Access, Disk, Links, open_disk};
    use crate::edge::linux::loopdev::{AttachOptions, attach};
    if !nix::unistd::geteuid().is_root() || !std::path::Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: needs root and the loop driver");
        return None;
    }
    let file = directory.join(format!("device-of-{bytes}"));
    fs::File::create(&file).unwrap().set_len(bytes).unwrap();
    let Disk::File(disk) = open_disk(&file, Access::ReadWrite, Links::Refuse).unwrap() else {
        unreachable!()
    };
    let options = AttachOptions { autoclear: true, ..AttachOptions::default() };
    let (device, node) = attach(&disk, &options, &mut |_| Ok(())).unwrap();
    Some(LoopDevice(device.path, node))
}

#[test]
fn a_guest_that_does_not_look_runs_on() {
    let patience = Patience { suspend_ack: Duration::from_millis(50), ..long() };
    let (rig, vm, domid) = running(&quick(), patience, &[("suspend", "ignore")]);
    assert_eq!(rig.suspend(&vm), Err(Error::FailedToAcknowledgeSuspendRequest));
    rig.runs_on(&vm, domid, "no acknowledgement");
}

#[test]
fn a_guest_that_stops_without_a_word_is_suspended_too() {
    let (rig, vm, _) = running(&quick(), long(), &[("suspend", "silent")]);
    rig.suspend(&vm).unwrap();
    assert_eq!(rig.state(&vm), PowerState::Suspended);
    rig.resume(&vm).unwrap();
}

#[test]
fn a_guest_that_suspends_when_nobody_waits_any_more_runs_on() {
    let patience = Patience { suspend: Duration::ZERO, suspend_ack: Duration::from_millis(300), ..long() };
    let (rig, vm, domid) = running(&quick(), patience, &[("suspend", "acknowledge")]);
    let outcome = rig.suspend(&vm);
    assert!(matches!(&outcome, Err(Error::FailedToSuspend { id, .. }) if *id == vm), "{outcome:?}");
    assert!(rig.executes(&vm) && rig.noted() && !rig.image_path().exists());
    rig.machine.stop_guest(domid, crate::edge::ShutdownReason::Suspend);
    rig.until("it runs on", || rig.executes(&vm) && !rig.noted());
    rig.runs_on(&vm, domid, "a late suspension");
}

#[test]
fn a_guest_that_crashes_when_nobody_waits_any_more_is_dealt_with_as_crashed() {
    let patience = Patience { suspend: Duration::ZERO, suspend_ack: Duration::from_millis(300), ..long() };
    let (rig, vm, domid) = running(&quick(), patience, &[("suspend", "acknowledge")]);
    rig.suspend(&vm).unwrap_err();
    assert!(rig.executes(&vm) && rig.noted());
    rig.machine.stop_guest(domid, crate::edge::ShutdownReason::Crash);
    // Too soon after its start for another one.
    rig.until("it is halted", || rig.state(&vm) == PowerState::Halted);
    assert!(!rig.noted() && !rig.image_path().exists());
}

#[test]
fn a_guest_that_crashes_instead_is_dealt_with_as_crashed() {
    let (rig, vm, _) = running(&quick(), long(), &[("suspend", "crash")]);
    let outcome = rig.suspend(&vm);
    assert!(matches!(&outcome, Err(Error::InternalError(text)) if text.contains("Crash")), "{outcome:?}");
    // Too soon after its start for another one.
    rig.until("it is halted", || rig.state(&vm) == PowerState::Halted);
    assert!(!rig.image_path().exists());
}

#[test]
fn a_suspend_is_cancelled_in_the_middle_of_the_memory() {
    let (rig, vm, domid) = running(&SimOptions { copying: LONG, ..quick() }, long(), &[]);
    let task = rig.core.submit(&vm, "test", Operation::Suspend(rig.image())).unwrap();
    eventually("the image is being written", || fs::metadata(rig.image_path()).is_ok_and(|m| m.len() > 500));
    rig.core.tasks.cancel(&task).unwrap();
    let pending = |rig: &Rig| {
        let stat = rig.core.tasks.stat(&task).unwrap();
        matches!(stat.state, crate::api::TaskState::Pending(_))
    };
    rig.until("it has ended", || !pending(&rig));
    rig.runs_on(&vm, domid, "a cancel");
}

#[test]
fn a_resume_is_cancelled_in_the_middle_of_the_memory() {
    // Eight pieces of this each: a suspend takes a moment, and a resume long enough to be cancelled.
    let copying = Duration::from_millis(50);
    let (rig, vm, _) = running(&SimOptions { copying, ..quick() }, long(), &[]);
    rig.suspend(&vm).unwrap();
    let before = rig.remains(&vm);
    let task = rig.core.submit(&vm, "test", Operation::Resume(rig.image())).unwrap();
    rig.until("there is a domain", || rig.domid(&vm).is_some());
    rig.core.tasks.cancel(&task).unwrap();
    rig.until("it is gone again", || rig.state(&vm) == PowerState::Suspended);
    rig.until_remains(&vm, &before, "a cancelled resume");
    rig.resume(&vm).unwrap();
}

#[test]
fn a_cut_or_damaged_image_leaves_the_vm_suspended() {
    let (rig, vm, _) = running(&quick(), long(), &[]);
    rig.suspend(&vm).unwrap();
    let before = rig.remains(&vm);
    let whole = fs::read(rig.image_path()).unwrap();
    let memory = whole.len() / 2;
    let damaged = |at: usize| {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        bytes
    };
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("cut in the first record", whole[..200].to_vec()),
        ("cut in the memory", whole[..memory].to_vec()),
        ("without its end", whole[..whole.len() - 16].to_vec()),
        ("not an image", damaged(3)),
        ("damaged in the memory", damaged(memory)),
        ("damaged at the end", damaged(whole.len() - 16)),
        ("never completed", [&[0; 15][..], &whole[15..]].concat()),
    ] {
        fs::write(rig.image_path(), bytes).unwrap();
        let outcome = rig.resume(&vm);
        let path = rig.image_path().display().to_string();
        assert!(
            matches!(&outcome, Err(Error::InternalError(text)) if text.contains(&path)),
            "{what}: {outcome:?}"
        );
        assert_eq!(rig.state(&vm), PowerState::Suspended, "{what}");
        rig.until_remains(&vm, &before, what);
    }
    fs::write(rig.image_path(), whole).unwrap();
    rig.resume(&vm).unwrap();
}

#[test]
fn an_image_in_use_is_left_alone() {
    let (rig, vm, domid) = running(&quick(), long(), &[]);
    let other = crate::edge::SuspendFile::create(&rig.image_path(), 0).unwrap();
    other.file().write_all(b"\0\0\0").unwrap();
    assert!(matches!(rig.suspend(&vm), Err(Error::InternalError(text)) if text.contains("in use")));
    assert_eq!(fs::read(rig.image_path()).unwrap(), b"\0\0\0");
    fs::remove_file(rig.image_path()).unwrap();
    rig.runs_on(&vm, domid, "an image in use");
}
