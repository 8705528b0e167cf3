//! Python programs by other authors, in an environment of their own under `target`.
//!
//! `requirements.txt` names every package with its version and its files' hashes. The environment is made by the first test that needs it and
//! kept until that file changes; tests of other processes wait for it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nix::fcntl::{Flock, FlockArg};

/// Seconds that `pip` may take: about ten are usual.
const INSTALL_LIMIT: &str = "180";

/// A program of the environment, `python` among them.
pub(crate) fn program(name: &str) -> PathBuf {
    environment().join("bin").join(name)
}

/// A file beside this one.
pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(name)
}

/// What the command printed.
///
/// # Panics
/// With what it said if it fails.
pub(crate) fn succeed(command: &mut Command) -> Vec<u8> {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert!(status.success(), "{command:?}: {status}: {}", String::from_utf8_lossy(&stderr));
    stdout
}

fn environment() -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let environment = directory.join("python");
    let lock = File::create(directory.join("python.lock")).unwrap();
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    let wanted = fs::read(source("requirements.txt")).unwrap();
    // Written last, so that half of an environment is none.
    let installed = environment.join("requirements.txt");
    if fs::read(&installed).ok().as_ref() != Some(&wanted) {
        install(&environment);
        fs::write(installed, wanted).unwrap();
    }
    environment
}

fn install(environment: &Path) {
    succeed(Command::new("python3").args(["-m", "venv", "--clear"]).arg(environment));
    let pip = || {
        let mut command = Command::new("timeout");
        command.arg(INSTALL_LIMIT).arg(environment.join("bin/pip"));
        command
    };
    // Nothing that is not listed, or has other bytes than when it was, and nothing that runs code of its own to be installed.
    let options =
        ["install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:", "--requirement"];
    succeed(pip().args(options).arg(source("requirements.txt")));
    succeed(pip().arg("check"));
}
