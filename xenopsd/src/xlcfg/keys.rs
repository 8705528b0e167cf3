//! The keys of the format that have no effect here, and guesses for those nobody knows.

/// Keys that are read, in `reader.rs`.
pub(super) const SUPPORTED: &[&str] = &[
    "acpi",
    "acpi_s3",
    "acpi_s4",
    "apic",
    "bios",
    "boot",
    "bootloader",
    "bootloader_args",
    "builder",
    "cap",
    "cmdline",
    "cpu_weight",
    "cpus",
    "disk",
    "extra",
    "firmware",
    "hap",
    "hdtype",
    "hpet",
    "kernel",
    "keymap",
    "max_grant_frames",
    "maxmem",
    "maxvcpus",
    "memory",
    "mmio_hole",
    "ms_vm_genid",
    "msr_relaxed",
    "name",
    "nestedhvm",
    "nomigrate",
    "on_crash",
    "on_poweroff",
    "on_reboot",
    "on_soft_reset",
    "on_watchdog",
    "pae",
    "pvshim",
    "ramdisk",
    "root",
    "rtc_timeoffset",
    "serial",
    "shadow_memory",
    "stdvga",
    "timer_mode",
    "tsc_mode",
    "type",
    "uuid",
    "vcpus",
    "vga",
    "videoram",
    "vfb",
    "vif",
    "viridian",
    "vnc",
    "vnclisten",
    "vpmu",
];

/// Keys of xl.cfg(5) that are known and have no effect here.
pub(super) const UNSUPPORTED: &[&str] = &[
    "acpi_firmware",
    "acpi_laptop_slate",
    "altp2m",
    "altp2mhvm",
    "bios_path_override",
    "channel",
    "claim_mode",
    "cpuid",
    "cpus_soft",
    "device_model_args",
    "device_model_args_hvm",
    "device_model_args_pv",
    "device_model_override",
    "device_model_stubdomain_override",
    "device_model_stubdomain_seclabel",
    "device_model_user",
    "device_model_version",
    "device_tree",
    "dm_restrict",
    "driver_domain",
    "dtdev",
    "e820_host",
    "event_channels",
    "gfx_passthru",
    "gic_version",
    "init_seclabel",
    "iomem",
    "ioports",
    "irqs",
    "localtime",
    "max_event_channels",
    "max_grant_version",
    "max_maptrack_frames",
    "mca_caps",
    "nographic",
    "opengl",
    "p9",
    "passthrough",
    "pci",
    "pci_msitranslate",
    "pci_permissive",
    "pci_power_mgmt",
    "pci_seize",
    "pool",
    "pvcalls",
    "pvshim_cmdline",
    "pvshim_extra",
    "pvshim_path",
    "rdm",
    "rdm_mem_boundary",
    "sdl",
    "seclabel",
    "smbios_firmware",
    "soundhw",
    "spice",
    "spice_clipboard_sharing",
    "spice_image_compression",
    "spice_streaming_video",
    "spiceagent_mouse",
    "spiceclipboard_sharing",
    "spicedisable_ticketing",
    "spicehost",
    "spicepasswd",
    "spiceport",
    "spicetls_port",
    "spiceusbredirection",
    "spicevdagent",
    "stubdomain_cmdline",
    "stubdomain_kernel",
    "stubdomain_memory",
    "stubdomain_ramdisk",
    "suppress_spurious_page_faults",
    "system_firmware",
    "tee",
    "usb",
    "usbctrl",
    "usbdev",
    "usbdevice",
    "usbversion",
    "vdispl",
    "vendor_device",
    "vkb",
    "vkb_device",
    "vmtrace_buf_kb",
    "vncdisplay",
    "vncpasswd",
    "vncunused",
    "vnuma",
    "vpt_align",
    "vscsi",
    "vsnd",
    "vtpm",
    "vuart",
    "xauthority",
    "xen_platform_pci",
    "xend_suspend_evtchn_compat",
];

/// Farthest a guess may be from what was written, in single-letter changes.
const GUESS_DISTANCE_MAX: usize = 2;

/// Longest key for which a guess is worth the work.
const GUESS_KEY_MAX: usize = 40;

/// The supported key that looks most like `key`.
pub(super) fn guess(key: &str) -> Option<&'static str> {
    if key.len() > GUESS_KEY_MAX {
        return None;
    }
    let nearest = SUPPORTED.iter().map(|known| (distance(key, known), *known)).min()?;
    // A guess that changes most of a short key is no help.
    (nearest.0 <= GUESS_DISTANCE_MAX && nearest.0 * 2 < key.len()).then_some(nearest.1)
}

/// Edit distance (insert, delete, replace, each 1).
fn distance(left: &str, right: &str) -> usize {
    let right = right.as_bytes();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, byte) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(byte != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guesses_are_near_or_none() {
        assert_eq!(guess("memmory"), Some("memory"));
        assert_eq!(guess("on_power_off"), Some("on_poweroff"));
        assert_eq!(guess("disks"), Some("disk"));
        assert_eq!(guess("xyz"), None);
        assert_eq!(guess(&"m".repeat(1000)), None);
    }

    #[test]
    fn no_key_is_in_both_lists() {
        assert!(SUPPORTED.iter().all(|key| !UNSUPPORTED.contains(key)));
    }
}
