//! A parser that a guest has taken over, in the worker's jail: what it tries, and what comes of it.
//!
//! The worker is this test binary again: the ignored test [`taken_over`] is a worker whose parser does what the request's
//! `entry` says instead of reading the disk.

use guest_installer::{
    Error,
    boot::{Booted, Request},
    worker::{Answer, Files, Jailing, Job, Limit, Wanted, Worker, inside, run},
};
use nix::sys::sendfile::sendfile64;
use std::{
    fs::{self, File},
    io::{Read, Write},
    net::TcpStream,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::Command,
    time::Duration,
};

const UID: u32 = 0x2000_0100;

/// What the parser does, by name; each is done with safe calls of the standard library.
fn exploit(
    job: &Job,
    mut disk: File,
    kernel: &mut File,
    ramdisk: &mut File,
) -> guest_installer::Result<Answer> {
    let told = |args: &str| {
        let path = || "/k".to_owned();
        Ok(Answer::Booted(Booted {
            title: path(),
            kernel: path(),
            ramdisks: vec![path()],
            args: args.to_owned(),
        }))
    };
    match job.request.entry.as_deref().unwrap_or_default() {
        "behave" => {
            let mut start = [0; 4];
            std::os::unix::fs::FileExt::read_exact_at(&disk, &mut start, 0).unwrap();
            assert_eq!(sendfile64(&*kernel, &disk, Some(&mut 0), 4), Ok(4));
            ramdisk.write_all(b"ramdisk").unwrap();
        }
        "open" => drop(File::open("/etc/passwd")),
        "open itself" => drop(File::open("/proc/self/mem")),
        "create" => drop(File::create("/tmp/taken-over")),
        "list" => drop(fs::read_dir("/")),
        "delete" => drop(fs::remove_file("/tmp/x")),
        "connect" => drop(TcpStream::connect("127.0.0.1:22")),
        "connect to the store" => drop(UnixStream::connect("/run/xenstored/socket")),
        "execute" => drop(Command::new("/bin/sh").spawn()),
        "thread" => drop(std::thread::spawn(|| ()).join()),
        "write to the disk" => drop(disk.write(b"x")),
        "read the outputs" => drop(kernel.read(&mut [0; 8])),
        "resize" => drop(kernel.set_len(1 << 40)),
        "duplicate" => drop(disk.try_clone()),
        "signal" => drop(nix::sys::signal::kill(nix::unistd::getppid(), None)),
        "send the disk elsewhere" => drop(sendfile64(std::io::stdout(), &disk, Some(&mut 0), 4)),
        "send something else" => drop(sendfile64(&*kernel, std::io::stdin(), None, 4)),
        "send an output to another" => drop(sendfile64(&*kernel, &*ramdisk, Some(&mut 0), 4)),
        "send to the disk" => drop(sendfile64(&disk, &disk, Some(&mut 0), 4)),
        "lie" => return told("quiet\nramdisk /etc/shadow"),
        "panic" => panic!("a mistake"),
        "no answer" => std::process::exit(0),
        "flood" => while kernel.write_all(&[0; 1 << 12]).is_ok() {},
        "flood from the disk" => {
            while sendfile64(&*kernel, &disk, Some(&mut 0), 4).is_ok()
                && kernel.write_all(&[0; 1 << 12]).is_ok()
            {}
        }
        "memory" => {
            let taken: Vec<Vec<u8>> = (0..4096).map(|_| vec![1; 1 << 20]).collect();
            return told(&taken.len().to_string());
        }
        "stay" => {
            kernel.write_all(b"!").unwrap();
            loop {
                std::hint::spin_loop();
            }
        }
        other => panic!("unknown exploit {other}"),
    }
    told("done")
}

/// Not a test: the worker of the others.
#[test]
#[ignore = "the program the other tests put into a jail"]
fn taken_over() {
    // Somebody may run all ignored tests: then there is nothing to do.
    if std::env::args().next().as_deref() == Some("boot-worker") {
        inside::main(exploit);
        std::process::exit(0);
    }
}

fn worker() -> Worker {
    let arguments = ["boot-worker", "taken_over", "--exact", "--ignored", "--nocapture", "--test-threads=1"];
    Worker { arguments: arguments.map(str::to_owned).to_vec(), ..Worker::default() }
}

fn jailings() -> Vec<Jailing> {
    if nix::unistd::geteuid().is_root() {
        return vec![Jailing::User(UID), Jailing::Caller];
    }
    eprintln!("less is tested: making a whole jail takes root");
    vec![Jailing::Caller]
}

fn job(exploit: &str) -> Job {
    let request = Request {
        entry: Some(exploit.to_owned()),
        kernel_limit: 1 << 20,
        ramdisk_limit: 1 << 20,
        ..Request::new()
    };
    Job { wanted: Wanted::Deliver, request }
}

