//! `xenops vnc` and `screenshot`: where a VM's screen is, and a picture of it.

use std::io::Read as _;
use std::path::Path;

use vncterm::rfb::auth::Password;

use crate::api::{BuilderInfo, Console, ConsoleProtocol, Vm, VmState};
use crate::ops::plan::{has_frame_buffer, has_terminal};
use crate::rfb::{self, Address};

use super::Session;
use super::error::{CliError, ScreenError};
use super::vm::{find, stat};

pub(super) fn vnc(session: &mut Session<'_, '_>, wanted: &str) -> Result<(), CliError> {
    let id = find(session, wanted)?.id;
    let (vm, state) = stat(session, &id)?;
    let console = screen(&vm, &state)?;
    if session.json {
        return session.print_json(console);
    }
    let address = address(&vm, console)?;
    session.print(&format!("{address}\n"))
}

pub(super) fn screenshot(
    session: &mut Session<'_, '_>,
    wanted: &str,
    file: &Path,
    password: Option<&Path>,
) -> Result<(), CliError> {
    let password = password.map(read_password).transpose()?;
    let id = find(session, wanted)?.id;
    let (vm, state) = stat(session, &id)?;
    let address = address(&vm, screen(&vm, &state)?)?;
    let picture = rfb::open(&address, rfb::LIMIT)
        .and_then(|mut stream| rfb::capture_as(password.as_ref(), &mut stream, rfb::LIMIT));
    let picture = picture.map_err(|source| ScreenError::Rfb { vm: vm.name.clone(), address, source })?;
    let image = picture.to_png().map_err(|source| ScreenError::Picture { vm: vm.name, source })?;
    if file == Path::new("-") {
        return Ok(session.streams.out.write_all(&image)?);
    }
    std::fs::write(file, image).map_err(|source| CliError::Write { file: file.display().to_string(), source })
}

fn read_password(file: &Path) -> Result<Password, ScreenError> {
    let failed = |why: String| ScreenError::Password { file: file.display().to_string(), why };
    let opened = std::fs::File::open(file).map_err(|error| failed(error.to_string()))?;
    let mut text = Vec::new();
    opened.take(Password::MOST_READ).read_to_end(&mut text).map_err(|error| failed(error.to_string()))?;
    Password::new(&text).map_err(|error| failed(error.to_string()))
}

/// The graphical console of a running VM.
fn screen<'s>(vm: &Vm, state: &'s VmState) -> Result<&'s Console, ScreenError> {
    let name = || vm.name.clone();
    if state.domids.is_empty() {
        let state = format!("{:?}", state.power_state).to_lowercase();
        return Err(ScreenError::NotRunning { vm: name(), state });
    }
    let found = state.consoles.iter().find(|console| console.protocol == ConsoleProtocol::Rfb);
    found.ok_or_else(|| match vm.ty {
        BuilderInfo::Hvm(_) => ScreenError::NoServer { vm: name(), server: "its device model" },
        _ if has_frame_buffer(vm) => {
            ScreenError::NoServer { vm: name(), server: "the server of its frame buffer" }
        }
        _ if has_terminal(vm) => ScreenError::NoServer { vm: name(), server: "its terminal server" },
        _ => ScreenError::TextOnly { vm: name() },
    })
}

fn address(vm: &Vm, console: &Console) -> Result<Address, ScreenError> {
    if !console.path.is_empty() {
        return Ok(Address::Socket(console.path.clone().into()));
    }
    match u16::try_from(console.port) {
        Ok(port) if port > 0 => Ok(Address::Port(port)),
        _ => Err(ScreenError::Port { vm: vm.name.clone(), port: console.port }),
    }
}
