//! `eliloader`: see the library.

use guest_installer::eliloader::program;
use std::process::ExitCode;

fn main() -> ExitCode {
    guest_installer::main_if_asked().unwrap_or_else(|| program::main(std::env::args_os().skip(1)))
}
