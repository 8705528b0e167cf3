//! The daemon's settings: command line flags, then the configuration file, which overrides them as the model has it.
//!
//! The file is `key = value` lines with the flags' long names; `#` begins a comment; surrounding quotes are removed;
//! later lines win. A key this daemon does not know is named in the log, because the file may be shared with another.
//! From a line `[nic CARD]` to the next of the kind, the lines are settings of that network card.

mod printed;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};
use guest_installer::worker::{self, Worker};
use guest_installer::{fetch, limits};

use crate::core::Patience;
use crate::edge::linux::device_model;
use crate::edge::linux::nic::Cards;
use crate::edge::linux::ovsdb;
use crate::edge::linux::terminal::{ConsoleLog, TerminalServers};
use crate::edge::{BootLoader, FirmwarePaths, StoreAddress, VifScripts};
use crate::service::MAX_WORKERS;
use crate::sim::SCRIPT_KEYS;

pub use printed::Printed;

/// Where the file is looked for when none is named; its absence is fine.
pub const DEFAULT_FILE: &str = "/etc/xenopsd.conf";

/// Where the scripts for events are, as xapi has them.
pub const DEFAULT_HOOKS: &str = "/etc/xapi.d";

/// Where the terminal server is looked for when it is not named: from the daemon's directory.
const VNCTERMS: [&str; 3] = ["vncterm", "../libexec/xenopsd/vncterm", "/usr/lib/xen/bin/vncterm"];

/// Flags that only the command line can have.
const NOT_IN_THE_FILE: [&str; 2] = ["config", "print"];

