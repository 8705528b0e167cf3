//! What a guest and its agent tell of themselves, for `Vm.state`.
//!
//! Everything here is the guest's: bytes of any length that may change between two reads. What is read is bounded by a
//! quota, and made valid UTF-8; what it means is for clients to find out.

use std::collections::BTreeSet;

use xenstore::layout::{DeviceAddress, DeviceKind, XenbusState, devices_of, domain_path};
use xenstore::subtree::{self, Area, Quota};
use xenstore::{Operations, Path, vmdata};

use crate::api::{Dict, Error};
use crate::device::store_domid;
use crate::edge::DomId;

/// Where agents and drivers write, and how deep clients look (the model's list).
const AGENT: [Area; 8] = [
    area("attr", 3, &["attr/os/hotfixes"]),
    area("data", 0, &[]),
    area("control", 0, &[]),
    area("drivers", 0, &[]),
    area("feature/hotplug", 0, &[]),
    area("data/service", 1, &[]),
    area("data/pvs_target", 0, &[]),
    area("xenserver/attr", 3, &[]),
];

/// What is read of an agent's data. A guest with 20 interfaces has some 200 nodes and 10 KiB; what it could have by
/// xenstored's quota is 1000 nodes of 2 KiB, and a list of a thousand VMs should not become that large.
const AGENT_QUOTA: Quota = Quota { nodes: 1000, bytes: 64 << 10 };

/// The same for `vm-data`: all that a VM's owner can put there ([`vmdata::MAX_KEYS`] of [`vmdata::MAX_VALUE`]) and as much
/// of the guest's.
const XSDATA_QUOTA: Quota = Quota { nodes: 1000, bytes: 1 << 20 };

const fn area(at: &'static str, depth: u32, except: &'static [&'static str]) -> Area {
    Area { at, depth, except }
}

/// What was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestData {
    /// The agent's nodes, by path from the domain's home.
    pub agent: Dict<String>,
    /// What is below `vm-data`, likewise.
    pub xsdata: Dict<String>,
    /// Whether a driver of the guest's is, or was, connected to a disk or a network interface.
    pub pv_drivers: bool,
    /// What others than the guest have written.
    pub own: Own,
    /// Whether there was more than the quota allows.
    pub cut: bool,
}

/// What the toolstack, a ballooning daemon, xenconsoled and the device model write.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// What the balloon is to leave the guest, in KiB.
    pub target_kib: i64,
    /// It was found that the balloon does not follow.
    pub uncooperative: bool,
    /// Terminals of its serial port and of its console, as far as they are there.
    pub terminals: [Option<String>; 2],
}

/// Nodes of [`Own`].
const OWN: [&str; 4] = ["memory/target", "memory/uncooperative", "serial/0/tty", "console/tty"];

/// What is to be watched: changes at or below these places change what [`read`] sees. Anything in the domain's home may
/// mean that the guest has drivers, as long as that is not known.
///
/// # Errors
/// Never, for the names are paths.
pub fn places(domid: DomId, has_drivers: bool) -> Result<Vec<Path>, Error> {
    let home = domain_path(store_domid(domid));
    if !has_drivers {
        return Ok(vec![home]);
    }
    let read = AGENT.iter().chain([&vmdata::AREA]).map(|area| area.at).chain(OWN);
    // One watch for all areas of a directory.
    let tops: BTreeSet<&str> = read.filter_map(|node| node.split('/').next()).collect();
    let places: Result<Vec<_>, _> = tops.into_iter().map(|top| home.join(top)).collect();
    Ok(places.map_err(xenstore::Error::from)?)
}

/// Reads it.
///
/// # Errors
/// When xenstored does not answer.
pub fn own(store: &mut xenstore::Client, domid: DomId) -> Result<Own, Error> {
    let home = domain_path(store_domid(domid));
    let nodes: Result<Vec<Path>, _> = OWN.iter().map(|node| home.join(node)).collect();
    let mut values = store.read_all(&nodes.map_err(xenstore::Error::from)?)?.into_iter();
    let mut next = || values.next().flatten();
    let kib = |value: Option<Vec<u8>>| value.and_then(|v| text_of(&v).parse().ok()).unwrap_or(0);
    Ok(Own {
        target_kib: kib(next()),
        uncooperative: next().is_some(),
        terminals: [next(), next()].map(|tty| tty.filter(|tty| !tty.is_empty()).map(|tty| text_of(&tty))),
    })
}

/// Reads all of it, in some ten round trips. That the guest has drivers, once seen, is `known`: it has them without devices, too.
///
/// # Errors
/// When xenstored does not answer.
pub fn read(store: &mut xenstore::Client, domid: DomId, known: bool) -> Result<GuestData, Error> {
    let home = domain_path(store_domid(domid));
    let agent = subtree::read(store, &home, &AGENT, AGENT_QUOTA)?;
    let xsdata = subtree::read(store, &home, &[vmdata::AREA], XSDATA_QUOTA)?;
    Ok(GuestData {
        pv_drivers: known || has_pv_drivers(store, domid)?,
        own: own(store, domid)?,
        cut: agent.cut || xsdata.cut,
        agent: texts(&agent),
        xsdata: texts(&xsdata),
    })
}

