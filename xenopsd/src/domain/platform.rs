//! What a VM's `platformdata` asks of its processors, clocks and chipset: text from a management layer to numbers for the
//! hypervisor. A key that is not known is for the guest, which finds all of them below `platform/`; a value of a known
//! key that makes no sense is an error that names it.

use guest_installer::eliloader::keys::KEYS;

use crate::api::{BuilderInfo, Dict, Error, HvmInfo, Vm};
use crate::dm::kernel;
use crate::edge::{GuestKind, HOLE_SIZES, Physinfo, Platform, TscMode};
use crate::hostinfo::policy_words;

/// Enlightenments by the key that asks for each, with its bit of `HVM_PARAM_VIRIDIAN` (xen/hvm/params.h). The first is the
/// base that all others need.
const VIRIDIAN: [(&str, u32); 12] = [
    ("viridian", 0),
    ("viridian_time_ref_count", 2),
    ("viridian_reference_tsc", 3),
    ("viridian_hcall_remote_tlb_flush", 4),
    ("viridian_apic_assist", 5),
    ("viridian_crash_ctl", 6),
    ("viridian_synic", 7),
    ("viridian_stimer", 8),
    ("viridian_hcall_ipi", 9),
    ("viridian_ex_processor_masks", 10),
    ("viridian_no_vp_limit", 11),
    ("viridian_cpu_hotplug", 12),
];

/// What the hypervisor fixes at a domain's creation, from the same keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Creation {
    pub(super) hap: bool,
    pub(super) nested_virt: bool,
    pub(super) vpmu: bool,
    pub(super) msr_relaxed: bool,
    /// Grant table frames, when the VM says.
    pub(super) max_grant_frames: Option<u32>,
}

/// The keys of one VM.
struct Keys<'a>(&'a Vm);

impl Keys<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        self.0.platformdata.get(key).map(|value| value.trim())
    }

    fn bad(&self, key: &str, accepted: &str) -> Error {
        let value = self.text(key).unwrap_or_default();
        Error::internal(format!("VM {}: platform key {key} is {value:?}; it must be {accepted}", self.0.id))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.text(key) {
            None | Some("") => Ok(default),
            Some("true" | "1") => Ok(true),
            Some("false" | "0") => Ok(false),
            Some(_) => Err(self.bad(key, "true or false")),
        }
    }

    fn number<N: std::str::FromStr + PartialOrd>(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<N>,
        accepted: &str,
    ) -> Result<Option<N>, Error> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let number = text.parse().ok().filter(|n| range.contains(n));
        number.map(Some).ok_or_else(|| self.bad(key, accepted))
    }
}

fn hvm(vm: &Vm) -> Option<&HvmInfo> {
    match &vm.ty {
        BuilderInfo::Hvm(hvm) => Some(hvm),
        _ => None,
    }
}

/// What the VM's processors and clocks are to be like.
pub(super) fn platform(vm: &Vm) -> Result<Platform, Error> {
    let keys = Keys(vm);
    let default = Platform::default();
    let featureset = policy_words(keys.text("featureset").unwrap_or_default())
        .map_err(|_| keys.bad("featureset", "hexadecimal words joined by dashes"))?;
    let tsc = match keys.number("tsc_mode", 0..=2, "0 (default), 1 (emulate) or 2 (native)")? {
        Some(1) => TscMode::AlwaysEmulate,
        Some(2) => TscMode::Native,
        _ => TscMode::Default,
    };
    Ok(Platform {
        featureset,
        nx: keys.flag("nx", default.nx)?,
        pae: keys.flag("pae", default.pae)?,
        nested_virt: nested_virt(&keys)?,
        generation_id: generation_id(vm)?,
        tsc,
        timer_mode: keys.number("timer_mode", 0..=3, "0 to 3")?.unwrap_or(default.timer_mode),
        apic: keys.flag("apic", default.apic)?,
        hpet: keys.flag("hpet", default.hpet)?,
        viridian: viridian(&keys)?,
        time_offset: time_offset(&keys)?,
    })
}

