//! The plans between a running guest and its image.

use super::{Atom, Records, Screen, Step, attach_storage, destroy, fill, has_device_model, hook, tidy};
use crate::api::{Disk, Vm};
use crate::edge::Access;
use crate::ops::hook::{Hook, HookReason};

/// To an image, and the domain away.
pub fn suspend(vm: &Vm, disk: &Disk) -> Vec<Step> {
    let mut steps = vec![hook(Hook::PreSuspend, HookReason::Suspend)];
    steps.extend(attach_image(disk, Access::ReadWrite));
    steps.extend(save(vm, disk));
    steps.push(hook(Hook::PreShutdown, HookReason::Suspend));
    steps.extend([Atom::SealImage, Atom::KeepImage, Atom::StopTerminal(Screen::Kept)].map(Step::Do));
    steps.extend(destroy());
    steps.push(hook(Hook::PostDestroy, HookReason::Suspend));
    steps
}

/// From an image, leaving the domain paused.
pub fn resume(records: &Records, disk: &Disk) -> Vec<Step> {
    let attach = attach_image(disk, Access::ReadOnly);
    let detach = attach.as_ref().map(|_| Step::Do(Atom::DetachImage));
    let resume = [
        Step::Do(Atom::CheckResume(disk.clone())),
        hook(Hook::PreResume, HookReason::None),
        Step::Do(Atom::CreateDomain),
        attach_storage(records),
        fill(Atom::RestoreDomain(disk.clone()), Screen::Kept, records),
    ];
    let load = has_device_model(&records.vm).then_some(Atom::LoadDeviceModel);
    let done = load.into_iter().chain([Atom::Settle, Atom::ForgetImage]).map(Step::Do);
    let end = hook(Hook::PostResume, HookReason::None);
    tidy(attach.into_iter().chain(resume).chain(done).chain(detach).chain([end]).collect())
}

/// To an image, and on with the same domain.
pub fn checkpoint(vm: &Vm, disk: &Disk) -> Vec<Step> {
    let attach = attach_image(disk, Access::ReadWrite);
    let detach = attach.as_ref().map(|_| Step::Do(Atom::DetachImage));
    let on = [Atom::ResumeDomain, Atom::SealImage].map(Step::Do);
    attach.into_iter().chain(save(vm, disk)).chain(on).chain(detach).collect()
}

/// All that is to be kept of the guest written to its image.
fn save(vm: &Vm, disk: &Disk) -> impl Iterator<Item = Step> {
    let model = has_device_model(vm).then_some(Atom::SaveDeviceModel);
    let ask = [Atom::OpenImage(disk.clone()), Atom::RequestSuspend];
    ask.into_iter().chain(model).chain([Atom::SaveDomain]).map(Step::Do)
}

/// An image in dom0's files needs nothing of the kind.
fn attach_image(disk: &Disk, access: Access) -> Option<Step> {
    matches!(disk, Disk::Vdi(_)).then(|| Step::Do(Atom::AttachImage(disk.clone(), access)))
}

/// On with a domain whose suspend did not come to its end.
pub fn abandon_suspend(disk: &Disk) -> Vec<Step> {
    [Atom::ResumeDomain, Atom::DiscardImage(disk.clone()), Atom::DetachImage].map(Step::Do).to_vec()
}
