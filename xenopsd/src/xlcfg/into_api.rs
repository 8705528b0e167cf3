//! [`XlConfig`] to the records of the contract.

use crate::api;
use crate::device::vif::SCRIPT_KEY;
use crate::edge::IMAGE_FORMAT;

use super::{DiskConfig, Guest, HvmConfig, Kernel, StopAction, Vga, VifConfig, XlConfig};

const MIB: i64 = 1 << 20;

/// Share of the CPUs when only a cap is given (Xen's default).
const DEFAULT_WEIGHT: api::Int = 256;

/// The contract counts rates in units of 1024 bytes per second.
const RATE_UNIT: u64 = 1024;

impl XlConfig {
    /// The VM and its devices; a uuid is made when the configuration has none.
    pub fn into_api(self) -> (api::Vm, Vec<api::Vbd>, Vec<api::Vif>) {
        let id = self.uuid.unwrap_or_else(uuid::Uuid::new_v4).as_hyphenated().to_string();
        let vbds: Vec<api::Vbd> = self.disks.iter().map(|disk| disk.to_api(&id)).collect();
        let vifs = (0..).zip(&self.vifs).map(|(position, config)| config.to_api(&id, position)).collect();
        let pv_info = |kernel| api::PvInfo {
            vncterm: self.text_screen,
            framebuffer: self.frame_buffer,
            ..pv_info(kernel, &vbds)
        };
        let ty = match self.guest {
            Guest::Pv(kernel) => api::BuilderInfo::Pv(pv_info(kernel)),
            Guest::Pvh(kernel) => api::BuilderInfo::Pvh(pv_info(kernel)),
            Guest::PvInPvh(kernel) => api::BuilderInfo::PvInPvh(pv_info(kernel)),
            Guest::Hvm(hvm) => api::BuilderInfo::Hvm(hvm_info(hvm)),
        };
        let memory = i64::from(self.memory_mib) * MIB;
        let priority = match (self.cpu_weight, self.cap) {
            (None, None) => None,
            (weight, cap) => Some((weight.map_or(DEFAULT_WEIGHT, int), int(cap.unwrap_or(0)))),
        };
        let affinity = self.affinity.into_iter().map(|cpus| cpus.into_iter().map(int).collect()).collect();
        let vm = api::Vm {
            id,
            name: self.name,
            ssidref: 0,
            xsdata: api::Dict::new(),
            platformdata: api::Dict(self.platform),
            bios_strings: api::Dict::new(),
            ty,
            suppress_spurious_page_faults: false,
            machine_address_size: None,
            memory_static_max: i64::from(self.maxmem_mib) * MIB,
            memory_dynamic_max: memory,
            memory_dynamic_min: memory,
            vcpu_max: int(self.maxvcpus),
            vcpus: int(self.vcpus),
            scheduler_params: api::SchedulerParams { priority, affinity },
            on_crash: actions(self.actions.crash),
            on_shutdown: actions(self.actions.poweroff),
            on_reboot: actions(self.actions.reboot),
            on_softreboot: actions(self.actions.soft_reset),
            pci_msitranslate: true,
            pci_power_mgmt: false,
            has_vendor_device: false,
            generation_id: self.generation_id,
        };
        (vm, vbds, vifs)
    }
}

// 16 bits fit the contract's integers on every machine.
fn int(number: u16) -> api::Int {
    api::Int::try_from(number).unwrap_or(api::Int::MAX)
}

fn actions(action: StopAction) -> Vec<api::Action> {
    use api::Action::{Coredump, Pause, Shutdown, Softreboot, Start};
    match action {
        StopAction::Destroy => vec![Shutdown],
        StopAction::Restart | StopAction::RenameRestart => vec![Start],
        StopAction::Preserve => vec![Pause],
        StopAction::CoredumpDestroy => vec![Coredump, Shutdown],
        StopAction::CoredumpRestart => vec![Coredump, Start],
        StopAction::SoftReset => vec![Softreboot],
    }
}

