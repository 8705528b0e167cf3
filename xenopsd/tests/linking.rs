//! How the programs are linked: what `xenops` does not map at each start, and what no program goes without.

use std::fs;

/// The bytes of a program.
fn program(path: &str) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn names(program: &[u8], library: &str) -> bool {
    program.windows(library.len()).any(|window| window == library.as_bytes())
}

#[test]
fn xenops_brings_its_unwinder_and_the_daemon_takes_the_systems() {
    let (client, daemon) = (program(env!("CARGO_BIN_EXE_xenops")), program(env!("CARGO_BIN_EXE_xenopsd")));
    assert!(!names(&client, "libgcc_s.so.1") && names(&client, "libc.so.6"));
    assert!(names(&daemon, "libgcc_s.so.1"));
}

#[test]
fn both_are_loaded_anywhere() {
    /// `e_type` of a program that is loaded at an address of the kernel's choice (elf(5)).
    const ET_DYN: u8 = 3;
    for path in [env!("CARGO_BIN_EXE_xenops"), env!("CARGO_BIN_EXE_xenopsd")] {
        assert_eq!(program(path)[16..18], [ET_DYN, 0], "{path}");
    }
}
