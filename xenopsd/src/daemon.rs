//! The daemon as a whole: checks the host, binds the sockets, starts the threads, and stops on a signal.

mod service_manager;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use xenstore::WatchStream;

use crate::config::{Config, DEFAULT_HOOKS};
use crate::core::Core;
use crate::edge::linux::ends::Ends;
use crate::edge::{Events, LinuxHost, real};
use crate::rpc::codec::Codec;
use crate::rpc::server::{self, Server};
use crate::rpc::socket::BoundSocket;
use crate::rpc::switch::{Limits, Settings, Switch};
use crate::service::Service;
use crate::sim;
use crate::state::Records;

use service_manager::ServiceManager;

/// Descriptors that a process may have on any Linux that has not been told otherwise.
const LEAST_FILES: u64 = 1024;

/// Why the daemon cannot run; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// This is not a dom0, or Xen does not answer.
    #[error("{0}\nxenopsd runs in dom0 as root; `xenops check` lists what is missing")]
    NoXen(String),
    /// No xenstored.
    #[error("cannot reach xenstored: {0}\nstart it (`systemctl start xenstored`, or /etc/init.d/xen start)")]
    NoXenstore(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

fn other(what: &str) -> impl FnOnce(&dyn std::fmt::Display) -> DaemonError {
    move |error| DaemonError::Other(format!("{what}: {error}"))
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`] when it cannot start.
pub fn run(config: &Config) -> Result<(), DaemonError> {
    ffi::sig::ignore_sigio().map_err(|e| other("SIGIO cannot be ignored")(&e))?;
    // Blocked before any thread exists, so that only the waiting below takes them.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().map_err(|e| other("signals cannot be blocked")(&e))?;

    let files = file_limit();

    let mut simulated = None;
    let edges = if config.simulate {
        simulated.insert(simulated_machine(config)?).edges.clone()
    } else {
        let hooks = config.hooks_path.clone().unwrap_or_else(|| DEFAULT_HOOKS.into());
        let host = LinuxHost {
            hooks,
            boot_loader: config.boot_loader(),
            firmware: config.firmware(),
            terminals: config.terminal_servers(),
            ends: Ends::start().map_err(|e| other("process ends")(&e))?,
            device_models: config.device_models(),
            storage: config.storage_program.clone(),
            open_vswitch: config.openvswitch_socket.clone(),
            vif_scripts: config.vif_scripts(),
            cards: config.cards.clone(),
        };
        real(config.xenstore, host)
    };
    let hypervisor = edges.hypervisor().map_err(|e| DaemonError::NoXen(e.to_string()))?;
    let version = hypervisor.version().map_err(|e| DaemonError::NoXen(e.to_string()))?;
    drop(hypervisor);
    let events = match &simulated {
        Some(machine) => machine.events.clone(),
        None => watch(config)?,
    };
    drop(edges.store().map_err(|e| DaemonError::NoXenstore(e.to_string()))?);

    // Before any state is touched: another daemon on the same sockets owns it.
    let xml = bind(&config.sockets_path.join("xenopsd"))?;
    let json = bind(&config.sockets_path.join("xenopsd.json"))?;
    let records = Records::open(&config.database_path).map_err(|e| other("state")(&e))?;
    let core = Core::start(records, edges, events, config.worker_pool_size, config.patience())
        .map_err(|e| other("domains")(&e))?;
    let service = Service::start(Arc::clone(&core)).map_err(|e| other("call threads")(&e))?;
    let service = Arc::new(service);
    let listeners = [(&xml, Codec::Xml), (&json, Codec::Json)]
        .into_iter()
        .map(|(socket, codec)| socket.try_clone_listener().map(|listener| (listener, codec)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| other("listener")(&e))?;
    let limits = server::Limits::within(files);
    tracing::info!(files, connections = limits.connections, "open files and connections, at most");
    let server = Server::with_limits(listeners, Arc::clone(&service), limits)
        .map_err(|e| other("socket server")(&e))?;
    let stop = server.stop_handle();
    let switch = config
        .use_switch
        .then(|| Settings { path: config.switch_path.clone(), queue: config.queue.clone() })
        .map(|settings| Switch::start(settings, Limits::default(), service))
        .transpose()
        .map_err(|e| other("message switch threads")(&e))?;
    let pidfile = config.pidfile.as_deref().map(Pidfile::write).transpose()?;
    let manager = ServiceManager::from_environment();
    manager.tell("READY=1");
    tracing::info!(
        xen = %format!("{}.{}{}", version.major, version.minor, version.extra),
        sockets = %config.sockets_path.display(),
        instance = %core.instance_id,
        "ready"
    );
    if let (Some(machine), one_in @ 1..) = (&simulated, config.simulate_failures) {
        tracing::warn!(one_in, "calls to the simulated machine fail at random");
        machine.faults.arm(sim::Fault::Random { seed: config.simulate_seed, one_in });
    }
    let simulate = config.simulate;
    std::thread::Builder::new()
        .name("signals".into())
        .stack_size(crate::ops::SMALL_STACK)
        .spawn(move || {
            let signal = signals.wait();
            if simulate {
                tracing::info!(?signal, "stopping; simulated guests end");
            } else {
                tracing::info!(?signal, "stopping; guests keep running");
            }
            manager.tell("STOPPING=1");
            stop.stop();
        })
        .map_err(|e| other("signal thread")(&e))?;
    let outcome = server.run().map_err(|e| other("socket server")(&e));
    drop(switch);
    drop(pidfile);
    outcome
}

/// How many descriptors the daemon may have, now that it has asked for as many as it can get: each client takes one, and
/// so does much of a VM; the usual soft limit, 1024, is for programs that use `select`.
fn file_limit() -> u64 {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard).or(Ok(soft)));
    raised.unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files is unknown");
        LEAST_FILES
    })
}

fn watch(config: &Config) -> Result<Events, DaemonError> {
    let watches = WatchStream::connect(config.xenstore.endpoint())
        .map_err(|e| DaemonError::NoXenstore(e.to_string()))?;
    Events::start(watches).map_err(|e| other("xenstore watches")(&e))
}

fn simulated_machine(config: &Config) -> Result<sim::Machine, DaemonError> {
    let socket = config.sockets_path.join("xenstored");
    std::fs::create_dir_all(&config.sockets_path)
        .map_err(|e| other("sockets-path")(&format!("{}: {e}", config.sockets_path.display())))?;
    let options = sim::SimOptions {
        seed: config.simulate_seed,
        memory_mib: config.simulate_memory_mib,
        cpus: config.simulate_cpus,
        delay: Duration::from_millis(config.simulate_delay_ms),
        script: config.simulate_guest.clone(),
        store_socket: Some(socket.clone()),
        terminals: true,
        hooks: config.hooks_path.clone(),
        ..sim::SimOptions::default()
    };
    let machine = sim::machine(&options).map_err(|e| other("simulated machine")(&e))?;
    tracing::warn!(XENSTORED_PATH = %socket.display(), "simulating: no real domain is touched");
    Ok(machine)
}

fn bind(path: &Path) -> Result<BoundSocket, DaemonError> {
    BoundSocket::bind(path).map_err(|e| DaemonError::Other(e.to_string()))
}

/// Removed when the daemon stops.
struct Pidfile(PathBuf);

impl Pidfile {
    fn write(path: &Path) -> Result<Self, DaemonError> {
        File::create(path)
            .and_then(|mut file| writeln!(file, "{}", std::process::id()))
            .map_err(|e| other("pidfile")(&format!("{}: {e}", path.display())))?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
