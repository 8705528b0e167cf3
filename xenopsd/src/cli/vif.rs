//! `xenops vif`: the network interfaces of a VM.
//!
//! ```text
//!  attach:  VIF.add ──► runs? ──► VIF.plug ──fails──► VIF.remove
//!  detach:  plugged? ──► VIF.unplug ──► VIF.remove
//! ```

use crate::api::{
    DeviceId, Int, Network, Vif, VifAdd, VifList, VifMove, VifPlug, VifRemove, VifSetCarrier, VifState,
    VifUnplug,
};
use crate::xlcfg;

use super::Session;
use super::args::{Carrier, VifCommand};
use super::error::{CliError, DeviceError};
use super::resolve::Known;
use super::table::{Align, table, yes};
use super::vm::{find, has_domain, stat};

pub(super) fn run(session: &mut Session<'_, '_>, command: &VifCommand) -> Result<(), CliError> {
    match command {
        VifCommand::List { vm } => list(session, vm),
        VifCommand::Attach { vm, spec } => attach(session, vm, spec),
        VifCommand::Detach { vm, device, force } => detach(session, vm, device, *force),
        VifCommand::Move { vm, device, bridge } => {
            let (vm, id) = named(session, vm, device)?;
            let network = Network::Local(bridge.clone());
            let call = VifMove { debug_info: session.dbg(), id: id.clone(), network };
            let task = session.client.call(&call)?;
            session.wait(&format!("moving interface {} of {}", id.device, vm.name), &task)
        }
        VifCommand::Carrier { vm, device, state } => {
            let (vm, id) = named(session, vm, device)?;
            let carrier = *state == Carrier::Up;
            let call = VifSetCarrier { debug_info: session.dbg(), id: id.clone(), carrier };
            let task = session.client.call(&call)?;
            session.wait(&format!("setting the carrier of interface {} of {}", id.device, vm.name), &task)
        }
    }
}

/// The VIFs of a VM.
pub(super) fn all(session: &Session<'_, '_>, id: &str) -> Result<Vec<(Vif, VifState)>, CliError> {
    Ok(session.client.call(&VifList { debug_info: session.dbg(), id: id.to_owned() })?)
}

fn list(session: &mut Session<'_, '_>, vm: &str) -> Result<(), CliError> {
    let vm = find(session, vm)?;
    let vifs = all(session, &vm.id)?;
    if session.json {
        return session.print_json(&vifs);
    }
    session.print(&render(&vifs))
}

fn attach(session: &mut Session<'_, '_>, vm: &str, spec: &str) -> Result<(), CliError> {
    let (config, remarks) =
        xlcfg::parse_vif(spec).map_err(|fault| DeviceError::spec("interface", spec, fault))?;
    session.remark(&remarks)?;
    let vm = find(session, vm)?;
    let present = all(session, &vm.id)?;
    let mac = config.mac.map(|mac| mac.to_string());
    if let Some((other, _)) = present.iter().find(|(other, _)| mac.as_ref() == Some(&other.mac)) {
        let device = other.id.device.clone();
        return Err(DeviceError::Taken { kind: "vif", vm: vm.name, device }.into());
    }
    let vif = config.to_api(&vm.id, first_free(&present));
    let id = session.client.call(&VifAdd { debug_info: session.dbg(), vif })?;
    if let Err(first) = plug(session, &vm, &id) {
        let forgotten = session.client.call(&VifRemove { debug_info: session.dbg(), id: id.clone() });
        return Err(match forgotten {
            Ok(()) => first,
            Err(second) => DeviceError::half("vif", vm.name, id.device, first, second).into(),
        });
    }
    session.print_device(&id)
}

/// The lowest place that no interface has, as a place or as a name.
fn first_free(present: &[(Vif, VifState)]) -> Int {
    let taken = |place: Int| {
        present.iter().any(|(vif, _)| vif.position == place || vif.id.device == place.to_string())
    };
    (0..Int::MAX).find(|place| !taken(*place)).unwrap_or(Int::MAX)
}