/// The Xen toolstack daemon: builds domains, plugs their devices, and answers a management layer.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "xenopsd",
    version,
    after_help = "FILES\n  /etc/xenopsd.conf       settings, `key = value` with the long names above\n  \
        <sockets-path>/xenopsd       XML-RPC over HTTP, mode 0600\n  \
        <sockets-path>/xenopsd.json  JSON-RPC over HTTP, mode 0600\n\n\
        EXIT STATUS\n  0  stopped by SIGTERM or SIGINT\n  1  cannot run: no Xen, no xenstored, socket or state directory unusable\n  2  usage\n\n\
        LOGGING\n  to standard error; `--log-level xenopsd=debug,xen=info` selects by module"
)]
pub struct Config {
    /// Settings file
    #[arg(long, default_value = DEFAULT_FILE)]
    pub config: PathBuf,
    /// Directory of the sockets
    #[arg(long, default_value = "/var/lib/xcp")]
    pub sockets_path: PathBuf,
    /// Directory of the VM records
    #[arg(long, default_value = "/var/run/nonpersistent/xenopsd/classic")]
    pub database_path: PathBuf,
    /// Take calls from a queue of the message switch, too, as JSON-RPC
    #[arg(long)]
    pub use_switch: bool,
    /// Socket of the message switch; it need not be there yet
    #[arg(long, default_value = "/var/run/message-switch/sock")]
    pub switch_path: PathBuf,
    /// Queue of the message switch
    #[arg(long, default_value = "org.xen.xapi.xenops.classic", value_parser = queue)]
    pub queue: String,
    /// File to write the process id to
    #[arg(long)]
    pub pidfile: Option<PathBuf>,
    /// How many operations run at once
    #[arg(long, default_value_t = 4, value_parser = workers)]
    pub worker_pool_size: usize,
    /// Way to xenstored
    #[arg(long, value_enum, default_value_t)]
    pub xenstore: StoreAddress,
    /// Manage a simulated machine instead of this one: needs neither Xen nor root, its VMs end with the daemon
    #[arg(long)]
    pub simulate: bool,
    /// Memory of the simulated machine, in MiB
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u64).range(2048..=16 << 20))]
    pub simulate_memory_mib: u64,
    /// Processors of the simulated machine
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub simulate_cpus: u32,
    /// What the delays and choices of the simulated machine are drawn from
    #[arg(long, default_value_t = 0)]
    pub simulate_seed: u64,
    /// Longest time a simulated backend or guest takes for one step, in ms
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(..=60_000))]
    pub simulate_delay_ms: u64,
    /// What simulated guests do whose VM does not say, such as `shutdown=ignore`; may be repeated
    #[arg(long, value_name = "KEY=WORD", value_parser = key_and_word)]
    pub simulate_guest: Vec<(String, String)>,
    /// Let one in so many calls to the simulated machine fail, 0 none
    #[arg(long, default_value_t = 0)]
    pub simulate_failures: u64,
    /// Seconds a backend may take to appear or to close
    #[arg(long, default_value_t = 60)]
    pub hotplug_timeout: u64,
    /// Seconds a guest may take to acknowledge a shutdown request
    #[arg(long, default_value_t = 60)]
    pub domain_shutdown_ack_timeout: u64,
    /// Seconds a guest may take to acknowledge a suspend request
    #[arg(long, default_value_t = 30)]
    pub vm_suspend_ack_timeout: u64,
    /// Seconds it may then take to suspend
    #[arg(long, default_value_t = 1200)]
    pub vm_suspend_timeout: u64,
    /// Seconds a device model may take until it is ready
    #[arg(long, default_value_t = 300)]
    pub qemu_dm_ready_timeout: u64,
    /// QEMU built for Xen, the device model of HVM guests
    #[arg(long, default_value = "/usr/libexec/xen-qemu-system-i386")]
    pub qemu_system_i386: PathBuf,
    /// User number of domain 0's device model, were there one; those of others follow it
    #[arg(long, default_value_t = 0x2000_0000, value_parser = uid_base)]
    pub device_model_uid_base: u32,
    /// Script that puts network interfaces into their bridges, called as xl calls it, such as /etc/xen/scripts/vif-bridge;
    /// `other_config:hotplug-script` of an interface overrides it. Without one the daemon does that, faster
    #[arg(long, value_name = "PATH", value_parser = script)]
    pub vif_script: Option<PathBuf>,
    /// Where the scripts are that `other_config:hotplug-script` may name; whoever can write here is root
    #[arg(long, value_name = "PATH", default_value = "/etc/xen/scripts", value_parser = script)]
    pub vif_script_directory: PathBuf,
    /// Socket of Open vSwitch's database server, for interfaces in its bridges
    #[arg(long, value_name = "PATH", default_value = ovsdb::DEFAULT_SOCKET)]
    pub openvswitch_socket: PathBuf,
    /// Run helper processes without a protection that this kernel lacks: mount, network, ipc, pid, cgroup or seccomp; may
    /// be repeated
    #[arg(long, value_name = "PROTECTION", value_parser = protection)]
    pub allow_unjailed: Vec<ffi::jail::Feature>,
    /// Program of the storage layer, for disks of the form SR/VDI; only root may be able to change it
    #[arg(long, value_name = "PATH")]
    pub storage_program: Option<PathBuf>,
    /// Seconds that one call of it may take
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub storage_timeout: u64,
    /// Directories of scripts to run for events (vm-pre-start, ...); /etc/xapi.d unless simulating, when there are none
    #[arg(long)]
    pub hooks_path: Option<PathBuf>,
    /// Largest kernel taken from a guest's disk, in bytes; `pv-kernel-max-size` in a VM's platformdata overrides it
    #[arg(long, default_value_t = limits::KERNEL_BYTES)]
    pub pv_kernel_max_size: u64,
    /// Largest such kernel once it is unpacked, in bytes, or the largest file if that is more; `pv-kernel-max-unpacked-size`
    /// in a VM's platformdata overrides it
    #[arg(long, default_value_t = limits::UNPACKED_KERNEL_BYTES)]
    pub pv_kernel_max_unpacked_size: u64,
    /// Largest ramdisk taken from a guest's disk, in bytes; `pv-ramdisk-max-size` in a VM's platformdata overrides it
    #[arg(long, default_value_t = limits::RAMDISK_BYTES)]
    pub pv_ramdisk_max_size: u64,
    /// Seconds that reading a guest's disk may take
    #[arg(long, default_value_t = worker::WALL.as_secs(), value_parser = clap::value_parser!(u64).range(1..=600))]
    pub boot_loader_timeout: u64,
    /// Seconds that getting one file of an installation repository may take
    #[arg(long, default_value_t = fetch::WALL.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub download_timeout: u64,
    /// User number of domain 0's boot loader; those of others follow it
    #[arg(long, default_value_t = 65_536, value_parser = uid_base)]
    pub boot_loader_uid_base: u32,
    /// Xen's PV shim, for PV kernels in PVH domains; looked for where distributions have it unless given
    #[arg(long, value_name = "PATH")]
    pub pvinpvh_xen: Option<PathBuf>,
    /// Loader of HVM guests; looked for as the shim is
    #[arg(long, value_name = "PATH")]
    pub hvmloader: Option<PathBuf>,
    /// BIOS of HVM guests; looked for as the shim is
    #[arg(long, value_name = "PATH")]
    pub seabios: Option<PathBuf>,
    /// UEFI firmware of HVM guests; looked for as the shim is
    #[arg(long, value_name = "PATH")]
    pub ovmf: Option<PathBuf>,
    /// Terminal server of text consoles; unless given the one beside this program, in ../libexec/xenopsd, or in
    /// /usr/lib/xen/bin
    #[arg(long)]
    pub vncterm: Option<PathBuf>,
    /// User number of domain 0's terminal server; those of others follow it
    #[arg(long, default_value_t = 131_072, value_parser = uid_base)]
    pub vncterm_uid_base: u32,
    /// File, readable by its owner only, of a password of at most 8 bytes that viewers of text consoles' screens must know
    #[arg(long, value_name = "FILE")]
    pub vncterm_password_file: Option<PathBuf>,
    /// Bytes of a text console's output that its terminal server keeps for whoever connects later
    #[arg(long, default_value_t = ConsoleLog::DEFAULT_SIZE, value_parser = clap::value_parser!(u32).range(1..=i64::from(ConsoleLog::MAX_SIZE)))]
    pub console_log_size: u32,
    /// Keep them on disk, too, in files named by the VMs' uuids in this directory, of at most twice that size each
    #[arg(long, value_name = "DIRECTORY")]
    pub console_log_directory: Option<PathBuf>,
    /// What is logged: error, warn, info, debug or trace, or per module
    #[arg(long, default_value = "info")]
    pub log_level: String,
    /// Log JSON lines instead of text
    #[arg(long)]
    pub log_json: bool,
    /// Print something about the daemon and exit
    #[arg(long, value_enum, value_name = "WHAT")]
    pub print: Option<Printed>,
    /// Settings of physical network cards; only in the file
    #[arg(skip)]
    pub cards: Cards,
}

