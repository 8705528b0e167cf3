//! From a kernel image to a domain that can be unpaused: libxenguest's `xc_dom_*` sequence.
//!
//! ```text
//!   allocate -> kernel, ramdisk -> ask Xen's capabilities -> parse -> memory size -> take memory
//!            -> load image -> page tables, start info, vCPU 0 -> grants for console and store -> release
//! ```
//!
//! The images are slices the caller opened and read, or a file it has mapped, so nothing is opened by path after it was
//! checked. The parser behind this is C code reading what may be a guest's own kernel: run it in a process of its own when
//! it is.

mod direct;
mod hvm;
mod image;
mod kernel;
mod pvh;

use std::ffi::CString;

pub use hvm::{HOLE_SIZES, HvmImage, MAX_FIRMWARE, build_hvm};
pub use kernel::{ElfKernel, KernelKind, probe_kernel};
pub use pvh::{ACPI_TABLES_ADDRESS, MAX_ACPI_PAGES, PvhAcpi, RSDP_SIZE};

use crate::domid::DomId;
use crate::error::Error;
use crate::evtchn::Port;
use crate::linux::mapped::MappedFile;
use crate::sys;
use crate::xenctrl::{GuestKind, Xenctrl};
use direct::View;
use image::{DomImage, StepError};
use pvh::RamLayout;

/// Longest kernel command line, without its NUL. libxenguest cuts a longer one silently.
pub const MAX_COMMAND_LINE: usize = sys::MAX_GUEST_CMDLINE as usize - 1;
/// Largest kernel file accepted. Distributions' are below 20 MiB; with debug information below 100.
pub const MAX_KERNEL: usize = 256 << 20;
/// Largest kernel after decompression: bounds what a small hostile file can make libxenguest allocate.
pub const MAX_UNPACKED_KERNEL: usize = 512 << 20;
/// Largest ramdisk accepted, and largest after libxenguest unpacks a gzip one: its own default limit.
pub const MAX_RAMDISK: usize = 1 << 30;
/// Memory sizes from here on overflow a 32-bit page count inside libxenguest.
const MEMORY_MIB_LIMIT: u64 = 1 << 24;

/// A kernel's bytes.
#[derive(Debug, Clone, Copy)]
pub enum Kernel<'a> {
    /// In memory.
    Bytes(&'a [u8]),
    /// A file's: a large ELF kernel is read from it into the guest without a detour.
    File(&'a MappedFile),
}

impl<'a> Kernel<'a> {
    fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::File(file) => file,
        }
    }

    fn view(self) -> Option<View<'a>> {
        match self {
            Self::Bytes(_) => None,
            Self::File(file) => View::of(file),
        }
    }
}

/// What a PV domain is built from.
#[derive(Debug, Clone, Copy)]
pub struct PvImage<'a> {
    /// The kernel: ELF or bzImage, possibly compressed.
    pub kernel: Kernel<'a>,
    /// The initial ramdisk.
    pub ramdisk: Option<&'a [u8]>,
    /// The kernel's command line, at most [`MAX_COMMAND_LINE`] bytes.
    pub cmdline: &'a str,
    /// Xen features to require, as "!writable_page_tables|pae_pgdir_above_4gb"; normally `None`.
    pub features: Option<&'a str>,
    /// Memory the domain gets now, MiB.
    pub memory_mib: u64,
    /// vCPUs it was created with.
    pub max_vcpus: u32,
    /// The domain's port for its console ring.
    pub console_evtchn: Port,
    /// The domain that serves its console.
    pub console_domid: DomId,
    /// The domain's port for its xenstore ring.
    pub store_evtchn: Port,
    /// The domain that serves xenstore.
    pub store_domid: DomId,
    /// Claim the memory first, so that a shortage shows before minutes of allocation.
    pub claim: bool,
}

/// A file that is put into the guest's memory beside its kernel.
#[derive(Debug, Clone, Copy)]
pub struct Module<'a> {
    /// Its bytes, at most [`MAX_RAMDISK`].
    pub bytes: &'a [u8],
    /// What the kernel is told with it, at most [`MAX_COMMAND_LINE`] bytes: for a kernel that starts another.
    pub cmdline: Option<&'a str>,
}

