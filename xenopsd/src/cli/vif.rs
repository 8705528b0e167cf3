//! `xenops vif`: the network interfaces of a VM.

use crate::api::{
    DeviceId, Int, Network, Vif, VifAdd, VifList, VifMove, VifPlug, VifRemove, VifSetCarrier, VifState,
    VifUnplug,
};
use crate::rpc::ClientError;
use crate::xlcfg;

use super::Session;
use super::args::{Carrier, VifCommand};
use super::device::{self, Device};
use super::error::{CliError, DeviceError};
use super::table::{Align, table, yes};
use super::vm::find;

pub(super) fn run(session: &mut Session<'_, '_>, command: &VifCommand) -> Result<(), CliError> {
    match command {
        VifCommand::List { vm } => device::list::<Vif>(session, vm),
        VifCommand::Attach { vm, spec } => attach(session, vm, spec),
        VifCommand::Detach { vm, device, force } => device::detach::<Vif>(session, vm, device, *force),
        VifCommand::Move { vm, device, bridge } => {
            let (vm, id) = device::named::<Vif>(session, vm, device)?;
            let network = Network::Local(bridge.clone());
            let call = VifMove { debug_info: session.dbg(), id: id.clone(), network };
            let task = session.client.call(&call)?;
            session.wait(&format!("moving interface {} of {}", id.device, vm.name), &task)
        }
        VifCommand::Carrier { vm, device, state } => {
            let (vm, id) = device::named::<Vif>(session, vm, device)?;
            let carrier = *state == Carrier::Up;
            let call = VifSetCarrier { debug_info: session.dbg(), id: id.clone(), carrier };
            let task = session.client.call(&call)?;
            session.wait(&format!("setting the carrier of interface {} of {}", id.device, vm.name), &task)
        }
    }
}

fn attach(session: &mut Session<'_, '_>, vm: &str, spec: &str) -> Result<(), CliError> {
    let (config, remarks) =
        xlcfg::parse_vif(spec).map_err(|fault| DeviceError::spec("interface", spec, fault))?;
    session.remark(&remarks)?;
    let vm = find(session, vm)?;
    let present = Vif::all(session, &vm.id)?;
    let mac = config.mac.map(|mac| mac.to_string());
    if let Some((other, _)) = present.iter().find(|(other, _)| mac.as_ref() == Some(&other.mac)) {
        let device = other.id.device.clone();
        return Err(DeviceError::Taken { kind: Vif::KIND, vm: vm.name, device }.into());
    }
    let vif = config.to_api(&vm.id, first_free(&present));
    device::attach(session, &vm, vif)
}

/// The lowest place that no interface has, as a place or as a name.
fn first_free(present: &[(Vif, VifState)]) -> Int {
    let taken = |place: Int| {
        present.iter().any(|(vif, _)| vif.position == place || vif.id.device == place.to_string())
    };
    (0..Int::MAX).find(|place| !taken(*place)).unwrap_or(Int::MAX)
}

impl Device for Vif {
    const KIND: &'static str = "vif";
    type State = VifState;

    fn id(&self) -> &DeviceId {
        &self.id
    }

    /// Its MAC address.
    fn answers_to(&self, word: &str) -> bool {
        self.mac.eq_ignore_ascii_case(word)
    }

    fn is_plugged(state: &VifState) -> bool {
        state.plugged
    }

    fn all(session: &Session<'_, '_>, vm: &str) -> Result<Vec<(Self, VifState)>, ClientError> {
        session.client.call(&VifList { debug_info: session.dbg(), id: vm.to_owned() })
    }

    fn add(self, session: &Session<'_, '_>) -> Result<DeviceId, ClientError> {
        session.client.call(&VifAdd { debug_info: session.dbg(), vif: self })
    }

    fn plug(session: &Session<'_, '_>, id: DeviceId) -> Result<String, ClientError> {
        session.client.call(&VifPlug { debug_info: session.dbg(), id })
    }

    fn unplug(session: &Session<'_, '_>, id: DeviceId, force: bool) -> Result<String, ClientError> {
        session.client.call(&VifUnplug { debug_info: session.dbg(), id, force })
    }

    fn remove(session: &Session<'_, '_>, id: DeviceId) -> Result<(), ClientError> {
        session.client.call(&VifRemove { debug_info: session.dbg(), id })
    }

    fn render(vifs: &[(Self, VifState)]) -> String {
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
