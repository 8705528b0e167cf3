//! A device model's jail on real Xen: what the kernel and Xen's own checker say of it, what a hostile program in QEMU's
//! place achieves, and what is left of one that does not start.

use std::thread;

use suite::{Dom0, Guest, LIMIT};
use xen_host::programs::DAEMON_LOG;
use xen_host::target;
use xenopsd::api::{BuilderInfo, Error, Int, PowerState, VbdMode, VbdType};

const DISK: &str = "/root/sector.img";
const CDROM: &str = "/root/cdrom.img";

/// The first of the domains' users, as the daemon's settings have it by default.
const UID_BASE: u32 = 0x2000_0000;

/// Bytes that a device model can write to its log, and to any other file.
const LOG_LIMIT: &str = "262144";

/// Bytes of memory that it can have beside its guest's, page cache included.
const MEMORY_LIMIT: u32 = 512 << 20;

/// Xen's checker of descriptors, of Debian's package `xen-utils-4.17`.
const CHECKER: &str = "/usr/lib/xen-4.17/bin/depriv-fd-checker";

/// Our programs of `tests/hostile` in dom0.
const HOSTILE: &str = "/root/hostile-dm";
const DEPRIV_CHECK: &str = "/root/depriv-check";

/// What QEMU may have open, beside its own disks, log and terminal.
const OPEN: [&str; 10] = [
    "/dev/null",
    "/dev/net/tun",
    "/dev/ptmx",
    "/dev/xen/evtchn",
    "/dev/xen/privcmd",
    "anon_inode:[eventfd]",
    "anon_inode:[eventpoll]",
    "anon_inode:[signalfd]",
    "pipe",
    "socket",
];

/// What the hostile program can do while it starts. Were it refused then, its refusal later would show nothing.
const BEFORE: [&str; 15] = [
    "map another's memory: allowed",
    "map another's grant table: allowed",
    "device model operation on own: allowed",
    "device model operation on another: allowed",
    "event channel of own: allowed",
    "event channel of another: allowed",
    "new port for own: allowed",
    "new port for another: allowed",
    "new port for dom0: allowed",
    "hypercall about another: allowed",
    "hypercall about the host: allowed",
    "open /dev/xen/privcmd: allowed",
    "open /dev/xen/xenbus: allowed",
    "open /lib64/ld-linux-x86-64.so.2: allowed",
    "open /etc/passwd: ENOENT",
];

/// What comes of each of its attempts once it is sealed. Allowed is what a device model is for.
const AFTER: [&str; 64] = [
    "map own memory: allowed",
    "map another's memory: EPERM",
    "map another's grant table: EPERM",
    "device model operation on own: allowed",
    "device model operation on another: EPERM",
    "event channel of own: allowed",
    "event channel of another: EACCES",
    "new port for own: EACCES",
    "new port for another: EACCES",
    "new port for dom0: EACCES",
    "virtual interrupt: EACCES",
    "hypercall about another: EPERM",
    "hypercall about the host: EPERM",
    "map dom0's memory: EPERM",
    "shut another down: EPERM",
    "pause another: EPERM",
    "destroy another: EPERM",
    "pause own: EPERM",
    "open /etc/passwd: ENOENT",
    "open /etc/shadow: ENOENT",
    "open /../etc/passwd: ENOENT",
    "open /proc/1/environ: ENOENT",
    "open /proc/self/status: ENOENT",
    "open /dev/mem: ENOENT",
    "open /dev/null: ENOENT",
    "open /dev/loop0: ENOENT",
    "open /dev/xen/privcmd: ENOENT",
    "open /dev/xen/evtchn: ENOENT",
    "open /dev/xen/gntdev: ENOENT",
    "open /dev/xen/xenbus: ENOENT",
    "open /lib64/ld-linux-x86-64.so.2: ENOENT",
    "open /usr/share/qemu/keymaps/de: ENOENT",
    "create /new: EROFS",
    "mkdir /new: EPERM",
    "remove /empty: EROFS",
    "entries of the root: Ok(0)",
    "connect to port 22: EPERM",
    "connect to another machine: EPERM",
    "datagram socket: EPERM",
    "socket pair: EPERM",
    "connect to /run/xenstored/socket: EPERM",
    "connect to /var/lib/xcp/xenopsd: EPERM",
    "connect to /run/dbus/system_bus_socket: EPERM",
    "start a program: EPERM",
    "become a program: EPERM",
    "file in memory to execute: EPERM",
    "trace: EPERM",
    "kill all: EPERM",
    "read a process's memory: EPERM",
    "user root: EPERM",
    "user namespace: EPERM",
    "mount namespace: EPERM",
    "descriptors of its own: EPERM",
    "mount: EPERM",
    "chroot: EPERM",
    "device node: EPERM",
    "directory above: ENOENT",
    "write own disk: allowed",
    "write own read-only disk: EBADF",
    "larger files: EPERM",
    "core dumps: EPERM",
    "much memory: ENOMEM",
    "many descriptors: EMFILE",
    "many threads: EAGAIN",
];

