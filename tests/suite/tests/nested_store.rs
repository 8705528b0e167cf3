//! What the daemon writes into the store, next to what `xl` writes for the same guest in the same boot; and every way
//! to every store.

use std::collections::BTreeMap;

use suite::{Dom0, Guest};
use xen_host::Options;
use xenopsd::api::{PowerState, VbdMode};

/// Nodes below `D` of `/local/domain/D`, `L` of `/libxl/D`, `B` of the backends, `V` of `/vm/UUID`, with permissions.
type Tree = BTreeMap<String, String>;

/// The nodes of the domain `name`, with domid and uuid replaced by letters.
fn tree(dom0: &Dom0, name: &str) -> Tree {
    let domid = dom0.sh(&format!("xl domid {name}")).trim().to_owned();
    let vm = dom0.read(&format!("/local/domain/{domid}/vm")).expect("a vm");
    let roots = [
        (format!("/local/domain/{domid}"), "D"),
        (format!("/libxl/{domid}"), "L"),
        (format!("/local/domain/0/backend/vbd/{domid}"), "B/vbd"),
        (format!("/local/domain/0/backend/vif/{domid}"), "B/vif"),
        (format!("/local/domain/0/backend/console/{domid}"), "B/console"),
        (vm, "V"),
    ];
    let mut tree = Tree::new();
    for line in dom0.sh("xenstore-ls -f -p").lines() {
        let (path, rest) = line.split_once(" = ").unwrap_or_else(|| panic!("not a node: {line}"));
        let Some((root, letter)) =
            roots.iter().find(|(root, _)| path == root || path.starts_with(&format!("{root}/")))
        else {
            continue;
        };
        let below = &path[root.len()..];
        let below = if below == format!("/domains/{domid}") { "/domains/D" } else { below };
        let key = format!("{letter}{below}");
        let permissions = rest.rsplit_once('(').map(|(_, p)| p.trim_end_matches(')')).unwrap_or_default();
        let guest = |p: &str| if p[1..] == domid { format!("{}D", &p[..1]) } else { p.to_owned() };
        tree.insert(key, permissions.split(',').map(guest).collect::<Vec<_>>().join(","));
    }
    tree
}

/// Nodes that only the daemon writes, in order.
const OURS: [&str; 18] = [
    // The contract's own: the guest agent's directories, data for the guest, memory limits, identity.
    "D/control/has-vendor-device",
    "D/domain-type",
    "D/memory/dynamic-max",
    "D/memory/dynamic-min",
    "D/memory/initial-target",
    "D/messages",
    // How many vcpus there are and are to be online: for vcpu hotplug, as the model has it.
    "D/platform",
    "D/platform/vcpu",
    "D/platform/vcpu/current",
    "D/platform/vcpu/number",
    "D/rrd",
    "D/unique-domain-id",
    "D/vm-data",
    "D/xenserver",
    "D/xenserver/attr",
    // What was written to the guest's vm-data, for a daemon that finds a change of it half made.
    "L/vm-data",
    // Which domains the VM has, for a toolstack that starts anew.
    "V/domains",
    "V/domains/D",
];

/// Nodes that only `xl` writes, in order.
const XLS: [&str; 27] = [
    // What nobody reads of our guests, or whose absence says the same: docs/differences.md has it one by one.
    "B/vbd/51712/bootable",
    "B/vbd/51712/discard-enable",
    "B/vbd/51712/hotplug-status",
    "B/vbd/51712/physical-device-path",
    "B/vbd/51712/specification",
    "B/vbd/51712/type",
    "D/device/vbd/51712/trusted",
    // Written by its hotplug script.
    "D/device/vif/0/mtu",
    "D/device/vif/0/trusted",
    // Copies that are not read, of what the backends have.
    "L/device/console/0/frontend-id",
    "L/device/console/0/online",
    "L/device/console/0/protocol",
    "L/device/console/0/state",
    "L/device/vbd/51712/bootable",
    "L/device/vbd/51712/discard-enable",
    "L/device/vbd/51712/frontend-id",
    "L/device/vbd/51712/online",
    "L/device/vbd/51712/script",
    "L/device/vbd/51712/specification",
    "L/device/vbd/51712/state",
    "L/device/vif/0/frontend-id",
    "L/device/vif/0/hotplug-status",
    "L/device/vif/0/online",
    "L/device/vif/0/state",
    // Its own notes on what was booted.
    "V/image/cmdline",
    "V/image/kernel",
    "V/image/ramdisk",
];