/// What a PVH domain is built from.
#[derive(Debug, Clone, Copy)]
pub struct PvhImage<'a> {
    /// The kernel: ELF or bzImage with a PVH entry point, possibly compressed.
    pub kernel: Kernel<'a>,
    /// For Linux the initial ramdisk; for Xen's PV shim the PV kernel and its ramdisk. At most two.
    pub modules: &'a [Module<'a>],
    /// The kernel's command line, at most [`MAX_COMMAND_LINE`] bytes.
    pub cmdline: &'a str,
    /// The ACPI tables.
    pub acpi: PvhAcpi<'a>,
    /// Memory the domain gets now, MiB.
    pub memory_mib: u64,
    /// vCPUs it was created with.
    pub max_vcpus: u32,
    /// The domain's port for its console ring.
    pub console_evtchn: Port,
    /// The domain that serves its console.
    pub console_domid: DomId,
    /// The domain's port for its xenstore ring.
    pub store_evtchn: Port,
    /// The domain that serves xenstore.
    pub store_domid: DomId,
    /// Claim the memory first, so that a shortage shows before minutes of allocation.
    pub claim: bool,
}

/// Where the rings of a built domain are.
///
/// For PV these are machine frames, for PVH and HVM guest frames: in both cases what is given to xenstored when
/// introducing the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// Frame of the xenstore ring.
    pub store_mfn: u64,
    /// Frame of the console ring.
    pub console_mfn: u64,
}

/// Why a domain could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The command line cannot be passed on.
    #[error("kernel command line: {what}")]
    CommandLine {
        /// What is wrong with it.
        what: String,
    },
    /// A value of the image description makes no sense.
    #[error("{field}: {what}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        what: String,
    },
    /// A file is larger than accepted.
    #[error("the {file} has {size} bytes, more than the {limit} accepted")]
    TooLarge {
        /// "kernel", "ramdisk" or "firmware".
        file: &'static str,
        /// Its size, bytes.
        size: usize,
        /// The limit, bytes.
        limit: usize,
    },
    /// The bytes are not a kernel at all, or a damaged one.
    #[error("this is not a kernel that can be loaded: {detail}")]
    NotAKernel {
        /// What was found, with libxenguest's text.
        detail: String,
    },
    /// A kernel, but not one that can start as this kind of guest.
    #[error("this kernel cannot start as a {kind:?} guest: {detail}")]
    NotCapable {
        /// The kind of guest asked for.
        kind: GuestKind,
        /// What is missing, with libxenguest's text.
        detail: String,
    },
    /// The kernel and ramdisk do not fit into the domain's memory.
    #[error("{memory_mib} MiB are not enough for this kernel and ramdisk: {detail}")]
    GuestTooSmall {
        /// The domain's memory.
        memory_mib: u64,
        /// libxenguest's text.
        detail: String,
    },
    /// The host has not enough free memory.
    #[error("the host has not enough free memory for {memory_mib} MiB: {source}")]
    OutOfMemory {
        /// The domain's memory.
        memory_mib: u64,
        /// The call that failed.
        source: Error,
    },
    /// A call failed for another reason.
    #[error(transparent)]
    Hypercall(#[from] Error),
}

/// Checks, without a domain and without a hypervisor (a dummy handle will do), that this kernel can start as a PV
/// guest.
///
/// # Errors
/// [`BuildError::NotAKernel`], [`BuildError::NotCapable`], [`BuildError::TooLarge`].
pub fn check_pv_kernel(xc: &Xenctrl, kernel: &[u8]) -> Result<ElfKernel, BuildError> {
    check_kernel(xc, kernel, GuestKind::Pv)
}

/// As [`check_pv_kernel`], for a PVH guest.
///
/// # Errors
/// As there.
pub fn check_pvh_kernel(xc: &Xenctrl, kernel: &[u8]) -> Result<ElfKernel, BuildError> {
    check_kernel(xc, kernel, GuestKind::Pvh)
}

fn check_kernel(xc: &Xenctrl, kernel: &[u8], kind: GuestKind) -> Result<ElfKernel, BuildError> {
    check_file("kernel", kernel, MAX_KERNEL)?;
    let mut image = DomImage::allocate(xc, None, kind, c"", None)?;
    image.set_kernel(kernel).map_err(|e| not_a_kernel(kernel, &e))?;
    image.assume_capabilities();
    parse(&mut image, kernel, kind)
}

