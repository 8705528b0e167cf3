//! Network interfaces: netback makes `vifD.N`, we set it up and put it into its bridge.

use std::collections::BTreeSet;
use std::str::FromStr;

use uuid::Uuid;
use xenstore::layout::{self, DeviceAddress, DeviceKind, Mac};

use super::{Plug, handshake, plugged, store_domid};
use crate::api::{Error, LockedAddresses, LockingMode, Network, Vif, VifState};
use crate::core::Core;
use crate::edge::linux::nftables::MAX_ADDRESSES;
use crate::edge::{DomId, Locked, MacAddr, Offload, VifSettings};
use crate::state::Interface;
use crate::state::journal::{EntryId, Resource};

/// The MTU that a record has when nobody chose one; the bridge's own is then kept.
const DEFAULT_MTU: isize = 1500;

/// Smallest and largest MTU an interface can be asked to have (RFC 791; netback's limit).
const MTU_RANGE: std::ops::RangeInclusive<u32> = 68..=65535;

/// Largest index: netback's `handle` is 16 bits wide.
const MAX_HANDLE: u32 = 0xffff;

/// The MAC address a new record gets: as given, `random`, or (empty) derived from the VM's id and the position, so
/// that it stays when the VM is added again.
///
/// # Errors
/// When it is not the address of a single host.
pub fn chosen_mac(vif: &Vif) -> Result<String, Error> {
    let local = |bytes: [u8; 16]| {
        let mut mac = [0; 6];
        mac.copy_from_slice(&bytes[..6]);
        // Locally administered, and of one host.
        mac[0] = (mac[0] | 0x02) & !0x01;
        Mac(mac).to_string()
    };
    match vif.mac.as_str() {
        "random" => Ok(local(Uuid::new_v4().into_bytes())),
        "" => {
            let vm = Uuid::try_parse(&vif.id.vm).unwrap_or_default();
            Ok(local(Uuid::new_v5(&vm, format!("vif {}", vif.position).as_bytes()).into_bytes()))
        }
        given => {
            mac(given).map(|m| m.to_string()).map_err(|e| Error::internal(format!("VIF {}: {e}", vif.id)))
        }
    }
}

fn mac(text: &str) -> Result<Mac, String> {
    let mac = Mac::from_str(text).map_err(|e| e.to_string())?;
    if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
        return Err(format!("{text} cannot be the MAC address of an interface: it is for groups"));
    }
    Ok(mac)
}

fn handle(vif: &Vif) -> Result<u32, Error> {
    let position = u32::try_from(vif.position).ok().filter(|n| *n <= MAX_HANDLE);
    position
        .ok_or_else(|| Error::internal(format!("VIF {}: position {} is out of range", vif.id, vif.position)))
}

/// Its address in a domain.
///
/// # Errors
/// When the record's position is out of range.
pub fn address(domid: DomId, vif: &Vif) -> Result<DeviceAddress, Error> {
    Ok(super::address(DeviceKind::Vif, domid, handle(vif)?))
}

/// What its host side is given.
///
/// # Errors
/// `Unimplemented`, or what is wrong in the record.
pub fn settings(vif: &Vif) -> Result<VifSettings, Error> {
    let bridge = match &vif.backend {
        Network::Local(bridge) => bridge.clone(),
        Network::Remote { .. } => {
            return Err(Error::Unimplemented("VIF on a network of a driver domain".to_owned()));
        }
        Network::Sriov { .. } => return Err(Error::Unimplemented("VIF on an SR-IOV network".to_owned())),
    };
    let mtu = if vif.mtu == DEFAULT_MTU {
        None
    } else {
        let mtu = u32::try_from(vif.mtu).ok().filter(|n| MTU_RANGE.contains(n));
        Some(mtu.ok_or_else(|| {
            Error::internal(format!("VIF {}: MTU {} is not between {MTU_RANGE:?}", vif.id, vif.mtu))
        })?)
    };
    let locked = match &vif.locking_mode {
        LockingMode::Locked(addresses) => Some(locked(vif, addresses)?),
        LockingMode::Unlocked | LockingMode::Disabled => None,
    };
    // Nothing passes an interface that is down.
    let carrier = vif.carrier && vif.locking_mode != LockingMode::Disabled;
    Ok(VifSettings { bridge, mtu, carrier, locked, offloads: offloads(vif)? })
}

fn locked(vif: &Vif, addresses: &LockedAddresses) -> Result<Locked, Error> {
    let found = addresses.ipv4.len().max(addresses.ipv6.len());
    if found > MAX_ADDRESSES {
        return Err(Error::internal(format!(
            "VIF {}: locked to {found} addresses of a kind; at most {MAX_ADDRESSES} are possible",
            vif.id
        )));
    }
    let mac = mac(&vif.mac).map_err(|e| Error::internal(format!("VIF {}: {e}", vif.id)))?;
    Ok(Locked {
        mac: MacAddr(mac.0),
        ipv4: parsed(vif, "IPv4", &addresses.ipv4)?,
        ipv6: parsed(vif, "IPv6", &addresses.ipv6)?,
    })
}

