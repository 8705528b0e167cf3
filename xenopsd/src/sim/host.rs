//! The Linux edge: disks and bridges that are there or not.

use std::collections::BTreeSet;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::disk_servers;
use super::faults::Injected;
use super::installer;
use super::processes::Processes;
use super::{Shared, SimOptions};
use crate::edge::linux::frame_buffer::ROLE as FRAME_BUFFER_ROLE;
use crate::edge::linux::release::remove_socket;
use crate::edge::linux::storage as real_storage;
use crate::edge::linux::terminal::ROLE;
use crate::edge::linux::{loopdev, nbd, script, serial};
use crate::edge::{
    Access, Attached, AttachedDisk, BridgeKind, DeviceModel, DiskId, DiskWanted, DomId, FileId, Firmware,
    Followed, FoundKernel, FrameBufferWanted, Host, HostError, Image, ImageFile, ImageFormat, IoPriority,
    KernelSearch, KernelSearchError, NetworkTell, NewDeviceModel, Note, NoteServer, Prepared, Reserve,
    ScreenListener, ScreenPlace, ScreenSocket, ScriptEnd, ScriptError, ScriptRun, ServerWanted, StateFile,
    StorageCall, StorageError, SuspendFile, Tell, Terminal, TerminalSockets, TerminalWanted, VifScripts,
    VifSettings,
};
use crate::state::journal::{DiskServerId, ProcessId, Resource};

/// Bytes of a simulated domain's image, at most: there is no memory to be written.
const MOST_NEEDED: u64 = 64 * 1024;

/// Which names exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Present {
    /// Every one that is asked for.
    All,
    /// These.
    Only(BTreeSet<String>),
}

impl Present {
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.contains(name),
        }
    }
}

/// Linux in the simulated dom0.
pub(super) struct SimHost {
    shared: Arc<Shared>,
    disks: Present,
    hooks: Option<PathBuf>,
    /// A real storage program.
    storage: Option<PathBuf>,
    /// Whether device models can be started.
    qemu: bool,
}

impl SimHost {
    pub(super) fn new(shared: Arc<Shared>, options: &SimOptions) -> Self {
        let SimOptions { disks, hooks, storage, .. } = options.clone();
        Self { shared, disks, hooks, storage, qemu: options.qemu }
    }

    /// A process that waits for its word.
    fn prepared(&self, role: &str, screen: &Path, restored: bool) -> Prepared {
        let (process, go) = Processes::start(&self.shared.processes, role, screen, restored);
        let faults = self.shared.faults.clone();
        let go = move || {
            faults.check("host.go")?;
            go();
            Ok(())
        };
        Prepared { process, go: Box::new(go) }
    }

    fn disk(&self, site: &str, path: &Path) -> Result<FileId, HostError> {
        self.shared.faults.check(site).map_err(|e| unusable("disk", &e))?;
        let id = path.display().to_string();
        if !path.is_absolute() {
            return Err(unusable("disk", &format!("disk {id} is not an absolute path")));
        }
        if self.disks.has(&id) {
            let mut inode = DefaultHasher::new();
            path.hash(&mut inode);
            return Ok(FileId { device: 0, inode: inode.finish() });
        }
        Err(HostError::Missing {
            class: "disk",
            text: format!("disk {id}: the simulator has no such disk"),
            id,
        })
    }

    /// Those whose names begin with `ovs` are Open vSwitch's.
    fn bridge(&self, site: &str, bridge: &str) -> Result<BridgeKind, HostError> {
        self.shared.faults.check(site).map_err(|e| unusable("network", &e))?;
        if self.shared.networks().bridges.has(bridge) {
            let of_switch = bridge.starts_with("ovs");
            return Ok(if of_switch { BridgeKind::OpenVswitch } else { BridgeKind::Linux });
        }
        let text = format!("bridge {bridge}: the simulator has no such bridge");
        Err(HostError::Missing { class: "network", id: bridge.to_owned(), text })
    }
}

fn sealed(what: &'static str, bytes: &[u8]) -> std::io::Result<ImageFile> {
    let mut file = File::from(memfd_create(what, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?);
    file.write_all(bytes)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK))?;
    Image::sealed(what, what.into(), file).map_err(std::io::Error::other)
}

pub(super) fn unusable(class: &'static str, error: &dyn std::fmt::Display) -> HostError {
    HostError::Unusable { class, text: error.to_string() }
}