/// What is fixed when the VM's domain is created on this host.
///
/// # Errors
/// Also when the host cannot run such a guest.
pub(super) fn creation(vm: &Vm, kind: GuestKind, host: &Physinfo) -> Result<Creation, Error> {
    let keys = Keys(vm);
    let contained = kind != GuestKind::Pv;
    let wants_hap = hvm(vm).is_none_or(|hvm| hvm.hap) && keys.flag("hap", true)?;
    let creation = Creation {
        hap: contained && host.hap && wants_hap,
        nested_virt: contained && nested_virt(&keys)?,
        vpmu: keys.flag("vpmu", false)?,
        msr_relaxed: keys.flag("msr-relaxed", false)?,
        max_grant_frames: keys.number("max_grant_frames", 1..=u32::MAX >> 1, "a number of frames above 0")?,
    };
    match refusal(kind, &creation, host) {
        Some(why) => Err(Error::internal(format!("VM {}: {why}", vm.id))),
        None => Ok(creation),
    }
}

/// Why this host cannot run such a guest.
fn refusal(kind: GuestKind, wanted: &Creation, host: &Physinfo) -> Option<String> {
    if kind == GuestKind::Pv {
        return (!host.pv).then(|| "this hypervisor was built without PV guests".to_owned());
    }
    if !host.hvm {
        return Some(format!(
            "a {kind:?} guest needs hardware virtualisation, and this host has none: switch VT-x or AMD-V on in its \
             firmware, or make it a PV guest"
        ));
    }
    if !wanted.hap && !host.shadow {
        let why = "hardware-assisted paging is off, and this hypervisor has no shadow paging: \
                   remove hap=0, or take a host with it";
        return Some(why.to_owned());
    }
    (wanted.nested_virt && !wanted.hap)
        .then(|| "nested virtualisation needs hardware-assisted paging".to_owned())
}

/// The second name is of an older management layer.
fn nested_virt(keys: &Keys<'_>) -> Result<bool, Error> {
    Ok(keys.flag("nested-virt", false)? || keys.flag("exp-nested-hvm", false)?)
}

fn viridian(keys: &Keys<'_>) -> Result<u64, Error> {
    let mut bits = 0;
    for (key, bit) in VIRIDIAN {
        bits |= u64::from(keys.flag(key, false)?) << bit;
    }
    // Without the base there are none.
    Ok(if bits & 1 == 1 { bits } else { 0 })
}

/// The VM's own field is the newer place.
fn time_offset(keys: &Keys<'_>) -> Result<i32, Error> {
    let Some(hvm) = hvm(keys.0) else { return Ok(0) };
    let text = match hvm.timeoffset.trim() {
        "" => keys.text("timeoffset").unwrap_or("0"),
        own => own,
    };
    text.parse().map_err(|_| {
        Error::internal(format!("VM {}: timeoffset {text:?} is no number of seconds", keys.0.id))
    })
}

/// Room for PCI devices below 4 GiB of an HVM guest, in bytes.
pub(super) fn hole_size(vm: &Vm) -> Result<u64, Error> {
    let keys = Keys(vm);
    let accepted = "whole MiB in bytes, from 268435456 (256 MiB) to 4026531840 (3.75 GiB)";
    let size = keys.number("mmio_hole_size", HOLE_SIZES, accepted)?.unwrap_or(*HOLE_SIZES.start());
    if size.is_multiple_of(1 << 20) { Ok(size) } else { Err(keys.bad("mmio_hole_size", accepted)) }
}

/// A generation id is two numbers of 64 bits with a colon between, as hvmloader reads them.
fn generation_id(vm: &Vm) -> Result<Option<[u64; 2]>, Error> {
    let Some(id) = vm.generation_id.as_ref().filter(|id| !id.is_empty()) else { return Ok(None) };
    let signed = |text: &str| text.parse().ok().map(i64::cast_unsigned);
    let number = |text: &str| text.parse().ok().or_else(|| signed(text));
    let numbers = id.split_once(':').and_then(|(first, second)| Some([number(first)?, number(second)?]));
    numbers.map(Some).ok_or_else(|| {
        Error::internal(format!("VM {}: generation id {id:?} is not two numbers with a colon between", vm.id))
    })
}

/// Whether the guest sees ACPI tables: both places must want it.
pub(super) fn acpi(vm: &Vm) -> Result<bool, Error> {
    Ok(hvm(vm).is_none_or(|hvm| hvm.acpi) && Keys(vm).flag("acpi", true)?)
}

