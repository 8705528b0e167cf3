//! What a record asks of an interface, checked: pure functions of the record.

use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use uuid::Uuid;
use xenstore::layout::{self, Mac};

use crate::api::{Error, LockedAddresses, LockingMode, Network, Vif};
use crate::edge::linux::nftables::MAX_ADDRESSES;
use crate::edge::linux::nic::{ETHTOOL_PREFIX, MTU_RANGE, OFFLOADS, ON_OR_OFF, on_or_off};
use crate::edge::{Locked, MacAddr, Offload, VifScripts, VifSettings};

/// The MTU that a record has when nobody chose one; the bridge's own is then kept.
const DEFAULT_MTU: isize = 1500;

/// Largest index: netback's `handle` is 16 bits wide.
const MAX_HANDLE: u32 = 0xffff;

/// VLAN tags that a network can have (IEEE 802.1Q: 0 and 4095 are reserved).
const VLANS: std::ops::RangeInclusive<i64> = 1..=4094;

/// Most VLANs of a trunk: as many as there are.
const MAX_TRUNKS: usize = 4094;

/// Key in `other_config` of a script that sets up the host's side; empty for none, whatever the daemon's settings say.
pub const SCRIPT_KEY: &str = "hotplug-script";

fn wrong(vif: &Vif, what: impl std::fmt::Display) -> Error {
    Error::internal(format!("VIF {}: {what}", vif.id))
}

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
        given => mac(given).map(|m| m.to_string()).map_err(|e| wrong(vif, e)),
    }
}

fn mac(text: &str) -> Result<Mac, String> {
    let mac = Mac::from_str(text).map_err(|e| e.to_string())?;
    if mac.0[0] & 1 != 0 || mac.0 == [0; 6] {
        return Err(format!("{text} cannot be the MAC address of an interface: it is for groups"));
    }
    Ok(mac)
}

/// Its MAC address.
pub(super) fn mac_of(vif: &Vif) -> Result<Mac, Error> {
    mac(&vif.mac).map_err(|e| wrong(vif, e))
}

/// Its number on the wire.
pub(super) fn handle(vif: &Vif) -> Result<u32, Error> {
    let position = u32::try_from(vif.position).ok().filter(|n| *n <= MAX_HANDLE);
    position.ok_or_else(|| wrong(vif, format_args!("position {} is out of range", vif.position)))
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
    let locked = match &vif.locking_mode {
        LockingMode::Locked(addresses) => Some(locked(vif, addresses)?),
        LockingMode::Unlocked | LockingMode::Disabled => None,
    };
    // Nothing passes an interface that is down.
    let carrier = vif.carrier && vif.locking_mode != LockingMode::Disabled;
    Ok(VifSettings {
        bridge,
        mtu: mtu(vif)?,
        carrier,
        locked,
        offloads: offloads(vif)?,
        promiscuous: switch(vif, "promiscuous")?.unwrap_or(false),
        vlan: vif.vlan.filter(|tag| *tag > 0).map(|tag| vlan(vif, tag)).transpose()?,
        trunks: trunks(vif)?,
        external_ids: external_ids(vif),
        scripted: false,
    })
}

/// `other_config:mtu` is more deliberate than the record's own, which a management layer fills in.
fn mtu(vif: &Vif) -> Result<Option<u32>, Error> {
    let within = |mtu: Option<u32>| mtu.filter(|n| MTU_RANGE.contains(n));
    let refuse = |found: &dyn std::fmt::Display| {
        wrong(vif, format_args!("MTU {found} is not between {} and {}", MTU_RANGE.start(), MTU_RANGE.end()))
    };
    if let Some(text) = vif.other_config.get("mtu") {
        return within(text.parse().ok()).map(Some).ok_or_else(|| refuse(text));
    }
    if vif.mtu == DEFAULT_MTU {
        return Ok(None);
    }
    within(u32::try_from(vif.mtu).ok()).map(Some).ok_or_else(|| refuse(&vif.mtu))
}

