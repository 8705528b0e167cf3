//! `xenops vbd`: the disks and drives of a VM.

use std::path::absolute;

use crate::api::{
    DeviceId, DeviceNumber, Disk, Vbd, VbdAdd, VbdEject, VbdInsert, VbdList, VbdMode, VbdPlug, VbdRefresh,
    VbdRemove, VbdState, VbdType, VbdUnplug,
};
use crate::rpc::ClientError;
use crate::xlcfg;

use super::Session;
use super::args::VbdCommand;
use super::device::{self, Device};
use super::error::{CliError, DeviceError};
use super::table::{Align, table, yes};
use super::vm::find;

pub(super) fn run(session: &mut Session<'_, '_>, command: &VbdCommand) -> Result<(), CliError> {
    match command {
        VbdCommand::List { vm } => device::list::<Vbd>(session, vm),
        VbdCommand::Attach { vm, spec } => attach(session, vm, spec),
        VbdCommand::Detach { vm, device, force } => device::detach::<Vbd>(session, vm, device, *force),
        VbdCommand::Insert { vm, device, medium } => {
            let path = absolute(medium)
                .map_err(|source| CliError::File { file: medium.display().to_string(), source })?;
            let disk = Disk::Local(path.display().to_string());
            let (vm, id) = device::named::<Vbd>(session, vm, device)?;
            let call = VbdInsert { debug_info: session.dbg(), id: id.clone(), disk };
            let task = session.client.call(&call)?;
            session.wait(&format!("inserting into {} of {}", id.device, vm.name), &task)
        }
        VbdCommand::Eject { vm, device } => {
            let (vm, id) = device::named::<Vbd>(session, vm, device)?;
            let task = session.client.call(&VbdEject { debug_info: session.dbg(), id: id.clone() })?;
            session.wait(&format!("ejecting from {} of {}", id.device, vm.name), &task)
        }
        VbdCommand::Refresh { vm, device } => {
            let (vm, id) = device::named::<Vbd>(session, vm, device)?;
            let task = session.client.call(&VbdRefresh { debug_info: session.dbg(), id: id.clone() })?;
            session.wait(&format!("looking at {} of {}", id.device, vm.name), &task)
        }
    }
}

fn attach(session: &mut Session<'_, '_>, vm: &str, spec: &str) -> Result<(), CliError> {
    let (disk, remarks) = xlcfg::parse_disk(spec).map_err(|fault| DeviceError::spec("disk", spec, fault))?;
    session.remark(&remarks)?;
    let vm = find(session, vm)?;
    let vbd = disk.to_api(&vm.id);
    let present = Vbd::all(session, &vm.id)?;
    let taken = present.iter().find(|(other, _)| other.id == vbd.id || other.position == Some(disk.vdev));
    if let Some((other, _)) = taken {
        let device = other.id.device.clone();
        return Err(DeviceError::Taken { kind: Vbd::KIND, vm: vm.name, device }.into());
    }
    device::attach(session, &vm, vbd)
}

impl Device for Vbd {
    const KIND: &'static str = "vbd";
    type State = VbdState;

    fn id(&self) -> &DeviceId {
        &self.id
    }

    /// The place in the guest in any spelling.
    fn answers_to(&self, word: &str) -> bool {
        word.parse::<DeviceNumber>().is_ok_and(|place| self.position == Some(place))
    }

    fn is_plugged(state: &VbdState) -> bool {
        state.plugged
    }

    fn all(session: &Session<'_, '_>, vm: &str) -> Result<Vec<(Self, VbdState)>, ClientError> {
        session.client.call(&VbdList { debug_info: session.dbg(), id: vm.to_owned() })
    }

    fn add(self, session: &Session<'_, '_>) -> Result<DeviceId, ClientError> {
        session.client.call(&VbdAdd { debug_info: session.dbg(), vbd: self })
    }

    fn plug(session: &Session<'_, '_>, id: DeviceId) -> Result<String, ClientError> {
        session.client.call(&VbdPlug { debug_info: session.dbg(), id })
    }

    fn unplug(session: &Session<'_, '_>, id: DeviceId, force: bool) -> Result<String, ClientError> {
        session.client.call(&VbdUnplug { debug_info: session.dbg(), id, force })
    }

    fn remove(session: &Session<'_, '_>, id: DeviceId) -> Result<(), ClientError> {
        session.client.call(&VbdRemove { debug_info: session.dbg(), id })
    }

    fn render(vbds: &[(Self, VbdState)]) -> String {
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
}
