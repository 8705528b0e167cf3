//! Devices that change while the guest has them, on real Xen: media, bridges, cables, what may be sent, offloads.
//!
//! One host serves all parts: each has guests of its own.

use suite::{Dom0, Guest};
use xenopsd::api::{
    DeviceId, Error, LockedAddresses, LockingMode, Network, VbdEject, VbdInsert, VbdMode, VbdType, VifMove,
    VifSetCarrier, VifSetLockingMode, VmSetMemoryDynamicRange, VmSetVcpus,
};

fn dbg() -> String {
    "test".to_owned()
}

/// Gives a guest's first interface an address, once it is there.
fn with_address(dom0: &Dom0, guest: &Guest, address: &str) {
    dom0.type_into(
        guest,
        &format!(
            "n=0; while [ ! -e /sys/class/net/eth0 ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done; \
             ip addr add {address}/24 dev eth0; ip link set eth0 up"
        ),
    );
}

#[test]
fn devices_change_under_a_running_guest() {
    let dom0 = Dom0::start();
    media_come_and_go(&dom0);
    interface_moves_under_ping(&dom0);
    locked_interface_sends_only_from_its_addresses(&dom0);
    offloads_are_as_asked(&dom0);
    disk_has_one_writer(&dom0);
    vcpus_and_memory_come_and_go(&dom0);
}

fn media_come_and_go(dom0: &Dom0) {
    for name in ["one", "two"] {
        dom0.sh(&format!("truncate -s 1M /root/{name}.iso; printf 'medium {name}' | dd of=/root/{name}.iso conv=notrunc 2>&1"));
    }
    let mut guest = Guest::new("media").disk("xvdd", "/root/one.iso", VbdMode::ReadOnly);
    (guest.vbds[0].ty, guest.vbds[0].backend) = (VbdType::Cdrom, None);
    dom0.boot(&guest);
    let before = dom0.snapshot();
    let drive = guest.vbds[0].id.clone();
    let eject = VbdEject { debug_info: dbg(), id: drive.clone() };
    for name in ["one", "two"] {
        let disk = xenopsd::api::Disk::Local(format!("/root/{name}.iso"));
        let insert = VbdInsert { debug_info: dbg(), id: drive.clone(), disk };
        dom0.task(&insert).expect("is inserted");
        assert_eq!(dom0.task(&insert), Err(Error::MediaPresent));
        let wait = "n=0; while [ ! -e /sys/block/xvdd ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done";
        let read =
            dom0.type_into(&guest, &format!("{wait}; head -c 10 /dev/xvdd; echo; cat /sys/block/xvdd/ro"));
        assert_eq!(read.lines().collect::<Vec<_>>(), [format!("medium {name}"), "1".to_owned()]);
        let refused = dom0.type_into(&guest, "echo x 2>&1 >/dev/xvdd && echo written");
        assert!(!refused.contains("written"), "{refused}");
        assert_eq!(dom0.sh("losetup -lnO RO | sort -u").trim(), "1", "also in dom0");
        dom0.task(&eject).expect("comes out");
        before.must_be_left(dom0);
    }
    assert_eq!(dom0.task(&eject), Err(Error::MediaNotPresent));
    dom0.shutdown(&guest, 60.0).expect("goes down");
}

