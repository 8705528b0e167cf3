//! Settings to [`XlConfig`]: the meaning of each key, its range and its default.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use uuid::Uuid;

use super::error::{ConfigError, ConfigErrors, Fault, Remark, Warning};
use super::keys;
use super::syntax::{Setting, Value};
use crate::domain::memory::usual_paging_kib;

use super::{DiskConfig, Guest, Kernel, StopAction, StopActions, VifConfig, XlConfig, disk, hvm, vif};

/// 1 MiB to 16 TiB, the most memory of an x86 host under Xen.
const MEMORY_MIB: RangeInclusive<u64> = 1..=16 * 1024 * 1024;
/// `HVM_MAX_VCPUS` of Xen's public headers.
const HVM_VCPUS: RangeInclusive<u64> = 1..=128;
/// `MAX_VIRT_CPUS` of Xen's public headers.
const PV_VCPUS: RangeInclusive<u64> = 1..=8192;
/// xl.cfg(5).
const CPU_WEIGHT: RangeInclusive<u64> = 1..=65535;
/// 0 is no limit; the scheduler holds the percentage in 16 bits.
const CAP: RangeInclusive<u64> = 0..=65535;
/// Longest name in bytes: it becomes part of file names (255 bytes) with something around it.
const NAME_BYTES_MAX: usize = 200;
/// More than any guest can see on one bus, and far below what would make `create` slow.
const DEVICES_MAX: usize = 256;

pub(super) fn read(settings: Vec<Setting>) -> Result<(XlConfig, Vec<Warning>), ConfigErrors> {
    let mut reader = Reader { settings: HashMap::new(), errors: Vec::new(), warnings: Vec::new() };
    reader.collect(settings);
    let config = reader.config();
    reader.warnings.sort_by_key(warning_line);
    match config {
        Some(config) if reader.errors.is_empty() => Ok((config, reader.warnings)),
        _ => Err(ConfigErrors(reader.errors)),
    }
}

fn warning_line(warning: &Warning) -> usize {
    match warning {
        Warning::UnknownKey { line, .. }
        | Warning::UnsupportedKey { line, .. }
        | Warning::Repeated { line, .. }
        | Warning::Ignored { line, .. } => *line,
    }
}

pub(super) struct Reader {
    settings: HashMap<String, (usize, Value)>,
    errors: Vec<ConfigError>,
    warnings: Vec<Warning>,
}

impl Reader {
    /// Keeps the last setting of each key that has a meaning, and remarks on the others.
    fn collect(&mut self, settings: Vec<Setting>) {
        for Setting { line, key, value } in settings {
            if keys::SUPPORTED.contains(&key.as_str()) {
                if let Some((first, _)) = self.settings.insert(key.clone(), (line, value)) {
                    self.warnings.push(Warning::Repeated { line, key, first });
                }
            } else if keys::UNSUPPORTED.contains(&key.as_str()) {
                self.warnings.push(Warning::UnsupportedKey { line, key });
            } else {
                let suggestion = keys::guess(&key).map(str::to_owned);
                self.warnings.push(Warning::UnknownKey { line, key, suggestion });
            }
        }
    }

    /// Reads everything even after a mistake, so that all of them are reported at once.
    fn config(&mut self) -> Option<XlConfig> {
        let name = self.name();
        let uuid = self.uuid();
        let kind = self.kind();
        let (memory_mib, maxmem_mib) = self.memory();
        let (vcpus, maxvcpus) = self.vcpus(kind);
        let cpu_weight = self.small("cpu_weight", &CPU_WEIGHT);
        let cap = self.small("cap", &CAP);
        let affinity = self.affinity();
        let disks = self.disks();
        let vifs = self.vifs();
        let actions = self.actions();
        let mut platform = self.platform(kind);
        platform.extend(self.emulated(kind, &vifs));
        let frame_buffer = self.frame_buffer(kind);
        let generation_id = self.generation_id();
        let text_screen = self.text_screen(kind);
        let shim = self.flag("pvshim").unwrap_or(false);
        let guest = match kind {
            Kind::Pv => self.kernel().map(Guest::Pv),
            Kind::Pvh if shim => self.kernel().map(Guest::PvInPvh),
            Kind::Pvh => self.kernel().map(Guest::Pvh),
            Kind::Hvm => {
                let size = maxvcpus.zip(maxmem_mib);
                let paging = size.map(|(vcpus, mib)| usual_paging_kib(vcpus.into(), mib.into()));
                Some(Guest::Hvm(self.hvm(paging)))
            }
        };
        if shim && kind != Kind::Pvh {
            self.misplaced("pvshim", "it is for guests of type pvh");
        }
        if matches!(kind, Kind::Pv | Kind::Pvh) {
            self.only_hvm(&hvm::KEYS);
        }
        Some(XlConfig {
            name: name?,
            uuid,
            guest: guest?,
            memory_mib: memory_mib?,
            maxmem_mib: maxmem_mib?,
            vcpus: vcpus?,
            maxvcpus: maxvcpus?,
            cpu_weight,
            cap,
            affinity,
            disks,
            vifs,
            actions,
            text_screen,
            frame_buffer,
            platform,
            generation_id,
        })
    }

