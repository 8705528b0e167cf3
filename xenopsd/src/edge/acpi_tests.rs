use std::process::Command;

use ffi::builder::MAX_ACPI_PAGES;

use super::*;

/// Follows the pointers as a guest does.
struct Reader(Tables);

impl Reader {
    fn at(&self, address: u64) -> &[u8] {
        let offset = usize::try_from(address - ACPI_TABLES_ADDRESS).unwrap();
        let length = u32::from_le_bytes(self.0.bytes[offset + 4..offset + 8].try_into().unwrap());
        &self.0.bytes[offset..offset + usize::try_from(length).unwrap()]
    }

    fn pointer(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn xsdt(&self) -> &[u8] {
        self.at(Self::pointer(&self.0.rsdp, 24))
    }

    fn by_signature(&self, signature: [u8; 4]) -> &[u8] {
        let entries = self.xsdt()[HEADER..].chunks(8).map(|entry| self.at(Self::pointer(entry, 0)));
        entries.into_iter().find(|table| table.starts_with(&signature)).unwrap()
    }
}

fn sums_to_nothing(bytes: &[u8]) -> bool {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

#[test]
fn a_guest_finds_every_table_and_each_adds_up_to_nothing() {
    for vcpus in [1, 2, 7, 15, 128] {
        let reader = Reader(Tables::new(vcpus));
        assert!(reader.0.rsdp.starts_with(b"RSD PTR "));
        assert!(sums_to_nothing(&reader.0.rsdp[..20]) && sums_to_nothing(&reader.0.rsdp[..36]));
        let (fadt, madt) = (reader.by_signature(*b"FACP"), reader.by_signature(*b"APIC"));
        let dsdt = reader.at(Reader::pointer(fadt, 140));
        for table in [reader.xsdt(), fadt, madt, dsdt] {
            assert!(sums_to_nothing(table), "{:?}", String::from_utf8_lossy(&table[..4]));
        }
        assert_eq!((dsdt[..4].to_vec(), fadt.len()), (b"DSDT".to_vec(), 268));
        let facs = u32::from_le_bytes(fadt[36..40].try_into().unwrap());
        assert!(facs.is_multiple_of(64) && reader.at(facs.into()).starts_with(b"FACS"));
        assert!(reader.0.bytes.len() <= MAX_ACPI_PAGES * 4096);
    }
}

#[test]
fn every_vcpu_has_an_enabled_apic_with_the_hypervisors_number() {
    let reader = Reader(Tables::new(128));
    let madt = reader.by_signature(*b"APIC");
    assert_eq!(madt[HEADER..HEADER + 8], [0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
    let apics: Vec<_> = madt[HEADER + 8..].chunks(8).collect();
    assert_eq!(apics.len(), 128);
    for (vcpu, apic) in (0..).zip(apics) {
        assert_eq!(apic, [0, 8, vcpu, vcpu * 2, 1, 0, 0, 0]);
    }
}

#[test]
fn package_lengths_count_themselves() {
    for (contents, head) in [
        (0, vec![1]),
        (62, vec![63]),
        (63, vec![0x41, 4]),
        (0xffd, vec![0x4f, 0xff]),
        (0xffe, vec![0x81, 0x00, 0x01]),
    ] {
        let bytes = package(vec![0; contents]);
        assert_eq!(bytes[..head.len()], head, "{contents}");
        assert_eq!(bytes.len(), contents + head.len());
    }
}

/// ACPI's own compiler reads the tables back.
#[test]
fn the_acpi_compiler_reads_them() {
    let reader = Reader(Tables::new(17));
    let directory = tempfile::tempdir().unwrap();
    let disassembled = |name: &str, bytes: &[u8]| {
        let file = directory.path().join(format!("{name}.aml"));
        std::fs::write(&file, bytes).unwrap();
        let output = Command::new("iasl").arg("-d").arg(&file).output();
        let output = output.expect("iasl, of the Debian package acpica-tools, is installed");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && !said.contains("Warning"), "{name}: {said}");
        std::fs::read_to_string(file.with_extension("dsl")).unwrap()
    };
    let fadt = reader.by_signature(*b"FACP");
    let dsdt = disassembled("dsdt", reader.at(Reader::pointer(fadt, 140)));
    assert!(dsdt.contains("Scope (\\_SB)") && dsdt.contains("Device (PR10)"), "{dsdt}");
    assert_eq!(dsdt.matches("\"ACPI0007\"").count(), 17, "{dsdt}");
    let madt = disassembled("madt", reader.by_signature(*b"APIC"));
    assert_eq!(madt.matches("[Processor Local APIC]").count(), 17, "{madt}");
    let fadt = disassembled("fadt", fadt);
    for line in
        ["VGA Not Present (V4) : 1", "CMOS RTC Not Present (V5) : 1", "8042 Present on ports 60/64 (V2) : 0"]
    {
        assert!(fadt.contains(line), "{line}: {fadt}");
    }
}
