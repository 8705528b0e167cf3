//! The nested host itself: what the end-to-end tests rely on. Guests are driven with `xl` here.

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use xen_host::{Error, Host, Layer, Options, Template};

/// Long enough for a guest on a busy machine; an idle one takes ten seconds.
const GUEST_LIMIT: Duration = Duration::from_secs(120);

fn base() -> Template {
    Template::base(Options::default()).expect("the base template")
}

fn start() -> Host {
    base().start().expect("a clone")
}

/// A file of this test process, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Self(env::temp_dir().join(format!("xen-host-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

#[test]
fn commands_files_and_failures() {
    let host = start();
    assert!(host.check(&["xl", "list"]).expect("xl list").contains("Domain-0"));

    let output = host.run(&["sh", "-c", "echo out; echo err >&2; exit 7"]).expect("runs");
    assert_eq!((output.status, output.text().as_str(), output.error_text().as_str()), (7, "out\n", "err\n"));
    assert_eq!(host.run(&["sh", "-c", "exit 255"]).expect("no failure of ssh").status, 255);
    let awkward = "it's $HOME; \"x\" *\n\\";
    assert_eq!(host.check(&["printf", "%s", awkward]).expect("printf"), awkward);

    let error = host.check(&["sh", "-c", "echo why >&2; exit 3"]).expect_err("fails");
    assert!(matches!(&error, Error::Command { status: 3, stderr, .. } if &**stderr == "why"), "{error}");
    let begin = Instant::now();
    let error = host.run_within(&["sleep", "60"], Duration::from_millis(500)).expect_err("is late");
    assert!(matches!(&error, Error::Deadline { what, .. } if what.contains("sleep 60")), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(20));

    let mut pieces = Vec::new();
    let script = "for n in 1 2 3; do echo $n; done; exit 4";
    let mut sink = |_, piece: &[u8]| pieces.extend_from_slice(piece);
    assert_eq!(host.stream(&["sh", "-c", script], GUEST_LIMIT, &mut sink).expect("streams"), 4);
    assert_eq!(pieces, b"1\n2\n3\n");

    let (here, back) = (Scratch::new("put"), Scratch::new("get"));
    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(&here.0, &content).expect("writes");
    host.put(&here.0, "/root/a file").expect("puts");
    host.get("/root/a file", &back.0).expect("gets");
    assert!(fs::read(&back.0).expect("reads") == content);
    assert!(matches!(host.get("/nowhere", &back.0), Err(Error::Command { .. })));
}