    fn name(&mut self) -> Option<String> {
        let Some((line, name)) = self.text("name") else {
            if !self.settings.contains_key("name") {
                self.errors.push(ConfigError::Missing { key: "name", add: "add a line like name = 'web'" });
            }
            return None;
        };
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(|c| c.is_control() || c == '/')
        {
            let accepted =
                format!("a name has 1 to {NAME_BYTES_MAX} bytes, without `/` and control characters");
            self.fault(line, "name", Fault::bad(name, accepted));
            return None;
        }
        Some(name)
    }

    fn uuid(&mut self) -> Option<Uuid> {
        let (line, text) = self.text("uuid")?;
        // The crate also reads braces and URNs, which are not of this format.
        let plain = text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        match Uuid::try_parse(&text) {
            Ok(uuid) if plain && !uuid.is_nil() => Some(uuid),
            _ => {
                let accepted = "a uuid is 32 hexadecimal digits in groups of 8-4-4-4-12, not all zero; \
                                make one with `uuidgen`, or leave the key out";
                self.fault(line, "uuid", Fault::bad(text, accepted));
                None
            }
        }
    }

    fn kind(&mut self) -> Kind {
        let builder = self.text("builder");
        if let Some((line, kind)) = self.text("type") {
            if let Some((line, builder)) = builder {
                self.ignored(line, "builder", builder, "type is given");
            }
            return match kind.as_str() {
                "pv" => Kind::Pv,
                "pvh" => Kind::Pvh,
                "hvm" => Kind::Hvm,
                _ => {
                    self.fault(line, "type", Fault::bad(kind, "the type is pv, pvh or hvm"));
                    Kind::Pv
                }
            };
        }
        match builder {
            None => Kind::Pv,
            Some((_, builder)) if matches!(builder.as_str(), "generic" | "linux") => Kind::Pv,
            Some((_, builder)) if builder == "hvm" => Kind::Hvm,
            Some((line, builder)) => {
                self.fault(
                    line,
                    "builder",
                    Fault::bad(builder, "the builder is generic or hvm; better write type"),
                );
                Kind::Pv
            }
        }
    }

    fn memory(&mut self) -> (Option<u32>, Option<u32>) {
        let memory = self.number("memory", &MEMORY_MIB);
        let maxmem = self.number("maxmem", &MEMORY_MIB);
        if !self.settings.contains_key("memory") && !self.settings.contains_key("maxmem") {
            let add = "add a line like memory = 1024 (MiB)";
            self.errors.push(ConfigError::Missing { key: "memory", add });
        }
        if let (Some((_, memory)), Some((line, maxmem))) = (memory, maxmem)
            && maxmem < memory
        {
            let accepted = format!("maxmem is at least memory, which is {memory}");
            self.fault(line, "maxmem", Fault::bad(maxmem.to_string(), accepted));
        }
        // Either stands for both.
        let mib = |setting: Option<(usize, u64)>| setting.and_then(|(_, mib)| u32::try_from(mib).ok());
        (mib(memory.or(maxmem)), mib(maxmem.or(memory)))
    }

    fn vcpus(&mut self, kind: Kind) -> (Option<u16>, Option<u16>) {
        let range = if kind == Kind::Pv { PV_VCPUS } else { HVM_VCPUS };
        let vcpus = self.number("vcpus", &range);
        let maxvcpus = self.number("maxvcpus", &range);
        if let (Some((_, vcpus)), Some((line, maxvcpus))) = (vcpus, maxvcpus)
            && maxvcpus < vcpus
        {
            let accepted = format!("maxvcpus is at least vcpus, which is {vcpus}");
            self.fault(line, "maxvcpus", Fault::bad(maxvcpus.to_string(), accepted));
        }
        let count = |setting: Option<(usize, u64)>| u16::try_from(setting.map_or(1, |(_, count)| count)).ok();
        (count(vcpus.or(maxvcpus)), count(maxvcpus.or(vcpus)))
    }

    fn disks(&mut self) -> Vec<DiskConfig> {
        let mut disks: Vec<DiskConfig> = Vec::new();
        for (line, spec) in self.devices("disk") {
            let disk = match disk::parse(line, &spec) {
                Ok(disk) => disk,
                Err(fault) => {
                    self.fault(line, "disk", fault);
                    continue;
                }
            };
            if let Some(other) = disks.iter().find(|other| other.vdev == disk.vdev) {
                let (key, found) = ("disk".to_owned(), format!("vdev {}", disk.vdev));
                self.errors.push(ConfigError::Duplicate { line, key, found, first: other.line });
            }
            for Remark { found, why } in disk.remarks() {
                self.ignored(line, "disk", found, why);
            }
            disks.push(disk);
        }
        disks
    }

