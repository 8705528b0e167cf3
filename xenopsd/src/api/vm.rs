//! VMs: configuration, observed state, and the calls on them. Memory is in bytes unless said otherwise.

mod boot_loader;
mod calls;

pub use boot_loader::BootLoader;
pub use calls::*;

use super::decode::DecodeError;
use super::ids::VmId;
use super::value::{Dict, FromValue, Int, ToValue, Value, WireType};
use super::vbd::Disk;

variant! {
    /// What a VM is doing, coarsely.
    pub enum PowerState as "power_state" derive(Copy, Eq, Hash) {
        /// It has a domain that may run.
        Running as "Running",
        /// It has no domain.
        Halted as "Halted",
        /// It has no domain, and an image to resume from.
        Suspended as "Suspended",
        /// It has a domain that is not scheduled.
        Paused as "Paused",
    }
}

variant! {
    /// What happens when a mediated pass-through of the integrated graphics is asked for.
    pub enum IgdPassthrough as "Vm.igd_passthrough" derive(Copy, Eq) {
        /// The whole device.
        GvtD as "GVT_d",
    }
}

variant! {
    /// Emulated graphics card.
    pub enum VideoCard as "Vm.video_card" derive(Copy, Eq) {
        /// Cirrus Logic GD5446.
        Cirrus as "Cirrus",
        /// Plain VGA with VESA modes.
        StandardVga as "Standard_VGA",
        /// A virtual GPU is the card.
        Vgpu as "Vgpu",
        /// The host's integrated graphics is the card.
        IgdPassthrough as "IGD_passthrough" (IgdPassthrough),
    }
    otherwise Cirrus
}

variant! {
    /// What a reboot does to UEFI variables the guest has set.
    pub enum OnBoot as "Nvram_uefi_variables.onboot" derive(Copy, Eq) {
        /// They stay.
        Persist as "Persist",
        /// They go back to what they were.
        Reset as "Reset",
    }
}

record! {
    /// Where UEFI variables are kept.
    pub struct NvramUefiVariables as "Nvram_uefi_variables.t" derive(Eq) {
        /// What a reboot does to them.
        on_boot: OnBoot = OnBoot::Persist,
        /// The service that stores them.
        backend: String = "xapidb".to_owned(),
    }
}

variant! {
    /// Firmware of an HVM guest.
    pub enum FirmwareType as "Vm.firmware_type" derive(Eq) {
        /// SeaBIOS.
        Bios as "Bios",
        /// OVMF, with its variables.
        Uefi as "Uefi" (NvramUefiVariables),
    }
}

/// A uuid in its dashed lower-case form; any other form of the same uuid is accepted and normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid(pub uuid::Uuid);

impl WireType for Uuid {
    fn type_expr() -> String {
        "abstract:uuid".to_owned()
    }
}

impl ToValue for Uuid {
    fn to_value(&self) -> Value {
        Value::string(self.0.as_hyphenated().to_string())
    }
}

impl FromValue for Uuid {
    fn from_value(value: &Value) -> Result<Self, DecodeError> {
        let text = String::from_value(value)?;
        // The dashed form only: the other notations the uuid crate reads are not the contract's.
        if text.len() != uuid::fmt::Hyphenated::LENGTH {
            return Err(DecodeError::expected("uuid", value));
        }
        uuid::Uuid::try_parse(&text).map(Self).map_err(|_| DecodeError::expected("uuid", value))
    }
}

variant! {
    /// Trusted platform module.
    pub enum Tpm as "Vm.tpm" derive(Copy, Eq) {
        /// An emulated one; the payload names its stored state.
        Vtpm as "Vtpm" (Uuid),
    }
}

record! {
    /// A fully virtualised guest with a device model.
    pub struct HvmInfo as "Vm.hvm_info" {
        /// Hardware assisted paging, if the host can.
        hap: bool = true,
        /// Scales the memory set aside for shadow page tables.
        shadow_multiplier: f64 = 1.0,
        /// Seconds the guest's clock is off UTC, as decimal text; empty means none.
        timeoffset: String = String::new(),
        /// Video memory in MiB.
        video_mib: Int = 4,
        /// Emulated graphics card.
        video: VideoCard = VideoCard::Cirrus,
        /// Whether the guest sees ACPI tables.
        acpi: bool = true,
        /// Where the first serial port goes, in the device model's notation (`pty`, `none`, `tcp:...`).
        serial: Option<String> = None,
        /// Keyboard layout of the graphical console.
        keymap: Option<String> = None,
        /// Address the graphical console listens on; a Unix socket when absent.
        vnc_ip: Option<String> = None,
        /// Extra devices for the device model to emulate.
        pci_emulations: Vec<String> = Vec::new(),
        /// Whether PCI devices are passed through.
        pci_passthrough: bool = false,
        /// Order in which device classes are tried: letters of `c` disk, `d` CD-ROM, `n` network.
        boot_order: String = String::new(),
        /// Whether disks are given to the device model on its command line.
        qemu_disk_cmdline: bool = false,
        /// Whether the device model runs in a domain of its own.
        qemu_stubdom: bool = false,
        /// Firmware.
        firmware: FirmwareType = FirmwareType::Bios,
        /// Trusted platform module.
        tpm: Option<Tpm> = None,
    }
}

