//! ACPI tables of a PVH guest: how many vcpus it has and what a PC has that it has not.
//!
//! ```text
//!   RSDP (placed by the builder) ─► XSDT ─┬─► FADT ─┬─► FACS
//!                                         │         └─► DSDT: a processor device for each vcpu
//!                                         └─► MADT: a local APIC for each vcpu
//! ```
//!
//! What the tables say is what libxl's say (tools/libacpi with no device model), with three differences: there is no RSDT
//! and no second FADT for systems of ACPI 1.0, which have no PVH entry point; the MADT does not claim the 8259
//! interrupt controllers that a PVH guest does not have; and every vcpu's APIC is enabled, those that are offline at the
//! start included. A system that reads `cpu/N/availability` (Linux does) takes those offline before they are used, and
//! could not bring up one whose APIC was disabled: libxl's guests never get more vcpus than they started with.

use ffi::builder::{ACPI_TABLES_ADDRESS, RSDP_SIZE};

/// Where every x86 CPU has its local APIC (`LAPIC_BASE_ADDRESS`).
const LOCAL_APIC: u32 = 0xfee0_0000;

/// The interrupt that ACPI events would come by. There are none, but 0 would be the timer's.
const SCI_INTERRUPT: u16 = 9;

/// Ports of the event and control registers (`ACPI_PM1A_*_ADDRESS_V1`). Nothing answers there; a system that finds none
/// at all gives up on ACPI.
const PM1_EVENT: u16 = 0xb000;
const PM1_CONTROL: u16 = 0xb004;

/// Above 100 µs and 1000 µs: there are no C2 and C3 states.
const NO_C_STATE: u16 = 0x0fff;

/// FADT boot flags: no VGA (bit 2), no CMOS clock (bit 5).
const BOOT_ARCH: u16 = 1 << 2 | 1 << 5;

/// FADT flags: WBINVD works (0), C1 on every processor (2), the power (4) and sleep (5) buttons and the clock's wake
/// status (6) are not fixed hardware.
const FADT_FLAGS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6;

/// Bytes of a table's header, with its length at 4 and its checksum at 9.
const HEADER: usize = 36;
const CHECKSUM_AT: usize = 9;

/// Bytes of an FADT of revision 5.
const FADT: usize = 268;

/// Tables begin at multiples of this: of 64 because the FACS must.
const ALIGNMENT: usize = 64;

/// The tables, ready to be put into the guest.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) rsdp: [u8; RSDP_SIZE],
    /// For [`ACPI_TABLES_ADDRESS`].
    pub(super) bytes: Vec<u8>,
}

impl Tables {
    /// For a guest with so many vcpus, at most 128 (APIC ids are twice the vcpu's number and have 8 bits).
    pub(super) fn new(vcpus: u8) -> Self {
        let mut area = Area(Vec::new());
        let facs = area.put(&facs());
        let dsdt = area.put(&table(*b"DSDT", 2, &processors(vcpus)));
        let fadt = area.put(&table(*b"FACP", 5, &fadt(facs, dsdt)));
        let madt = area.put(&table(*b"APIC", 2, &apics(vcpus)));
        let pointers = [fadt, madt].map(|address| u64::from(address).to_le_bytes());
        let xsdt = area.put(&table(*b"XSDT", 1, &pointers.concat()));
        Self { rsdp: rsdp(xsdt), bytes: area.0 }
    }
}

struct Area(Vec<u8>);

impl Area {
    /// Appends a table; where the guest has it.
    fn put(&mut self, table: &[u8]) -> u32 {
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        let offset = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0.extend(table);
        TABLES.saturating_add(offset)
    }
}

/// [`ACPI_TABLES_ADDRESS`] in 32 bits: it is below 4 GiB.
const TABLES: u32 = {
    assert!(ACPI_TABLES_ADDRESS <= 0xffff_ffff);
    #[expect(clippy::cast_possible_truncation, reason = "checked in the line before")]
    let address = ACPI_TABLES_ADDRESS as u32;
    address
};

fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = signature.to_vec();
    bytes.extend(length.to_le_bytes());
    bytes.extend([revision, 0]);
    bytes.extend(b"Xen\0\0\0PVH\0\0\0\0\0");
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(b"XPSD");
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(body);
    bytes[CHECKSUM_AT] = checksum(&bytes);
    bytes
}

fn rsdp(xsdt: u32) -> [u8; RSDP_SIZE] {
    let mut bytes = [0; RSDP_SIZE];
    bytes[..8].copy_from_slice(b"RSD PTR ");
    bytes[9..12].copy_from_slice(b"Xen");
    // Revision 2: there is an XSDT.
    bytes[15] = 2;
    bytes[20] = 36;
    bytes[24..28].copy_from_slice(&xsdt.to_le_bytes());
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes[..36]);
    bytes
}

fn facs() -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4] = 64;
    bytes[32] = 1;
    bytes
}

/// An FADT after its header; offsets in the comments are those of the specification.
fn fadt(facs: u32, dsdt: u32) -> Vec<u8> {
    let mut bytes = vec![0; FADT];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(36, &facs.to_le_bytes());
    put(40, &dsdt.to_le_bytes());
    put(46, &SCI_INTERRUPT.to_le_bytes());
    put(56, &u32::from(PM1_EVENT).to_le_bytes());
    put(64, &u32::from(PM1_CONTROL).to_le_bytes());
    // Bytes of the two register blocks.
    put(88, &[4, 2]);
    put(96, &NO_C_STATE.to_le_bytes());
    put(98, &NO_C_STATE.to_le_bytes());
    put(109, &BOOT_ARCH.to_le_bytes());
    put(112, &FADT_FLAGS.to_le_bytes());
    put(140, &u64::from(dsdt).to_le_bytes());
    put(148, &port_register(PM1_EVENT, 32));
    put(172, &port_register(PM1_CONTROL, 16));
    bytes.split_off(HEADER)
}

/// A generic address: space (1, ports), width in bits, offset, access size (any), address.
fn port_register(port: u16, bits: u8) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..2].copy_from_slice(&[1, bits]);
    bytes[4..6].copy_from_slice(&port.to_le_bytes());
    bytes
}

/// The MADT after its header.
fn apics(vcpus: u8) -> Vec<u8> {
    let mut bytes = LOCAL_APIC.to_le_bytes().to_vec();
    // No flags: no 8259 pair.
    bytes.extend([0; 4]);
    for vcpu in 0..vcpus {
        // A processor's local APIC, 8 bytes: processor, APIC id as the hypervisor has it, enabled.
        bytes.extend([0, 8, vcpu, vcpu.saturating_mul(2), 1, 0, 0, 0]);
    }
    bytes
}

/// `Scope (\_SB) { Device (PRnn) { Name (_HID, "ACPI0007") Name (_UID, nn) } ... }`
fn processors(vcpus: u8) -> Vec<u8> {
    let mut devices = b"\\_SB_".to_vec();
    for vcpu in 0..vcpus {
        let mut device = format!("PR{vcpu:02X}").into_bytes();
        device.extend(b"\x08_HID\x0dACPI0007\0");
        device.extend(b"\x08_UID\x0a");
        device.push(vcpu);
        devices.extend([0x5b, 0x82]);
        devices.extend(package(device));
    }
    let mut code = vec![0x10];
    code.extend(package(devices));
    code
}

/// A package's contents after their length, which counts itself: one byte up to 63, else 4 bits and further bytes.
fn package(contents: Vec<u8>) -> Vec<u8> {
    let mut bytes = match contents.len() {
        length @ ..63 => vec![low_byte(length + 1)],
        length @ ..0xffe => {
            let length = length + 2;
            vec![0x40 | low_byte(length & 0xf), low_byte(length >> 4)]
        }
        length => {
            let length = length + 3;
            vec![0x80 | low_byte(length & 0xf), low_byte(length >> 4 & 0xff), low_byte(length >> 12 & 0xff)]
        }
    };
    bytes.extend(contents);
    bytes
}

fn low_byte(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

#[cfg(test)]
#[path = "acpi_tests.rs"]
mod tests;