fn workers(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n @ 1..=MAX_WORKERS) => Ok(n),
        _ => Err(format!("must be between 1 and {MAX_WORKERS}")),
    }
}

fn key_and_word(text: &str) -> Result<(String, String), String> {
    let (key, word) = text.split_once('=').ok_or("must be KEY=WORD")?;
    if !SCRIPT_KEYS.contains(&key) {
        return Err(format!("guests have no `{key}`; they have {}", SCRIPT_KEYS.join(", ")));
    }
    Ok((key.to_owned(), word.to_owned()))
}

fn script(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err("must be an absolute path".to_owned()) }
}

fn uid_base(text: &str) -> Result<u32, String> {
    let base = text.parse().map_err(|_| "must be a user number".to_owned())?;
    ffi::jail::check_uid_base(base).map(|()| base).map_err(|error| error.to_string())
}

fn protection(text: &str) -> Result<ffi::jail::Feature, String> {
    text.parse()
}

/// The switch takes queue names apart at slashes.
fn queue(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains('/') {
        return Err("must be a name without `/`".to_owned());
    }
    Ok(text.to_owned())
}

/// The settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Wrong flags, or a request for help: clap's own text and exit status.
    #[error(transparent)]
    Usage(#[from] clap::Error),
    /// The file is there and cannot be read.
    #[error("settings file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A line of the file is wrong.
    #[error("settings file {}, line {line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what would be right.
        what: String,
    },
}

/// Settings, and the keys of the file that mean nothing here.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// `(line, key)`.
    pub unknown: Vec<(usize, String)>,
}

