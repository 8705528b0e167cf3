use super::*;

const NEW: NewDomain = NewDomain::new(GuestKind::Pv, [7; 16], 2);

fn domid(id: u16) -> DomId {
    DomId::new(id).unwrap()
}

#[test]
fn numbers_go_up_and_come_round() {
    let mut hardware = Hardware::new(4096, 2, true);
    assert_eq!(hardware.create(&NEW).unwrap(), domid(1));
    assert!(hardware.destroy(domid(1)));
    hardware.bury(domid(1));
    assert_eq!(hardware.create(&NEW).unwrap(), domid(2));
    hardware.last = DomId::MAX;
    assert_eq!(hardware.create(&NEW).unwrap(), domid(1));
    assert_eq!(hardware.create(&NEW).unwrap(), domid(3));
}

#[test]
fn containers_need_the_hardware() {
    let pvh = NewDomain { kind: GuestKind::Pvh, hap: true, ..NEW };
    assert!(Hardware::new(2048, 2, false).create(&pvh).is_err());
    let mut hardware = Hardware::new(2048, 2, true);
    let id = hardware.create(&pvh).unwrap();
    assert!(hardware.must_be(id, GuestKind::Pvh).is_ok());
    assert!(hardware.must_be(id, GuestKind::Hvm).is_err());
    for bad in [
        NewDomain { nested_virt: true, ..NEW },
        NewDomain { hap: true, ..NEW },
        NewDomain { nested_virt: true, hap: false, ..pvh },
    ] {
        assert!(hardware.create(&bad).is_err(), "{bad:?}");
    }
}

#[test]
fn memory_is_taken_and_given_back() {
    let mut hardware = Hardware::new(2048, 2, true);
    let free = hardware.free_pages();
    let id = hardware.create(&NEW).unwrap();
    assert!(matches!(hardware.build(id, free + 1, 0), Err(HypervisorError::Memory(_))));
    hardware.build(id, free, 0).unwrap();
    assert_eq!(hardware.free_pages(), 0);
    assert!(hardware.build(id, 1, 0).is_err());
    hardware.destroy(id);
    assert_eq!(hardware.free_pages(), free);
}

#[test]
fn balloons_stay_within_the_limit_and_what_is_free() {
    let mut hardware = Hardware::new(2048, 2, true);
    let free = hardware.free_pages();
    let (id, other) = (hardware.create(&NEW).unwrap(), hardware.create(&NEW).unwrap());
    hardware.build(id, 1000, 100).unwrap();
    assert_eq!(hardware.balloon(id, 500), Some(500));
    assert_eq!(hardware.free_pages(), free - 500);
    assert_eq!(hardware.balloon(id, 5000), Some(1100));
    hardware.build(other, hardware.free_pages(), 0).unwrap();
    assert_eq!(hardware.balloon(id, 1), Some(1));
    assert_eq!(hardware.balloon(id, 1100), Some(1100));
    assert_eq!(hardware.balloon(other, u64::MAX).unwrap(), free - 1100);
    hardware.destroy(id);
    assert_eq!(hardware.balloon(id, 1), None);
}

#[test]
fn vcpus_are_counted_and_bounded() {
    let mut hardware = Hardware::new(2048, 2, true);
    for bad in [0, MAX_PV_VCPUS + 1] {
        assert!(hardware.create(&NewDomain { max_vcpus: bad, ..NEW }).is_err(), "{bad}");
    }
    let too_many = MAX_GRANT_FRAMES + 1;
    assert!(hardware.create(&NewDomain { max_grant_frames: GrantFrames::Wish(too_many), ..NEW }).is_err());
    let estimate = NewDomain { max_grant_frames: GrantFrames::Estimate(too_many), ..NEW };
    assert!(hardware.create(&estimate).is_ok());
    let id = hardware.create(&NEW).unwrap();
    let vcpus = |hardware: &Hardware| {
        let info = hardware.info(id).unwrap();
        (info.nr_online_vcpus, info.max_vcpu_id)
    };
    hardware.set_online(id, 2);
    assert_eq!(vcpus(&hardware), (0, None));
    hardware.build(id, 1, 0).unwrap();
    assert_eq!(vcpus(&hardware), (1, Some(1)));
    for (asked, have) in [(2, 2), (3, 2), (0, 1)] {
        hardware.set_online(id, asked);
        assert_eq!(vcpus(&hardware), (have, Some(1)), "{asked}");
    }
}

#[test]
fn pauses_are_counted() {
    let mut hardware = Hardware::new(2048, 2, true);
    let id = hardware.create(&NEW).unwrap();
    hardware.build(id, 1, 0).unwrap();
    hardware.pause(id).unwrap();
    assert!(!hardware.unpause(id).unwrap());
    assert!(!hardware.runs(id));
    assert!(hardware.unpause(id).unwrap());
    assert!(hardware.runs(id));
    assert!(hardware.unpause(id).is_err());
}

#[test]
fn a_held_domain_stays_dying() {
    let mut hardware = Hardware::new(2048, 2, true);
    let id = hardware.create(&NEW).unwrap();
    assert!(hardware.hold(id));
    assert!(hardware.destroy(id));
    hardware.bury(id);
    assert!(hardware.info(id).unwrap().dying);
    assert!(!hardware.destroy(id) && !hardware.hold(id));
    hardware.let_go(id);
    hardware.bury(id);
    assert!(hardware.info(id).is_none());
}
