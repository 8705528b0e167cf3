//! Commands on one VM.

use crate::api::{
    PowerState, Vm, VmList, VmPause, VmReboot, VmRemove, VmShutdown, VmStart, VmStat, VmState, VmUnpause,
};

use super::args::StopArgs;
use super::error::{CliError, ConsoleError};
use super::resolve::{Known, resolve};
use super::{Session, console};

/// The VM that a word on the command line means.
pub(super) fn find(session: &Session<'_, '_>, wanted: &str) -> Result<Known, CliError> {
    let vms = session.client.call(&VmList { debug_info: session.dbg(), unit: () })?;
    let known: Vec<Known> = vms.into_iter().map(|(vm, _)| Known { id: vm.id, name: vm.name }).collect();
    Ok(resolve(wanted, &known)?.clone())
}

pub(super) fn stat(session: &Session<'_, '_>, id: &str) -> Result<(Vm, VmState), CliError> {
    Ok(session.client.call(&VmStat { debug_info: session.dbg(), id: id.to_owned() })?)
}

/// Whether it is in a domain, with a guest that can be asked for something.
pub(super) fn has_domain(state: &VmState) -> bool {
    matches!(state.power_state, PowerState::Running | PowerState::Paused)
}

pub(super) fn start(
    session: &mut Session<'_, '_>,
    wanted: &str,
    paused: bool,
    with_console: bool,
) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    start_known(session, &vm, paused, with_console)
}

/// Starting leaves a VM paused; it is unpaused when its console, if wanted, is connected.
pub(super) fn start_known(
    session: &mut Session<'_, '_>,
    vm: &Known,
    paused: bool,
    with_console: bool,
) -> Result<(), CliError> {
    let call = VmStart { debug_info: session.dbg(), id: vm.id.clone(), paused: false };
    let task = session.client.call(&call)?;
    session.wait(&format!("starting {}", vm.name), &task)?;
    let terminal = if with_console { Some(open_console(session, vm)?) } else { None };
    if !paused {
        unpause_known(session, vm)?;
    }
    terminal.map_or(Ok(()), |terminal| attach(session, terminal))
}

pub(super) fn console(session: &mut Session<'_, '_>, wanted: &str) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    let terminal = open_console(session, &vm)?;
    attach(session, terminal)
}

pub(super) fn console_log(session: &mut Session<'_, '_>, wanted: &str) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    let terminal = open_console(session, &vm)?;
    let console::Link::Socket(server) = terminal.link else {
        return Err(ConsoleError::NoLog { vm: vm.name }.into());
    };
    let log = console::log(server).map_err(|source| ConsoleError::Io {
        action: "read the log of",
        path: terminal.path,
        source,
    })?;
    Ok(session.streams.out.write_all(&log)?)
}

fn open_console(session: &Session<'_, '_>, vm: &Known) -> Result<console::Terminal, CliError> {
    let (_, state) = stat(session, &vm.id)?;
    let domid = state.domids.last().and_then(|domid| u16::try_from(*domid).ok());
    let domid = domid.ok_or_else(|| ConsoleError::NotRunning {
        vm: vm.name.clone(),
        state: format!("{:?}", state.power_state).to_lowercase(),
    })?;
    Ok(console::open(domid, &state)?)
}

fn attach(session: &mut Session<'_, '_>, terminal: console::Terminal) -> Result<(), CliError> {
    session.streams.out.flush()?;
    // A hint for people; a script's error stream stays empty.
    if session.streams.progress {
        writeln!(session.streams.err, "Connected; Ctrl-] disconnects.")?;
    }
    let end = console::attach(terminal)?;
    if end == console::End::HungUp && session.streams.progress {
        writeln!(session.streams.err, "\r\nThe domain has stopped or restarted; its console is closed.")?;
    }
    Ok(())
}

pub(super) fn pause(session: &mut Session<'_, '_>, wanted: &str) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    let task = session.client.call(&VmPause { debug_info: session.dbg(), id: vm.id })?;
    session.wait(&format!("pausing {}", vm.name), &task)
}

pub(super) fn unpause(session: &mut Session<'_, '_>, wanted: &str) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    unpause_known(session, &vm)
}

pub(super) fn unpause_known(session: &mut Session<'_, '_>, vm: &Known) -> Result<(), CliError> {
    let task = session.client.call(&VmUnpause { debug_info: session.dbg(), id: vm.id.clone() })?;
    session.wait(&format!("unpausing {}", vm.name), &task)
}

pub(super) fn shutdown(session: &mut Session<'_, '_>, wanted: &str, how: &StopArgs) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    shutdown_known(session, &vm, how.delay())
}

fn shutdown_known(session: &mut Session<'_, '_>, vm: &Known, delay: Option<f64>) -> Result<(), CliError> {
    let task = session.client.call(&VmShutdown { debug_info: session.dbg(), id: vm.id.clone(), delay })?;
    session.wait(&format!("shutting down {}", vm.name), &task)
}

pub(super) fn reboot(session: &mut Session<'_, '_>, wanted: &str, how: &StopArgs) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    let call = VmReboot { debug_info: session.dbg(), id: vm.id, delay: how.delay() };
    let task = session.client.call(&call)?;
    session.wait(&format!("rebooting {}", vm.name), &task)
}

pub(super) fn destroy(session: &mut Session<'_, '_>, wanted: &str) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    // Of a halted VM it removes what may be left, and succeeds.
    shutdown_known(session, &vm, None)?;
    Ok(session.client.call(&VmRemove { debug_info: session.dbg(), id: vm.id })?)
}

pub(super) fn remove(session: &mut Session<'_, '_>, wanted: &str) -> Result<(), CliError> {
    let vm = find(session, wanted)?;
    Ok(session.client.call(&VmRemove { debug_info: session.dbg(), id: vm.id })?)
}