fn plug(session: &mut Session<'_, '_>, vm: &Known, id: &DeviceId) -> Result<(), CliError> {
    if !has_domain(&stat(session, &vm.id)?.1) {
        return Ok(());
    }
    let task = session.client.call(&VifPlug { debug_info: session.dbg(), id: id.clone() })?;
    session.wait(&format!("plugging interface {} of {}", id.device, vm.name), &task)
}

fn detach(session: &mut Session<'_, '_>, vm: &str, device: &str, force: bool) -> Result<(), CliError> {
    let vm = find(session, vm)?;
    let (vif, state) = pick(session, &vm, device)?;
    if state.plugged {
        let call = VifUnplug { debug_info: session.dbg(), id: vif.id.clone(), force };
        let task = session.client.call(&call)?;
        session.wait(&format!("unplugging interface {} of {}", vif.id.device, vm.name), &task)?;
    }
    Ok(session.client.call(&VifRemove { debug_info: session.dbg(), id: vif.id })?)
}

/// A VM and the id of one of its VIFs.
fn named(session: &Session<'_, '_>, vm: &str, device: &str) -> Result<(Known, DeviceId), CliError> {
    let vm = find(session, vm)?;
    let id = pick(session, &vm, device)?.0.id;
    Ok((vm, id))
}

/// The VIF that a word means: by its name, which is its number as a rule, else by its MAC address.
fn pick(session: &Session<'_, '_>, vm: &Known, device: &str) -> Result<(Vif, VifState), CliError> {
    let mut vifs = all(session, &vm.id)?;
    let found = vifs
        .iter()
        .position(|(vif, _)| vif.id.device == device)
        .or_else(|| vifs.iter().position(|(vif, _)| vif.mac.eq_ignore_ascii_case(device)));
    let Some(index) = found else {
        let present = vifs.into_iter().map(|(vif, _)| vif.id.device).collect();
        return Err(DeviceError::none("vif", vm.name.clone(), device, present).into());
    };
    Ok(vifs.swap_remove(index))
}

/// A table; nothing of no interfaces.
pub(super) fn render(vifs: &[(Vif, VifState)]) -> String {
    if vifs.is_empty() {
        return String::new();
    }
    let columns = [
        ("VIF", Align::Left),
        ("MAC", Align::Left),
        ("NETWORK", Align::Left),
        ("MTU", Align::Right),
        ("PLUGGED", Align::Left),
        ("DEVICE", Align::Left),
    ];
    let rows: Vec<Vec<String>> = vifs
        .iter()
        .map(|(vif, state)| {
            let network = match &vif.backend {
                Network::Local(bridge) => bridge.clone(),
                Network::Remote { vm, switch } => format!("{switch} in {vm}"),
                Network::Sriov(_) => "SR-IOV".to_owned(),
            };
            let device = state.device.clone().unwrap_or_else(|| "-".to_owned());
            let mtu = vif.mtu.to_string();
            vec![vif.id.device.clone(), vif.mac.clone(), network, mtu, yes(state.plugged), device]
        })
        .collect();
    table(&columns, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vif(position: Int, device: &str) -> (Vif, VifState) {
        let id = DeviceId::new("vm", device);
        let state = VifState {
            active: true,
            plugged: false,
            kthread_pid: 0,
            media_present: true,
            device: None,
            pvs_rules_active: false,
        };
        (Vif { id, position, ..Vif::default() }, state)
    }

    #[test]
    fn the_first_free_place_is_nobodys_name_either() {
        assert_eq!(first_free(&[]), 0);
        assert_eq!(first_free(&[vif(0, "0"), vif(2, "2")]), 1);
        assert_eq!(first_free(&[vif(0, "0"), vif(7, "1")]), 2);
    }
}