fn parsed<A: FromStr>(vif: &Vif, kind: &str, texts: &[String]) -> Result<Vec<A>, Error> {
    let bad =
        |text| Error::internal(format!("VIF {}: {text:?} is not an {kind} address to be locked to", vif.id));
    texts.iter().map(|text| text.parse().map_err(|_| bad(text))).collect()
}

/// Offloads by their keys in `other_config`.
const OFFLOADS: [(&str, Offload); 6] = [
    ("ethtool-rx", Offload::Rx),
    ("ethtool-tx", Offload::Tx),
    ("ethtool-sg", Offload::Sg),
    ("ethtool-tso", Offload::Tso),
    ("ethtool-ufo", Offload::Ufo),
    ("ethtool-gso", Offload::Gso),
];

fn offloads(vif: &Vif) -> Result<Vec<(Offload, bool)>, Error> {
    let mut wanted = Vec::new();
    for (key, offload) in OFFLOADS {
        let Some((_, value)) = vif.other_config.iter().find(|(k, _)| *k == key) else { continue };
        let on = match value.as_str() {
            "on" | "true" => true,
            "off" | "false" => false,
            other => {
                return Err(Error::internal(format!(
                    "VIF {}: other_config:{key} is {other:?}; it can be on, true, off or false",
                    vif.id
                )));
            }
        };
        wanted.push((offload, on));
    }
    Ok(wanted)
}

/// Finds what would make a plug fail, taking nothing.
///
/// # Errors
/// `Does_not_exist("network", …)`, `Unimplemented`, or `Internal_error` with what is wrong in the record.
pub fn check(core: &Core, vif: &Vif) -> Result<(), Error> {
    handle(vif)?;
    mac(&vif.mac).map_err(|e| Error::internal(format!("VIF {}: {e}", vif.id)))?;
    Ok(core.edges.host().check_bridge(&settings(vif)?.bridge)?)
}

/// Offers the interface to the guest, waits for netback, and sets up the host's side.
///
/// # Errors
/// As [`check`], and when netback or the bridge refuses. What was made goes away with the domain.
pub fn plug(plug: &Plug<'_>, vif: &Vif) -> Result<(), Error> {
    let settings = settings(vif)?;
    let handle = handle(vif)?;
    let layout = layout::Vif {
        domid: store_domid(plug.domid),
        backend_domid: xenstore::DomId::DOM0,
        handle,
        mac: mac(&vif.mac).map_err(|e| Error::internal(format!("VIF {}: {e}", vif.id)))?,
        bridge: settings.bridge.clone(),
        mtu: settings.mtu,
        rate: vif.rate.map(rate).transpose()?,
        carrier: vif.carrier,
        trusted: true,
        emulated: false,
        script: None,
        extra_backend: Vec::new(),
        extra_private: layout::pairs(vif.extra_private_keys.iter().map(|(k, v)| (k, v.as_bytes())))
            .map_err(|e| Error::internal(format!("VIF {}: extra_private_keys: {e}", vif.id)))?,
    };
    let address = layout.address();
    plug.core.edges.store()?.commit(&layout.create())?;
    handshake::backend_ready(plug, address)?;
    let name = interface(plug.domid, handle);
    plug.core.records.put_interface(&Interface { name: name.clone(), vif: vif.id.clone() })?;
    connect(plug.core, plug.vm, &name, &settings)?;
    Ok(plug.core.edges.store()?.commit(&layout::Vif::connect(address))?)
}

/// Sets up the host's side. Rules are in the journal for as long as they may be there: they do not go with the interface.
fn connect(core: &Core, vm: &str, name: &str, settings: &VifSettings) -> Result<(), Error> {
    if settings.locked.is_some() && rules_of(core, vm, name).is_none() {
        core.journal.take(vm, Resource::Rules(name.to_owned()))?;
    }
    core.edges.host().connect_vif(name, settings)?;
    if settings.locked.is_none() { release_rules(core, vm, name) } else { Ok(()) }
}

fn rules_of(core: &Core, vm: &str, name: &str) -> Option<EntryId> {
    let of_it = |resource: &Resource| matches!(resource, Resource::Rules(of) if of == name);
    core.journal.of(vm).into_iter().find(|(_, resource)| of_it(resource)).map(|(id, _)| id)
}

fn release_rules(core: &Core, vm: &str, name: &str) -> Result<(), Error> {
    let Some(id) = rules_of(core, vm, name) else { return Ok(()) };
    core.edges.host().release(&Resource::Rules(name.to_owned()))?;
    core.journal.strike(vm, id)
}

/// Brings a plugged interface in line with its record.
///
/// # Errors
/// As [`plug`].
pub fn apply(core: &Core, domid: DomId, vif: &Vif) -> Result<(), Error> {
    let settings = settings(vif)?;
    let address = address(domid, vif)?;
    connect(core, &vif.id.vm, &interface(domid, handle(vif)?), &settings)?;
    Ok(core.edges.store()?.commit(&layout::Vif::change(address, &settings.bridge, vif.carrier))?)
}

/// netback's name for the host's side.
fn interface(domid: DomId, handle: u32) -> String {
    format!("vif{domid}.{handle}")
}

