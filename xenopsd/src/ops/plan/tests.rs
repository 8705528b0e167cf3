use super::*;
use crate::{test_vbd, test_vif, test_vm};

const ID: &str = "11111111-2222-3333-4444-555555555555";

fn records(vbds: &[(&str, VbdMode)], vifs: &[&str]) -> Records {
    Records {
        vm: test_vm(ID, "demo"),
        vbds: vbds.iter().map(|(name, mode)| Vbd { mode: *mode, ..test_vbd(ID, name) }).collect(),
        vifs: vifs.iter().map(|name| test_vif(ID, name)).collect(),
        leaving: None,
    }
}

fn vbd(name: &str) -> Step {
    Step::Do(Atom::Plug(Device::Vbd(name.to_owned())))
}

#[test]
fn a_bare_start_has_no_groups() {
    let hook = Atom::Hook(Hook::PreStart, HookReason::None);
    let steps = [Atom::CheckStart, hook, Atom::CreateDomain, Atom::BuildDomain, Atom::Settle].map(Step::Do);
    assert_eq!(start(&records(&[], &[])), steps);
}

#[test]
fn a_kernel_on_the_guests_disk_is_found_before_any_device_is_plugged() {
    let mut records = records(&[("xvda", VbdMode::ReadWrite)], &[]);
    let BuilderInfo::Pv(pv) = &mut records.vm.ty else { unreachable!() };
    pv.boot = crate::api::Boot::Indirect(crate::api::IndirectBoot::default());
    let plan = start(&records);
    assert_eq!(plan[2..4], [Atom::CreateDomain, Atom::FindKernel].map(Step::Do));
    assert_eq!(plan[4], Step::Parallel(vec![Step::Do(Atom::BuildDomain), vbd("xvda")]));
    let built = [Atom::FindKernel, Atom::BeginBuild, Atom::BuildDomain, Atom::Settle].map(Step::Do);
    assert_eq!(build(&records), built);
    assert!(Atom::FindKernel.undo().is_empty() && Atom::FindKernel.cancellable());
}

#[test]
fn an_installations_round_is_stored_when_its_domain_is_there_and_not_when_that_fails() {
    let mut records = records(&[], &[]);
    let BuilderInfo::Pv(pv) = &mut records.vm.ty else { unreachable!() };
    let boot = crate::api::IndirectBoot { bootloader: "eliloader".to_owned(), ..Default::default() };
    pv.boot = crate::api::Boot::Indirect(boot);
    let end = [Atom::LoadInstaller, Atom::BuildDomain, Atom::KeepRound, Atom::Settle].map(Step::Do);
    assert_eq!(start(&records)[3..], end);
    assert!(build(&records).ends_with(&end[1..]));
    assert_eq!(Atom::KeepRound.undo(), [Atom::ForgetRound]);
    assert!(Atom::LoadInstaller.cancellable() && Atom::LoadInstaller.weight() > Atom::FindKernel.weight());
}

#[test]
fn writable_disks_go_before_read_only_ones() {
    use VbdMode::{ReadOnly, ReadWrite};
    let plan = start(&records(
        &[("xvda", ReadOnly), ("xvdb", ReadWrite), ("xvdc", ReadWrite), ("xvdd", ReadOnly)],
        &["0"],
    ));
    let Step::Parallel(together) = &plan[3] else { panic!("{plan:?}") };
    assert_eq!(
        together[1],
        Step::Serial(vec![
            Step::Parallel(vec![vbd("xvdb"), vbd("xvdc")]),
            Step::Parallel(vec![vbd("xvda"), vbd("xvdd")]),
        ])
    );
    assert_eq!(together[2], Step::Do(Atom::Plug(Device::Vif("0".to_owned()))));
}

#[test]
fn groups_of_one_are_no_groups() {
    let plan = start(&records(&[("xvda", VbdMode::ReadWrite)], &[]));
    assert_eq!(plan[3], Step::Parallel(vec![Step::Do(Atom::BuildDomain), vbd("xvda")]));
}

#[test]
fn a_hard_shutdown_does_not_ask() {
    let hard = shutdown(None);
    assert_eq!(hard[1..hard.len() - 1], destroy());
    let minute = Duration::from_secs(60);
    let asks = Step::Do(Atom::RequestShutdown(ShutdownRequest::Poweroff, minute));
    assert_eq!(shutdown(Some(minute))[1], asks);
}

#[test]
fn hooks_are_told_why() {
    let of = |steps: &[Step]| -> Vec<_> {
        let hook = |step: &Step| match step {
            Step::Do(Atom::Hook(hook, reason)) => Some((*hook, *reason)),
            _ => None,
        };
        steps.iter().filter_map(hook).collect()
    };
    let minute = Some(Duration::from_secs(60));
    for (timeout, reason) in [(None, HookReason::HardShutdown), (minute, HookReason::CleanShutdown)] {
        assert_eq!(of(&shutdown(timeout)), [(Hook::PreShutdown, reason), (Hook::PostDestroy, reason)]);
    }
    for (timeout, reason) in [(None, HookReason::HardReboot), (minute, HookReason::CleanReboot)] {
        let hooks = [
            (Hook::PreShutdown, reason),
            (Hook::PostDestroy, reason),
            (Hook::PreReboot, HookReason::None),
            (Hook::PreStart, HookReason::None),
        ];
        assert_eq!(of(&reboot(&records(&[], &[]), timeout)), hooks);
    }
}