fn vlan(vif: &Vif, tag: i64) -> Result<u16, Error> {
    let fits = u16::try_from(tag).ok().filter(|_| VLANS.contains(&tag));
    fits.ok_or_else(|| wrong(vif, format_args!("{tag} is no VLAN: they are 1 to 4094")))
}

fn trunks(vif: &Vif) -> Result<Vec<u16>, Error> {
    if vif.trunks.len() > MAX_TRUNKS {
        return Err(wrong(vif, format_args!("there are no more than {MAX_TRUNKS} VLANs")));
    }
    let mut tags: Vec<u16> = vif.trunks.iter().map(|tag| vlan(vif, *tag)).collect::<Result<_, _>>()?;
    tags.sort_unstable();
    tags.dedup();
    Ok(tags)
}

/// What controllers of an Open vSwitch know interfaces by; the keys are XenServer's.
fn external_ids(vif: &Vif) -> Vec<(String, String)> {
    let mut ids = vec![
        ("attached-mac".to_owned(), vif.mac.clone()),
        ("iface-status".to_owned(), "active".to_owned()),
        ("xs-vm-uuid".to_owned(), vif.id.vm.clone()),
    ];
    for (id, key) in
        [("xs-vif-uuid", "vif-uuid"), ("iface-id", "vif-uuid"), ("xs-network-uuid", "network-uuid")]
    {
        ids.extend(vif.extra_private_keys.get(key).map(|value| (id.to_owned(), value.clone())));
    }
    ids
}

/// The script that sets up the host's side: the interface's own, or that of the daemon's settings.
///
/// # Errors
/// When it is not below the directory of scripts.
pub(super) fn script(vif: &Vif, scripts: &VifScripts) -> Result<Option<PathBuf>, Error> {
    let Some(own) = vif.other_config.get(SCRIPT_KEY) else { return Ok(scripts.default.clone()) };
    if own.is_empty() {
        return Ok(None);
    }
    let directory = &scripts.directory;
    let path = directory.join(own);
    let below = path.strip_prefix(directory).is_ok_and(|rest| rest != Path::new(""));
    let plain = below && path.components().all(|c| c != Component::ParentDir);
    // It goes into a node of the store and into the environment.
    if plain && own.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(Some(path));
    }
    Err(wrong(
        vif,
        format_args!(
            "other_config:{SCRIPT_KEY} is {own:?}; it is a program in {} (vif-script-directory), or empty",
            directory.display()
        ),
    ))
}

/// Nodes that the caller wants beside ours.
pub(super) fn extra_private(vif: &Vif) -> Result<layout::Pairs, Error> {
    layout::pairs(vif.extra_private_keys.iter().map(|(k, v)| (k, v.as_bytes())))
        .map_err(|e| wrong(vif, format_args!("extra_private_keys: {e}")))
}

fn locked(vif: &Vif, addresses: &LockedAddresses) -> Result<Locked, Error> {
    let found = addresses.ipv4.len().max(addresses.ipv6.len());
    if found > MAX_ADDRESSES {
        return Err(wrong(
            vif,
            format_args!("locked to {found} addresses of a kind; at most {MAX_ADDRESSES} are possible"),
        ));
    }
    Ok(Locked {
        mac: MacAddr(mac_of(vif)?.0),
        ipv4: parsed(vif, "IPv4", &addresses.ipv4)?,
        ipv6: parsed(vif, "IPv6", &addresses.ipv6)?,
    })
}

fn parsed<A: FromStr>(vif: &Vif, kind: &str, texts: &[String]) -> Result<Vec<A>, Error> {
    let bad = |text| wrong(vif, format_args!("{text:?} is not an {kind} address to be locked to"));
    texts.iter().map(|text| text.parse().map_err(|_| bad(text))).collect()
}

fn offloads(vif: &Vif) -> Result<Vec<(Offload, bool)>, Error> {
    let wanted = OFFLOADS
        .into_iter()
        .map(|(name, offload)| Ok(switch(vif, &format!("{ETHTOOL_PREFIX}{name}"))?.map(|on| (offload, on))));
    wanted.filter_map(Result::transpose).collect()
}

