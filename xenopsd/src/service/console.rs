//! Which screen a client is connected to that wants a VM's console.

use crate::api::{Console, ConsoleProtocol, Error};
use crate::core::Core;
use crate::domain::observe;
use crate::rfb::Address;
use crate::rpc::console::{ConsoleCall, Consoles};

/// Connects it, or turns it away: `404` for a VM that is not there, does not run or has no screen.
pub(super) fn serve(core: &Core, consoles: &Consoles, call: ConsoleCall) {
    match screen(core, &call.request.vm) {
        Ok(Some(address)) => consoles.start(call, address),
        Ok(None) | Err(Error::DoesNotExist { .. }) => call.refuse("404 Not Found"),
        Err(error) => {
            tracing::error!(vm = call.request.vm, %error, "a console's VM cannot be looked at");
            call.refuse("500 Internal Server Error");
        }
    }
}

fn screen(core: &Core, vm: &str) -> Result<Option<Address>, Error> {
    let state = observe::state(core, &core.records.vm(vm)?)?;
    let console = state.consoles.iter().find(|console| console.protocol == ConsoleProtocol::Rfb);
    Ok(console.and_then(address))
}

fn address(console: &Console) -> Option<Address> {
    if !console.path.is_empty() {
        return Some(Address::Socket(console.path.clone().into()));
    }
    u16::try_from(console.port).ok().filter(|port| *port > 0).map(Address::Port)
}
