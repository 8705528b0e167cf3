//! Why a command failed, what to do about it, and the exit code that tells a script.

use std::io;
use std::path::PathBuf;

use crate::api;
use crate::edge::linux::nic::CardError;
use crate::rfb::{Address, PictureError, RfbError};
use crate::rpc::ClientError;
use crate::xlcfg::{ConfigErrors, Fault};

use super::resolve::ResolveError;

const FAILED: u8 = 1;
pub(super) const USAGE: u8 = 2;
const UNREACHABLE: u8 = 3;
const NO_SUCH_VM: u8 = 4;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration file has mistakes.
    #[error("{file} cannot be used:\n{errors}")]
    Config {
        /// The file.
        file: String,
        /// Its mistakes.
        errors: ConfigErrors,
    },
    /// The configuration file cannot be read.
    #[error("cannot read {file}: {source}")]
    File {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be written.
    #[error("cannot write {file}: {source}")]
    Write {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// No such page.
    #[error("there is no command {name:?}; `xenops help` lists them")]
    NoSuchCommand {
        /// What was asked for.
        name: String,
    },
    /// The VM to create is there.
    #[error(
        "a VM with {what} exists already ({id}); remove it first with `xenops remove {id}`, or change the file"
    )]
    Exists {
        /// What they share.
        what: String,
        /// The one that exists.
        id: String,
    },
    /// The name does not mean one VM.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The daemon does not answer, or refused.
    #[error("{}", client_text(.0))]
    Client(Box<ClientError>),
    /// Creating failed half-way and so did taking it back.
    #[error("{first}\nand VM {id} could not be removed again ({second}); do so with `xenops remove {id}`")]
    HalfCreated {
        /// The VM.
        id: String,
        /// Why creating failed.
        first: Box<CliError>,
        /// Why removing failed.
        second: Box<ClientError>,
    },
    /// The console.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The screen.
    #[error(transparent)]
    Screen(#[from] ScreenError),
    /// A device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A network card.
    #[error(transparent)]
    Card(#[from] CardError),
    /// `check` has printed what is missing.
    #[error("{missing} essential things are missing")]
    NotReady {
        /// How many.
        missing: usize,
    },
    /// Writing the result.
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// Why a device was not changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It is described wrongly.
    #[error("the {what} {spec:?} cannot be used: {fault}")]
    Spec {
        /// `disk` or `interface`.
        what: &'static str,
        /// As it was given.
        spec: String,
        /// What is wrong.
        fault: Fault,
    },
    /// The VM has none of this name.
    #[error("VM {vm} has no {kind} {wanted:?}{}", present_hint(present))]
    None {
        /// `vbd` or `vif`.
        kind: &'static str,
        /// The VM's name.
        vm: String,
        /// What was asked for.
        wanted: String,
        /// Those it has.
        present: Vec<String>,
    },
    /// The VM has one like it.
    #[error(
        "VM {vm} has {kind} {device} in this place already; `xenops {kind} list {vm}` shows it, and `xenops {kind} \
         detach {vm} {device}` takes it away"
    )]
    Taken {
        /// `vbd` or `vif`.
        kind: &'static str,
        /// The VM's name.
        vm: String,
        /// The one that it has.
        device: String,
    },
    /// Plugging failed, and so did taking it back.
    #[error(
        "{first}\nand {kind} {device} could not be forgotten again ({second}); do so with `xenops {kind} detach {vm} \
         {device}`"
    )]
    Half {
        /// `vbd` or `vif`.
        kind: &'static str,
        /// The VM's name.
        vm: String,
        /// The new device.
        device: String,
        /// Why plugging failed.
        first: Box<CliError>,
        /// Why removing failed.
        second: Box<ClientError>,
    },
}

impl DeviceError {
    pub(super) fn spec(what: &'static str, spec: &str, fault: Fault) -> Self {
        Self::Spec { what, spec: spec.to_owned(), fault }
    }
}

