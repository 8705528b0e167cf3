//! The real machine: Xen's libraries, xenstored, Linux.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ffi::linux::tap;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use xenstore::Client;
use xenstore::transport::{DEFAULT_XENBUS, Endpoint, LibTransport, StreamTransport};

use super::linux::blockdev::{self, DevNumber, Disk, Links, OpenDiskError};
use super::linux::boot::BootLoader;
use super::linux::ends::{Ends, Tell};
use super::linux::loopdev::{self, AttachOptions};
use super::linux::mac::MacAddr;
use super::linux::netlink::{IfName, LinkChange, Netlink};
use super::linux::nftables::Place;
use super::linux::nic::Cards;
use super::linux::suspend_file::{SuspendFile, SuspendFileError};
use super::linux::terminal::{TerminalError, TerminalServers};
use super::linux::{
    backend_threads, device_model, disk_server, nbd, network_watch, nftables, process, release, script,
    serial, storage, vif,
};
use super::unhurried::Patient;
use super::xen::XenHypervisor;
use super::{
    Access, Attached, AttachedDisk, BridgeKind, DeviceModel, DiskId, DiskWanted, DomId, Edges, FileId,
    Firmware, FirmwarePaths, Followed, FoundKernel, FrameBufferWanted, Host, HostError, ImageFile,
    ImageFormat, IoPriority, KernelSearch, KernelSearchError, NetworkTell, NewDeviceModel, Note, NoteServer,
    Prepared, Reserve, ScreenListener, ScreenPlace, ScreenSocket, ScriptEnd, ScriptError, ScriptRun,
    ServerWanted, StateFile, StorageCall, StorageError, Terminal, TerminalSockets, TerminalWanted,
    VifScripts, VifSettings, disk_of,
};
use crate::state::journal::{DiskServerId, ProcessId, Resource};

/// Which way to xenstored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum StoreAddress {
    /// The daemon's socket (`$XENSTORED_PATH`, else `/run/xenstored/socket`).
    #[default]
    Socket,
    /// The kernel's `/dev/xen/xenbus`: for a dom0 whose xenstored runs in a domain of its own.
    Xenbus,
    /// Xen's own client library, as the reference to compare with.
    Libxenstore,
}

/// The edges of the host this process runs on.
pub fn real(store: StoreAddress, host: LinuxHost) -> Edges {
    Edges::new(
        || Ok(Box::new(XenHypervisor::open()?) as Box<dyn super::Hypervisor>),
        move || open_store(store),
        Arc::new(host),
    )
}

impl StoreAddress {
    /// Where our own client connects. Watches always go this way: libxenstore delivers them on a thread of its own.
    pub fn endpoint(self) -> Endpoint {
        match self {
            Self::Socket | Self::Libxenstore => Endpoint::from_environment(),
            Self::Xenbus => Endpoint::Xenbus(DEFAULT_XENBUS.into()),
        }
    }
}

fn open_store(address: StoreAddress) -> Result<Client, xenstore::Error> {
    match address {
        StoreAddress::Socket | StoreAddress::Xenbus => {
            let mut transport = StreamTransport::new(address.endpoint());
            transport.connect()?;
            Ok(Client::new(Box::new(Patient(transport))))
        }
        StoreAddress::Libxenstore => Ok(Client::new(Box::new(LibTransport::open()?))),
    }
}

/// How long netback may take to make an interface: it announces itself ready (`InitWait`) before it does. It takes
/// microseconds, on a busy dom0 a little longer.
const INTERFACE_LIMIT: Duration = Duration::from_secs(30);

/// Where taps are made.
const TUN: &str = "/dev/net/tun";

/// Linux in dom0.
#[derive(Debug)]
pub struct LinuxHost {
    /// A directory for each event with its scripts.
    pub hooks: PathBuf,
    /// How boot loaders run.
    pub boot_loader: BootLoader,
    /// Files that guests start with.
    pub firmware: FirmwarePaths,
    /// How terminal servers are started.
    pub terminals: TerminalServers,
    /// Who is told when processes end.
    pub ends: Ends,
    /// How device models run.
    pub device_models: device_model::Settings,
    /// The storage layer's program.
    pub storage: Option<PathBuf>,
    /// Where Open vSwitch's database server listens.
    pub open_vswitch: PathBuf,
    /// What may set interfaces up.
    pub vif_scripts: VifScripts,
    /// What physical cards are given.
    pub cards: Cards,
}

impl Host for LinuxHost {
    fn check_disk(&self, path: &Path, access: Access) -> Result<DiskId, HostError> {
        open_disk(path, access).map(|disk| disk.id())
    }

