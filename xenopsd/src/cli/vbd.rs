//! `xenops vbd`: the disks and drives of a VM.
//!
//! ```text
//!  attach:  VBD.add ──► runs? ──► VBD.plug ──fails──► VBD.remove
//!  detach:  plugged? ──► VBD.unplug ──► VBD.remove
//! ```

use std::path::absolute;

use crate::api::{
    DeviceId, DeviceNumber, Disk, Vbd, VbdAdd, VbdEject, VbdInsert, VbdList, VbdMode, VbdPlug, VbdRefresh,
    VbdRemove, VbdState, VbdType, VbdUnplug,
};
use crate::xlcfg;

use super::Session;
use super::args::VbdCommand;
use super::error::{CliError, DeviceError};
use super::resolve::Known;
use super::table::{Align, table, yes};
use super::vm::{find, has_domain, stat};

pub(super) fn run(session: &mut Session<'_, '_>, command: &VbdCommand) -> Result<(), CliError> {
    match command {
        VbdCommand::List { vm } => list(session, vm),
        VbdCommand::Attach { vm, spec } => attach(session, vm, spec),
        VbdCommand::Detach { vm, device, force } => detach(session, vm, device, *force),
        VbdCommand::Insert { vm, device, medium } => {
            let path = absolute(medium)
                .map_err(|source| CliError::File { file: medium.display().to_string(), source })?;
            let disk = Disk::Local(path.display().to_string());
            let (vm, id) = named(session, vm, device)?;
            let call = VbdInsert { debug_info: session.dbg(), id: id.clone(), disk };
            let task = session.client.call(&call)?;
            session.wait(&format!("inserting into {} of {}", id.device, vm.name), &task)
        }
        VbdCommand::Eject { vm, device } => {
            let (vm, id) = named(session, vm, device)?;
            let task = session.client.call(&VbdEject { debug_info: session.dbg(), id: id.clone() })?;
            session.wait(&format!("ejecting from {} of {}", id.device, vm.name), &task)
        }
        VbdCommand::Refresh { vm, device } => {
            let (vm, id) = named(session, vm, device)?;
            let task = session.client.call(&VbdRefresh { debug_info: session.dbg(), id: id.clone() })?;
            session.wait(&format!("looking at {} of {}", id.device, vm.name), &task)
        }
    }
}

/// The VBDs of a VM.
pub(super) fn all(session: &Session<'_, '_>, id: &str) -> Result<Vec<(Vbd, VbdState)>, CliError> {
    Ok(session.client.call(&VbdList { debug_info: session.dbg(), id: id.to_owned() })?)
}

fn list(session: &mut Session<'_, '_>, vm: &str) -> Result<(), CliError> {
    let vm = find(session, vm)?;
    let vbds = all(session, &vm.id)?;
    if session.json {
        return session.print_json(&vbds);
    }
    session.print(&render(&vbds))
}

fn attach(session: &mut Session<'_, '_>, vm: &str, spec: &str) -> Result<(), CliError> {
    let (disk, remarks) = xlcfg::parse_disk(spec).map_err(|fault| DeviceError::spec("disk", spec, fault))?;
    session.remark(&remarks)?;
    let vm = find(session, vm)?;
    let vbd = disk.to_api(&vm.id);
    let present = all(session, &vm.id)?;
    if let Some((other, _)) = present.iter().find(|(other, _)| other.id == vbd.id || is_at(other, disk.vdev))
    {
        let device = other.id.device.clone();
        return Err(DeviceError::Taken { kind: "vbd", vm: vm.name, device }.into());
    }
    let id = session.client.call(&VbdAdd { debug_info: session.dbg(), vbd })?;
    if let Err(first) = plug(session, &vm, &id) {
        let forgotten = session.client.call(&VbdRemove { debug_info: session.dbg(), id: id.clone() });
        return Err(match forgotten {
            Ok(()) => first,
            Err(second) => DeviceError::half("vbd", vm.name, id.device, first, second).into(),
        });
    }
    session.print_device(&id)
}

fn plug(session: &mut Session<'_, '_>, vm: &Known, id: &DeviceId) -> Result<(), CliError> {
    if !has_domain(&stat(session, &vm.id)?.1) {
        return Ok(());
    }
    let task = session.client.call(&VbdPlug { debug_info: session.dbg(), id: id.clone() })?;
    session.wait(&format!("plugging {} of {}", id.device, vm.name), &task)
}

fn detach(session: &mut Session<'_, '_>, vm: &str, device: &str, force: bool) -> Result<(), CliError> {
    let vm = find(session, vm)?;
    let (vbd, state) = pick(session, &vm, device)?;
    if state.plugged {
        let call = VbdUnplug { debug_info: session.dbg(), id: vbd.id.clone(), force };
        let task = session.client.call(&call)?;
        session.wait(&format!("unplugging {} of {}", vbd.id.device, vm.name), &task)?;
    }
    Ok(session.client.call(&VbdRemove { debug_info: session.dbg(), id: vbd.id })?)
}

/// A VM and the id of one of its VBDs.
fn named(session: &Session<'_, '_>, vm: &str, device: &str) -> Result<(Known, DeviceId), CliError> {
    let vm = find(session, vm)?;
    let id = pick(session, &vm, device)?.0.id;
    Ok((vm, id))
}

/// The VBD that a word means: by the name it was given, else by the place in the guest in any spelling.
fn pick(session: &Session<'_, '_>, vm: &Known, device: &str) -> Result<(Vbd, VbdState), CliError> {
    let mut vbds = all(session, &vm.id)?;
    let place = device.parse::<DeviceNumber>().ok();
    let found = vbds
        .iter()
        .position(|(vbd, _)| vbd.id.device == device)
        .or_else(|| vbds.iter().position(|(vbd, _)| place.is_some_and(|place| is_at(vbd, place))));
    let Some(index) = found else {
        let present = vbds.into_iter().map(|(vbd, _)| vbd.id.device).collect();
        return Err(DeviceError::none("vbd", vm.name.clone(), device, present).into());
    };
    Ok(vbds.swap_remove(index))
}

fn is_at(vbd: &Vbd, place: DeviceNumber) -> bool {
    vbd.position == Some(place)
}

/// A table; nothing of no disks.
pub(super) fn render(vbds: &[(Vbd, VbdState)]) -> String {
    if vbds.is_empty() {
        return String::new();
    }
    let columns = [
        ("DISK", Align::Left),
        ("MODE", Align::Left),
        ("KIND", Align::Left),
        ("PLUGGED", Align::Left),
        ("CONTENT", Align::Left),
    ];
    let rows: Vec<Vec<String>> = vbds
        .iter()
        .map(|(vbd, state)| {
            let mode = match vbd.mode {
                VbdMode::ReadOnly => "ro",
                VbdMode::ReadWrite => "rw",
            };
            let kind = match vbd.ty {
                VbdType::Cdrom => "cdrom",
                VbdType::Disk => "disk",
                VbdType::Floppy => "floppy",
            };
            let content = match &vbd.backend {
                Some(Disk::Local(path) | Disk::Vdi(path)) => path.clone(),
                None => "(empty)".to_owned(),
            };
            vec![vbd.id.device.clone(), mode.to_owned(), kind.to_owned(), yes(state.plugged), content]
        })
        .collect();
    table(&columns, &rows)
}
