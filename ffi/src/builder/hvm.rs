//! HVM: Xen's own loader (hvmloader) entered in place of a kernel, with the firmware it is to start as a module.
//!
//! ```text
//!   0            RAM ... hole for the emulated VGA card's window at 0xa0000 ... RAM
//!   0x9f800      hvm_info_table: what hvmloader is told about vCPUs and memory
//!   0xf0000000   end of low RAM at the latest, or below for a larger hole; PCI devices from here on
//!   0xfeff0000   pages of the device model's rings, then the special pages
//!   4 GiB        RAM that did not fit below
//! ```
//!
//! hvmloader makes the guest's memory map and ACPI tables itself.

use std::mem::{offset_of, size_of};
use std::ops::RangeInclusive;

use super::image::DomImage;
use super::pvh::{FOUR_GIB, Range, RangeKind};
use super::{
    BuildError, Built, MAX_KERNEL, RamLayout, build_error, check_file, check_memory, not_a_kernel, parse,
    take_memory,
};
use crate::domid::DomId;
use crate::error::Error;
use crate::evtchn::Port;
use crate::foreignmemory::ForeignMemory;
use crate::shared::{Access, PAGE_SIZE, SharedError};
use crate::sys;
use crate::xenctrl::{GuestKind, Xenctrl};

/// Largest firmware accepted. SeaBIOS has 256 KiB, OVMF up to 4 MiB; below 4 GiB there is room for 16.
pub const MAX_FIRMWARE: usize = 16 << 20;
/// Least and most room for PCI devices below 4 GiB (xl's range). The least is libxl's default.
pub const HOLE_SIZES: RangeInclusive<u64> = 0x1000_0000..=0xf000_0000;
/// RAM that Xen's map of the guest tells of begins here; below is the BIOS area.
const ABOVE_BIOS: u64 = 0x10_0000;
/// Pages of the window of the emulated VGA card, 0xa0000 to 0xbffff, which is no RAM.
const VGA_HOLE_PAGES: u64 = 0x20;

/// What an HVM domain is built from.
#[derive(Debug, Clone, Copy)]
pub struct HvmImage<'a> {
    /// hvmloader, an ELF image.
    pub loader: &'a [u8],
    /// SeaBIOS or OVMF.
    pub firmware: &'a [u8],
    /// Memory the domain gets now, MiB, without that of its video card, which the device model takes.
    pub memory_mib: u64,
    /// Room for PCI devices below 4 GiB, bytes, whole MiB within [`HOLE_SIZES`]. RAM that does not fit below goes above.
    pub hole_size: u64,
    /// vCPUs it was created with.
    pub max_vcpus: u32,
    /// How many of them are there when it starts.
    pub online_vcpus: u32,
    /// Whether it has an APIC (libxl's default).
    pub apic: bool,
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

/// Builds an HVM domain, as [`super::build_pv`] does a PV one. Its device model is started beside this or after it,
/// and before it is unpaused.
///
/// # Errors
/// See [`BuildError`].
pub fn build_hvm(xc: &Xenctrl, domid: DomId, wanted: &HvmImage<'_>) -> Result<Built, BuildError> {
    check_firmware(wanted.firmware)?;
    let memory_mib = check_memory(wanted.memory_mib)?;
    if !(1..=wanted.max_vcpus.min(sys::HVM_MAX_VCPUS)).contains(&wanted.online_vcpus) {
        let what = format!("{} of {} vCPUs online", wanted.online_vcpus, wanted.max_vcpus);
        return Err(BuildError::Invalid { field: "vcpus", what });
    }
    if !HOLE_SIZES.contains(&wanted.hole_size) || !wanted.hole_size.is_multiple_of(1 << 20) {
        let what = format!("{} bytes are not whole MiB between 256 MiB and 3.75 GiB", wanted.hole_size);
        return Err(BuildError::Invalid { field: "hole for PCI devices", what });
    }
    check_file("kernel", wanted.loader, MAX_KERNEL)?;
    xc.require_xen()?;

    let mut image = DomImage::allocate(xc, Some(domid), GuestKind::Hvm, c"", None)?;
    image.set_rings((wanted.console_evtchn, wanted.console_domid), (wanted.store_evtchn, wanted.store_domid));
    image.set_vcpus(wanted.max_vcpus);
    image.set_kernel(wanted.loader).map_err(|e| not_a_kernel(wanted.loader, &e))?;
    image.set_firmware(wanted.firmware)?;
    image.ask_capabilities(domid)?;
    parse(&mut image, wanted.loader, GuestKind::Hvm)?;
    let layout = RamLayout::with_hole(memory_mib, FOUR_GIB - wanted.hole_size);
    image.set_layout(layout, VGA_HOLE_PAGES, true);
    image.set_memory(memory_mib)?;
    image.target_all();
    take_memory(&mut image, domid, wanted.memory_mib, wanted.claim)?;
    image.set_memory_map(domid, &memory_map(layout))?;
    image.load().map_err(|failure| build_error(wanted.memory_mib, failure))?;
    image.boot()?;
    image.seed_grants()?;
    let built = image.rings()?;
    drop(image);
    write_info(domid, wanted)?;
    Ok(built)
}