/// Builds a PV domain: takes its memory, loads the kernel and ramdisk, and leaves it ready to be unpaused.
///
/// The domain must have its vCPUs ([`Xenctrl::set_max_vcpus`]) and a sufficient memory limit. Taking memory can last
/// minutes for a very large domain. On failure the domain exists still and has to be destroyed by the caller.
///
/// # Errors
/// See [`BuildError`].
pub fn build_pv(xc: &Xenctrl, domid: DomId, wanted: &PvImage<'_>) -> Result<Built, BuildError> {
    let ramdisk = wanted.ramdisk.map(|bytes| Module { bytes, cmdline: None });
    build(xc, domid, wanted, ramdisk.as_slice(), None)
}

/// Builds a PVH domain, as [`build_pv`] does a PV one. The memory limit must leave room for the ACPI tables and the
/// special pages besides the guest's memory (1 MiB, as xl leaves, is enough).
///
/// # Errors
/// See [`BuildError`].
pub fn build_pvh(xc: &Xenctrl, domid: DomId, wanted: &PvhImage<'_>) -> Result<Built, BuildError> {
    let common = PvImage {
        kernel: wanted.kernel,
        ramdisk: None,
        cmdline: wanted.cmdline,
        features: None,
        memory_mib: wanted.memory_mib,
        max_vcpus: wanted.max_vcpus,
        console_evtchn: wanted.console_evtchn,
        console_domid: wanted.console_domid,
        store_evtchn: wanted.store_evtchn,
        store_domid: wanted.store_domid,
        claim: wanted.claim,
    };
    let pages = wanted.acpi.tables.len().div_ceil(crate::shared::PAGE_SIZE);
    if pages > MAX_ACPI_PAGES {
        let what = format!("{pages} pages of tables, more than {MAX_ACPI_PAGES}");
        return Err(BuildError::Invalid { field: "acpi", what });
    }
    build(xc, domid, &common, wanted.modules, Some(&wanted.acpi))
}