/// What the guest finds below `platform/`: what the VM's owner put there, and what the daemon knows better.
pub(super) fn nodes(vm: &Vm) -> Result<Dict<String>, Error> {
    let mut nodes = vm.platformdata.clone();
    // Those of its installation are the boot loader's; there are passwords among them.
    nodes.0.retain(|(key, _)| !KEYS.contains(&&**key));
    if hvm(vm).is_some() {
        // Those of dom0's files are its device model's.
        nodes.0.retain(|(key, _)| !kernel::KEYS.contains(&&**key));
    }
    let mut set = |key: &str, value: String| {
        nodes.0.retain(|(k, _)| k != key);
        nodes.0.push((key.to_owned(), value));
    };
    set("vcpu/number", vm.vcpu_max.to_string());
    set("vcpu/current", vm.vcpus.to_string());
    if let Some(id) = vm.generation_id.as_ref().filter(|id| !id.is_empty()) {
        set("generation-id", id.clone());
    }
    if hvm(vm).is_some() {
        let keys = Keys(vm);
        // hvmloader reads numbers. A guest that sleeps would have to be woken by somebody.
        let flags = [
            ("acpi", acpi(vm)?),
            ("acpi_s3", keys.flag("acpi_s3", false)?),
            ("acpi_s4", keys.flag("acpi_s4", false)?),
            ("acpi_laptop_slate", keys.flag("acpi_laptop_slate", false)?),
        ];
        for (key, on) in flags {
            set(key, u8::from(on).to_string());
        }
        // hvmloader: which hotplug controllers the tables are to describe.
        set("device-model", "qemu_xen".to_owned());
        set("mmio_hole_size", hole_size(vm)?.to_string());
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_vm;

    const ID: &str = "11111111-2222-3333-4444-555555555555";

    fn vm(keys: &[(&str, &str)]) -> Vm {
        let mut vm = test_vm(ID, "demo");
        vm.platformdata.0 = keys.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        vm
    }

    fn hvm_vm(keys: &[(&str, &str)], timeoffset: &str) -> Vm {
        let hvm = HvmInfo { timeoffset: timeoffset.to_owned(), ..HvmInfo::default() };
        Vm { ty: BuilderInfo::Hvm(hvm), ..vm(keys) }
    }

    fn host() -> Physinfo {
        Physinfo { hvm: true, pv: true, hap: true, ..Physinfo::default() }
    }

    #[test]
    fn nothing_asked_is_libxls_default() {
        assert_eq!(platform(&vm(&[])).unwrap(), Platform::default());
        let creation = creation(&vm(&[]), GuestKind::Pvh, &host()).unwrap();
        assert!(creation.hap && !creation.nested_virt && creation.max_grant_frames.is_none());
    }

    #[test]
    fn keys_become_numbers() {
        let keys = [
            ("featureset", "0178bfff-00000001"),
            ("nx", "false"),
            ("pae", "0"),
            ("tsc_mode", "2"),
            ("timer_mode", "0"),
            ("hpet", "false"),
            ("apic", "false"),
            ("viridian", "true"),
            ("viridian_time_ref_count", "true"),
            ("viridian_stimer", "1"),
            ("nested-virt", "true"),
        ];
        let platform = platform(&hvm_vm(&keys, "-3600")).unwrap();
        let expected = Platform {
            featureset: vec![0x0178_bfff, 1],
            nx: false,
            pae: false,
            nested_virt: true,
            generation_id: None,
            tsc: TscMode::Native,
            timer_mode: 0,
            apic: false,
            hpet: false,
            viridian: 1 | 1 << 2 | 1 << 8,
            time_offset: -3600,
        };
        assert_eq!(platform, expected);
    }

    #[test]
    fn no_enlightenment_without_the_base() {
        assert_eq!(platform(&vm(&[("viridian_stimer", "true"), ("viridian", "false")])).unwrap().viridian, 0);
    }

    #[test]
    fn the_offset_is_of_hvm_guests_and_has_two_places() {
        assert_eq!(platform(&vm(&[("timeoffset", "60")])).unwrap().time_offset, 0);
        assert_eq!(platform(&hvm_vm(&[("timeoffset", "60")], "")).unwrap().time_offset, 60);
        assert_eq!(platform(&hvm_vm(&[("timeoffset", "60")], "0")).unwrap().time_offset, 0);
    }

    #[test]
    fn a_bad_value_is_named() {
        for (key, value) in [
            ("featureset", "xyz"),
            ("nx", "maybe"),
            ("tsc_mode", "3"),
            ("timer_mode", "-1"),
            ("viridian", "yes"),
            ("nested-virt", "2"),
        ] {
            let error = platform(&vm(&[(key, value)])).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
        let error = platform(&hvm_vm(&[], "an hour")).unwrap_err().to_string();
        assert!(error.contains("an hour"), "{error}");
        for (key, value) in [("hap", "x"), ("vpmu", "x"), ("msr-relaxed", "x"), ("max_grant_frames", "0")] {
            let error = creation(&vm(&[(key, value)]), GuestKind::Pvh, &host()).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn a_host_that_cannot_says_so() {
        let refused = |vm: &Vm, kind, host: Physinfo| creation(vm, kind, &host).unwrap_err().to_string();
        let plain = vm(&[]);
        let none = refused(&plain, GuestKind::Pvh, Physinfo { hvm: false, ..host() });
        assert!(none.contains("hardware virtualisation"), "{none}");
        let none = refused(&plain, GuestKind::Pv, Physinfo { pv: false, ..host() });
        assert!(none.contains("PV guests"), "{none}");
        let off = vm(&[("hap", "false")]);
        let none = refused(&off, GuestKind::Hvm, host());
        assert!(none.contains("shadow"), "{none}");
        assert!(!creation(&off, GuestKind::Hvm, &Physinfo { shadow: true, ..host() }).unwrap().hap);
        let nested = vm(&[("hap", "false"), ("nested-virt", "true")]);
        let none = refused(&nested, GuestKind::Hvm, Physinfo { shadow: true, ..host() });
        assert!(none.contains("nested"), "{none}");
    }

    #[test]
    fn the_guest_finds_all_keys_and_the_daemons() {
        let keys = [("nx", "true"), ("vcpu/number", "99"), ("acpi_s4", "true"), ("kernel", "/boot/secret")];
        let mut vm = hvm_vm(&keys, "");
        vm.generation_id = Some("1:2".to_owned());
        let nodes = nodes(&vm).unwrap();
        for (key, value) in [
            ("nx", "true"),
            ("vcpu/number", "1"),
            ("generation-id", "1:2"),
            ("acpi", "1"),
            ("acpi_s3", "0"),
            ("acpi_s4", "1"),
            ("device-model", "qemu_xen"),
            ("mmio_hole_size", "268435456"),
        ] {
            assert_eq!(nodes.get(key).map(String::as_str), Some(value), "{key}");
        }
        assert_eq!(nodes.iter().filter(|(key, _)| *key == "vcpu/number").count(), 1);
        assert!(nodes.get("kernel").is_none(), "the path of a file of dom0's");
    }

    #[test]
    fn holes_and_generation_ids_are_checked() {
        assert_eq!(hole_size(&vm(&[("mmio_hole_size", "536870912")])).unwrap(), 512 << 20);
        for bad in ["1048576", "536870913", "4294967296", "x"] {
            let error = hole_size(&vm(&[("mmio_hole_size", bad)])).unwrap_err().to_string();
            assert!(error.contains("mmio_hole_size") && error.contains(bad), "{error}");
        }
        let with = |id: &str| generation_id(&Vm { generation_id: Some(id.to_owned()), ..vm(&[]) });
        assert_eq!(with("").unwrap(), None);
        for (good, numbers) in
            [("0:0", [0, 0]), ("18446744073709551615:1", [u64::MAX, 1]), ("-5:7", [u64::MAX - 4, 7])]
        {
            assert_eq!(with(good).unwrap(), Some(numbers), "{good}");
        }
        for bad in ["1", "1:", "a:b", "1:2:3", "18446744073709551616:0"] {
            assert!(with(bad).is_err(), "{bad}");
        }
        let off = HvmInfo { acpi: false, ..HvmInfo::default() };
        assert!(!acpi(&Vm { ty: BuilderInfo::Hvm(off), ..vm(&[]) }).unwrap());
        assert!(acpi(&hvm_vm(&[], "")).unwrap() && !acpi(&hvm_vm(&[("acpi", "0")], "")).unwrap());
    }
}
