//! HVM guests on real Xen: firmware, an emulated machine by a device model in a jail, and its screen.

use std::time::Duration;

use suite::{Dom0, Guest};
use xen_host::boot_sector::{SECTOR, UP, WRITTEN};
use xen_host::quote;
use xenopsd::api::{Action, ConsoleProtocol, Int, PowerState, VbdMode, VmSetVcpus};
use xenopsd::edge::ImageFormat;

const DISK: &str = "/root/sector.img";

/// Vcpus that a guest may have.
const VCPUS: Int = 3;

/// Where a sector has the mark by which firmware knows that it may be started.
const MARK: usize = SECTOR - 2;

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

/// The disk is none to boot from any more: it lacks the mark. What the device model has written is in the file before.
fn unmark_disk(dom0: &Dom0) {
    dom0.sh(&format!("sync; printf '\\0\\0' | dd of={DISK} bs=1 seek={MARK} conv=notrunc status=none"));
}

#[test]
fn an_hvm_guest_reads_and_writes_its_disk_reboots_starts_from_a_cd_as_the_order_says_and_switches_off() {
    let dom0 = Dom0::on_one_processor();
    dom0.make_sector_cd("/root/cd.iso");
    let guest = sector_guest(&dom0, "hvm")
        .machine(|hvm| hvm.boot_order = "cd".to_owned())
        .with(|vm| vm.on_reboot = vec![Action::Start])
        .cd("xvdc", "/root/cd.iso");
    dom0.sh(&format!("cp {DISK} /root/first.img"));
    dom0.add(&guest);
    let before = dom0.snapshot();
    start(&dom0, &guest);
    let first = dom0.domid(&guest);
    dom0.type_on_serial(&guest, "d");
    dom0.serial_said(&guest, "from the disk");
    dom0.type_on_serial(&guest, "w");
    dom0.serial_said(&guest, WRITTEN);

    // By itself: a domain of its own again, which finds nothing to start on the disk and goes on to the CD.
    unmark_disk(&dom0);
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
    let copy = format!("cmp -n {SECTOR} -i 0:{SECTOR} /root/first.img {DISK} && echo a copy of the first");
    assert_eq!(dom0.run(&copy).text().trim(), "a copy of the first");
    // Whatever was written later: it was the CD.
    assert_eq!(dom0.sh(&format!("od -An -tx1 -j {MARK} -N 2 {DISK}")).trim(), "00 00");
}

/// What a VNC server says first on this port of dom0's, and the ways to authenticate that it offers then: one, without.
fn greeting(dom0: &Dom0, port: Int) -> String {
    let hello = "exec 3<>/dev/tcp/127.0.0.1/PORT; head -c 12 <&3; printf 'RFB 003.008\\n' >&3; head -c 2 <&3 | od -An -tx1";
    dom0.sh(&hello.replace("PORT", &port.to_string()))
}