impl From<Injected> for HostError {
    fn from(injected: Injected) -> Self {
        unusable("host", &injected)
    }
}

impl Host for SimHost {
    fn check_disk(&self, path: &Path, _access: Access) -> Result<DiskId, HostError> {
        self.disk("host.check_disk", path).map(FileId::into)
    }

    /// The lowest number that is free. It stays until it is given back, whoever has it open: the kernel frees one with its
    /// last user, and a daemon that relied on that could not tell what it has left behind.
    fn attach_disk(
        &self,
        wanted: &DiskWanted<'_>,
        reserve: &mut Reserve<'_>,
    ) -> Result<AttachedDisk, HostError> {
        let file = self.disk("host.attach_disk", wanted.path)?;
        let keep = File::open("/dev/null").map_err(|e| unusable("disk", &format!("/dev/null: {e}")))?;
        let mut loops = self.shared.loops();
        let number = (0..u32::MAX).find(|number| !loops.contains_key(number)).unwrap_or(u32::MAX);
        reserve(number, file).map_err(|e| unusable("disk", &format!("/dev/loop{number}: {e}")))?;
        loops.insert(number, file);
        Ok(AttachedDisk {
            id: file.into(),
            device: (loopdev::MAJOR, number.into()),
            node: PathBuf::from(format!("/dev/loop{number}")),
            keep: Some(keep.into()),
        })
    }

    fn disk_id(&self, major: u64, minor: u64) -> Result<DiskId, HostError> {
        self.shared.faults.check("host.disk_id").map_err(|e| unusable("disk", &e))?;
        let number = u32::try_from(minor).ok();
        let disk = match major {
            loopdev::MAJOR => number.and_then(|n| self.shared.loops().get(&n).copied()).map(FileId::into),
            nbd::MAJOR => number.and_then(|n| self.shared.network_disks.disk(n)),
            _ => None,
        };
        Ok(disk.unwrap_or(DiskId::Block { major, minor }))
    }

    fn check_image(&self, path: &Path, _access: Access, _format: ImageFormat) -> Result<DiskId, HostError> {
        self.disk("host.check_image", path).map(FileId::into)
    }

    fn serve_disk(&self, wanted: &ServerWanted<'_>, note: &mut NoteServer<'_>) -> Result<(), HostError> {
        let image = self.disk("host.serve_disk", wanted.path)?;
        disk_servers::start(&self.shared, image, wanted, note)
    }

    fn open_served(&self, server: &DiskServerId) -> Result<Option<AttachedDisk>, HostError> {
        self.shared.faults.check("host.open_served").map_err(|e| unusable("disk", &e))?;
        disk_servers::find(&self.shared, server)
    }

    fn refresh_disk(&self, _major: u64, _minor: u64) -> Result<u64, HostError> {
        self.shared.faults.check("host.refresh_disk").map_err(|e| unusable("disk", &e))?;
        Ok(self.shared.disk_bytes.load(Ordering::Relaxed))
    }

    fn prioritise_disk(&self, domid: DomId, device: &str, priority: IoPriority) -> Result<usize, HostError> {
        self.shared.faults.check("host.prioritise_disk").map_err(|e| unusable("disk", &e))?;
        let mut priorities = self.shared.priorities.lock().unwrap_or_else(PoisonError::into_inner);
        priorities.insert((domid, device.to_owned()), priority);
        Ok(1)
    }

    fn prioritise_process(&self, process: &ProcessId, priority: IoPriority) -> Result<usize, HostError> {
        self.shared.faults.check("host.prioritise_process").map_err(|e| unusable("disk", &e))?;
        if !self.shared.processes.is_there(process) {
            return Ok(0);
        }
        let mut priorities = self.shared.process_priorities.lock().unwrap_or_else(PoisonError::into_inner);
        priorities.insert(process.pid, priority);
        Ok(1)
    }

