//! What cannot work is refused with the contract's error, and nothing is left of the attempt.

use std::io::Read as _;

use suite::{Dom0, Guest};
use xen_host::programs::SOCKET;
use xenopsd::api::{Error, Network, VbdMode, VmExists, VmStat};
use xenopsd::rpc::Codec;

const MIB: i64 = 1 << 20;

/// Connections to xenstored that the daemon may keep for its next operation.
const KEPT_CONNECTIONS: usize = 8;

fn dbg() -> String {
    "test".to_owned()
}

/// Says whether an error is the one expected.
type Expected = fn(&Error) -> bool;

/// Adds each guest, starts it, sees it refused, and removes it; in the end dom0 is as it was.
fn each_is_refused(dom0: &Dom0, cases: &[(&str, Guest, Expected)]) {
    let before = dom0.snapshot();
    for (what, guest, expected) in cases {
        let outcome = dom0.try_add(guest).and_then(|()| dom0.start_paused(guest));
        match outcome {
            Ok(()) => panic!("{what}: was accepted"),
            Err(error) => assert!(expected(&error), "{what}: {error:?}"),
        }
        if dom0.call(&VmExists { debug_info: dbg(), id: guest.id().to_owned() }).expect("VM.exists") {
            dom0.remove(guest).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
    before.must_be_left(dom0);
    // Not because everything is refused.
    let fine = Guest::new("fine");
    dom0.add(&fine);
    dom0.start_paused(&fine).expect("a faultless guest starts");
    dom0.hard_shutdown(&fine).expect("and stops");
}

fn missing(kind: &str, id: &str, error: &Error) -> bool {
    *error == Error::does_not_exist(kind, id)
}

fn boot_error(error: &Error, part: &str) -> bool {
    matches!(error, Error::BootloaderError { message, .. } if message.contains(part))
}

fn disk_error(error: &Error, part: &str) -> bool {
    matches!(error, Error::StorageBackendError { params, .. } if params.iter().any(|p| p.contains(part)))
}

fn internal(error: &Error, part: &str) -> bool {
    matches!(error, Error::InternalError(text) if text.contains(part))
}

fn kernel(name: &str, path: &str) -> Guest {
    Guest::new(name).boot(|boot| path.clone_into(&mut boot.kernel))
}

fn ramdisk(name: &str, path: &str) -> Guest {
    Guest::new(name).boot(|boot| boot.ramdisk = Some(path.to_owned()))
}

#[test]
fn kernels_memory_and_vcpus() {
    let dom0 = Dom0::start();
    dom0.sh("cd /root; : >empty; echo 'just text, and a little more of it' >text; mkdir dir; mkfifo fifo
        head -c 100000 /guests/vmlinux >cut; head -c 65536 /dev/urandom >noise
        cp /guests/vmlinux damaged; dd if=/dev/zero of=damaged bs=1 seek=24 count=40 conv=notrunc 2>/dev/null
        # The only name of the notes that make a kernel one for Xen.
        sed 's/Xen\\x00/Nex\\x00/g' /guests/vmlinux >foreign");
    let cases: [(&str, Guest, Expected); 22] = [
        ("a relative path", kernel("k10", "vmlinux"), |e| {
            boot_error(e, "kernel vmlinux: not an absolute path")
        }),
        ("no kernel", kernel("k0", "/root/absent"), |e| missing("kernel", "/root/absent", e)),
        ("an empty kernel", kernel("k1", "/root/empty"), |e| {
            boot_error(e, "kernel /root/empty: the file is empty")
        }),
        ("a directory", kernel("k2", "/root/dir"), |e| boot_error(e, "kernel /root/dir: not a regular file")),
        ("a pipe", kernel("k3", "/root/fifo"), |e| boot_error(e, "kernel /root/fifo: not a regular file")),
        ("a text", kernel("k4", "/root/text"), |e| boot_error(e, "neither an ELF file, nor a bzImage")),
        ("noise", kernel("k5", "/root/noise"), |e| boot_error(e, "neither an ELF file, nor a bzImage")),
        ("half a kernel", kernel("k6", "/root/cut"), |e| boot_error(e, "no PV entry point")),
        ("a damaged kernel", kernel("k7", "/root/damaged"), |e| boot_error(e, "no PV entry point")),
        ("no kernel for PV", kernel("k8", "/usr/lib/xen-4.17/boot/hvmloader"), |e| {
            boot_error(e, "no PV entry point")
        }),
        ("a kernel not for Xen", kernel("k9", "/root/foreign"), |e| boot_error(e, "no PV entry point")),
        ("no ramdisk", ramdisk("r0", "/root/absent"), |e| missing("ramdisk", "/root/absent", e)),
        ("an empty ramdisk", ramdisk("r1", "/root/empty"), |e| {
            boot_error(e, "ramdisk /root/empty: the file is empty")
        }),
        (
            "more memory than there is",
            Guest::new("m0").memory(64 << 10),
            |e| matches!(e, Error::NotEnoughMemory(bytes) if *bytes >= (64 << 10) * MIB),
        ),
        ("less memory than the kernel", Guest::new("m1").memory(16), |e| {
            boot_error(e, "16 MiB are not enough for this kernel and ramdisk")
        }),
        ("hardly any memory", Guest::new("m2").memory(1), |e| internal(e, "memory must satisfy")),
        ("no memory", Guest::new("m3").memory(0), |e| internal(e, "memory must satisfy")),
        ("less than no memory", Guest::new("m4").memory(-1), |e| internal(e, "memory must satisfy")),
        ("no vcpus", Guest::new("v0").with(|vm| vm.vcpus = 0), |e| *e == Error::InvalidVcpus(1)),
        ("more vcpus than its most", Guest::new("v1").with(|vm| vm.vcpus = 2), |e| {
            *e == Error::InvalidVcpus(1)
        }),
        ("more vcpus than any", Guest::new("v2").with(|vm| (vm.vcpus, vm.vcpu_max) = (1, 100_000)), |e| {
            matches!(e, Error::InvalidVcpus(_))
        }),
        ("a command line longer than PV has room for", Guest::new("c0").cmdline(&"x".repeat(1100)), |e| {
            boot_error(e, "1113 bytes, but the guest gets at most 1023")
        }),
    ];
    each_is_refused(&dom0, &cases);
}

#[test]
fn disks_and_interfaces() {
    let dom0 = Dom0::start();
    dom0.sh("cd /root; truncate -s 8M disk.img; truncate -s 1M ro.img; mkdir dir; : >empty; mkfifo fifo
        mkdir sealed; mount -t tmpfs -o size=4M sealed sealed; truncate -s 1M sealed/disk.img; mount -o remount,ro sealed
        losetup -r /dev/loop7 ro.img; ip link add notbr type dummy");
    let disk = |name: &str, path: &str| Guest::new(name).disk("xvda", path, VbdMode::ReadWrite);
    let vif = |name: &str, bridge: &str| Guest::new(name).vif(bridge);
    let mac = |name: &str, mac: &str| {
        let mut guest = Guest::new(name).vif("xenbr0");
        mac.clone_into(&mut guest.vifs[0].mac);
        guest
    };
    let twice = Guest::new("d9").disk("xvda", "/root/disk.img", VbdMode::ReadWrite).disk(
        "d0",
        "/root/ro.img",
        VbdMode::ReadOnly,
    );
    let mut same_place = Guest::new("n7").vif("xenbr0").vif("xenbr0");
    same_place.vifs[1].position = 0;
    let mut small = Guest::new("n8").vif("xenbr0");
    small.vifs[0].mtu = 10;
    let mut large = Guest::new("n9").vif("xenbr0");
    large.vifs[0].mtu = 70_000;
    let mut elsewhere = Guest::new("n10").vif("xenbr0");
    elsewhere.vifs[0].backend = Network::Remote { vm: "driver".to_owned(), switch: "xenbr0".to_owned() };
    // What comes after a good disk and a good interface is refused as well, and both are given back.
    let late = disk("d10", "/root/disk.img")
        .vif("xenbr0")
        .boot(|boot| boot.kernel = "/usr/lib/xen-4.17/boot/hvmloader".to_owned());
    let cases: [(&str, Guest, Expected); 20] = [
        ("no disk", disk("d0", "/root/absent.img"), |e| missing("disk", "/root/absent.img", e)),
        ("a directory as a disk", disk("d1", "/root/dir"), |e| disk_error(e, "/root/dir")),
        ("an empty file as a disk", disk("d2", "/root/empty"), |e| disk_error(e, "/root/empty")),
        ("a pipe as a disk", disk("d3", "/root/fifo"), |e| disk_error(e, "/root/fifo")),
        ("a terminal as a disk", disk("d4", "/dev/null"), |e| disk_error(e, "/dev/null")),
        ("a file that cannot be written", disk("d5", "/root/sealed/disk.img"), |e| {
            disk_error(e, "/root/sealed/disk.img")
        }),
        ("a device that cannot be written", disk("d6", "/dev/loop7"), |e| disk_error(e, "/dev/loop7")),
        ("a device without a medium", disk("d7", "/dev/loop6"), |e| disk_error(e, "/dev/loop6")),
        ("a relative path", disk("d8", "disk.img"), |e| disk_error(e, "not an absolute path")),
        (
            "two disks in one place",
            twice,
            |e| matches!(e, Error::AlreadyExists { kind, .. } if kind == "VBD"),
        ),
        ("a good disk and a bad kernel", late, |e| boot_error(e, "no PV entry point")),
        ("no bridge", vif("n0", "xenbr9"), |e| missing("network", "xenbr9", e)),
        ("no bridge at all", vif("n1", "notbr"), |e| {
            internal(e, "notbr is a network interface but not a bridge")
        }),
        ("a name no bridge can have", vif("n2", "a/b"), |e| internal(e, "a/b")),
        ("no address", mac("n3", "00:16:3e:00:00"), |e| internal(e, "not an Ethernet address")),
        ("an address of a group", mac("n4", "01:00:5e:00:00:01"), |e| internal(e, "MAC")),
        (
            "two interfaces in one place",
            same_place,
            |e| matches!(e, Error::AlreadyExists { kind, .. } if kind == "VIF"),
        ),
        ("an MTU too small", small, |e| internal(e, "MTU 10")),
        ("an MTU too large", large, |e| internal(e, "MTU 70000")),
        ("a network of another domain", elsewhere, |e| matches!(e, Error::Unimplemented(_))),
    ];
    each_is_refused(&dom0, &cases);

    // A medium that cannot be written in a drive that does not write is fine.
    let reader = Guest::new("reader").disk("xvda", "/dev/loop7", VbdMode::ReadOnly);
    dom0.add(&reader);
    dom0.start_paused(&reader).expect("starts");
}

#[test]
fn files_and_names_for_xenops() {
    let dom0 = Dom0::start();
    let before = dom0.snapshot();
    let good = "kernel='/guests/vmlinux'\nmemory=128\ntype='pv'\n";
    dom0.sh(&format!(
        "cd /root; printf \"name='web'\\nuuid='11111111-2222-3333-4444-555555555555'\\n{good}\" >web.cfg
         printf \"name='web'\\n{good}\" >name.cfg
         printf \"name='other'\\nuuid='11111111-2222-3333-4444-555555555555'\\n{good}\" >uuid.cfg
         printf \"name='x'\\nmemory=0\\nvcpus=0\\ndisk=['/a,raw,xvda,w','/b,raw,xvda,w']\\nvif=['mac=1:2']\\ntype='pv'\\n\" >wrong.cfg
         printf \"name='x'\\nmemory=(\\n\" >syntax.cfg; head -c 3000000 /dev/zero >zero.cfg; printf 'name=\"x' >open.cfg"
    ));
    let refused = |words: &str, status: i32, parts: &[&str]| {
        let output = dom0.run(&format!("cd /root; timeout 30 xenops {words}"));
        let said = output.error_text();
        assert_eq!((output.status, output.text().as_str()), (status, ""), "{words}: {said}");
        for part in parts {
            assert!(said.contains(part), "{words}: {part}: {said}");
        }
    };
    dom0.sh("xenops create /root/web.cfg");
    refused("create name.cfg", 1, &["the name \"web\" exists already", "xenops remove 11111111"]);
    refused("create uuid.cfg", 1, &["this uuid exists already"]);
    let mistakes =
        ["line 2: `memory`", "line 3: `vcpus`", "line 4: `disk`", "line 5: `vif`", "`kernel` is missing"];
    refused("create wrong.cfg", 2, &mistakes);
    refused("create syntax.cfg", 2, &["syntax.cfg", "line"]);
    refused("create open.cfg", 2, &["open.cfg", "line 1"]);
    refused("create zero.cfg", 2, &["zero.cfg"]);
    refused("create absent.cfg", 2, &["cannot read absent.cfg"]);
    refused("create .", 2, &["cannot read ."]);
    refused("start nobody", 4, &["nobody"]);
    refused("console web", 1, &["is halted"]);
    refused("shutdown web", 1, &["halted"]);
    refused("--socket /nowhere list", 3, &["no xenopsd is listening on /nowhere"]);
    refused("--socket /dev/null list", 3, &[]);
    refused("frobnicate", 2, &["frobnicate"]);
    assert_eq!(dom0.sh("xenops list").lines().count(), 2);
    dom0.sh("xenops remove web");
    before.must_be_left(&dom0);
}

#[test]
fn bytes_that_are_no_call() {
    let dom0 = Dom0::start();
    let before = dom0.snapshot();
    let refused = |codec: Codec, body: &str, part: &str| {
        let reply = dom0.post(codec, body).unwrap_or_else(|| panic!("no answer to {body}"));
        assert!(reply.status == 200 && reply.body.contains(part), "{body}: {reply:?}");
    };
    let xml = |method: &str, value: &str| {
        format!(
            "<?xml version=\"1.0\"?><methodCall><methodName>{method}</methodName><params>{value}</params></methodCall>"
        )
    };
    let deep = "<array><data><value>".repeat(100_000);
    for (body, part) in [
        (String::new(), "Internal_error"),
        ("nonsense".to_owned(), "Internal_error"),
        ("<methodCall><methodName>VM.list".to_owned(), "Internal_error"),
        (
            "<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><methodCall>&b;</methodCall>"
                .to_owned(),
            "Internal_error",
        ),
        (xml("VM.frobnicate", ""), "Idl.UnknownMethod(&quot;VM.frobnicate&quot;)"),
        (xml("VM.stat", ""), "Idl.MarshalError"),
        (xml("VM.stat", "<param><value><int>7</int></value></param>"), "Idl.MarshalError"),
        (xml("VM.stat", &format!("<param><value>{deep}")), "Internal_error"),
    ] {
        let start = &body[..body.len().min(100)];
        let reply = dom0.post(Codec::Xml, &body).unwrap_or_else(|| panic!("no answer to {start}"));
        let plain = reply.body.replace("&quot;", "\"");
        assert!(reply.status == 200 && plain.contains(&part.replace("&quot;", "\"")), "{start}: {reply:?}");
    }
    for (body, part) in [
        ("", "Internal_error"),
        ("{", "Internal_error"),
        ("[]", "Internal_error"),
        ("{\"method\":\"VM.list\"}", "Internal_error"),
        ("{\"method\":7,\"params\":[],\"id\":1}", "Internal_error"),
        ("{\"method\":\"VM.frobnicate\",\"params\":[],\"id\":1}", "Idl.UnknownMethod"),
        ("{\"method\":\"VM.stat\",\"params\":[{\"debug_info\":\"x\"}],\"id\":1}", "Idl.MarshalError"),
        (
            "{\"method\":\"VM.stat\",\"params\":[{\"debug_info\":\"\u{fffd}\",\"id\":\"../../etc\"}],\"id\":1}",
            "Does_not_exist",
        ),
    ] {
        refused(Codec::Json, body, part);
    }
    refused(Codec::Json, &"[".repeat(1_000_000), "Internal_error");

    let http = |bytes: &str| dom0.exchange(Codec::Json, bytes.as_bytes()).map(|reply| reply.status);
    assert_eq!(http("GET / HTTP/1.1\r\n\r\n"), Some(404));
    assert_eq!(http("\0\x01\x02\r\n\r\n"), Some(400));
    assert_eq!(http("POST / HTTP/1.1\r\n\r\n"), Some(411));
    assert_eq!(http("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), Some(400));
    assert_eq!(http("POST / HTTP/1.1\r\nContent-Length: 999999999999999\r\n\r\n{"), Some(413));
    assert_eq!(http(&format!("POST / HTTP/1.1\r\nX: {}\r\n", "y".repeat(100_000))), Some(431));
    assert_eq!(dom0.exchange(Codec::Xml, b"\0\x01\x02\r\n\r\n").map(|reply| reply.status), None);
    assert_eq!(http("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\n{}"), None, "a body that ends too early");

    // Clients that vanish: in the head, in the body, waiting for what takes an hour, before the reply. In dom0, because
    // a forwarded connection ends by halves.
    for bytes in [
        "POST / HTTP".to_owned(),
        "POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{".to_owned(),
        request(
            "{\"method\":\"UPDATES.get\",\"params\":[{\"debug_info\":\"x\",\"last_id\":1000000,\"timeout\":3600}],\"id\":1}",
        ),
        request("{\"method\":\"VM.list\",\"params\":[{\"debug_info\":\"x\",\"unit\":null}],\"id\":1}"),
    ] {
        let clients = format!(
            "for n in {{1..10}}; do socat -t 3600 - UNIX-CONNECT:{SOCKET}.json >/dev/null < <(printf %s {}) & done
             sleep 1; kill -KILL $(jobs -p); wait; true",
            xen_host::quote(&bytes)
        );
        dom0.sh(&clients);
    }
    // One that says nothing keeps nobody else from being served.
    let mut silent = dom0.connect(Codec::Xml);
    let absent = VmStat { debug_info: dbg(), id: "11111111-2222-3333-4444-555555555555".to_owned() };
    assert!(matches!(dom0.call(&absent), Err(Error::DoesNotExist { kind, .. }) if kind == "VM"));
    drop(silent.shutdown(std::net::Shutdown::Write));
    assert_eq!(silent.read(&mut [0; 16]).expect("is closed"), 0);
    drop(silent);
    before.must_be_left(&dom0);
    let sockets = dom0.snapshot().count("fd socket");
    let kept = before.count("fd socket") + KEPT_CONNECTIONS;
    assert!(sockets <= kept, "{sockets} sockets are open, {kept} are none of the vanished clients'");
}

fn request(body: &str) -> String {
    format!("POST / HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}
