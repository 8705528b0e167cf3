use super::*;
use crate::api::{BuilderInfo, HvmInfo, Pci, PciAddress, Vbd, Vgpu, Vif, Vusb};

const ID: &str = "11111111-2222-3333-4444-555555555555";

fn records() -> (tempfile::TempDir, Records) {
    let dir = tempfile::tempdir().unwrap();
    let records = Records::open(dir.path()).unwrap();
    (dir, records)
}

fn vm() -> Vm {
    crate::test_vm(ID, "demo")
}

fn vbd(name: &str) -> Vbd {
    let mut vbd = crate::test_vbd(ID, name);
    vbd.position = Some(name.parse().unwrap());
    vbd
}

#[test]
fn records_survive_a_new_process() {
    let (dir, records) = records();
    records.put_vm(&vm()).unwrap();
    records.put(&vbd("xvdb")).unwrap();
    records.put(&vbd("xvda")).unwrap();
    let again = Records::open(dir.path()).unwrap();
    assert_eq!(again.vm(ID).unwrap(), vm());
    assert_eq!(again.devices::<Vbd>(ID).unwrap(), [vbd("xvda"), vbd("xvdb")]);
    again.remove_vm(ID).unwrap();
    assert!(!dir.path().join("VM").join(ID).exists());
}

#[test]
fn devices_need_their_vm() {
    let (_dir, records) = records();
    assert_eq!(records.put(&vbd("xvda")), Err(Error::does_not_exist("VM", ID)));
}

