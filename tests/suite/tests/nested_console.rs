//! The terminal server of a real PV guest on real Xen: found through the contract, jailed, reachable from dom0 only, and
//! never another guest's.

use suite::{Dom0, Guest};
use xenopsd::api::{
    BuilderInfo, ConsoleProtocol, Disk, HostGetConsoleData, Int, VmResume, VmState, VmSuspend,
};
use xenopsd::rpc::Codec;

const IMAGE: &str = "/root/image";

fn with_terminal(name: &str) -> Guest {
    text_guest(Guest::new(name).cmdline("tick"))
}

fn text_guest(mut guest: Guest) -> Guest {
    let BuilderInfo::Pv(pv) = &mut guest.vm.ty else { panic!("a PV guest") };
    pv.vncterm = true;
    guest
}

/// The ports that clients are told of: VNC's, and the text's.
fn ports(state: &VmState) -> Option<(Int, Int)> {
    let port =
        |protocol| state.consoles.iter().find(|c| c.protocol == protocol && c.port > 0).map(|c| c.port);
    port(ConsoleProtocol::Rfb).zip(port(ConsoleProtocol::Vt100))
}

/// Reads the text at a port until `text` comes.
fn reads(dom0: &Dom0, port: Int, text: &str) {
    dom0.sh(&format!(
        "timeout 120 bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}; grep -a -q -m1 \"{text}\" <&3'"
    ));
}

/// What a viewer is greeted with.
fn greeting(dom0: &Dom0, port: Int) -> String {
    dom0.sh(&format!("timeout 60 bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}; head -c 12 <&3'"))
}

fn pid(dom0: &Dom0, guest: &Guest) -> String {
    dom0.read(&format!("/local/domain/{}/vncterm-pid", dom0.domid(guest))).expect("a process")
}

/// Neither the kernel's table nor a connection to any other address of dom0 finds somebody at a port.
fn only_from_this_host(dom0: &Dom0, ports: [Int; 2]) {
    let addresses = dom0.sh("ip -o -4 addr show scope global | awk '{ split($4, a, \"/\"); print a[1] }'");
    assert!(addresses.lines().next().is_some(), "dom0 has no other address to try");
    for port in ports {
        let hex = format!("{port:04X}");
        // State 0A is LISTEN; the address is in the host's byte order. `/proc/net/tcp` of Linux.
        let listening = dom0
            .sh(&format!("awk '$4 == \"0A\" && $2 ~ /:{hex}$/ {{ print $2 }}' /proc/net/tcp /proc/net/tcp6"));
        assert_eq!(listening.trim(), format!("0100007F:{hex}"));
        for address in addresses.lines() {
            let connects = format!("timeout 5 bash -c 'exec 3<>/dev/tcp/{address}/{port}' 2>/dev/null");
            assert!(!dom0.run(&connects).success(), "port {port} is reached at {address}");
        }
    }
}

#[test]
fn a_guest_s_terminal_is_jailed_followed_and_kept() {
    let dom0 = Dom0::start();
    let guest = with_terminal("screen");
    dom0.boot(&guest);
    let (vnc, text) = ports(&dom0.state(&guest)).expect("both consoles");
    let home = format!("/local/domain/{}", dom0.domid(&guest));
    assert_eq!(dom0.read(&format!("{home}/console/vnc-port")), Some(vnc.to_string()));
    assert_eq!(dom0.read(&format!("{home}/console/tc-port")), Some(text.to_string()));
    assert_eq!(greeting(&dom0, vnc), "RFB 003.008\n");
    reads(&dom0, text, "GUEST: tick");

    // Where it is, and a picture of it: 80x24 cells of 8x16 pixels.
    let xenops = |words: &str| dom0.run(&format!("xenops {words}"));
    assert_eq!(xenops("vnc screen").text().trim(), format!("127.0.0.1:{vnc}"));
    let screen = dom0.screenshot(&guest);
    assert_eq!((screen.width, screen.height), (640, 384));
    assert!(screen.colours() > 1, "there is text on it");

    let log = xenops("console screen --log");
    assert!(log.text().contains("Linux version") && log.text().contains("GUEST: tick"), "{}", log.text());

    // Xen's own ring: what it said when it started is the beginning of it, and reading takes nothing from it.
    let ring = || dom0.call(&HostGetConsoleData { debug_info: "test".to_owned() }).expect("the ring");
    let first = ring();
    assert!(first.contains("Xen version 4.") && ring().starts_with(&first), "{first}");

    // The same over the daemon's own socket, as a management layer's proxy has it.
    let (_, picture) = dom0.view(&guest);
    assert!((picture.width(), picture.height()) == (640, 384) && picture.colours() > 1);
    let nobody = format!("CONNECT /console?ref={} HTTP/1.1\r\n\r\n", "0".repeat(36));
    assert_eq!(dom0.exchange(Codec::Xml, nobody.as_bytes()).expect("an answer").status, 404);

    // Its own user, nothing in its root, and nothing but the loopback address.
    let process = pid(&dom0, &guest);
    let view = dom0.look_at(process.parse().expect("a number"));
    view.must_be_jailed(131_072 + u32::try_from(dom0.domid(&guest)).expect("a small number"));
    let open = view.descriptors();
    let devices = open.iter().filter(|descriptor| descriptor.target.starts_with("/dev/"));
    let strange: Vec<_> =
        devices.filter(|d| d.target != "/dev/null" && !d.target.starts_with("/dev/pts/")).collect();
    assert!(strange.is_empty(), "{strange:?} in {open:#?}");
    only_from_this_host(&dom0, [vnc, text]);

    // Another comes when it is killed, on the same ports.
    dom0.sh(&format!("kill -KILL {process}"));
    dom0.wait_until(&guest, "it has another terminal", |state| {
        ports(state).is_some() && dom0.read(&format!("{home}/vncterm-pid")).is_some_and(|now| now != process)
    });
    assert_eq!(ports(&dom0.state(&guest)), Some((vnc, text)));
    reads(&dom0, text, "GUEST: tick");

    // The next daemon takes it over.
    let process = pid(&dom0, &guest);
    dom0.stop_daemon("KILL");
    dom0.start_daemon("");
    dom0.wait_until(&guest, "its terminal is found", |state| ports(state).is_some());
    assert_eq!(pid(&dom0, &guest), process);
    reads(&dom0, text, "GUEST: tick");

    // Its screen comes back after a suspend, and nothing is left after a shutdown.
    let image = || Disk::Local(IMAGE.to_owned());
    let (debug_info, id) = ("test".to_owned(), guest.id().to_owned());
    dom0.task(&VmSuspend { debug_info: debug_info.clone(), id: id.clone(), suspend_vdi: image() })
        .expect("suspends");
    assert!(!dom0.run("pgrep vncterm").success(), "it ended with the domain");
    dom0.task(&VmResume { debug_info, id, suspend_vdi: image() }).expect("resumes");
    dom0.unpause(&guest).expect("runs");
    let (_, text) = ports(&dom0.state(&guest)).expect("both consoles");
    reads(&dom0, text, "GUEST: tick");
    assert!(dom0.screenshot(&guest).colours() > 1);
    dom0.hard_shutdown(&guest).expect("shuts down");
    let refused = xenops("screenshot screen /root/none.png");
    assert!(refused.error_text().contains("is halted"), "{}", refused.error_text());
    assert!(!dom0.run("test -e /root/none.png").success());
    assert!(!dom0.run("pgrep vncterm").success());
    dom0.sh("test -z \"$(ls -A /var/run/nonpersistent/xenopsd/classic/journal)\"");
}