#[test]
fn a_guest_that_reboots_at_once_waits_and_another_does_not() {
    let (least, pause) = (Duration::from_secs(120), Duration::from_secs(15));
    let records = records(&[], &[]);
    let after = |up| own_reboot(&records, up, least, pause)[0] == Step::Do(Atom::Delay(pause));
    assert!(after(Some(Duration::from_secs(119))));
    assert!(!after(Some(least)) && !after(None));
}

#[test]
fn everything_a_start_takes_is_undone_by_its_creation() {
    assert_eq!(Atom::CreateDomain.undo(), END);
    assert!(END.iter().all(|atom| !atom.cancellable() && atom.undo().is_empty()));
}

#[test]
fn a_suspend_is_undone_until_the_image_is_kept() {
    let disk = Disk::Local("/image".to_owned());
    let steps = suspend(&records(&[], &[]).vm, &disk);
    let atoms: Vec<_> = steps
        .iter()
        .map(|step| match step {
            Step::Do(atom) => atom.clone(),
            _ => panic!("{step:?}"),
        })
        .collect();
    let keep = atoms.iter().position(Atom::commits).unwrap();
    let undone: Vec<_> = atoms[..keep].iter().rev().flat_map(Atom::undo).collect();
    assert_eq!(undone, [Atom::ResumeDomain, Atom::DiscardImage(disk)]);
    assert_eq!(atoms[keep + 1], Atom::StopTerminal(Screen::Kept));
    assert_eq!(atoms[keep + 2..keep + 2 + END.len()], END, "the guest's end comes after that");
    assert!(atoms[keep + 1..].iter().all(|atom| atom.undo().is_empty()));
}

#[test]
fn a_resume_is_a_start_from_an_image() {
    let disk = Disk::Local("/image".to_owned());
    let records = records(&[("xvda", VbdMode::ReadWrite)], &["0"]);
    let resumed = resume(&records, &disk);
    let Step::Parallel(together) = &resumed[3] else { panic!("{resumed:?}") };
    assert_eq!(together[0], Step::Do(Atom::RestoreDomain(disk)));
    let Step::Parallel(started) = &start(&records)[3] else { panic!() };
    assert_eq!(together[1..], started[1..]);
    assert_eq!(resumed.iter().map(Step::weight).sum::<u32>(), 18);
}

/// It writes into the guest's memory until it is stopped, and needs it to go on.
#[test]
fn a_device_model_is_saved_before_the_memory_and_loaded_after_it() {
    let disk = Disk::Local("/image".to_owned());
    let mut records = records(&[], &[]);
    let places = |steps: &[Step], atoms: [Atom; 2]| {
        let is = |step: &Step, atom: &Atom| match step {
            Step::Parallel(together) => together.contains(&Step::Do(atom.clone())),
            step => *step == Step::Do(atom.clone()),
        };
        atoms.map(|atom| steps.iter().position(|step| is(step, &atom)))
    };
    let saves = [Atom::SaveDeviceModel, Atom::SaveDomain];
    let loads = [Atom::RestoreDomain(disk.clone()), Atom::LoadDeviceModel];
    assert_eq!(places(&suspend(&records.vm, &disk), saves.clone())[0], None);
    assert_eq!(places(&resume(&records, &disk), loads.clone())[1], None);
    records.vm.ty = BuilderInfo::Hvm(crate::api::HvmInfo::default());
    for steps in [suspend(&records.vm, &disk), checkpoint(&records.vm, &disk)] {
        let [Some(model), Some(memory)] = places(&steps, saves.clone()) else { panic!("{steps:?}") };
        assert!(model < memory);
    }
    let resumed = resume(&records, &disk);
    let [Some(memory), Some(model)] = places(&resumed, loads) else { panic!("{resumed:?}") };
    assert!(memory < model);
    let begins = |steps: &[Step]| {
        [Beginning::Fresh, Beginning::Kept]
            .map(|b| places(steps, [Atom::StartDeviceModel(b), Atom::Settle])[0].is_some())
    };
    assert_eq!([begins(&start(&records)), begins(&resumed)], [[true, false], [false, true]]);
}

#[test]
fn a_failed_plug_is_undone_by_force() {
    let disk = Device::Vbd("xvda".to_owned());
    let mut vbd = test_vbd("11111111-2222-3333-4444-555555555555", "xvda");
    vbd.backend = Some(Disk::Vdi("sr/vdi".to_owned()));
    vbd.extra_backend_keys.0.push((IMAGE_FORMAT.to_owned(), "qcow2".to_owned()));
    let plan = plug(&disk, Some(&vbd));
    let between = [Atom::AttachStorage(disk.clone()), Atom::ServeDisk("xvda".to_owned())];
    assert_eq!(plan[1..3], between.map(Step::Do));
    let undone: Vec<_> = plan
        .iter()
        .flat_map(|step| match step {
            Step::Do(atom) => atom.undo(),
            _ => Vec::new(),
        })
        .collect();
    assert_eq!(undone, [Atom::Unplug(disk, Unplugging::Forced)]);
}