#[test]
fn ids_that_are_paths_are_refused() {
    let (dir, records) = records();
    for id in ["../../etc", "", "11111111-2222-3333-4444-55555555555/", &ID.to_uppercase().replace('1', "A")]
    {
        let vm = Vm { id: id.to_owned(), ..vm() };
        assert!(matches!(records.put_vm(&vm), Err(Error::InternalError(_))), "{id:?}");
    }
    records.put_vm(&vm()).unwrap();
    for name in ["../x", "", "a/b", "é"] {
        let vbd = Vbd { id: DeviceId::new(ID, name), ..vbd("xvda") };
        assert!(matches!(records.put(&vbd), Err(Error::InternalError(_))), "{name:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_truncated_record_harms_no_other_vm() {
    let (dir, records) = records();
    records.put_vm(&vm()).unwrap();
    let other = "11111111-2222-3333-4444-666666666666";
    records.put_vm(&crate::test_vm(other, "other")).unwrap();
    let path = dir.path().join("VM").join(ID).join(CONFIG);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text[..text.len() / 2]).unwrap();
    assert!(matches!(records.vm(ID), Err(Error::InternalError(_))));
    assert_eq!(records.vms().unwrap().len(), 1);
}

#[test]
fn a_half_written_file_is_not_a_record() {
    let (dir, records) = records();
    records.put_vm(&vm()).unwrap();
    std::fs::write(dir.path().join("VM").join(ID).join("vbd.xvda.tmp"), "{").unwrap();
    assert_eq!(records.devices::<Vbd>(ID).unwrap(), []);
}

#[test]
fn a_refusing_disk_is_a_clear_error() {
    let (dir, records) = records();
    // A file where the directory should be refuses writes even to root.
    std::fs::write(dir.path().join("VM"), "").unwrap();
    let Err(Error::InternalError(text)) = records.put_vm(&vm()) else { panic!("written into a file") };
    assert!(text.contains("cannot create") && text.contains("writable"), "{text}");
}

#[test]
fn each_class_has_its_place() {
    let (dir, records) = records();
    records.put_vm(&vm()).unwrap();
    let address = PciAddress { bus: 4, ..PciAddress::ZERO };
    let pci = Pci {
        id: DeviceId::new(ID, "0000:04:00.0"),
        position: 0,
        address,
        msitranslate: None,
        power_mgmt: None,
    };
    let vusb = Vusb {
        id: DeviceId::new(ID, "vusb1-2"),
        hostbus: "1".to_owned(),
        hostport: "2".to_owned(),
        version: "2.00".to_owned(),
        path: "/dev/bus/usb/001/002".to_owned(),
        speed: 480.0,
    };
    records.put(&vbd("xvda")).unwrap();
    records.put(&crate::test_vif(ID, "0")).unwrap();
    records.put(&pci).unwrap();
    records.put(&Vgpu { id: DeviceId::new(ID, "0"), ..Vgpu::default() }).unwrap();
    records.put(&vusb).unwrap();
    records.update_extra(ID, |extra| extra.last_start_time = 1.5).unwrap();
    for file in ["config", "vbd.xvda", "vif.0", "vgpu.0", "vusb.vusb1-2"] {
        assert!(dir.path().join("VM").join(ID).join(file).is_file(), "{file}");
    }
    assert!(dir.path().join("PCI").join(ID).join("pci.0000:04:00.0").is_file());
    assert!(dir.path().join("extra").join(ID).is_file());
    assert_eq!(records.devices::<Pci>(ID).unwrap(), [pci]);
    assert_eq!(records.objects(ID).len(), 6);
    records.remove::<Vif>(&DeviceId::new(ID, "0")).unwrap();
    assert_eq!(
        records.remove::<Vif>(&DeviceId::new(ID, "0")),
        Err(Error::does_not_exist("VIF", format!("VM/{ID}/vif.0")))
    );
    // A file left half written when the daemon was killed goes too.
    std::fs::write(dir.path().join("VM").join(ID).join("vbd.xvdz.tmp"), "{").unwrap();
    records.remove_vm(ID).unwrap();
    for tree in ["VM", "PCI", "extra"] {
        assert_eq!(std::fs::read_dir(dir.path().join(tree)).unwrap().count(), 0, "{tree}");
    }
}

#[test]
fn a_damaged_device_is_an_error_that_names_its_file_and_can_be_replaced_or_removed() {
    let (dir, records) = records();
    records.put_vm(&vm()).unwrap();
    records.put(&vbd("xvda")).unwrap();
    records.put(&vbd("xvdb")).unwrap();
    let file = dir.path().join("VM").join(ID).join("vbd.xvda");
    std::fs::write(&file, "{\"id\":").unwrap();
    let error = records.devices::<Vbd>(ID).unwrap_err().to_string();
    assert!(error.contains(&file.display().to_string()), "{error}");
    assert!(records.device::<Vbd>(&DeviceId::new(ID, "xvdb")).is_ok());
    assert_eq!(records.objects(ID).len(), 3);
    records.put(&vbd("xvda")).unwrap();
    assert_eq!(records.devices::<Vbd>(ID).unwrap().len(), 2);
    std::fs::write(&file, "").unwrap();
    records.remove::<Vbd>(&DeviceId::new(ID, "xvda")).unwrap();
    assert_eq!(records.devices::<Vbd>(ID).unwrap(), [vbd("xvdb")]);
}

#[test]
fn what_is_remembered_survives_and_travels() {
    let (dir, records) = records();
    assert_eq!(records.extra(ID).unwrap(), VmExtra::default());
    assert_eq!(records.export_extra(ID).unwrap(), None);
    let peers = r#"{"version":2,"suspend_memory_bytes":4096,"qemu_vbds":[[["a","b"],[0,["Name","ide0"]]]],
        "ty":["HVM",{"hap":false,"novel":1}]}"#;
    records.import_extra(ID, peers).unwrap();
    records.update_extra(ID, |extra| extra.last_start_time = 12.5).unwrap();
    let again = Records::open(dir.path()).unwrap();
    let extra = again.extra(ID).unwrap();
    assert!(extra.is_suspended());
    assert_eq!(extra.ty, Some(BuilderInfo::Hvm(HvmInfo { hap: false, ..HvmInfo::default() })));
    assert_eq!((extra.version, extra.last_start_time), (2, 12.5));
    let exported = again.export_extra(ID).unwrap().unwrap();
    for kept in [r#""qemu_vbds":[[["a","b"],[0,["Name","ide0"]]]]"#, r#""novel":1"#, "12.5"] {
        assert!(exported.contains(kept), "{kept} in {exported}");
    }
    again.update_extra(ID, |extra| extra.suspend_memory_bytes = 0).unwrap();
    assert!(!again.extra(ID).unwrap().is_suspended());
}

