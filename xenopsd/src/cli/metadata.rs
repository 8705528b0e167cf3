//! `xenops export`, `import` and `diagnostics`.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use crate::api::{GetDiagnostics, VmExportMetadata, VmImportMetadata};

use super::Session;
use super::error::CliError;
use super::vm;

/// Longest text imported, in bytes: the daemon takes no longer request.
const TEXT_MAX: u64 = 16 << 20;

pub(super) fn export(
    session: &mut Session<'_, '_>,
    wanted: &str,
    file: Option<&Path>,
) -> Result<(), CliError> {
    let vm = vm::find(session, wanted)?;
    let mut text = session.client.call(&VmExportMetadata { debug_info: session.dbg(), id: vm.id })?;
    text.push('\n');
    match file {
        None => session.print(&text),
        Some(file) => std::fs::write(file, text)
            .map_err(|source| CliError::Write { file: file.display().to_string(), source }),
    }
}

pub(super) fn import(session: &mut Session<'_, '_>, file: &Path) -> Result<(), CliError> {
    let metadata =
        read(file).map_err(|source| CliError::File { file: file.display().to_string(), source })?;
    let id = session.client.call(&VmImportMetadata { debug_info: session.dbg(), metadata })?;
    session.print_id(&id, &id)
}

fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    if file == Path::new("-") {
        io::stdin().take(TEXT_MAX + 1).read_to_string(&mut text)?;
    } else {
        File::open(file)?.take(TEXT_MAX + 1).read_to_string(&mut text)?;
    }
    let fits = u64::try_from(text.len()).is_ok_and(|length| length <= TEXT_MAX);
    if fits { Ok(text) } else { Err(io::ErrorKind::FileTooLarge.into()) }
}

pub(super) fn diagnostics(session: &mut Session<'_, '_>) -> Result<(), CliError> {
    let mut text = session.client.call(&GetDiagnostics { debug_info: session.dbg(), unit: () })?;
    text.push('\n');
    session.print(&text)
}
