//! HVM guests on real Xen: firmware, an emulated machine by a device model in a jail, and its screen.

use std::time::Duration;

use suite::{Dom0, Guest};
use xen_host::boot_sector::{SECTOR, UP, WRITTEN};
use xen_host::quote;
use xenopsd::api::{Action, ConsoleProtocol, Int, PowerState, VbdMode, VmSetVcpus};
use xenopsd::edge::ImageFormat;

const DISK: &str = "/root/sector.img";

/// Longest wait for what a guest says.
const LIMIT: Duration = Duration::from_secs(120);

/// A guest that starts a boot sector from a disk of its own.
fn sector_guest(dom0: &Dom0, name: &str) -> Guest {
    dom0.make_sector_disk(DISK, "from the disk");
    Guest::hvm(name).disk("xvda", DISK, VbdMode::ReadWrite)
}

fn start(dom0: &Dom0, guest: &Guest) {
    dom0.start_paused(guest).expect("starts");
    dom0.listen_to_serial(guest);
    dom0.unpause(guest).expect("runs");
    dom0.serial_said(guest, UP);
}

#[test]
fn an_hvm_guest_starts_from_its_disk_reads_and_writes_it_reboots_and_switches_off() {
    let dom0 = Dom0::start();
    let guest = sector_guest(&dom0, "hvm").with(|vm| vm.on_reboot = vec![Action::Start]);
    dom0.add(&guest);
    let before = dom0.snapshot();
    start(&dom0, &guest);
    let first = dom0.domid(&guest);
    dom0.type_on_serial(&guest, "d");
    dom0.serial_said(&guest, "from the disk");
    dom0.type_on_serial(&guest, "w");
    dom0.serial_said(&guest, WRITTEN);

    // By itself: a domain of its own again, whose disk is as the first one left it.
    dom0.type_on_serial(&guest, "r");
    dom0.wait_until(&guest, "in another domain", |state| {
        // It has none for a moment.
        state.domids.last().is_some_and(|domid| *domid != first)
    });
    // After the reboot, in which that domain is not complete yet.
    dom0.pause(&guest).expect("pauses");
    dom0.listen_to_serial(&guest);
    dom0.unpause(&guest).expect("goes on");
    dom0.type_on_serial(&guest, "o");
    dom0.wait_for_power(&guest, PowerState::Halted);
    before.must_be_left(&dom0);
    let copy = format!("cmp -n {SECTOR} -i 0:{SECTOR} {DISK} {DISK} && echo a copy of the first");
    assert_eq!(dom0.run(&copy).text().trim(), "a copy of the first");
}

/// What a VNC server says first on this port of dom0's, and the ways to authenticate that it offers then: one, without.
fn greeting(dom0: &Dom0, port: Int) -> String {
    let hello = "exec 3<>/dev/tcp/127.0.0.1/PORT; head -c 12 <&3; printf 'RFB 003.008\\n' >&3; head -c 2 <&3 | od -An -tx1";
    dom0.sh(&hello.replace("PORT", &port.to_string()))
}