fn interface_moves_under_ping(dom0: &Dom0) {
    dom0.sh(
        "ip link add xenbr9 type bridge; ip link set xenbr9 up mtu 9000; ip addr add 10.99.0.1/24 dev xenbr9",
    );
    let guest = Guest::new("moves").vif("xenbr0");
    dom0.boot(&guest);
    with_address(dom0, &guest, "10.9.0.61");
    dom0.type_into(&guest, "ip addr add 10.99.0.61/24 dev eth0");
    let id = guest.vifs[0].id.clone();
    let vif = format!("vif{}.0", dom0.domid(&guest));
    let go = |bridge: &str| {
        let network = Network::Local(bridge.to_owned());
        dom0.task(&VifMove { debug_info: dbg(), id: id.clone(), network })
    };
    // What the guest sends all the time does not keep it from moving.
    dom0.type_into(&guest, "(ping 10.99.0.1 >/dev/null 2>&1 &)");
    dom0.sh("ping -c 2 -i 0.2 -W 20 10.9.0.61");
    for _ in 0..3 {
        go("xenbr9").expect("moves");
        dom0.sh("ping -c 2 -i 0.2 -W 20 10.99.0.61");
        assert_eq!(dom0.sh(&format!("basename $(readlink /sys/class/net/{vif}/master)")).trim(), "xenbr9");
        go("xenbr0").expect("moves back");
        dom0.sh("ping -c 2 -i 0.2 -W 20 10.9.0.61");
    }
    assert_eq!(go("xenbr77"), Err(Error::does_not_exist("network", "xenbr77")));
    dom0.sh("ping -c 1 -W 20 10.9.0.61");
    // Without a cable nothing comes through.
    let cable = |carrier| dom0.task(&VifSetCarrier { debug_info: dbg(), id: id.clone(), carrier });
    cable(false).expect("is pulled");
    assert!(!dom0.run("ping -c 1 -W 2 10.9.0.61").success());
    cable(true).expect("is put in");
    // dom0 remembers for a while that nobody answered.
    dom0.sh("ip neigh flush dev xenbr0; ping -c 2 -i 0.2 -W 20 10.9.0.61");
    dom0.shutdown(&guest, 60.0).expect("goes down");
    dom0.sh("ip link del xenbr9");
}

fn locked_interface_sends_only_from_its_addresses(dom0: &Dom0) {
    let lock = |addresses: &[&str]| {
        let ipv4 = addresses.iter().map(|&a| a.to_owned()).collect();
        LockingMode::Locked(LockedAddresses { ipv4, ipv6: Vec::new() })
    };
    let mut guest = Guest::new("locked").vif("xenbr0");
    guest.vifs[0].locking_mode = lock(&["10.9.0.71"]);
    dom0.boot(&guest);
    with_address(dom0, &guest, "10.9.0.71");
    dom0.sh("ping -c 2 -i 0.2 -W 20 10.9.0.71");
    // An address that is not its own: neither answered for, nor sent from.
    dom0.type_into(&guest, "ip addr add 10.9.0.72/24 dev eth0");
    let reaches =
        |address: &str| dom0.run(&format!("ip neigh flush dev xenbr0; ping -c 1 -W 2 {address}")).success();
    assert!(reaches("10.9.0.71") && !reaches("10.9.0.72"));
    let dom0s = dom0.sh("ip -4 -o addr show dev xenbr0 | awk '{ print $4 }' | cut -d/ -f1");
    let dom0s = dom0s.lines().next().expect("dom0 has an address").to_owned();
    let sends = |from: &str| {
        dom0.type_into(&guest, &format!("ping -c 1 -W 2 -I {from} {dom0s} >/dev/null && echo arrived"))
    };
    assert_eq!((sends("10.9.0.71").as_str(), sends("10.9.0.72").as_str()), ("arrived", ""));
    let set = |locking_mode| {
        dom0.task(&VifSetLockingMode { debug_info: dbg(), id: guest.vifs[0].id.clone(), locking_mode })
    };
    set(lock(&["10.9.0.71", "10.9.0.72"])).expect("more addresses");
    assert!(reaches("10.9.0.72"));
    set(lock(&["10.9.0.72"])).expect("another address");
    assert!(reaches("10.9.0.72") && !reaches("10.9.0.71"));
    set(LockingMode::Unlocked).expect("unlocked");
    assert!(reaches("10.9.0.71"));
    // Another MAC address.
    let other = "00:16:3e:77:77:77";
    let change = format!("ip link set eth0 down; ip link set eth0 address {other}; ip link set eth0 up");
    let has = dom0.type_into(&guest, &format!("{change}; cat /sys/class/net/eth0/address"));
    assert_eq!(has, other);
    assert!(reaches("10.9.0.71"));
    set(lock(&["10.9.0.71"])).expect("locked again");
    assert!(!reaches("10.9.0.71"));
    set(LockingMode::Disabled).expect("disabled");
    assert!(!reaches("10.9.0.71"));
    dom0.shutdown(&guest, 60.0).expect("goes down");
}

