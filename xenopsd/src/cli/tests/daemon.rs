//! A daemon that remembers what it was asked, over a real socket.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use clap::Parser as _;

use crate::api::value::ToValue as _;
use crate::api::{
    Call, Completion, Dict, Disk, DomainType, DynamicId, Error, PowerState, Task, TaskState, Vbd, VbdState,
    Vif, VifState, Vm, VmState,
};
use crate::cli::args::Cli;
use crate::cli::{Streams, run};
use crate::rpc::Codec;
use crate::rpc::server::{Responder, Server, Service, StopHandle};
use crate::rpc::socket::BoundSocket;
use crate::xlcfg;

pub(in crate::cli) const ID: &str = "00000000-0000-4000-8000-000000000001";

/// A PVH guest with one disk and one interface.
pub(in crate::cli) fn sample(name: &str) -> (Vm, Vec<Vbd>, Vec<Vif>) {
    xlcfg::parse(config(name, "").as_bytes()).expect("the sample is right").0.into_api()
}

pub(super) fn config(name: &str, more: &str) -> String {
    format!(
        "name='{name}'\nuuid='{ID}'\ntype='pvh'\nkernel='/boot/vmlinuz'\nroot='/dev/xvda'\nmemory=512\nmaxmem=1024\n\
         vcpus=2\ndisk=['/dev/vg/web,raw,xvda,w']\nvif=['mac=00:16:3e:00:00:01']\n{more}\n"
    )
}

pub(in crate::cli) fn halted() -> VmState {
    VmState {
        power_state: PowerState::Halted,
        domids: Vec::new(),
        consoles: Vec::new(),
        memory_target: 0,
        memory_actual: 0,
        memory_limit: 0,
        vcpu_target: 0,
        shadow_multiplier_target: 1.0,
        rtc_timeoffset: String::new(),
        uncooperative_balloon_driver: false,
        guest_agent: Dict::new(),
        xsdata_state: Dict::new(),
        pv_drivers_detected: false,
        last_start_time: 0.0,
        hvm: false,
        nomigrate: false,
        nested_virt: false,
        domain_type: DomainType::Undefined,
        featureset: String::new(),
        numa_optimised: false,
        numa_nodes: 0,
        numa_node_memory: Vec::new(),
    }
}

#[derive(Default)]
struct State {
    vms: Vec<(Vm, VmState)>,
    vbds: Vec<Vbd>,
    vifs: Vec<Vif>,
    /// Names of the calls that change something, and their delays.
    asked: Vec<String>,
    /// The calls that fail.
    failing: Vec<&'static str>,
}

/// Does at once what it is asked; the task id of an operation is its method's name.
#[derive(Default)]
struct Daemon(Mutex<State>);

impl Daemon {
    fn task(&self, id: &str) -> Task {
        let fails = self.0.lock().unwrap().failing.contains(&id);
        let state = if fails {
            TaskState::Failed(Error::DomainNotBuilt.to_value())
        } else {
            TaskState::Completed(Completion { duration: 0.5, result: None })
        };
        Task {
            id: id.to_owned(),
            dbg: "test".to_owned(),
            ctime: 0.0,
            state,
            subtasks: Dict::new(),
            debug_info: Dict::new(),
            backtrace: "()".to_owned(),
            cancellable: false,
        }
    }

    fn operation(&self, name: &str, id: &str, becomes: PowerState, note: &str) -> Result<String, Error> {
        let mut state = self.0.lock().unwrap();
        state.asked.push(format!("{name}{note}"));
        let fails = state.failing.contains(&name);
        let vm = state.vms.iter_mut().find(|(vm, _)| vm.id == id);
        let (_, now) = vm.ok_or_else(|| Error::does_not_exist("VM", id))?;
        if !fails {
            now.power_state = becomes;
            now.domids = if becomes == PowerState::Halted { Vec::new() } else { vec![5] };
        }
        Ok(name.to_owned())
    }