#[test]
fn the_screen_is_on_localhost_only_and_survives_the_daemon_which_gives_the_guest_vcpus_then() {
    let dom0 = Dom0::on_one_processor();
    let guest = sector_guest(&dom0, "screen")
        .with(|vm| (vm.vcpu_max, vm.vcpus) = (VCPUS, 1))
        .machine(|hvm| hvm.vnc_ip = Some("127.0.0.1".to_owned()));
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
    is_given_vcpus(&dom0, &guest);
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

/// Its device model gives it vcpus while it runs. Those that are there already are no error; fewer are none of its business. The
/// guest goes on as before.
fn is_given_vcpus(dom0: &Dom0, guest: &Guest) {
    let domid = dom0.domid(guest);
    let nodes: Vec<_> = (0..VCPUS).map(|n| format!("/local/domain/{domid}/cpu/{n}/availability")).collect();
    for vcpus in [2, 2, 3, 1, 3] {
        let set = VmSetVcpus { debug_info: "test".to_owned(), id: guest.id().to_owned(), vcpus };
        dom0.task(&set).unwrap_or_else(|error| panic!("{vcpus} vcpus: {error}"));
        let wanted: Vec<_> = (0..VCPUS).map(|n| if n < vcpus { "online" } else { "offline" }).collect();
        let seen = dom0.sh(&format!("xenstore-read {}", nodes.join(" ")));
        assert_eq!(seen.lines().collect::<Vec<_>>(), wanted, "{vcpus} vcpus");
    }
    dom0.type_on_serial(guest, "d");
    dom0.serial_said(guest, "from the disk");
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
    "-xen-domid 2",
    "-chardev socket,id=libxl-cmd,path=/var/run/xen/qmp-libxl-2,server=on,wait=off",
    "-mon chardev=libxl-cmd,mode=control",
    "-chardev socket,id=libxenstat-cmd,path=/var/run/xen/qmp-libxenstat-2,server=on,wait=off",
    "-mon chardev=libxenstat-cmd,mode=control",
    "-name alike",
    "-vnc 127.0.0.1:0,to=99",
    "-serial pty",
    "-usbdevice tablet",
    "-netdev type=tap,id=net0,ifname=vif2.0-emu,br=xenbr0,script=no,downscript=no",
    "-drive file=/root/sector.img,if=ide,index=0,media=disk,format=raw,cache=writeback",
    "-drive if=none,readonly=on,id=ide-5632,file=/root/cd.img,format=raw",
];

/// What the daemon gives instead: descriptors, no server, restriction, and a machine that waits.
const ONLY_OURS: [&str; 20] = [
    "-L /usr/share/qemu",
    "-L /usr/share/seabios",
    "-L /usr/lib/ipxe/qemu",
    "-xen-domid 1",
    "-xen-domid-restrict",
    "-S",
    "-chardev socket,id=monitor,fd=3,server=on,wait=off",
    "-mon chardev=monitor,mode=control",
    "-name guest=alike,process=qemu-dm-1",
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

/// A guest with a disk on AHCI, as `xl` is told of it.
const ON_AHCI: &str = r#"
name = "second"
type = "hvm"
memory = 128
hdtype = "ahci"
disk = ["format=raw,vdev=xvda,access=rw,target=/root/ahci.img"]
"#;

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

/// The options that the daemon gives its device model for a configuration and those that `xl` gives its own, whose guest stays:
/// `xl` takes ten seconds to end one.
fn both(dom0: &Dom0, name: &str, config: &str) -> [Vec<String>; 2] {
    dom0.sh(&format!(
        "printf %s {} >/root/{name}; xenops create /root/{name} && xenops start --paused {name}",
        quote(config)
    ));
    let ours = options(dom0, dom0.sh(&format!("xl domid {name}")).trim());
    dom0.sh(&format!("xenops destroy {name}; xl create -p /root/{name}"));
    let theirs = options(dom0, dom0.sh(&format!("xl domid {name}")).trim());
    [ours, theirs]
}

#[test]
fn the_device_model_gets_what_xl_gives_it() {
    let dom0 = Dom0::on_one_processor();
    dom0.make_sector_disk(DISK, "a disk");
    dom0.make_sector_disk("/root/cd.img", "a CD");
    dom0.make_sector_disk("/root/ahci.img", "another disk");
    let [ours, theirs] = both(&dom0, "alike", FOR_XL);
    let without = |these: &[String], those: &[String]| -> Vec<String> {
        these.iter().filter(|option| !those.contains(option)).cloned().collect()
    };
    assert_eq!(without(&theirs, &ours), ONLY_XLS);
    assert_eq!(without(&ours, &theirs), ONLY_OURS);

    let of_ahci = both(&dom0, "second", ON_AHCI)
        .map(|options| options.into_iter().filter(|option| option.contains("ahci")).collect::<Vec<_>>());
    let expected = [OUR_AHCI, "file=/root/ahci.img,if=none,id=ahcidisk-0,format=raw,cache=writeback"]
        .map(|drive| ["-device ahci,id=ahci0", &format!("-drive {drive}"), AHCI_DISK].map(str::to_owned));
    assert_eq!(of_ahci, expected);
}
