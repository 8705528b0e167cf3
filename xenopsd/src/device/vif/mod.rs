//! Network interfaces: netback makes `vifD.N`, we, or a hotplug script, set it up and put it into its bridge.
//!
//! ```text
//!   record ──► settings (checked) ──► nodes ──► netback ready ──► host.connect_vif, or hotplug script ──► connected
//!                                        └── addresses that the guest's agent is asked for
//! ```
//!
//! What does not go with the interface, rules for what it may send and its port of an Open vSwitch, is in the journal for as
//! long as it may be there.

mod addresses;
mod hotplug;
mod settings;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use xenstore::Operations;
use xenstore::layout::{self, DeviceAddress, DeviceKind};

use super::{Plug, handshake, plugged, store_domid};
use crate::api::{Error, Vif, VifState};
use crate::core::Core;
use crate::edge::{BridgeKind, DomId, HostError, VifSettings};
use crate::ops::wait::Waiting;
use crate::state::Interface;
use crate::state::journal::{EntryId, Resource};

pub use settings::{SCRIPT_KEY, chosen_mac, settings};

use hotplug::{Script, script_of};
use settings::{handle, mac_of};

/// Its address in a domain.
///
/// # Errors
/// When the record's position is out of range.
pub fn address(domid: DomId, vif: &Vif) -> Result<DeviceAddress, Error> {
    Ok(super::address(DeviceKind::Vif, domid, handle(vif)?))
}

/// Finds what would make a plug fail, taking nothing.
///
/// # Errors
/// `Does_not_exist("network", …)`, `Unimplemented`, or `Internal_error` with what is wrong in the record.
pub fn check(core: &Core, vif: &Vif) -> Result<(), Error> {
    let settings = settings(vif)?;
    mac_of(vif)?;
    addresses::asked(DomId::DOM0, vif)?;
    if let Some(script) = settings::script(vif, &core.edges.host().vif_scripts())? {
        // Which bridge there has to be, and of which kind, is the script's affair.
        return Ok(core.edges.host().check_script(&script)?);
    }
    let kind = core.edges.host().check_bridge(&settings.bridge)?;
    if kind == BridgeKind::Linux && (settings.vlan.is_some() || !settings.trunks.is_empty()) {
        return Err(Error::Unimplemented(format!(
            "VIF {}: VLANs on {}, which is a Linux bridge: connect the interface to an Open vSwitch, or to a bridge of the VLAN",
            vif.id, settings.bridge
        )));
    }
    Ok(())
}

/// Offers the interface to the guest, waits for netback, and sets up the host's side.
///
/// # Errors
/// As [`check`], and when netback, the bridge or the hotplug script refuses. What was made goes away with the domain.
pub fn plug(plug: &Plug<'_>, vif: &Vif) -> Result<(), Error> {
    let settings = settings(vif)?;
    let handle = handle(vif)?;
    let script = settings::script(vif, &plug.core.edges.host().vif_scripts())?;
    let layout = layout::Vif {
        domid: store_domid(plug.domid),
        backend_domid: xenstore::DomId::DOM0,
        handle,
        mac: mac_of(vif)?,
        bridge: settings.bridge.clone(),
        mtu: settings.mtu,
        rate: vif.rate.map(settings::rate).transpose()?,
        carrier: vif.carrier,
        trusted: true,
        emulated: false,
        script: script.as_ref().map(|path| path.display().to_string()),
        extra_backend: Vec::new(),
        extra_private: settings::extra_private(vif)?,
    };
    let address = layout.address();
    let mut nodes = layout.create();
    let asked = addresses::asked(plug.domid, vif)?;
    if asked.is_something() {
        nodes.append(asked.ask());
    }
    plug.core.edges.store()?.commit(&nodes)?;
    handshake::backend_ready(plug, address)?;
    let name = interface(plug.domid, handle);
    plug.core.records.put_interface(&Interface { name: name.clone(), vif: vif.id.clone() })?;
    let Some(path) = script else {
        connect(plug.core, plug.vm, &name, &settings)?;
        return Ok(plug.core.edges.store()?.commit(&layout::Vif::connect(address))?);
    };
    let script = Script { core: plug.core, waiting: plug.waiting, address, interface: &name, path };
    connect_by(&script, plug.vm, &settings)
}