    fn vifs(&mut self) -> Vec<VifConfig> {
        let mut vifs: Vec<VifConfig> = Vec::new();
        for (line, spec) in self.devices("vif") {
            match vif::parse(line, &spec) {
                Ok((vif, remarks)) => {
                    for Remark { found, why } in remarks {
                        self.ignored(line, "vif", found, why);
                    }
                    if let Some(mac) = vif.mac
                        && let Some(other) = vifs.iter().find(|other| other.mac == Some(mac))
                    {
                        let (key, found) = ("vif".to_owned(), format!("MAC address {mac}"));
                        self.errors.push(ConfigError::Duplicate { line, key, found, first: other.line });
                    }
                    vifs.push(vif);
                }
                Err(fault) => self.fault(line, "vif", fault),
            }
        }
        vifs
    }

    fn actions(&mut self) -> StopActions {
        let actions = StopActions {
            poweroff: self.action("on_poweroff", StopAction::Destroy),
            reboot: self.action("on_reboot", StopAction::Restart),
            crash: self.action("on_crash", StopAction::Destroy),
            soft_reset: self.action("on_soft_reset", StopAction::SoftReset),
        };
        let watchdog = self.action("on_watchdog", actions.crash);
        if watchdog != actions.crash
            && let Some((line, found)) = self.text("on_watchdog")
        {
            self.ignored(
                line,
                "on_watchdog",
                found,
                "a watchdog timeout is handled like a crash, by on_crash",
            );
        }
        actions
    }

    fn action(&mut self, key: &'static str, default: StopAction) -> StopAction {
        let Some((line, text)) = self.text(key) else { return default };
        match text.as_str() {
            "destroy" => StopAction::Destroy,
            "restart" => StopAction::Restart,
            "rename-restart" => StopAction::RenameRestart,
            "preserve" => StopAction::Preserve,
            "coredump-destroy" => StopAction::CoredumpDestroy,
            "coredump-restart" => StopAction::CoredumpRestart,
            "soft-reset" => StopAction::SoftReset,
            _ => {
                let accepted = "the actions are destroy, restart, rename-restart, preserve, coredump-destroy, \
                                coredump-restart, soft-reset";
                self.fault(line, key, Fault::bad(text, accepted));
                default
            }
        }
    }

    /// Whether a text guest has a terminal server, with its VNC screen: unless it is to have none.
    fn text_screen(&mut self, kind: Kind) -> bool {
        let vnc = self.number("vnc", &(0..=1));
        match (kind, vnc) {
            (Kind::Hvm, Some((line, 0))) => {
                let always = "hvm guests have their screen on 127.0.0.1; vga = 'none' leaves it out";
                self.ignored(line, "vnc", "0".to_owned(), always);
                false
            }
            (Kind::Hvm, _) => false,
            (Kind::Pv | Kind::Pvh, vnc) => vnc.is_none_or(|(_, wanted)| wanted == 1),
        }
    }

    fn kernel(&mut self) -> Option<Kernel> {
        let cmdline = self.cmdline();
        let ramdisk = self.text("ramdisk");
        let kernel = self.text("kernel");
        let args = self.bootloader_args();
        if let Some((_, program)) = self.text("bootloader") {
            if let Some((line, path)) = kernel {
                self.ignored(line, "kernel", path, "bootloader is given and finds the kernel");
            }
            return Some(Kernel::Bootloader { program, args, cmdline });
        }
        if let Some((line, path)) = kernel {
            let path = self.whole_path(line, "kernel", path);
            let ramdisk = ramdisk.and_then(|(line, path)| self.whole_path(line, "ramdisk", path));
            return Some(Kernel::Direct { path: path?, ramdisk, cmdline });
        }
        if let Some((line, firmware)) = self.text("firmware") {
            let instead = "name the boot loader's file with kernel =";
            self.fault(line, "firmware", Fault::unsupported(firmware, instead));
        } else if !self.settings.contains_key("kernel") {
            let add = "pv and pvh guests need kernel = '/path' or bootloader = 'pygrub'; \
                       for a guest with BIOS or UEFI add type = 'hvm'";
            self.errors.push(ConfigError::Missing { key: "kernel", add });
        }
        None
    }

    pub(super) fn whole_path(&mut self, line: usize, key: &str, path: String) -> Option<String> {
        if path.starts_with('/') {
            return Some(path);
        }
        self.fault(line, key, Fault::bad(path, "write the whole path, beginning with /"));
        None
    }

