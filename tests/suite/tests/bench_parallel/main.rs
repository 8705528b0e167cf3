//! `cargo xtask bench parallel`: PV guests created at once, paused, by us and by `xl`, in one boot. `xl` does not scale:
//! each process takes the same lock.
//!
//! The nested dom0 has one processor, so that here the work counts and not how much of it can go on at once. More than
//! half of a create is libxenguest's and `xl`'s too: it loads the kernel and builds the page tables, for which a PV dom0
//! asks the hypervisor page by page. A tenth is the start of a `xenops` process for each guest.

use std::time::Duration;

use xen_host::{Options, Template};

/// Rounds; the median is what counts.
const ROUNDS: usize = 5;

/// Guests at once: what fits beside dom0.
const COUNT: usize = 12;

/// All of it takes a few minutes on two quiet cores.
const LIMIT: Duration = Duration::from_secs(30 * 60);

/// What is aimed at: our median over `xl`'s.
const AIM: f64 = 0.4;

#[test]
fn bench_parallel_against_xl() {
    let host =
        Template::with_daemon(Options::from_environment()).and_then(|t| t.start()).expect("nested host");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench_parallel/measure.sh");
    host.put(script.as_ref(), "/root/measure.sh").expect("the script is copied");
    let mut output = Vec::new();
    let words = ["bash", "/root/measure.sh", &ROUNDS.to_string(), &COUNT.to_string()];
    let status =
        host.stream(&words, LIMIT, &mut |_, bytes| output.extend_from_slice(bytes)).expect("dom0 answers");
    let output = String::from_utf8_lossy(&output);
    assert_eq!(status, 0, "{output}");
    println!("\n{COUNT} guests at once, medians of {ROUNDS} rounds, milliseconds");
    println!("{:>9} {:>9} {:>7} {:>7}", "xl", "xenops", "ratio", "aim");
    for (what, aim) in [("create", format!("{AIM:7.2}")), ("destroy", String::new())] {
        let (xl, ours) = (median(&output, what, "xl"), median(&output, what, "xenops"));
        println!("{xl:9.0} {ours:9.0} {:7.2} {aim:>7}  {what}", ours / xl);
    }
}

/// Of the `MEASURE what who figure` lines.
fn median(output: &str, what: &str, who: &str) -> f64 {
    let prefix = format!("MEASURE {what} {who} ");
    let figure = |line: &str| line.strip_prefix(&prefix).map(|n| n.parse().expect("a number"));
    let mut figures: Vec<f64> = output.lines().filter_map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
