//! What networks do for guests, on real Xen: frames of 9000 bytes, a rate that holds, Open vSwitch's own daemon, Xen's own
//! hotplug script, and what a locked guest sends as somebody else in either.
//!
//! ```text
//!   guest   eth0 ── jumbo (Linux bridge, MTU 9000), with a rate
//!           eth1 ── ovsbr0 (Open vSwitch), locked
//!           eth2 ── xenbr0, put there by /etc/xen/scripts/vif-bridge, locked
//! ```

use std::time::Instant;

use suite::{Dom0, Guest, LIMIT};
use xenopsd::api::{
    DeviceId, Error, LockedAddresses, LockingMode, Method, Network, TaskId, VifMove, VifSetLockingMode,
};

/// Kilobytes per second that the guest may send: slow enough for an emulated machine that does other things, too.
const RATE_KIB: i64 = 256;

/// How much of it is measured, after a first part that is let through at once: six seconds.
const MEASURED_BLOCKS: i64 = 24;

/// Bytes of a block of what is measured.
const BLOCK: i64 = 65536;

/// A TCP port of dom0's.
const PORT: u16 = 7007;

fn dbg() -> String {
    "test".to_owned()
}

fn locked_to(addresses: &[&str]) -> LockingMode {
    let ipv4 = addresses.iter().map(|&a| a.to_owned()).collect();
    LockingMode::Locked(LockedAddresses { ipv4, ipv6: Vec::new() })
}

/// A guest with an interface in each kind of network.
fn guest() -> Guest {
    let mut guest = Guest::new("networks").vif("jumbo").vif("ovsbr0").vif("xenbr0");
    guest.vifs[0].mtu = 9000;
    guest.vifs[0].rate = Some((RATE_KIB, 50_000));
    guest.vifs[1].locking_mode = locked_to(&["10.8.0.71"]);
    guest.vifs[2].locking_mode = locked_to(&["10.9.0.81"]);
    guest.vifs[2].other_config =
        [("hotplug-script".to_owned(), "vif-bridge".to_owned())].into_iter().collect();
    guest
}

#[test]
fn every_kind_of_network_carries_what_it_is_to_and_nothing_else() {
    let dom0 = Dom0::start();
    dom0.sh(
        "ip link add jumbo type bridge; ip link set jumbo up mtu 9000; ip addr add 10.7.0.1/24 dev jumbo",
    );
    start_open_vswitch(&dom0);
    let guest = guest();
    dom0.add(&guest);
    let before = dom0.snapshot();
    dom0.run_guest(&guest);
    dom0.said(&guest, "GUEST: ready");
    for (interface, address) in [("eth0", "10.7.0.61"), ("eth1", "10.8.0.71"), ("eth2", "10.9.0.81")] {
        dom0.type_into(
            &guest,
            &format!("ip addr add {address}/24 dev {interface}; ip link set {interface} up"),
        );
    }
    large_frames_pass_whole(&dom0, &guest);
    the_rate_holds(&dom0, &guest);
    open_vswitch_has_the_port_and_rules_hold(&dom0, &guest);
    xens_script_sets_up_and_rules_hold(&dom0, &guest);
    what_somebody_else_removes_is_made_again(&dom0, &guest);
    cards_are_set_and_shown(&dom0);
    dom0.shutdown(&guest, 60.0).expect("goes down");
    before.must_be_left(&dom0);
    assert_eq!(dom0.sh("ovs-vsctl list-ports ovsbr0; nft list ruleset | grep vif || true").trim(), "");
}