/// Only a driver makes a backend connect.
fn has_pv_drivers(store: &mut xenstore::Client, domid: DomId) -> Result<bool, Error> {
    let device = |kind| matches!(kind, DeviceKind::Vbd | DeviceKind::Qdisk | DeviceKind::Vif);
    let devices = devices_of(store, store_domid(domid))?;
    let states: Vec<_> =
        devices.iter().filter(|d| device(d.kind)).map(DeviceAddress::backend_state).collect();
    let connected = |state: &Vec<u8>| XenbusState::from_value(state) == XenbusState::Connected;
    Ok(store.read_all(&states)?.iter().flatten().any(connected))
}

fn texts(found: &subtree::Found) -> Dict<String> {
    found.nodes.iter().map(|(path, value)| (path.as_str().to_owned(), text_of(value))).collect()
}

/// A guest's bytes as text: what is no UTF-8 is replaced.
fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use xenstore::store::SharedStore;

    fn seen(nodes: &[(&str, &[u8])]) -> GuestData {
        let mut store = SharedStore::new().client(xenstore::DomId::DOM0);
        for (path, value) in nodes {
            store.write(&Path::new(&format!("/local/domain/7/{path}")).unwrap(), *value).unwrap();
        }
        read(&mut store, DomId::new(7).unwrap(), false).unwrap()
    }

    fn keys(dict: &Dict<String>) -> Vec<&str> {
        dict.iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn what_agents_write_is_seen_and_nothing_else() {
        let data = seen(&[
            ("attr/PVAddons/MajorVersion", b"6"),
            ("attr/vif/0/ipv4/0", b"10.0.0.2"),
            ("attr/os/hotfixes/1", b"x"),
            ("attr/a/b/c/d/e", b"too deep"),
            ("data/os_name", b"Debian"),
            ("data/volumes/0/name", b"x"),
            ("data/service/kms/state", b"1"),
            ("control/feature-balloon", b"1"),
            ("control/batcmd/script", b"x"),
            ("drivers/0", b"xenbus"),
            ("feature/hotplug/vbd", b"1"),
            ("xenserver/attr/net-sriov-vf/0/mac", b"x"),
            ("memory/target", b"1"),
            ("device/vbd/1/state", b"4"),
            ("name", b"x"),
            ("vm-data/a/b", b"1"),
        ]);
        let values: Vec<_> = data.agent.iter().filter(|(_, v)| !v.is_empty()).map(|(k, _)| k).collect();
        assert_eq!(
            values,
            [
                "attr/PVAddons/MajorVersion",
                "attr/vif/0/ipv4/0",
                "control/feature-balloon",
                "data/os_name",
                "data/service/kms/state",
                "drivers/0",
                "feature/hotplug/vbd",
                "xenserver/attr/net-sriov-vf/0/mac",
            ]
        );
        assert_eq!(keys(&data.xsdata), ["vm-data/a", "vm-data/a/b"]);
        assert!(!data.cut && !data.pv_drivers && !data.own.uncooperative);
    }

    #[test]
    fn all_that_is_read_is_watched_and_its_devices_until_it_has_drivers() {
        let domid = DomId::new(7).unwrap();
        let whole = places(domid, false).unwrap();
        assert_eq!(whole.iter().map(Path::as_str).collect::<Vec<_>>(), ["/local/domain/7"]);
        let watched = places(domid, true).unwrap();
        let at_or_below =
            |node: &Path| watched.iter().any(|place| node == place || node.below(place).is_some());
        let read = AGENT.iter().map(|area| area.at).chain([vmdata::AREA.at]).chain(OWN);
        for node in read.map(|node| whole[0].join(node).unwrap()) {
            assert!(at_or_below(&node), "{node}");
        }
        assert!(!at_or_below(&whole[0].join("device/vbd/51712/state").unwrap()));
        assert_eq!(watched.len(), 10, "{watched:?}");
    }

    #[test]
    fn bytes_become_text() {
        let data = seen(&[("data/a", b"\xff\x1b[2J\0"), ("data/b", "größer".as_bytes())]);
        assert_eq!(data.agent.get("data/a").unwrap(), "\u{fffd}\u{1b}[2J\0");
        assert_eq!(data.agent.get("data/b").unwrap(), "größer");
    }

    #[test]
    fn a_guest_that_fills_its_tree_is_read_as_far_as_the_quota_goes() {
        let names: Vec<_> = (0..1500).map(|n| format!("data/x{n:04}")).collect();
        let mut nodes: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"v"[..])).collect();
        nodes.push(("attr/vif/0/ipv4/0", b"10.0.0.2"));
        let data = seen(&nodes);
        assert!(data.cut);
        assert_eq!(data.agent.0.len(), AGENT_QUOTA.nodes);
        let long = vec![b'x'; 2000];
        let nodes: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &long[..])).collect();
        let bytes: usize = seen(&nodes).agent.iter().map(|(k, v)| k.len() + v.len()).sum();
        assert!(bytes <= AGENT_QUOTA.bytes && bytes > AGENT_QUOTA.bytes / 2, "{bytes}");
    }

    #[test]
    fn connected_drivers_are_seen_by_their_backends() {
        let backend = "/local/domain/0/backend/vif/7/0";
        let mut store = SharedStore::new().client(xenstore::DomId::DOM0);
        let path = |text: &str| Path::new(text).unwrap();
        store.write(&path("/libxl/7/device/vif/0/backend"), backend).unwrap();
        for (state, connected) in [("2", false), ("4", true), ("5", false)] {
            store.write(&path(&format!("{backend}/state")), state).unwrap();
            assert_eq!(read(&mut store, DomId::new(7).unwrap(), false).unwrap().pv_drivers, connected);
        }
    }
}