fn model_of(dom0: &Dom0, domid: Int) -> u32 {
    let pid = dom0.read(&format!("/local/domain/{domid}/image/device-model-pid")).expect("a device model");
    pid.parse().expect("a number")
}

fn uid_of(domid: Int) -> u32 {
    UID_BASE + u32::try_from(domid).expect("a small number")
}

fn log_of(guest: &Guest) -> String {
    format!("/var/log/xen/qemu-dm-{}.log", guest.id())
}

/// Programs of `tests/hostile`, which only these tests need in dom0.
fn put(dom0: &Dom0, name: &str, path: &str) {
    let local = target().join("release").join(name);
    let hint = "cargo build --release -p hostile-dm";
    dom0.host.put(&local, path).unwrap_or_else(|error| panic!("{error} ({hint})"));
}

/// A guest with a disk and a CD in its drive.
fn guest_with_disks(dom0: &Dom0, name: &str) -> Guest {
    dom0.make_sector_disk(DISK, "from the disk");
    dom0.sh(&format!("truncate -s 1M {CDROM}"));
    let disks = Guest::hvm(name).disk("xvda", DISK, VbdMode::ReadWrite);
    let mut guest = disks.disk("xvdc", CDROM, VbdMode::ReadOnly);
    guest.vbds[1].ty = VbdType::Cdrom;
    guest
}

/// A dom0 whose daemon takes the hostile program for QEMU.
fn hostile_dom0(flags: &str) -> Dom0 {
    let dom0 = Dom0::on_one_processor();
    put(&dom0, "hostile-dm", HOSTILE);
    restart(&dom0, &format!("--qemu-system-i386 {HOSTILE} {flags}"));
    dom0
}

fn restart(dom0: &Dom0, flags: &str) {
    dom0.stop_daemon("TERM");
    dom0.start_daemon(flags);
}

/// The text of the contract's error for a device model that does not start.
#[track_caller]
fn not_started(outcome: Result<(), Error>, guest: &Guest) -> String {
    match outcome {
        Err(Error::FailedToStartEmulator { id, name, message }) => {
            assert_eq!((id.as_str(), name.as_str()), (guest.id(), "qemu"));
            message
        }
        other => panic!("{}: {other:?}", guest.name()),
    }
}

#[test]
fn a_running_device_model_has_what_it_needs_and_nothing_else() {
    let dom0 = Dom0::on_one_processor();
    put(&dom0, "depriv-check", DEPRIV_CHECK);
    let guest = guest_with_disks(&dom0, "jailed").vif("xenbr0");
    dom0.add(&guest);
    dom0.start_paused(&guest).expect("starts");
    let domid = dom0.domid(&guest);
    let pid = model_of(&dom0, domid);
    let view = dom0.look_at(pid);
    view.must_be_jailed(uid_of(domid));
    let limits = [
        ("Max file size", LOG_LIMIT),
        ("Max data size", "2147483648"),
        ("Max processes", "128"),
        ("Max open files", "256"),
    ];
    for (name, value) in limits {
        assert_eq!(view.limit(name), Some(value), "{name}");
    }
    let group = format!("/xenopsd/domain-{domid}");
    assert_eq!(view.group(), Some(group.as_str()));
    let limits = dom0.sh(&format!("cd /sys/fs/cgroup{group} && cat memory.max pids.max"));
    assert_eq!(limits, format!("{MEMORY_LIMIT}\n128\n"));

    let log = log_of(&guest);
    // One for the kernel's backend, one for the device model.
    let loops = |path| dom0.sh(&format!("losetup -n -O NAME -j {path}"));
    let (disk, cdrom) = (loops(DISK), loops(CDROM));
    let is_of = |loops: &str, target: &str| loops.lines().any(|line| line.trim() == target);
    let terminal = dom0.read(&format!("/local/domain/{domid}/serial/0/tty")).expect("a serial port");
    let open = view.descriptors();
    for descriptor in &open {
        let target = descriptor.target.as_str();
        let own = [&log, &terminal].contains(&&descriptor.target) || is_of(&disk, target);
        let own = own || is_of(&cdrom, target);
        assert!(own || OPEN.contains(&target), "{descriptor:?} in {open:#?}");
        assert!(!is_of(&cdrom, target) || descriptor.read_only, "{descriptor:?}");
    }
    for target in [log.as_str(), "/dev/xen/privcmd", "/dev/xen/evtchn", "socket"] {
        assert!(open.iter().any(|descriptor| descriptor.target == target), "no {target} in {open:#?}");
    }
    for loops in [&disk, &cdrom] {
        assert!(open.iter().any(|descriptor| is_of(loops, &descriptor.target)), "{loops:?} in {open:#?}");
    }
    for word in view.arguments() {
        assert!(!word.contains("/root") && !word.contains("/dev/loop"), "it knows the path {word}");
    }

    // Each of its descriptors is one that the checker, having done the same with its own, can do nothing with.
    let checked = dom0.sh(&format!("{DEPRIV_CHECK} {pid} {CHECKER}"));
    let of_class =
        |class: &str| checked.lines().filter(|line| line.starts_with(&format!("{class} pass "))).count();
    let xen = open.iter().filter(|descriptor| descriptor.target.starts_with("/dev/xen/")).count();
    assert_eq!(of_class("privcmd") + of_class("evtchn"), xen, "{checked}");
    assert!(!checked.contains("fail"), "{checked}");
}