#[test]
fn the_screen_is_on_localhost_only_and_survives_the_daemon() {
    let dom0 = Dom0::start();
    let guest = sector_guest(&dom0, "screen").machine(|hvm| hvm.vnc_ip = Some("127.0.0.1".to_owned()));
    // Its disk is an image that is served, to the device model and the backend by one process, whose socket nobody sees.
    dom0.sh(&format!("qemu-img convert -f raw -O qcow2 {DISK} {DISK}.qcow2; mv {DISK}.qcow2 {DISK}"));
    let guest = guest.image(ImageFormat::Qcow2, &[]);
    dom0.add(&guest);
    let listeners = |dom0: &Dom0| dom0.sh("ss -Hltun | awk '{print $5}'");
    let before = listeners(&dom0);
    start(&dom0, &guest);
    let port = |dom0: &Dom0| {
        let consoles = dom0.state(&guest).consoles;
        let screen = consoles.iter().find(|console| console.protocol == ConsoleProtocol::Rfb);
        screen.unwrap_or_else(|| panic!("no screen: {consoles:?}")).port
    };
    let first = port(&dom0);
    assert_eq!(greeting(&dom0, first), "RFB 003.008\n 01 01\n");
    let picture = dom0.screenshot(&guest);
    // A VGA card's text mode: 80 columns of 9 pixels, 25 lines of 16.
    assert_eq!((picture.width, picture.height), (720, 400));
    assert!(picture.colours() > 1, "nothing is shown");
    let domid = dom0.domid(&guest);
    assert_eq!(dom0.read(&format!("/local/domain/{domid}/console/vnc-port")), Some(first.to_string()));
    let now = listeners(&dom0);
    let new: Vec<_> = now.lines().filter(|listener| !before.lines().any(|line| line == *listener)).collect();
    // The screen, and the text of the serial port.
    let text = dom0.read(&format!("/local/domain/{domid}/console/tc-port")).expect("a port");
    let expected = [format!("127.0.0.1:{first}"), format!("127.0.0.1:{text}")];
    assert!(new.len() == 2 && expected.iter().all(|one| new.contains(&one.as_str())), "{new:?}");
    dom0.stop_daemon("KILL");
    dom0.start_daemon("");
    dom0.wait_until(&guest, "seen with its screen", |state| {
        state.consoles.iter().any(|console| console.protocol == ConsoleProtocol::Rfb)
    });
    assert_eq!(port(&dom0), first);
    assert_eq!(greeting(&dom0, first), "RFB 003.008\n 01 01\n");
    dom0.type_on_serial(&guest, "d");
    dom0.serial_said(&guest, "from the disk");
    has_a_history(&dom0, &guest);

    assert_eq!(dom0.sh("pgrep -fc '^disk-server'").trim(), "1");

    // Without its device model it is as one that has crashed.
    let pid = dom0.read(&format!("/local/domain/{domid}/image/device-model-pid")).expect("a process");
    dom0.sh(&format!("kill -9 {pid}"));
    dom0.wait_for_power(&guest, PowerState::Halted);
    let refused = dom0.run(&format!("exec 3<>/dev/tcp/127.0.0.1/{first}"));
    assert!(!refused.success(), "somebody still listens");
}

/// Who attaches later sees what the guest said on its serial port before, and first; its terminal server is jailed as any.
fn has_a_history(dom0: &Dom0, guest: &Guest) {
    let log = dom0.run(&format!("xenops console {} --log", guest.name())).text();
    assert!(log.contains(UP) && log.contains("from the disk"), "{log}");
    let session = format!("setsid xenops console {} </dev/null >/root/session 2>&1 & echo $!", guest.name());
    let pid = dom0.sh(&session);
    dom0.host.wait_for_text("/root/session", "from the disk", LIMIT).expect("the history");
    dom0.type_on_serial(guest, "w");
    dom0.host.wait_for_text("/root/session", WRITTEN, LIMIT).expect("what comes after it");
    dom0.sh(&format!("kill {pid}"));
    let seen = dom0.sh("cat /root/session");
    assert!(
        seen.find(UP) < seen.find("from the disk") && seen.find("from the disk") < seen.find(WRITTEN),
        "{seen}"
    );
    let domid = dom0.domid(guest);
    let process = dom0.read(&format!("/local/domain/{domid}/vncterm-pid")).expect("a process");
    let view = dom0.look_at(process.parse().expect("a number"));
    view.must_be_jailed(131_072 + u32::try_from(domid).expect("a small number"));
}

