//! PVH: a kernel entered at its PVH entry point, with ACPI tables in place of firmware.
//!
//! Guest-physical layout, addresses as libxl and the hypervisor's headers have them:
//!
//! ```text
//!   0            RAM ...                    (RSDP in the last 64 bytes below 1 MiB, for older Linux)
//!   0xfc000000   end of low RAM at the latest; a page free, then the ACPI tables, then the RSDP for others
//!   0xfeff8000   eight special pages: console, xenstore, identity page table, ...
//!   4 GiB        RAM that did not fit below
//! ```

use super::image::AcpiTable;
use super::kernel::ElfKernel;
use crate::shared::PAGE_SIZE;

/// Low RAM ends here at the latest (`ACPI_INFO_PHYSICAL_ADDRESS`). libxl has a page here that its tables' own code
/// reads; ours need none.
const HOLE_START: u64 = 0xfc00_0000;
/// Where the tables go: they are to be built for this address.
pub const ACPI_TABLES_ADDRESS: u64 = HOLE_START + PAGE;
/// Bytes of the RSDP's area.
pub const RSDP_SIZE: usize = 64;
/// Most pages of tables, as libxl has it.
pub const MAX_ACPI_PAGES: usize = 16;

const PAGE: u64 = PAGE_SIZE as u64;
pub(super) const FOUR_GIB: u64 = 1 << 32;
/// The BIOS area in which every system looks for the RSDP: its last 64 bytes are used.
const BIOS_END: u64 = 0x10_0000;
/// First of the special pages, and how many (`X86_HVM_END_SPECIAL_REGION`, `X86_HVM_NR_SPECIAL_PAGES`).
const SPECIAL_START: u64 = 0xfeff_8000;
const SPECIAL_PAGES: u64 = 8;

/// The ACPI tables of a PVH guest. They are copied into the guest whole.
#[derive(Debug, Clone, Copy)]
pub struct PvhAcpi<'a> {
    /// Root pointer, with the tables' addresses from [`ACPI_TABLES_ADDRESS`] on.
    pub rsdp: &'a [u8; RSDP_SIZE],
    /// All other tables, at most [`MAX_ACPI_PAGES`] pages.
    pub tables: &'a [u8],
}

impl<'a> PvhAcpi<'a> {
    /// The tables with their addresses. Linux that does not say otherwise looks for the RSDP below 1 MiB only.
    pub(super) fn placed(&self, kernel: ElfKernel) -> [AcpiTable<'a>; 2] {
        let rsdp_address = if kernel.rsdp_anywhere {
            ACPI_TABLES_ADDRESS + pages(self.tables.len()) * PAGE
        } else {
            BIOS_END - RSDP_SIZE as u64
        };
        // libxenguest takes the first as the RSDP.
        [
            AcpiTable { bytes: self.rsdp, address: rsdp_address },
            AcpiTable { bytes: self.tables, address: ACPI_TABLES_ADDRESS },
        ]
    }
}

fn pages(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(PAGE)
}

/// How the guest's RAM is split around the hole below 4 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RamLayout {
    pub(super) hole_start: u64,
    pub(super) low_end: u64,
    /// 0 when all fits below the hole.
    pub(super) high_end: u64,
}

impl RamLayout {
    pub(super) fn new(memory_mib: u32) -> Self {
        Self::with_hole(memory_mib, HOLE_START)
    }

    /// For a hole from this address to 4 GiB.
    pub(super) fn with_hole(memory_mib: u32, hole_start: u64) -> Self {
        let size = u64::from(memory_mib) << 20;
        match size.checked_sub(hole_start).filter(|rest| *rest > 0) {
            Some(rest) => Self { hole_start, low_end: hole_start, high_end: FOUR_GIB + rest },
            None => Self { hole_start, low_end: size, high_end: 0 },
        }
    }
}

/// What a range of the guest's address space is; the numbers are the e820 types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeKind {
    Ram = 1,
    Reserved = 2,
    Acpi = 3,
}

/// A range of the memory map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) address: u64,
    pub(super) size: u64,
    pub(super) kind: RangeKind,
}

/// The memory map the guest gets, for the ends of RAM after its memory was taken.
pub(super) fn memory_map(low_end: u64, high_end: u64, acpi: &[AcpiTable<'_>]) -> Vec<Range> {
    let mut map = vec![
        Range { address: 0, size: low_end, kind: RangeKind::Ram },
        Range { address: SPECIAL_START, size: SPECIAL_PAGES * PAGE, kind: RangeKind::Reserved },
    ];
    map.extend(acpi.iter().filter(|table| !table.bytes.is_empty()).map(|table| {
        let start = table.address / PAGE * PAGE;
        let end = (table.address + table.bytes.len() as u64).div_ceil(PAGE) * PAGE;
        Range { address: start, size: end - start, kind: RangeKind::Acpi }
    }));
    if high_end > FOUR_GIB {
        map.push(Range { address: FOUR_GIB, size: high_end - FOUR_GIB, kind: RangeKind::Ram });
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_split_around_the_hole() {
        let layout = |mib| {
            let layout = RamLayout::new(mib);
            (layout.low_end, layout.high_end)
        };
        assert_eq!(layout(512), (512 << 20, 0));
        assert_eq!(layout(4032), (HOLE_START, 0), "exactly up to the hole");
        assert_eq!(layout(4096), (HOLE_START, FOUR_GIB + (64 << 20)));
    }

    #[test]
    fn the_root_pointer_goes_where_the_kernel_looks() {
        let kernel = |rsdp_anywhere| ElfKernel {
            is_64bit: true,
            xen_notes: true,
            pv: false,
            pvh: true,
            linux: true,
            rsdp_anywhere,
        };
        let tables = [0; 5000];
        let acpi = PvhAcpi { rsdp: &[0; 64], tables: &tables };
        assert_eq!(acpi.placed(kernel(false))[0].address, 0xf_ffc0);
        assert_eq!(acpi.placed(kernel(true))[0].address, 0xfc00_3000);
    }

    #[test]
    fn the_map_has_ram_tables_and_special_pages() {
        let acpi = [
            AcpiTable { bytes: &[0; 64], address: 0xf_ffc0 },
            AcpiTable { bytes: &[0; 5000], address: ACPI_TABLES_ADDRESS },
        ];
        let range = |address, size, kind| Range { address, size, kind };
        let expected = [
            range(0, 1 << 20, RangeKind::Ram),
            range(0xfeff_8000, 0x8000, RangeKind::Reserved),
            range(0xf_f000, 0x1000, RangeKind::Acpi),
            range(0xfc00_1000, 0x2000, RangeKind::Acpi),
            range(FOUR_GIB, 4096, RangeKind::Ram),
        ];
        assert_eq!(memory_map(1 << 20, FOUR_GIB + 4096, &acpi), expected);
        assert_eq!(memory_map(1 << 20, 0, &[]).len(), 2);
    }
}