#[test]
fn private_state_that_cannot_be_read_is_an_error_and_changes_nothing() {
    let (dir, records) = records();
    assert!(records.import_extra(ID, "[1,").is_err());
    assert!(records.import_extra(ID, "[]").is_err());
    records.update_extra(ID, |extra| extra.version = 2).unwrap();
    let file = dir.path().join("extra").join(ID);
    std::fs::write(&file, "{\"persist").unwrap();
    let error = records.update_extra(ID, |extra| extra.version = 1).unwrap_err().to_string();
    assert!(error.contains(&file.display().to_string()), "{error}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"persist");
}

#[test]
fn interfaces_are_found_by_name() {
    let (_dir, records) = records();
    let interface = Interface { name: "vif3.0".to_owned(), vif: DeviceId::new(ID, "0") };
    records.put_interface(&interface).unwrap();
    assert_eq!(records.interface("vif3.0").unwrap(), Some(interface));
    assert_eq!(records.interfaces().unwrap(), ["vif3.0"]);
    records.remove_interface("vif3.0").unwrap();
    records.remove_interface("vif3.0").unwrap();
    assert_eq!(records.interface("vif3.0").unwrap(), None);
}

#[test]
fn a_record_that_the_kernel_does_not_read_harms_no_other_vm() {
    let (dir, records) = records();
    records.put_vm(&vm()).unwrap();
    let other = "11111111-2222-3333-4444-666666666666";
    records.put_vm(&crate::test_vm(other, "other")).unwrap();
    let path = dir.path().join("VM").join(ID).join(CONFIG);
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let error = records.vm(ID).unwrap_err().to_string();
    assert!(error.contains("cannot read") && error.contains(&path.display().to_string()), "{error}");
    assert_eq!(records.vms().unwrap().len(), 1);
}

#[test]
fn a_database_that_was_removed_is_said_to_be_gone_and_not_made_again() {
    let (dir, records) = records();
    records.put_vm(&vm()).unwrap();
    let root = dir.path().to_owned();
    std::fs::remove_dir_all(&root).unwrap();
    for error in [
        records.vm(ID).map(drop),
        records.need_vm(ID),
        records.vms().map(drop),
        records.extra(ID).map(drop),
        records.devices::<Vbd>(ID).map(drop),
        records.put_vm(&vm()),
    ] {
        let text = error.unwrap_err().to_string();
        assert!(text.contains("cannot") && text.contains(&root.display().to_string()), "{text}");
    }
    assert!(!root.exists());
}

#[test]
fn changes_of_many_vms_at_once_are_all_kept() {
    let (dir, records) = records();
    let id = |n: u32| format!("{n:08x}-2222-3333-4444-555555555555");
    std::thread::scope(|scope| {
        for start in 0..4 {
            let records = &records;
            scope.spawn(move || {
                for n in (start..40).step_by(4) {
                    records.put_vm(&crate::test_vm(&id(n), "x")).unwrap();
                    records.update_extra(&id(n), |extra| extra.last_start_time = 1.0).unwrap();
                    if n % 8 < 4 {
                        records.remove_vm(&id(n)).unwrap();
                    }
                }
            });
        }
    });
    let again = Records::open(dir.path()).unwrap();
    assert_eq!(again.vms().unwrap().len(), 20);
    assert_eq!(again.vms.load(Ordering::Relaxed), records.vms.load(Ordering::Relaxed));
}
