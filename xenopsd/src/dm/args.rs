//! QEMU's command line: a pure function of the VM and of the descriptors it is given.
//!
//! It is the one libxl makes for the same guest (`libxl__build_device_model_args_new`), except that
//! - everything is a descriptor: the monitor's socket, disks (as sets, which say themselves whether they may be
//!   written), taps, the serial port. A kernel and its ramdisk are copies in its jail. QEMU opens no path of the host's and
//!   cannot be made to;
//! - it listens nowhere for viewers: the daemon does, and hands them over (`add_client`);
//! - `-sandbox`, `-chroot`, `-runas` are not there: the jail has done more before QEMU begins;
//! - there is one monitor. libxl's second one is for xentop's statistics;
//! - it starts stopped (`-S`), so that nothing is emulated before the start is complete.

use std::collections::BTreeSet;

use super::drives::{self, Controller, Drive, MOST_DRIVES, disk_name};
use super::kernel::{DirectKernel, KernelKeyError};
use crate::api::{BuilderInfo, HvmInfo, Vbd, VideoCard, Vif, Vm};
use crate::ops::plan::Beginning;

/// Most emulated network cards: each takes a PCI slot, of which the machine leaves 24. The rest are PV only.
pub const EMULATED_CARDS: usize = 8;

/// Key of the model of a VM's emulated cards in its `platformdata`.
pub const CARD_KEY: &str = "nic_type";

/// What can be emulated; the first if nothing is asked for.
pub const CARDS: [&str; 2] = ["rtl8139", "e1000"];

/// Order in which a guest that asks for none is booted: disk, then CD-ROM.
const DEFAULT_ORDER: &str = "cd";

/// Longest name of a VM shown in the window's title and the process list, in characters.
const MAX_NAME: usize = 64;

/// The set that the serial port's terminal is in; a drive's has the drive's number.
const SERIAL_SET: usize = MOST_DRIVES;

/// The set that its state goes out through.
pub const STATE_SET: usize = SERIAL_SET + 1;

/// What the VM asks for cannot be emulated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// Not an HVM guest.
    #[error("only HVM guests have a device model")]
    NotHvm,
    /// A letter that names no class of devices, or one twice.
    #[error(
        "boot order {order:?}: {letter:?} is unknown or there twice; it is made of c (disk), d (CD-ROM), n (network)"
    )]
    BootOrder {
        /// As asked for.
        order: String,
        /// The first wrong one.
        letter: char,
    },
    /// The screen would be reachable from other machines.
    #[error(
        "the screen can be served on 127.0.0.1 or a Unix socket only, not on {0:?}: it has no protection of its own; \
        forward it over ssh"
    )]
    VncAddress(String),
    /// A disk on a position the emulated controller does not have.
    #[error(
        "disk {disk}: emulated {controller} has {} drives (hda to {}); name it {} or later to have it without emulation",
        controller.drives(), disk_name("hd", controller.drives() - 1), disk_name("xvd", controller.drives())
    )]
    NoSuchDrive {
        /// Its name.
        disk: String,
        /// Where it would be.
        controller: Controller,
    },
    /// Two disks on one position.
    #[error("disk {0}: another disk has its place among the emulated ones")]
    DriveTaken(String),
    /// A controller that nobody knows.
    #[error("platform key hdtype is {0:?}; the emulated disk controller is ide or ahci")]
    Controller(String),
    /// A value out of its range.
    #[error("{what} must be {range}, not {value}")]
    Range {
        /// What it is.
        what: &'static str,
        /// What it may be.
        range: &'static str,
        /// What it is instead.
        value: i64,
    },
    /// The kernel it is to be started with.
    #[error(transparent)]
    Kernel(#[from] KernelKeyError),
    /// Something this device model is not given.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

/// An emulated network card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// N of `vifD.N`.
    pub position: u32,
    /// QEMU's name of the model.
    pub model: &'static str,
    /// MAC address.
    pub mac: String,
}

/// What a VM's device model emulates, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    name: String,
    memory_mib: u64,
    vcpus: u32,
    max_vcpus: u32,
    video: Option<(VideoCard, u32)>,
    kernel: Option<DirectKernel>,
    order: String,
    acpi: bool,
    serial: bool,
    keymap: Option<String>,
    controller: Controller,
    drives: Vec<Drive>,
    cards: Vec<Card>,
}

/// The numbers the descriptors have in QEMU.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Descriptors {
    /// The monitor's listening socket.
    pub monitor: usize,
    /// Of each drive, by [`Machine::drives`]; none for an empty CD-ROM drive.
    pub drives: Vec<Option<usize>>,
    /// The tap of each card, by [`Machine::cards`].
    pub taps: Vec<usize>,
    /// The terminal of the serial port, if there is one.
    pub serial: Option<usize>,
}

