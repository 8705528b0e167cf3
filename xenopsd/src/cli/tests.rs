//! The commands against a daemon that remembers what it was asked, over a real socket.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use clap::Parser as _;

use super::args::Cli;
use super::{CliError, Streams, run};
use crate::api::value::ToValue as _;
use crate::api::{
    Call, Completion, Dict, Disk, DomainType, DynamicId, Error, PowerState, Task, TaskState, Vbd, VbdState,
    Vif, VifState, Vm, VmState,
};
use crate::rpc::server::{Responder, Server, Service, StopHandle};
use crate::rpc::socket::BoundSocket;
use crate::rpc::{Codec, json};
use crate::xlcfg;

pub(super) const ID: &str = "00000000-0000-4000-8000-000000000001";

/// A PVH guest with one disk and one interface.
pub(super) fn sample(name: &str) -> (Vm, Vec<Vbd>, Vec<Vif>) {
    xlcfg::parse(config(name, "").as_bytes()).expect("the sample is right").0.into_api()
}

fn config(name: &str, more: &str) -> String {
    format!(
        "name='{name}'\nuuid='{ID}'\ntype='pvh'\nkernel='/boot/vmlinuz'\nroot='/dev/xvda'\nmemory=512\nmaxmem=1024\n\
         vcpus=2\ndisk=['/dev/vg/web,raw,xvda,w']\nvif=['mac=00:16:3e:00:00:01']\n{more}\n"
    )
}

pub(super) fn halted() -> VmState {
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
    /// The call that fails.
    failing: Option<&'static str>,
}

/// Does at once what it is asked; the task id of an operation is its method's name.
#[derive(Default)]
struct Daemon(Mutex<State>);