fn check_firmware(bytes: &[u8]) -> Result<(), BuildError> {
    match bytes.len() {
        0 => Err(BuildError::Invalid { field: "firmware", what: "an empty file".to_owned() }),
        1..=MAX_FIRMWARE => Ok(()),
        size => Err(BuildError::TooLarge { file: "firmware", size, limit: MAX_FIRMWARE }),
    }
}

/// What Xen is told of the guest's RAM, for its own use.
fn memory_map(layout: RamLayout) -> Vec<Range> {
    let low = layout.low_end.saturating_sub(ABOVE_BIOS);
    let high = layout.high_end.saturating_sub(FOUR_GIB);
    let ranges = [
        Range { address: ABOVE_BIOS, size: low, kind: RangeKind::Ram },
        Range { address: FOUR_GIB, size: high, kind: RangeKind::Ram },
    ];
    ranges.into_iter().filter(|range| range.size > 0).collect()
}

/// libxenguest has written the table; this adds what only the toolstack knows.
fn write_info(domid: DomId, wanted: &HvmImage<'_>) -> Result<(), BuildError> {
    const AT: usize = sys::HVM_INFO_OFFSET as usize;
    let frame = u64::from(sys::HVM_INFO_PFN);
    let page = ForeignMemory::open()?.map(domid, &[frame], Access::ReadWrite)?;
    let shared = |error: SharedError| Error::invalid("hvm_info_table", error.to_string());
    let mut table = [0; size_of::<sys::hvm_info_table>()];
    page.memory().read(AT, &mut table).map_err(shared)?;
    fill_info(&mut table, wanted).map_err(|what| Error::invalid("hvm_info_table", what))?;
    page.memory().write(AT, &table).map_err(shared)?;
    Ok(())
}

/// Sets the vCPUs and the checksum: all bytes of the table add up to 0.
fn fill_info(
    table: &mut [u8; size_of::<sys::hvm_info_table>()],
    wanted: &HvmImage<'_>,
) -> Result<(), &'static str> {
    const LENGTH: usize = offset_of!(sys::hvm_info_table, length);
    const CHECKSUM: usize = offset_of!(sys::hvm_info_table, checksum);
    const VCPUS: usize = offset_of!(sys::hvm_info_table, nr_vcpus);
    const ONLINE: usize = offset_of!(sys::hvm_info_table, vcpu_online);
    if !table.starts_with(b"HVM INFO") {
        return Err("libxenguest has not written it");
    }
    let length = u32::from_le_bytes([table[LENGTH], table[LENGTH + 1], table[LENGTH + 2], table[LENGTH + 3]]);
    let length =
        usize::try_from(length).ok().filter(|l| *l <= table.len()).ok_or("it is longer than its type")?;
    table[offset_of!(sys::hvm_info_table, apic_mode)] = u8::from(wanted.apic);
    table[VCPUS..VCPUS + 4].copy_from_slice(&wanted.max_vcpus.to_le_bytes());
    table[ONLINE..].fill(0);
    for vcpu in 0..wanted.online_vcpus {
        let byte = usize::try_from(vcpu / 8).unwrap_or(usize::MAX);
        *table.get_mut(ONLINE + byte).ok_or("too many vCPUs")? |= 1 << (vcpu % 8);
    }
    table[CHECKSUM] = 0;
    let sum = table[..length].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    table[CHECKSUM] = sum.wrapping_neg();
    Ok(())
}

