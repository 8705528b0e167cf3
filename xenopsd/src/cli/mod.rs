//! The `xenops` command: what an administrator types becomes calls of the contract.
//!
//! ```text
//!  args ──► run ─┬─► vm, create, show, explain, events ──► rpc::client ──► daemon
//!                ├─► vbd, vif ──► device, machine ───────► rpc::client ──► daemon
//!                ├─► console ──► pty of xenconsoled, or the socket of a terminal server
//!                ├─► screen ───► rfb ──► terminal server or device model ──► PNG
//!                ├─► nic ──────► the kernel
//!                ├─► check ────► facts of this host ──► verdicts
//!                └─► completions, man
//! ```
//!
//! Names, table layout, exit codes and verdicts are pure functions; everything is written to the streams given to
//! [`run`], so that tests see what a terminal would.

mod agent;
pub mod args;
mod check;
mod console;
mod create;
mod device;
mod error;
mod events;
mod explain;
mod machine;
mod metadata;
mod nic;
mod progress;
mod resolve;
mod screen;
#[cfg(test)]
mod screen_tests;
mod show;
mod suspend;
mod table;
#[cfg(test)]
mod tests;
mod vbd;
mod vif;
mod vm;

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::api::value::{Text, ToValue, Value};
use crate::rpc::codec::Codec;
use crate::rpc::{Client, json};
use crate::xlcfg::Remark;

use args::{Cli, Command, Daemon, Definition, Image, Life, Local, Machine, View};
pub use error::{CliError, ConsoleError, DeviceError, ScreenError};
pub(crate) use table::printable;

/// Where a command writes.
pub struct Streams<'a> {
    /// Results.
    pub out: &'a mut dyn Write,
    /// Warnings, errors, progress.
    pub err: &'a mut dyn Write,
    /// Whether `err` is a terminal, so that a line can be written over.
    pub progress: bool,
}