record! {
    /// A kernel from dom0's file system.
    pub struct DirectBoot as "Vm.pv_direct_boot" derive(Eq) {
        /// Path of the kernel.
        kernel: String = String::new(),
        /// Kernel command line.
        cmdline: String = String::new(),
        /// Path of the initial ramdisk.
        ramdisk: Option<String> = None,
    }
}

record! {
    /// A kernel found on the guest's own disk by a boot loader.
    pub struct IndirectBoot as "Vm.pv_indirect_boot" derive(Eq) {
        /// Which boot loader, e.g. `pygrub`.
        bootloader: String = String::new(),
        /// Comes last on the kernel command line.
        extra_args: String = String::new(),
        /// Comes on the kernel command line after what the boot loader finds.
        legacy_args: String = String::new(),
        /// Arguments for the boot loader itself.
        bootloader_args: String = String::new(),
        /// Disks to look at, in order.
        devices: Vec<Disk> = Vec::new(),
    }
}

variant! {
    /// Where a PV or PVH guest's kernel comes from.
    pub enum Boot as "Vm.pv_boot" derive(Eq) {
        /// From dom0.
        Direct as "Direct" (DirectBoot),
        /// From the guest's disk.
        Indirect as "Indirect" (IndirectBoot),
    }
}

record! {
    /// A PV or PVH guest.
    pub struct PvInfo as "Vm.pv_info" derive(Eq) {
        /// Where its kernel comes from.
        boot: Boot,
        /// Whether it has a paravirtual frame buffer.
        framebuffer: bool = true,
        /// Address the frame buffer's console listens on.
        framebuffer_ip: Option<String> = None,
        /// Whether its text console is offered through a terminal server.
        vncterm: bool = true,
        /// Address the terminal server listens on.
        vncterm_ip: Option<String> = None,
        /// Whether PCI devices are passed through.
        pci_passthrough: bool = false,
    }
}

variant! {
    /// How the domain is built.
    pub enum BuilderInfo as "Vm.builder_info" {
        /// Fully virtualised, with a device model.
        Hvm as "HVM" (HvmInfo),
        /// Paravirtualised.
        Pv as "PV" (PvInfo),
        /// Paravirtualised, inside a shim that is a PVH guest.
        PvInPvh as "PVinPVH" (PvInfo),
        /// Hardware virtualised without a device model.
        Pvh as "PVH" (PvInfo),
    }
}

variant! {
    /// What to do when a domain stops.
    pub enum Action as "Vm.action" derive(Copy, Eq) {
        /// Write a core dump.
        Coredump as "Coredump",
        /// Destroy the domain.
        Shutdown as "Shutdown",
        /// Start the VM anew.
        Start as "Start",
        /// Leave the domain paused.
        Pause as "Pause",
        /// Reset the domain in place.
        Softreboot as "Softreboot",
    }
}

record! {
    /// How the domain's vCPUs are scheduled.
    pub struct SchedulerParams as "Vm.scheduler_params" derive(Eq) {
        /// Weight and cap (percent of one CPU, 0 for none).
        priority: Option<(Int, Int)>,
        /// Per vCPU, the host CPUs it may run on; an empty list leaves it free, and the first list holds for the vCPUs
        /// that have none.
        affinity: Vec<Vec<Int>>,
    }
}