    fn add(&self, name: &'static str, change: impl FnOnce(&mut State)) -> Result<(), Error> {
        let mut state = self.0.lock().unwrap();
        state.asked.push(name.to_owned());
        if state.failing.contains(&name) {
            return Err(Error::internal("the disk is full"));
        }
        change(&mut state);
        Ok(())
    }

    fn answer(&self, call: Call) -> Result<crate::api::Value, Error> {
        let name = call.name();
        let note = |delay: Option<f64>| delay.map_or(" hard".to_owned(), |seconds| format!(" {seconds}"));
        Ok(match call {
            Call::VmAdd(call) => {
                let id = call.vm.id.clone();
                self.add(name, |state| state.vms.push((call.vm, halted())))?;
                id.to_value()
            }
            Call::VbdAdd(call) => {
                let id = call.vbd.id.clone();
                self.add(name, |state| state.vbds.push(call.vbd))?;
                id.to_value()
            }
            Call::VifAdd(call) => {
                let id = call.vif.id.clone();
                self.add(name, |state| state.vifs.push(call.vif))?;
                id.to_value()
            }
            Call::VbdPlug(call) => self.operation(name, &call.id.vm, PowerState::Running, "")?.to_value(),
            Call::VifPlug(call) => self.operation(name, &call.id.vm, PowerState::Running, "")?.to_value(),
            Call::VbdRemove(call) => {
                self.add(name, |state| state.vbds.retain(|vbd| vbd.id != call.id))?;
                ().to_value()
            }
            Call::VifRemove(call) => {
                self.add(name, |state| state.vifs.retain(|vif| vif.id != call.id))?;
                ().to_value()
            }
            Call::VmRemove(call) => {
                self.add(name, |state| {
                    state.vms.retain(|(vm, _)| vm.id != call.id);
                    state.vbds.clear();
                    state.vifs.clear();
                })?;
                ().to_value()
            }
            Call::VmList(_) => self.0.lock().unwrap().vms.to_value(),
            Call::VmStat(call) => {
                let state = self.0.lock().unwrap();
                let found = state.vms.iter().find(|(vm, _)| vm.id == call.id);
                found.cloned().ok_or_else(|| Error::does_not_exist("VM", call.id))?.to_value()
            }
            Call::VbdList(_) => {
                let state =
                    VbdState { active: true, plugged: false, qos_target: None, backend_present: None };
                let vbds = self.0.lock().unwrap().vbds.clone();
                vbds.into_iter().map(|vbd| (vbd, state.clone())).collect::<Vec<_>>().to_value()
            }
            Call::VifList(_) => {
                let state = VifState {
                    active: true,
                    plugged: false,
                    kthread_pid: 0,
                    media_present: true,
                    device: None,
                    pvs_rules_active: false,
                };
                let vifs = self.0.lock().unwrap().vifs.clone();
                vifs.into_iter().map(|vif| (vif, state.clone())).collect::<Vec<_>>().to_value()
            }
            Call::VmStart(call) => self.operation(name, &call.id, PowerState::Paused, "")?.to_value(),
            Call::VmUnpause(call) => self.operation(name, &call.id, PowerState::Running, "")?.to_value(),
            Call::VmPause(call) => self.operation(name, &call.id, PowerState::Paused, "")?.to_value(),
            Call::VmShutdown(call) => {
                self.operation(name, &call.id, PowerState::Halted, &note(call.delay))?.to_value()
            }
            Call::VmReboot(call) => {
                self.operation(name, &call.id, PowerState::Running, &note(call.delay))?.to_value()
            }
            Call::VmSuspend(call) => {
                self.operation(name, &call.id, PowerState::Suspended, &place(&call.suspend_vdi))?.to_value()
            }
            Call::VmResume(call) => {
                self.operation(name, &call.id, PowerState::Paused, &place(&call.suspend_vdi))?.to_value()
            }
            Call::VmCheckpoint(call) => {
                self.operation(name, &call.id, PowerState::Running, &place(&call.suspend_vdi))?.to_value()
            }
            Call::VmFastResume(call) => self.operation(name, &call.id, PowerState::Running, "")?.to_value(),
            Call::TaskStat(call) => self.task(&call.id).to_value(),
            Call::TaskDestroy(_) | Call::TaskCancel(_) => ().to_value(),
            Call::TaskList(_) => vec![self.task("VM.start")].to_value(),
            Call::UpdatesLastId(_) => 7_isize.to_value(),
            Call::UpdatesGet(_) => {
                let changed = vec![DynamicId::Vm(ID.to_owned()), DynamicId::Vm("gone".to_owned())];
                (Vec::<crate::api::Barrier>::new(), changed, 8_isize).to_value()
            }
            other => return Err(Error::Unimplemented(other.name().to_owned())),
        })
    }
}