/// Debian's, as its service starts it.
fn start_open_vswitch(dom0: &Dom0) {
    dom0.sh("modprobe openvswitch
        mkdir -p /var/run/openvswitch /etc/openvswitch
        ovsdb-tool create /etc/openvswitch/conf.db /usr/share/openvswitch/vswitch.ovsschema
        ovsdb-server --remote=punix:/var/run/openvswitch/db.sock --pidfile --detach --no-chdir --log-file=/dev/null 2>&1
        ovs-vsctl --no-wait init
        /usr/lib/openvswitch-switch/ovs-vswitchd --pidfile --detach --no-chdir --log-file=/dev/null 2>&1
        ovs-vsctl add-br ovsbr0
        ip addr add 10.8.0.1/24 dev ovsbr0; ip link set ovsbr0 up");
}

fn large_frames_pass_whole(dom0: &Dom0, guest: &Guest) {
    let vif = format!("vif{}.0", dom0.domid(guest));
    assert_eq!(dom0.sh(&format!("cat /sys/class/net/{vif}/mtu")).trim(), "9000");
    // What a guest's own driver takes is the guest's affair.
    dom0.type_into(guest, "ip link set eth0 mtu 9000");
    // 8972 bytes, 8 of ICMP and 20 of IP; not to be fragmented on either way.
    dom0.sh("ping -c 3 -i 0.2 -W 20 -M do -s 8972 10.7.0.61");
    let larger = dom0.run("ping -c 1 -W 2 -M do -s 8973 10.7.0.61");
    assert!(!larger.success(), "{}", larger.text());
}

/// What is sent as fast as it can be arrives no faster than it may, nor much slower.
fn the_rate_holds(dom0: &Dom0, guest: &Guest) {
    let node = format!("/local/domain/0/backend/vif/{}/0/rate", dom0.domid(guest));
    assert_eq!(dom0.read(&node).as_deref(), Some("13107,50000"));
    let block = |count: i64| format!("dd bs={BLOCK} count={count} iflag=fullblock of=/dev/null");
    // netback lets 128 KiB through that have been saved up, and sockets have buffers.
    dom0.sh(&format!(
        "setsid socat -u TCP-LISTEN:{PORT},reuseaddr SYSTEM:'{} 2>/dev/null; {} 2>/root/rate' </dev/null >/dev/null 2>&1 &
         for n in $(seq 100); do ss -ltn | grep -q :{PORT} && break; sleep 0.05; done",
        block(8),
        block(MEASURED_BLOCKS)
    ));
    dom0.type_into(
        guest,
        &format!("dd if=/dev/zero bs={BLOCK} 2>/dev/null | nc 10.7.0.1 {PORT} >/dev/null 2>&1"),
    );
    // `1572864 bytes (1.6 MB, 1.5 MiB) copied, 6.0 s, 262 kB/s`
    let said = dom0.sh("cat /root/rate");
    let seconds = said.split_once("copied, ").and_then(|(_, rest)| rest.split_once(" s,"));
    let seconds: f64 = seconds.and_then(|(s, _)| s.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    let due = f64::from(i32::try_from(MEASURED_BLOCKS * BLOCK / RATE_KIB / 1024).expect("seconds"));
    assert!((due * 0.8..=due * 1.25).contains(&seconds), "{seconds} s for what is to take {due} s");
}

fn reaches(dom0: &Dom0, bridge: &str, address: &str) -> bool {
    dom0.run(&format!("ip neigh flush dev {bridge}; ping -c 1 -W 2 {address}")).success()
}

fn sends(dom0: &Dom0, guest: &Guest, from: &str, to: &str) -> bool {
    dom0.type_into(guest, &format!("ping -c 1 -W 2 -I {from} {to} >/dev/null && echo arrived")) == "arrived"
}

fn task<M: Method<Result = TaskId>>(dom0: &Dom0, call: &M) {
    dom0.task(call).unwrap_or_else(|error| panic!("{error}"));
}

fn lock(dom0: &Dom0, id: &DeviceId, addresses: &[&str]) {
    let locking_mode = locked_to(addresses);
    task(dom0, &VifSetLockingMode { debug_info: dbg(), id: id.clone(), locking_mode });
}

/// The rules are at the device itself, where no bridge of the kernel's sees its frames.
fn spoofed_packets_are_dropped(dom0: &Dom0, guest: &Guest, number: usize, bridge: &str, net: &str) {
    let interface = format!("eth{number}");
    let vif = format!("vif{}.{number}", dom0.domid(guest));
    let rules = dom0.sh("nft list ruleset");
    assert!(
        rules.contains(&format!("device \"{vif}\"")) || rules.contains(&format!("device {vif}")),
        "{rules}"
    );
    let (own, other) = match number {
        1 => (format!("{net}.71"), format!("{net}.72")),
        _ => (format!("{net}.81"), format!("{net}.82")),
    };
    let host = format!("{net}.1");
    dom0.type_into(guest, &format!("ip addr add {other}/24 dev {interface}"));
    assert!(reaches(dom0, bridge, &own) && !reaches(dom0, bridge, &other), "{bridge}");
    assert!(sends(dom0, guest, &own, &host) && !sends(dom0, guest, &other, &host), "{bridge}");
    let id = &guest.vifs[number].id;
    lock(dom0, id, &[&own, &other]);
    assert!(reaches(dom0, bridge, &other), "{bridge}");
    lock(dom0, id, &[&own]);
    assert!(!reaches(dom0, bridge, &other), "{bridge}");
}

fn open_vswitch_has_the_port_and_rules_hold(dom0: &Dom0, guest: &Guest) {
    let vif = format!("vif{}.1", dom0.domid(guest));
    assert_eq!(dom0.sh("ovs-vsctl list-ports ovsbr0").trim(), vif);
    let vm = dom0.sh(&format!("ovs-vsctl get Interface {vif} external_ids:xs-vm-uuid"));
    assert_eq!(vm.trim().trim_matches('"'), guest.id());
    spoofed_packets_are_dropped(dom0, guest, 1, "ovsbr0", "10.8.0");
    // Into a bridge of the kernel's and back. Its network there is not that of eth2, through which answers would go.
    dom0.sh("ip addr add 10.6.0.1/24 dev xenbr0");
    dom0.type_into(guest, "ip addr add 10.6.0.71/24 dev eth1");
    let id = guest.vifs[1].id.clone();
    lock(dom0, &id, &["10.8.0.71", "10.6.0.71"]);
    for (bridge, address, other) in
        [("xenbr0", "10.6.0.71", "10.8.0.71"), ("ovsbr0", "10.8.0.71", "10.6.0.71")]
    {
        let network = Network::Local(bridge.to_owned());
        task(dom0, &VifMove { debug_info: dbg(), id: id.clone(), network });
        assert!(reaches(dom0, bridge, address), "{bridge}");
        let elsewhere = if bridge == "xenbr0" { "ovsbr0" } else { "xenbr0" };
        assert!(!reaches(dom0, elsewhere, other), "{elsewhere}");
    }
}

fn xens_script_sets_up_and_rules_hold(dom0: &Dom0, guest: &Guest) {
    let domid = dom0.domid(guest);
    let node = |node: &str| dom0.read(&format!("/local/domain/0/backend/vif/{domid}/2/{node}"));
    assert_eq!(node("script").as_deref(), Some("/etc/xen/scripts/vif-bridge"));
    assert_eq!(node("hotplug-status").as_deref(), Some("connected"));
    let link = dom0.sh(&format!("ip -o link show vif{domid}.2"));
    assert!(link.contains("master xenbr0") && link.contains("fe:ff:ff:ff:ff:ff"), "{link}");
    spoofed_packets_are_dropped(dom0, guest, 2, "xenbr0", "10.9.0");
    // One that cannot be done by the script says so in its own words.
    let mut lost = Guest::new("lost").vif("nowhere");
    lost.vifs[0].other_config = guest.vifs[2].other_config.clone();
    dom0.add(&lost);
    let refused = dom0.start_paused(&lost);
    let Err(Error::InternalError(why)) = &refused else { panic!("{refused:?}") };
    assert!(why.contains("vif-bridge") && why.contains("nowhere"), "{why}");
    dom0.remove(&lost).expect("is forgotten");
}

/// Waits until a command in dom0 succeeds; each look takes a fifth of a second.
fn until(dom0: &Dom0, what: &str, command: &str) {
    let deadline = Instant::now() + LIMIT;
    while !dom0.run(command).success() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
    }
}

/// The kernel tells of it, and nobody has to ask the daemon for anything.
fn what_somebody_else_removes_is_made_again(dom0: &Dom0, guest: &Guest) {
    let domid = dom0.domid(guest);
    dom0.sh("nft flush ruleset");
    for number in [1, 2] {
        until(dom0, "there are rules again", &format!("nft list ruleset | grep -q vif{domid}.{number}"));
    }
    // Also one chain of many, and what is let through before them.
    let chain = format!("chain netdev xenopsd vif{domid}.2");
    dom0.sh(&format!("nft flush {chain}"));
    until(dom0, "its rules are there again", &format!("nft list {chain} | grep -q drop"));
    dom0.sh(&format!("nft insert rule {} accept", chain.trim_start_matches("chain ")));
    until(dom0, "that one is gone", &format!("! nft list {chain} | grep -qx '[[:space:]]*accept'"));
    assert!(!sends(dom0, guest, "10.9.0.82", "10.9.0.1"));
    dom0.sh("ip link del jumbo");
    assert!(!dom0.run(&format!("[ -e /sys/class/net/vif{domid}.0/master ]")).success());
    dom0.sh(
        "ip link add jumbo type bridge; ip addr add 10.7.0.1/24 dev jumbo; ip link set jumbo up mtu 9000",
    );
    until(dom0, "it is a port again", &format!("[ -e /sys/class/net/jumbo/brif/vif{domid}.0 ]"));
    dom0.sh("ping -c 1 -W 20 10.7.0.61");
}

/// A virtio card is as fast as it is told to be, and so is a tap.
fn cards_are_set_and_shown(dom0: &Dom0) {
    dom0.sh("xenops nic eth0 speed=100 duplex=half mtu=1400 gso=off");
    let shown = dom0.sh("ethtool eth0; ethtool -k eth0; cat /sys/class/net/eth0/mtu");
    for line in ["Speed: 100Mb/s", "Duplex: Half", "generic-segmentation-offload: off", "\n1400"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    let cards = dom0.sh("xenops nic");
    let line = cards.lines().find(|line| line.starts_with("eth0")).expect("dom0's card");
    assert!(line.contains("1400") && line.contains("half"), "{cards}");
    assert!(!cards.contains("vif") && !cards.contains("xenbr0"), "{cards}");
    for (bad, status) in [("eth0 speed=2500", 2), ("eth0 lro=on", 2), ("eth7", 1), ("xenbr0 autoneg=on", 1)] {
        let refused = dom0.run(&format!("xenops nic {bad}"));
        assert_eq!(refused.status, status, "{bad}: {}", refused.text());
    }
    // A card that has a section in the settings file gets it whenever it comes.
    dom0.sh("printf '[nic card0]\\nmtu = 1300\\nduplex = half\\nspeed = 10\\npromiscuous = on\\n' >/etc/xenopsd.conf");
    dom0.stop_daemon("TERM");
    dom0.start_daemon("");
    dom0.sh("ip tuntap add card0 mode tap");
    until(dom0, "it has its settings", "ethtool card0 | grep -q 'Speed: 10Mb/s'");
    let shown = dom0.sh("ip -d link show card0; ethtool card0");
    for word in ["mtu 1300", "PROMISC", "Duplex: Half"] {
        assert!(shown.contains(word), "{word}: {shown}");
    }
    dom0.sh("ip link del card0; xenops nic eth0 speed=1000 duplex=full mtu=1500");
}