fn offloads_are_as_asked(dom0: &Dom0) {
    let mut guest = Guest::new("offloads").vif("xenbr0");
    guest.vifs[0].other_config = [("ethtool-tso", "off"), ("ethtool-gso", "false"), ("ethtool-tx", "on")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into_iter()
        .collect();
    dom0.boot(&guest);
    let shown = dom0.sh(&format!("ethtool -k vif{}.0", dom0.domid(&guest)));
    for line in ["tcp-segmentation-offload: off", "generic-segmentation-offload: off", "tx-checksumming: on"]
    {
        assert!(shown.contains(line), "{line}: {shown}");
    }
    dom0.shutdown(&guest, 60.0).expect("goes down");
}

fn disk_has_one_writer(dom0: &Dom0) {
    dom0.sh("truncate -s 8M /root/one.img; ln -s one.img /root/same.img");
    let first = Guest::new("writer").disk("xvda", "/root/one.img", VbdMode::ReadWrite);
    dom0.boot(&first);
    for mode in [VbdMode::ReadWrite, VbdMode::ReadOnly] {
        let second = Guest::new("other").disk("xvda", "/root/same.img", mode);
        dom0.add(&second);
        let refused = dom0.start_paused(&second);
        let Err(Error::StorageBackendError { code, params }) = &refused else { panic!("{refused:?}") };
        assert!(code == "DISK_IN_USE" && params[0].contains(&format!("domain {}", dom0.domid(&first))));
        dom0.remove(&second).expect("is forgotten");
    }
    dom0.shutdown(&first, 60.0).expect("goes down");
    let id = DeviceId::new(first.id(), "xvda");
    dom0.sh("chmod 0444 /root/one.img");
    let refused = dom0.start_paused(&first);
    assert!(refused.as_ref().is_err_and(|e| e.to_string().contains("can only be read")), "{id}: {refused:?}");
}

fn vcpus_and_memory_come_and_go(dom0: &Dom0) {
    const MIB: i64 = 1 << 20;
    let guest = Guest::new("grows").with(|vm| {
        (vm.vcpu_max, vm.vcpus) = (2, 1);
        (vm.memory_static_max, vm.memory_dynamic_min) = (160 * MIB, 96 * MIB);
    });
    dom0.boot(&guest);
    let count = |what: &str, online: &str| {
        let wait = format!(
            "n=0; while [ \"$(cat /sys/devices/system/cpu/online)\" != {online} ] && [ $n -lt 100 ]; do sleep 0.1; n=$((n + 1)); done"
        );
        let seen = dom0.type_into(&guest, &format!("{wait}; cat /sys/devices/system/cpu/online"));
        assert_eq!(seen, online, "{what}");
    };
    count("at first", "0");
    for (vcpus, online) in [(2, "0-1"), (1, "0"), (2, "0-1")] {
        dom0.task(&VmSetVcpus { debug_info: dbg(), id: guest.id().to_owned(), vcpus }).expect("vcpus");
        // The kernel starts a processor by itself; another may have to be switched on by its administrator.
        dom0.type_into(&guest, "for c in /sys/devices/system/cpu/cpu*/online; do [ $(cat $c) = 1 ] || echo 1 2>/dev/null >$c; done");
        count("after a change", online);
    }
    let range = |minimum: i64, maximum: i64| {
        let (minimum, maximum) = (minimum * MIB, maximum * MIB);
        dom0.task(&VmSetMemoryDynamicRange { debug_info: dbg(), id: guest.id().to_owned(), minimum, maximum })
    };
    for mib in [96, 160, 112] {
        range(96, mib).expect("the balloon follows");
        let actual = dom0.state(&guest).memory_actual;
        assert!((actual - mib * MIB).abs() <= 2 * MIB, "{actual} bytes for {mib} MiB");
    }
    assert!(range(96, 161).is_err());
    dom0.shutdown(&guest, 60.0).expect("goes down");
}
