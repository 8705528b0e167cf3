//! Keys of guests with an emulated PC.

use std::ops::RangeInclusive;

use super::error::Fault;
use super::reader::{Kind, Reader};
use super::syntax::Value;
use super::{HvmConfig, Vga, VifConfig};
use crate::dm::args::{CARD_KEY, CARDS};
use crate::dm::drives::{CONTROLLER_KEY, Controller};
use crate::dm::kernel;
use crate::domain::memory::MAX_MULTIPLIER;

/// What the emulated cards can have, MiB.
const VIDEORAM_MIB: RangeInclusive<u64> = 1..=256;
/// Keys of guests with an emulated PC, beside those in `platform.rs`.
pub(super) const KEYS: [&str; 12] = [
    "acpi",
    "bios",
    "boot",
    CONTROLLER_KEY,
    "keymap",
    "rtc_timeoffset",
    "serial",
    SHADOW_MEMORY,
    "stdvga",
    "vga",
    "videoram",
    "vnclisten",
];

const SHADOW_MEMORY: &str = "shadow_memory";
/// More than the largest pool of the largest guest.
const SHADOW_MIB: RangeInclusive<u64> = 0..=1 << 30;

/// Keys that say what a kernel is started with.
const WITH_KERNEL: [&str; 4] = ["ramdisk", "root", "extra", "cmdline"];

impl Reader {
    /// `usual_paging_kib` is the paging pool of a guest of this size; none when that is not known for a mistake.
    pub(super) fn hvm(&mut self, usual_paging_kib: Option<u64>) -> HvmConfig {
        self.without_effect(&["bootloader", "bootloader_args"], "hvm guests boot from their firmware");
        HvmConfig {
            boot_order: self.boot_order(),
            uefi: self.uefi(),
            vga: self.vga(),
            videoram_mib: self.small("videoram", &VIDEORAM_MIB),
            acpi: self.flag("acpi").unwrap_or(true),
            paging_thousandths: self.paging(usual_paging_kib),
            timeoffset: self.time_offset(),
            serial: self.text("serial").map(|(_, text)| text),
            keymap: self.text("keymap").map(|(_, text)| text),
            vnclisten: self.text("vnclisten").map(|(_, text)| text),
        }
    }

    /// The size of the paging pool, for which the contract has a factor.
    fn paging(&mut self, usual_kib: Option<u64>) -> u32 {
        const USUAL: u32 = 1000;
        let wanted = self.number(SHADOW_MEMORY, &SHADOW_MIB);
        let Some(((line, mib), usual_kib)) = wanted.zip(usual_kib) else { return USUAL };
        let thousandths = (mib * 1024 * 1000).div_ceil(usual_kib);
        let most = f64::from(USUAL) * MAX_MULTIPLIER;
        match u32::try_from(thousandths) {
            Ok(thousandths) if thousandths < USUAL => {
                let why = format!("the guest has {usual_kib} KiB in any case");
                self.ignored(line, SHADOW_MEMORY, mib.to_string(), &why);
                USUAL
            }
            Ok(thousandths) if f64::from(thousandths) <= most => thousandths,
            _ => {
                let accepted = format!(
                    "at most {MAX_MULTIPLIER} times the {usual_kib} KiB that the guest has without it"
                );
                self.fault(line, SHADOW_MEMORY, Fault::bad(mib.to_string(), accepted));
                USUAL
            }
        }
    }

    /// What a device model emulates beside a PC: it becomes `platformdata`, under names of ours where the contract has
    /// none.
    pub(super) fn emulated(&mut self, kind: Kind, vifs: &[VifConfig]) -> Vec<(String, String)> {
        if kind != Kind::Hvm {
            for (vif, model) in vifs.iter().filter_map(|vif| Some((vif, vif.model.as_ref()?))) {
                self.ignored(
                    vif.line,
                    "vif",
                    format!("model={model}"),
                    "only hvm guests have emulated cards",
                );
            }
            return Vec::new();
        }
        let card = self.card(vifs).map(|model| (CARD_KEY.to_owned(), model));
        let controller =
            self.controller().map(|controller| (CONTROLLER_KEY.to_owned(), controller.word().to_owned()));
        self.direct_kernel().into_iter().chain(card).chain(controller).collect()
    }

    /// What the emulated hard disks are attached to.
    fn controller(&mut self) -> Option<Controller> {
        let (line, word) = self.text(CONTROLLER_KEY)?;
        let found = Controller::ALL.into_iter().find(|controller| controller.word() == word);
        if found.is_none() {
            let words = Controller::ALL.map(Controller::word).join(" or ");
            let accepted = format!("the emulated disk controller is {words}");
            self.fault(line, CONTROLLER_KEY, Fault::bad(word, accepted));
        }
        found
    }

    fn direct_kernel(&mut self) -> Vec<(String, String)> {
        let Some((line, path)) = self.text(kernel::KERNEL) else {
            self.without_effect(&WITH_KERNEL, "it is for a kernel, and kernel is not given");
            return Vec::new();
        };
        let path = self.whole_path(line, kernel::KERNEL, path);
        let ramdisk = self.text(kernel::RAMDISK);
        let ramdisk = ramdisk.and_then(|(line, path)| self.whole_path(line, kernel::RAMDISK, path));
        let line = Some(self.cmdline()).filter(|line| !line.is_empty());
        let pairs = [(kernel::KERNEL, path), (kernel::RAMDISK, ramdisk), (kernel::COMMAND_LINE, line)];
        pairs.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }

    /// The model of the emulated cards: the contract has one for all of a VM.
    fn card(&mut self, vifs: &[VifConfig]) -> Option<String> {
        let first = vifs.first()?;
        for vif in vifs {
            let model = vif.model.as_deref();
            if let Some(unknown) = model.filter(|model| !CARDS.contains(model)) {
                let accepted = format!("the emulated cards are {}", CARDS.join(" and "));
                self.fault(vif.line, "vif", Fault::bad(format!("model={unknown}"), accepted));
            } else if vif.model != first.model {
                let found = model.map_or_else(|| "no model".to_owned(), |model| format!("model={model}"));
                let accepted = "all emulated cards of a guest are of one model, which each vif has to name";
                self.fault(vif.line, "vif", Fault::bad(found, accepted));
            }
        }
        first.model.clone()
    }

    fn without_effect(&mut self, keys: &[&str], why: &str) {
        for key in keys {
            if let Some((line, value)) = self.setting(key) {
                let found = if let Value::Text(text) = value { text } else { value.kind().to_owned() };
                self.ignored(line, key, found, why);
            }
        }
    }

    fn vga(&mut self) -> Vga {
        let stdvga = self.flag("stdvga").unwrap_or(false);
        match self.text("vga") {
            None if stdvga => Vga::Standard,
            None => Vga::Cirrus,
            Some((_, card)) if card == "stdvga" => Vga::Standard,
            Some((_, card)) if card == "cirrus" => Vga::Cirrus,
            Some((_, card)) if card == "none" => Vga::None,
            Some((line, card)) => {
                self.fault(line, "vga", Fault::bad(card, "the card is stdvga, cirrus or none"));
                Vga::Cirrus
            }
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