/// The program: arguments and streams of the process.
pub fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    let cli = match args::parse(&words) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are such errors too; a closed pipe is all that can go wrong here.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { error::USAGE } else { 0 });
        }
    };
    let (mut out, mut err) = (io::stdout(), io::stderr());
    let progress = err.is_terminal();
    let mut streams = Streams { out: &mut out, err: &mut err, progress };
    let result = run(&cli, &mut streams).and_then(|()| Ok(streams.out.flush()?));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is_quiet() {
                let _ = writeln!(streams.err, "xenops: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs one command.
///
/// # Errors
///
/// [`CliError`]; its text says what to do, its exit code is the program's.
pub fn run(cli: &Cli, streams: &mut Streams<'_>) -> Result<(), CliError> {
    let session = &mut Session::new(cli, streams);
    match &cli.command {
        Command::Definition(command) => definition(session, command),
        Command::View(command) => view(session, command),
        Command::Life(command) => life(session, command),
        Command::Image(command) => image(session, command),
        Command::Machine(command) => machine(session, command),
        Command::Daemon(command) => daemon(session, command),
        Command::Local(command) => local(cli, command, session.streams),
    }
}

fn definition(session: &mut Session<'_, '_>, command: &Definition) -> Result<(), CliError> {
    match command {
        Definition::Create(options) => {
            let wanted = create::prepare(options, session.streams)?;
            create::create(session, options, wanted)
        }
        Definition::Destroy { vm } => vm::destroy(session, vm),
        Definition::Remove { vm } => vm::remove(session, vm),
        Definition::Export { vm, file } => metadata::export(session, vm, file.as_deref()),
        Definition::Import { file } => metadata::import(session, file),
    }
}

fn view(session: &mut Session<'_, '_>, command: &View) -> Result<(), CliError> {
    match command {
        View::List => show::list(session),
        View::Show { vm } => show::show(session, vm),
        View::Explain { vm } => explain::explain(session, vm),
        View::Console { vm, log: false } => vm::console(session, vm),
        View::Console { vm, log: true } => vm::console_log(session, vm),
        View::Vnc { vm } => screen::vnc(session, vm),
        View::Screenshot { vm, file, password_file } => {
            screen::screenshot(session, vm, file, password_file.as_deref())
        }
    }
}

fn life(session: &mut Session<'_, '_>, command: &Life) -> Result<(), CliError> {
    match command {
        Life::Start { vm, paused, console } => vm::start(session, vm, *paused, *console),
        Life::Pause { vm } => vm::pause(session, vm),
        Life::Unpause { vm } => vm::unpause(session, vm),
        Life::Shutdown { vm, how } => vm::shutdown(session, vm, how),
        Life::Reboot { vm, how } => vm::reboot(session, vm, how),
    }
}

fn image(session: &mut Session<'_, '_>, command: &Image) -> Result<(), CliError> {
    match command {
        Image::Suspend { vm, file } => suspend::suspend(session, vm, file.as_deref()),
        Image::Resume { vm, file, paused } => suspend::resume(session, vm, file.as_deref(), *paused),
        Image::Checkpoint { vm, file } => suspend::checkpoint(session, vm, file),
        Image::FastResume { vm } => suspend::fast_resume(session, vm),
    }
}

fn machine(session: &mut Session<'_, '_>, command: &Machine) -> Result<(), CliError> {
    match command {
        Machine::Vbd(command) => vbd::run(session, command),
        Machine::Vif(command) => vif::run(session, command),
        Machine::Vcpus { vm, count } => machine::vcpus(session, vm, *count),
        Machine::Memory { vm, mib, max } => machine::memory(session, vm, *mib, *max),
    }
}

fn daemon(session: &mut Session<'_, '_>, command: &Daemon) -> Result<(), CliError> {
    match command {
        Daemon::Events { follow } => events::events(session, *follow),
        Daemon::Tasks => events::tasks(session),
        Daemon::Cancel { task } => events::cancel(session, task),
        Daemon::Diagnostics => metadata::diagnostics(session),
    }
}

fn local(cli: &Cli, command: &Local, streams: &mut Streams<'_>) -> Result<(), CliError> {
    match command {
        Local::Nic { card, settings } => nic::run(card.as_deref(), settings, cli.json, streams),
        Local::Check => check::run(&cli.socket, cli.json, streams),
        Local::Completions { shell } => completions(*shell, streams),
        Local::Man { command } => man(command, streams),
    }
}

/// A command with a daemon to speak to.
struct Session<'s, 'w> {
    client: Client,
    /// What the daemon's log says of our calls.
    debug_info: String,
    json: bool,
    streams: &'s mut Streams<'w>,
}

impl<'s, 'w> Session<'s, 'w> {
    fn new(cli: &Cli, streams: &'s mut Streams<'w>) -> Self {
        // The daemon's two sockets differ in their encoding.
        let json_socket = cli.socket.extension().is_some_and(|extension| extension == "json");
        let client = Client::new(&cli.socket, if json_socket { Codec::Json } else { Codec::Xml });
        Self { client, debug_info: format!("xenops {}", cli.command.name()), json: cli.json, streams }
    }

    fn dbg(&self) -> String {
        self.debug_info.clone()
    }

    fn print(&mut self, text: &str) -> Result<(), CliError> {
        Ok(self.streams.out.write_all(text.as_bytes())?)
    }

    /// Prints a value as the contract's JSON, on one line.
    fn print_json(&mut self, value: &impl ToValue) -> Result<(), CliError> {
        print_json(self.streams, &value.to_value())
    }

    /// Prints the id of what is new: for people as `shown`.
    fn print_id(&mut self, id: &impl ToValue, shown: &str) -> Result<(), CliError> {
        if self.json {
            return self.print_json(&Value::Dict(vec![(Text::from("id"), id.to_value())]));
        }
        self.print(&format!("{}\n", printable(shown)))
    }

    /// Warns of what has no effect.
    fn remark(&mut self, remarks: &[Remark]) -> Result<(), CliError> {
        for Remark { found, why } in remarks {
            writeln!(self.streams.err, "xenops: warning: {found:?} is ignored: {why}")?;
        }
        Ok(())
    }

    /// Waits for a task, with its progress on a terminal.
    fn wait(&mut self, label: &str, task: &str) -> Result<(), CliError> {
        let mut progress = progress::Progress::new(label, self.streams);
        let result = self.client.finish_task(&self.debug_info, task, |task| progress.show(task));
        progress.clear();
        result?;
        Ok(())
    }
}

fn print_json(streams: &mut Streams<'_>, value: &Value) -> Result<(), CliError> {
    let mut line = json::print(value);
    line.push(b'\n');
    Ok(streams.out.write_all(&line)?)
}

fn completions(shell: clap_complete::Shell, streams: &mut Streams<'_>) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut <Cli>::command(), "xenops", &mut script);
    Ok(streams.out.write_all(&script)?)
}

fn man(words: &[String], streams: &mut Streams<'_>) -> Result<(), CliError> {
    let mut program = <Cli>::command();
    program.build();
    let mut page = &program;
    for word in words {
        let found = page.find_subcommand(word);
        page = found.ok_or_else(|| CliError::NoSuchCommand { name: words.join(" ") })?;
    }
    let mut text = Vec::new();
    clap_mangen::Man::new(page.clone()).render(&mut text)?;
    Ok(streams.out.write_all(&text)?)
}
