//! `cargo xtask install` into a tree, and out of it again.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// Programs that print what the real ones do as far as it is installed.
fn built(directory: &Path) {
    let client = "#!/bin/sh\ncase \"$*\" in\nman) printf 'xenops\\\\-vbd(1)\\nxenops\\\\-fast\\\\-resume(1)\\n' ;;\n\
                  'man vbd') printf 'xenops\\\\-vbd\\\\-list(1)\\n' ;;\n'man vbd list' | 'man fast-resume') echo page ;;\n'completions bash' | 'completions zsh' | 'completions fish') \
                  echo for $2 ;;\n*) exit 2 ;;\nesac\n";
    let daemon = "#!/bin/sh\necho $2 of the daemon\n";
    for (name, text) in
        [("xenops", client), ("xenopsd", daemon), ("vncterm", "v"), ("pygrub", "p"), ("eliloader", "e")]
    {
        let path = directory.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn xtask(what: &str, tree: &Path, from: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args([what, "--prefix", "/usr", "--destdir"]).arg(tree).arg("--from").arg(from);
    command.output().unwrap()
}

/// Every file below, seen from there.
fn files(tree: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![tree.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                open.push(entry);
            } else {
                found.push(entry.strip_prefix(tree).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn what_is_installed_can_be_removed_and_settings_stay() {
    let (from, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    built(from.path());
    let output = xtask("install", tree.path(), from.path());
    assert!(output.status.success(), "{output:?}");
    let expected = [
        "etc/xenopsd.conf",
        "usr/bin/xenops",
        "usr/lib/systemd/system/xenopsd.service",
        "usr/libexec/xenopsd/eliloader",
        "usr/libexec/xenopsd/pygrub",
        "usr/libexec/xenopsd/vncterm",
        "usr/sbin/xenopsd",
        "usr/share/bash-completion/completions/xenops",
        "usr/share/fish/vendor_completions.d/xenops.fish",
        "usr/share/man/man1/xenops-fast-resume.1",
        "usr/share/man/man1/xenops-vbd-list.1",
        "usr/share/man/man1/xenops-vbd.1",
        "usr/share/man/man1/xenops.1",
        "usr/share/man/man8/xenopsd.8",
        "usr/share/zsh/site-functions/_xenops",
    ];
    assert_eq!(files(tree.path()), expected.map(PathBuf::from));
    let read = |path: &str| fs::read_to_string(tree.path().join(path)).unwrap();
    assert_eq!(read("etc/xenopsd.conf"), "settings of the daemon\n");
    assert!(read("usr/lib/systemd/system/xenopsd.service").contains("\nExecStart=/usr/sbin/xenopsd\n"));
    let mode = |path: &str| fs::metadata(tree.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("usr/sbin/xenopsd"), mode("etc/xenopsd.conf")), (0o755, 0o644));

    // Again, with settings of the site's and a newer program.
    fs::write(tree.path().join("etc/xenopsd.conf"), "log-level = debug\n").unwrap();
    fs::write(from.path().join("vncterm"), "newer").unwrap();
    assert!(xtask("install", tree.path(), from.path()).status.success());
    assert_eq!(
        (read("etc/xenopsd.conf").as_str(), read("usr/libexec/xenopsd/vncterm").as_str()),
        ("log-level = debug\n", "newer")
    );

    assert!(xtask("uninstall", tree.path(), from.path()).status.success());
    assert_eq!(files(tree.path()), [PathBuf::from("etc/xenopsd.conf")]);
    // There is nothing left to remove, which is no failure.
    assert!(xtask("uninstall", tree.path(), from.path()).status.success());
}

#[test]
fn nothing_is_installed_of_a_half_built_tree() {
    let (from, tree) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    built(from.path());
    fs::remove_file(from.path().join("eliloader")).unwrap();
    let output = xtask("install", tree.path(), from.path());
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("eliloader is not built"), "{output:?}");
    assert_eq!(files(tree.path()), Vec::<PathBuf>::new());
}

#[test]
fn the_unit_is_one() {
    let unit = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../xenopsd/dist/xenopsd.service"))
        .unwrap();
    // Device models and terminal servers are the guests', not the daemon's.
    assert!(unit.lines().any(|line| line == "KillMode=process"));
    assert!(unit.lines().any(|line| line == "Type=notify"));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("xenopsd.service");
    fs::write(&path, unit.replace("@SBINDIR@/xenopsd", "/bin/true")).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output();
    let output = output.expect("systemd-analyze is of Debian's systemd package");
    assert!(output.status.success(), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("xenopsd.service"), "{output:?}");
}