/// Lets a script put the interface into its bridge; what it may send is ours to say.
fn connect_by(script: &Script<'_>, vm: &str, settings: &VifSettings) -> Result<(), Error> {
    let scripted = VifSettings { scripted: true, ..settings.clone() };
    // Nothing gets through before the rules are there, and the script brings it up.
    connect(script.core, vm, script.interface, &VifSettings { carrier: false, ..scripted.clone() })?;
    script.online()?;
    connect(script.core, vm, script.interface, &scripted)
}

/// Sets up the host's side. Rules are in the journal for as long as they may be there: they do not go with the interface.
fn connect(core: &Core, vm: &str, name: &str, settings: &VifSettings) -> Result<(), Error> {
    if settings.locked.is_some() {
        note(core, vm, Resource::Rules(name.to_owned()))?;
    }
    core.edges.host().connect_vif(name, settings, &mut |resource| {
        note(core, vm, resource).map_err(|error| HostError::not_noted(&error))
    })?;
    if settings.locked.is_none() { release(core, vm, &Resource::Rules(name.to_owned())) } else { Ok(()) }
}

/// Writes it down, unless it is.
fn note(core: &Core, vm: &str, resource: Resource) -> Result<(), Error> {
    if entry(core, vm, &resource).is_none() {
        core.journal.take(vm, resource)?;
    }
    Ok(())
}

fn entry(core: &Core, vm: &str, resource: &Resource) -> Option<EntryId> {
    core.journal.of(vm).into_iter().find(|(_, noted)| noted == resource).map(|(id, _)| id)
}

fn release(core: &Core, vm: &str, resource: &Resource) -> Result<(), Error> {
    let Some(id) = entry(core, vm, resource) else { return Ok(()) };
    core.edges.host().release(resource)?;
    core.journal.strike(vm, id)
}

/// Brings a plugged interface in line with its record. A script that set it up takes it out of its bridge and puts it into
/// the other.
///
/// # Errors
/// As [`plug`].
pub fn apply(core: &Core, domid: DomId, vif: &Vif, waiting: Waiting<'_>) -> Result<(), Error> {
    let settings = settings(vif)?;
    let address = address(domid, vif)?;
    let name = interface(domid, handle(vif)?);
    connect_tap(core, domid, vif, &settings)?;
    let change = layout::Vif::change(address, &settings.bridge, vif.carrier);
    match script_of(core, address)? {
        None => {
            connect(core, &vif.id.vm, &name, &settings)?;
            core.edges.store()?.commit(&change)?;
        }
        Some(path) => {
            let script = Script { core, waiting, address, interface: &name, path };
            apply_by(&script, &vif.id.vm, &settings, &change)?;
        }
    }
    ask(core, &addresses::asked(domid, vif)?)
}

/// Sets a plugged interface up again as its record says, and the tap of the card that is emulated with it: somebody else
/// has changed what they are in.
///
/// # Errors
/// As [`plug`].
pub fn restore(core: &Core, domid: DomId, vif: &Vif) -> Result<(), Error> {
    let settings = settings(vif)?;
    connect_tap(core, domid, vif, &settings)?;
    if !state(core, vif)?.plugged {
        return Ok(());
    }
    let scripted = script_of(core, address(domid, vif)?)?.is_some();
    let name = interface(domid, handle(vif)?);
    connect(core, &vif.id.vm, &name, &VifSettings { scripted, ..settings })
}

/// Makes the tap of an emulated card, with the settings that the interface has. It goes with its last descriptor; whose it
/// was, and its rules, go with the domain.
///
/// # Errors
/// As [`plug`].
pub fn make_tap(core: &Core, domid: DomId, vif: &Vif) -> Result<OwnedFd, Error> {
    let (settings, name, vm) = (settings(vif)?, tap(domid, handle(vif)?), &vif.id.vm);
    core.records.put_interface(&Interface { name: name.clone(), vif: vif.id.clone() })?;
    if settings.locked.is_some() {
        note(core, vm, Resource::Rules(name.clone()))?;
    }
    let mut noting = |resource| note(core, vm, resource).map_err(|error| HostError::not_noted(&error));
    Ok(core.edges.host().make_tap(&name, &settings, &mut noting)?)
}