impl Config {
    /// Reads the command line and the file it names.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(args: &[String]) -> Result<Loaded, ConfigError> {
        let flags = Self::try_parse_from(args)?;
        let path = &flags.config;
        match std::fs::read_to_string(path) {
            Ok(text) => flags.override_with(&text, args),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path == Path::new(DEFAULT_FILE) => {
                Ok(Loaded { config: flags, unknown: Vec::new() })
            }
            Err(source) => Err(ConfigError::Unreadable { path: path.clone(), source }),
        }
    }

    /// Each line of the file is parsed as the flag of its name, so that both have the same checks and help.
    fn override_with(&self, text: &str, args: &[String]) -> Result<Loaded, ConfigError> {
        let command = Self::command().args_override_self(true);
        let mut all = args.to_vec();
        let (mut unknown, mut cards, mut card) = (Vec::new(), Cards::default(), None);
        for (index, line) in text.lines().enumerate() {
            let at = |what: String| ConfigError::Line { path: self.config.clone(), line: index + 1, what };
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            if line.starts_with('[') {
                let name = section(line).ok_or_else(|| at("a section begins with [nic CARD]".to_owned()))?;
                cards.of(name).map_err(|e| at(e.to_string()))?;
                card = Some(name.to_owned());
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| at("expected `key = value`".to_owned()))?;
            if let Some(card) = &card {
                let set = cards.of(card).and_then(|of| of.set(key.trim(), unquoted(value.trim())));
                set.map_err(|e| at(e.to_string()))?;
                continue;
            }
            let (key, value) = (key.trim().replace('_', "-"), unquoted(value.trim()));
            let Some(argument) = command.get_arguments().find(|a| a.get_long() == Some(&*key)) else {
                unknown.push((index + 1, key));
                continue;
            };
            if NOT_IN_THE_FILE.contains(&&*key) {
                return Err(at(format!("{key} can only be given on the command line")));
            }
            if argument.get_action().takes_values() {
                all.push(format!("--{key}={value}"));
            } else if value == "true" {
                all.push(format!("--{key}"));
            } else if value != "false" {
                return Err(at(format!("{key} must be true or false")));
            }
            command.clone().try_get_matches_from(&all).map_err(|e| at(first_line(&e)))?;
        }
        let matches = command.try_get_matches_from(&all)?;
        Ok(Loaded { config: Self { cards, ..Self::from_arg_matches(&matches)? }, unknown })
    }

    /// How boot loaders run: their worker is this program.
    pub fn boot_loader(&self) -> BootLoader {
        BootLoader {
            worker: Worker::default(),
            uid_base: self.boot_loader_uid_base,
            kernel_limit: self.pv_kernel_max_size,
            unpacked_limit: self.pv_kernel_max_unpacked_size,
            ramdisk_limit: self.pv_ramdisk_max_size,
            wall: Duration::from_secs(self.boot_loader_timeout),
            getter: Worker::fetching(),
            get_wall: Duration::from_secs(self.download_timeout),
        }
    }

    /// Files that guests start with and that the administrator has chosen.
    pub fn firmware(&self) -> FirmwarePaths {
        FirmwarePaths {
            pv_shim: self.pvinpvh_xen.clone(),
            hvmloader: self.hvmloader.clone(),
            seabios: self.seabios.clone(),
            ovmf: self.ovmf.clone(),
        }
    }

    /// Where the terminal server is.
    pub fn vncterm(&self) -> PathBuf {
        let here = std::env::current_exe().unwrap_or_default();
        let place = |path: &&str| here.with_file_name(path);
        let there = || VNCTERMS.iter().map(place).find(|path| path.is_file());
        let usual = || PathBuf::from(VNCTERMS[VNCTERMS.len() - 1]);
        self.vncterm.clone().or_else(there).unwrap_or_else(usual)
    }

    /// How terminal servers run.
    pub fn terminal_servers(&self) -> TerminalServers {
        let mut servers = TerminalServers::new(self.vncterm(), self.vncterm_uid_base, self.console_log());
        servers.password.clone_from(&self.vncterm_password_file);
        servers
    }

    /// What is kept of text consoles' output.
    pub fn console_log(&self) -> ConsoleLog {
        ConsoleLog { size: self.console_log_size, directory: self.console_log_directory.clone() }
    }

    /// What may set interfaces up instead of the daemon.
    pub fn vif_scripts(&self) -> VifScripts {
        VifScripts { default: self.vif_script.clone(), directory: self.vif_script_directory.clone() }
    }

    /// How device models run.
    pub fn device_models(&self) -> device_model::Settings {
        device_model::Settings {
            program: self.qemu_system_i386.clone(),
            uid_base: self.device_model_uid_base,
            unjailed: self.allow_unjailed.clone(),
            ..device_model::Settings::default()
        }
    }

    /// The time limits.
    pub fn patience(&self) -> Patience {
        Patience {
            hotplug: Duration::from_secs(self.hotplug_timeout),
            shutdown_ack: Duration::from_secs(self.domain_shutdown_ack_timeout),
            suspend_ack: Duration::from_secs(self.vm_suspend_ack_timeout),
            suspend: Duration::from_secs(self.vm_suspend_timeout),
            device_model: Duration::from_secs(self.qemu_dm_ready_timeout),
            storage: Duration::from_secs(self.storage_timeout),
            // Simulated guests cost the host nothing; the model's simulator has no such wait either.
            least_uptime: if self.simulate { Duration::ZERO } else { Patience::default().least_uptime },
            ..Patience::default()
        }
    }
}

/// The card that a section is about.
fn section(line: &str) -> Option<&str> {
    let inside = line.strip_prefix('[')?.strip_suffix(']')?.trim();
    Some(inside.strip_prefix("nic")?.trim_start()).filter(|name| !name.is_empty() && *name != &inside[3..])
}

fn unquoted(value: &str) -> &str {
    let inside = |quote| value.strip_prefix(quote).and_then(|v: &str| v.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

#[cfg(test)]
mod tests;
