//! `xenops` is a new process for each command, and what that touches first is most of what a command costs: it has the
//! unwinder of gcc's library in itself instead of a shared library that is found, mapped and relocated at each start. The
//! daemon and other programs are linked as rustc does it.

use std::path::PathBuf;
use std::{env, fs, io};

/// What `-lgcc_s` finds for `xenops`: the static halves of the same library.
const LIBRARY: &str = "/* The shared libgcc's static halves. */\nGROUP ( -lgcc_eh -lgcc )\n";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |what| env::var(format!("CARGO_CFG_TARGET_{what}"));
    if target("OS").as_deref() != Ok("linux") || target("ENV").as_deref() != Ok("gnu") {
        return Ok(());
    }
    let directory = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(directory.join("libgcc_s.so"), LIBRARY)?;
    println!("cargo::rustc-link-arg-bin=xenops=-L{}", directory.display());
    Ok(())
}
