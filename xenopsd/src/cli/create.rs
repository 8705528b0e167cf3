//! `xenops create`: a configuration file becomes a VM with its devices, all or nothing.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use crate::api::{Vbd, VbdAdd, Vif, VifAdd, Vm, VmAdd, VmList, VmRemove};
use crate::xlcfg;

use super::args::CreateArgs;
use super::error::CliError;
use super::resolve::Known;
use super::vm;
use super::{Session, Streams};

/// What a configuration file asks for.
pub(super) struct Wanted {
    vm: Vm,
    vbds: Vec<Vbd>,
    vifs: Vec<Vif>,
}

/// Reads the file; needs no daemon, so that a mistake in it is what is reported first.
pub(super) fn prepare(options: &CreateArgs, streams: &mut Streams<'_>) -> Result<Wanted, CliError> {
    let file = options.file.display().to_string();
    let bytes = read(&options.file).map_err(|source| CliError::File { file: file.clone(), source })?;
    let (config, warnings) =
        xlcfg::parse(&bytes).map_err(|errors| CliError::Config { file: file.clone(), errors })?;
    for warning in warnings {
        writeln!(streams.err, "xenops: warning: {file}: {warning}")?;
    }
    let (vm, vbds, vifs) = config.into_api();
    Ok(Wanted { vm, vbds, vifs })
}

pub(super) fn create(
    session: &mut Session<'_, '_>,
    options: &CreateArgs,
    wanted: Wanted,
) -> Result<(), CliError> {
    refuse_existing(session, &wanted.vm)?;
    let known = Known { id: wanted.vm.id.clone(), name: wanted.vm.name.clone() };
    add(session, wanted)?;
    session.print_id(&known.id, &known.id)?;
    if options.start {
        session.streams.out.flush()?;
        vm::start_known(session, &known, options.paused, false)?;
    }
    Ok(())
}

/// One byte more than a configuration can have is enough to see that it is too long.
fn read(file: &Path) -> io::Result<Vec<u8>> {
    let limit = u64::try_from(xlcfg::syntax::FILE_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    if file == Path::new("-") {
        io::stdin().lock().take(limit).read_to_end(&mut bytes)?;
    } else {
        File::open(file)?.take(limit).read_to_end(&mut bytes)?;
    }
    Ok(bytes)
}

/// `VM.add` replaces a VM of the same id without a word, which is not what "create" means.
fn refuse_existing(session: &Session<'_, '_>, vm: &Vm) -> Result<(), CliError> {
    let present = session.client.call(&VmList { debug_info: session.dbg(), unit: () })?;
    for (other, _) in present {
        let what = if other.id == vm.id {
            "this uuid".to_owned()
        } else if other.name == vm.name {
            format!("the name {:?}", vm.name)
        } else {
            continue;
        };
        return Err(CliError::Exists { what, id: other.id });
    }
    Ok(())
}

fn add(session: &Session<'_, '_>, wanted: Wanted) -> Result<(), CliError> {
    let id = wanted.vm.id.clone();
    let Err(first) = add_all(session, wanted) else { return Ok(()) };
    match session.client.call(&VmRemove { debug_info: session.dbg(), id: id.clone() }) {
        // The VM itself may be what could not be added.
        Ok(()) | Err(crate::rpc::ClientError::Remote(crate::api::Error::DoesNotExist { .. })) => Err(first),
        Err(second) => Err(CliError::HalfCreated { id, first: Box::new(first), second: Box::new(second) }),
    }
}

fn add_all(session: &Session<'_, '_>, wanted: Wanted) -> Result<(), CliError> {
    session.client.call(&VmAdd { debug_info: session.dbg(), vm: wanted.vm })?;
    for vbd in wanted.vbds {
        session.client.call(&VbdAdd { debug_info: session.dbg(), vbd })?;
    }
    for vif in wanted.vifs {
        session.client.call(&VifAdd { debug_info: session.dbg(), vif })?;
    }
    Ok(())
}
