//! Frame buffers: a guest that publishes its pages is served, whatever else it does, and nothing is left of it.

use super::*;
use crate::api::ConsoleProtocol;
use crate::state::journal::Resource;
use xenstore::Operations;

fn with_frame_buffer(vm: &mut Vm) {
    let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
    (pv.framebuffer, pv.vncterm) = (true, false);
}

struct Guest<'a> {
    rig: &'a Rig,
    vm: &'a str,
    domid: DomId,
}

impl<'a> Guest<'a> {
    fn of(rig: &'a Rig, vm: &'a str) -> Self {
        Self { rig, vm, domid: rig.domid(vm).unwrap() }
    }

    fn read(&self, path: &str) -> Option<String> {
        let path = xenstore::Path::new(path).unwrap();
        self.rig.machine.store.client(xenstore::DomId::DOM0).read_str(&path).unwrap()
    }

    fn node(&self, name: &str) -> Option<String> {
        self.read(&format!("/local/domain/{}/{name}", self.domid))
    }

    fn backend(&self, class: &str) -> Option<String> {
        self.read(&format!("/local/domain/0/backend/{class}/{}/0/state", self.domid))
    }

    fn backends(&self) -> [Option<String>; 2] {
        ["vfb", "vkbd"].map(|class| self.backend(class))
    }

    /// As the guest, which owns its nodes.
    fn say(&self, class: &str, values: &[(&str, &str)]) {
        let mut client = self.rig.machine.store.client(xenstore::DomId(self.domid.get()));
        for (name, value) in values {
            let path = format!("/local/domain/{}/device/{class}/0/{name}", self.domid);
            client.write(&xenstore::Path::new(&path).unwrap(), *value).unwrap();
        }
    }

    fn publish(&self, class: &str, page: &str) {
        self.say(class, &[("page-ref", page), ("event-channel", "9"), ("state", "3")]);
    }

    fn publish_both(&self) {
        self.publish("vfb", "1000");
        self.say("vkbd", &[("request-abs-pointer", "1")]);
        self.publish("vkbd", "2000");
    }

    /// Waits until it is connected, and serves this.
    fn serves(&self, word: &str) {
        let path = format!("/libxl/{}/vfb-serves", self.domid);
        let expected = format!("{}:{word}", self.domid);
        self.rig.until("it is served", || {
            self.read(&path).as_deref() == Some(&expected)
                && self.backend("vfb").as_deref() == Some("4")
                && self.rig.machine.processes().len() == 1
        });
        self.rig.settle(self.vm);
    }

    fn says_of_both(&self, state: &str) {
        for class in ["vfb", "vkbd"] {
            self.say(class, &[("state", state)]);
        }
    }

    /// Its drivers begin anew: the backends wait for them.
    fn begins_anew(&self) {
        self.says_of_both("1");
        self.rig.until("both wait", || self.backends() == both("2"));
    }

    /// Waits until the backends have closed, and the look at them is over.
    fn closes(&self) {
        self.rig.until("both have closed", || self.backends() == both("6"));
        self.rig.settle(self.vm);
    }

    fn screens(&self) -> usize {
        let state = observe::state(&self.rig.core, &self.rig.core.records.vm(self.vm).unwrap()).unwrap();
        state.consoles.iter().filter(|console| console.protocol == ConsoleProtocol::Rfb).count()
    }

    fn journalled(&self) -> Vec<Int> {
        let entries = self.rig.core.journal.of(self.vm).into_iter();
        entries.filter_map(|(_, r)| if let Resource::Process(p) = r { Some(p.pid) } else { None }).collect()
    }

    fn nothing_is_served(&self) {
        assert!(self.rig.machine.processes().is_empty() && self.journalled().is_empty());
        assert_eq!((self.node("vfb-pid"), self.node("console/vnc-port"), self.screens()), (None, None, 0));
    }
}

fn both(state: &str) -> [Option<String>; 2] {
    [(); 2].map(|()| Some(state.to_owned()))
}

fn started(rig: &Rig) -> String {
    let vm = rig.add(1, &[], with_frame_buffer);
    rig.start(&vm).unwrap();
    rig.run(&vm, Operation::Unpause).unwrap();
    vm
}

