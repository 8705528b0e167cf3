//! Which steps an operation takes, in which order, what may run in parallel and what undoes what: a pure function of
//! the stored records, tested without a machine.
//!
//! ```text
//!   start     check ─► hook ─► create ─► [attach storage] ─► [find kernel | load installer] ─► ∥ { build ─► terminal ·
//!             ∥ writable disks ─► ∥ read-only disks · [device model] · each interface } ─► [keep round] ─► settle
//!   destroy   pause ─► stop device model ─► close devices ─► stop frame buffer ─► stop terminal ─► destroy domain ─►
//!             release devices
//!   shutdown  hook ─► [ask the guest] ─► destroy ─► hook
//!   reboot    [ask the guest] ─► hook ─► destroy ─► hooks ─► start ─► unpause
//!   plug      begin ─► [attach storage] ─► [serve] ─► plug ─► end          unplug    unplug
//!   suspend   hook ─► open image ─► ask the guest ─► [save device model] ─► save ─► hook ─► seal ─► keep ─►
//!             stop terminal ─► destroy ─► hook
//!   resume    check ─► hook ─► create ─► as start, with restore for build ─► [load device model] ─► settle ─► forget ─► hook
//! ```
//!
//! The build and the devices run side by side: backends only need the device's own nodes, and their probing is the
//! longer half of a start. So does a device model, which needs a domain with vcpus and limits.

use std::time::Duration;

use super::hook::{Hook, HookReason};
use crate::api::{BootLoader, BuilderInfo, Disk, Vbd, VbdMode, Vif, Vm};
use crate::dm::args::has_serial;
use crate::edge::IMAGE_FORMAT;

/// A VM as the plan sees it.
#[derive(Debug, Clone)]
pub struct Records {
    /// The VM.
    pub vm: Vm,
    /// Its disks.
    pub vbds: Vec<Vbd>,
    /// Its network interfaces.
    pub vifs: Vec<Vif>,
    /// A disk that was for its installer: the domain that is started does not get it, and its record goes with the round.
    pub leaving: Option<Vbd>,
}

/// Start, leaving the domain paused, as the contract has it.
pub fn start(records: &Records) -> Vec<Step> {
    let hook = hook(Hook::PreStart, HookReason::None);
    let [check, create, settle] = [Atom::CheckStart, Atom::CreateDomain, Atom::Settle].map(Step::Do);
    let mut steps = vec![check, hook, create, attach_storage(records)];
    steps.extend(find_kernel(&records.vm));
    steps.push(fill(Atom::BuildDomain, Screen::Fresh, records));
    steps.extend(keep_round(&records.vm));
    steps.push(settle);
    tidy(steps)
}

/// Before the devices are plugged, so that nothing of them is to be undone when there is no kernel.
fn find_kernel(vm: &Vm) -> Option<Step> {
    let atom = match vm.indirect_boot()?.loader() {
        Some(BootLoader::Eliloader) => Atom::LoadInstaller,
        // One that is not known is found by the check.
        Some(BootLoader::Pygrub) | None => Atom::FindKernel,
    };
    Some(Step::Do(atom))
}

fn keep_round(vm: &Vm) -> Option<Step> {
    let installs = vm.indirect_boot()?.loader() == Some(BootLoader::Eliloader);
    installs.then_some(Step::Do(Atom::KeepRound))
}

/// Whether something is emulated for the VM's guest.
pub fn has_device_model(vm: &Vm) -> bool {
    matches!(vm.ty, BuilderInfo::Hvm(_))
}

/// Disks of a storage layer, writable ones first: it cannot turn a read-only attachment into a writable one. Before their
/// first use, which is the search for a kernel.
fn attach_storage(records: &Records) -> Step {
    let attach = |mode: VbdMode| {
        let these = records.vbds.iter().filter(|vbd| vbd.mode == mode);
        Step::Parallel(these.map(|vbd| Step::Serial(reach(vbd).map(Step::Do).collect())).collect())
    };
    Step::Serial(vec![attach(VbdMode::ReadWrite), attach(VbdMode::ReadOnly)])
}