/// The answer, and what was delivered.
fn attempt(jailing: Jailing, exploit: &str, limit: Limit<'_>) -> (Result<Answer, Error>, Vec<u8>) {
    let (mut disk, mut kernel, ramdisk) =
        (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    disk.write_all(b"disk").unwrap();
    let files = Files { disk: &disk, kernel: &kernel, ramdisk: &ramdisk };
    let answer = run(&worker(), jailing, limit, &job(exploit), &files);
    let mut delivered = Vec::new();
    std::io::Seek::rewind(&mut kernel).unwrap();
    kernel.read_to_end(&mut delivered).unwrap();
    let mut content = String::new();
    std::io::Seek::rewind(&mut disk).unwrap();
    disk.read_to_string(&mut content).unwrap();
    assert_eq!(content, "disk", "{exploit} has changed the disk");
    (answer, delivered)
}

#[test]
fn one_that_behaves_delivers() {
    for jailing in jailings() {
        let (answer, kernel) = attempt(jailing, "behave", Limit::default());
        assert!(
            matches!(&answer, Ok(Answer::Booted(booted)) if booted.args == "done"),
            "{jailing:?}: {answer:?}"
        );
        assert_eq!(kernel, b"disk");
    }
}

#[test]
fn whatever_reaches_outside_kills_it() {
    for jailing in jailings() {
        for exploit in [
            "open",
            "open itself",
            "create",
            "list",
            "delete",
            "connect",
            "connect to the store",
            "execute",
            "thread",
            "write to the disk",
            "read the outputs",
            "resize",
            "duplicate",
            "signal",
            "send the disk elsewhere",
            "send something else",
            "send an output to another",
            "send to the disk",
        ] {
            let error = attempt(jailing, exploit, Limit::default()).0.unwrap_err();
            assert_eq!(error.code(), "WORKER", "{jailing:?}, {exploit}");
            assert!(
                error.to_string().contains("system call that it may not make"),
                "{jailing:?}, {exploit}: {error}"
            );
        }
    }
    assert!(!std::path::Path::new("/tmp/taken-over").exists());
}

#[test]
fn its_answer_is_checked() {
    for jailing in jailings() {
        let error = |exploit| attempt(jailing, exploit, Limit::default()).0.unwrap_err();
        assert_eq!(error("lie").code(), "CONTROL_CHARACTER");
        assert!(error("panic").to_string().contains("made a mistake"));
        assert_eq!(error("no answer").code(), "WORKER");
    }
}

#[test]
fn its_output_memory_and_time_are_limited() {
    for jailing in jailings() {
        // Its writes fail from the limit on.
        for exploit in ["flood", "flood from the disk"] {
            let (_, kernel) = attempt(jailing, exploit, Limit::default());
            assert_eq!(kernel.len(), 1 << 20, "{exploit}");
        }
        assert_eq!(attempt(jailing, "memory", Limit::default()).0.unwrap_err().code(), "WORKER");
        let short = Limit { wall: Duration::from_millis(500), stop: None };
        assert_eq!(attempt(jailing, "stay", short).0.unwrap_err().code(), "TIMEOUT");
    }
}

/// The worker of this process that runs now: what `/proc` says of it.
fn child() -> String {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let children =
        tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
    let pids = children.collect::<String>();
    let ours = |pid: &&str| {
        // Other tests of this process have workers too, of other users.
        fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|s| s.contains(&format!("Uid:\t{}\t", UID + 1)))
    };
    pids.split_whitespace().find(ours).expect("a worker").to_owned()
}

#[test]
fn it_owns_nothing_and_is_stopped_when_it_is_not_wanted() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: making a whole jail takes root");
        return;
    }
    let (mut here, kernel) = std::io::pipe().unwrap();
    let (stop, wanted) = std::io::pipe().unwrap();
    let kernel = File::from(OwnedFd::from(kernel));
    let (disk, ramdisk) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let outcome = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            let limit = Limit { stop: Some(stop.as_fd()), ..Limit::default() };
            let files = Files { disk: &disk, kernel: &kernel, ramdisk: &ramdisk };
            run(&worker(), Jailing::User(UID + 1), limit, &job("stay"), &files)
        });
        here.read_exact(&mut [0]).unwrap();
        let pid = child();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let field = |name: &str| {
            let line =
                status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}"));
            line.trim_start_matches(':').split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let id = (UID + 1).to_string();
        assert_eq!(field("Uid"), [&*id; 4]);
        assert_eq!(field("Gid"), [&*id; 4]);
        assert!(field("Groups").is_empty());
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!((field("NoNewPrivs"), field("NSpid").len()), (vec!["1".to_owned()], 2));
        assert_eq!(fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0, "its root is empty");
        for namespace in ["mnt", "net", "ipc", "pid"] {
            let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
            assert_ne!(of(&pid), of("self"), "{namespace}");
        }
        let mut open: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .map(|fd| fd.unwrap().file_name().into_string().unwrap().parse::<u32>().unwrap())
            .collect();
        open.sort_unstable();
        // 3, the request, has been read and closed.
        assert_eq!(open, [0, 1, 2, 4, 5, 6, 7]);
        drop(wanted);
        running.join().unwrap()
    });
    assert_eq!(outcome.unwrap_err().code(), "STOPPED");
}

/// The whole of what a worker may ask of the kernel: whoever adds to it says so here.
#[test]
fn the_system_calls_are_these() {
    let mut any = inside::ANY_ARGUMENTS;
    any.sort_unstable();
    let mut expected = [
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_close,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_futex,
        libc::SYS_getrandom,
        libc::SYS_madvise,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_restart_syscall,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
    ];
    expected.sort_unstable();
    assert_eq!(any, expected);
    let on_descriptors: [(i64, &[i32]); 4] = [
        (libc::SYS_read, &[3]),
        (libc::SYS_pread64, &[5]),
        (libc::SYS_lseek, &[5]),
        (libc::SYS_write, &[1, 2, 4, 6, 7]),
    ];
    assert_eq!(inside::ON_DESCRIPTORS, on_descriptors);
    assert_eq!(inside::SENDFILE, (5, &[6, 7][..]));
    assert_eq!(inside::FCNTL, libc::F_GETFD);
    assert_eq!(inside::NOT_EXECUTABLE, [libc::SYS_mmap, libc::SYS_mprotect]);
}
