//! GRUB 2: `grub.cfg` is a script, and is run as one, within bounds.
//!
//! ```text
//!   text ── syntax ──► statements ── run ──► entries (their blocks run too, each in a copy of the variables)
//! ```
//! Commands that only show something, load a module or wait do nothing. `save_env` does nothing either, as on a file
//! system that GRUB cannot write to.

mod command;
mod condition;
mod run;
mod syntax;

use super::Menu;
use crate::{error::Result, volumes::Volumes};

/// Reads the configuration `file` of a volume.
///
/// # Errors
/// [`crate::Error::Config`] when the script is none; limits; read errors.
pub fn parse(volumes: &mut Volumes, volume: usize, file: &str, text: &str) -> Result<Menu> {
    let script = syntax::parse(file, text)?;
    run::Runner::new(volumes, volume, file).menu(&script)
}

/// Parses a script; for fuzzing.
///
/// # Errors
/// As [`parse`].
pub fn fuzz(text: &str) -> Result<()> {
    syntax::parse("fuzz", text).map(drop)
}
