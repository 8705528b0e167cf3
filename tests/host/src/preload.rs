//! The library that mends a defect of Debian's QEMU for the nested host; `assets/interrupt-lock.c` says which. It is compiled
//! when it is first needed and kept under `target/nested`.

use crate::{
    error::{Context as _, Result},
    hash::Key,
    lock::Lock,
    paths::{self, Building},
    process,
};
use std::{fs, path::PathBuf, process::Command, time::Duration};

/// Its source.
const SOURCE: &str = include_str!("../assets/interrupt-lock.c");

/// Longest compilation of its sixty lines.
const LIMIT: Duration = Duration::from_secs(60);

/// The library's path.
///
/// # Errors
/// When it cannot be compiled or put in its place.
pub(crate) fn library() -> Result<PathBuf> {
    let mut key = Key::new("interrupt-lock");
    key.field(SOURCE.as_bytes());
    let name = format!("interrupt-lock-{key}.so");
    let path = paths::nested()?.join(&name);
    if path.exists() {
        return Ok(path);
    }
    let _lock = Lock::exclusive(&name)?;
    let building = Building::new(&name)?;
    let (source, made) = (building.path().join("source.c"), building.path().join("library.so"));
    fs::write(&source, SOURCE).at("write", &source)?;
    let mut compile = Command::new("cc");
    compile.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]).arg(&made).arg(&source);
    process::check(&mut compile, LIMIT)?;
    // Another process may have done the same while the lock was waited for; it is the same library.
    fs::rename(&made, &path).at("rename", &made)?;
    Ok(path)
}
