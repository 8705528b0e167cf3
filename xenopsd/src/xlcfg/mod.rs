//! Configurations in the format of `xl`: what an administrator already has becomes a VM of the contract.
//!
//! ```text
//!  bytes ──syntax──► settings with lines ──reader──► XlConfig + warnings ──into_api──► Vm, Vbds, Vifs
//!                                             └────► all mistakes at once
//! ```
//!
//! The keys with meaning are those that describe a VM's kernel, firmware, memory, vCPUs, disks, interfaces and what
//! happens when it stops. Other keys of the format, and keys that are none, are named in warnings; values that
//! cannot be what their author meant are errors with line, key and what would be right.

mod cpus;
mod disk;
mod error;
mod hvm;
mod into_api;
mod keys;
mod platform;
mod reader;
pub mod syntax;
mod vfb;
mod vif;

pub use disk::DiskConfig;
pub use error::{ConfigError, ConfigErrors, Fault, Remark, Warning};
pub use vif::{DEFAULT_BRIDGE, Rate, VifConfig};

/// A configuration that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XlConfig {
    /// Name for people, not empty.
    pub name: String,
    /// Identity; a new one is made when absent.
    pub uuid: Option<uuid::Uuid>,
    /// How it boots.
    pub guest: Guest,
    /// Memory at start, MiB, more than 0.
    pub memory_mib: u32,
    /// Most memory it can ever have, MiB, not less than `memory_mib`.
    pub maxmem_mib: u32,
    /// vCPUs at start, more than 0.
    pub vcpus: u16,
    /// Most vCPUs it can ever have, not less than `vcpus`.
    pub maxvcpus: u16,
    /// Share of the CPUs relative to others (256 is normal).
    pub cpu_weight: Option<u16>,
    /// Limit in percent of one CPU, 0 for none.
    pub cap: Option<u16>,
    /// The host's processors that each vCPU may run on, the first list for vCPUs that have none; empty for any.
    pub affinity: Vec<Vec<u16>>,
    /// Disks, no two in the same place.
    pub disks: Vec<DiskConfig>,
    /// Network interfaces.
    pub vifs: Vec<VifConfig>,
    /// What happens when it stops.
    pub actions: StopActions,
    /// Whether the text console is a VNC screen, too. Fully virtualised guests have a screen in any case.
    pub text_screen: bool,
    /// Whether a guest that is not fully virtualised has a paravirtual frame buffer.
    pub frame_buffer: bool,
    /// Keys and values of `platformdata`.
    pub platform: Vec<(String, String)>,
    /// Changes with each state of the guest that is not the one before's continuation: two numbers with a colon between.
    pub generation_id: Option<String>,
}

/// The kinds of guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Paravirtualised.
    Pv(Kernel),
    /// Hardware virtualised without a device model.
    Pvh(Kernel),
    /// Paravirtualised, inside Xen's shim, which is a PVH guest.
    PvInPvh(Kernel),
    /// Fully virtualised.
    Hvm(HvmConfig),
}

/// Where a kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// From dom0's files.
    Direct {
        /// Its path.
        path: String,
        /// Path of the initial ramdisk.
        ramdisk: Option<String>,
        /// Its command line.
        cmdline: String,
    },
    /// From the guest's first disk.
    Bootloader {
        /// Program that finds it.
        program: String,
        /// Arguments for that program.
        args: String,
        /// Added to the kernel's command line.
        cmdline: String,
    },
}

/// Settings of a fully virtualised guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HvmConfig {
    /// Letters of `c` disk, `d` CD-ROM, `n` network, in the order to try.
    pub boot_order: String,
    /// UEFI rather than BIOS.
    pub uefi: bool,
    /// The emulated card.
    pub vga: Vga,
    /// Video memory in MiB.
    pub videoram_mib: Option<u16>,
    /// Whether the guest sees ACPI tables.
    pub acpi: bool,
    /// How large its paging pool is, in thousandths of what a guest of its size has; at least 1000.
    pub paging_thousandths: u32,
    /// Seconds that its clock is ahead of UTC, as text; empty for none.
    pub timeoffset: String,
    /// Where the first serial port goes.
    pub serial: Option<String>,
    /// Keyboard layout of the graphical console.
    pub keymap: Option<String>,
    /// Address the graphical console listens on.
    pub vnclisten: Option<String>,
}

/// Emulated video cards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vga {
    /// Cirrus Logic's.
    Cirrus,
    /// Plain VGA with the VESA extensions.
    Standard,
    /// No card, and no screen.
    None,
}

/// What happens when a domain stops, by reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopActions {
    /// The guest shut down.
    pub poweroff: StopAction,
    /// The guest rebooted.
    pub reboot: StopAction,
    /// The guest crashed.
    pub crash: StopAction,
    /// The guest asked for a soft reset.
    pub soft_reset: StopAction,
}

/// The actions of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopAction {
    /// Destroy the domain.
    Destroy,
    /// Destroy it and start the VM again.
    Restart,
    /// As `Restart`; the old domain is not kept under another name.
    RenameRestart,
    /// Keep it for inspection.
    Preserve,
    /// Dump its memory, then destroy it.
    CoredumpDestroy,
    /// Dump its memory, then start the VM again.
    CoredumpRestart,
    /// Reset it in place.
    SoftReset,
}

/// Reads a configuration file.
///
/// # Errors
///
/// [`ConfigErrors`] with every mistake found; only the first one when the file is not even in the format.
pub fn parse(file: &[u8]) -> Result<(XlConfig, Vec<Warning>), ConfigErrors> {
    let settings = syntax::parse(file).map_err(|error| ConfigErrors(vec![error.into()]))?;
    reader::read(settings)
}

/// Reads one disk as it stands in the quotes of `disk = ['…']`, and says what of it has no effect.
///
/// # Errors
///
/// [`Fault`], the first mistake.
pub fn parse_disk(spec: &str) -> Result<(DiskConfig, Vec<Remark>), Fault> {
    let disk = disk::parse(1, spec)?;
    let remarks = disk.remarks();
    Ok((disk, remarks))
}

/// Reads one interface as it stands in the quotes of `vif = ['…']`, and says what of it has no effect.
///
/// # Errors
///
/// [`Fault`], the first mistake.
pub fn parse_vif(spec: &str) -> Result<(VifConfig, Vec<Remark>), Fault> {
    let (vif, mut remarks) = vif::parse(1, spec)?;
    if let Some(model) = &vif.model {
        let why = "emulated cards are those that a VM is started with";
        remarks.push(Remark { found: format!("model={model}"), why });
    }
    Ok((vif, remarks))
}

#[cfg(test)]
mod tests;