fn present_hint(present: &[String]) -> String {
    if present.is_empty() { "; it has none".to_owned() } else { format!("; it has {}", present.join(", ")) }
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// The VM has no domain.
    #[error("VM {vm} is {state}: it has a console when it runs; start it with `xenops start {vm} --console`")]
    NotRunning {
        /// The VM's name.
        vm: String,
        /// Its state.
        state: String,
    },
    /// Nobody has made a terminal.
    #[error("domain {domid} has no console yet after {seconds} s: is xenconsoled running? (`xenops check`)")]
    NoTerminal {
        /// The domain.
        domid: u16,
        /// How long it was waited for.
        seconds: u64,
    },
    /// What the store names is no terminal.
    #[error(
        "{path:?} is not opened as the console of domain {domid}: it is not a pseudo-terminal below /dev/pts"
    )]
    NotATerminal {
        /// The domain.
        domid: u16,
        /// What the store names.
        path: String,
    },
    /// Somebody else reads it.
    #[error("another xenops is connected to the console of domain {domid}: disconnect it there with Ctrl-]")]
    Busy {
        /// The domain.
        domid: u16,
    },
    /// Nobody keeps what it prints.
    #[error(
        "nothing is kept of what VM {vm} prints: it has no terminal server, because of `vnc = 0` in the configuration of a \
         pv or pvh guest; xenconsoled may have a log in /var/log/xen/console"
    )]
    NoLog {
        /// The VM's name.
        vm: String,
    },
    /// The store.
    #[error("cannot find the console of domain {domid}: {source}")]
    Store {
        /// The domain.
        domid: u16,
        /// Why.
        source: xenstore::Error,
    },
    /// A system call.
    #[error("cannot {action} the console {path:?}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The terminal or socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why there is no screen, or no picture of it.
#[derive(Debug, thiserror::Error)]
pub enum ScreenError {
    /// The VM has no domain.
    #[error("VM {vm} is {state}: it has a screen when it runs; start it with `xenops start {vm}`")]
    NotRunning {
        /// The VM's name.
        vm: String,
        /// Its state.
        state: String,
    },
    /// It is a text guest, and was defined so.
    #[error(
        "VM {vm} has no VNC screen: it is a text guest, read with `xenops console {vm}`; without `vnc = 0` in its \
         configuration it has one from its next start on"
    )]
    TextOnly {
        /// The VM's name.
        vm: String,
    },
    /// The password that it was to be looked at with.
    #[error("cannot take the password from {file}: {why}")]
    Password {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// What serves it is not there.
    #[error("VM {vm} has no VNC screen now: {server} is not running; the daemon's log says why")]
    NoServer {
        /// The VM's name.
        vm: String,
        /// `its terminal server` or `its device model`.
        server: &'static str,
    },
    /// What the daemon says of it makes no sense.
    #[error("the VNC screen of VM {vm} cannot be at port {port}")]
    Port {
        /// The VM's name.
        vm: String,
        /// As the daemon has it.
        port: crate::api::Int,
    },
    /// Reading it.
    #[error("the screen of VM {vm} at {address}: {source}")]
    Rfb {
        /// The VM's name.
        vm: String,
        /// Where it is.
        address: Address,
        /// Why it was not read.
        source: RfbError,
    },
    /// Its picture.
    #[error("VM {vm}: {source}")]
    Picture {
        /// The VM's name.
        vm: String,
        /// Why.
        source: PictureError,
    },
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        Self::Client(Box::new(error))
    }
}