    fn disk_id(&self, major: u64, minor: u64) -> Result<DiskId, HostError> {
        let file = match u32::try_from(minor) {
            Ok(number) if major == loopdev::MAJOR => loopdev::status(number)
                .map_err(|error| HostError::Unusable { class: "disk", text: error.to_string() })?
                .map(|status| status.backing),
            _ => None,
        };
        let served = || nbd::backend_of(minor).filter(|_| major == nbd::MAJOR).as_deref().and_then(disk_of);
        let disk = file.map(FileId::into).or_else(served);
        Ok(disk.unwrap_or(DiskId::Block { major, minor }))
    }

    fn attach_disk(
        &self,
        wanted: &DiskWanted<'_>,
        reserve: &mut Reserve<'_>,
    ) -> Result<AttachedDisk, HostError> {
        let disk = open_disk(wanted.path, wanted.access)?;
        disk.must_have_blocks(wanted.block_size)
            .map_err(|error| HostError::Unusable { class: "disk", text: error.to_string() })?;
        let id = disk.id();
        match disk {
            Disk::Block(disk) => Ok(AttachedDisk {
                id,
                device: (disk.rdev.major, disk.rdev.minor),
                node: disk.path,
                keep: Some(disk.file.into()),
            }),
            Disk::File(disk) => {
                // The kernel frees the device with its last user: us until the backend has opened it, then the
                // backend. A daemon killed in between leaves nothing behind.
                let block_size = wanted.block_size.unwrap_or_default();
                let options = AttachOptions {
                    direct_io: true,
                    autoclear: true,
                    block_size,
                    ..AttachOptions::default()
                };
                let (device, node) = loopdev::attach(&disk, &options, &mut |number| reserve(number, disk.id))
                    .map_err(|error| HostError::Unusable { class: "disk", text: error.to_string() })?;
                Ok(AttachedDisk {
                    id,
                    device: (device.dev.major, device.dev.minor),
                    node: device.path,
                    keep: Some(node.into()),
                })
            }
        }
    }

    fn check_image(&self, path: &Path, access: Access, format: ImageFormat) -> Result<DiskId, HostError> {
        disk_server::check(&self.device_models, path, access, format)
    }

    fn serve_disk(&self, wanted: &ServerWanted<'_>, note: &mut NoteServer<'_>) -> Result<(), HostError> {
        disk_server::start(&self.device_models, wanted, note)
    }

    fn open_served(&self, server: &DiskServerId) -> Result<Option<AttachedDisk>, HostError> {
        disk_server::find(server)
    }

    fn refresh_disk(&self, major: u64, minor: u64) -> Result<u64, HostError> {
        let unusable =
            |error: &dyn std::fmt::Display| HostError::Unusable { class: "disk", text: error.to_string() };
        if let (Ok(number), loopdev::MAJOR) = (u32::try_from(minor), major) {
            loopdev::refresh(number).map_err(|error| unusable(&error))?;
        }
        blockdev::size_of(DevNumber { major, minor }).map_err(|error| unusable(&error))
    }

    fn prioritise_disk(&self, domid: DomId, device: &str, priority: IoPriority) -> Result<usize, HostError> {
        backend_threads::prioritise(domid, device, priority).map_err(|error| HostError::Unusable {
            class: "disk",
            text: format!("I/O priority of disk {device} of domain {domid}: {error}"),
        })
    }

    fn prioritise_process(&self, process: &ProcessId, priority: IoPriority) -> Result<usize, HostError> {
        process::prioritise(process, priority).map_err(|e| unusable_process(process, &e))
    }

