//! `cargo xtask bench hotplug`: a disk and an interface plugged into a running PV guest and unplugged again, through the
//! daemon's socket and with `xl`, in one boot and in turn.
//!
//! ```text
//!   our guest   ◄── VBD.add, VBD.plug ── daemon ◄─┐
//!                                                 ├── plug_clock in dom0, one after the other
//!   xl's guest  ◄── xl block-attach ──────────────┘   with the stock scripts, then with scripts of one line
//! ```
//!
//! A plug is over when the call has returned and both ends are connected. Absolute times mean nothing on an emulated
//! machine; the ratios do.

use std::time::Duration;

use suite::{Dom0, Guest, Medians};
use xenopsd::api::VbdMode;
use xenopsd::api::value::ToValue as _;
use xenopsd::rpc::json;

/// Rounds of each measurement; the median is what counts.
const ROUNDS: usize = 10;

/// All of it takes four minutes on two quiet cores.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// What is aimed at: our median over `xl`'s with its stock scripts, and with scripts of one line.
const AIMS: [f64; 2] = [0.1, 0.6];

/// What is measured.
const WHAT: [(&str, &str); 4] = [
    ("vbd-plug", "disk plugged"),
    ("vbd-unplug", "disk unplugged"),
    ("vif-plug", "interface plugged"),
    ("vif-unplug", "interface unplugged"),
];

/// The guest of `xl`, as large as ours.
const XL_GUEST: &str = r#"name="theirs"
kernel="/guests/vmlinux"
ramdisk="/guests/initramfs"
extra="console=hvc0"
memory=128
type="pv"
"#;

#[test]
fn bench_hotplug_against_xl() {
    let dom0 = Dom0::measured();
    dom0.sh("truncate -s 64M /tmp/bench.img; losetup /dev/loop0 /tmp/bench.img");
    let guest = Guest::new("ours").disk("xvdf", "/dev/loop0", VbdMode::ReadWrite).vif("xenbr0");
    let mut bare = guest.clone();
    (bare.vbds, bare.vifs) = (Vec::new(), Vec::new());
    dom0.boot(&bare);
    dom0.sh(&format!("cat >/root/theirs.cfg <<'END'\n{XL_GUEST}END\nxl create -q /root/theirs.cfg"));
    let ready = dom0.host.wait_for_guest("theirs", "GUEST: ready", suite::LIMIT);
    ready.unwrap_or_else(|error| panic!("{error}"));

    for (name, record) in [("vbd", guest.vbds[0].to_value()), ("vif", guest.vifs[0].to_value())] {
        let record = String::from_utf8(json::print(&record)).expect("JSON is text");
        dom0.sh(&format!("cat >/root/{name}.json <<'END'\n{record}\nEND"));
    }
    let clock = xen_host::target().join("release/examples/plug_clock");
    dom0.host.put(&clock, "/root/plug_clock").expect("`cargo xtask bench` has built it");
    let theirs = dom0.sh("xl domid theirs");
    let words =
        ["/root/plug_clock", &ROUNDS.to_string(), &dom0.domid(&bare).to_string(), theirs.trim(), "/root"];
    report(&Medians::of(&dom0.host, &words, LIMIT));
}

fn report(medians: &Medians) {
    let [stock_aim, line_aim] = AIMS;
    println!(
        "\nmedians of {ROUNDS} rounds, milliseconds; the rest of a plug, after the call, is the guest's driver's"
    );
    println!("{:>9} {:>9} {:>9} {:>8} {:>8}", "xenopsd", "xl, stock", "xl, line", "/ stock", "/ line");
    println!("{:>9} {:>9} {:>9} {stock_aim:8.2} {line_aim:8.2}  aims", "", "", "");
    for (what, shown) in WHAT {
        for (suffix, until) in [("", "until both ends are connected, or gone"), ("-call", "the call alone")] {
            let time = |who| medians.get(&format!("{what}{suffix}"), who) / 1e3;
            let (ours, stock, line) = (time("xenopsd"), time("xl-stock"), time("xl-line"));
            let (of_stock, of_line) = (ours / stock, ours / line);
            println!("{ours:9.0} {stock:9.0} {line:9.0} {of_stock:8.3} {of_line:8.3}  {shown}, {until}");
        }
        let bare = medians.get(what, "bare") / 1e3;
        let (of_stock, of_line) = ["xl-stock", "xl-line"].map(|xl| bare * 1e3 / medians.get(what, xl)).into();
        println!("{bare:9.0} {:>9} {:>9} {of_stock:8.3} {of_line:8.3}  {shown}, by its nodes alone", "", "");
    }
}
