//! The layouts in both daemons' stores: what is written, what a guest can do with it, what is left of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use uuid::Uuid;
use xenstore::layout::{
    BlockBackend, BlockDevice, Built, Console, ConsoleServer, DeviceAddress, Domain, DomainKind, Mac, Media,
    Memory, Rate, Vbd, Vif, XenbusState, devices_of, domain_path, pairs, remove_domain,
};
use xenstore::subtree::Quota;
use xenstore::{Batch, DomId, Errno, Operations, Path, Perms, Request, VmData, subtree, vmdata};

use super::oracle::{Oracle, with_each};
use super::{D, path};

const UUID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

fn domain() -> Domain {
    Domain {
        domid: D,
        uuid: UUID,
        name: "guest".into(),
        kind: DomainKind::Pv,
        unique_id: Uuid::from_u128(7),
        platform: pairs([("acpi", "1"), ("device-model", "none")]).unwrap(),
        bios_strings: pairs([("bios-vendor", "Xen")]).unwrap(),
        vendor_device: false,
        vm_data: VmData::new([
            ("vm-data/foo", "bar"),
            ("vm-data/a/b", "c"),
            ("name", "forged"),
            ("vm-data/../name", "forged"),
        ]),
        bios: None,
        time_offset: None,
        keep_vm: false,
    }
}

fn built() -> Built {
    Built {
        domid: D,
        uuid: UUID,
        kind: DomainKind::Pv,
        memory: Memory {
            static_max: 262_144,
            dynamic_max: 262_144,
            dynamic_min: 131_072,
            target: 262_144,
            video: 0,
        },
        max_vcpus: 3,
        online_vcpus: 2,
        store_port: 1,
        store_gfn: 1_044_476,
        start_time: SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_120),
    }
}

fn vbd() -> Vbd {
    Vbd {
        domid: D,
        backend_domid: DomId::DOM0,
        vdev: 51712,
        name: "xvda".into(),
        backend: BlockBackend::Phy { path: b"/srv/disk.img".to_vec() },
        media: Media::Disk,
        writable: true,
        removable: false,
        discard: true,
        trusted: true,
        script: Some("/etc/xen/scripts/block".into()),
        device: Some(BlockDevice { major: 7, minor: 26 }),
        extra_backend: pairs([("sm-data/scsi/0x12/default", "AA==")]).unwrap(),
        extra_private: pairs([("vdi-id", "7")]).unwrap(),
    }
}

fn vif() -> Vif {
    Vif {
        domid: D,
        backend_domid: DomId::DOM0,
        handle: 0,
        mac: Mac([0, 0x16, 0x3e, 1, 2, 3]),
        bridge: "xenbr0".into(),
        mtu: Some(1500),
        rate: Some(Rate { bytes: 62500, interval_us: 50000 }),
        carrier: true,
        trusted: true,
        emulated: false,
        script: None,
        extra_backend: Vec::new(),
        extra_private: pairs([("network", "0")]).unwrap(),
    }
}

fn console() -> Console {
    Console {
        domid: D,
        backend_domid: DomId::DOM0,
        server: ConsoleServer::Xenconsoled,
        port: 2,
        gfn: 1_044_475,
    }
}

/// A domain as a start leaves it.
fn whole_domain() -> Vec<Batch> {
    vec![domain().create(), built().create(), console().create(), vbd().create(), vif().create()]
}

/// All nodes with values and permissions, one line each, in an order of our own.
fn listing(oracle: &Oracle) -> Option<String> {
    let text = oracle.run("xenstore-ls", &["-f", "-p"])?;
    // What the daemon has of its own.
    let own = ["/tool", "/@", "/local = "];
    let lines: BTreeSet<_> = text.lines().filter(|l| !own.iter().any(|o| l.starts_with(o))).collect();
    Some(lines.into_iter().flat_map(|l| [l, "\n"]).collect())
}