/// Where an image goes, as a note.
fn place(disk: &Disk) -> String {
    match disk {
        Disk::Local(path) => format!(" {path}"),
        Disk::Vdi(vdi) => format!(" VDI {vdi}"),
    }
}

impl Service for Daemon {
    fn call(&self, call: Call, reply: Responder) {
        reply.send(self.answer(call));
    }
}

pub(in crate::cli) struct Host {
    daemon: Arc<Daemon>,
    dir: tempfile::TempDir,
    stop: StopHandle,
    thread: Option<JoinHandle<()>>,
    _sockets: [BoundSocket; 2],
}

impl Host {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sockets =
            ["xenopsd", "xenopsd.json"].map(|name| BoundSocket::bind(&dir.path().join(name)).unwrap());
        let listeners = sockets.iter().zip([Codec::Xml, Codec::Json]);
        let listeners =
            listeners.map(|(socket, codec)| (socket.try_clone_listener().unwrap(), codec)).collect();
        let daemon = Arc::new(Daemon::default());
        let server = Server::bind(listeners, Arc::clone(&daemon)).unwrap();
        let stop = server.stop_handle();
        let thread = std::thread::spawn(move || server.run().unwrap());
        Self { daemon, dir, stop, thread: Some(thread), _sockets: sockets }
    }

    pub(super) fn file(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("vm.cfg");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Exit code, output and errors of a command.
    pub(in crate::cli) fn xenops(&self, words: &str) -> (u8, String, String) {
        let socket = self.dir.path().join("xenopsd");
        xenops(&socket, words)
    }

    /// One VM, called web.
    pub(in crate::cli) fn with_vm() -> Self {
        let host = Self::new();
        let file = host.file(&config("web", ""));
        let (code, out, err) = host.xenops(&format!("create {}", file.display()));
        assert_eq!((code, out.as_str(), err.as_str()), (0, format!("{ID}\n").as_str(), ""));
        host.forget();
        host
    }

    /// From now on the call fails.
    pub(super) fn fail(&self, call: &'static str) {
        self.daemon.0.lock().unwrap().failing.push(call);
    }

    /// The VMs that the daemon knows.
    pub(super) fn vms(&self) -> Vec<(Vm, VmState)> {
        self.daemon.0.lock().unwrap().vms.clone()
    }

    /// Forgets what was asked so far.
    pub(super) fn forget(&self) {
        self.daemon.0.lock().unwrap().asked.clear();
    }

    /// A directory of its own.
    pub(in crate::cli) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Changes the VM as it is known to the daemon.
    pub(in crate::cli) fn change(&self, change: impl FnOnce(&mut Vm, &mut VmState)) {
        let mut state = self.daemon.0.lock().unwrap();
        let (vm, now) = &mut state.vms[0];
        change(vm, now);
    }

    pub(super) fn asked(&self) -> Vec<String> {
        self.daemon.0.lock().unwrap().asked.clone()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub(super) fn xenops(socket: &Path, words: &str) -> (u8, String, String) {
    let arguments = ["xenops", "--socket"].into_iter().map(str::to_owned);
    let arguments = arguments.chain([socket.display().to_string()]);
    let cli = <Cli>::try_parse_from(arguments.chain(words.split_whitespace().map(str::to_owned))).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let result = run(&cli, &mut Streams { out: &mut out, err: &mut err, progress: false });
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (code, said) = match result {
        Ok(()) => (0, String::new()),
        Err(error) => (error.exit_code(), error.to_string()),
    };
    (code, text(out), text(err) + &said)
}