#[test]
fn a_hostile_program_in_its_place_reaches_nothing_but_its_own_guest() {
    let dom0 = hostile_dom0("");
    let victim = Guest::new("victim").kind(BuilderInfo::Pvh);
    dom0.add(&victim);
    dom0.start_paused(&victim).expect("starts");
    let before = dom0.snapshot();
    let guest = guest_with_disks(&dom0, &format!("attack-{}", dom0.domid(&victim)));
    dom0.add(&guest);
    dom0.start_paused(&guest).expect("what it does before it is sealed is not noticed");
    let attacked = dom0.unpause(&guest).expect_err("its answer is an error when it has tried everything");
    assert!(attacked.to_string().contains("everything was tried"), "{attacked}");

    let log = dom0.sh(&format!("grep -a -v ^xxx {}", log_of(&guest)));
    let phase = |name| log.lines().filter_map(|line| line.strip_prefix(name)).collect::<Vec<_>>();
    let (started, sealed) = (phase("before "), phase("after "));
    for wanted in BEFORE {
        assert!(started.contains(&wanted), "{wanted:?} is not in {started:#?}");
    }
    let surprises: Vec<_> = sealed.iter().filter(|line| !AFTER.contains(line)).collect();
    assert!(surprises.is_empty(), "{surprises:#?}");
    assert_eq!(sealed.len(), AFTER.len(), "{sealed:#?}");
    let size = dom0.sh(&format!("stat -c %s {}", log_of(&guest)));
    assert_eq!(size.trim(), LOG_LIMIT);

    dom0.hard_shutdown(&guest).expect("ends");
    dom0.remove(&guest).expect("halted");
    before.must_be_left(&dom0);
    assert_eq!(dom0.state(&victim).power_state, PowerState::Paused);
    dom0.unpause(&victim).expect("runs");
    dom0.said(&victim, "GUEST: ready");
}

#[test]
fn one_that_takes_too_much_memory_is_killed_and_nothing_else_is() {
    let dom0 = hostile_dom0("");
    let guest = Guest::hvm("eats");
    dom0.add(&guest);
    let before = dom0.snapshot();
    dom0.start_paused(&guest).expect("starts");
    let (daemon, pid) = (dom0.daemon(), model_of(&dom0, dom0.domid(&guest)));
    dom0.unpause(&guest).expect_err("it is killed");
    dom0.wait_for_power(&guest, PowerState::Halted);
    let killed = dom0.sh("dmesg | grep 'Memory cgroup out of memory'");
    assert_eq!(killed.lines().count(), 1, "{killed}");
    assert!(killed.contains(&format!("Killed process {pid} ")), "{killed}");
    assert_eq!(dom0.daemon(), daemon);
    before.must_be_left(&dom0);
}