/// Compares with a file of `tests/golden`, or writes it when `UPDATE_GOLDEN` is set.
fn golden(name: &str, text: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(
        text,
        expected,
        "{} differs: see the change with UPDATE_GOLDEN=1 and git diff",
        file.display()
    );
}

#[test]
fn a_whole_domain_reads_the_same_from_both_daemons() {
    with_each(|oracle| {
        let mut client = oracle.client();
        client.introduce(D, 1, 1).unwrap();
        for batch in whole_domain() {
            client.commit(&batch).unwrap();
        }
        if let Some(text) = listing(oracle) {
            golden("domain.txt", &text);
        }
    });
}

#[test]
fn a_domain_that_is_removed_leaves_nothing() {
    with_each(|oracle| {
        let mut client = oracle.client();
        for batch in whole_domain() {
            client.commit(&batch).unwrap();
        }
        let devices = devices_of(&mut client, D).unwrap();
        assert_eq!(devices, [vbd().address(), vif().address(), console().address()]);
        // As the kernel does when a backend fails.
        client.write(&vbd().address().backend_error(), "2 probe").unwrap();
        client.commit(&vif().address().remove()).unwrap();
        client.commit(&remove_domain(D, Some(UUID), &devices)).unwrap();
        // Again, when nothing of it is there.
        client.commit(&remove_domain(D, Some(UUID), &devices)).unwrap();
        if let Some(text) = listing(oracle) {
            // Parents that others share stay.
            let left: Vec<_> = text.lines().filter_map(|l| l.split(' ').next()).collect();
            let shared = [
                "/libxl",
                "/local/domain",
                "/local/domain/0",
                "/local/domain/0/backend",
                "/local/domain/0/backend/console",
                "/local/domain/0/backend/vbd",
                "/local/domain/0/backend/vif",
                "/local/domain/0/error",
                "/local/domain/0/error/backend",
                "/local/domain/0/error/backend/console",
                "/local/domain/0/error/backend/vbd",
                "/local/domain/0/error/backend/vif",
                "/vm",
            ];
            assert_eq!(left.iter().filter(|l| !shared.contains(l)).count(), 0, "{text}");
        }
    });
}

#[test]
fn a_guest_reads_and_owns_its_vm_data_and_nothing_else() {
    with_each(|oracle| {
        let mut client = oracle.client();
        for batch in whole_domain() {
            client.commit(&batch).unwrap();
        }
        let mut guest = oracle.guest(D);
        let mut read = |p: &str| guest.request(&Request::Read(path(p)));
        assert_eq!(read("vm-data/foo"), Ok(b"bar".to_vec()));
        assert_eq!(read("vm-data/a/b"), Ok(b"c".to_vec()));
        assert_eq!(read("name"), Ok(b"guest".to_vec()));
        assert_eq!(read("device/vbd/51712/virtual-device"), Ok(b"51712".to_vec()));
        assert_eq!(read("/local/domain/0/backend/vbd/5/51712/mode"), Ok(b"w".to_vec()));
        assert_eq!(read("console/port"), Ok(b"2".to_vec()));
        assert_eq!(read("/libxl/5/type"), Err(Errno::Acces));
        assert_eq!(read("/libxl/5/device/vbd/51712/params"), Err(Errno::Acces));

        let mut write =
            |p: &str| guest.request(&Request::Write { path: path(p), value: b"guest's".to_vec() }).map(drop);
        for own in [
            "vm-data/foo",
            "vm-data/new/below",
            "attr/os/class",
            "data/updated",
            "control/feature-balloon",
            "control/shutdown",
            "device/vbd/51712/state",
            "device/vif/0/state",
            "error/device/vbd/51712/error",
            "xenserver/attr/net-sriov-vf/0/ip",
            "device/suspend/event-channel",
        ] {
            assert_eq!(write(own), Ok(()), "{own}");
        }
        for foreign in [
            "name",
            "vm",
            "memory/target",
            "cpu/0/availability",
            "platform/acpi",
            "console/tty",
            "console/ring-ref",
            "control/has-vendor-device",
            "device/vbd/51728/state",
            "device/vif/0/mtu",
            "hvmloader/bios",
            "/vm/01234567-89ab-cdef-0123-456789abcdef/name",
            "/libxl/5/type",
            "/local/domain/0/backend/vbd/5/51712/params",
            "/local/domain/0/name",
        ] {
            assert_eq!(write(foreign), Err(Errno::Acces), "{foreign}");
        }
        // The owner may also remove, and close to others.
        assert!(guest.request(&Request::Rm(path("vm-data/a"))).is_ok());
        let perms = Perms::rw(D);
        assert!(guest.request(&Request::SetPerms { path: path("vm-data/foo"), perms }).is_ok());

        let now = in_vm_data(&mut client);
        let now: Vec<_> = now.iter().map(|(p, v)| (p.as_str(), &v[..])).collect();
        let expected =
            [("vm-data/foo", &b"guest's"[..]), ("vm-data/new", b""), ("vm-data/new/below", b"guest's")];
        assert_eq!(now, expected);
    });
}