/// Nodes with other permissions: ours, xl's.
const PERMISSIONS: [(&str, &str, &str); 6] = [
    // A device's directory is made by its first node, which has the permissions of the directory above: dom0's. With xl's a
    // guest could name another backend.
    ("D/device/vbd/51712/backend", "n0,rD", "nD,r0"),
    ("D/device/vif/0/backend", "n0,rD", "nD,r0"),
    ("B/vbd/51712/frontend", "n0", "n0,rD"),
    ("B/vif/0/frontend", "n0", "n0,rD"),
    // A guest of the contract may write below its control directory.
    ("D/control", "nD", "n0,rD"),
    // xl's is the guest's own, so that the guest could name another backend; ours is not.
    ("D/console/backend-id", "n0,rD", "nD,r0"),
];

fn only<'a>(left: &'a Tree, right: &Tree) -> Vec<&'a str> {
    left.keys().filter(|key| !right.contains_key(*key)).map(String::as_str).collect()
}

#[test]
fn a_guest_has_the_nodes_that_xl_gives_it() {
    let dom0 = Dom0::start();
    dom0.sh("truncate -s 8M /root/a.img /root/b.img; losetup /dev/loop6 /root/a.img; losetup /dev/loop7 /root/b.img");
    let config = r#"
name = "theirs"
type = "pv"
kernel = "/guests/vmlinux"
ramdisk = "/guests/initramfs"
extra = "console=hvc0"
memory = 128
vcpus = 1
disk = ["phy:/dev/loop7,xvda,w"]
vif = ["bridge=xenbr0,mac=00:16:3e:00:00:02,script=vif-bridge"]
"#;
    dom0.sh(&format!("printf %s {} >/root/theirs.cfg", xen_host::quote(config)));
    let ours = Guest::new("ours").disk("xvda", "/dev/loop6", VbdMode::ReadWrite).vif("xenbr0");
    dom0.boot(&ours);
    dom0.sh("xl create /root/theirs.cfg");
    dom0.said(&Guest::new("theirs"), "GUEST: ready");

    let (mine, theirs) = (tree(&dom0, "ours"), tree(&dom0, "theirs"));
    assert_eq!(only(&mine, &theirs), OURS, "nodes that xl does not write");
    assert_eq!(only(&theirs, &mine), XLS, "nodes that only xl writes");
    let different: Vec<_> = mine
        .iter()
        .filter_map(|(key, permissions)| {
            Some((key.as_str(), permissions.as_str(), theirs.get(key)?.as_str()))
        })
        .filter(|entry| entry.1 != entry.2 && !PERMISSIONS.contains(entry))
        .collect();
    assert!(different.is_empty(), "other permissions (ours, xl's): {different:?}");

    // The daemon leaves a domain of somebody else alone, and says nothing of it.
    dom0.hard_shutdown(&ours).expect("goes down");
    assert!(dom0.sh("xl list").contains("theirs"));
    assert!(!dom0.sh("xenops list").contains("theirs"));
}

/// Starts a guest with a disk and an interface over each way to the store, and leaves nothing.
fn every_way(options: Options) {
    let dom0 = Dom0::without_daemon(options);
    dom0.sh("truncate -s 8M /root/disk.img");
    let guest = Guest::new("way").disk("xvda", "/root/disk.img", VbdMode::ReadWrite).vif("xenbr0");
    for way in ["socket", "xenbus", "libxenstore"] {
        dom0.start_daemon(&format!("--xenstore {way}"));
        dom0.add(&guest);
        let before = dom0.snapshot();
        dom0.run_guest(&guest);
        dom0.said(&guest, "GUEST: ready");
        assert_eq!(dom0.state(&guest).power_state, PowerState::Running, "{way}");
        dom0.shutdown(&guest, 60.0).unwrap_or_else(|error| panic!("{way}: {error}"));
        before.must_be_left(&dom0);
        dom0.forget_output(&guest);
        dom0.stop_daemon("TERM");
    }
}

#[test]
fn every_way_to_oxenstored() {
    every_way(Options::default());
}

#[test]
fn every_way_to_the_c_xenstored() {
    every_way(Options { c_xenstored: true, ..Options::default() });
}
