//! Records and scripts for unit tests.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::api::{
    Action, Boot, BuilderInfo, DeviceId, Dict, DirectBoot, PvInfo, SchedulerParams, Vbd, Vif, Vm,
};

pub(crate) fn test_vm(id: &str, name: &str) -> Vm {
    let boot = Boot::Direct(DirectBoot {
        kernel: "/boot/vmlinux".to_owned(),
        cmdline: "console=hvc0".to_owned(),
        ramdisk: None,
    });
    let pv = PvInfo {
        boot,
        framebuffer: false,
        framebuffer_ip: None,
        vncterm: false,
        vncterm_ip: None,
        pci_passthrough: false,
    };
    Vm {
        id: id.to_owned(),
        name: name.to_owned(),
        ssidref: 0,
        xsdata: Dict(vec![("vm-data/hello".to_owned(), "world".to_owned())]),
        platformdata: Dict::new(),
        bios_strings: Dict::new(),
        ty: BuilderInfo::Pv(pv),
        suppress_spurious_page_faults: false,
        machine_address_size: None,
        memory_static_max: 256 << 20,
        memory_dynamic_max: 256 << 20,
        memory_dynamic_min: 256 << 20,
        vcpu_max: 1,
        vcpus: 1,
        scheduler_params: SchedulerParams { priority: None, affinity: Vec::new() },
        on_crash: vec![Action::Start],
        on_shutdown: vec![Action::Shutdown],
        on_reboot: vec![Action::Start],
        on_softreboot: vec![Action::Softreboot],
        pci_msitranslate: true,
        pci_power_mgmt: false,
        has_vendor_device: false,
        generation_id: None,
    }
}

pub(crate) fn test_vbd(vm: &str, name: &str) -> Vbd {
    Vbd { id: DeviceId::new(vm, name), ..Vbd::default() }
}

pub(crate) fn test_vif(vm: &str, name: &str) -> Vif {
    Vif { id: DeviceId::new(vm, name), ..Vif::default() }
}

/// An executable script. Another process writes it: a child that is started at that moment, by another test, would inherit
/// a descriptor of ours, and Linux runs no file that somebody has open for writing.
pub(crate) fn test_script(path: &Path, text: &str) {
    let mut writer = Command::new("install")
        .args(["-D", "-m", "755", "/dev/stdin"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("install of coreutils");
    let pipe = writer.stdin.take();
    pipe.expect("a pipe").write_all(format!("#!/bin/sh\n{text}\n").as_bytes()).expect("the pipe takes it");
    assert!(writer.wait().expect("install ends").success(), "{}", path.display());
}