fn in_vm_data(client: &mut xenstore::Client) -> BTreeMap<Path, Vec<u8>> {
    let quota = Quota { nodes: 100, bytes: 10_000 };
    let found = subtree::read(client, &domain_path(D), &[vmdata::AREA], quota).unwrap();
    assert!(!found.cut);
    found.nodes
}

#[test]
fn vm_data_is_replaced_and_what_the_guest_added_stays() {
    with_each(|oracle| {
        let mut client = oracle.client();
        client.commit(&domain().create()).unwrap();
        let mut guest = oracle.guest(D);
        guest.request(&Request::Write { path: path("vm-data/mine"), value: b"1".to_vec() }).unwrap();
        let new = VmData::new([("vm-data/foo", "changed"), ("vm-data/x", "y")]);
        client.commit(&new.replace(&domain().vm_data, D)).unwrap();
        let now = in_vm_data(&mut client);
        let names: Vec<_> = now.keys().map(Path::as_str).collect();
        assert_eq!(names, ["vm-data/a", "vm-data/foo", "vm-data/mine", "vm-data/x"]);
        assert_eq!(now[&path("vm-data/foo")], b"changed");
    });
}

#[test]
fn devices_go_through_their_states() {
    with_each(|oracle| {
        let mut client = oracle.client();
        client.commit(&domain().create()).unwrap();
        let disk = vbd();
        let address: DeviceAddress = disk.address();
        let status = address.status(&mut client).unwrap();
        assert_eq!((status.backend, status.frontend), (None, None));
        client.commit(&disk.create()).unwrap();
        let status = address.status(&mut client).unwrap();
        assert_eq!(status.backend, Some(XenbusState::Initialising));
        assert_eq!(status.hotplug_status, None);
        assert_eq!(
            client.read_str(&address.backend().join("physical-device").unwrap()).unwrap().unwrap(),
            "7:1a"
        );
        // A guest may write whatever it likes.
        client.write(&address.frontend().join("state").unwrap(), vec![b'9'; 100]).unwrap();
        client.commit(&address.request_close()).unwrap();
        let status = address.status(&mut client).unwrap();
        assert_eq!(
            (status.backend, status.frontend),
            (Some(XenbusState::Closing), Some(XenbusState::Unknown))
        );
        client.commit(&address.hide_frontend()).unwrap();
        assert_eq!(address.status(&mut client).unwrap().frontend, None);

        let interface = vif().address();
        for (change, says) in [(vif().create(), ""), (Vif::connect(interface), "connected")] {
            client.commit(&change).unwrap();
            let status = interface.status(&mut client).unwrap();
            assert_eq!(status.hotplug_status.as_deref(), Some(says.as_bytes()));
        }
    });
}

#[test]
fn the_printed_tables_are_the_documentation() {
    golden("../../../docs/xenstore-layout.md", &xenstore::layout::document_all());
}
