//! Disks and network interfaces on real Xen, with the kernel's own backends.

use suite::{Dom0, Guest};
use xenopsd::api::{Error, VbdList, VbdMode, VbdRemove, VifList, VifRemove};

fn dbg() -> String {
    "test".to_owned()
}

/// A file, a block device and a read-only file, each as a disk.
#[test]
fn disks_hold_what_is_written_and_only_where_it_may_be() {
    let dom0 = Dom0::start();
    dom0.sh("truncate -s 8M /root/file.img /root/below.img; printf 0123456789abcdef >/root/ro.img
        truncate -s 4M /root/ro.img; losetup /dev/loop7 /root/below.img");
    let guest = Guest::new("disks")
        .disk("xvda", "/root/file.img", VbdMode::ReadWrite)
        .disk("xvdb", "/dev/loop7", VbdMode::ReadWrite)
        .disk("xvdc", "/root/ro.img", VbdMode::ReadOnly);
    dom0.add(&guest);
    let before = dom0.snapshot();
    dom0.run_guest(&guest);
    dom0.said(&guest, "GUEST: ready");

    let sizes = dom0.type_into(&guest, "cat /sys/block/xvd?/size /sys/block/xvd?/ro");
    assert_eq!(sizes.split_whitespace().collect::<Vec<_>>(), ["16384", "16384", "8192", "0", "0", "1"]);
    let write = |disk: &str, text: &str| {
        format!("printf {text} | dd of=/dev/{disk} bs=512 seek=9 conv=fsync 2>&1 && echo went-well")
    };
    for (disk, file, text) in
        [("xvda", "/root/file.img", "to-the-file"), ("xvdb", "/root/below.img", "to-the-device")]
    {
        let said = dom0.type_into(&guest, &write(disk, text));
        assert!(said.contains("went-well"), "{disk}: {said}");
        let read = format!("dd if={file} bs=512 skip=9 count=1 2>/dev/null | tr -d '\\0'");
        assert_eq!(dom0.sh(&read), text);
    }
    let said = dom0.type_into(&guest, &write("xvdc", "never"));
    assert!(!said.contains("went-well"), "{said}");
    assert_eq!(dom0.type_into(&guest, "head -c 16 /dev/xvdc; echo"), "0123456789abcdef");

    // A guest that lies about being read-only finds the device below it read-only, too.
    let loops = dom0.sh("losetup -nO NAME,BACK-FILE,RO | sort");
    let read_only = |file: &str| {
        let line =
            loops.lines().find(|line| line.contains(file)).unwrap_or_else(|| panic!("{file}: {loops}"));
        line.trim_end().ends_with('1')
    };
    assert!(read_only("/root/ro.img") && !read_only("/root/file.img"), "{loops}");
    let domid = dom0.domid(&guest);
    let backend =
        |vdev: u32, node: &str| dom0.read(&format!("/local/domain/0/backend/vbd/{domid}/{vdev}/{node}"));
    assert_eq!(backend(51744, "mode").as_deref(), Some("r"));
    // A block device is used as it is, without a loop device in between.
    assert_eq!(backend(51728, "physical-device").as_deref(), Some("7:7"));

    let disks = dom0.call(&VbdList { debug_info: dbg(), id: guest.id().to_owned() }).expect("lists");
    assert_eq!(disks.len(), 3);
    assert!(
        disks.iter().all(|(vbd, state)| state.plugged && state.backend_present == vbd.backend),
        "{disks:?}"
    );
    let in_use = dom0.call(&VbdRemove { debug_info: dbg(), id: guest.vbds[0].id.clone() });
    assert_eq!(in_use, Err(Error::DeviceIsConnected));

    dom0.shutdown(&guest, 60.0).expect("goes down");
    before.must_be_left(&dom0);
    let disks = dom0.call(&VbdList { debug_info: dbg(), id: guest.id().to_owned() }).expect("lists");
    assert!(disks.iter().all(|(_, state)| !state.plugged), "{disks:?}");
    dom0.call(&VbdRemove { debug_info: dbg(), id: guest.vbds[0].id.clone() }).expect("is forgotten");
}

/// Two guests at once, in the bridge and each able to reach the other.
#[test]
fn interfaces_carry_packets_between_guests_and_dom0() {
    let dom0 = Dom0::start();
    // A bridge whose MTU nobody has set takes the smallest of its ports', and later ports take the bridge's. To set what it
    // has already is not to set it.
    dom0.sh("ip link set xenbr0 mtu 1499; ip link set xenbr0 mtu 1500");
    let before = dom0.snapshot();
    let one = Guest::new("one").cmdline("gip=10.9.0.31").vif("xenbr0");
    let mut two = Guest::new("two").cmdline("gip=10.9.0.32").vif("xenbr0").vif("xenbr0");
    two.vifs[0].mac = "00:16:3e:00:00:32".to_owned();
    two.vifs[1].mtu = 1400;
    two.vifs[1].rate = Some((1024, 50_000));
    for guest in [&one, &two] {
        dom0.add(guest);
        dom0.run_guest(guest);
    }
    dom0.said(&one, "GUEST: net up 10.9.0.31");
    dom0.said(&two, "GUEST: net up 10.9.0.32");
    dom0.sh("ping -c 2 -i 0.2 -W 10 10.9.0.31 && ping -c 2 -i 0.2 -W 10 10.9.0.32");
    dom0.said(&one, "GUEST: ready");
    dom0.said(&two, "GUEST: ready");
    let said = dom0.type_into(&one, "ping -c 2 -W 10 10.9.0.32");
    assert!(said.contains("2 packets received"), "{said}");

    let (first, second) = (dom0.domid(&one), dom0.domid(&two));
    for (vif, mtu) in
        [(format!("vif{first}.0"), 1500), (format!("vif{second}.0"), 1500), (format!("vif{second}.1"), 1400)]
    {
        let link = dom0.sh(&format!("ip -d -o link show {vif}"));
        let wanted = [
            format!("mtu {mtu} "),
            "master xenbr0".to_owned(),
            "fe:ff:ff:ff:ff:ff".to_owned(),
            "state UP".to_owned(),
        ];
        // The second interface of the second guest is not up in the guest, so it has no carrier.
        let wanted = if vif.ends_with(".1") { &wanted[..3] } else { &wanted[..] };
        for part in wanted {
            assert!(link.contains(part), "{part}: {link}");
        }
    }
    let node = |node: &str| dom0.read(&format!("/local/domain/0/backend/vif/{second}/{node}"));
    assert_eq!(node("1/rate").as_deref(), Some("52428,50000"));
    assert_eq!(node("0/mac").as_deref(), Some("00:16:3e:00:00:32"));
    assert_eq!(dom0.type_into(&two, "cat /sys/class/net/eth0/address"), "00:16:3e:00:00:32");

    let id = two.id().to_owned();
    let vifs = dom0.call(&VifList { debug_info: dbg(), id }).expect("lists");
    let devices: Vec<_> = vifs.iter().map(|(_, state)| state.device.clone()).collect();
    assert_eq!(devices, [Some(format!("vif{second}.0")), Some(format!("vif{second}.1"))]);
    // Nobody chose its address, so one was made: of a single host, and local.
    let made = &vifs[1].0.mac;
    let head = u8::from_str_radix(made.get(..2).unwrap_or_default(), 16).expect("an address");
    assert_eq!(head & 3, 2, "{made}");
    let in_use = dom0.call(&VifRemove { debug_info: dbg(), id: two.vifs[0].id.clone() });
    assert_eq!(in_use, Err(Error::DeviceIsConnected));

    for guest in [&one, &two] {
        dom0.shutdown(guest, 60.0).expect("goes down");
        dom0.remove(guest).expect("is forgotten");
    }
    before.must_be_left(&dom0);
}

/// The frames for eight interfaces' grants are more than this hypervisor's default allows.
#[test]
fn a_guest_with_eight_interfaces_starts() {
    const INTERFACES: usize = 8;
    let dom0 = Dom0::start();
    let before = dom0.snapshot();
    let guest = (0..INTERFACES).fold(Guest::new("eight"), |guest, _| guest.vif("xenbr0"));
    dom0.add(&guest);
    dom0.run_guest(&guest);
    dom0.said(&guest, "GUEST: ready");
    let domid = dom0.domid(&guest);
    dom0.type_into(&guest, "for n in 0 1 2 3 4 5 6 7; do ip link set eth$n up; done; echo up");
    for number in 0..INTERFACES {
        let state = dom0.read(&format!("/local/domain/0/backend/vif/{domid}/{number}/state"));
        assert_eq!(state.as_deref(), Some("4"), "interface {number}");
    }
    let wanted = Guest::new("wish").with(|vm| {
        vm.platformdata.0.push(("max_grant_frames".to_owned(), "65".to_owned()));
    });
    dom0.add(&wanted);
    let refused = dom0.start_paused(&wanted).expect_err("more than the hypervisor allows");
    assert!(refused.to_string().contains("xc_domain_create"), "{refused}");
    dom0.remove(&wanted).expect("is forgotten");

    dom0.shutdown(&guest, 60.0).expect("goes down");
    dom0.remove(&guest).expect("is forgotten");
    before.must_be_left(&dom0);
}