/// The sequence. With ACPI tables it is a PVH domain, else a PV one.
fn build(
    xc: &Xenctrl,
    domid: DomId,
    wanted: &PvImage<'_>,
    modules: &[Module<'_>],
    acpi: Option<&PvhAcpi<'_>>,
) -> Result<Built, BuildError> {
    let kind = if acpi.is_some() { GuestKind::Pvh } else { GuestKind::Pv };
    let command_line = check_command_line(wanted.cmdline)?;
    let features = wanted.features.map(check_features).transpose()?;
    let kernel = wanted.kernel.bytes();
    check_file("kernel", kernel, MAX_KERNEL)?;
    for module in modules {
        check_file("ramdisk", module.bytes, MAX_RAMDISK)?;
    }
    let memory_mib = check_memory(wanted.memory_mib)?;
    xc.require_xen()?;

    // Before the image, which has a pointer to it as long as it lives.
    let view = wanted.kernel.view();
    let mut image = DomImage::allocate(xc, Some(domid), kind, &command_line, features.as_deref())?;
    image.set_rings((wanted.console_evtchn, wanted.console_domid), (wanted.store_evtchn, wanted.store_domid));
    image.set_vcpus(wanted.max_vcpus);
    let shown = view.as_ref().map_or(kernel, View::bytes);
    image.set_kernel(shown).map_err(|e| not_a_kernel(kernel, &e))?;
    for module in modules {
        let cmdline = module.cmdline.map(check_command_line).transpose()?;
        image.add_module(module.bytes, cmdline.as_deref())?;
    }
    image.ask_capabilities(domid)?;
    let found = parse(&mut image, kernel, kind)?;
    if acpi.is_some() {
        image.set_layout(RamLayout::new(memory_mib), 0, false);
    }
    image.set_memory(memory_mib)?;
    image.target_all();
    take_memory(&mut image, domid, wanted.memory_mib, wanted.claim)?;
    if let Some(acpi) = acpi {
        image.describe(domid, &acpi.placed(found))?;
    }
    image.load().map_err(|failure| build_error(wanted.memory_mib, failure))?;
    if let Some(view) = &view {
        image.read_kernel(view)?;
    }
    image.boot()?;
    image.seed_grants()?;
    image.rings()
}

/// Loading fails for want of memory in the guest only.
fn build_error(memory_mib: u64, failure: StepError) -> BuildError {
    match failure.code {
        sys::XC_OUT_OF_MEMORY => BuildError::GuestTooSmall { memory_mib, detail: failure.text() },
        _ => BuildError::Hypercall(failure.error),
    }
}

/// Takes the domain's memory, and gives the claim back whatever happens: libxenguest does so only on success.
fn take_memory(
    image: &mut DomImage<'_>,
    domid: DomId,
    memory_mib: u64,
    claim: bool,
) -> Result<(), BuildError> {
    image.set_claim(claim);
    image.populate().map_err(|failure| {
        if claim && let Err(error) = image.xenctrl().claim_pages(domid, 0) {
            tracing::warn!(%domid, %error, "giving back the claim on memory failed");
        }
        // EBUSY stands for a request that was filled in part only.
        match failure.error.errno() {
            Some(libc::ENOMEM | libc::EBUSY) | None => {
                BuildError::OutOfMemory { memory_mib, source: failure.error }
            }
            Some(_) => BuildError::Hypercall(failure.error),
        }
    })
}

/// libxenguest's verdict on the kernel, refined: it would start a PVH-only kernel as PV at its ELF entry point.
fn parse(image: &mut DomImage<'_>, kernel: &[u8], kind: GuestKind) -> Result<ElfKernel, BuildError> {
    let outcome = image.parse();
    // A bzImage has been unpacked by now, if its packing is known.
    let unpacked = probe_kernel(image.kernel());
    let KernelKind::Elf(found) = unpacked else {
        let error = outcome.err().map_or_else(|| "it holds no ELF image".to_owned(), |e| e.text());
        return Err(BuildError::NotAKernel { detail: format!("{}: {error}", probe_kernel(kernel)) });
    };
    let missing = match kind {
        GuestKind::Pv if !found.pv => "it has no PV entry point (built without PV support)",
        GuestKind::Pvh if !found.pvh => "it has no PVH entry point (built without PVH support)",
        _ => match outcome {
            Ok(()) => return Ok(found),
            Err(e) => return Err(BuildError::NotCapable { kind, detail: e.text() }),
        },
    };
    Err(BuildError::NotCapable { kind, detail: missing.to_owned() })
}

fn not_a_kernel(kernel: &[u8], failure: &StepError) -> BuildError {
    BuildError::NotAKernel { detail: format!("{}: {}", probe_kernel(kernel), failure.text()) }
}

fn check_command_line(text: &str) -> Result<CString, BuildError> {
    if text.len() > MAX_COMMAND_LINE {
        let what = format!("{} bytes, but the guest gets at most {MAX_COMMAND_LINE}", text.len());
        return Err(BuildError::CommandLine { what });
    }
    CString::new(text).map_err(|_| BuildError::CommandLine { what: "contains a NUL".to_owned() })
}

fn check_features(text: &str) -> Result<CString, BuildError> {
    CString::new(text)
        .map_err(|_| BuildError::Invalid { field: "features", what: "contains a NUL".to_owned() })
}

fn check_file(file: &'static str, bytes: &[u8], limit: usize) -> Result<(), BuildError> {
    if bytes.len() > limit {
        return Err(BuildError::TooLarge { file, size: bytes.len(), limit });
    }
    if file == "kernel" && matches!(probe_kernel(bytes), KernelKind::Empty | KernelKind::Unknown) {
        return Err(BuildError::NotAKernel { detail: probe_kernel(bytes).to_string() });
    }
    Ok(())
}

fn check_memory(mib: u64) -> Result<u32, BuildError> {
    match u32::try_from(mib) {
        Ok(mib) if mib > 0 && u64::from(mib) < MEMORY_MIB_LIMIT => Ok(mib),
        _ => Err(BuildError::Invalid {
            field: "memory",
            what: format!("{mib} MiB is not between 1 and {}", MEMORY_MIB_LIMIT - 1),
        }),
    }
}

#[cfg(test)]
mod tests;
