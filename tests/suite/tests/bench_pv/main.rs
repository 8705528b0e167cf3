//! `cargo xtask bench`: PV, PVH and HVM guests under us and under `xl`, in one boot, on the same kernel, ramdisk, disk and bridge.
//!
//! Absolute times mean nothing on an emulated machine; the ratios do, since both sides take turns.

use std::time::Duration;

use suite::Medians;
use xen_host::{Options, Processors, Template};

/// Rounds of each measurement; the median is what counts.
const ROUNDS: usize = 7;

/// All of it takes a few minutes on two quiet cores.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// What is measured, how it is shown, and what is aimed at: our median over `xl`'s.
type Aims = &'static [(&'static str, &'static str, f64)];

const PV: Aims = &[
    ("create-paused", "create paused, no devices", 0.5),
    ("destroy", "destroy it", 0.5),
    ("bare-userspace", "create to the first line of userspace", 1.0),
    ("destroy-running", "destroy it", 0.5),
    ("full-ping-command", "create and start with a disk and a card", 1.0 / 3.0),
    ("full-ping", "the same to the guest's first ping (its own boot included)", 1.0),
    ("destroy-full", "destroy it", 0.5),
];

const CONTAINER: Aims = &[
    ("pvh-unpaused", "a PVH guest without devices: create and unpause", 0.6),
    ("pvh-destroy", "destroy it", 0.5),
    ("hvm-unpaused", "an HVM guest with a serial port and no other device: create and unpause", 0.6),
    ("hvm-destroy", "destroy it", 0.5),
];

fn measure(options: Options, parts: &[&str]) -> Medians {
    let host = Template::with_daemon(options).and_then(|t| t.start()).expect("nested host");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench_pv/measure.sh");
    host.put(script.as_ref(), "/root/measure.sh").expect("the script is copied");
    let rounds = ROUNDS.to_string();
    Medians::of(&host, &[&["bash", "/root/measure.sh", &rounds], parts].concat(), LIMIT)
}

#[test]
fn bench_pv_against_xl() {
    let medians = measure(Options::from_environment(), &["pv", "container", "memory"]);
    report(&medians, &[PV, CONTAINER].concat());
    report_memory(&medians);
}

/// Where a device model can start beside the build of its guest's memory.
#[test]
fn bench_container_against_xl_in_a_dom0_with_two_vcpus() {
    let options = Options { processors: Processors::TwoForDom0, ..Options::from_environment() };
    report(&measure(options, &["container"]), CONTAINER);
}

fn report(medians: &Medians, aims: &[(&str, &str, f64)]) {
    println!("\nmedians of {ROUNDS} rounds, milliseconds");
    println!("{:>9} {:>9} {:>7} {:>7}", "xl", "xenops", "ratio", "aim");
    for (what, shown, aim) in aims {
        let (xl, ours) = (medians.get(what, "xl"), medians.get(what, "xenops"));
        println!("{xl:9.0} {ours:9.0} {:7.2} {aim:7.2}  {shown}", ours / xl);
    }
}

fn report_memory(medians: &Medians) {
    let of = |what: &str, who: &str| medians.get(what, who);
    println!("\nresident memory of the toolstack's processes, KiB");
    println!("{:>9} {:>9}", "xl", "xenopsd");
    for count in [1, 10] {
        let what = format!("resident-{count}");
        println!("{:9.0} {:9.0}  with {count} guests", of(&what, "xl"), of(&what, "xenops"));
    }
    let slope = |who| (of("resident-10", who) - of("resident-1", who)) / 9.0;
    println!("{:9.0} {:9.0}  for each further guest (aim: a twentieth)", slope("xl"), slope("xenops"));
}