impl CliError {
    /// Exit code of the program.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config { .. }
            | Self::File { .. }
            | Self::NoSuchCommand { .. }
            | Self::Device(DeviceError::Spec { .. }) => USAGE,
            Self::Card(error) if error.is_usage() => USAGE,
            Self::Resolve(_) => NO_SUCH_VM,
            Self::Client(error) => client_code(error),
            Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe => 0,
            Self::Exists { .. }
            | Self::HalfCreated { .. }
            | Self::Console(_)
            | Self::Device(_)
            | Self::Screen(_)
            | Self::Card(_)
            | Self::NotReady { .. }
            | Self::Write { .. }
            | Self::Output(_) => FAILED,
        }
    }

    /// Whether there is nothing to say: the reader of our output has gone, or everything is said already.
    pub fn is_quiet(&self) -> bool {
        match self {
            Self::NotReady { .. } => true,
            Self::Output(error) => error.kind() == io::ErrorKind::BrokenPipe,
            _ => false,
        }
    }
}

fn client_code(error: &ClientError) -> u8 {
    match error {
        ClientError::NotRunning { .. } | ClientError::Io { .. } | ClientError::Timeout { .. } => UNREACHABLE,
        ClientError::Remote(api::Error::DoesNotExist { kind, .. }) if kind == "VM" => NO_SUCH_VM,
        _ => FAILED,
    }
}

fn client_text(error: &ClientError) -> String {
    let advice = match error {
        ClientError::NotRunning { .. } => {
            "start it with `systemctl start xenopsd`, or run `xenopsd` as root; `xenops check` tells what else is \
             missing, --socket names another socket"
        }
        ClientError::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            "run xenops as root"
        }
        ClientError::Io { .. } => "the daemon may have stopped; `xenops check` tells",
        ClientError::Timeout { .. } => "the daemon hangs or the host is overloaded; its log may tell",
        ClientError::Http { .. } | ClientError::Codec { .. } | ClientError::Result { .. } => {
            "something else than xenopsd, or another version of it, is listening"
        }
        ClientError::Remote(error) => return remote_text(error),
    };
    format!("{error}\n{advice}")
}

fn remote_text(error: &api::Error) -> String {
    use api::Error as E;
    let advice = match error {
        E::NotEnoughMemory(_) | E::CannotFreeThisMuchMemory { .. } => {
            "shut another VM down, or give this one less memory"
        }
        E::FailedToAcknowledgeShutdownRequest | E::FailedToShutdown { .. } => {
            "the guest has no driver for it or hangs; --hard does not ask the guest"
        }
        E::BadPowerState { .. } => "`xenops list` shows the states",
        E::BootloaderError { .. } => "name the kernel in the configuration with kernel = instead",
        E::InternalError(_) => "the daemon's log has more",
        _ => return error.to_string(),
    };
    format!("{error}\n{advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn remote(error: api::Error) -> CliError {
        ClientError::Remote(error).into()
    }

    #[test]
    fn exit_codes_tell_the_kinds_apart() {
        let not_running =
            ClientError::NotRunning { path: "/s".into(), source: io::ErrorKind::NotFound.into() };
        for (error, code) in [
            (remote(api::Error::DomainNotBuilt), 1),
            (remote(api::Error::does_not_exist("VM", "x")), 4),
            (remote(api::Error::does_not_exist("VBD", "x")), 1),
            (not_running.into(), 3),
            (CliError::Resolve(ResolveError::None { wanted: "x".to_owned(), count: 0 }), 4),
            (CliError::NoSuchCommand { name: "x".to_owned() }, 2),
            (CliError::NotReady { missing: 1 }, 1),
            (CliError::Output(io::ErrorKind::BrokenPipe.into()), 0),
            (CliError::Output(io::ErrorKind::StorageFull.into()), 1),
        ] {
            assert_eq!(error.exit_code(), code, "{error}");
        }
    }

    #[test]
    fn errors_say_what_to_do() {
        let denied = ClientError::Io {
            method: "VM.list",
            doing: "connect to",
            path: "/s".into(),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        assert!(CliError::from(denied).to_string().contains("as root"));
        let not_running =
            ClientError::NotRunning { path: "/s".into(), source: io::ErrorKind::NotFound.into() };
        assert!(CliError::from(not_running).to_string().contains("systemctl start xenopsd"));
        assert!(remote(api::Error::NotEnoughMemory(1)).to_string().contains("less memory"));
    }
}