/// What makes a disk's contents reachable in dom0 before anybody uses them: a storage layer has it, or an image is to be
/// served.
fn reach(vbd: &Vbd) -> impl Iterator<Item = Atom> {
    let storage = matches!(vbd.backend, Some(Disk::Vdi(_)));
    let served = vbd.backend.is_some() && vbd.extra_backend_keys.get(IMAGE_FORMAT).is_some();
    let name = &vbd.id.device;
    let attach = storage.then(|| Atom::AttachStorage(Device::Vbd(name.clone())));
    attach.into_iter().chain(served.then(|| Atom::ServeDisk(name.clone())))
}

/// Whether the VM's text has a terminal server: its console's if it is to have a screen, an HVM guest's serial port's if it
/// has one.
pub fn has_terminal(vm: &Vm) -> bool {
    match &vm.ty {
        BuilderInfo::Pv(pv) | BuilderInfo::Pvh(pv) | BuilderInfo::PvInPvh(pv) => pv.vncterm,
        BuilderInfo::Hvm(hvm) => has_serial(hvm),
    }
}

/// Whether the VM has a paravirtual frame buffer.
pub fn has_frame_buffer(vm: &Vm) -> bool {
    match &vm.ty {
        BuilderInfo::Pv(pv) | BuilderInfo::Pvh(pv) | BuilderInfo::PvInPvh(pv) => pv.framebuffer,
        BuilderInfo::Hvm(_) => false,
    }
}

/// Whether its terminal server's text is a VNC screen as well: one guest has one screen, which is its device model's or its
/// frame buffer if it has that.
pub fn has_text_screen(vm: &Vm) -> bool {
    has_terminal(vm) && !matches!(vm.ty, BuilderInfo::Hvm(_)) && !has_frame_buffer(vm)
}

/// Kernel and memory of a domain that was created empty, and its terminal server. A build that fails half way cannot be
/// begun again: the domain goes.
pub fn build(records: &Records) -> Vec<Step> {
    let mut steps = vec![attach_storage(records)];
    steps.extend(find_kernel(&records.vm));
    steps.push(Step::Do(Atom::BeginBuild));
    steps.extend(filled(Atom::BuildDomain, Screen::Fresh, records));
    steps.extend(keep_round(&records.vm));
    steps.push(Step::Do(Atom::Settle));
    tidy(steps)
}

/// The terminal server of a running guest whose last one has ended.
pub fn restart_terminal() -> Vec<Step> {
    vec![Step::Do(Atom::StartTerminal(Screen::Fresh))]
}

/// A console has no terminal before its domain has memory.
fn filled(atom: Atom, screen: Screen, records: &Records) -> Vec<Step> {
    let of_console = has_terminal(&records.vm) && !has_device_model(&records.vm);
    let terminal = of_console.then_some(Atom::StartTerminal(screen));
    [atom].into_iter().chain(terminal).map(Step::Do).collect()
}

/// The device model of an HVM guest, and the terminal server of the serial port that it makes.
pub fn start_device_model(vm: &Vm, beginning: Beginning) -> Vec<Step> {
    let screen = match beginning {
        Beginning::Fresh => Screen::Fresh,
        Beginning::Kept => Screen::Kept,
    };
    let terminal = has_terminal(vm).then_some(Atom::StartTerminal(screen));
    [Atom::StartDeviceModel(beginning)].into_iter().chain(terminal).map(Step::Do).collect()
}

/// A new domain's memory, by `atom`, with its terminal server, and its devices, side by side.
fn fill(atom: Atom, screen: Screen, records: &Records) -> Step {
    let plug = |mode: VbdMode| {
        let these = records.vbds.iter().filter(|vbd| vbd.mode == mode);
        Step::Parallel(these.map(|vbd| Step::Do(Atom::Plug(Device::Vbd(vbd.id.device.clone())))).collect())
    };
    let beginning = if matches!(atom, Atom::RestoreDomain(_)) { Beginning::Kept } else { Beginning::Fresh };
    let mut together = vec![
        Step::Serial(filled(atom, screen, records)),
        // Storage cannot turn a read-only attachment into a writable one, so writable disks go first.
        Step::Serial(vec![plug(VbdMode::ReadWrite), plug(VbdMode::ReadOnly)]),
    ];
    // It maps memory of the domain's only when the guest runs.
    if has_device_model(&records.vm) {
        together.push(Step::Serial(start_device_model(&records.vm, beginning)));
    }
    together.extend(has_frame_buffer(&records.vm).then_some(Step::Do(Atom::OfferFrameBuffer)));
    together.extend(records.vifs.iter().map(|vif| Step::Do(Atom::Plug(Device::Vif(vif.id.device.clone())))));
    Step::Parallel(together)
}

