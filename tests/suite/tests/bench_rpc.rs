//! `cargo xtask bench rpc`: what a call costs, over the sockets of a simulating daemon of its own.
//!
//! The caller is as cheap as can be: requests are made once and replies are read to their end and thrown away. Each
//! request has a connection of its own, as those of xapi have.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use suite::Guest;
use tempfile::TempDir;
use xenopsd::api::{
    Call, UpdatesGet, UpdatesInjectBarrier, UpdatesLastId, VmAdd, VmStart, VmStat, VmUnpause,
};
use xenopsd::rpc::{Client, Codec, http};

/// Round trips one after the other.
const ROUNDS: usize = 20_000;

/// Clients at once, and for how long.
const CLIENTS: usize = 8;
const TIME: Duration = Duration::from_secs(5);

/// Changes waited for.
const WAKES: usize = 500;

/// What the project aims at.
const AIMS: &str = "aims: median below 60 µs, 20,000 calls/s from 8 clients, a wake below 1 ms";

struct Daemon {
    child: Child,
    directory: TempDir,
}

impl Daemon {
    fn start() -> Self {
        let directory = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).expect("a directory");
        let program = xen_host::workspace().join("target/release/xenopsd");
        let child = Command::new(&program)
            .args(["--simulate", "--log-level", "error"])
            .arg(format!("--sockets-path={}", directory.path().join("sockets").display()))
            .arg(format!("--database-path={}", directory.path().join("db").display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let daemon = Self { child, directory };
        let deadline = Instant::now() + Duration::from_secs(30);
        // Its sockets are all that tells when it is ready; looking again costs nothing here.
        while UnixStream::connect(daemon.socket(Codec::Json)).is_err() {
            assert!(Instant::now() < deadline, "the daemon does not come up");
            std::thread::yield_now();
        }
        daemon
    }

    fn socket(&self, codec: Codec) -> PathBuf {
        let name = if codec == Codec::Json { "sockets/xenopsd.json" } else { "sockets/xenopsd" };
        self.directory.path().join(name)
    }

    /// Processor time it has used so far, of all its threads.
    fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        // Fields 14 and 15 of proc(5), in ticks of 10 ms.
        let ticks: u64 =
            after_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn framed(codec: Codec, call: &Call) -> Vec<u8> {
    http::frame_request(codec, "/", "bench", &codec.encode_request(call.name(), call.to_params(), 1))
}

/// One round trip; bytes of the reply.
fn round(socket: &Path, request: &[u8], buffer: &mut [u8]) -> usize {
    let mut stream = UnixStream::connect(socket).expect("connects");
    stream.write_all(request).expect("is taken");
    let mut total = 0;
    loop {
        match stream.read(buffer).expect("is answered") {
            0 => return total,
            count => total += count,
        }
    }
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[test]
fn bench_rpc() {
    let daemon = Daemon::start();
    let client = Client::new(daemon.socket(Codec::Xml), Codec::Xml);
    let kernel = daemon.directory.path().join("kernel");
    std::fs::write(&kernel, b"\x7fELF for the simulator").expect("is written");
    let guest = Guest::new("bench").boot(|boot| {
        boot.kernel = kernel.display().to_string();
        boot.ramdisk = None;
    });
    let (dbg, id) = (|| "bench".to_owned(), guest.id().to_owned());
    client.call(&VmAdd { debug_info: dbg(), vm: guest.vm.clone() }).expect("is added");
    for task in [
        client.call(&VmStart { debug_info: dbg(), id: id.clone(), paused: false }).expect("is asked"),
        client.call(&VmUnpause { debug_info: dbg(), id: id.clone() }).expect("is asked"),
    ] {
        client.wait_task("bench", &task, |_| ()).expect("is done");
    }

    println!("{AIMS}");
    for (codec, name) in [(Codec::Xml, "XML"), (Codec::Json, "JSON")] {
        let request = framed(codec, &VmStat { debug_info: dbg(), id: id.clone() }.into());
        one_by_one(&daemon, codec, name, &request);
        at_once(&daemon, codec, name, &request);
    }
    wakes(&daemon, &id);
}

fn one_by_one(daemon: &Daemon, codec: Codec, name: &str, request: &[u8]) {
    let socket = daemon.socket(codec);
    let mut buffer = vec![0; 1 << 16];
    let cpu = daemon.cpu();
    let mut times: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let began = Instant::now();
            assert!(round(&socket, request, &mut buffer) > 500);
            began.elapsed()
        })
        .collect();
    let cpu = daemon.cpu().saturating_sub(cpu).as_secs_f64() * 1e6 / 20_000.0;
    times.sort();
    let at = |part: usize| micros(times[ROUNDS * part / 1000]);
    println!(
        "VM.stat, {name}: median {:.0} µs, 99 % below {:.0} µs; the daemon's processor time {cpu:.0} µs a call",
        at(500),
        at(990)
    );
}

fn at_once(daemon: &Daemon, codec: Codec, name: &str, request: &[u8]) {
    let socket = daemon.socket(codec);
    let calls = AtomicU64::new(0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut buffer = vec![0; 1 << 16];
                while began.elapsed() < TIME {
                    round(&socket, request, &mut buffer);
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let calls = u32::try_from(calls.into_inner()).expect("few");
    println!(
        "VM.stat, {name}, {CLIENTS} clients: {:.0} calls/s",
        f64::from(calls) / began.elapsed().as_secs_f64()
    );
}

/// From a change to the end of the wait for it, in another client.
fn wakes(daemon: &Daemon, id: &str) {
    let client = Client::new(daemon.socket(Codec::Json), Codec::Json);
    let dbg = || "bench".to_owned();
    let mut times = Vec::new();
    let (told, tell) = std::sync::mpsc::channel();
    for number in 0..isize::try_from(WAKES).expect("few") {
        let last = client.call(&UpdatesLastId { debug_info: dbg() }).expect("answers");
        let get = UpdatesGet { debug_info: dbg(), last_id: Some(last), timeout: Some(30) };
        let mut waiting = UnixStream::connect(daemon.socket(Codec::Json)).expect("connects");
        waiting.write_all(&framed(Codec::Json, &get.into())).expect("is taken");
        let told = told.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            let _ = waiting.read(&mut buffer);
            told.send(Instant::now()).expect("somebody listens");
        });
        // A call on another connection is answered only when the wait is under way: both pass the same thread in turn.
        client.call(&UpdatesLastId { debug_info: dbg() }).expect("answers");
        let began = Instant::now();
        let inject = UpdatesInjectBarrier { debug_info: dbg(), vm_id: id.to_owned(), id: number };
        client.call(&inject).expect("answers");
        times.push(tell.recv().expect("is woken").saturating_duration_since(began));
        reader.join().expect("ends");
        let remove = xenopsd::api::UpdatesRemoveBarrier { debug_info: dbg(), id: number };
        client.call(&remove).expect("answers");
    }
    times.sort();
    println!(
        "UPDATES.get: woken within {:.0} µs of the call that changes something, 99 % below {:.0} µs",
        micros(times[WAKES / 2]),
        micros(times[WAKES * 99 / 100])
    );
}
