//! Keys of guests with an emulated PC.

use std::ops::RangeInclusive;

use super::HvmConfig;
use super::error::Fault;
use super::reader::Reader;
use super::syntax::Value;

/// What the emulated cards can have, MiB.
const VIDEORAM_MIB: RangeInclusive<u64> = 1..=256;
/// Keys of guests with an emulated PC, beside those in `platform.rs`.
pub(super) const KEYS: [&str; 10] =
    ["acpi", "bios", "boot", "keymap", "rtc_timeoffset", "serial", "stdvga", "vga", "videoram", "vnclisten"];

impl Reader {
    pub(super) fn hvm(&mut self) -> HvmConfig {
        for key in ["kernel", "ramdisk", "root", "extra", "cmdline", "bootloader", "bootloader_args"] {
            if let Some((line, value)) = self.setting(key) {
                let found = if let Value::Text(text) = value { text } else { value.kind().to_owned() };
                self.ignored(line, key, found, "hvm guests boot from their firmware");
            }
        }
        let stdvga = self.flag("stdvga").unwrap_or(false);
        let vga = match self.text("vga") {
            None => stdvga,
            Some((_, card)) if card == "stdvga" => true,
            Some((_, card)) if card == "cirrus" => false,
            Some((line, card)) => {
                self.fault(line, "vga", Fault::bad(card, "the card is stdvga or cirrus"));
                false
            }
        };
        HvmConfig {
            boot_order: self.boot_order(),
            uefi: self.uefi(),
            stdvga: vga,
            videoram_mib: self.small("videoram", &VIDEORAM_MIB),
            acpi: self.flag("acpi").unwrap_or(true),
            timeoffset: self.time_offset(),
            serial: self.text("serial").map(|(_, text)| text),
            keymap: self.text("keymap").map(|(_, text)| text),
            vnclisten: self.text("vnclisten").map(|(_, text)| text),
        }
    }

    fn boot_order(&mut self) -> String {
        match self.text("boot") {
            None => String::new(),
            Some((_, order)) if order.len() <= 3 && order.bytes().all(|byte| b"cdn".contains(&byte)) => order,
            Some((line, order)) => {
                let accepted = "up to three letters: c disk, d CD-ROM, n network, in the order to try";
                self.fault(line, "boot", Fault::bad(order, accepted));
                String::new()
            }
        }
    }

    fn uefi(&mut self) -> bool {
        for (key, bios, uefi, accepted) in [
            ("firmware", "bios", "uefi", "the firmware is bios or uefi"),
            ("bios", "seabios", "ovmf", "the BIOS is seabios or ovmf"),
        ] {
            match self.text(key) {
                None => {}
                Some((_, word)) if word == bios => return false,
                Some((_, word)) if word == uefi => return true,
                Some((line, word)) => self.fault(line, key, Fault::bad(word, accepted)),
            }
        }
        false
    }
}
