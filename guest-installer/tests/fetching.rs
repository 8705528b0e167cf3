//! The worker that gets files, in its jail: what it brings, when it is ended, and what one that a server has taken over can
//! do.
//!
//! The worker is this test binary again: the ignored test [`taken_over`] does what the address' path says.

mod servers;

use guest_installer::fetch::{
    Address, By, Connect, Error, Job, Network, Result, Sink, Target, download, fetch, url::Scheme, worker,
};
use guest_installer::worker::{Jailing, Limit, Worker};
use servers::{Http, bytes, content, ok, serve, tls};
use std::{
    fs::{self, File},
    io::Write,
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::Command,
    time::{Duration, Instant},
};

const UID: u32 = 0x2000_0200;
const LIMIT: u64 = 1 << 20;

/// What one that was taken over tries, by the path of its address.
fn exploit(address: &Address, network: &Network, connect: &dyn Connect, sink: &mut Sink<'_>) -> Result<()> {
    let to = |host: &str, port| {
        connect.connect(&Target { host: host.to_owned(), port, privileged: false }).map(drop)
    };
    match &*address.path {
        "/open" => drop(File::open("/etc/passwd")),
        "/list" => drop(fs::read_dir("/")),
        "/connect" => drop(TcpStream::connect("127.0.0.1:22")),
        "/listen" => drop(TcpListener::bind("0.0.0.0:0")),
        "/datagram" => drop(UdpSocket::bind("0.0.0.0:0")),
        "/execute" => drop(Command::new("/bin/sh").spawn()),
        "/thread" => drop(std::thread::spawn(|| ()).join()),
        "/signal" => drop(nix::sys::signal::kill(nix::unistd::getppid(), None)),
        "/panic" => panic!("a mistake"),
        "/exit" => std::process::exit(0),
        "/loop" => loop {
            std::hint::spin_loop();
        },
        // Loopback, as a redirect would have it, and by other names.
        "/loopback" => return to("127.0.0.2", 22),
        "/loopback6" => return to("::1", 22),
        "/mapped" => return to("::ffff:127.0.0.1", 22),
        "/any" => return to("0.0.0.0", 22),
        "/link" => return to("169.254.169.254", 80),
        "/many" => return (0..100).try_for_each(|_| to(&address.host, address.port)),
        _ => return download(address, network, connect, sink),
    }
    Ok(())
}

/// Not a test: the worker of the others.
#[test]
#[ignore = "the program the other tests put into a jail"]
fn taken_over() {
    if std::env::args().next().as_deref() == Some(guest_installer::fetch::NAME) {
        worker::main(exploit);
        std::process::exit(0);
    }
}