/// What a process has used of a processor, and the time, in seconds; and its memory in KiB.
fn used(dom0: &Dom0, process: &str) -> (f64, f64, u64) {
    // Fields 14 and 15 of proc(5), in ticks of 10 ms; the name in the second has no space.
    let command = format!(
        "awk '{{ print ($14 + $15) / 100 }}' /proc/{process}/stat; cut -d' ' -f1 /proc/uptime; \
         awk '/^VmRSS/ {{ print $2 }}' /proc/{process}/status"
    );
    let text = dom0.sh(&command);
    let mut numbers = text.lines();
    let mut next = || numbers.next().unwrap_or_else(|| panic!("{text}"));
    (next().parse().expect("seconds"), next().parse().expect("seconds"), next().parse().expect("KiB"))
}

/// Most of a core that the terminal server of a guest that prints without end may use, and most KiB of memory.
const MOST_OF_A_CORE: f64 = 0.5;
const MOST_MEMORY: u64 = 16 << 10;

/// How much slower another guest may answer than beside one that is as busy and prints nothing.
const MOST_SLOWER: f64 = 3.0;

/// Questions that the other guest is asked.
const QUESTIONS: usize = 4;

#[test]
fn a_guest_that_prints_without_end_costs_little_and_slows_no_other() {
    let dom0 = Dom0::start();
    let [flood, calm] = ["flood", "calm"].map(|name| text_guest(Guest::new(name)));
    for guest in [&flood, &calm] {
        dom0.boot(guest);
    }
    let process = pid(&dom0, &flood);
    let asked = || {
        let before = used(&dom0, &process);
        for n in 0..QUESTIONS {
            assert_eq!(dom0.type_into(&calm, &format!("echo $((40 + {n}))")), (40 + n).to_string());
        }
        let after = used(&dom0, &process);
        (after.1 - before.1, (after.0 - before.0) / (after.1 - before.1), after.2)
    };
    let busy = dom0.type_into(&flood, "while :; do :; done & echo $!");
    let (beside_busy, ..) = asked();
    dom0.type_into(&flood, &format!("kill {}", busy.lines().last().unwrap_or_default()));
    let tty = format!("/local/domain/{}/console/tty", dom0.domid(&flood));
    dom0.sh(&format!("printf 'while :; do echo yyyyyyyyyyyyyyyy; done\\r' >$(xenstore-read {tty})"));
    let (_, text) = ports(&dom0.state(&flood)).expect("both consoles");
    reads(&dom0, text, "^y");
    let (beside_flood, share, memory) = asked();
    println!(
        "{QUESTIONS} answers: {beside_busy:.1} s beside a busy guest, {beside_flood:.1} s beside one that prints, \
         whose terminal server has {share:.2} of a core and {memory} KiB"
    );
    assert!(share < MOST_OF_A_CORE, "{share} of a core");
    assert!(memory < MOST_MEMORY, "{memory} KiB");
    assert!(beside_flood < beside_busy * MOST_SLOWER, "{beside_flood} s, {beside_busy} s without the output");
    // It is still there to be looked at, and to be ended.
    assert!(dom0.screenshot(&flood).colours() > 1);
    for guest in [&flood, &calm] {
        dom0.hard_shutdown(guest).expect("shuts down");
    }
    assert!(!dom0.run("pgrep vncterm").success());
}
