//! `cargo xtask bench`: PV, PVH and HVM guests under us and under `xl`, in one boot, on the same kernel, ramdisk, disk and bridge.
//!
//! Absolute times mean nothing on an emulated machine; the ratios do, since both sides take turns.

use std::collections::BTreeMap;
use std::time::Duration;

use xen_host::{Options, Template};

/// Rounds of each measurement; the median is what counts.
const ROUNDS: usize = 7;

/// All of it takes a few minutes on two quiet cores.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// What is aimed at: our median over `xl`'s.
const AIMS: &[(&str, &str, f64)] = &[
    ("create-paused", "create paused, no devices", 0.5),
    ("destroy", "destroy it", 0.5),
    ("bare-userspace", "create to the first line of userspace", 1.0),
    ("destroy-running", "destroy it", 0.5),
    ("full-ping-command", "create and start with a disk and a card", 1.0 / 3.0),
    ("full-ping", "the same to the guest's first ping (its own boot included)", 1.0),
    ("destroy-full", "destroy it", 0.5),
    ("pvh-unpaused", "a PVH guest without devices: create and unpause", 0.6),
    ("pvh-destroy", "destroy it", 0.5),
    ("hvm-unpaused", "an HVM guest with a serial port and no other device: create and unpause", 0.6),
    ("hvm-destroy", "destroy it", 0.5),
];

#[test]
fn bench_pv_against_xl() {
    let host = Template::with_daemon(Options::default()).and_then(|t| t.start()).expect("nested host");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench_pv/measure.sh");
    host.put(script.as_ref(), "/root/measure.sh").expect("the script is copied");
    let mut output = Vec::new();
    let words = ["bash", "/root/measure.sh", &ROUNDS.to_string()];
    let status =
        host.stream(&words, LIMIT, &mut |_, bytes| output.extend_from_slice(bytes)).expect("dom0 answers");
    let output = String::from_utf8_lossy(&output);
    assert_eq!(status, 0, "{output}");
    report(&medians(&output));
}

/// `(what, who)` to the median of its figures.
fn medians(output: &str) -> BTreeMap<(String, String), f64> {
    let mut figures: BTreeMap<(String, String), Vec<f64>> = BTreeMap::new();
    for line in output.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        if let ["MEASURE", what, who, figure] = words[..] {
            let figure = figure.parse().expect("a number");
            figures.entry((what.to_owned(), who.to_owned())).or_default().push(figure);
        }
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    figures.into_iter().map(|(key, all)| (key, median(all))).collect()
}

fn report(medians: &BTreeMap<(String, String), f64>) {
    let of = |what: &str, who: &str| medians[&(what.to_owned(), who.to_owned())];
    println!("\nmedians of {ROUNDS} rounds, milliseconds");
    println!("{:>9} {:>9} {:>7} {:>7}", "xl", "xenops", "ratio", "aim");
    for (what, shown, aim) in AIMS {
        let (xl, ours) = (of(what, "xl"), of(what, "xenops"));
        println!("{xl:9.0} {ours:9.0} {:7.2} {aim:7.2}  {shown}", ours / xl);
    }
    println!("\nresident memory of the toolstack's processes, KiB");
    println!("{:>9} {:>9}", "xl", "xenopsd");
    for count in [1, 10] {
        let what = format!("resident-{count}");
        println!("{:9.0} {:9.0}  with {count} guests", of(&what, "xl"), of(&what, "xenops"));
    }
    let slope = |who| (of("resident-10", who) - of("resident-1", who)) / 9.0;
    println!("{:9.0} {:9.0}  for each further guest (aim: a twentieth)", slope("xl"), slope("xenops"));
}