impl Machine {
    /// What this VM with these devices is to see.
    ///
    /// # Errors
    /// [`ArgsError`] for what cannot be emulated, or must not be served.
    pub fn of(vm: &Vm, vbds: &[Vbd], vifs: &[(Vif, String)]) -> Result<Self, ArgsError> {
        let BuilderInfo::Hvm(hvm) = &vm.ty else { return Err(ArgsError::NotHvm) };
        refuse_unsupported(hvm)?;
        check_vnc(hvm)?;
        let video_mib = video_mib(hvm)?;
        let controller = Controller::of(vm)?;
        let memory_mib = vm.memory_static_max / (1 << 20);
        let count = |what, value: crate::api::Int| {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            let fits = u32::try_from(value).ok().filter(|n| (1..=128).contains(n));
            fits.ok_or(ArgsError::Range { what, range: "1 to 128", value })
        };
        let memory = u64::try_from(memory_mib - i64::from(video_mib)).ok().filter(|mib| *mib > 0);
        Ok(Self {
            name: vm.name.chars().filter(|c| !c.is_control()).take(MAX_NAME).collect(),
            memory_mib: memory.ok_or(ArgsError::Range {
                what: "memory in MiB",
                range: "more than that of the video card",
                value: memory_mib,
            })?,
            vcpus: count("vcpus", vm.vcpus)?,
            max_vcpus: count("vcpu_max", vm.vcpu_max)?,
            video: has_screen(hvm).then_some((hvm.video, video_mib)),
            kernel: DirectKernel::of(vm)?,
            order: order(&hvm.boot_order)?,
            acpi: hvm.acpi,
            serial: serial(hvm)?,
            keymap: keymap(hvm)?,
            controller,
            drives: drives::of(controller, vbds)?,
            cards: vifs
                .iter()
                .take(EMULATED_CARDS)
                .map(|(vif, mac)| card(vm, vif, mac))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Its drives.
    pub fn drives(&self) -> &[Drive] {
        &self.drives
    }

    /// Its cards.
    pub fn cards(&self) -> &[Card] {
        &self.cards
    }

    /// What its guest is started with, instead of what is on its disks.
    pub fn kernel(&self) -> Option<&DirectKernel> {
        self.kernel.as_ref()
    }

    /// Whether it has a serial port.
    pub fn has_serial(&self) -> bool {
        self.serial
    }

    /// Whether it has a screen.
    pub fn has_screen(&self) -> bool {
        self.video.is_some()
    }

    /// The command line, without the program.
    pub fn arguments(&self, domid: u16, descriptors: &Descriptors, beginning: Beginning) -> Vec<String> {
        let mut line = Line(Vec::new());
        line.pair("-xen-domid", domid.to_string());
        line.flag("-xen-domid-restrict");
        line.flag("-no-shutdown");
        line.flag("-S");
        let socket = format!("socket,id=monitor,fd={},server=on,wait=off", descriptors.monitor);
        line.pair("-chardev", socket);
        line.pair("-mon", "chardev=monitor,mode=control");
        line.flag("-nodefaults");
        line.flag("-no-user-config");
        line.pair("-name", format!("guest={},process=qemu-dm-{domid}", escaped(&self.name)));
        self.screen(&mut line);
        Self::serial(&mut line, descriptors);
        for (option, value) in self.kernel.iter().flat_map(DirectKernel::options) {
            line.pair(option, value);
        }
        line.pair("-boot", format!("order={}", self.order));
        line.flag("-usb");
        line.pair("-device", "usb-tablet");
        if !self.acpi {
            line.flag("-no-acpi");
        }
        if self.max_vcpus > 1 {
            line.pair("-smp", format!("{},maxcpus={}", self.vcpus, self.max_vcpus));
        }
        self.network(&mut line, descriptors);
        line.pair("-machine", "xenfv,suppress-vmdesc=on");
        line.pair("-m", self.memory_mib.to_string());
        self.disks(&mut line, descriptors);
        if beginning == Beginning::Kept {
            line.pair("-incoming", "defer");
        }
        line.0
    }

    fn screen(&self, line: &mut Line) {
        // QEMU's own default is a server on a network address (XSA-119). This one listens nowhere.
        line.pair("-vnc", "none");
        line.pair("-display", "none");
        if let Some(keymap) = &self.keymap {
            line.pair("-k", keymap.clone());
        }
        if let Some((card, mib)) = self.video {
            let model = if card == VideoCard::StandardVga { "VGA" } else { "cirrus-vga" };
            line.pair("-device", format!("{model},vgamem_mb={mib}"));
        }
    }

    fn serial(line: &mut Line, descriptors: &Descriptors) {
        let Some(fd) = descriptors.serial else {
            line.pair("-serial", "null");
            return;
        };
        line.pair("-add-fd", format!("fd={fd},set={SERIAL_SET}"));
        line.pair("-chardev", format!("serial,id=serial0,path=/dev/fdset/{SERIAL_SET}"));
        line.pair("-serial", "chardev:serial0");
    }

    fn network(&self, line: &mut Line, descriptors: &Descriptors) {
        if self.cards.is_empty() {
            line.pair("-net", "none");
        }
        for (card, tap) in self.cards.iter().zip(&descriptors.taps) {
            let Card { position, model, mac } = card;
            line.pair("-device", format!("{model},id=nic{position},netdev=net{position},mac={mac}"));
            line.pair("-netdev", format!("tap,id=net{position},fd={tap}"));
        }
    }

    fn disks(&self, line: &mut Line, descriptors: &Descriptors) {
        if let Some((option, value)) = self.controller.options() {
            line.pair(option, value);
        }
        for (drive, descriptor) in self.drives.iter().zip(&descriptors.drives) {
            for (option, value) in drive.options(*descriptor) {
                line.pair(option, value);
            }
        }
    }
}

/// Whether a guest has a screen: one without memory for a card has none.
pub fn has_screen(hvm: &HvmInfo) -> bool {
    hvm.video_mib > 0
}

/// Whether a guest has a serial port.
pub fn has_serial(hvm: &HvmInfo) -> bool {
    hvm.serial.as_deref() == Some("pty")
}

struct Line(Vec<String>);

impl Line {
    fn flag(&mut self, flag: &str) {
        self.0.push(flag.to_owned());
    }

    fn pair(&mut self, flag: &str, value: impl Into<String>) {
        self.0.extend([flag.to_owned(), value.into()]);
    }
}

/// A comma would begin another option.
fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

fn refuse_unsupported(hvm: &HvmInfo) -> Result<(), ArgsError> {
    let refused = [
        (hvm.pci_passthrough, "PCI passthrough"),
        (hvm.qemu_stubdom, "a device model in a domain of its own"),
        (!hvm.pci_emulations.is_empty(), "pci_emulations"),
        (hvm.tpm.is_some(), "a trusted platform module"),
        (matches!(hvm.video, VideoCard::Vgpu | VideoCard::IgdPassthrough(_)), "a physical or virtual GPU"),
    ];
    refused
        .into_iter()
        .find(|(asked, _)| *asked)
        .map_or(Ok(()), |(_, what)| Err(ArgsError::Unsupported(what)))
}

fn check_vnc(hvm: &HvmInfo) -> Result<(), ArgsError> {
    match hvm.vnc_ip.as_deref() {
        None | Some("127.0.0.1") => Ok(()),
        Some(other) => Err(ArgsError::VncAddress(other.to_owned())),
    }
}

fn video_mib(hvm: &HvmInfo) -> Result<u32, ArgsError> {
    let value = i64::try_from(hvm.video_mib).unwrap_or(i64::MAX);
    // 0 is no card; QEMU takes powers of two only.
    let fits = u32::try_from(value).ok().filter(|mib| *mib == 0 || (mib.is_power_of_two() && *mib <= 256));
    fits.ok_or(ArgsError::Range {
        what: "video memory in MiB",
        range: "0 or a power of two up to 256",
        value,
    })
}

fn order(asked: &str) -> Result<String, ArgsError> {
    let order = if asked.is_empty() { DEFAULT_ORDER } else { asked };
    let mut seen = BTreeSet::new();
    let wrong = order.chars().find(|letter| !"cdn".contains(*letter) || !seen.insert(*letter));
    match wrong {
        Some(letter) => Err(ArgsError::BootOrder { order: asked.to_owned(), letter }),
        None => Ok(order.to_owned()),
    }
}

/// A file or a socket in dom0, which QEMU's notation has too, would be a path.
fn serial(hvm: &HvmInfo) -> Result<bool, ArgsError> {
    match hvm.serial.as_deref() {
        _ if has_serial(hvm) => Ok(true),
        None | Some("none" | "") => Ok(false),
        Some(_) => Err(ArgsError::Unsupported("a serial port that is neither \"pty\" nor \"none\"")),
    }
}

/// QEMU makes a file name of it.
fn keymap(hvm: &HvmInfo) -> Result<Option<String>, ArgsError> {
    let sound = |name: &str| name.len() <= 16 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    match hvm.keymap.as_deref() {
        None | Some("") => Ok(None),
        Some(name) if sound(name) => Ok(Some(name.to_owned())),
        Some(_) => Err(ArgsError::Unsupported("a keymap that is not like \"de\" or \"en-us\"")),
    }
}

fn card(vm: &Vm, vif: &Vif, mac: &str) -> Result<Card, ArgsError> {
    let asked = vm.platformdata.get(CARD_KEY).map_or(CARDS[0], String::as_str);
    let model = CARDS.into_iter().find(|model| *model == asked);
    let model =
        model.ok_or(ArgsError::Unsupported("a network card that is neither rtl8139 nor e1000 (nic_type)"))?;
    let value = i64::try_from(vif.position).unwrap_or(i64::MAX);
    let position = u32::try_from(value).map_err(|_| ArgsError::Range {
        what: "position of a network interface",
        range: "a small number",
        value,
    })?;
    let sound = mac.len() == 17 && mac.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    if !sound {
        return Err(ArgsError::Unsupported("a MAC address that is none"));
    }
    Ok(Card { position, model, mac: mac.to_owned() })
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