#[test]
fn a_device_model_that_keeps_what_it_must_not_is_not_let_run() {
    let dom0 = hostile_dom0("");
    let other = Guest::new("other").kind(BuilderInfo::Pvh);
    dom0.add(&other);
    dom0.start_paused(&other).expect("starts");
    let channels = format!("keeps-channels-{}", dom0.domid(&other));
    let before = dom0.snapshot();
    for (name, text) in [
        ("keeps-xenbus", "has not closed /dev/xen/xenbus"),
        ("keeps-gntdev", "has not closed /dev/xen/gntdev"),
        ("keeps-root", "has not closed /, a file or directory of this host"),
        ("keeps-library", "a file or directory of this host"),
        (channels.as_str(), "cannot restrict /dev/xen/evtchn"),
        ("runs", "not waiting for its guest"),
    ] {
        let guest = Guest::hvm(name);
        dom0.add(&guest);
        let message = not_started(dom0.start_paused(&guest), &guest);
        assert!(message.contains(text), "{name}: {message}");
        dom0.remove(&guest).expect("halted");
        before.must_be_left(&dom0);
    }
    let good = Guest::hvm("behaves");
    dom0.add(&good);
    dom0.start_paused(&good).expect("nothing is wrong with this one");
    dom0.hard_shutdown(&good).expect("ends");
    dom0.remove(&good).expect("halted");
    before.must_be_left(&dom0);
}

#[test]
fn a_device_model_that_does_not_start_or_is_killed_leaves_nothing() {
    let dom0 = hostile_dom0("--qemu-dm-ready-timeout 3");
    let before = dom0.snapshot();
    let fails = |name: &str, texts: &[&str]| {
        let guest = Guest::hvm(name);
        dom0.add(&guest);
        let message = not_started(dom0.start_paused(&guest), &guest);
        assert!(texts.iter().all(|text| message.contains(text)), "{name}: {message}");
        dom0.remove(&guest).expect("halted");
        before.must_be_left(&dom0);
    };
    fails("exits", &["these are my last words", "exit status: 3"]);
    fails("silent", &["no answer to greeting within 3 s"]);

    restart(&dom0, &format!("--qemu-system-i386 {HOSTILE}"));
    let silent = Guest::hvm("silent");
    dom0.add(&silent);
    thread::scope(|scope| {
        let starting = scope.spawn(|| dom0.start_paused(&silent));
        let greeted = dom0.host.wait_for_text(&log_of(&silent), "silent from now on", LIMIT);
        greeted.unwrap_or_else(|error| panic!("{error}"));
        dom0.sh("kill -9 $(cat /sys/fs/cgroup/xenopsd/domain-*/cgroup.procs)");
        let message = not_started(starting.join().expect("no panic"), &silent);
        assert!(message.contains("ended while it started: signal: 9"), "{message}");
    });
    dom0.remove(&silent).expect("halted");
    before.must_be_left(&dom0);

    // Killed before its guest runs, and at the moment at which it is to end.
    let good = Guest::hvm("behaves");
    dom0.add(&good);
    let defined = dom0.snapshot();
    dom0.start_paused(&good).expect("starts");
    dom0.sh(&format!("kill -9 {}", model_of(&dom0, dom0.domid(&good))));
    dom0.wait_for_power(&good, PowerState::Halted);
    defined.must_be_left(&dom0);
    dom0.start_paused(&good).expect("starts");
    let pid = model_of(&dom0, dom0.domid(&good));
    dom0.sh(&format!("kill -STOP {pid}; (kill -9 {pid}) & xenops shutdown --hard behaves; wait"));
    dom0.wait_for_power(&good, PowerState::Halted);
    dom0.remove(&good).expect("halted");
    before.must_be_left(&dom0);

    for (program, make, text) in [
        ("/nonexistent", "true", "qemu-system-xen"),
        ("/etc/passwd", "true", "is not a program"),
        ("/root/garbage", "echo garbage >/root/garbage; chmod 755 /root/garbage", "Exec format error"),
    ] {
        dom0.sh(make);
        restart(&dom0, &format!("--qemu-system-i386 {program}"));
        fails("behaves", &[text]);
    }

    // A control group that cannot be made, and one that is done without: the log says of which VM.
    dom0.sh("echo 0 >/sys/fs/cgroup/xenopsd/cgroup.max.descendants");
    restart(&dom0, &format!("--qemu-system-i386 {HOSTILE}"));
    fails("behaves", &["control group domain-", "`allow-unjailed = cgroup`"]);
    restart(&dom0, &format!("--qemu-system-i386 {HOSTILE} --allow-unjailed cgroup"));
    dom0.add(&good);
    dom0.start_paused(&good).expect("starts");
    let view = dom0.look_at(model_of(&dom0, dom0.domid(&good)));
    assert!(view.group().is_none_or(|group| !group.contains("domain-")), "{:?}", view.group());
    let said = dom0.sh(&format!("grep 'without the control group' {DAEMON_LOG}"));
    assert!(said.lines().count() == 1 && said.contains(good.id()), "{said}");
    dom0.hard_shutdown(&good).expect("ends");
    dom0.remove(&good).expect("halted");
    dom0.sh("echo max >/sys/fs/cgroup/xenopsd/cgroup.max.descendants");
    before.must_be_left(&dom0);
}