#[test]
fn a_guest_starts_from_a_cd_when_the_order_says_so() {
    let dom0 = Dom0::start();
    dom0.make_sector_cd("/root/cd.iso");
    // What is on the disk is no boot sector.
    dom0.sh("truncate -s 1M /root/empty.img");
    let guest = Guest::hvm("installer")
        .machine(|hvm| hvm.boot_order = "dc".to_owned())
        .disk("xvda", "/root/empty.img", VbdMode::ReadWrite)
        .cd("xvdc", "/root/cd.iso")
        .vif("xenbr0");
    dom0.add(&guest);
    let before = dom0.snapshot();
    start(&dom0, &guest);
    let domid = dom0.domid(&guest);
    let ports = dom0.sh("ls /sys/class/net/xenbr0/brif");
    assert!(ports.lines().any(|port| port == format!("tap{domid}.0")), "{ports}");
    dom0.type_on_serial(&guest, "o");
    dom0.wait_for_power(&guest, PowerState::Halted);
    before.must_be_left(&dom0);
}

#[test]
fn a_running_guest_is_given_a_vcpu_by_its_device_model() {
    let dom0 = Dom0::start();
    let guest = sector_guest(&dom0, "vcpus").with(|vm| (vm.vcpu_max, vm.vcpus) = (3, 1));
    dom0.add(&guest);
    start(&dom0, &guest);
    let domid = dom0.domid(&guest);
    let set = |vcpus| {
        let set = VmSetVcpus { debug_info: "test".to_owned(), id: guest.id().to_owned(), vcpus };
        dom0.task(&set).unwrap_or_else(|error| panic!("{vcpus} vcpus: {error}"));
    };
    // Again, with those that are there already; and fewer, which the device model has no part in.
    for vcpus in [2, 2, 3, 1, 3] {
        set(vcpus);
        let wanted = |n| if n < vcpus { "online" } else { "offline" };
        for n in 0..3 {
            let node = dom0.read(&format!("/local/domain/{domid}/cpu/{n}/availability"));
            assert_eq!(node.as_deref(), Some(wanted(n)), "vcpu {n} of {vcpus}");
        }
    }
    dom0.type_on_serial(&guest, "d");
    dom0.serial_said(&guest, "from the disk");
    dom0.hard_shutdown(&guest).expect("goes down");
}

/// The guest of [`the_device_model_gets_what_xl_gives_it`], as `xl` is told of it.
const FOR_XL: &str = r#"
name = "alike"
type = "hvm"
memory = 128
vcpus = 1
maxvcpus = 2
boot = "cdn"
serial = "pty"
vga = "cirrus"
videoram = 8
vnc = 1
usb = 1
usbdevice = "tablet"
disk = ["format=raw,vdev=xvda,access=rw,target=/root/sector.img",
        "format=raw,vdev=hdc,access=ro,devtype=cdrom,target=/root/cd.img"]
vif = ["bridge=xenbr0,mac=00:16:3e:00:00:71"]
"#;

/// What `xl` gives its device model and the daemon does not: paths, a second monitor, a server for viewers, and other ways
/// to say the same.
const ONLY_XLS: [&str; 12] = [
    "-xen-domid 1",
    "-chardev socket,id=libxl-cmd,path=/var/run/xen/qmp-libxl-1,server=on,wait=off",
    "-mon chardev=libxl-cmd,mode=control",
    "-chardev socket,id=libxenstat-cmd,path=/var/run/xen/qmp-libxenstat-1,server=on,wait=off",
    "-mon chardev=libxenstat-cmd,mode=control",
    "-name alike",
    "-vnc 127.0.0.1:0,to=99",
    "-serial pty",
    "-usbdevice tablet",
    "-netdev type=tap,id=net0,ifname=vif1.0-emu,br=xenbr0,script=no,downscript=no",
    "-drive file=/root/sector.img,if=ide,index=0,media=disk,format=raw,cache=writeback",
    "-drive if=none,readonly=on,id=ide-5632,file=/root/cd.img,format=raw",
];

