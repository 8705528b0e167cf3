//! Guests as the contract's records: a PV Linux with 128 MiB unless a test wants something else, which may be another
//! way to virtualise it.

use uuid::Uuid;
use xenopsd::api::{
    Action, Boot, BuilderInfo, DeviceId, Dict, DirectBoot, Disk, HvmInfo, IndirectBoot, Int, Network, PvInfo,
    SchedulerParams, Vbd, VbdMode, VbdType, Vif, Vm,
};

use xenopsd::edge::{IMAGE_FORMAT, ImageFormat};

/// The test guest's kernel in dom0.
const KERNEL: &str = "/guests/vmlinux";
/// Its initial ramdisk.
const RAMDISK: &str = "/guests/initramfs";
const MIB: i64 = 1 << 20;
/// Enough for the test guest; half a dozen fit beside dom0.
const MEMORY: i64 = 128 * MIB;

/// A VM with its devices, not yet added to a daemon.
#[derive(Clone, Debug)]
pub struct Guest {
    /// The VM.
    pub vm: Vm,
    /// Its disks.
    pub vbds: Vec<Vbd>,
    /// Its network interfaces.
    pub vifs: Vec<Vif>,
}

impl Guest {
    /// A guest without devices, whose id follows from its name. What stops it leaves it stopped.
    pub fn new(name: &str) -> Self {
        let boot = Boot::Direct(DirectBoot {
            kernel: KERNEL.to_owned(),
            cmdline: "console=hvc0".to_owned(),
            ramdisk: Some(RAMDISK.to_owned()),
        });
        let pv = PvInfo {
            boot,
            framebuffer: false,
            framebuffer_ip: None,
            vncterm: false,
            vncterm_ip: None,
            pci_passthrough: false,
        };
        let vm = Vm {
            id: Uuid::new_v5(&Uuid::NAMESPACE_OID, name.as_bytes()).hyphenated().to_string(),
            name: name.to_owned(),
            ssidref: 0,
            xsdata: Dict::new(),
            platformdata: Dict::new(),
            bios_strings: Dict::new(),
            ty: BuilderInfo::Pv(pv),
            suppress_spurious_page_faults: false,
            machine_address_size: None,
            memory_static_max: MEMORY,
            memory_dynamic_max: MEMORY,
            memory_dynamic_min: MEMORY,
            vcpu_max: 1,
            vcpus: 1,
            scheduler_params: SchedulerParams { priority: None, affinity: Vec::new() },
            on_crash: vec![Action::Shutdown],
            on_shutdown: vec![Action::Shutdown],
            on_reboot: vec![Action::Shutdown],
            on_softreboot: vec![Action::Shutdown],
            pci_msitranslate: true,
            pci_power_mgmt: false,
            has_vendor_device: false,
            generation_id: None,
        };
        Self { vm, vbds: Vec::new(), vifs: Vec::new() }
    }

    /// An HVM guest without devices, that boots from its first disk with BIOS firmware, with a serial port.
    pub fn hvm(name: &str) -> Self {
        Self::new(name).with(|vm| {
            vm.ty = BuilderInfo::Hvm(HvmInfo { serial: Some("pty".to_owned()), ..HvmInfo::default() });
        })
    }

    /// With something different about an HVM guest's machine.
    #[must_use]
    pub fn machine(self, change: impl FnOnce(&mut HvmInfo)) -> Self {
        self.with(|vm| {
            if let BuilderInfo::Hvm(info) = &mut vm.ty {
                change(info);
            }
        })
    }

    /// The VM's id.
    pub fn id(&self) -> &str {
        &self.vm.id
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.vm.name
    }

