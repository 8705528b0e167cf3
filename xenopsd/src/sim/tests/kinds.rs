//! Guests of every kind.

use super::*;
use crate::api::{DeviceId, GvtG, HvmInfo, Pci, PciAddress, PvInfo, Vgpu, VgpuImplementation, Vusb};
use crate::ops::plan::{Device, Unplugging};

fn as_kind(kind: fn(PvInfo) -> BuilderInfo) -> impl FnOnce(&mut Vm) {
    move |vm| {
        let BuilderInfo::Pv(info) = &vm.ty else { unreachable!() };
        vm.ty = kind(info.clone());
    }
}

fn refused(rig: &Rig, vm: &str, part: &str) {
    let error = rig.run(vm, Operation::Start).unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
    assert_eq!(rig.state(vm), PowerState::Halted);
}

/// The whole life of a guest, in a suspend image included; a PVH guest's differs in nothing that a client sees.
#[test]
fn pvh_guests_and_pv_guests_in_the_shim_live_as_pv_guests_do() {
    for (number, kind) in [(1, BuilderInfo::Pvh as fn(PvInfo) -> BuilderInfo), (2, BuilderInfo::PvInPvh)] {
        let rig = Rig::new(&quick());
        let vm = rig.add(number, &[], as_kind(kind));
        rig.run(&vm, Operation::Start).unwrap();
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        let before = rig.remains(&vm);
        rig.start(&vm).unwrap();
        let domain = rig.core.domain_of(&vm).unwrap().unwrap();
        assert!(domain.hvm);
        // 64 MiB, and for the shim 23.
        let mib = if number == 1 { 64 } else { 64 + 23 };
        assert_eq!(domain.tot_pages, mib * 256);
        let disk = Device::Vbd("xvda".to_owned());
        rig.run(&vm, Operation::Unplug(disk.clone(), Unplugging::Clean)).unwrap();
        rig.run(&vm, Operation::Plug(disk)).unwrap();
        let image = Disk::Local(rig.directory.path().join("image").display().to_string());
        rig.run(&vm, Operation::Suspend(image.clone())).unwrap();
        assert_eq!(rig.state(&vm), PowerState::Suspended);
        rig.run(&vm, Operation::Resume(image)).unwrap();
        rig.run(&vm, Operation::Unpause).unwrap();
        let again = rig.core.domain_of(&vm).unwrap().unwrap();
        assert_eq!((again.hvm, again.tot_pages), (true, domain.tot_pages));
        rig.run(&vm, Operation::Reboot(Some(LONG))).unwrap();
        rig.run(&vm, Operation::Shutdown(Some(LONG))).unwrap();
        rig.until_remains(&vm, &before, "the life of a guest");
    }
}

#[test]
fn a_host_without_hardware_virtualisation_says_so() {
    let rig = Rig::new(&SimOptions { hvm: false, ..quick() });
    let pv = rig.add(1, &[], |_| ());
    rig.start(&pv).unwrap();
    rig.run(&pv, Operation::Shutdown(None)).unwrap();
    let as_hvm: fn(PvInfo) -> BuilderInfo = |_| BuilderInfo::Hvm(HvmInfo::default());
    for (number, kind) in
        [(2, BuilderInfo::Pvh as fn(PvInfo) -> BuilderInfo), (3, BuilderInfo::PvInPvh), (4, as_hvm)]
    {
        let vm = rig.add(number, &[], as_kind(kind));
        let before = rig.remains(&vm);
        refused(&rig, &vm, "hardware virtualisation");
        rig.until_remains(&vm, &before, "a refused start");
    }
}

#[test]
fn a_shim_or_firmware_that_cannot_be_opened_is_named_and_nothing_is_taken() {
    let as_hvm: fn(PvInfo) -> BuilderInfo = |_| BuilderInfo::Hvm(HvmInfo::default());
    // The shim; hvmloader, and what it starts.
    for (kind, files) in [(BuilderInfo::PvInPvh as fn(PvInfo) -> BuilderInfo, 1), (as_hvm, 2)] {
        for nth in 0..files {
            let rig = Rig::new(&quick());
            let vm = rig.add(1, &[], as_kind(kind));
            let before = rig.remains(&vm);
            let site = Some("host.open_firmware".to_owned());
            rig.machine.faults.arm(Fault::Nth { site, nth, when: crate::sim::When::Before });
            rig.machine.faults.record();
            refused(&rig, &vm, "host.open_firmware");
            let calls = rig.machine.faults.recorded();
            assert!(!calls.iter().any(|call| call == "hypervisor.create"), "{calls:?}");
            rig.until_remains(&vm, &before, "a refused start");
            rig.machine.faults.disarm();
            rig.start(&vm).unwrap();
        }
    }
}

/// Neither silently without the device, nor with anything left behind.
#[test]
fn a_vm_with_a_device_of_the_host_s_is_not_started_without_it() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let before = rig.remains(&vm);
    let id = |name: &str| DeviceId::new(&*vm, name);
    let address = PciAddress { bus: 3, ..PciAddress::ZERO };
    let pci = Pci { id: id("0000:03:00.0"), position: 0, address, msitranslate: None, power_mgmt: None };
    let gvt = GvtG {
        physical_pci_address: None,
        low_gm_sz: 0,
        high_gm_sz: 0,
        fence_sz: 0,
        monitor_config_file: None,
    };
    let vgpu = Vgpu { id: id("0"), implementation: VgpuImplementation::GvtG(gvt), ..Vgpu::default() };
    let vusb = Vusb {
        id: id("vusb1-2"),
        hostbus: "1".to_owned(),
        hostport: "1.2".to_owned(),
        version: "2.00".to_owned(),
        path: "/sys".to_owned(),
        speed: 480.0,
    };
    rig.core.records.put(&pci).unwrap();
    refused(&rig, &vm, "no IOMMU");
    rig.core.records.remove::<Pci>(&pci.id).unwrap();
    rig.core.records.put(&vgpu).unwrap();
    refused(&rig, &vm, "virtual GPU");
    rig.core.records.put(&Vgpu { implementation: VgpuImplementation::Empty, ..vgpu }).unwrap();
    rig.core.records.put(&vusb).unwrap();
    refused(&rig, &vm, "port 1.2 of bus 1");
    rig.core.records.remove::<Vusb>(&vusb.id).unwrap();
    rig.until_remains(&vm, &before, "refused starts");

    // A virtual GPU that is none is in nobody's way; an image is not resumed without the device either, and is kept.
    rig.start(&vm).unwrap();
    let image = Disk::Local(rig.directory.path().join("image").display().to_string());
    rig.run(&vm, Operation::Suspend(image.clone())).unwrap();
    rig.core.records.put(&pci).unwrap();
    let error = rig.run(&vm, Operation::Resume(image.clone())).unwrap_err().to_string();
    assert!(error.contains("no IOMMU"), "{error}");
    assert_eq!(rig.state(&vm), PowerState::Suspended);
    rig.core.records.remove::<Pci>(&pci.id).unwrap();
    rig.run(&vm, Operation::Resume(image)).unwrap();
}