/// What the daemon gives instead: descriptors, no server, restriction, and a machine that waits.
const ONLY_OURS: [&str; 20] = [
    "-L /usr/share/qemu",
    "-L /usr/share/seabios",
    "-L /usr/lib/ipxe/qemu",
    "-xen-domid 2",
    "-xen-domid-restrict",
    "-S",
    "-chardev socket,id=monitor,fd=3,server=on,wait=off",
    "-mon chardev=monitor,mode=control",
    "-name guest=alike,process=qemu-dm-2",
    "-vnc none",
    "-add-fd fd=7,set=6",
    "-chardev serial,id=serial0,path=/dev/fdset/6",
    "-serial chardev:serial0",
    "-device usb-tablet",
    "-netdev tap,id=net0,fd=6",
    "-add-fd fd=4,set=0",
    "-drive if=none,readonly=off,id=ide-51712,driver=raw,file.driver=host_device,file.filename=/dev/fdset/0,\
     file.auto-read-only=off,cache=writeback",
    "-device ide-hd,id=ide-51712,drive=ide-51712,bus=ide.0,unit=0",
    "-add-fd fd=5,set=2",
    "-drive if=none,readonly=on,id=ide-5632,driver=raw,file.driver=host_device,file.filename=/dev/fdset/2,\
     file.auto-read-only=off",
];

/// The drive of a disk on AHCI as the daemon gives it, and the disk as both do.
const OUR_AHCI: &str = "if=none,readonly=off,id=ahcidisk-0,driver=raw,file.driver=host_device,file.filename=/dev/fdset/0,\
     file.auto-read-only=off,cache=writeback";
const AHCI_DISK: &str = "-device ide-hd,bus=ahci0.0,unit=0,drive=ahcidisk-0";

/// The command line of a domain's device model, without the program: each option with its value.
fn options(dom0: &Dom0, domid: &str) -> Vec<String> {
    let line = dom0.sh(&format!(
        "tr '\\0' '\\n' </proc/$(xenstore-read /local/domain/{domid}/image/device-model-pid)/cmdline"
    ));
    let mut options: Vec<String> = Vec::new();
    for word in line.lines().skip(1) {
        match options.last_mut() {
            Some(option) if !word.starts_with('-') => *option = format!("{option} {word}"),
            _ => options.push(word.to_owned()),
        }
    }
    options
}

/// The options that `xl` gives its device model for a configuration and those that the daemon gives its own.
fn both(dom0: &Dom0, config: &str) -> [Vec<String>; 2] {
    dom0.sh(&format!("printf %s {} >/root/alike.cfg; xl create -p /root/alike.cfg", quote(config)));
    let theirs = options(dom0, dom0.sh("xl domid alike").trim());
    dom0.sh("xl destroy alike");
    dom0.sh("xenops create /root/alike.cfg && xenops start --paused alike");
    let ours = options(dom0, dom0.sh("xl domid alike").trim());
    dom0.sh("xenops destroy alike");
    [theirs, ours]
}

#[test]
fn the_device_model_gets_what_xl_gives_it() {
    let dom0 = Dom0::start();
    dom0.make_sector_disk(DISK, "a disk");
    dom0.make_sector_disk("/root/cd.img", "a CD");
    let [theirs, ours] = both(&dom0, FOR_XL);
    let without = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|option| !those.contains(option)).cloned().collect()
    };
    assert_eq!(without(&theirs, &ours), ONLY_XLS);
    assert_eq!(without(&ours, &theirs), ONLY_OURS);

    let on_ahci = both(&dom0, &format!("{FOR_XL}hdtype = \"ahci\"\n"));
    let of_ahci = on_ahci
        .map(|options| options.into_iter().filter(|option| option.contains("ahci")).collect::<Vec<_>>());
    let [theirs, ours] = ["file=/root/sector.img,if=none,id=ahcidisk-0,format=raw,cache=writeback", OUR_AHCI]
        .map(|drive| ["-device ahci,id=ahci0", &format!("-drive {drive}"), AHCI_DISK].map(str::to_owned));
    assert_eq!(of_ahci, [theirs, ours]);
}
