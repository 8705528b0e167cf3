//! `cargo xtask bench scale`: how soon a new daemon serves calls with many VMs running, and what many idle VMs cost.
//!
//! The restart is of a daemon's core within this process, on a simulated machine that stays; the memory is that of a
//! real `xenopsd --simulate` with as many records.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use suite::Guest;
use xenopsd::api::{VbdMode, VmList};
use xenopsd::core::{Core, Operation, Patience};
use xenopsd::domain::observe;
use xenopsd::rpc::Client;
use xenopsd::rpc::codec::Codec;
use xenopsd::sim::{self, Hardware, Machine, SimOptions};
use xenopsd::state::Records;

/// VMs that run while the daemon is replaced.
const RUNNING: usize = 1000;

/// VMs that are only known.
const IDLE: usize = 5000;

/// Operations at once.
const WORKERS: usize = 32;

/// MiB of a host for all of them.
const HOST_MIB: u64 = 1 << 20;

/// No operation of this bench takes so long.
const LIMIT: Duration = Duration::from_secs(600);

/// What is aimed at.
const RESTART_AIM: Duration = Duration::from_secs(2);
const IDLE_AIM_MIB: f64 = 150.0;

#[test]
fn bench_scale() {
    restart();
    idle();
}

fn start_core(database: &Path, machine: &Machine) -> Arc<Core> {
    let records = Records::open(database).expect("a database");
    let (edges, events) = (machine.edges.clone(), machine.events.clone());
    Core::start(records, edges, events, WORKERS, Patience::default()).expect("a daemon")
}

/// Runs an operation on all VMs, and waits for all.
fn all(core: &Arc<Core>, vms: &[String], operation: &Operation) {
    let (done, outcomes) = channel();
    for vm in vms {
        let done = done.clone();
        core.submit_then(vm, "bench", operation.clone(), move |outcome| drop(done.send(outcome)));
    }
    for _ in vms {
        outcomes.recv_timeout(LIMIT).expect("it ends").unwrap_or_else(|error| panic!("{operation}: {error}"));
    }
}

fn restart() {
    // The disk is not what is measured here.
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let database = directory.path().join("db");
    let options = SimOptions { memory_mib: HOST_MIB, delay: Duration::ZERO, ..SimOptions::default() };
    let machine = sim::machine(&options).expect("a simulated machine");
    let core = start_core(&database, &machine);
    let vms = add(&core.records, RUNNING, directory.path());
    all(&core, &vms, &Operation::Start);
    all(&core, &vms, &Operation::Unpause);
    assert_eq!(machine.hardware(Hardware::domids).len(), RUNNING);
    let gone = Arc::downgrade(&core);
    drop(core);
    while gone.strong_count() > 0 {
        std::thread::yield_now();
    }

    let begin = Instant::now();
    let core = start_core(&database, &machine);
    let serving = begin.elapsed();
    for vm in core.records.vms().expect("a list") {
        observe::state(&core, &vm).expect("is seen");
    }
    let listed = begin.elapsed();
    // Behind what is done for each at the start.
    all(&core, &vms, &Operation::Delay(Duration::ZERO));
    let settled = begin.elapsed();
    let checks = [
        ("serves calls", serving),
        ("has told the state of every VM", listed),
        ("has looked at every VM", settled),
    ];
    println!("\nrestart with {RUNNING} running VMs (aim: serves calls within {RESTART_AIM:?})");
    for (what, time) in checks {
        println!("{:9.0} ms  {what}", time.as_secs_f64() * 1e3);
    }
    all(&core, &vms, &Operation::Shutdown(None));
}

fn idle() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
    let database = directory.path().join("db");
    add(&Records::open(&database).expect("a database"), IDLE, directory.path());
    let sockets = directory.path().join("sockets");
    let begin = Instant::now();
    let mut daemon = Command::new(xen_host::workspace().join("target/release/xenopsd"))
        .arg("--simulate")
        .arg(format!("--sockets-path={}", sockets.display()))
        .arg(format!("--database-path={}", database.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the daemon");
    let mut log = BufReader::new(daemon.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
    assert!(log.any(|line| line.contains(" ready ")), "the daemon ended");
    let ready = begin.elapsed();
    let before = resident_mib(daemon.id());
    let client = Client::new(sockets.join("xenopsd"), Codec::Xml);
    let listed = client.call(&VmList { debug_info: "bench".to_owned(), unit: () }).expect("a list");
    let after = resident_mib(daemon.id());
    println!("\n{IDLE} idle VMs, each with two disks and an interface (aim: {IDLE_AIM_MIB} MiB)");
    println!("{:9.0} ms   until ready", ready.as_secs_f64() * 1e3);
    println!("{before:9.1} MiB  resident");
    println!("{after:9.1} MiB  after a VM.list of all {}", listed.len());
    daemon.kill().expect("it runs");
    daemon.wait().expect("it ends");
}

fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("proc(5) has it");
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib / 1024.0
}

fn add(records: &Records, count: usize, directory: &Path) -> Vec<String> {
    let kernel = directory.join("kernel");
    std::fs::write(&kernel, b"\x7fELF for the simulator").expect("a kernel");
    let guest = |number: usize| {
        let mut guest = Guest::new(&format!("scale{number}")).memory(64).boot(|boot| {
            boot.kernel = kernel.display().to_string();
            boot.ramdisk = None;
        });
        for name in ["xvda", "xvdb"] {
            guest = guest.disk(name, &format!("/srv/{number}-{name}.img"), VbdMode::ReadWrite);
        }
        guest = guest.vif("br0");
        guest.vifs[0].mac = format!("00:16:3e:00:{:02x}:{:02x}", number >> 8 & 0xff, number & 0xff);
        guest
    };
    let add = |number: usize| {
        let guest = guest(number);
        records.put_vm(&guest.vm).expect("a VM");
        guest.vbds.iter().for_each(|vbd| records.put(vbd).expect("a disk"));
        guest.vifs.iter().for_each(|vif| records.put(vif).expect("an interface"));
        guest.vm.id
    };
    (0..count).map(add).collect()
}