    /// Every disk and repository has a kernel and a ramdisk, in memory as the real one's.
    fn find_kernel(&self, search: &KernelSearch<'_>) -> Result<FoundKernel, KernelSearchError> {
        self.disk("host.find_kernel", search.disk)?;
        let image = |what: &'static str, bytes: &[u8]| {
            sealed(what, bytes).map_err(|e| KernelSearchError::Unable(format!("simulated {what}: {e}")))
        };
        if let Some(installing) = search.install {
            let loaded = installer::load(&self.shared.faults, search, installing)?;
            return Ok(FoundKernel {
                title: loaded.kernel,
                kernel: image("kernel", b"\x7fELF of a simulated repository")?,
                ramdisk: Some(image("ramdisk", b"ramdisk of a simulated repository")?),
                args: loaded.args,
                changes: Some(loaded.changes),
            });
        }
        Ok(FoundKernel {
            changes: None,
            title: "simulated".to_owned(),
            kernel: image("kernel", b"\x7fELF of a simulated disk")?,
            ramdisk: Some(image("ramdisk", b"ramdisk of a simulated disk")?),
            args: search.request.args.clone().unwrap_or_else(|| "root=/dev/xvda ro".to_owned()),
        })
    }

    fn open_firmware(&self, firmware: Firmware) -> Result<ImageFile, HostError> {
        self.shared.faults.check("host.open_firmware")?;
        sealed(firmware.name(), b"\x7fELF of the simulator").map_err(|e| unusable(firmware.name(), &e))
    }

    /// Images are real files, so that a simulated VM can be resumed by the next simulator.
    fn create_image(&self, path: &Path, needed: u64) -> Result<SuspendFile, HostError> {
        self.shared.faults.check("host.create_image")?;
        Ok(SuspendFile::create(path, needed.min(MOST_NEEDED))?)
    }

    fn open_image(&self, path: &Path) -> Result<SuspendFile, HostError> {
        self.shared.faults.check("host.open_image")?;
        Ok(SuspendFile::open(path)?)
    }

    fn discard_image(&self, path: &Path) -> Result<(), HostError> {
        self.shared.faults.check("host.discard_image")?;
        Ok(SuspendFile::discard(path)?)
    }

    fn check_bridge(&self, bridge: &str) -> Result<BridgeKind, HostError> {
        self.bridge("host.check_bridge", bridge)
    }

    fn connect_vif(
        &self,
        interface: &str,
        settings: &VifSettings,
        note: &mut Note<'_>,
    ) -> Result<(), HostError> {
        if settings.scripted {
            self.shared.faults.check("host.connect_vif")?;
        } else if self.bridge("host.connect_vif", &settings.bridge)? == BridgeKind::OpenVswitch {
            note(Resource::SwitchPort(interface.to_owned()))?;
        }
        self.shared.networks().interfaces.insert(interface.to_owned(), settings.clone());
        Ok(())
    }

    fn watch_networks(&self, tell: NetworkTell) -> Result<Followed, HostError> {
        self.shared.faults.check("host.watch_networks")?;
        self.shared.networks().tell = Some(tell);
        Ok(Followed(Box::new(())))
    }

    fn vif_scripts(&self) -> VifScripts {
        VifScripts { default: None, directory: PathBuf::from("/") }
    }

    fn check_script(&self, path: &Path) -> Result<(), HostError> {
        self.shared.faults.check("host.check_script")?;
        script::check(path)
    }

    fn hook_scripts(&self, hook: &str) -> Result<Vec<PathBuf>, HostError> {
        self.shared.faults.check("host.hook_scripts")?;
        let Some(hooks) = &self.hooks else { return Ok(Vec::new()) };
        script::list(&hooks.join(hook)).map_err(|e| unusable("hook", &e))
    }

    fn run_script(&self, run: &ScriptRun<'_>) -> Result<ScriptEnd, ScriptError> {
        self.shared.faults.check("host.run_script").map_err(|e| ScriptError::Unusable(e.to_string()))?;
        script::run(run)
    }

    fn check_storage(&self) -> Result<(), StorageError> {
        self.shared.faults.check("host.check_storage").map_err(StorageError::unusable)?;
        match &self.storage {
            Some(program) => real_storage::check(Some(program)).map(drop),
            None => Ok(()),
        }
    }

    fn call_storage(&self, call: &StorageCall<'_>) -> Result<Option<Attached>, StorageError> {
        let site = format!("host.storage_{}", call.verb);
        self.shared.faults.check(&site).map_err(StorageError::unusable)?;
        match &self.storage {
            Some(program) => real_storage::call(Some(program), call),
            None => super::storage::call(&self.shared.storage, call),
        }
    }

    fn check_terminal(&self) -> Result<(), HostError> {
        Ok(self.shared.faults.check("host.check_terminal")?)
    }

    /// Nobody listens there.
    fn listen_for_terminal(&self, screen: bool) -> Result<TerminalSockets, HostError> {
        self.shared.faults.check("host.listen_for_terminal")?;
        Ok(TerminalSockets { ports: self.shared.processes.ports(screen), sockets: Vec::new() })
    }

    fn start_terminal(&self, wanted: &TerminalWanted<'_>) -> Result<Prepared, HostError> {
        self.shared.faults.check("host.start_terminal")?;
        let restored = wanted.restore && wanted.screen.is_file();
        Ok(self.prepared(ROLE, wanted.screen, restored))
    }

    /// Nobody listens there.
    fn listen_for_frame_buffer(&self) -> Result<ScreenSocket, HostError> {
        self.shared.faults.check("host.listen_for_frame_buffer")?;
        Ok(ScreenSocket { port: self.shared.processes.screen_port(), socket: None })
    }

    fn start_frame_buffer(&self, _wanted: &FrameBufferWanted<'_>) -> Result<Prepared, HostError> {
        self.shared.faults.check("host.start_frame_buffer")?;
        Ok(self.prepared(FRAME_BUFFER_ROLE, Path::new(""), false))
    }

    fn follow_process(&self, process: &ProcessId, tell: Tell) -> Result<Option<Followed>, HostError> {
        self.shared.faults.check("host.follow_process")?;
        let following = Processes::follow(&self.shared.processes, process, tell);
        Ok(following.map(|following| Followed(Box::new(following))))
    }

    fn stop_process(&self, process: &ProcessId, _patience: Duration) -> Result<bool, HostError> {
        self.shared.faults.check("host.stop_process")?;
        self.shared.processes.stop(process).map_err(|e| unusable("process", &e))
    }

    fn make_tap(
        &self,
        interface: &str,
        settings: &VifSettings,
        _note: &mut Note<'_>,
    ) -> Result<OwnedFd, HostError> {
        self.bridge("host.make_tap", &settings.bridge)?;
        self.shared.networks().interfaces.insert(interface.to_owned(), settings.clone());
        Ok(File::open("/dev/null").map_err(|e| unusable("network", &format!("/dev/null: {e}")))?.into())
    }

    fn open_terminal(&self) -> Result<Terminal, HostError> {
        self.shared.faults.check("host.open_terminal")?;
        serial::open().map_err(|e| unusable("terminal", &e))
    }

    fn make_state_file(&self, state: Option<&[u8]>) -> Result<StateFile, HostError> {
        self.shared.faults.check("host.make_state_file")?;
        state.map_or_else(StateFile::empty, StateFile::holding).map_err(|e| unusable("device model", &e))
    }

    fn listen_for_viewers(
        &self,
        domid: DomId,
        place: ScreenPlace,
        note: &mut Note<'_>,
    ) -> Result<ScreenListener, HostError> {
        self.shared.faults.check("host.listen_for_viewers")?;
        super::device_model::listen_for_viewers(domid, place, note)
    }

    fn check_device_model(&self) -> Result<(), HostError> {
        self.shared.faults.check("host.check_device_model")?;
        if self.qemu { Ok(()) } else { Err(unusable("device model", &"the simulator has no QEMU")) }
    }

    fn start_device_model(
        &self,
        new: NewDeviceModel<'_>,
        note: &mut Note<'_>,
    ) -> Result<Arc<dyn DeviceModel>, HostError> {
        self.shared.device_models.start(&self.shared, &new, note)
    }

    fn adopt_device_model(
        &self,
        _domid: DomId,
        _vm: &str,
        process: &ProcessId,
    ) -> Result<Option<Arc<dyn DeviceModel>>, HostError> {
        self.shared.device_models.adopt(&self.shared, process)
    }

    fn release(&self, resource: &Resource) -> Result<bool, HostError> {
        self.shared.faults.check("host.release")?;
        Ok(match resource {
            Resource::Process(process) if self.shared.device_models.end(process.pid) => true,
            Resource::Process(process) => self.shared.processes.kill(process),
            Resource::Loop(device) => self.shared.detach(device),
            Resource::DiskServer(server) => disk_servers::release(&self.shared, server),
            // That of a screen; a monitor has none here.
            Resource::Socket(path) => remove_socket(Path::new(path)).map_err(|e| unusable("screen", &e))?,
            // Nothing else that a simulated daemon writes down exists.
            _ => true,
        })
    }
}
