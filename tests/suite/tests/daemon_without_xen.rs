//! The daemon on a machine without Xen, such as this one: it says so and ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The last build of the daemon, with whatever profile.
fn program() -> PathBuf {
    let builds = ["release", "debug"].map(|profile| xen_host::target().join(profile).join("xenopsd"));
    let built = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let newest = builds.into_iter().filter(|path| path.is_file()).max_by_key(built);
    newest.expect("a build of the daemon: `cargo build -p xenopsd` makes one")
}

/// Runs it for half a minute at most.
fn xenopsd(arguments: &[&str]) -> Output {
    let output = Command::new("timeout").arg("30").arg(program()).args(arguments).output();
    output.expect("runs")
}

#[test]
fn no_xen_is_said_and_nothing_is_touched() {
    if Path::new("/proc/xen/capabilities").exists() {
        eprintln!("skipped: this machine runs Xen");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (sockets, database, pidfile) = (path("sockets"), path("db"), path("pid"));
    let output = xenopsd(&["--sockets-path", &sockets, "--database-path", &database, "--pidfile", &pidfile]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["xenopsd: ", "xenopsd runs in dom0 as root", "`xenops check` lists what is missing"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(!said.contains("panicked"), "{said}");
    assert!(output.stdout.is_empty());
    assert_eq!(fs::read_dir(dir.path()).expect("reads").count(), 0, "files were made");
}

#[test]
fn usage_needs_no_xen() {
    for (arguments, code) in
        [(["--help"], 0), (["--version"], 0), (["--print=contract"], 0), (["--nonsense"], 2)]
    {
        let output = xenopsd(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn free_memory_is_not_made_up() {
    if Path::new("/proc/xen/capabilities").exists() {
        eprintln!("skipped: this machine runs Xen");
        return;
    }
    let output = xenopsd(&["--print=free-memory"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("xenopsd: "), "{output:?}");
}

/// Each of the ten would be opened, mapped and relocated before the first line of every command runs.
#[test]
fn the_command_line_loads_no_library_of_xens() {
    let libraries = |program: &Path| {
        let output =
            Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").output().expect("the loader runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let daemon = program();
    assert!(libraries(&daemon).contains("libxenctrl"), "this test sees nothing");
    let found = libraries(&daemon.with_file_name("xenops"));
    assert!(found.contains("libc.so") && !found.contains("libxen"), "{found}");
}