/// Brings the tap of the card that a device model emulates, if there is one, in line with its settings.
fn connect_tap(core: &Core, domid: DomId, vif: &Vif, settings: &VifSettings) -> Result<(), Error> {
    let name = tap(domid, handle(vif)?);
    if core.records.interface(&name)?.is_none() {
        return Ok(());
    }
    connect(core, &vif.id.vm, &name, settings)
}

fn apply_by(
    script: &Script<'_>,
    vm: &str,
    settings: &VifSettings,
    change: &xenstore::Batch,
) -> Result<(), Error> {
    let (core, backend) = (script.core, script.address.backend());
    let bridge = backend.join("bridge").map_err(xenstore::Error::from)?;
    let moves = core.edges.store()?.read(&bridge)?.as_deref() != Some(settings.bridge.as_bytes());
    let status = script.address.status(&mut *core.edges.store()?)?;
    if moves || status.hotplug_status.as_deref() != Some(b"connected") {
        script.offline();
        core.edges.store()?.commit(change)?;
        return connect_by(script, vm, settings);
    }
    connect(core, vm, script.interface, &VifSettings { scripted: true, ..settings.clone() })?;
    Ok(core.edges.store()?.commit(change)?)
}

/// Agents are left alone that were asked for nothing, and are to be.
fn ask(core: &Core, asked: &layout::GuestAddresses) -> Result<(), Error> {
    let mut store = core.edges.store()?;
    if asked.is_something() || store.exists(&asked.settings())? {
        store.commit(&asked.ask())?;
    }
    Ok(())
}

/// netback's name for the host's side.
fn interface(domid: DomId, handle: u32) -> String {
    format!("vif{domid}.{handle}")
}

/// The name of an emulated card's tap.
fn tap(domid: DomId, handle: u32) -> String {
    format!("tap{domid}.{handle}")
}

/// Tells the script that set up the host's side of an interface, if one did, that it is gone. Its nodes are still there.
///
/// # Errors
/// When xenstored does not answer; what the script says is only logged.
pub fn end(core: &Core, domid: DomId, address: DeviceAddress, waiting: Waiting<'_>) -> Result<(), Error> {
    if let Some(path) = script_of(core, address)? {
        Script { core, waiting, address, interface: &interface(domid, address.id), path }.offline();
    }
    Ok(())
}

/// Forgets whose the host's side was, what it was allowed, and its port.
///
/// # Errors
/// When the state directory, the kernel or Open vSwitch refuses.
pub fn forget_interface(core: &Core, vm: &str, domid: DomId, handle: u32) -> Result<(), Error> {
    forget(core, vm, &interface(domid, handle))
}

fn forget(core: &Core, vm: &str, name: &str) -> Result<(), Error> {
    let rules = release(core, vm, &Resource::Rules(name.to_owned()));
    let port = release(core, vm, &Resource::SwitchPort(name.to_owned()));
    rules.and(port).and(core.records.remove_interface(name))
}

/// Forgets whose the host's sides of a domain's interfaces and emulated cards were, and what they were allowed: those given, and those of the
/// VM's records, which are all that is left to name them when somebody else has removed the domain's nodes.
///
/// # Errors
/// When the state directory refuses; the others are forgotten all the same.
pub fn forget_interfaces(
    core: &Core,
    vm: &str,
    domid: DomId,
    seen: impl Iterator<Item = u32>,
) -> Result<(), Error> {
    let recorded = core.records.devices::<Vif>(vm).unwrap_or_default();
    let handles: BTreeSet<u32> = seen.chain(recorded.iter().filter_map(|vif| handle(vif).ok())).collect();
    let names = handles.into_iter().flat_map(|handle| [interface(domid, handle), tap(domid, handle)]);
    names.map(|name| forget(core, vm, &name)).fold(Ok(()), Result::and)
}

/// What is observed of an interface.
///
/// # Errors
/// When Xen or xenstored does not answer.
pub fn state(core: &Core, vif: &Vif) -> Result<VifState, Error> {
    let id = handle(vif)?;
    let domid = plugged(core, &vif.id.vm, |domid| super::address(DeviceKind::Vif, domid, id))?;
    let plugged = domid.is_some();
    Ok(VifState {
        active: plugged,
        plugged,
        kthread_pid: 0,
        media_present: plugged && vif.carrier,
        device: domid.map(|d| interface(d, id)),
        pvs_rules_active: false,
    })
}
