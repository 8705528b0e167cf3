//! Metadata out of one daemon and into another.

use super::*;
use crate::api::{DeviceId, Metadata, Vbd, Vgpu, VgpuImplementation, Vif};
use crate::domain::metadata::{export, parse, state_string};
use crate::rpc::json;
use crate::state::VmExtra;
use xenstore::Operations;

fn import(rig: &Rig, text: &str) -> Result<(), Error> {
    let metadata = parse(text)?;
    rig.run(&metadata.vm.id.clone(), Operation::ImportMetadata(Box::new(metadata)))
}

#[test]
fn a_vm_moves_with_its_devices_and_what_is_remembered() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.core.records.update_extra(&vm, |extra| extra.suspend_memory_bytes = 4096).unwrap();
    let text = export(&rig.core, &vm).unwrap();
    let peer = Rig::new(&quick());
    import(&peer, &text).unwrap();
    assert_eq!(peer.core.records.vm(&vm).unwrap(), rig.core.records.vm(&vm).unwrap());
    assert_eq!(peer.core.records.devices::<Vbd>(&vm).unwrap().len(), 2);
    assert!(peer.core.records.extra(&vm).unwrap().is_suspended());
    assert_eq!(export(&peer.core, &vm).unwrap(), text);
}

#[test]
fn devices_that_are_not_in_the_metadata_are_forgotten_unless_they_are_plugged() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let text = export(&rig.core, &vm).unwrap();
    let mut metadata = parse(&text).unwrap();
    metadata.vbds.truncate(1);
    metadata.vifs.clear();
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::ImportMetadata(Box::new(metadata.clone()))).unwrap();
    assert_eq!(rig.core.records.devices::<Vbd>(&vm).unwrap().len(), 2);
    assert_eq!(rig.core.records.devices::<Vif>(&vm).unwrap().len(), 1);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    // Not even one that cannot be read.
    let damaged = rig.core.records.root().join("VM").join(&vm).join("vif.7");
    std::fs::write(&damaged, "{").unwrap();
    rig.run(&vm, Operation::ImportMetadata(Box::new(metadata.clone()))).unwrap();
    assert_eq!(rig.core.records.devices::<Vbd>(&vm).unwrap(), metadata.vbds);
    assert_eq!(rig.core.records.devices::<Vif>(&vm).unwrap(), []);
}

#[test]
fn devices_become_the_vm_s_and_older_peers_are_understood() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let mut metadata = parse(&export(&rig.core, &vm).unwrap()).unwrap();
    metadata.vbds[0].id = DeviceId::new("another", "hda");
    let gvt = r#"{"id":["x","0"],"implementation":["GVT_g",{"physical_pci_address":{"domain":0,"bus":2,"dev":0,"fn":1},
        "low_gm_sz":1,"high_gm_sz":1,"fence_sz":1}]}"#;
    let text = json::print_lossy(&crate::api::value::ToValue::to_value(&metadata));
    let text = text.replacen(r#""vgpus":[]"#, &format!(r#""vgpus":[{gvt}]"#), 1);
    let parsed: Metadata = parse(&text).unwrap();
    assert_eq!(parsed.vbds[0].id, DeviceId::new(&vm, "xvda"));
    let [Vgpu { id, physical_pci_address, implementation, .. }] = &parsed.vgpus[..] else { panic!() };
    assert_eq!(
        (id.vm.as_str(), physical_pci_address.bus, physical_pci_address.function),
        (vm.as_str(), 2, 1)
    );
    assert!(matches!(implementation, VgpuImplementation::GvtG(_)));
}

#[test]
fn metadata_that_cannot_be_made_out_changes_nothing() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    let text = export(&rig.core, &vm).unwrap();
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for (bad, says) in [
        ("", "JSON"),
        ("{}", "vm"),
        (deep.as_str(), "JSON"),
        (&text.replacen(r#""vbds":["#, r#""vbds":[7,"#, 1), "vbds"),
        (&text.replacen(r#","xvda"]"#, r#","../xvda"]"#, 1), "name"),
        (&text.replace(&vm, "../../etc"), "UUID"),
    ] {
        let error = import(&rig, bad).unwrap_err().to_string();
        assert!(error.contains(says) && error.len() < 2000, "{says}: {error}");
        assert_eq!(rig.core.records.devices::<Vbd>(&vm).unwrap().len(), 2, "{says}");
    }
    assert_eq!(export(&rig.core, &vm).unwrap(), text);
}

#[test]
fn a_state_string_is_private_state() {
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| vm.platformdata.0.push(("nomigrate".to_owned(), "true".to_owned())));
    let record = rig.core.records.vm(&vm).unwrap();
    rig.core.records.import_extra(&vm, &state_string(&record)).unwrap();
    let expected = VmExtra { version: 2, ty: Some(record.ty), nomigrate: true, ..VmExtra::default() };
    let remembered = rig.core.records.extra(&vm).unwrap();
    assert_eq!((remembered.ty, remembered.nomigrate), (expected.ty, expected.nomigrate));
}

#[test]
fn guest_agents_are_told_what_they_may_do() {
    use crate::api::{Dict, GuestAgentFeature};
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |_| ());
    rig.start(&vm).unwrap();
    let domid = xenstore::DomId(rig.domid(&vm).unwrap().get());
    let feature = |name: &str, key: &str| GuestAgentFeature {
        name: name.to_owned(),
        licensed: true,
        parameters: Dict(vec![(key.to_owned(), "1".to_owned())]),
    };
    let set =
        |features: &[GuestAgentFeature]| crate::hostinfo::update_guest_agent_features(&rig.core, features);
    set(&[feature("auto_update", "enabled"), feature("old", "x")]).unwrap();
    set(&[feature("auto_update", "enabled")]).unwrap();
    let path = |text: &str| xenstore::Path::new(text).unwrap();
    let mut guest = rig.machine.store.client(domid);
    let read = |guest: &mut xenstore::Client, at: &str| guest.read(&path(at)).unwrap();
    assert_eq!(read(&mut guest, "/guest_agent_features/auto_update/parameters/enabled").unwrap(), b"1");
    assert_eq!(read(&mut guest, "/guest_agent_features/auto_update/licensed").unwrap(), b"1");
    assert_eq!(read(&mut guest, "/guest_agent_features/old"), None);
    for bad in ["", "a/b", "/x", "é", "a b"] {
        assert!(set(&[feature(bad, "x")]).is_err(), "{bad:?}");
        assert!(set(&[feature("x", bad)]).is_err(), "{bad:?}");
    }
    assert!(set(&vec![feature("x", "y"); 300]).is_err());
    assert_eq!(read(&mut guest, "/guest_agent_features/auto_update/licensed").unwrap(), b"1");
}