/// Forgets whose the host's side was, and what it was allowed.
///
/// # Errors
/// When the state directory or the kernel refuses.
pub fn forget_interface(core: &Core, vm: &str, domid: DomId, handle: u32) -> Result<(), Error> {
    let name = interface(domid, handle);
    release_rules(core, vm, &name).and(core.records.remove_interface(&name))
}

/// Forgets whose the host's sides of a domain's interfaces were, and what they were allowed: those given, and those of the VM's records, which are
/// all that is left to name them when somebody else has removed the domain's nodes.
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
    handles.into_iter().map(|handle| forget_interface(core, vm, domid, handle)).fold(Ok(()), Result::and)
}

/// Kilobytes per second and a time slice in µs become bytes per slice.
fn rate((kbps, slice_us): (i64, i64)) -> Result<layout::Rate, Error> {
    let bad = || Error::internal(format!("rate [{kbps}, {slice_us}]: both numbers must be positive"));
    let (kbps, interval_us) =
        (u64::try_from(kbps).map_err(|_| bad())?, u64::try_from(slice_us).map_err(|_| bad())?);
    if kbps == 0 || interval_us == 0 {
        return Err(bad());
    }
    Ok(layout::Rate { bytes: kbps.saturating_mul(1024).saturating_mul(interval_us) / 1_000_000, interval_us })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_vif;

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    fn with_mac(mac: &str) -> Vif {
        Vif { mac: mac.to_owned(), ..test_vif(ID, "0") }
    }

    #[test]
    fn a_given_mac_is_kept_and_a_bad_one_refused() {
        assert_eq!(chosen_mac(&with_mac("00:16:3E:00:00:01")).unwrap(), "00:16:3e:00:00:01");
        for bad in ["00:16:3e:00:00", "00:16:3e:00:00:zz", "01:00:5e:00:00:01", "00:00:00:00:00:00", "x"] {
            assert!(matches!(chosen_mac(&with_mac(bad)), Err(Error::InternalError(_))), "{bad}");
        }
    }

    #[test]
    fn derived_macs_last_and_differ_by_position() {
        let first = chosen_mac(&with_mac("")).unwrap();
        assert_eq!(first, chosen_mac(&with_mac("")).unwrap());
        let second = chosen_mac(&Vif { position: 1, ..with_mac("") }).unwrap();
        assert_ne!(first, second);
        assert_ne!(chosen_mac(&with_mac("random")).unwrap(), chosen_mac(&with_mac("random")).unwrap());
        assert!(mac(&first).is_ok());
    }

    #[test]
    fn rates_become_bytes_per_interval() {
        let rate = rate((1024, 50_000)).unwrap();
        assert_eq!((rate.bytes, rate.interval_us), (52_428, 50_000));
        assert!(super::rate((0, 1)).is_err());
        assert!(super::rate((1, -1)).is_err());
    }

    #[test]
    fn locked_addresses_and_offloads_are_read_strictly() {
        let lock = |v4: &[&str], v6: &[&str]| {
            let [ipv4, ipv6] = [v4, v6].map(|texts| texts.iter().map(|&t| t.to_owned()).collect());
            let locking_mode = LockingMode::Locked(LockedAddresses { ipv4, ipv6 });
            settings(&Vif { locking_mode, mac: "00:16:3e:00:00:01".to_owned(), ..test_vif(ID, "0") })
        };
        let locked = lock(&["10.0.0.1"], &["2001:db8::1"]).unwrap().locked.unwrap();
        assert_eq!((locked.ipv4.len(), locked.ipv6.len()), (1, 1));
        for bad in [lock(&["10.0.0.1/24"], &[]), lock(&["x"], &[]), lock(&[], &["10.0.0.1"])] {
            assert!(bad.unwrap_err().to_string().contains("address"));
        }
        assert!(lock(&["10.0.0.1"; MAX_ADDRESSES + 1], &[]).is_err());
        let disabled = Vif { locking_mode: LockingMode::Disabled, ..test_vif(ID, "0") };
        assert!(!settings(&disabled).unwrap().carrier);

        let with = |key: &str, value: &str| {
            let other_config = [(key.to_owned(), value.to_owned())].into_iter().collect();
            settings(&Vif { other_config, ..test_vif(ID, "0") }).map(|s| s.offloads)
        };
        assert_eq!(with("ethtool-tso", "false").unwrap(), [(Offload::Tso, false)]);
        assert_eq!(with("ethtool-rx", "on").unwrap(), [(Offload::Rx, true)]);
        assert_eq!(with("ethtool-lro", "on").unwrap(), []);
        assert!(with("ethtool-sg", "yes").is_err());
    }

    #[test]
    fn mtus_outside_the_range_are_refused() {
        assert_eq!(settings(&test_vif(ID, "0")).unwrap().mtu, None);
        assert_eq!(settings(&Vif { mtu: 9000, ..test_vif(ID, "0") }).unwrap().mtu, Some(9000));
        for mtu in [0, 67, 65536, -1] {
            assert!(settings(&Vif { mtu, ..test_vif(ID, "0") }).is_err(), "{mtu}");
        }
    }
}