record! {
    /// A VM's configuration.
    pub struct Vm as "Vm.t" {
        /// Its id.
        id: VmId,
        /// Its name for people.
        name: String = "unnamed".to_owned(),
        /// Security label of the domain (XSM), 0 for none.
        ssidref: i32,
        /// Keys written into the domain's part of xenstore, `vm-data/...`.
        xsdata: Dict<String>,
        /// Platform flags, also written into xenstore; `featureset`, `timeoffset` and the like.
        platformdata: Dict<String>,
        /// SMBIOS strings.
        bios_strings: Dict<String>,
        /// How the domain is built.
        ty: BuilderInfo,
        /// Hides page faults that some hypervisors inject spuriously.
        suppress_spurious_page_faults: bool,
        /// Widest machine address the guest can use, in bits.
        machine_address_size: Option<Int>,
        /// Most memory the VM can ever have.
        memory_static_max: i64,
        /// Most memory it may have now.
        memory_dynamic_max: i64,
        /// Least memory it may be ballooned down to.
        memory_dynamic_min: i64,
        /// Most vCPUs it can ever have.
        vcpu_max: Int,
        /// vCPUs it has now.
        vcpus: Int,
        /// How they are scheduled.
        scheduler_params: SchedulerParams,
        /// What to do, in order, when the guest crashes.
        on_crash: Vec<Action>,
        /// What to do, in order, when the guest shuts down.
        on_shutdown: Vec<Action>,
        /// What to do, in order, when the guest reboots.
        on_reboot: Vec<Action>,
        /// What to do, in order, when the guest asks for a soft reset.
        on_softreboot: Vec<Action> = vec![Action::Softreboot],
        /// Translate message-signalled interrupts of passed-through devices.
        pci_msitranslate: bool,
        /// Let the guest manage the power of passed-through devices.
        pci_power_mgmt: bool,
        /// Whether the VM shows the PCI device that vendor drivers bind to.
        has_vendor_device: bool = false,
        /// VM generation id, changed on every clone or revert.
        generation_id: Option<String>,
    }
}

variant! {
    /// What is spoken on a console.
    pub enum ConsoleProtocol as "Vm.console_protocol" derive(Copy, Eq) {
        /// Graphical, RFB (VNC).
        Rfb as "Rfb",
        /// Text, VT100.
        Vt100 as "Vt100",
    }
}

record! {
    /// A console of a running VM.
    pub struct Console as "Vm.console" derive(Eq) {
        /// What is spoken on it.
        protocol: ConsoleProtocol,
        /// TCP port in dom0, 0 when it has a path.
        port: Int,
        /// Unix socket in dom0, empty when it has a port.
        path: String,
    }
}

variant! {
    /// How a running domain was built.
    pub enum DomainType as "Vm.domain_type" derive(Copy, Eq) {
        /// Fully virtualised.
        Hvm as "Domain_HVM",
        /// Paravirtualised.
        Pv as "Domain_PV",
        /// Paravirtualised inside a PVH shim.
        PvInPvh as "Domain_PVinPVH",
        /// PVH.
        Pvh as "Domain_PVH",
        /// There is no domain.
        Undefined as "Domain_undefined",
    }
}

record! {
    /// What is observed of a VM.
    pub struct VmState as "Vm.state" {
        /// Its power state.
        power_state: PowerState,
        /// Its domains; normally none or one.
        domids: Vec<Int>,
        /// Its consoles.
        consoles: Vec<Console>,
        /// Memory its balloon is asked to reach.
        memory_target: i64,
        /// Memory it has.
        memory_actual: i64,
        /// Memory it may not exceed.
        memory_limit: i64,
        /// vCPUs it is asked to use.
        vcpu_target: Int,
        /// Shadow multiplier in force.
        shadow_multiplier_target: f64,
        /// Seconds the guest's clock is off UTC, as decimal text.
        rtc_timeoffset: String,
        /// Whether the balloon driver failed to react.
        uncooperative_balloon_driver: bool,
        /// What the guest agent published.
        guest_agent: Dict<String>,
        /// The `vm-data` keys as they are now.
        xsdata_state: Dict<String>,
        /// Whether the guest agent says that paravirtual drivers are in use.
        pv_drivers_detected: bool,
        /// When it was last started, in seconds since 1970.
        last_start_time: f64,
        /// Whether the domain is hardware virtualised.
        hvm: bool,
        /// Whether it cannot be migrated.
        nomigrate: bool,
        /// Whether it may itself virtualise.
        nested_virt: bool,
        /// How the domain was built.
        domain_type: DomainType,
        /// CPU features it was started with.
        featureset: String,
        /// Whether all of its memory is on the nodes it runs on.
        numa_optimised: bool,
        /// How many NUMA nodes its memory is spread over.
        numa_nodes: Int,
        /// Per NUMA node, bytes of its memory there.
        numa_node_memory: Vec<(Int, i64)>,
    }
}