    /// `cmdline` alone, or `root` and `extra` together, as `xl` does.
    pub(super) fn cmdline(&mut self) -> String {
        let root = self.text("root");
        let extra = self.text("extra");
        if let Some((_, cmdline)) = self.text("cmdline") {
            for (key, setting) in [("root", root), ("extra", extra)] {
                if let Some((line, found)) = setting {
                    self.ignored(line, key, found, "cmdline is given");
                }
            }
            return cmdline;
        }
        let root = root.map(|(_, root)| format!("root={root}"));
        let parts: Vec<String> = root.into_iter().chain(extra.map(|(_, extra)| extra)).collect();
        parts.join(" ")
    }

    /// A text, or a list of words.
    fn bootloader_args(&mut self) -> String {
        if !matches!(self.settings.get("bootloader_args"), Some((_, Value::List(_)))) {
            return self.text("bootloader_args").map(|(_, args)| args).unwrap_or_default();
        }
        let words: Vec<String> = self.devices("bootloader_args").into_iter().map(|(_, word)| word).collect();
        words.join(" ")
    }

    /// Keys that mean nothing for this kind of guest.
    pub(super) fn only_hvm(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.misplaced(key, "only hvm guests have it");
        }
    }

    fn misplaced(&mut self, key: &'static str, why: &str) {
        let Some((line, value)) = self.setting(key) else { return };
        let found = match value {
            Value::Text(text) => text,
            Value::Number(number) => number.to_string(),
            Value::List(_) => value.kind().to_owned(),
        };
        self.ignored(line, key, found, why);
    }

    pub(super) fn setting(&self, key: &str) -> Option<(usize, Value)> {
        self.settings.get(key).cloned()
    }

    pub(super) fn text(&mut self, key: &'static str) -> Option<(usize, String)> {
        let (line, value) = self.settings.get(key)?.clone();
        match value {
            Value::Text(text) => Some((line, text)),
            // xl takes a number for a text: name = 12 is the name "12".
            Value::Number(number) => Some((line, number.to_string())),
            Value::List(_) => {
                self.fault_once(line, key, Fault::bad(value.kind(), "a quoted text"));
                None
            }
        }
    }

    pub(super) fn number(&mut self, key: &'static str, range: &RangeInclusive<u64>) -> Option<(usize, u64)> {
        let (line, value) = self.settings.get(key)?.clone();
        let accepted = format!("a number from {} to {}", range.start(), range.end());
        let number = match &value {
            Value::Number(number) => Some(*number),
            Value::Text(text) => text.trim().parse().ok(),
            Value::List(_) => None,
        };
        if let Some(number) = number.filter(|number| range.contains(number)) {
            return Some((line, number));
        }
        let found = match value {
            Value::Number(number) => number.to_string(),
            Value::Text(text) => text,
            Value::List(_) => value.kind().to_owned(),
        };
        self.fault(line, key, Fault::bad(found, accepted));
        None
    }

    pub(super) fn small(&mut self, key: &'static str, range: &RangeInclusive<u64>) -> Option<u16> {
        self.number(key, range).and_then(|(_, number)| u16::try_from(number).ok())
    }

    pub(super) fn flag(&mut self, key: &'static str) -> Option<bool> {
        self.number(key, &(0..=1)).map(|(_, number)| number != 0)
    }

    /// The texts of a list, each with its line; a single text stands for a list of one.
    pub(super) fn devices(&mut self, key: &'static str) -> Vec<(usize, String)> {
        let Some((line, value)) = self.settings.get(key).cloned() else { return Vec::new() };
        let items = match value {
            Value::List(items) => items,
            single => vec![(line, single)],
        };
        if items.len() > DEVICES_MAX {
            let fault = Fault::bad(format!("{} items", items.len()), format!("at most {DEVICES_MAX}"));
            self.fault(line, key, fault);
            return Vec::new();
        }
        let mut texts = Vec::new();
        for (line, item) in items {
            match item {
                Value::Text(text) => texts.push((line, text)),
                other => self.fault(line, key, Fault::bad(other.kind(), "a list of quoted texts")),
            }
        }
        texts
    }

    pub(super) fn ignored(&mut self, line: usize, key: &str, found: String, why: &str) {
        self.warnings.push(Warning::Ignored { line, key: key.to_owned(), found, why: why.to_owned() });
    }

    pub(super) fn fault(&mut self, line: usize, key: &str, fault: Fault) {
        self.errors.push(fault.at(line, key));
    }

    /// A key may be read at several places; its mistake is reported at the first.
    fn fault_once(&mut self, line: usize, key: &str, fault: Fault) {
        let error = fault.at(line, key);
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Pv,
    Pvh,
    Hvm,
}