#[test]
fn a_guest_that_publishes_its_pages_is_served_and_nothing_is_left_of_it() {
    let rig = Rig::new(&quick());
    let vm = started(&rig);
    let guest = Guest::of(&rig, &vm);
    assert_eq!(guest.backends(), both("2"), "they wait for it");
    guest.nothing_is_served();
    guest.publish_both();
    guest.serves("1000:9:64:2000:9:abs");
    let processes = rig.machine.processes();
    assert_eq!((guest.node("vfb-pid"), guest.journalled()), (Some(processes[0].to_string()), processes));
    assert_eq!((guest.backend("vkbd").as_deref(), guest.screens()), (Some("4"), 1));
    assert!(guest.node("console/vnc-port").is_some());
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.machine.processes().is_empty() && rig.core.journal.of(&vm).is_empty());
    assert_eq!(guest.backends(), [None, None]);
}

#[test]
fn one_that_never_connects_costs_nothing_and_ends_as_others_do() {
    let rig = Rig::new(&quick());
    let vm = started(&rig);
    Guest::of(&rig, &vm).say("vfb", &[("page-ref", "junk"), ("event-channel", "-1"), ("state", "4")]);
    rig.run(&vm, Operation::Check).unwrap();
    Guest::of(&rig, &vm).nothing_is_served();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.core.journal.of(&vm).is_empty());
}

#[test]
fn other_pages_are_served_by_another_process() {
    let rig = Rig::new(&quick());
    let vm = started(&rig);
    let guest = Guest::of(&rig, &vm);
    guest.publish("vfb", "1000");
    guest.serves("1000:9:64");
    let first = rig.machine.processes();
    let port = guest.node("console/vnc-port");
    guest.publish("vkbd", "7");
    guest.serves("1000:9:64:7:9:rel");
    guest.publish("vfb", "3000");
    guest.serves("3000:9:64:7:9:rel");
    assert_ne!(rig.machine.processes(), first);
    assert_eq!(guest.node("console/vnc-port"), port, "viewers find it where it was");
}

#[test]
fn a_driver_that_goes_and_comes_back_is_followed() {
    let rig = Rig::new(&quick());
    let vm = started(&rig);
    let guest = Guest::of(&rig, &vm);
    guest.publish_both();
    guest.serves("1000:9:64:2000:9:abs");
    guest.says_of_both("5");
    guest.closes();
    guest.nothing_is_served();
    guest.begins_anew();
    guest.publish_both();
    guest.serves("1000:9:64:2000:9:abs");
}

#[test]
fn a_guest_that_removes_its_nodes_is_served_no_more() {
    let rig = Rig::new(&quick());
    let vm = started(&rig);
    let guest = Guest::of(&rig, &vm);
    guest.publish_both();
    guest.serves("1000:9:64:2000:9:abs");
    let mut client = rig.machine.store.client(xenstore::DomId(guest.domid.get()));
    for class in ["vfb", "vkbd"] {
        let path = format!("/local/domain/{}/device/{class}/0", guest.domid);
        client.rm(&xenstore::Path::new(&path).unwrap()).unwrap();
    }
    guest.closes();
    guest.nothing_is_served();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
}

#[test]
fn what_cannot_be_served_is_closed_and_leaves_nothing() {
    for site in ["host.listen_for_frame_buffer", "host.start_frame_buffer", "host.follow_process", "host.go"]
    {
        let rig = Rig::new(&quick());
        let vm = started(&rig);
        let guest = Guest::of(&rig, &vm);
        rig.machine.faults.arm(Fault::Nth {
            site: Some(site.to_owned()),
            nth: 0,
            when: crate::sim::When::Before,
        });
        guest.publish_both();
        guest.closes();
        assert_eq!(rig.machine.faults.disarm(), 1, "{site}");
        guest.nothing_is_served();
        assert_eq!(rig.state(&vm), PowerState::Running, "{site}");
        // Its driver may begin anew.
        guest.begins_anew();
        guest.publish_both();
        guest.serves("1000:9:64:2000:9:abs");
    }
}

#[test]
fn a_process_that_ends_is_followed_by_another_and_not_for_ever() {
    let rig = Rig::new(&quick());
    let vm = started(&rig);
    let guest = Guest::of(&rig, &vm);
    guest.publish_both();
    guest.serves("1000:9:64:2000:9:abs");
    let mut starts = 1;
    while let [process] = rig.machine.processes()[..] {
        rig.machine.end_process(process);
        rig.settle(&vm);
        starts += rig.machine.processes().len();
    }
    assert_eq!(starts, 5);
    guest.nothing_is_served();
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
}

