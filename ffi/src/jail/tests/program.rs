//! The hostile program.

use super::*;

/// Not a test: the others start it.
#[test]
#[ignore = "the program the other tests put into a jail"]
fn hostile() {
    let Ok(which) = std::env::var(ATTACK) else { return };
    // SAFETY: the descriptor was given for this.
    let mut tell = unsafe { File::from_raw_fd(TELL) };
    let mut say = |what: &str, result: &dyn fmt::Debug| writeln!(tell, "{what}: {result:?}").unwrap();
    let errno = |result: libc::c_long| if result < 0 { -crate::error::last_errno() } else { 0 };
    match &*which {
        "files" => {
            for path in
                ["/etc/passwd", "/etc/shadow", "/dev/mem", "/proc/self/status", "/root", "/tmp", "/sys"]
            {
                say(path, &File::open(path).map(drop).map_err(|e| e.kind()));
            }
            for path in ["/new", "/empty/new", "/usr/lib/new"] {
                say(path, &File::create(path).map(drop).map_err(|e| e.raw_os_error()));
            }
            let mut names: Vec<_> = std::fs::read_dir("/").unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            say("root", &names);
            say("up", &std::fs::metadata("/../etc/passwd").map(drop).map_err(|e| e.kind()));
        }
        "network" => {
            say("tcp", &TcpStream::connect("127.0.0.1:22").map(drop).map_err(|e| e.raw_os_error()));
            let udp = UdpSocket::bind("0.0.0.0:0").and_then(|s| s.send_to(b"x", "192.0.2.1:9"));
            say("udp", &udp.map_err(|e| e.raw_os_error()));
        }
        "processes" => {
            let mut made = 0;
            // SAFETY: the children only wait to be killed with the namespace.
            unsafe {
                while made < 1000 {
                    match libc::fork() {
                        0 => loop {
                            libc::pause();
                        },
                        -1 => break,
                        _ => made += 1,
                    }
                }
            }
            say("fork", &errno(-1));
            say("few", &(made < 64));
            // SAFETY: plain numbers.
            unsafe {
                say("pid", &libc::getpid());
                say(
                    "parent",
                    &errno(libc::kill(std::env::var("PARENT").unwrap().parse().unwrap(), 0).into()),
                );
            }
        }
        "root" => {
            // SAFETY: plain numbers and constant strings.
            unsafe {
                say("setuid", &errno(libc::syscall(libc::SYS_setresuid, 0, 0, 0)));
                say("setgroups", &errno(libc::syscall(libc::SYS_setgroups, 0, 0)));
                say("chroot", &errno(libc::chroot(c"/".as_ptr()).into()));
                say(
                    "mount",
                    &errno(
                        libc::mount(c"x".as_ptr(), c"/".as_ptr(), c"tmpfs".as_ptr(), 0, std::ptr::null())
                            .into(),
                    ),
                );
                say("uid", &(libc::getuid(), libc::geteuid(), libc::getgid(), libc::getegid()));
                say("groups", &libc::getgroups(0, std::ptr::null_mut()));
                say("no_new_privs", &libc::prctl(libc::PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
                say(
                    "bounding",
                    &(0..40).filter(|c| libc::prctl(libc::PR_CAPBSET_READ, *c, 0, 0, 0) == 1).count(),
                );
                let node = libc::mknod(c"/mem".as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(1, 1));
                say("mknod", &errno(node.into()));
            }
        }
        "descriptors" => {
            // SAFETY: plain numbers.
            let open: Vec<i32> =
                (0..1024).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0).collect();
            say("open", &open);
            let opened: Vec<_> = std::iter::from_fn(|| tell_copy().ok()).take(1000).collect();
            say("more", &opened.len());
        }
        "disk" => {
            // SAFETY: the file given after the pipe.
            let mut file = unsafe { File::from_raw_fd(GIVEN) };
            let mut written = 0;
            let outcome = loop {
                match file.write(&[0; 4096]) {
                    Ok(n) if written < 1 << 20 => written += n,
                    other => break other,
                }
            };
            say("written", &written);
            say("then", &outcome.map_err(|e| e.raw_os_error()));
        }
        "memory" => {
            let mut kept: Vec<Vec<u8>> = Vec::new();
            while kept.len() < 4096 {
                let mut block = Vec::new();
                if block.try_reserve_exact(1 << 20).is_err() {
                    break;
                }
                kept.push(block);
            }
            say("MiB below 512", &(kept.len() < 512));
        }
        "filtered" => {
            // SAFETY: no argument.
            say("getppid", &errno(unsafe { libc::syscall(libc::SYS_getppid) }));
            // SAFETY: no argument.
            say("getpid", &errno(unsafe { libc::syscall(libc::SYS_getpid) }));
        }
        "threaded" => {
            say("thread", &std::thread::spawn(|| 7).join().unwrap());
            // SAFETY: refused; else the child would go on as the test.
            say("fork", &errno(unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) }));
            let apart = libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM | libc::CLONE_FS;
            // SAFETY: refused, since it would have descriptors of its own; without a stack it could not run.
            say("apart", &errno(unsafe { libc::syscall(libc::SYS_clone, apart, 0, 0, 0, 0) }));
            // SAFETY: no structure is looked at.
            say("clone3", &errno(unsafe { libc::syscall(libc::SYS_clone3, 0, 0) }));
        }
        "contents" => {
            for (name, path) in [("kernel", "/boot/kernel"), ("part", "/boot/part")] {
                let read = std::fs::read(path);
                say(name, &read.map(|b| (b.len(), b.iter().all(|x| *x == 7))).map_err(|e| e.raw_os_error()));
            }
            let written = File::options().write(true).open("/boot/part");
            say("write", &written.map(drop).map_err(|e| e.raw_os_error()));
            // SAFETY: plain numbers.
            let open: Vec<i32> =
                (0..1024).filter(|fd| unsafe { libc::fcntl(*fd, libc::F_GETFD) } >= 0).collect();
            say("open", &open);
            // SAFETY: the pipe's reading end.
            let mut wait = unsafe { File::from_raw_fd(GIVEN) };
            wait.read_to_end(&mut Vec::new()).unwrap();
            say("after", &File::open("/boot/kernel").map(drop).map_err(|e| e.kind()));
        }
        "emptied" => {
            say("before", &std::fs::metadata("/usr/lib").is_ok());
            // The parent empties the root and then closes the other end.
            // SAFETY: the pipe's reading end.
            let mut wait = unsafe { File::from_raw_fd(GIVEN) };
            wait.read_to_end(&mut Vec::new()).unwrap();
            let names: Vec<_> = std::fs::read_dir("/").unwrap().collect();
            say("names", &names.len());
            say("after", &std::fs::metadata("/usr/lib").map(drop).map_err(|e| e.kind()));
            say("cwd", &std::fs::read_dir(".").unwrap().count());
        }
        other => panic!("unknown attack {other}"),
    }
}

fn tell_copy() -> std::io::Result<OwnedFd> {
    // SAFETY: a number; the descriptor made is owned by nobody else.
    unsafe {
        let made = libc::dup(TELL);
        if made < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(made))
    }
}
