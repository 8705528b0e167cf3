use super::*;

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
    records.put_vbd(&vbd("xvdb")).unwrap();
    records.put_vbd(&vbd("xvda")).unwrap();
    let again = Records::open(dir.path()).unwrap();
    assert_eq!(again.vm(ID).unwrap(), vm());
    assert_eq!(again.vbds(ID).unwrap(), [vbd("xvda"), vbd("xvdb")]);
    again.remove_vm(ID).unwrap();
    assert!(!dir.path().join("VM").join(ID).exists());
}

#[test]
fn devices_need_their_vm() {
    let (_dir, records) = records();
    assert_eq!(records.put_vbd(&vbd("xvda")), Err(Error::does_not_exist("VM", ID)));
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
        assert!(matches!(records.put_vbd(&vbd), Err(Error::InternalError(_))), "{name:?}");
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
    assert_eq!(records.vbds(ID).unwrap(), []);
}

#[test]
fn a_refusing_disk_is_a_clear_error() {
    let (dir, records) = records();
    // A file where the directory should be refuses writes even to root.
    std::fs::write(dir.path().join("VM"), "").unwrap();
    let Err(Error::InternalError(text)) = records.put_vm(&vm()) else { panic!("written into a file") };
    assert!(text.contains("cannot create") && text.contains("writable"), "{text}");
}