#[test]
fn the_next_daemon_goes_on_with_it() {
    let rig = Rig::new(&quick());
    let vm = started(&rig);
    Guest::of(&rig, &vm).publish_both();
    Guest::of(&rig, &vm).serves("1000:9:64:2000:9:abs");
    let (process, port) = (rig.machine.processes(), Guest::of(&rig, &vm).node("console/vnc-port"));
    let rig = rig.restart();
    rig.until("it is found", || Guest::of(&rig, &vm).screens() == 1);
    let guest = Guest::of(&rig, &vm);
    assert_eq!((rig.machine.processes(), guest.node("console/vnc-port")), (process.clone(), port));
    // And looks at what the guest changes.
    guest.publish("vfb", "4000");
    guest.say("vfb", &[("state", "4")]);
    guest.serves("4000:9:64:2000:9:abs");
    assert_ne!(rig.machine.processes(), process);
    rig.run(&vm, Operation::Shutdown(None)).unwrap();
    assert!(rig.machine.processes().is_empty() && rig.core.journal.of(&vm).is_empty());
}

/// Linux publishes its pages again, but does not ask for the pointer's place again; one that has not asked gets moves still, and
/// a guest that is started anew says for itself.
#[test]
fn a_resumed_guest_is_served_anew_with_the_pointer_that_it_has_asked_for() {
    for pointer in ["abs", "rel"] {
        let rig = Rig::new(&quick());
        let vm = started(&rig);
        let publish = || {
            Guest::of(&rig, &vm).publish("vfb", "1000");
            Guest::of(&rig, &vm).publish("vkbd", "2000");
        };
        if pointer == "abs" {
            Guest::of(&rig, &vm).say("vkbd", &[("request-abs-pointer", "1")]);
        }
        let serves = |pointer: &str| Guest::of(&rig, &vm).serves(&format!("1000:9:64:2000:9:{pointer}"));
        publish();
        serves(pointer);
        let image = Disk::Local(rig.directory.path().join("image").display().to_string());
        for _ in 0..2 {
            rig.run(&vm, Operation::Suspend(image.clone())).unwrap();
            assert!(rig.machine.processes().is_empty());
            rig.run(&vm, Operation::Resume(image.clone())).unwrap();
            rig.run(&vm, Operation::Unpause).unwrap();
            publish();
            serves(pointer);
        }
        // It is the guest's node as before.
        Guest::of(&rig, &vm).say("vkbd", &[("request-abs-pointer", "0")]);
        rig.run(&vm, Operation::Check).unwrap();
        serves("rel");
        Guest::of(&rig, &vm).say("vkbd", &[("request-abs-pointer", "1")]);
        rig.run(&vm, Operation::Shutdown(None)).unwrap();
        rig.start(&vm).unwrap();
        rig.run(&vm, Operation::Unpause).unwrap();
        publish();
        serves("rel");
    }
}

/// The contract's flag is heeded, and the address beside it when it is on.
#[test]
fn one_that_is_not_asked_for_is_not_offered_and_none_is_on_another_address() {
    let address = |vm: &mut Vm, on: bool| {
        with_frame_buffer(vm);
        let BuilderInfo::Pv(pv) = &mut vm.ty else { unreachable!() };
        (pv.framebuffer, pv.framebuffer_ip) = (on, Some("0.0.0.0".to_owned()));
    };
    let rig = Rig::new(&quick());
    let vm = rig.add(1, &[], |vm| address(vm, true));
    let before = rig.remains(&vm);
    let refused = rig.start(&vm).unwrap_err().to_string();
    assert!(refused.contains("framebuffer_ip") && refused.contains("127.0.0.1"), "{refused}");
    assert_eq!(rig.remains(&vm), before);
    let vm = rig.add(2, &[], |vm| address(vm, false));
    rig.start(&vm).unwrap();
    assert_eq!(Guest::of(&rig, &vm).backends(), [None, None]);
}

#[test]
fn a_toolstack_that_closes_the_backends_is_obeyed() {
    let rig = Rig::new(&quick());
    let vm = started(&rig);
    let guest = Guest::of(&rig, &vm);
    guest.publish_both();
    guest.serves("1000:9:64:2000:9:abs");
    let mut client = rig.machine.store.client(xenstore::DomId::DOM0);
    for kind in [DeviceKind::Vfb, DeviceKind::Vkbd] {
        let domid = xenstore::DomId(guest.domid.get());
        let address = DeviceAddress { kind, domid, id: 0, backend_domid: xenstore::DomId::DOM0 };
        client.commit(&address.request_close()).unwrap();
    }
    guest.closes();
    guest.nothing_is_served();
}