/// An empty domain, kept.
pub fn create() -> Vec<Step> {
    [Atom::CheckStart, Atom::CreateDomain, Atom::Settle].map(Step::Do).to_vec()
}

/// Down, and nothing left, as a client asks for it. The guest is asked first when `timeout` is given.
pub fn shutdown(timeout: Option<Duration>) -> Vec<Step> {
    let reason = if timeout.is_some() { HookReason::CleanShutdown } else { HookReason::HardShutdown };
    let mut steps = vec![hook(Hook::PreShutdown, reason)];
    steps.extend(request(ShutdownRequest::Poweroff, timeout));
    steps.extend(destroy());
    steps.push(hook(Hook::PostDestroy, reason));
    steps
}

/// Down and up again, running.
pub fn reboot(records: &Records, timeout: Option<Duration>) -> Vec<Step> {
    let reason = if timeout.is_some() { HookReason::CleanReboot } else { HookReason::HardReboot };
    let mut steps = request(ShutdownRequest::Reboot, timeout);
    steps.push(hook(Hook::PreShutdown, reason));
    steps.extend(destroy());
    steps.push(hook(Hook::PostDestroy, reason));
    steps.push(hook(Hook::PreReboot, HookReason::None));
    steps.extend(start(records));
    steps.push(Step::Do(Atom::Unpause));
    steps
}

/// A reboot that the guest asked for itself: after a wait when it has been up for less than `least`, so that a guest that
/// reboots as soon as it is up leaves the host some time for others.
pub fn own_reboot(records: &Records, up: Option<Duration>, least: Duration, pause: Duration) -> Vec<Step> {
    let hasty = up.is_some_and(|up| up < least);
    let mut steps: Vec<Step> = hasty.then_some(Step::Do(Atom::Delay(pause))).into_iter().collect();
    steps.extend(reboot(records, None));
    steps
}

/// A device for a running guest; a disk, whose record is `vbd`, is made reachable first.
pub fn plug(device: &Device, vbd: Option<&Vbd>) -> Vec<Step> {
    let mut atoms = vec![Atom::BeginPlug(device.clone())];
    atoms.extend(vbd.into_iter().flat_map(reach));
    atoms.extend([Atom::Plug(device.clone()), Atom::EndPlug(device.clone())]);
    atoms.into_iter().map(Step::Do).collect()
}

/// Away from a running guest.
pub fn unplug(device: &Device, how: Unplugging) -> Vec<Step> {
    vec![Step::Do(Atom::Unplug(device.clone(), how))]
}

fn hook(hook: Hook, reason: HookReason) -> Step {
    Step::Do(Atom::Hook(hook, reason))
}

/// How a domain ends, in whatever state it is.
const END: [Atom; 7] = [
    Atom::PauseBestEffort,
    Atom::StopDeviceModel,
    Atom::CloseDevices,
    Atom::StopFrameBuffer,
    Atom::StopTerminal(Screen::Fresh),
    Atom::DestroyDomain,
    Atom::ReleaseDevices,
];

/// The end of a domain in whatever state; also what undoes its creation.
pub fn destroy() -> Vec<Step> {
    END.map(Step::Do).to_vec()
}

fn request(what: ShutdownRequest, timeout: Option<Duration>) -> Vec<Step> {
    timeout.map(|t| Step::Do(Atom::RequestShutdown(what, t))).into_iter().collect()
}

/// Removes empty groups and unwraps groups of one.
fn tidy(steps: Vec<Step>) -> Vec<Step> {
    steps
        .into_iter()
        .filter_map(|step| match step {
            Step::Do(_) => Some(step),
            Step::Serial(inner) => group(tidy(inner), Step::Serial),
            Step::Parallel(inner) => group(tidy(inner), Step::Parallel),
        })
        .collect()
}

fn group(mut steps: Vec<Step>, wrap: fn(Vec<Step>) -> Step) -> Option<Step> {
    match steps.len() {
        0 => None,
        1 => steps.pop(),
        _ => Some(wrap(steps)),
    }
}

mod atom;
mod suspend;
mod text;
pub use atom::{Atom, Beginning, Device, Screen, ShutdownRequest, Step, Unplugging};
pub use suspend::{abandon_suspend, checkpoint, resume, suspend};

#[cfg(test)]
mod tests;