/// The text console that xenconsoled serves, and nothing else.
fn pv_info(kernel: Kernel, vbds: &[api::Vbd]) -> api::PvInfo {
    let boot = match kernel {
        Kernel::Direct { path, ramdisk, cmdline } => {
            api::Boot::Direct(api::DirectBoot { kernel: path, cmdline, ramdisk })
        }
        Kernel::Bootloader { program, args, cmdline } => api::Boot::Indirect(api::IndirectBoot {
            bootloader: program,
            extra_args: cmdline,
            legacy_args: String::new(),
            bootloader_args: args,
            devices: vbds.iter().find_map(|vbd| vbd.backend.clone()).into_iter().collect(),
        }),
    };
    api::PvInfo {
        boot,
        framebuffer: false,
        framebuffer_ip: None,
        vncterm: false,
        vncterm_ip: None,
        pci_passthrough: false,
    }
}

fn hvm_info(hvm: HvmConfig) -> api::HvmInfo {
    let default = api::HvmInfo::default();
    api::HvmInfo {
        timeoffset: hvm.timeoffset,
        acpi: hvm.acpi,
        shadow_multiplier: f64::from(hvm.paging_thousandths) / 1000.0,
        boot_order: hvm.boot_order,
        serial: hvm.serial,
        keymap: hvm.keymap,
        // As xl's default: a viewer finds it without being root.
        vnc_ip: Some(hvm.vnclisten.unwrap_or_else(|| "127.0.0.1".to_owned())),
        video_mib: match (hvm.vga, hvm.videoram_mib) {
            (Vga::None, _) => 0,
            (_, None) => default.video_mib,
            (_, Some(mib)) => int(mib),
        },
        video: match hvm.vga {
            Vga::Standard => api::VideoCard::StandardVga,
            Vga::Cirrus | Vga::None => api::VideoCard::Cirrus,
        },
        firmware: if hvm.uefi {
            api::FirmwareType::Uefi(api::NvramUefiVariables::default())
        } else {
            api::FirmwareType::Bios
        },
        ..default
    }
}

impl DiskConfig {
    /// The disk as one of the VM with this id.
    pub fn to_api(&self, vm: &str) -> api::Vbd {
        let flag = |key: &str, on: bool| (key.to_owned(), String::from(if on { "1" } else { "0" }));
        let keys = self
            .direct_io_safe
            .then(|| flag("direct-io-safe", true))
            .into_iter()
            .chain(self.discard.map(|on| flag("discard-enable", on)))
            .chain(self.image.map(|format| (IMAGE_FORMAT.to_owned(), format.to_string())));
        api::Vbd {
            id: api::DeviceId::new(vm, self.vdev.to_string()),
            position: Some(self.vdev),
            mode: if self.writable { api::VbdMode::ReadWrite } else { api::VbdMode::ReadOnly },
            backend: self.target.clone().map(api::Disk::Local),
            ty: if self.cdrom { api::VbdType::Cdrom } else { api::VbdType::Disk },
            extra_backend_keys: keys.collect(),
            ..api::Vbd::default()
        }
    }
}

impl VifConfig {
    /// The interface as the VM's in this place, counted from 0.
    pub fn to_api(&self, vm: &str, position: api::Int) -> api::Vif {
        let default = api::Vif::default();
        let rate = self.rate.map(|rate| {
            let units = i64::try_from(rate.bytes_per_second.div_ceil(RATE_UNIT)).unwrap_or(i64::MAX);
            (units, i64::try_from(rate.timeslice_us).unwrap_or(i64::MAX))
        });
        api::Vif {
            id: api::DeviceId::new(vm, position.to_string()),
            position,
            // Empty asks for one derived from the VM's id: the same at each `create` of a configuration with a uuid.
            mac: self.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            mtu: self.mtu.and_then(|mtu| api::Int::try_from(mtu).ok()).unwrap_or(default.mtu),
            rate,
            backend: api::Network::Local(self.bridge.to_string()),
            other_config: self.script.iter().map(|script| (SCRIPT_KEY.to_owned(), script.clone())).collect(),
            ..default
        }
    }
}