fn this() -> Worker {
    let name = guest_installer::fetch::NAME;
    let arguments = [name, "taken_over", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    Worker { arguments: arguments.map(str::to_owned).to_vec(), ..Worker::fetching() }
}

fn jailings() -> Vec<Jailing> {
    if nix::unistd::geteuid().is_root() {
        return vec![Jailing::User(UID), Jailing::Caller];
    }
    eprintln!("less is tested: making a whole jail takes root");
    vec![Jailing::Caller]
}

const LONG: Limit<'static> = Limit { wall: Duration::from_secs(20), stop: None };

fn get(jailing: Jailing, limit: Limit<'_>, address: &Address) -> Result<Vec<u8>> {
    get_over(&Network::default(), jailing, limit, address)
}

fn get_over(network: &Network, jailing: Jailing, limit: Limit<'_>, address: &Address) -> Result<Vec<u8>> {
    let mut output = tempfile::tempfile().unwrap();
    let worker = this();
    let by = By { worker: &worker, jailing, limit };
    let job = Job { address, network, limit: LIMIT };
    let mut last = 0;
    fetch(&by, &job, &output, &mut |done, _| last = done)?;
    let bytes = content(&mut output);
    assert_eq!(last, u64::try_from(bytes.len()).unwrap());
    Ok(bytes)
}

#[test]
fn a_file_comes_through_the_jail() {
    for jailing in jailings() {
        let server = Http::new(|number, _| match number {
            0 => servers::answer(302, "Location: /there\r\n", b""),
            _ => ok(&bytes(700_000)),
        });
        assert!(get(jailing, LONG, &server.url("/file")).unwrap() == bytes(700_000), "{jailing:?}");
        let missing = Http::new(|_, _| servers::answer(404, "", b""));
        assert_eq!(get(jailing, LONG, &missing.url("/file")), Err(Error::NotFound));
    }
}

#[test]
fn tls_is_spoken_inside() {
    let (roots, config) = tls::authority();
    let server = tls::server(config);
    let network = Network { roots, ..Network::default() };
    let address = Address::parse(&format!("https://localhost:{}/file", server.port())).unwrap();
    for jailing in jailings() {
        assert_eq!(get_over(&network, jailing, LONG, &address).unwrap(), b"over TLS");
    }
}

#[test]
fn whatever_reaches_outside_kills_it() {
    let server = Http::new(|_, _| ok(b"x"));
    for jailing in jailings() {
        for path in ["/open", "/list", "/connect", "/listen", "/datagram", "/execute", "/thread", "/signal"] {
            let error = get(jailing, LONG, &server.url(path)).unwrap_err().to_string();
            assert!(error.contains("system call that it may not make"), "{jailing:?} {path}: {error}");
        }
        for (path, why) in [
            ("/loopback", "address of this host"),
            ("/loopback6", "address of this host"),
            ("/mapped", "address of this host"),
            ("/any", "address of this host"),
            ("/link", "address of this host"),
            ("/many", "more than 64 connections"),
            ("/panic", "made a mistake"),
            ("/exit", "gave no answer"),
        ] {
            let error = get(jailing, LONG, &server.url(path)).unwrap_err().to_string();
            assert!(error.contains(why), "{jailing:?} {path}: {error}");
        }
    }
}

#[test]
fn it_is_ended_in_time_and_when_nobody_wants_it() {
    let silent = serve(|_, stream| std::mem::forget(stream));
    // A byte now and then, for ever.
    let dripping = serve(|_, mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        std::thread::spawn(move || {
            while stream.write_all(b"x").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
    });
    for jailing in jailings() {
        for at in [silent, dripping] {
            let address = Address::parse(&format!("http://{at}/file")).unwrap();
            let started = Instant::now();
            let short = Limit { wall: Duration::from_millis(800), stop: None };
            let error = get(jailing, short, &address).unwrap_err().to_string();
            assert!(error.contains("the download took longer"), "{error}");
            assert!(started.elapsed() < Duration::from_secs(10));
        }
        let (stop, wanted) = std::io::pipe().unwrap();
        drop(wanted);
        let stopped = Limit { stop: Some(stop.as_fd()), ..LONG };
        let address =
            Address { scheme: Scheme::Http, ..Address::parse(&format!("http://{silent}/file")).unwrap() };
        assert_eq!(get(jailing, stopped, &address), Err(Error::Cancelled));
    }
    let looping = Limit { wall: Duration::from_millis(500), stop: None };
    let address = Address::parse(&format!("http://{silent}/loop")).unwrap();
    assert!(get(jailings()[0], looping, &address).is_err());
}

#[test]
fn the_list_of_system_calls_is_this_one() {
    let mut calls = worker::CALLS.to_vec();
    calls.extend(worker::NOT_EXECUTABLE);
    for call in [
        libc::SYS_open,
        libc::SYS_openat,
        libc::SYS_openat2,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_accept4,
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_clone,
        libc::SYS_clone3,
        libc::SYS_fork,
        libc::SYS_ptrace,
        libc::SYS_ioctl,
        libc::SYS_setsockopt,
        libc::SYS_dup3,
        libc::SYS_kill,
        libc::SYS_prctl,
    ] {
        assert!(!calls.contains(&call), "{call}");
    }
    assert_eq!(calls.len(), 26, "what is added is looked at here");
}