    /// With something different about the VM.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Vm)) -> Self {
        change(&mut self.vm);
        self
    }

    /// With another way to virtualise it: `BuilderInfo::Pvh` or `BuilderInfo::PvInPvh`.
    #[must_use]
    pub fn kind(self, kind: fn(PvInfo) -> BuilderInfo) -> Self {
        self.with(|vm| {
            if let BuilderInfo::Pv(info) = &vm.ty {
                vm.ty = kind(info.clone());
            }
        })
    }

    /// With something different about how it boots.
    #[must_use]
    pub fn boot(self, change: impl FnOnce(&mut DirectBoot)) -> Self {
        self.with(|vm| {
            let (BuilderInfo::Pv(info) | BuilderInfo::Pvh(info) | BuilderInfo::PvInPvh(info)) = &mut vm.ty
            else {
                return;
            };
            if let Boot::Direct(boot) = &mut info.boot {
                change(boot);
            }
        })
    }

    /// Installed by eliloader from a repository onto its disks so far, with other keys of an installation besides.
    #[must_use]
    pub fn installed_from(self, repository: &str, keys: &[(&str, &str)]) -> Self {
        let devices = self.vbds.iter().filter_map(|vbd| vbd.backend.clone()).collect();
        self.with(|vm| {
            let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!("a PV guest") };
            pv.boot = Boot::Indirect(IndirectBoot {
                bootloader: "eliloader".to_owned(),
                extra_args: "console=hvc0".to_owned(),
                devices,
                ..IndirectBoot::default()
            });
            for (key, value) in [("install-repository", repository)].iter().chain(keys) {
                vm.platformdata.insert(*key, (*value).to_owned());
            }
        })
    }

    /// With more words on the kernel's command line; the guest's `/init` says which it knows.
    #[must_use]
    pub fn cmdline(self, words: &str) -> Self {
        self.boot(|boot| boot.cmdline = format!("{} {words}", boot.cmdline))
    }

    /// With as much memory as this, in MiB.
    #[must_use]
    pub fn memory(self, mib: i64) -> Self {
        self.with(|vm| {
            let bytes = mib.saturating_mul(MIB);
            (vm.memory_static_max, vm.memory_dynamic_max, vm.memory_dynamic_min) = (bytes, bytes, bytes);
        })
    }

    /// With a disk, such as `xvda`, from a file or block device in dom0.
    #[must_use]
    pub fn disk(mut self, vdev: &str, path: &str, mode: VbdMode) -> Self {
        self.vbds.push(Vbd {
            id: DeviceId::new(self.id(), vdev),
            position: Some(vdev.parse().expect("a device name")),
            mode,
            backend: Some(Disk::Local(path.to_owned())),
            ..Vbd::default()
        });
        self
    }

    /// With the last disk in an image that is served, and other keys of its backend.
    #[must_use]
    pub fn image(self, format: ImageFormat, keys: &[(&str, &str)]) -> Self {
        self.keys(&[(IMAGE_FORMAT, format.name())]).keys(keys)
    }

    /// With keys of the last disk's backend.
    #[must_use]
    pub fn keys(mut self, keys: &[(&str, &str)]) -> Self {
        if let Some(vbd) = self.vbds.last_mut() {
            for (key, value) in keys {
                vbd.extra_backend_keys.insert(*key, (*value).to_owned());
            }
        }
        self
    }

    /// With a CD-ROM drive, such as `hdc`, and a disc in it.
    #[must_use]
    pub fn cd(self, vdev: &str, path: &str) -> Self {
        let mut guest = self.disk(vdev, path, VbdMode::ReadOnly);
        if let Some(vbd) = guest.vbds.last_mut() {
            vbd.ty = VbdType::Cdrom;
        }
        guest
    }

    /// With a network interface in a bridge of dom0.
    #[must_use]
    pub fn vif(mut self, bridge: &str) -> Self {
        let position = self.vifs.len();
        self.vifs.push(Vif {
            id: DeviceId::new(self.id(), position.to_string()),
            position: Int::try_from(position).expect("a few"),
            mac: String::new(),
            backend: Network::Local(bridge.to_owned()),
            ..Vif::default()
        });
        self
    }
}
