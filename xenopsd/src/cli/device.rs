//! What `xenops vbd` and `xenops vif` have in common: a device is defined and plugged, found by a word, unplugged and
//! forgotten.
//!
//! ```text
//!  attach:  add ──► runs? ──► plug ──fails──► remove
//!  detach:  plugged? ──► unplug ──► remove
//! ```

use crate::api::DeviceId;
use crate::api::value::ToValue;
use crate::rpc::ClientError;

use super::Session;
use super::error::{CliError, DeviceError};
use super::resolve::Known;
use super::vm::{find, has_domain, stat};

/// A class of devices, as the contract's calls have it.
pub(super) trait Device: ToValue + Sized {
    /// The command's word.
    const KIND: &'static str;
    /// What is observed of one.
    type State: ToValue;

    /// Which device of which VM.
    fn id(&self) -> &DeviceId;
    /// Whether another word than its name means it.
    fn answers_to(&self, word: &str) -> bool;
    /// Whether the running VM has it.
    fn is_plugged(state: &Self::State) -> bool;
    /// A table for people; nothing of no devices.
    fn render(devices: &[(Self, Self::State)]) -> String;

    /// Those of a VM.
    fn all(session: &Session<'_, '_>, vm: &str) -> Result<Vec<(Self, Self::State)>, ClientError>;
    /// Defines it.
    fn add(self, session: &Session<'_, '_>) -> Result<DeviceId, ClientError>;
    /// Begins to plug it: a task.
    fn plug(session: &Session<'_, '_>, id: DeviceId) -> Result<String, ClientError>;
    /// Begins to unplug it: a task.
    fn unplug(session: &Session<'_, '_>, id: DeviceId, force: bool) -> Result<String, ClientError>;
    /// Forgets it.
    fn remove(session: &Session<'_, '_>, id: DeviceId) -> Result<(), ClientError>;
}

pub(super) fn list<D: Device>(session: &mut Session<'_, '_>, vm: &str) -> Result<(), CliError> {
    let vm = find(session, vm)?;
    let devices = D::all(session, &vm.id)?;
    if session.json {
        return session.print_json(&devices);
    }
    session.print(&D::render(&devices))
}

/// Defines a device, plugs it if the VM runs, and prints its name. What cannot be plugged is forgotten.
pub(super) fn attach<D: Device>(
    session: &mut Session<'_, '_>,
    vm: &Known,
    device: D,
) -> Result<(), CliError> {
    let id = device.add(session)?;
    if let Err(first) = plug_if_it_runs::<D>(session, vm, &id) {
        return Err(match D::remove(session, id.clone()) {
            Ok(()) => first,
            Err(second) => DeviceError::Half {
                kind: D::KIND,
                vm: vm.name.clone(),
                device: id.device,
                first: Box::new(first),
                second: Box::new(second),
            }
            .into(),
        });
    }
    session.print_id(&id, &id.device)
}

fn plug_if_it_runs<D: Device>(
    session: &mut Session<'_, '_>,
    vm: &Known,
    id: &DeviceId,
) -> Result<(), CliError> {
    if !has_domain(&stat(session, &vm.id)?.1) {
        return Ok(());
    }
    let task = D::plug(session, id.clone())?;
    session.wait(&format!("plugging {} {} of {}", D::KIND, id.device, vm.name), &task)
}

pub(super) fn detach<D: Device>(
    session: &mut Session<'_, '_>,
    vm: &str,
    word: &str,
    force: bool,
) -> Result<(), CliError> {
    let vm = find(session, vm)?;
    let (device, state) = pick::<D>(session, &vm, word)?;
    let id = device.id();
    if D::is_plugged(&state) {
        let task = D::unplug(session, id.clone(), force)?;
        session.wait(&format!("unplugging {} {} of {}", D::KIND, id.device, vm.name), &task)?;
    }
    Ok(D::remove(session, id.clone())?)
}

/// A VM, and the id of one of its devices.
pub(super) fn named<D: Device>(
    session: &Session<'_, '_>,
    vm: &str,
    word: &str,
) -> Result<(Known, DeviceId), CliError> {
    let vm = find(session, vm)?;
    let id = pick::<D>(session, &vm, word)?.0.id().clone();
    Ok((vm, id))
}

/// The device that a word means: by its name, else by what else it answers to.
fn pick<D: Device>(session: &Session<'_, '_>, vm: &Known, word: &str) -> Result<(D, D::State), CliError> {
    let mut devices = D::all(session, &vm.id)?;
    let named = devices.iter().position(|(device, _)| device.id().device == word);
    let found = named.or_else(|| devices.iter().position(|(device, _)| device.answers_to(word)));
    let Some(index) = found else {
        let present = devices.into_iter().map(|(device, _)| device.id().device.clone()).collect();
        return Err(DeviceError::None {
            kind: D::KIND,
            vm: vm.name.clone(),
            wanted: word.to_owned(),
            present,
        }
        .into());
    };
    Ok(devices.swap_remove(index))
}