    fn find_kernel(&self, search: &KernelSearch<'_>) -> Result<FoundKernel, KernelSearchError> {
        let disk = match open_disk(search.disk, Access::ReadOnly)? {
            Disk::Block(disk) => disk.file,
            Disk::File(disk) => disk.file,
        };
        // What was read of a block device before is not what its guest has written since: backends go past the cache.
        posix_fadvise(&disk, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(|errno| {
            KernelSearchError::Unable(format!("cache of {}: {errno}", search.disk.display()))
        })?;
        self.boot_loader.search(&disk, search)
    }

    fn open_firmware(&self, firmware: Firmware) -> Result<ImageFile, HostError> {
        self.firmware.open(firmware)
    }

    fn create_image(&self, path: &Path, needed: u64) -> Result<SuspendFile, HostError> {
        Ok(SuspendFile::create(path, needed)?)
    }

    fn open_image(&self, path: &Path) -> Result<SuspendFile, HostError> {
        Ok(SuspendFile::open(path)?)
    }

    fn discard_image(&self, path: &Path) -> Result<(), HostError> {
        Ok(SuspendFile::discard(path)?)
    }

    fn check_bridge(&self, bridge: &str) -> Result<BridgeKind, HostError> {
        let name = interface_name(bridge)?;
        let link =
            Netlink::open().and_then(|mut netlink| netlink.link_by_name(&name)).map_err(unusable_network)?;
        let link = link.ok_or_else(|| HostError::Missing {
            class: "network",
            id: bridge.to_owned(),
            text: format!("bridge {bridge} does not exist; make it with `ip link add {bridge} type bridge`"),
        })?;
        link.bridge_kind()
            .ok_or_else(|| unusable_network(format!("{bridge} is a network interface but not a bridge")))
    }

    fn connect_vif(
        &self,
        interface: &str,
        settings: &VifSettings,
        note: &mut Note<'_>,
    ) -> Result<(), HostError> {
        let interface = interface_name(interface)?;
        let mut netlink = Netlink::open().map_err(unusable_network)?;
        // That it did not appear is found, and said, by the next step.
        let link = netlink.await_link(&interface, INTERFACE_LIMIT).map_err(unusable_network)?;
        // Before anything of the guest's can get through. A script's bridge is looked at by the script alone.
        if let Some(locked) = &settings.locked {
            let kind = if settings.scripted { None } else { Some(self.check_bridge(&settings.bridge)?) };
            let place = if kind == Some(BridgeKind::Linux) { Place::Bridge } else { Place::Device };
            nftables::lock(&interface, locked, place).map_err(unusable_network)?;
        }
        vif::set_offloads(&interface, &settings.offloads).map_err(unusable_network)?;
        if settings.scripted {
            let missing = || unusable_network(format!("{interface} does not exist"));
            let change = LinkChange { up: Some(settings.carrier), ..LinkChange::default() };
            return netlink.change(&link.ok_or_else(missing)?, &change).map_err(unusable_network);
        }
        let bridge = interface_name(&settings.bridge)?;
        let switch = vif::Switch {
            socket: &self.open_vswitch,
            vlan: settings.vlan,
            trunks: &settings.trunks,
            external_ids: &settings.external_ids,
        };
        let (mtu, up) = (settings.mtu, settings.carrier);
        let wanted = vif::Wanted { bridge: &bridge, mtu, mac: MacAddr::BACKEND, up, switch };
        vif::connect_vif(&mut netlink, &interface, &wanted, note).map(drop).map_err(unusable_network)?;
        vif::set_promiscuous(&interface, settings.promiscuous).map_err(unusable_network)
    }

    fn watch_networks(&self, tell: NetworkTell) -> Result<Followed, HostError> {
        let watching = network_watch::start(self.cards.clone(), tell).map_err(unusable_network)?;
        Ok(Followed(Box::new(watching)))
    }

    fn vif_scripts(&self) -> VifScripts {
        self.vif_scripts.clone()
    }

    fn check_script(&self, path: &Path) -> Result<(), HostError> {
        script::check(path)
    }

    fn hook_scripts(&self, hook: &str) -> Result<Vec<PathBuf>, HostError> {
        script::list(&self.hooks.join(hook))
            .map_err(|error| HostError::Unusable { class: "hook", text: error.to_string() })
    }

    fn run_script(&self, run: &ScriptRun<'_>) -> Result<ScriptEnd, ScriptError> {
        script::run(run)
    }

    fn check_storage(&self) -> Result<(), StorageError> {
        storage::check(self.storage.as_deref()).map(drop)
    }

    fn call_storage(&self, call: &StorageCall<'_>) -> Result<Option<Attached>, StorageError> {
        storage::call(self.storage.as_deref(), call)
    }

    fn check_terminal(&self) -> Result<(), HostError> {
        let program = &self.terminals.program;
        match std::fs::metadata(program) {
            Ok(found) if found.is_file() => Ok(()),
            _ => Err(HostError::Missing {
                class: "terminal server",
                id: program.display().to_string(),
                text: format!(
                    "terminal server {} is not there; install vncterm, say with --vncterm where it is, or give the VM none",
                    program.display()
                ),
            }),
        }
    }

    fn listen_for_terminal(&self, screen: bool) -> Result<TerminalSockets, HostError> {
        Ok(self.terminals.listen(screen)?)
    }

    fn start_terminal(&self, wanted: &TerminalWanted<'_>) -> Result<Prepared, HostError> {
        Ok(self.terminals.start(wanted)?)
    }

    fn listen_for_frame_buffer(&self) -> Result<ScreenSocket, HostError> {
        Ok(self.terminals.listen_for_frame_buffer()?)
    }

    fn start_frame_buffer(&self, wanted: &FrameBufferWanted<'_>) -> Result<Prepared, HostError> {
        Ok(self.terminals.start_frame_buffer(wanted)?)
    }

    fn follow_process(&self, process: &ProcessId, tell: Tell) -> Result<Option<Followed>, HostError> {
        let held = process::hold(process).map_err(|e| unusable_process(process, &e))?;
        let following = held.map(|held| self.ends.follow(held, tell)).transpose();
        let following = following.map_err(|e| unusable_process(process, &e))?;
        Ok(following.map(|following| Followed(Box::new(following))))
    }

    fn stop_process(&self, process: &ProcessId, patience: Duration) -> Result<bool, HostError> {
        process::stop(process, patience).map_err(|e| unusable_process(process, &e))
    }

    fn make_tap(
        &self,
        interface: &str,
        settings: &VifSettings,
        note: &mut Note<'_>,
    ) -> Result<OwnedFd, HostError> {
        let control = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(TUN);
        let control =
            control.map_err(|e| unusable_network(format!("{TUN}: {e} (is the module tun loaded?)")))?;
        tap::make(control.as_fd(), interface)
            .map_err(|e| unusable_network(format!("tap {interface} cannot be made: {e}")))?;
        self.connect_vif(interface, settings, note)?;
        Ok(control.into())
    }

    fn open_terminal(&self) -> Result<Terminal, HostError> {
        serial::open().map_err(|error| HostError::Unusable {
            class: "terminal",
            text: format!("a pseudo-terminal cannot be made: {error}"),
        })
    }

    fn make_state_file(&self, state: Option<&[u8]>) -> Result<StateFile, HostError> {
        state.map_or_else(StateFile::empty, StateFile::holding).map_err(|error| HostError::Unusable {
            class: "device model",
            text: format!("no memory for a device model's state: {error}"),
        })
    }

    fn listen_for_viewers(
        &self,
        domid: DomId,
        place: ScreenPlace,
        note: &mut Note<'_>,
    ) -> Result<ScreenListener, HostError> {
        match place {
            ScreenPlace::Port(wanted) => {
                let listener = self.terminals.listen_for_viewers(wanted).map_err(unusable_screen)?;
                ScreenListener::on_port(listener).map_err(unusable_screen)
            }
            ScreenPlace::Socket => device_model::listen_for_viewers(&self.device_models, domid, note),
        }
    }

    fn check_device_model(&self) -> Result<(), HostError> {
        device_model::check(&self.device_models)
    }

    fn start_device_model(
        &self,
        new: NewDeviceModel<'_>,
        note: &mut Note<'_>,
    ) -> Result<Arc<dyn DeviceModel>, HostError> {
        device_model::start(&self.device_models, new, note)
    }

    fn adopt_device_model(
        &self,
        domid: DomId,
        vm: &str,
        process: &ProcessId,
    ) -> Result<Option<Arc<dyn DeviceModel>>, HostError> {
        device_model::adopt(&self.device_models, domid, vm, process)
    }

    fn release(&self, resource: &Resource) -> Result<bool, HostError> {
        match resource {
            Resource::SwitchPort(name) => release::remove_port(&self.open_vswitch, name),
            other => release::release(other),
        }
    }
}

fn unusable_screen(error: impl std::fmt::Display) -> HostError {
    HostError::Unusable { class: "screen", text: error.to_string() }
}

fn open_disk(path: &Path, access: Access) -> Result<Disk, HostError> {
    if !path.is_absolute() {
        let text = format!(
            "disk {} is not an absolute path: the daemon's directory is not its clients'",
            path.display()
        );
        return Err(HostError::Unusable { class: "disk", text });
    }
    // Paths come from the administrator's configuration, where links such as /dev/vg/lv are usual.
    blockdev::open_disk(path, access, Links::Follow).map_err(|error| match &error {
        OpenDiskError::Missing { path, .. } => {
            HostError::Missing { class: "disk", id: path.display().to_string(), text: error.to_string() }
        }
        _ => HostError::Unusable { class: "disk", text: error.to_string() },
    })
}

impl From<SuspendFileError> for HostError {
    fn from(error: SuspendFileError) -> Self {
        let text = error.to_string();
        match error {
            SuspendFileError::Missing(path) => {
                Self::Missing { class: "suspend image", id: path.display().to_string(), text }
            }
            _ => Self::Unusable { class: "suspend image", text },
        }
    }
}

fn interface_name(name: &str) -> Result<IfName, HostError> {
    name.parse::<IfName>().map_err(|e| unusable_network(format!("{name:?} is no interface name: {e}")))
}

fn unusable_process(process: &ProcessId, why: &std::io::Error) -> HostError {
    HostError::Unusable { class: "process", text: format!("{} process {}: {why}", process.role, process.pid) }
}

impl From<TerminalError> for HostError {
    fn from(error: TerminalError) -> Self {
        Self::Unusable { class: "terminal server", text: format!("terminal server: {error}") }
    }
}

fn unusable_network(why: impl std::fmt::Display) -> HostError {
    HostError::Unusable { class: "network", text: why.to_string() }
}