const _: () = assert!(PAGE_SIZE >= sys::HVM_INFO_OFFSET as usize + size_of::<sys::hvm_info_table>());

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> HvmImage<'static> {
        HvmImage {
            loader: b"\x7fELF",
            firmware: b"bios",
            memory_mib: 256,
            hole_size: *HOLE_SIZES.start(),
            max_vcpus: 10,
            online_vcpus: 9,
            apic: true,
            console_evtchn: Port::new(2),
            console_domid: DomId::DOM0,
            store_evtchn: Port::new(1),
            store_domid: DomId::DOM0,
            claim: true,
        }
    }

    fn written() -> [u8; size_of::<sys::hvm_info_table>()] {
        let mut table = [0; size_of::<sys::hvm_info_table>()];
        table[..8].copy_from_slice(b"HVM INFO");
        let length = u32::try_from(table.len()).unwrap();
        table[8..12].copy_from_slice(&length.to_le_bytes());
        table
    }

    #[test]
    fn the_table_has_the_vcpus_and_adds_up_to_nothing() {
        let mut table = written();
        fill_info(&mut table, &image()).unwrap();
        // Offsets as in xen/hvm/hvm_info_table.h, written out.
        assert_eq!(table[13], 1, "APIC");
        assert_eq!(table[16..20], [10, 0, 0, 0]);
        assert_eq!(table[32..35], [0xff, 0x01, 0]);
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    }

    #[test]
    fn a_table_that_is_not_there_is_not_written_over() {
        let mut table = [0; size_of::<sys::hvm_info_table>()];
        assert!(fill_info(&mut table, &image()).is_err());
        let mut table = written();
        table[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(fill_info(&mut table, &image()).is_err());
    }

    #[test]
    fn the_map_is_of_ram_above_the_bios() {
        let map = memory_map(RamLayout::with_hole(256, 0xf000_0000));
        assert_eq!(map, [Range { address: 0x10_0000, size: 255 << 20, kind: RangeKind::Ram }]);
        let map = memory_map(RamLayout::with_hole(4096, 0xf000_0000));
        assert_eq!(map[1], Range { address: FOUR_GIB, size: 256 << 20, kind: RangeKind::Ram });
    }

    static HUGE: [u8; MAX_FIRMWARE + 1] = [0; MAX_FIRMWARE + 1];

    #[test]
    fn what_cannot_be_built_is_refused_first() {
        let xc = Xenctrl::open_dummy().unwrap();
        let refused = |change: fn(&mut HvmImage<'static>)| {
            let mut image = image();
            change(&mut image);
            build_hvm(&xc, DomId::new(7).unwrap(), &image).unwrap_err()
        };
        assert!(matches!(refused(|i| i.loader = b"text"), BuildError::NotAKernel { .. }));
        assert!(matches!(refused(|i| i.firmware = b""), BuildError::Invalid { field: "firmware", .. }));
        assert!(matches!(refused(|i| i.memory_mib = 0), BuildError::Invalid { field: "memory", .. }));
        for size in [0, 0x0ff0_0000, 0xf010_0000, 0x1000_1000] {
            let error =
                build_hvm(&xc, DomId::new(7).unwrap(), &HvmImage { hole_size: size, ..image() }).unwrap_err();
            assert!(error.to_string().contains("hole for PCI"), "{error}");
        }
        for (max, online) in [(10, 0), (10, 11), (200, 129)] {
            let mut image = image();
            (image.max_vcpus, image.online_vcpus) = (max, online);
            let error = build_hvm(&xc, DomId::new(7).unwrap(), &image).unwrap_err();
            assert!(matches!(error, BuildError::Invalid { field: "vcpus", .. }), "{error}");
        }
        assert!(matches!(refused(|i| i.firmware = &HUGE), BuildError::TooLarge { file: "firmware", .. }));
    }
}