/// A key of `other_config` that can be `on`, `true`, `off` or `false`.
fn switch(vif: &Vif, key: &str) -> Result<Option<bool>, Error> {
    let Some(value) = vif.other_config.get(key) else { return Ok(None) };
    let bad = || wrong(vif, format_args!("other_config:{key} is {value:?}; it can be {ON_OR_OFF}"));
    on_or_off(value).map(Some).ok_or_else(bad)
}

/// Kilobytes per second and a time slice in µs become bytes per slice.
pub(super) fn rate((kbps, slice_us): (i64, i64)) -> Result<layout::Rate, Error> {
    let bad = || Error::internal(format!("rate [{kbps}, {slice_us}]: both numbers must be positive"));
    let (kbps, interval_us) =
        (u64::try_from(kbps).map_err(|_| bad())?, u64::try_from(slice_us).map_err(|_| bad())?);
    if kbps == 0 || interval_us == 0 {
        return Err(bad());
    }
    Ok(layout::Rate { bytes: kbps.saturating_mul(1024).saturating_mul(interval_us) / 1_000_000, interval_us })
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

    #[test]
    fn other_config_has_the_last_word_about_the_mtu() {
        let with = |mtu, other: &str| {
            let other_config = [("mtu".to_owned(), other.to_owned())].into_iter().collect();
            settings(&Vif { mtu, other_config, ..test_vif(ID, "0") }).map(|s| s.mtu)
        };
        assert_eq!(with(1500, "9000").unwrap(), Some(9000));
        assert_eq!(with(9000, "1500").unwrap(), Some(1500));
        for bad in ["", "67", "65536", "9000 ", "x", "-1"] {
            assert!(with(1500, bad).unwrap_err().to_string().contains("MTU"), "{bad}");
        }
    }

    #[test]
    fn scripts_are_in_their_directory_and_vlans_exist() {
        let scripts = VifScripts { default: Some("/default".into()), directory: "/etc/xen/scripts".into() };
        let with = |value: &str| {
            let other_config = [(SCRIPT_KEY.to_owned(), value.to_owned())].into_iter().collect();
            script(&Vif { other_config, ..test_vif(ID, "0") }, &scripts)
        };
        assert_eq!(script(&test_vif(ID, "0"), &scripts).unwrap(), Some("/default".into()));
        assert_eq!(with("").unwrap(), None);
        assert_eq!(with("/etc/xen/scripts/vif-bridge").unwrap(), Some("/etc/xen/scripts/vif-bridge".into()));
        assert_eq!(with("vif-bridge").unwrap(), Some("/etc/xen/scripts/vif-bridge".into()));
        let outside = [
            "/bin/sh",
            "/etc/xen/scripts",
            "../x",
            "/etc/xen/scripts/../x",
            "/etc/xen/scripts-x/y",
            "a b",
            "a\nb=c",
            "é",
        ];
        for bad in outside {
            let refused = with(bad).unwrap_err().to_string();
            assert!(refused.contains("a program in /etc/xen/scripts"), "{bad:?}: {refused}");
        }
        let trunks = |tags: &[i64]| settings(&Vif { trunks: tags.to_vec(), ..test_vif(ID, "0") });
        assert_eq!(trunks(&[20, 1, 20, 4094]).unwrap().trunks, [1, 20, 4094]);
        for bad in [0, 4095, -1] {
            assert!(trunks(&[bad]).unwrap_err().to_string().contains("VLAN"), "{bad}");
        }
        let tagged = |vlan| settings(&Vif { vlan, ..test_vif(ID, "0") }).map(|s| s.vlan);
        assert_eq!(tagged(Some(7)).unwrap(), Some(7));
        assert_eq!((tagged(Some(-1)).unwrap(), tagged(None).unwrap()), (None, None));
        assert!(tagged(Some(4095)).is_err());
    }
}
