//! Two guests and one disk.

use super::*;
use crate::api::{DeviceId, VbdMode};
use crate::ops::plan::{Device, Unplugging};

const SHARED: &str = "/srv/shared.img";

/// Stores a VM whose second disk is the shared one.
fn with_shared(rig: &Rig, number: u32, mode: VbdMode) -> String {
    let vm = rig.add(number, &[], |_| ());
    let mut disk: crate::api::Vbd = rig.core.records.device(&DeviceId::new(&*vm, "xvdb")).unwrap();
    (disk.mode, disk.backend) = (mode, Some(Disk::Local(SHARED.to_owned())));
    rig.core.records.put(&disk).unwrap();
    vm
}

fn refused(outcome: &Result<(), Error>) {
    let Err(Error::StorageBackendError { code, params }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(code, "DISK_IN_USE");
    assert!(params[0].contains("vbd 51728 of domain"), "{params:?}");
}

#[test]
fn a_disk_that_somebody_writes_to_is_nobody_elses() {
    use VbdMode::{ReadOnly, ReadWrite};
    for (first, second) in [(ReadWrite, ReadWrite), (ReadWrite, ReadOnly), (ReadOnly, ReadWrite)] {
        let mut rig = Rig::new(&quick());
        let (one, two) = (with_shared(&rig, 1, first), with_shared(&rig, 2, second));
        rig.start_connected(&one);
        let before = rig.remains(&two);
        refused(&rig.start(&two));
        rig.until_remains(&two, &before, "a start that is refused");
        // The next daemon knows as well.
        rig = rig.restart();
        let before = rig.remains(&two);
        refused(&rig.start(&two));
        rig.until_remains(&two, &before, "a start that is refused");
        rig.run(&one, Operation::Unplug(Device::Vbd("xvdb".to_owned()), Unplugging::Clean)).unwrap();
        rig.start(&two).unwrap();
        refused(&rig.run(&one, Operation::Plug(Device::Vbd("xvdb".to_owned()))));
        rig.run(&two, Operation::Shutdown(None)).unwrap();
        rig.run(&one, Operation::Plug(Device::Vbd("xvdb".to_owned()))).unwrap();
    }
}

#[test]
fn many_may_read_one_disk() {
    let rig = Rig::new(&quick());
    for number in 1..4 {
        let vm = with_shared(&rig, number, VbdMode::ReadOnly);
        rig.start(&vm).unwrap();
    }
}

#[test]
fn of_two_that_start_at_once_one_gets_the_disk() {
    let rig = Rig::new(&quick());
    let vms = [1, 2, 3].map(|number| with_shared(&rig, number, VbdMode::ReadWrite));
    let (done, outcomes) = bounded(vms.len());
    for vm in &vms {
        let done = done.clone();
        rig.core.submit_then(vm, "test", Operation::Start, move |result| done.send(result).unwrap());
    }
    let started = vms.iter().filter(|_| outcomes.recv_timeout(LONG).unwrap().is_ok()).count();
    assert_eq!(started, 1);
}

/// What `xl` plugs is in the store only.
#[test]
fn another_toolstacks_disk_is_respected() {
    use xenstore::Operations;
    let rig = Rig::new(&quick());
    let (one, two) = (with_shared(&rig, 1, VbdMode::ReadOnly), with_shared(&rig, 2, VbdMode::ReadWrite));
    rig.start(&one).unwrap();
    let domid = rig.domid(&one).unwrap();
    // The same disk as a domain's that this daemon does not know.
    let mut store = rig.machine.store.client(xenstore::DomId::DOM0);
    let ours = format!("/local/domain/0/backend/vbd/{domid}/51728");
    let number =
        store.read(&xenstore::Path::new(&format!("{ours}/physical-device")).unwrap()).unwrap().unwrap();
    for (name, value) in [("physical-device", number), ("mode", b"r".to_vec())] {
        let node = format!("/local/domain/0/backend/vbd/700/51728/{name}");
        store.write(&xenstore::Path::new(&node).unwrap(), value).unwrap();
    }
    rig.run(&one, Operation::Shutdown(None)).unwrap();
    let outcome = rig.start(&two);
    refused(&outcome);
    assert!(outcome.unwrap_err().to_string().contains("domain 700"));
}
