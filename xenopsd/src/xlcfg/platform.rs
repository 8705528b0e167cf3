//! Keys about the guest's processors, clocks and chipset: they become `platformdata`, under the names that management
//! layers use.

use super::error::Fault;
use super::reader::{Kind, Reader};
use super::syntax::Value;

/// Flags of every kind of guest: the key here and in `platformdata`.
const FLAGS: &[(&str, &str)] =
    &[("vpmu", "vpmu"), ("msr_relaxed", "msr-relaxed"), ("nomigrate", "nomigrate")];

/// Flags of guests in hardware containers.
const CONTAINER_FLAGS: &[(&str, &str)] = &[("hap", "hap"), ("nestedhvm", "nested-virt")];

/// Flags of HVM guests.
const HVM_FLAGS: &[(&str, &str)] =
    &[("pae", "pae"), ("apic", "apic"), ("hpet", "hpet"), ("acpi_s3", "acpi_s3"), ("acpi_s4", "acpi_s4")];

/// Words for the numbers of `tsc_mode`. A fourth mode went with Xen 4.15.
const TSC_MODES: &[&str] = &["default", "always_emulate", "native"];

/// Words for the numbers of `timer_mode`.
const TIMER_MODES: &[&str] = &[
    "delay_for_missed_ticks",
    "no_delay_for_missed_ticks",
    "no_missed_ticks_pending",
    "one_missed_tick_pending",
];

/// Groups of enlightenments that can be named, without `viridian_`; `base` and `freq` are one for the hypervisor.
const VIRIDIAN: &[&str] = &[
    "time_ref_count",
    "reference_tsc",
    "hcall_remote_tlb_flush",
    "apic_assist",
    "crash_ctl",
    "synic",
    "stimer",
    "hcall_ipi",
    "ex_processor_masks",
    "no_vp_limit",
    "cpu_hotplug",
];

/// What `viridian = 1` stands for, beside the base (xl.cfg(5), "defaults").
const VIRIDIAN_DEFAULTS: &[&str] = &["time_ref_count", "apic_assist", "crash_ctl"];

/// Grant table frames: the hypervisor's own limit is lower, and its to say.
const FRAMES: std::ops::RangeInclusive<u64> = 1..=1 << 20;

/// The hole below 4 GiB for devices' memory, in MiB (xl's range).
const HOLE_MIB: std::ops::RangeInclusive<u64> = 256..=0xf00;

const MIB: u64 = 1 << 20;

/// Keys and values of `platformdata`.
type Pairs = Vec<(String, String)>;

impl Reader {
    /// What the keys ask for.
    pub(super) fn platform(&mut self, kind: Kind) -> Pairs {
        let mut pairs = Pairs::new();
        self.platform_flags(FLAGS, true, &mut pairs);
        self.platform_flags(CONTAINER_FLAGS, kind != Kind::Pv, &mut pairs);
        self.platform_flags(HVM_FLAGS, kind == Kind::Hvm, &mut pairs);
        for (key, words) in [("tsc_mode", TSC_MODES), ("timer_mode", TIMER_MODES)] {
            if let Some(number) = self.mode(key, words) {
                pairs.push((key.to_owned(), number.to_string()));
            }
        }
        if let Some((_, frames)) = self.number("max_grant_frames", &FRAMES) {
            pairs.push(("max_grant_frames".to_owned(), frames.to_string()));
        }
        if kind == Kind::Hvm {
            if let Some((_, mib)) = self.number("mmio_hole", &HOLE_MIB) {
                pairs.push(("mmio_hole_size".to_owned(), (mib * MIB).to_string()));
            }
            let groups = self.viridian();
            if !groups.is_empty() {
                pairs.push(("viridian".to_owned(), "true".to_owned()));
            }
            let keys =
                groups.iter().filter(|group| **group != "base").map(|group| format!("viridian_{group}"));
            pairs.extend(keys.map(|key| (key, "true".to_owned())));
        } else {
            self.only_hvm(&["mmio_hole", "viridian"]);
        }
        pairs
    }

    fn platform_flags(&mut self, flags: &[(&'static str, &str)], apply: bool, pairs: &mut Pairs) {
        for (key, name) in flags {
            if !apply {
                self.only_hvm(&[key]);
            } else if let Some(on) = self.flag(key) {
                pairs.push(((*name).to_owned(), on.to_string()));
            }
        }
    }

    /// A number, or a word for one.
    fn mode(&mut self, key: &'static str, words: &[&str]) -> Option<usize> {
        let (line, text) = self.text(key)?;
        let number = words.iter().position(|word| *word == text);
        let number = number.or_else(|| text.parse().ok().filter(|n| *n < words.len()));
        if number.is_none() {
            let accepted = format!("the modes are {}, or their numbers from 0 on", words.join(", "));
            self.fault(line, key, Fault::bad(text, accepted));
        }
        number
    }

    /// The enlightenments that are asked for, with `base` when there are any.
    fn viridian(&mut self) -> Vec<&'static str> {
        let Some((line, value)) = self.setting("viridian") else { return Vec::new() };
        if !matches!(value, Value::List(_)) {
            let all = || std::iter::once("base").chain(VIRIDIAN_DEFAULTS.iter().copied()).collect();
            return if self.flag("viridian") == Some(true) { all() } else { Vec::new() };
        }
        let mut groups = Vec::new();
        for (_, word) in self.devices("viridian") {
            let (on, name) = word.strip_prefix('!').map_or((true, &*word), |name| (false, name));
            let named: Vec<&'static str> = match name {
                "base" | "freq" => vec!["base"],
                "defaults" => VIRIDIAN_DEFAULTS.to_vec(),
                "all" => VIRIDIAN.to_vec(),
                _ => VIRIDIAN.iter().copied().filter(|group| *group == name).collect(),
            };
            if named.is_empty() {
                let accepted = format!("the groups are base, freq, defaults, all, {}", VIRIDIAN.join(", "));
                self.fault(line, "viridian", Fault::bad(word, accepted));
                continue;
            }
            groups.retain(|group| !named.contains(group));
            if on {
                groups.extend(named);
            }
        }
        if !groups.is_empty() && !groups.contains(&"base") {
            groups.insert(0, "base");
        }
        groups
    }

    /// Whether each clone and each going back to an earlier state is to be known to the guest as one.
    pub(super) fn generation_id(&mut self) -> Option<String> {
        match self.text("ms_vm_genid")? {
            (_, word) if word == "generate" => {
                let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
                Some(format!("{high}:{low}"))
            }
            (_, word) if word == "none" => None,
            (line, word) => {
                self.fault(line, "ms_vm_genid", Fault::bad(word, "it is generate or none"));
                None
            }
        }
    }

    /// Seconds that an HVM guest's clock is ahead of UTC.
    pub(super) fn time_offset(&mut self) -> String {
        let Some((line, text)) = self.text("rtc_timeoffset") else { return String::new() };
        if text.parse::<i32>().is_err() {
            self.fault(line, "rtc_timeoffset", Fault::bad(text.clone(), "a number of seconds"));
        }
        text
    }
}