impl Daemon {
    fn task(&self, id: &str) -> Task {
        let failing = self.0.lock().unwrap().failing;
        let state = if failing == Some(id) {
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
        let fails = state.failing == Some(name);
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
        if state.failing == Some(name) {
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

pub(super) struct Host {
    daemon: Arc<Daemon>,
    dir: tempfile::TempDir,
    stop: StopHandle,
    thread: Option<JoinHandle<()>>,
    _sockets: [BoundSocket; 2],
}

impl Host {
    fn new() -> Self {
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

    fn file(&self, text: &str) -> PathBuf {
        let path = self.dir.path().join("vm.cfg");
        std::fs::write(&path, text).unwrap();
        path
    }

    /// Exit code, output and errors of a command.
    pub(super) fn xenops(&self, words: &str) -> (u8, String, String) {
        let socket = self.dir.path().join("xenopsd");
        xenops(&socket, words)
    }

    /// One VM, called web.
    pub(super) fn with_vm() -> Self {
        let host = Self::new();
        let file = host.file(&config("web", ""));
        let (code, out, err) = host.xenops(&format!("create {}", file.display()));
        assert_eq!((code, out.as_str(), err.as_str()), (0, format!("{ID}\n").as_str(), ""));
        host.daemon.0.lock().unwrap().asked.clear();
        host
    }

    /// A directory of its own.
    pub(super) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Changes the VM as it is known to the daemon.
    pub(super) fn change(&self, change: impl FnOnce(&mut Vm, &mut VmState)) {
        let mut state = self.daemon.0.lock().unwrap();
        let (vm, now) = &mut state.vms[0];
        change(vm, now);
    }

    fn asked(&self) -> Vec<String> {
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

fn xenops(socket: &Path, words: &str) -> (u8, String, String) {
    let arguments = ["xenops", "--socket"].into_iter().map(str::to_owned);
    let arguments = arguments.chain([socket.display().to_string()]);
    let cli = Cli::try_parse_from(arguments.chain(words.split_whitespace().map(str::to_owned))).unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let result = run(&cli, &mut Streams { out: &mut out, err: &mut err, progress: false });
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (code, said) = match result {
        Ok(()) => (0, String::new()),
        Err(error) => (error.exit_code(), error.to_string()),
    };
    (code, text(out), text(err) + &said)
}

#[test]
fn create_adds_the_vm_and_its_devices() {
    let host = Host::new();
    let file = host.file(&config("web", "pci = ['0:1']\nmemmory = 1"));
    let (code, out, err) = host.xenops(&format!("create {}", file.display()));
    assert_eq!((code, out), (0, format!("{ID}\n")));
    assert!(err.contains("`pci` is not supported") && err.contains("did you mean `memory`?"), "{err}");
    assert_eq!(host.asked(), ["VM.add", "VBD.add", "VIF.add"]);
    let (code, _, err) = host.xenops(&format!("create {}", file.display()));
    assert!(code == 1 && err.contains("exists already"), "{err}");
}

#[test]
fn create_takes_everything_back_when_a_device_fails() {
    let host = Host::new();
    host.daemon.0.lock().unwrap().failing = Some("VIF.add");
    let file = host.file(&config("web", ""));
    let (code, out, err) = host.xenops(&format!("create {}", file.display()));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("the disk is full"), "{err}");
    assert_eq!(host.asked(), ["VM.add", "VBD.add", "VIF.add", "VM.remove"]);
    assert!(host.daemon.0.lock().unwrap().vms.is_empty());
}

#[test]
fn create_refuses_a_wrong_file_before_asking_anything() {
    let host = Host::new();
    let file = host.file("name = 'web'\nmemory = 0\n");
    let (code, _, err) = host.xenops(&format!("create {}", file.display()));
    assert!(code == 2 && err.contains("line 2: `memory`") && err.contains("`kernel` is missing"), "{err}");
    // The file is what is wrong, daemon or not.
    assert_eq!(xenops(Path::new("/nonexistent"), &format!("create {}", file.display())).0, 2);
    let (code, _, err) = host.xenops("create /nonexistent.cfg");
    assert!(code == 2 && err.contains("/nonexistent.cfg"), "{err}");
    assert!(host.asked().is_empty());
}

#[test]
fn create_can_start_as_well() {
    let host = Host::new();
    let file = host.file(&config("web", ""));
    assert_eq!(host.xenops(&format!("create {} --start", file.display())).0, 0);
    assert_eq!(host.asked()[3..], ["VM.start", "VM.unpause"]);
}

#[test]
fn start_unpauses_unless_told_not_to() {
    let host = Host::with_vm();
    assert_eq!(host.xenops("start web --paused").0, 0);
    assert_eq!(host.asked(), ["VM.start"]);
    assert_eq!(host.xenops("unpause 0000").0, 0);
    assert_eq!(host.xenops(&format!("pause {ID}")).0, 0);
    assert_eq!(host.xenops("start web").0, 0);
    assert_eq!(host.asked()[1..], ["VM.unpause", "VM.pause", "VM.start", "VM.unpause"]);
}

#[test]
fn a_failed_start_is_not_unpaused() {
    let host = Host::with_vm();
    host.daemon.0.lock().unwrap().failing = Some("VM.start");
    let (code, _, err) = host.xenops("start web");
    assert!(code == 1 && err.contains("not been built"), "{err}");
    assert_eq!(host.asked(), ["VM.start"]);
}

#[test]
fn stopping_passes_on_how_long_to_wait() {
    let host = Host::with_vm();
    for words in ["shutdown web", "shutdown web --timeout 2.5", "reboot web --hard", "shutdown web --hard"] {
        assert_eq!(host.xenops(words).0, 0, "{words}");
    }
    assert_eq!(host.asked(), ["VM.shutdown 120", "VM.shutdown 2.5", "VM.reboot hard", "VM.shutdown hard"]);
}

#[test]
fn images_go_where_they_are_told_seen_from_the_root() {
    let host = Host::with_vm();
    for words in [
        "suspend web /srv/web.image",
        "resume web /srv/web.image",
        "checkpoint web /srv/web.image",
        "suspend web web.image",
        "resume web web.image --paused",
        "fast-resume web",
    ] {
        let (code, out, err) = host.xenops(words);
        assert_eq!((code, out.as_str(), err.as_str()), (0, "", ""), "{words}");
    }
    let here = std::env::current_dir().unwrap();
    assert_eq!(
        host.asked(),
        [
            "VM.suspend /srv/web.image".to_owned(),
            "VM.resume /srv/web.image".to_owned(),
            "VM.unpause".to_owned(),
            "VM.checkpoint /srv/web.image".to_owned(),
            format!("VM.suspend {}", here.join("web.image").display()),
            format!("VM.resume {}", here.join("web.image").display()),
            "VM.fast_resume".to_owned(),
        ]
    );
}

#[test]
fn a_vm_runs_whose_image_cannot_be_removed_afterwards() {
    let host = Host::with_vm();
    let image = format!("/var/lib/xcp/suspend/{ID}.suspend");
    // The daemon of this test reads no image, so that there is none.
    let (code, _, err) = host.xenops("resume web");
    assert!(code != 0 && err.contains(&image), "{code} {err}");
    assert_eq!(host.asked(), [format!("VM.resume {image}"), "VM.unpause".to_owned()]);
}

#[test]
fn what_fails_is_told_and_nothing_follows() {
    for (failing, words) in [
        ("VM.suspend", "suspend web /srv/image"),
        ("VM.resume", "resume web /srv/image"),
        ("VM.checkpoint", "checkpoint web /srv/image"),
        ("VM.fast_resume", "fast-resume web"),
    ] {
        let host = Host::with_vm();
        host.daemon.0.lock().unwrap().failing = Some(failing);
        let (code, _, err) = host.xenops(words);
        assert!(code == 1 && err.contains("not been built"), "{words}: {code} {err}");
        assert_eq!(host.asked().len(), 1, "{words}");
    }
}

#[test]
fn destroy_pulls_the_plug_also_of_what_a_halted_vm_may_have_left() {
    let host = Host::with_vm();
    host.xenops("start web");
    host.daemon.0.lock().unwrap().asked.clear();
    assert_eq!(host.xenops("destroy web").0, 0);
    assert_eq!(host.asked(), ["VM.shutdown hard", "VM.remove"]);
    let halted = Host::with_vm();
    assert_eq!(halted.xenops("destroy web").0, 0);
    assert_eq!(halted.asked(), ["VM.shutdown hard", "VM.remove"]);
}

#[test]
fn listings_are_tables_or_json() {
    let host = Host::with_vm();
    let (_, out, _) = host.xenops("list");
    assert!(out.lines().count() == 2 && out.contains(&format!("web   {ID}  Halted")), "{out}");
    let (_, out, _) = host.xenops("list --json");
    let parsed = json::parse(out.trim_end().as_bytes()).unwrap();
    assert_eq!(parsed, host.daemon.0.lock().unwrap().vms.to_value());
    let (_, out, _) = host.xenops("show web");
    assert!(
        out.contains("kernel       /boot/vmlinuz") && out.contains("xvda") && out.contains("xenbr0"),
        "{out}"
    );
    let (_, out, _) = host.xenops("show web --json");
    let parsed = json::parse(out.trim_end().as_bytes()).unwrap();
    assert!(["vm", "state", "vbds", "vifs"].iter().all(|key| parsed.get(key).is_some()), "{out}");
    let (_, out, _) = host.xenops("tasks");
    assert!(out.contains("done in 0.5 s"), "{out}");
    let (_, out, _) = host.xenops("events");
    assert_eq!(out, format!("vm    {ID}  Halted  web\nvm    gone  gone\n"));
    let (_, out, _) = host.xenops("events --json");
    assert_eq!(out, format!("[\"Vm\",\"{ID}\"]\n[\"Vm\",\"gone\"]\n"));
}

#[test]
fn both_sockets_of_the_daemon_are_spoken_to() {
    let host = Host::with_vm();
    let (code, out, _) = xenops(&host.dir.path().join("xenopsd.json"), "list");
    assert!(code == 0 && out.contains("web"), "{out}");
}

#[test]
fn exit_codes_tell_what_kind_of_failure() {
    let host = Host::with_vm();
    let (code, _, err) = host.xenops("start mail");
    assert!(code == 4 && err.contains("xenops list"), "{err}");
    let (code, _, err) = host.xenops("console web");
    assert!(code == 1 && err.contains("is halted"), "{err}");
    let (code, _, err) = xenops(&host.dir.path().join("absent"), "list");
    assert!(code == 3 && err.contains("systemctl start xenopsd"), "{err}");
    assert_eq!(host.xenops("man nosuch").0, 2);
}

#[test]
fn check_without_a_daemon_fails_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, _) = xenops(&dir.path().join("absent"), "check");
    assert_eq!(code, 1);
    assert!(out.contains("xenopsd ") && out.contains("What to do:"), "{out}");
    let (code, out, _) = xenops(&dir.path().join("absent"), "check --json");
    assert_eq!(code, 1);
    assert!(matches!(json::parse(out.trim_end().as_bytes()), Ok(crate::api::Value::Array(_))), "{out}");
}

#[test]
fn manual_and_completions_are_printed_without_a_daemon() {
    let absent = Path::new("/nonexistent");
    let (code, out, _) = xenops(absent, "man");
    assert!(code == 0 && out.contains(".TH xenops") && out.contains("EXIT STATUS"), "{out}");
    let (_, out, _) = xenops(absent, "man shutdown");
    assert!(out.contains("timeout"), "{out}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(xenops(absent, &format!("completions {shell}")).1.contains("shutdown"), "{shell}");
    }
}

#[test]
fn a_closed_pipe_is_no_failure() {
    struct Closed;
    impl std::io::Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let host = Host::with_vm();
    let socket = host.dir.path().join("xenopsd").display().to_string();
    let cli = Cli::try_parse_from(["xenops", "--socket", &socket, "list"]).unwrap();
    let mut err = Vec::new();
    let result = run(&cli, &mut Streams { out: &mut Closed, err: &mut err, progress: false });
    let error: CliError = result.unwrap_err();
    assert!(error.is_quiet() && error.exit_code() == 0);
}