#[test]
fn clones_share_nothing_and_start_quickly() {
    let template = base();
    let first = template.start().expect("a clone");
    first.check(&["touch", "/root/mark"]).expect("touches");
    first.check(&["xenstore-write", "/mark", "x"]).expect("writes");
    drop(first);
    let begin = Instant::now();
    let second = template.start().expect("a clone");
    let took = begin.elapsed();
    assert_eq!(second.run(&["test", "-e", "/root/mark"]).expect("runs").status, 1);
    assert_eq!(second.run(&["xenstore-exists", "/mark"]).expect("runs").status, 1);
    // About a second on an idle machine; it must never come to a boot.
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[test]
fn a_pv_guest_has_disk_network_and_console() {
    let host = start();
    host.check_shell("truncate -s 8M /root/disk; losetup /dev/loop1 /root/disk").expect("a disk");
    host.check(&["xl", "create", "/guests/pv.cfg"]).expect("xl create");
    for line in ["GUEST: init", "GUEST: disk xvda 8388608", "GUEST: net up 10.9.0.11", "GUEST: ready"] {
        host.wait_for_guest("pv", line, GUEST_LIMIT).expect(line);
    }
    host.check(&["ping", "-c", "1", "-W", "10", "10.9.0.11"]).expect("the guest answers");
    let typed = "printf block-of-the-guest | dd of=/dev/xvda bs=512 seek=9; sync; echo GUEST: wr''ote\r";
    host.check_shell(&format!(
        "printf %s {} >$(xenstore-read /local/domain/$(xl domid pv)/console/tty)",
        xen_host::quote(typed)
    ))
    .expect("types");
    host.wait_for_guest("pv", "GUEST: wrote", GUEST_LIMIT).expect("wrote");
    let read =
        host.check_shell("dd if=/root/disk bs=512 skip=9 count=1 2>/dev/null | head -c 18").expect("reads");
    assert_eq!(read, "block-of-the-guest");
    host.check(&["xl", "shutdown", "-w", "pv"]).expect("shuts down");
    host.wait_for_guest("pv", "GUEST: poweroff", GUEST_LIMIT).expect("said so");
}

#[test]
fn a_pvh_guest_reboots_and_ignores_what_it_is_told_to() {
    let host = start();
    host.check(&["xl", "create", "/guests/pvh-bare.cfg", "extra=\"console=hvc0 noshutdown\""])
        .expect("xl create");
    host.wait_for_guest("pvh-bare", "GUEST: ready", GUEST_LIMIT).expect("ready");
    host.check(&["xl", "shutdown", "pvh-bare"]).expect("asks");
    host.wait_for_guest("pvh-bare", "GUEST: ignoring poweroff", GUEST_LIMIT).expect("ignores");
    host.check(&["xl", "destroy", "pvh-bare"]).expect("destroys");
}

#[test]
fn a_waited_for_text_that_does_not_come_fails_with_what_came() {
    let host = start();
    host.check_shell("echo something else >/root/log").expect("writes");
    let error = host.wait_for_text("/root/log", "wanted", Duration::from_secs(1)).expect_err("does not come");
    assert!(error.to_string().contains("something else"), "{error}");
}

#[test]
fn a_machine_that_hangs_or_dies_is_told_from_a_slow_command() {
    let host = start();
    let signal = |name: &str| {
        let status = Command::new("kill").args([name, &host.pid().to_string()]).status();
        assert!(status.expect("kill").success());
    };
    signal("-STOP");
    let error = host.run_within(&["true"], Duration::from_secs(1)).expect_err("hangs");
    assert!(matches!(&error, Error::Deadline { .. }), "{error}");
    signal("-KILL");
    let error = host.run(&["true"]).expect_err("is dead");
    assert!(matches!(&error, Error::QemuEnded { status: 137, .. }), "{error}");
}

#[test]
fn a_named_host_is_found_again_and_ends() {
    let name = format!("test-{}", std::process::id());
    let template = base();
    drop(template.start_named(&name).expect("starts"));
    assert!(Host::list().expect("lists").contains(&name));
    assert!(matches!(template.start_named(&name), Err(Error::AlreadyRunning { .. })));
    let host = Host::attach(&name).expect("is there");
    assert!(host.check(&["xl", "list"]).expect("xl list").contains("Domain-0"));
    host.shutdown().expect("ends");
    assert!(matches!(Host::attach(&name), Err(Error::NotRunning { .. })));
}

#[test]
fn the_c_xenstored_serves_too() {
    let host = Template::base(Options { c_xenstored: true, ..Options::default() })
        .expect("a template")
        .start()
        .expect("a clone");
    host.check(&["pgrep", "-x", "xenstored"]).expect("runs");
    assert!(host.check(&["xl", "list"]).expect("xl list").contains("Domain-0"));
}

#[test]
fn a_layer_is_in_every_clone_and_is_made_once() {
    let tool = Scratch::new("tool");
    fs::write(&tool.0, "#!/bin/sh\necho tool says $1\n").expect("writes");
    Command::new("chmod").arg("755").arg(&tool.0).status().expect("chmod");
    let files = [(tool.0.as_path(), "/usr/local/bin/tool")];
    let layer =
        Layer { name: "a tool", files: &files, script: "tool hello >/root/said; date +%s%N >/root/when" };
    let base = base();
    let when = |template: Template| {
        let host = template.start().expect("a clone");
        assert_eq!(host.check(&["cat", "/root/said"]).expect("reads"), "tool says hello\n");
        host.check(&["cat", "/root/when"]).expect("reads")
    };
    let first = when(base.layer(&layer).expect("a layer"));
    assert_eq!(first, when(base.layer(&layer).expect("the same layer")));
    let failing = Layer { script: "echo broken >&2; exit 9", ..layer };
    assert!(matches!(base.layer(&failing), Err(Error::Command { status: 9, .. })));
}

#[test]
fn sockets_are_forwarded() {
    let host = start();
    host.check_shell("setsid socat UNIX-LISTEN:/run/echo.sock,fork EXEC:cat >/dev/null 2>&1 & for n in 1 2 3 4 5 6 7 8 9; do [ -S /run/echo.sock ] && break; sleep 0.2; done; [ -S /run/echo.sock ]")
        .expect("a server");
    let local = Scratch::new("echo.sock");
    let forward = host.forward_unix(&local.0, "/run/echo.sock").expect("forwards");
    for n in 0..3 {
        let mut stream = UnixStream::connect(forward.local()).expect("connects");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        writeln!(stream, "hello {n}").expect("writes");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("reads");
        assert_eq!(line, format!("hello {n}\n"));
    }
    drop(forward);
    assert!(!local.0.exists());
}

/// Set in the child of the test below: the child is this test binary.
const CHILD: &str = "XEN_HOST_TEST_CHILD";

#[test]
fn a_killed_test_leaves_no_qemu() {
    if env::var_os(CHILD).is_some() {
        let host = start();
        println!("{CHILD}={}", host.console_log().display());
        // Until killed.
        let mut wait = String::new();
        let _ = io::stdin().read_to_string(&mut wait);
        return;
    }
    // Made here, within this test's time, and not in the child.
    base();
    let mut child = Command::new(env::current_exe().expect("this program"))
        .args(["--exact", "a_killed_test_leaves_no_qemu", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let prefix = format!("{CHILD}=");
    let console =
        lines.map_while(Result::ok).find_map(|l| l.split_once(&prefix).map(|(_, path)| path.to_owned()));
    let console = console.expect("the child's host is up");
    let directory = Path::new(&console).parent().expect("a directory");
    let mut monitor = UnixStream::connect(directory.join("qmp.sock")).expect("QEMU runs");
    monitor.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    child.kill().expect("kill -9");
    child.wait().expect("is gone");
    // The monitor's end is QEMU's end.
    let mut rest = Vec::new();
    if let Err(error) = monitor.read_to_end(&mut rest) {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "QEMU outlived its test");
    }
}
